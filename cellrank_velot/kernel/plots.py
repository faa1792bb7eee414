"""Pictures of the kernel: each method calls a function of :mod:`cellrank_velot.plotting`, which it names.

Depends on the plots, which are imported when one is asked for: they draw kernels, and some build one from an AnnData.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cellrank_velot._utils.validation import check_choice
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.dynamics.descent import ProcessFates
from cellrank_velot.dynamics.process import ProcessPaths
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.timeseries.interpolation import Population

__all__ = ["Plots"]

VelocityStyle = Literal["stream", "grid", "quiver"]
FateStyle = Literal["bars", "heatmap", "cells"]


class Plots(Parts):
    """Methods of the kernel that draw it."""

    def plot_velocity(self, basis: str = "umap", style: VelocityStyle = "stream", **kwargs: Any) -> Any:
        """Draw the velocity in an embedding.

        Parameters
        ----------
        basis
            Key in ``adata.obsm`` of the embedding, with or without ``X_``.
        style
            ``"stream"``, ``"grid"`` for arrows on a grid, or ``"quiver"`` for arrows at cells.
        **kwargs
            Passed on to :func:`cellrank_velot.pl.velocity_stream`, :func:`cellrank_velot.pl.velocity_grid` or
            :func:`cellrank_velot.pl.velocity_quiver`.

        Returns
        -------
        The Axes where ``show=False``, nothing otherwise. Errors are those of that function.

        Examples
        --------
        >>> vk.plot_velocity(style="grid", save="velocity.png")  # in scanpy's `figdir`
        >>> ax = vk.plot_velocity("pca", style="quiver", method="linear_map", show=False)
        """
        from cellrank_velot import plotting

        check_choice("style", style, VelocityStyle)
        return getattr(plotting, f"velocity_{style}")(self, basis, **kwargs)

    def plot_comparison(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw the velocities of transport and of the field, see :func:`cellrank_velot.pl.velocity_comparison`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> raw, smooth = vk.plot_comparison(show=False)
        """
        from cellrank_velot import plotting

        return plotting.velocity_comparison(self, basis, **kwargs)

    def plot_windows(self, basis: str = "umap", pairs: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Draw pairs of windows, see :func:`cellrank_velot.pl.windows`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> len(vk.plot_windows(max_pairs=4, show=False))
        4
        """
        from cellrank_velot import plotting

        return plotting.windows(self, basis, pairs, **kwargs)

    def plot_window_transport(self, pair: int, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw one pair of windows with its transport plan, see :func:`cellrank_velot.pl.window_transport`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> ax = vk.plot_window_transport(vk.windows.n_pairs // 2, show=False)
        """
        from cellrank_velot import plotting

        return plotting.window_transport(self, pair, basis, **kwargs)

    def plot_spatial_clusters(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw the clusters that windows are made in, see :func:`cellrank_velot.pl.spatial_clusters`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> ax = vk.plot_spatial_clusters(show=False)
        """
        from cellrank_velot import plotting

        return plotting.spatial_clusters(self, basis, **kwargs)

    def plot_confidence(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw the confidence in the velocity of transport, see :func:`cellrank_velot.pl.confidence`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> ax = vk.plot_confidence(show=False)
        """
        from cellrank_velot import plotting

        return plotting.confidence(self, basis, **kwargs)

    def plot_uncertainty(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw how far velocities may be off, see :func:`cellrank_velot.pl.uncertainty`.

        Parameters, result and errors are those of that function. Call :meth:`compute_uncertainty` before.

        Examples
        --------
        >>> ax = vk.plot_uncertainty(show=False)
        """
        from cellrank_velot import plotting

        return plotting.uncertainty(self, basis, **kwargs)

    def plot_training(self, **kwargs: Any) -> Any:
        """Draw the losses of the training of the field, see :func:`cellrank_velot.pl.training`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> ax = vk.plot_training(show=False)
        """
        from cellrank_velot import plotting

        return plotting.training(self, **kwargs)

    def plot_trajectories(self, trajectories: Trajectories | None = None, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw trajectories, see :func:`cellrank_velot.pl.trajectories`; the last computed where not given.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> paths = vk.compute_trajectories(
        ...     start_cluster="Progenitor", n_trajectories=5, n_steps=100
        ... )
        >>> ax = vk.plot_trajectories(color_by="time", show=False)
        """
        from cellrank_velot import plotting

        return plotting.trajectories(self, trajectories, basis, **kwargs)

    def plot_flow(self, trajectories: Trajectories | None = None, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw particles of a flow at several times, see :func:`cellrank_velot.pl.flow`; the last where not given.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
        >>> len(vk.plot_flow(n_frames=3, show=False))
        3
        """
        from cellrank_velot import plotting

        return plotting.flow(self, trajectories, basis, **kwargs)

    def animate_flow(self, trajectories: Trajectories | None = None, basis: str = "umap", **kwargs: Any) -> Any:
        """Animate the particles of a flow, see :func:`cellrank_velot.pl.flow_animation`; the last where not given.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
        >>> vk.animate_flow(n_frames=3, save="flow.gif")
        """
        from cellrank_velot import plotting

        return plotting.flow_animation(self, trajectories, basis, **kwargs)

    def plot_fates(
        self,
        fates: Trajectories | ProcessFates | None = None,
        *,
        style: FateStyle = "bars",
        cluster_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draw the fates of a flow, or those of cells of a time series.

        Parameters
        ----------
        fates
            A flow, drawn by :func:`cellrank_velot.pl.fate_summary`, or the result of :meth:`fate_probabilities`, drawn
            by :func:`cellrank_velot.pl.fate_bars`, :func:`cellrank_velot.pl.fate_heatmap` or
            :func:`cellrank_velot.pl.fate_cells`. Where not given, the flow last computed; in experimental time the
            fates of the first time point, of its clusters or, for ``style="cells"``, of its cells.
        style
            ``"bars"``, ``"heatmap"`` or ``"cells"``, of the latter.
        cluster_key
            Column of ``adata.obs`` with the clusters; that of the kernel, or ``"clusters"``, where not given.
        **kwargs
            Passed on to the plot.

        Returns
        -------
        What the plot returns: Axes where ``show=False``, nothing otherwise.

        Examples
        --------
        >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
        >>> ax = vk.plot_fates(flow, show=False)
        >>> panels = sk.plot_fates(sk.fate_probabilities(group_by="clusters"), show=False)
        """
        from cellrank_velot import plotting

        check_choice("style", style, FateStyle)
        if isinstance(fates, ProcessFates) or (fates is None and self.cells.is_series):
            return self._plot_descent("fate_probabilities", fates, style, cluster_key, kwargs)
        return plotting.fate_summary(self, fates, cluster_key=cluster_key, **kwargs)

    def plot_ancestry(
        self,
        fates: ProcessFates | None = None,
        *,
        style: FateStyle = "bars",
        cluster_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draw the ancestors of cells of a time series.

        Parameters
        ----------
        fates
            Result of :meth:`ancestry`; where not given, the ancestors of the last time point, of its clusters or cells.
        style, cluster_key, **kwargs
            As in :meth:`plot_fates`.

        Returns
        -------
        What the plot returns: Axes where ``show=False``, nothing otherwise.

        Examples
        --------
        >>> panels = sk.plot_ancestry(show=False)
        """
        check_choice("style", style, FateStyle)
        return self._plot_descent("ancestry", fates, style, cluster_key, kwargs)

    def plot_process(self, paths: ProcessPaths | None = None, basis: str | None = None, **kwargs: Any) -> Any:
        """Draw paths of the process of a time series, see :func:`cellrank_velot.pl.process_paths`.

        Parameters
        ----------
        paths
            Result of :meth:`simulate_process`; where not given, from cells of the first time point to the last.
        basis
            Key in ``adata.obsm`` of the embedding; the basis of the kernel where not given.
        **kwargs
            Passed on to the plot.

        Returns
        -------
        The Axes where ``show=False``, nothing otherwise. Errors are those of that function.

        Examples
        --------
        >>> ax = sk.plot_process(sk.simulate_process("Progenitor A", n_particles=100), show=False)
        """
        from cellrank_velot.plotting.process import process_paths

        kernel: Any = self
        return process_paths(self, kernel.simulate_process() if paths is None else paths, basis, **kwargs)

    def plot_growth(self, basis: str | None = None, **kwargs: Any) -> Any:
        """Draw the growth rate of the cells of a time series, see :func:`cellrank_velot.pl.growth_map`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> len(sk.plot_growth(show=False))  # one for each day
        4
        """
        from cellrank_velot.plotting.snapshots import growth_map

        return growth_map(self, basis, **kwargs)

    def plot_population(
        self, times: Population | float | Sequence[Population | float], basis: str | None = None, **kwargs: Any
    ) -> Any:
        """Draw populations between time points next to the snapshots, see :func:`cellrank_velot.pl.population`.

        Parameters, result and errors are those of that function.

        Examples
        --------
        >>> panels = sk.plot_population([0.5, 1.5], show=False)
        """
        from cellrank_velot.plotting.snapshots import population

        return population(self, times, basis, **kwargs)

    def _plot_descent(
        self,
        method: str,
        fates: ProcessFates | None,
        style: str,
        cluster_key: str | None,
        options: dict[str, Any],
    ) -> Any:
        """Draw a table, computed by a method of the kernel for the clusters where not given."""
        from cellrank_velot.plotting.descent import fate_bars, fate_heatmap
        from cellrank_velot.plotting.process import fate_cells

        if fates is None:
            key = cluster_key or self.cluster_key or "clusters"
            fates = getattr(self, method)(cluster_key=key, group_by=None if style == "cells" else key)
        if style == "cells":
            return fate_cells(self, fates, **options)
        draw: Any = fate_bars if style == "bars" else fate_heatmap
        of = "ancestors" if method == "ancestry" else "descendants"
        return draw(self, fates, cluster_key=cluster_key, **{"of": of, **options})
