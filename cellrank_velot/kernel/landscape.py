"""Methods of the kernel that compute and draw the landscape of the cells."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellrank_velot.cells import find_basis, find_cluster_key, read_clusters, read_plane
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.landscape import Landscape, LandscapeOptions, compute_landscape, populations_of
from cellrank_velot.plotting.landscape import landscape_animation, potential_landscape
from cellrank_velot.timeseries.interpolation import Population

__all__ = ["Landscapes"]

logger = logging.getLogger("cellrank_velot")


class Landscapes(BaseVelocityKernel):
    """Methods of the kernel that compute and draw the landscape."""

    @all_or_nothing()
    def compute_landscape(
        self,
        times: Sequence[float] | float | None = None,
        basis: str | None = None,
        *,
        dims: tuple[int, int] = (0, 1),
        cluster_key: str | None = None,
        diffusion: float | None = LandscapeOptions.diffusion,
        window: float = LandscapeOptions.window,
        n_grid: int = LandscapeOptions.n_grid,
        bandwidth: float = LandscapeOptions.bandwidth,
        min_cells: float = LandscapeOptions.min_cells,
    ) -> Landscape:
        r"""Compute the quasi-potential :math:`U = -\frac{\sigma^2}{2} \log p` of the cells in a plane.

        The density :math:`p` of the cells of one time is a Gaussian kernel estimate, and depends on these cells alone.
        The diffusion :math:`\sigma` sets the scale. What the other dimensions would add to a barrier is averaged over.
        A plane such as a UMAP is no linear map of the basis: there, heights also say how the embedding spreads cells.
        Compare them within it only.

        Barriers are bounds from below, as the kernel blurs the wells. Of barriers of 2 and 3 between two wells, 10 000
        cells show 1.9 and 2.8 with the default ``bandwidth=0.5``, and 1.6 and 2.4 with 1. 1000 cells show 1.8 and 2.6,
        and 1.2 and 1.8. A smaller bandwidth makes hills by chance: within one Gaussian cloud of 1000 cells, barriers of
        0.1 with 0.5 and of 0.5 with 0.25. So differences of some tenths of :math:`\sigma^2 / 2` mean nothing.

        Parameters
        ----------
        times
            Times of the landscapes. With experimental time, every time point where not given; between two time points
            the kernel interpolates the population. With pseudotime, one landscape of all cells where not given, and
            that of the cells around each time otherwise.
        basis
            Key in ``adata.obsm`` of the positions, with or without ``X_``. The basis of the kernel where not given,
            which is the only one for times between time points.
        dims
            Columns of the basis that are the plane.
        cluster_key
            Key in ``adata.obs`` of the clusters that are the states. That of the kernel, or ``"clusters"``, where not
            given. Without clusters there are no barriers. An interpolated cell has the cluster of the nearest cell of
            the time points before and after.
        diffusion
            :math:`\sigma`, positive, in units of the basis per root of time. That of the field where not given. A field
            of a pseudotime has none; there, and before :meth:`fit_field`, :math:`\sigma^2 / 2` is 1 and :math:`U =
            -\log p`.
        window
            With pseudotime, how far from each time its cells may be, in ``(0, 1]``. At least 20 cells must be within.
        n_grid
            Number of points of the grid along each dimension, at least 10. One grid has room for all times.
        bandwidth
            Factor on Scott's rule for the width of the kernel :cite:`scott:92`, positive. The width is at least half a
            spacing of the grid.
        min_cells
            How many effective cells, where their kernels are highest, give the density below which the potential is
            NaN. With the default 1, a lone cell has no potential. At this bound the relative error of the density is
            about ``sqrt(0.5 / min_cells)``.

        Returns
        -------
        The landscape. Its :meth:`~cellrank_velot.landscape.Landscape.barriers` are those between states.

        Raises
        ------
        KeyError
            If the basis or the clusters are missing.
        RuntimeError
            If a time is between time points and the kernel cannot interpolate.
        TypeError
            If an option is not a number.
        ValueError
            If a time is outside those of the kernel, there are too few cells around one, the cells do not spread in
            both dimensions, a time between time points is asked for in another basis, or an option is out of range.

        Examples
        --------
        >>> landscape = sk.compute_landscape([0, 1.5, 3])
        >>> landscape.potential.shape
        (3, 100, 100)
        >>> landscape.barriers(["Fate A", "Fate B"])[["from", "to", "time"]].values.tolist()[-1]
        ['Fate B', 'Fate A', 3.0]
        """
        options = LandscapeOptions(
            diffusion=self._diffusion() if diffusion is None else diffusion,
            window=window,
            n_grid=n_grid,
            bandwidth=bandwidth,
            min_cells=min_cells,
        )
        key = self.basis if basis is None else find_basis(self.adata, basis)
        plane = read_plane(self.adata, key, dims, {self.basis: self.cells.x})
        labels, states = self._states(cluster_key)

        def interpolate(time: float) -> tuple[NDArray[np.float64], Population]:
            if key != self.basis:
                raise ValueError(
                    f"Expected time points of {self.cells.time_points.tolist()}, found {time:g}: between them, the "
                    f"population is known in the basis of the kernel {self.basis!r} only, not in {key!r}."
                )
            found: Population = self.interpolate(time)
            return found.x[:, list(dims)], found

        populations = populations_of(self.cells, plane, labels, times, window, interpolate)
        window = 0.0 if self.cells.is_series else window
        return compute_landscape(populations, states, options, basis=key, dims=dims, window=window)

    plot_landscape = potential_landscape
    animate_landscape = landscape_animation

    # ---------------------------------------------------------------------------------------------------- private
    def _states(self, cluster_key: str | None) -> tuple[NDArray[np.int64] | None, list[str]]:
        """Return the number of each cell's state, -1 for none, and the names of the states."""
        key = find_cluster_key(self.adata, cluster_key, usual=self.cluster_key)
        if key is None:
            return None, []
        clusters = read_clusters(self.adata, key).cat.remove_unused_categories().cat
        return clusters.codes.to_numpy(dtype=np.int64), list(map(str, clusters.categories))

    def _diffusion(self) -> float | None:
        """Return the diffusion of the field, where it is known."""
        diffusion = float(getattr(self.field, "diffusion", 0.0))
        if not diffusion:
            logger.info("No diffusion is known: the landscape is the negative logarithm of the density")
        return diffusion or None
