"""Pictures of the kernel: each method calls a function of :mod:`cellrank_velot.plotting`, which it names.

Depends on the plots, which are imported when one is asked for: they draw kernels, and some build one from an AnnData.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cellrank_velot._validation import check_choice
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.kernel._parts import Parts

__all__ = ["Plots"]

VelocityStyle = Literal["stream", "grid", "quiver"]


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
        """
        from cellrank_velot import plotting

        check_choice("style", style, VelocityStyle)
        return getattr(plotting, f"velocity_{style}")(self, basis, **kwargs)

    def plot_comparison(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw the velocities of transport and of the field, see :func:`cellrank_velot.pl.velocity_comparison`."""
        from cellrank_velot import plotting

        return plotting.velocity_comparison(self, basis, **kwargs)

    def plot_windows(self, basis: str = "umap", pairs: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Draw pairs of windows, see :func:`cellrank_velot.pl.windows`."""
        from cellrank_velot import plotting

        return plotting.windows(self, basis, pairs, **kwargs)

    def plot_window_transport(self, pair: int, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw one pair of windows with its transport plan, see :func:`cellrank_velot.pl.window_transport`."""
        from cellrank_velot import plotting

        return plotting.window_transport(self, pair, basis, **kwargs)

    def plot_spatial_clusters(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw the clusters that windows are made in, see :func:`cellrank_velot.pl.spatial_clusters`."""
        from cellrank_velot import plotting

        return plotting.spatial_clusters(self, basis, **kwargs)

    def plot_confidence(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw the confidence in the velocity of transport, see :func:`cellrank_velot.pl.confidence`."""
        from cellrank_velot import plotting

        return plotting.confidence(self, basis, **kwargs)

    def plot_uncertainty(self, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw how far velocities may be off, see :func:`cellrank_velot.pl.uncertainty`."""
        from cellrank_velot import plotting

        return plotting.uncertainty(self, basis, **kwargs)

    def plot_training(self, **kwargs: Any) -> Any:
        """Draw the losses of the training of the field, see :func:`cellrank_velot.pl.training`."""
        from cellrank_velot import plotting

        return plotting.training(self, **kwargs)

    def plot_trajectories(self, trajectories: Trajectories | None = None, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw trajectories, see :func:`cellrank_velot.pl.trajectories`; the last computed where not given."""
        from cellrank_velot import plotting

        return plotting.trajectories(self, trajectories, basis, **kwargs)

    def plot_flow(self, trajectories: Trajectories | None = None, basis: str = "umap", **kwargs: Any) -> Any:
        """Draw particles of a flow at several times, see :func:`cellrank_velot.pl.flow`; the last where not given."""
        from cellrank_velot import plotting

        return plotting.flow(self, trajectories, basis, **kwargs)

    def animate_flow(self, trajectories: Trajectories | None = None, basis: str = "umap", **kwargs: Any) -> Any:
        """Animate the particles of a flow, see :func:`cellrank_velot.pl.flow_animation`; the last where not given."""
        from cellrank_velot import plotting

        return plotting.flow_animation(self, trajectories, basis, **kwargs)

    def plot_fates(self, trajectories: Trajectories | None = None, **kwargs: Any) -> Any:
        """Draw the fates of a flow, see :func:`cellrank_velot.pl.fate_summary`; the last computed where not given."""
        from cellrank_velot import plotting

        return plotting.fate_summary(self, trajectories, **kwargs)
