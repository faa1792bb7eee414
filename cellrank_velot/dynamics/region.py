"""Where the data lie: the cells around a point, their time and clusters, and how far the point is from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot.dynamics.compiled import walk

__all__ = ["NearestCells", "Region", "Surroundings", "check_extent"]

# Cells that stand for the data; drawn at random where there are more, so that a look has bounded cost.
MAX_CELLS = 10_000
# Local spacing is the distance to this nearest cell: that to the first alone would be chance.
SPACING_NEIGHBOR = 5
# Distances that are held at a time; more of them leave the cache of the processor.
CHUNK_DISTANCES = 2_000_000
# Coordinate beyond which a point is simply far: squares of larger ones would leave the range of float32.
FAR = 1e15
# Extents of the data in which squares of distances between cells stay within the range of float32.
EXTENTS = 1e-12, FAR
# From this many cells on, a search walks from cell to cell instead of looking at all of them.
WALK_FROM = 2000
# Cells that each cell lists, and that a walk holds at a time, over those that are searched for.
LISTED = HELD = 2


@dataclass(frozen=True, eq=False)
class Surroundings:
    """The nearest cells of points, with weights; positions are those of the region, less its centre, in float32."""

    offset: torch.Tensor  # from each point to the weighted mean of its cells, [n_points, n_dims]
    time: torch.Tensor  # weighted mean of their times, [n_points]
    cells: torch.Tensor  # their positions, [n_points, n_neighbors, n_dims]
    weight: torch.Tensor  # [n_points, n_neighbors]
    mean: torch.Tensor  # weighted mean of the positions, [n_points, n_dims]

    def scatter(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the sum of the cells' weighted deviations from their mean, times factors ``[n_points, n_neighbors]``.

        For independent standard normal factors, the sum has the covariance of the cells.
        """
        factors = factors * self.weight.sqrt()
        # Without an array of the deviations, which would be as large as all neighbours of all points.
        return torch.bmm(factors.unsqueeze(1), self.cells).squeeze(1) - factors.sum(dim=1, keepdim=True) * self.mean


