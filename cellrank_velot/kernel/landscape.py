"""The landscape of the cells that a kernel has, at its time points or in windows of its pseudotime.

Thin calls of :mod:`cellrank_velot.landscape`; the plots are imported when one is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellrank_velot._utils.validation import check_integer, check_known, check_number
from cellrank_velot.cells.read import find_basis, read_basis
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.landscape import Landscape, PlaneCells, compute_landscape
from cellrank_velot.landscape.compute import MIN_CELLS, WINDOW

__all__ = ["Landscapes"]

logger = logging.getLogger("cellrank_velot")


class Landscapes(Parts):
    """Methods of the kernel that compute and draw the landscape."""

    @all_or_nothing()
    def compute_landscape(
        self,
        times: Sequence[float] | float | None = None,
        basis: str | None = None,
        *,
        dims: tuple[int, int] = (0, 1),
        cluster_key: str | None = None,
        diffusion: float | None = None,
        window: float = WINDOW,
        n_grid: int = 100,
        bandwidth: float = 0.5,
        min_cells: float = 1.0,
    ) -> Landscape:
        r"""Compute the quasi-potential :math:`U = -\frac{\sigma^2}{2} \log p` of the cells in a plane.

        Of the density :math:`p` of the cells of one time it takes no more than the cells themselves; the diffusion
        :math:`\sigma` sets its scale. In a plane that is no linear map of the basis, such as a UMAP, heights also say
        how the embedding spreads cells, and :math:`\sigma` is still that of the basis: compare them within it only.

        Parameters
        ----------
        times
            Times of the landscapes. In experimental time every time point where not given; between two time points the
            population is interpolated by the kernel, in the first and last of which there must be a time point. With
            pseudotime one landscape of all cells where not given, and that of the cells around each time otherwise.
        basis
            Key in ``adata.obsm`` of the positions, with or without ``X_``; the basis of the kernel where not given. Of
            times between time points, populations are known in that alone.
        dims
            Columns of the basis that are the plane.
        cluster_key
            Key in ``adata.obs`` of the clusters that are the states; that of the kernel, or ``"clusters"``, where not
            given; without any, there are no barriers. Interpolated cells have the cluster of the nearest cell of the
            time points before and after, and count as no more cells than these.
        diffusion
            :math:`\sigma`, in units of the basis per root of time; that of the field where not given. Where the field
            has none, as with pseudotime, or was not fitted, :math:`\sigma^2 / 2` is 1 and :math:`U = -\log p`.
        window
            With pseudotime, how far from each time its cells may be, in ``[0, 1]``.
        n_grid, bandwidth, min_cells
            See :func:`cellrank_velot.landscape.compute_landscape`.

        Returns
        -------
        The landscape; its :meth:`~cellrank_velot.landscape.Landscape.barriers` are those between states.

        Raises
        ------
        KeyError
            If the basis or the clusters are missing.
        RuntimeError
            If a time is between time points and the kernel cannot interpolate.
        ValueError
            If a time is outside those of the kernel, there are too few cells around one, a time between time points is
            asked for in another basis, or an option is out of range.

        Examples
        --------
        >>> landscape = sk.compute_landscape([0, 1.5, 3])
        >>> landscape.potential.shape
        (3, 100, 100)
        >>> landscape.barriers(["Fate A", "Fate B"])[["from", "to", "time"]].values.tolist()[-1]
        ['Fate B', 'Fate A', 3.0]
        """
        key = self.basis if basis is None else find_basis(self.adata, basis)
        plane = self._plane(key, dims)
        check_number("window", window, low=0, high=1, open_low=True)
        asked = self._asked_times(times)
        labels, states = self._states(cluster_key)
        if self.cells.is_series:
            populations = [self._population_at(time, key, plane, dims, labels) for time in asked]
        elif times is None:
            populations = [PlaneCells(plane, labels=labels)]
        else:
            populations = [self._population_around(time, window, plane, labels) for time in asked]
        return compute_landscape(
            populations,
            diffusion=self._diffusion() if diffusion is None else diffusion,
            states=states,
            n_grid=n_grid,
            bandwidth=bandwidth,
            min_cells=min_cells,
            basis=key,
            dims=dims,
            window=0.0 if self.cells.is_series else window,
        )

    def plot_landscape(
        self,
        landscape: Landscape | None = None,
        basis: str | None = None,
        times: Sequence[float] | float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draw a landscape as a map or a surface, see :func:`cellrank_velot.pl.potential_landscape`.

        Parameters
        ----------
        landscape
            A landscape; that of ``basis`` with the usual options where not given.
        basis
            As in :meth:`compute_landscape`, without a ``landscape``.
        times
            Times to draw: of the landscape, where one is given, and otherwise as in :meth:`compute_landscape`.
        **kwargs
            Passed on to :func:`cellrank_velot.pl.potential_landscape`, e.g. ``kind="surface"``.

        Returns
        -------
        The list of Axes where ``show=False``, nothing otherwise. Errors are those of that function.

        Examples
        --------
        >>> panels = sk.plot_landscape(times=[0, 3], show=False)
        >>> len(panels)
        2
        >>> panels = vk.plot_landscape(basis="umap", kind="surface", show=False)
        """
        from cellrank_velot.plotting.landscape import potential_landscape

        return potential_landscape(self, landscape, basis, times, **kwargs)

    def animate_landscape(
        self, landscape: Landscape | None = None, basis: str | None = None, *, n_frames: int = 40, **kwargs: Any
    ) -> Any:
        """Draw the landscape as it changes with time, see :func:`cellrank_velot.pl.landscape_animation`.

        Parameters
        ----------
        landscape
            A landscape of two or more times, one for each frame. Where not given, those of ``n_frames`` times, evenly
            spread from the first to the last, without those of a pseudotime around which there are too few cells. Of
            every time point where the kernel has no cells for others: between time points it has none in another basis
            than its own.
        basis
            As in :meth:`compute_landscape`.
        n_frames
            Number of frames, without a ``landscape``.
        **kwargs
            Passed on to :func:`cellrank_velot.pl.landscape_animation`.

        Returns
        -------
        The animation, as that function returns it. Errors are those of that function.

        Examples
        --------
        >>> sk.animate_landscape(n_frames=3, save="landscape.gif")
        """
        from cellrank_velot.plotting.landscape import landscape_animation

        return landscape_animation(self, landscape, basis, n_frames=n_frames, **kwargs)

    # ---------------------------------------------------------------------------------------------------- private
    def _plane(self, key: str, dims: tuple[int, int]) -> NDArray[np.float64]:
        """Return two columns of the positions, shape ``[n_cells, 2]``."""
        x = self.cells.x if key == self.basis else read_basis(self.adata, key)
        for dim in dims:
            check_integer("dims", dim)
        if len(dims) != 2 or dims[0] == dims[1] or max(dims) >= x.shape[1]:
            raise ValueError(f"Expected `dims` to be two of the `{x.shape[1]}` columns of {key!r}, found `{dims}`.")
        return x[:, list(dims)]

    def _asked_times(self, times: Sequence[float] | float | None) -> list[float]:
        if times is None:
            return self.cells.time_points.tolist() if self.cells.is_series else []
        low, high = self.cells.time_range
        return [check_number("times", time, low=low, high=high) for time in np.atleast_1d(times).tolist()]

    def _states(self, cluster_key: str | None) -> tuple[NDArray[np.int64] | None, list[str]]:
        """Return the number of each cell's state, -1 for none, and the names of the states."""
        key = cluster_key or self.cluster_key or ("clusters" if "clusters" in self.adata.obs else None)
        if key is None:
            return None, []
        check_known("adata.obs", key, self.adata.obs.columns)
        clusters = pd.Categorical(self.adata.obs[key]).remove_unused_categories()
        return clusters.codes.astype(np.int64), list(map(str, clusters.categories))

    def _diffusion(self) -> float | None:
        """Return the diffusion of the field, where it is known."""
        diffusion = float(getattr(self.field, "diffusion", 0.0))
        if not diffusion:
            logger.info("No diffusion is known: the landscape is the negative logarithm of the density")
        return diffusion or None

    def _population_around(
        self, time: float, window: float, plane: NDArray[np.float64], labels: NDArray[np.int64] | None
    ) -> PlaneCells:
        """Return the cells within a window of pseudotime."""
        inside = np.abs(self.cells.time - time) <= window
        if inside.sum() < MIN_CELLS:
            raise ValueError(
                f"Expected at least `{MIN_CELLS}` cells within a `window` of {window:g} around the time {time:g}, "
                f"found `{inside.sum()}`: use a larger one."
            )
        return PlaneCells(plane[inside], time=time, labels=None if labels is None else labels[inside])

    def _population_at(
        self,
        time: float,
        key: str,
        plane: NDArray[np.float64],
        dims: tuple[int, int],
        labels: NDArray[np.int64] | None,
    ) -> PlaneCells:
        """Return the cells of a time point, or the interpolated ones of a time between two."""
        points = self.cells.time_points
        nearest = points[np.abs(points - time).argmin()]
        if np.isclose(nearest, time):
            inside = self.cells.time == nearest
            return PlaneCells(plane[inside], time=float(nearest), labels=None if labels is None else labels[inside])
        if key != self.basis:
            raise ValueError(
                f"Expected time points of {points.tolist()}, found {time:g}: between them, the population is known in "
                f"the basis of the kernel {self.basis!r} only, not in {key!r}."
            )
        found = self.interpolate(time)
        near = labels if labels is None else self._labels_near(found.x, time, labels)
        # Its positions are as many as there are pairs, which are no more cells than those they are made of.
        number = np.exp(np.interp(time, points, np.log([np.sum(self.cells.time == point) for point in points])))
        return PlaneCells(found.x[:, list(dims)], np.asarray(found.weights), time, near, float(number))

    def _labels_near(self, x: NDArray[np.float64], time: float, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the label of the nearest cell of the time points before and after."""
        points = self.cells.time_points
        after = int(np.searchsorted(points, time))
        around = np.flatnonzero(np.isin(self.cells.time, points[after - 1 : after + 1]))
        search = NearestNeighbors(n_neighbors=1).fit(self.cells.x[around])
        return labels[around[search.kneighbors(x, return_distance=False)[:, 0]]]
