"""The landscape: its potential, between the points of its grid too, and its valleys and passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from cellrank_velot._utils.stage import Stage
from cellrank_velot.landscape.passes import spanning_tree, tree_path

__all__ = ["Landscape"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Landscape(Stage):
    r"""Density and quasi-potential on one grid of a plane, at one or more times.

    The potential is :math:`U(x, t) = -\frac{\sigma^2}{2} \log p(x, t)`, with :math:`p` the density of the cells and
    :math:`\sigma` the diffusion :cite:`wang:11`. A constant makes its minimum over all times 0. In a population at
    rest it is the potential whose slope the cells follow, if they follow one :cite:`zhou:16`. In a population that
    still changes it says where cells are, not where they go.

    Attributes
    ----------
    x, y
        Positions of the columns and rows of the grid, shapes ``[n_x]`` and ``[n_y]``.
    times
        Times, shape ``[n_times]``, rising. The landscape of all cells has one time, which is NaN.
    density
        Density of the cells at each time, shape ``[n_times, n_y, n_x]``, with integral 1.
    floor
        Density at each time below which it is negligible and there is no potential, shape ``[n_times]``.
    region
        Number of the state with the largest part of the density, shape ``[n_times, n_y, n_x]``; -1 where the density is
        negligible or no state has any.
    states
        Names of the states, shape ``[n_states]``.
    bandwidth
        Covariance of the kernel at each time, shape ``[n_times, 2, 2]``.
    diffusion
        Diffusion :math:`\sigma`, in units of the basis per root of time. ``None`` where it is not known, and
        :math:`\sigma^2 / 2` is 1.
    basis
        Name of the positions, such as ``"X_pca"``; empty where not known.
    dims
        Columns of the basis that are the plane.
    window
        How far the time of a cell may be from each time of the landscape.

    Examples
    --------
    >>> landscape = sk.compute_landscape([1, 3])
    >>> landscape.minima()[["state", "time"]].shape  # four states at two times
    (8, 2)
    >>> climb = (
    ...     landscape.barriers(["Fate A", "Fate B"])
    ...     .query("time == 3")
    ...     .set_index("from")["barrier"]
    ... )
    >>> bool((climb > 0).all())
    True
    >>> landscape.at(sk.cells.x[:5, :2], time=1).shape
    (5,)
    """

    x: FloatArray
    y: FloatArray
    times: FloatArray
    density: FloatArray
    floor: FloatArray
    region: NDArray[np.int16]
    states: NDArray[np.str_]
    bandwidth: FloatArray
    diffusion: float | None = None
    basis: str = ""
    dims: tuple[int, int] = (0, 1)
    window: float = 0.0

    def __repr__(self) -> str:
        times = "all times" if np.isnan(self.times[0]) else f"{self.n_times} times"
        return f"Landscape({times}, {self.y.size} x {self.x.size} points, {self.states.size} states)"

    @property
    def n_times(self) -> int:
        """Number of times."""
        return int(self.times.size)

    @property
    def scale(self) -> float:
        """Factor of the negative logarithm of the density: half the squared diffusion, or 1."""
        return 1.0 if self.diffusion is None else self.diffusion**2 / 2

    @property
    def potential(self) -> FloatArray:
        """Quasi-potential, shape ``[n_times, n_y, n_x]``; NaN where the density is negligible."""
        return np.where(self.density >= self.floor[:, None, None], self.height, np.nan)

    @property
    def height(self) -> FloatArray:
        """Quasi-potential, finite also where the density is negligible and it means nothing, of the same shape."""
        logs = np.log(np.maximum(self.density, np.finfo(float).tiny))
        return np.asarray(self.scale * (logs.max() - logs))

    @property
    def ceiling(self) -> FloatArray:
        """Highest potential at each time, where the density becomes negligible, shape ``[n_times]``."""
        return np.asarray(self.scale * np.log(self.density.max() / self.floor))

    def at(self, points: FloatArray, time: FloatArray | float | None = None) -> FloatArray:
        """Return the potential at points between those of the grid, shape ``[n_points]``.

        Parameters
        ----------
        points
            Points of the plane, shape ``[n_points, 2]``.
        time
            Time of each point, shape ``[n_points]``, or one for all, among the times of the landscape. Not needed where
            it has one time.

        Returns
        -------
        The potential, interpolated between the four points of the grid around each. NaN where the density is negligible
        and outside the grid.

        Raises
        ------
        ValueError
            If the points are not in a plane, or a time is missing or not one of the landscape.
        """
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"Expected points of the shape `[n_points, 2]`, found the shape `{points.shape}`.")
        index = self._times_ix(time, len(points))
        spacing = np.array([self.x[1] - self.x[0], self.y[1] - self.y[0]])
        columns, rows = ((points - [self.x[0], self.y[0]]) / spacing).T
        heights = map_coordinates(self.height, [index, rows, columns], order=1, cval=np.nan)
        heights[~(heights <= self.ceiling[index])] = np.nan
        return np.asarray(heights)

    def minima(self) -> pd.DataFrame:
        """Return the lowest point of each state at each time.

        Returns
        -------
        A row for each time and state with ``state``, ``time``, ``potential``, ``x`` and ``y``. The last three are NaN
        where the state nowhere has the largest part of the density.

        Raises
        ------
        ValueError
            If the landscape has no states.
        """
        self._check_states()
        rows: list[tuple[str | float, ...]] = []
        for t, potential in enumerate(self.potential):
            for name, point in zip(self.states, self._lowest(t, potential), strict=True):
                rows.append((str(name), self.times[t], *self._place(potential, point)))
        return pd.DataFrame(rows, columns=["state", "time", "potential", "x", "y"])

    def barriers(self, states: Sequence[str] | None = None) -> pd.DataFrame:
        """Return how high one must climb from each state to reach each other, at each time.

        A path leads from the lowest point of one state to that of another. The lowest point of a state is among the
        points of the grid where it has the largest part of the density. Of all paths over neighbouring points, the one
        whose highest point is lowest is taken. This highest point is the saddle. A path that only goes down has a
        barrier of zero, and its saddle is where it starts.

        Parameters
        ----------
        states
            Names of two or more states; all where not given.

        Returns
        -------
        A row for each time and ordered pair of states: ``from``, ``to``, ``time``, ``depth_from`` (the potential at the
        lowest point of the first), ``saddle`` (the potential there), ``barrier`` (their difference), and the position
        ``x`` and ``y`` of the saddle. Where the density between the states is negligible, saddle and barrier are
        infinite and the position is NaN. Where a state nowhere has the largest part of the density, all are NaN.

        Raises
        ------
        KeyError
            If a state is unknown.
        ValueError
            If the landscape has no states, or fewer than two are asked for.
        """
        chosen = self._chosen(states)
        rows = [row for t, potential in enumerate(self.potential) for row in self._barriers_at(t, potential, chosen)]
        columns = ["from", "to", "time", "depth_from", "saddle", "barrier", "x", "y"]
        return pd.DataFrame(rows, columns=columns)

    def _barriers_at(self, t: int, potential: FloatArray, chosen: Sequence[int]) -> Iterator[tuple[str | float, ...]]:
        tree = spanning_tree(potential)
        lowest = self._lowest(t, potential)
        for one, other in product(chosen, chosen):
            if one == other:
                continue
            depth = self._place(potential, lowest[one])[0]
            saddle = x = y = np.nan
            if lowest[one] >= 0 and lowest[other] >= 0:
                path = tree_path(tree, lowest[one], lowest[other])
                saddle = np.inf
                if path.size:
                    saddle, x, y = self._place(potential, int(path[np.argmax(potential.ravel()[path])]))
            yield (str(self.states[one]), str(self.states[other]), self.times[t], depth, saddle, saddle - depth, x, y)

    def _lowest(self, t: int, potential: FloatArray) -> list[int]:
        """Return the lowest point of each state as an index into the flat grid, -1 where there is none."""
        points = []
        for state in range(self.states.size):
            inside = np.flatnonzero((self.region[t] == state) & np.isfinite(potential))
            points.append(int(inside[np.argmin(potential.ravel()[inside])]) if inside.size else -1)
        return points

    def _place(self, potential: FloatArray, point: int) -> tuple[float, float, float]:
        """Return potential, x and y at a point of the flat grid."""
        if point < 0:
            return np.nan, np.nan, np.nan
        row, column = divmod(point, self.x.size)
        return float(potential[row, column]), float(self.x[column]), float(self.y[row])

    def _chosen(self, states: Sequence[str] | None) -> list[int]:
        self._check_states()
        names = list(map(str, self.states))
        asked = names if states is None else [states] if isinstance(states, str) else [str(name) for name in states]
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise KeyError(f"Expected states of the landscape {names}, found {unknown}.")
        if len(set(asked)) < 2:
            raise ValueError(f"Expected two states or more, found {asked}.")
        return [names.index(name) for name in dict.fromkeys(asked)]

    def _check_states(self) -> None:
        if not self.states.size:
            raise ValueError(
                "Expected a landscape with states, found one without: compute it with labels of the cells."
            )

    def _times_ix(self, time: FloatArray | float | None, n_points: int) -> NDArray[np.int64]:
        """Return the index of the time of each point."""
        known = self.times.tolist()
        if time is None:
            if self.n_times > 1:
                raise ValueError(f"Expected `time`, one of {known}, found none.")
            return np.zeros(n_points, dtype=np.int64)
        if np.isnan(self.times[0]):
            raise ValueError("Expected no `time`: the landscape is of all times.")
        times = np.asarray(time, dtype=np.float64)
        if times.shape not in {(), (n_points,)}:
            raise ValueError(f"Expected one `time`, or one for each of the `{n_points}` points, found `{times.shape}`.")
        times = np.broadcast_to(times, n_points)
        index = np.abs(times[:, None] - self.times).argmin(axis=1)
        far = ~np.isclose(self.times[index], times)
        if far.any():
            raise ValueError(f"Expected times of the landscape {known}, found {times[far][:3].tolist()}.")
        return index.astype(np.int64)