@dataclass(frozen=True, eq=False)
class Region:
    """Cells of the data, which say of any point how far it is from the data, at which time and in which cluster."""

    cells: torch.Tensor  # positions less the centre, [n_cells, n_dims], float32
    square: torch.Tensor  # their squared lengths, [n_cells]
    centre: torch.Tensor  # mean position, [n_dims]
    time: torch.Tensor  # [n_cells]
    labels: torch.Tensor  # cluster of each, -1 for none, [n_cells]
    chosen: NDArray[np.int64]  # which cells of the data these are, [n_cells]
    n_neighbors: int  # cells around a point that count, five at least

    @classmethod
    def of(
        cls,
        x: NDArray[np.float64],
        time: NDArray[np.float64] | None = None,
        labels: NDArray[np.int64] | None = None,
        *,
        n_neighbors: int = 15,
        random_state: int = 0,
        device: torch.device | str = "cpu",
    ) -> Region:
        """Build the region of cells at ``x [n_cells, n_dims]``, with ``time`` and ``labels [n_cells]``."""
        chosen = np.arange(x.shape[0])
        if chosen.size > MAX_CELLS:
            chosen = np.sort(np.random.default_rng(random_state).choice(chosen, MAX_CELLS, replace=False))
        time = np.zeros(x.shape[0]) if time is None else time
        labels = np.full(x.shape[0], -1) if labels is None else labels
        check_extent(x)
        centre = x.mean(axis=0)
        cells = torch.tensor(x[chosen] - centre, dtype=torch.float32, device=device)
        return cls(
            cells=cells,
            square=(cells * cells).sum(dim=1),
            centre=torch.tensor(centre, device=device),
            time=torch.tensor(time[chosen], device=device),
            labels=torch.tensor(labels[chosen], dtype=torch.int64, device=device),
            chosen=chosen,
            n_neighbors=min(max(n_neighbors, SPACING_NEIGHBOR), chosen.size),
        )

    # Computed on request: it takes a search around every cell, and a mean of values does without.
    @cached_property
    def spacing(self) -> torch.Tensor:
        """Distance of each cell to the fifth nearest other one, shape ``[n_cells]``."""
        # The nearest of a cell is itself.
        k = min(SPACING_NEIGHBOR + 1, self.cells.shape[0])
        return _nearest(self.cells, self.cells, self.square, k)[0].amax(dim=1)

    @cached_property
    def typical_spacing(self) -> float:
        """Median of the spacing of the cells."""
        return float(self.spacing.median())

    @cached_property
    def lists(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The cells nearest to each cell, shape ``[n_cells, n_listed]``, and the squared distance of the farthest."""
        k = min(LISTED * self.n_neighbors + 1, self.cells.shape[0])
        distance, index = _nearest(self.cells, self.cells, self.square, k)
        return index.numpy(), distance.amax(dim=1).square().numpy()

    def look(self, points: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how far points ``[n_points, n_dims]`` are from the data, and their clusters, both ``[n_points]``.

        The first is the distance to the fifth nearest cell over the median spacing of the cells in ``index``, the
        nearest ones, shape ``[n_points, n_neighbors]``: about one for a cell. The second is their most frequent one.
        """
        distance, order = self._distance(points, index).sort(dim=1)
        index = index.gather(1, order)
        # Where many cells lie on one spot, any distance from it would be far.
        least = 1e-3 * self.typical_spacing + torch.finfo(torch.float32).tiny
        spacing = self.spacing[index].median(dim=1).values.clamp_min(least)
        ratio = distance[:, min(SPACING_NEIGHBOR, distance.shape[1]) - 1] / spacing
        return ratio, self._vote(index)

    def nearest(self, points: torch.Tensor) -> torch.Tensor:
        """Return which cells are nearest to points, shape ``[n_points, n_neighbors]``."""
        return self._around(points, self.n_neighbors)[1]

    def nearest_from(self, points: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Return the same by a walk from the cells that were nearest before, on the CPU.

        Cost does not depend on the number of cells. A point that has come out of the reach of the cell nearest to it,
        as in a gap between two groups of cells, is compared with all cells.
        """
        (lists, reach), cells = self.lists, self.cells.numpy()
        found, square = walk(self._placed(points).numpy(), cells, lists, start.numpy(), HELD * self.n_neighbors)
        index = torch.from_numpy(found)
        out = torch.from_numpy(~(square <= reach[found[:, 0]]))
        if out.any():
            index[out] = self.nearest(points[out])
        return index

    def around(self, points: torch.Tensor, index: torch.Tensor) -> Surroundings:
        """Return the surroundings of points ``[n_points, n_dims]``, given which cells are near them."""
        cells = self._cells(index)
        weight = _weights(self._distance(points, index, cells))
        mean = torch.bmm(weight.unsqueeze(1), cells).squeeze(1)
        return Surroundings(
            offset=mean.to(points.dtype) - (points - self.centre),
            time=(weight.to(self.time.dtype) * self.time[index]).sum(dim=1),
            cells=cells,
            weight=weight,
            mean=mean,
        )

    def time_around(self, points: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the time of :meth:`around` alone, shape ``[n_points]``."""
        weight = _weights(self._distance(points, index))
        return (weight.to(self.time.dtype) * self.time[index]).sum(dim=1)

    def mean_of(self, values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of values of the cells, shape ``[n_cells, ...]``, around points."""
        distance, index = self._around(points, self.n_neighbors)
        return torch.einsum("pk,pk...->p...", _weights(distance).to(values.dtype), values[index])

    def _around(self, points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _nearest(self._placed(points), self.cells, self.square, min(k, self.cells.shape[0]))

    def _placed(self, points: torch.Tensor) -> torch.Tensor:
        """Return points among the cells. NaN and points far out are as far as can be: more would overflow."""
        return (points - self.centre).float().nan_to_num(nan=FAR).clamp(-FAR, FAR)

    def _cells(self, index: torch.Tensor) -> torch.Tensor:
        return self.cells.index_select(0, index.flatten()).view(*index.shape, -1)

    def _distance(self, points: torch.Tensor, index: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """Return the distances of points to given cells, shape ``[n_points, n_neighbors]``."""
        here = self._placed(points)
        cells = self._cells(index) if cells is None else cells
        square = self.square[index] - 2 * torch.bmm(cells, here.unsqueeze(2)).squeeze(2)
        return (square + (here * here).sum(dim=1, keepdim=True)).clamp_min_(0).sqrt_()

    def _vote(self, index: torch.Tensor) -> torch.Tensor:
        """Return the most frequent label of the neighbours; of two as frequent ones, that of the nearer cells."""
        labels = self.labels[index] + 1
        votes = torch.zeros((index.shape[0], int(self.labels.max()) + 2), device=index.device)
        # What breaks ties adds up to less than a vote.
        k = index.shape[1]
        weight = 1.0 + torch.arange(k, 0, -1, device=index.device, dtype=votes.dtype) / (k * (k + 1))
        votes.scatter_add_(1, labels, weight.expand_as(labels))
        return votes.argmax(dim=1) - 1


def _nearest(
    points: torch.Tensor, cells: torch.Tensor, square: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances to the nearest cells and which these are, unsorted, both of shape ``[n_points, k]``."""
    distance = points.new_empty((points.shape[0], k))
    index = torch.empty((points.shape[0], k), dtype=torch.int64, device=points.device)
    size = min(max(CHUNK_DISTANCES // cells.shape[0], 1), points.shape[0])
    relative = points.new_empty((size, cells.shape[0]))
    for start in range(0, points.shape[0], size):
        part = points[start : start + size]
        # The square of the point itself, the same for all cells, comes after the search.
        torch.addmm(square, part, cells.T, alpha=-2, out=relative[: part.shape[0]])
        found = relative[: part.shape[0]].topk(k, largest=False, sorted=False)
        own = (part * part).sum(dim=1, keepdim=True)
        distance[start : start + size] = (found.values + own).clamp_min_(0).sqrt_()
        index[start : start + size] = found.indices
    return distance, index


def _weights(distance: torch.Tensor) -> torch.Tensor:
    """Return Gaussian weights that add up to one, as wide as half of the largest distance.

    The farthest cell has a small weight, so that another one can take its place smoothly.
    """
    width = (0.5 * distance.amax(dim=1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.softmax(-0.5 * (distance / width) ** 2, dim=1)


class NearestCells:
    """The nearest cells of each particle, searched for again after it has moved by a share of the typical spacing.

    The first searches compare with all cells. Once they have cost as much as it takes to list the neighbours of all
    cells, a search walks from the cells that were nearest before.
    """

    def __init__(self, region: Region, search_every: float) -> None:
        device = region.cells.device
        self.region, self.search_every = region, search_every
        self.search_after = search_every * region.typical_spacing
        self.n_compared = 0  # particles, with all cells
        self.index = torch.empty((0, region.n_neighbors), dtype=torch.int64, device=device)
        # Where each particle was at its last search.
        self.at = torch.empty((0, region.cells.shape[1]), dtype=torch.float64, device=device)

    def of(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the nearest cells of particles with these numbers, shape ``[n, n_neighbors]``."""
        n = int(ids.max()) + 1 if ids.numel() else 0
        if n > self.index.shape[0]:
            self.index = torch.zeros((n, self.index.shape[1]), dtype=torch.int64, device=x.device)
            self.at = torch.full((n, x.shape[1]), torch.nan, dtype=x.dtype, device=x.device)
        # True for a particle without a search yet, whose place is NaN.
        moved = ~((x - self.at[ids]).norm(dim=1) <= self.search_after)
        if moved.any():
            self._search(x[moved], ids[moved])
        return self.index[ids]

    def _search(self, x: torch.Tensor, ids: torch.Tensor) -> None:
        n_cells = self.region.cells.shape[0]
        walks = x.device.type == "cpu" and n_cells >= WALK_FROM and self.n_compared >= n_cells
        new = self.at[ids].isnan().any(dim=1) | (not walks)
        if new.any():
            self.index[ids[new]] = self.region.nearest(x[new])
            self.n_compared += int(new.sum())
        if not new.all():
            old = ids[~new]
            self.index[old] = self.region.nearest_from(x[~new], self.index[old])
        self.at[ids] = x

    def again(self) -> NearestCells:
        """Return the same for other particles."""
        return NearestCells(self.region, self.search_every)


def check_extent(x: NDArray[np.float64]) -> None:
    """Refuse positions that are too large or too small to say which cells are near a point, in float32."""
    extent = float(np.ptp(x, axis=0).max(initial=0.0))
    if extent and not EXTENTS[0] <= extent <= EXTENTS[1]:
        raise ValueError(
            f"Expected positions with an extent from {EXTENTS[0]:g} to {EXTENTS[1]:g} to follow particles among the "
            f"cells, found `{extent:.4g}`: multiply the positions by a constant, and make the kernel again."
        )
