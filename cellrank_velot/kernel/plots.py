"""Plots of the kernel: the functions of :mod:`cellrank_velot.pl` as methods, with the kernel as ``data``."""

from __future__ import annotations

from typing import Any, Literal

import scipy.sparse as sp

from cellrank_velot import plotting
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.dynamics import ProcessFates, Trajectories
from cellrank_velot.fates import GeneTrends
from cellrank_velot.kernel.base import BaseVelocityKernel

__all__ = ["Plots", "SeriesPlots"]

VelocityStyle = Literal["stream", "grid", "quiver"]
FateStyle = Literal["bars", "heatmap", "cells"]
TrendStyle = Literal["heatmap", "lines"]


class Plots(BaseVelocityKernel):
    """Methods of the kernel that draw it."""

    plot_comparison = plotting.velocity_comparison
    plot_windows = plotting.windows
    plot_window_transport = plotting.window_transport
    plot_spatial_clusters = plotting.spatial_clusters
    plot_confidence = plotting.confidence
    plot_uncertainty = plotting.uncertainty
    plot_terminal_states = plotting.terminal_states
    plot_time_check = plotting.time_check
    plot_training = plotting.training
    plot_trajectories = plotting.trajectories
    plot_flow = plotting.flow
    animate_flow = plotting.flow_animation
    plot_fixed_points = plotting.fixed_points
    plot_least_action_path = plotting.least_action_path

    def plot_velocity(self, basis: str = "umap", style: VelocityStyle = "stream", **kwargs: Any) -> Any:
        """Draw the velocity in an embedding.

        Parameters
        ----------
        basis
            Key in ``adata.obsm`` of the embedding, with or without ``X_``.
        style
            ``"stream"``, ``"grid"`` for arrows on a grid, or ``"quiver"`` for arrows at cells.
        **kwargs
            Options of the plot, by ``style``: :func:`cellrank_velot.pl.velocity_stream`,
            :func:`cellrank_velot.pl.velocity_grid` or :func:`cellrank_velot.pl.velocity_quiver`.

        Returns
        -------
        The Axes where ``show=False``, nothing otherwise. Errors are those of the plot.

        Examples
        --------
        >>> vk.plot_velocity(style="grid", save="velocity.png")  # in scanpy's `figdir`
        >>> ax = vk.plot_velocity("pca", style="quiver", method="linear_map", show=False)
        """
        check_choice("style", style, VelocityStyle)
        return getattr(plotting, f"velocity_{style}")(self, basis, **kwargs)

    def plot_gene_trends(self, trends: GeneTrends, style: TrendStyle = "heatmap", **kwargs: Any) -> Any:
        """Draw genes along lineages.

        Parameters
        ----------
        trends
            What :meth:`gene_trends` returned.
        style
            ``"heatmap"`` for one row for each gene, or ``"lines"`` for curves with their bands.
        **kwargs
            Options of the plot, by ``style``: :func:`cellrank_velot.pl.trend_heatmap` or
            :func:`cellrank_velot.pl.gene_trends`.

        Returns
        -------
        The list of Axes where ``show=False``, nothing otherwise. Errors are those of the plot.

        Examples
        --------
        >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
        >>> trends = vk.gene_trends(["Stem", "FateA", "FateB"], fates)
        >>> panels = vk.plot_gene_trends(trends, "lines", show=False)
        """
        check_choice("style", style, TrendStyle)
        if style == "lines":
            return plotting.gene_trends(trends, **kwargs)
        return plotting.trend_heatmap(trends, **{"data": self, **kwargs})

    def plot_projection(
        self,
        basis: str = "umap",
        key_added: str | None = None,
        recompute: bool = False,
        stream: bool = True,
        connectivities: sp.spmatrix | None = None,
        **kwargs: Any,
    ) -> None:
        """Draw the projected transition matrix by scVelo's plots, as every kernel of CellRank does.

        The arrows are those of :meth:`project_velocity`, which takes account of the weights in the matrix.

        Parameters
        ----------
        basis
            Key in ``adata.obsm`` of the embedding, with or without ``X_``.
        key_added
            Start of the key in ``adata.obsm`` to write to; ``"T_fwd"`` or ``"T_bwd"`` where not given.
        recompute
            Whether to project again what was projected before.
        stream
            Streamlines where ``True``, arrows on a grid otherwise.
        connectivities
            A graph to project by in CellRank's way, in place of that of the kernel.
        **kwargs
            Options of scVelo's plot.

        Examples
        --------
        >>> vk.plot_projection("umap", color="clusters", show=False)
        """
        name, of = basis.removeprefix("X_"), key_added or ("T_bwd" if self.backward else "T_fwd")
        if connectivities is None and (recompute or f"{of}_{name}" not in self.adata.obsm):
            self.project_velocity(basis, key_added=f"{of}_{name}")
            params = self.adata.uns.setdefault(f"{of}_params", {})
            params["embeddings"] = list(dict.fromkeys([*params.get("embeddings", []), name]))  # scVelo looks there
            recompute = False
        super().plot_projection(basis, key_added, recompute, stream, connectivities, **kwargs)

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
            A flow, or the result of :meth:`fate_probabilities`. Where not given, the flow last computed; in
            experimental time the fates of the first time point, of its clusters or, for ``style="cells"``, of its
            cells.
        style
            Of the fates of a time series: ``"bars"``, one panel for each group of cells; ``"heatmap"``, a table; or
            ``"cells"``, the cells in an embedding.
        cluster_key
            Column of ``adata.obs`` with the clusters; that of the kernel, or ``"clusters"``, where not given.
        **kwargs
            Options of the plot: :func:`cellrank_velot.pl.fate_summary` of a flow, or, by ``style``,
            :func:`cellrank_velot.pl.fate_bars`, :func:`cellrank_velot.pl.fate_heatmap` or
            :func:`cellrank_velot.pl.fate_cells`.

        Returns
        -------
        What the plot returns: Axes where ``show=False``, nothing otherwise. Errors are those of the plot.

        Examples
        --------
        >>> flow = vk.simulate_flow(source_cluster="Progenitor", n_particles=50, n_steps=50)
        >>> ax = vk.plot_fates(flow, show=False)
        >>> panels = sk.plot_fates(sk.fate_probabilities(group_by="clusters"), show=False)
        """
        check_choice("style", style, FateStyle)
        if isinstance(fates, ProcessFates) or (fates is None and self.cells.is_series):
            return getattr(plotting, f"fate_{style}")(self, fates, cluster_key=cluster_key, **kwargs)
        return plotting.fate_summary(self, fates, cluster_key=cluster_key, **kwargs)


class SeriesPlots(Plots):
    """Methods of the kernel for real time points that draw it."""

    plot_process = plotting.process_paths
    plot_growth = plotting.growth_map
    plot_population = plotting.population

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
            Result of :meth:`ancestry`. Where not given, the ancestors of the last time point, of its clusters or, for
            ``style="cells"``, of its cells.
        style
            ``"bars"``, one panel for each group of cells; ``"heatmap"``, a table; or ``"cells"``, the cells in an
            embedding.
        cluster_key
            Column of ``adata.obs`` with the clusters; that of the kernel, or ``"clusters"``, where not given.
        **kwargs
            Options of the plot, by ``style``: :func:`cellrank_velot.pl.fate_bars`,
            :func:`cellrank_velot.pl.fate_heatmap` or :func:`cellrank_velot.pl.fate_cells`.

        Returns
        -------
        What the plot returns: Axes where ``show=False``, nothing otherwise. Errors are those of the plot.

        Examples
        --------
        >>> panels = sk.plot_ancestry(show=False)
        """
        check_choice("style", style, FateStyle)
        draw = getattr(plotting, f"fate_{style}")
        return draw(self, fates, cluster_key=cluster_key, **{"of": "ancestors", **kwargs})
