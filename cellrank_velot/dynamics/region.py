"""Where the data lie: the cells around a point, their time and clusters, and how far the point is from them.

Depends on numpy and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Companions", "Interpolated", "Region", "Rescaled", "Surroundings"]

# Cells that stand for the data; drawn at random where there are more, so that a look has bounded cost.
MAX_CELLS = 10_000
# The distance to this nearest cell tells how close the cells are: the first alone would be chance.
SPACING_NEIGHBOR = 5
# Distances that are held at a time; more of them leave the cache of the processor.
CHUNK_DISTANCES = 2_000_000
# Coordinate beyond which a point is simply far: squares of larger ones would leave the range of float32.
FAR = 1e15


@dataclass(frozen=True, eq=False)
class Surroundings:
    """The cells around points.

    Attributes
    ----------
    offset
        Way from each point to the weighted mean of the cells around it, shape ``[n_points, n_dims]``.
    time
        Weighted mean of their times, shape ``[n_points]``.
    cells
        Their positions, shape ``[n_points, n_neighbors, n_dims]``, float32.
    weight
        Their weights, shape ``[n_points, n_neighbors]``, float32.
    mean
        Their weighted mean, shape ``[n_points, n_dims]``, float32.
    """

    offset: torch.Tensor
    time: torch.Tensor
    cells: torch.Tensor
    weight: torch.Tensor
    mean: torch.Tensor

    def scatter(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the deviations of the cells from their mean, weighted and multiplied with factors, and added up.

        With independent standard normal factors, shape ``[n_points, n_neighbors]``, it has the covariance of the cells.
        """
        factors = factors * self.weight.sqrt()
        # The deviations themselves, as many as cells around all points, need not be written down.
        return torch.bmm(factors.unsqueeze(1), self.cells).squeeze(1) - factors.sum(dim=1, keepdim=True) * self.mean


@dataclass(frozen=True, eq=False)
class Region:
    """The cells as landmarks.

    Attributes
    ----------
    cells
        Positions less ``centre``, shape ``[n_landmarks, n_dims]``, float32.
    square
        Squared lengths of ``cells``, shape ``[n_landmarks]``.
    centre
        Mean position, shape ``[n_dims]``.
    time
        Their times, shape ``[n_landmarks]``.
    labels
        Cluster of each landmark, shape ``[n_landmarks]``; ``-1`` for none.
    chosen
        Which cells they are, shape ``[n_landmarks]``.
    n_neighbors
        Number of cells around a point that are looked at, five at least.

    Examples
    --------
    >>> import torch
    >>> region = dynamics.Region.of(vk.cells.x, vk.cells.time)
    >>> points = torch.tensor(vk.cells.x[:3])
    >>> distance, cluster = region.look(points, region.nearest(points))
    >>> bool((distance < 2.5).all())  # about 1 for a cell
    True
    """

    cells: torch.Tensor
    square: torch.Tensor
    centre: torch.Tensor
    time: torch.Tensor
    labels: torch.Tensor
    chosen: NDArray[np.int64]
    n_neighbors: int

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
        """Build the region of cells at ``x`` of shape ``[n_cells, n_dims]``."""
        chosen = np.arange(x.shape[0])
        if chosen.size > MAX_CELLS:
            chosen = np.sort(np.random.default_rng(random_state).choice(chosen, MAX_CELLS, replace=False))
        time = np.zeros(x.shape[0]) if time is None else time
        labels = np.full(x.shape[0], -1) if labels is None else labels
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

    # Found when it is asked for: it takes a search from every landmark, and a mean of values does without.
    @cached_property
    def spacing(self) -> torch.Tensor:
        """Distance of each landmark to its fifth nearest, shape ``[n_landmarks]``."""
        # The nearest of a landmark is itself.
        k = min(SPACING_NEIGHBOR + 1, self.cells.shape[0])
        return _nearest(self.cells, self.cells, self.square, k)[0].amax(dim=1)

    @cached_property
    def typical_spacing(self) -> float:
        """Median of these distances."""
        return float(self.spacing.median())

    def look(self, points: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how far points are from the data, and their clusters.

        Parameters
        ----------
        points
            Positions of shape ``[n_points, n_dims]``.
        index
            Which landmarks are near them, shape ``[n_points, n_neighbors]``.

        Returns
        -------
        The distance to the fifth nearest cell over the median spacing of the nearest cells, about one for a cell, and
        the cluster that most of the nearest cells belong to; both of shape ``[n_points]``.
        """
        distance, order = self._distance(points, index).sort(dim=1)
        index = index.gather(1, order)
        # Where many cells lie on the same spot, any distance from it would be far.
        least = 1e-3 * self.typical_spacing + torch.finfo(torch.float32).tiny
        spacing = self.spacing[index].median(dim=1).values.clamp_min(least)
        ratio = distance[:, min(SPACING_NEIGHBOR, distance.shape[1]) - 1] / spacing
        return ratio, self._vote(index)

    def nearest(self, points: torch.Tensor) -> torch.Tensor:
        """Return which landmarks are nearest to points, shape ``[n_points, n_neighbors]``."""
        return self._around(points, self.n_neighbors)[1]

    def around(self, points: torch.Tensor, index: torch.Tensor) -> Surroundings:
        """Return the surroundings of points of shape ``[n_points, n_dims]``, given which landmarks are near them."""
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
        """Return the weighted mean of values of the landmarks, shape ``[n_landmarks, ...]``, around points."""
        distance, index = self._around(points, self.n_neighbors)
        return torch.einsum("pk,pk...->p...", _weights(distance).to(values.dtype), values[index])

    def _around(self, points: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _nearest((points - self.centre).float(), self.cells, self.square, min(k, self.cells.shape[0]))

    def _cells(self, index: torch.Tensor) -> torch.Tensor:
        return self.cells.index_select(0, index.flatten()).view(*index.shape, -1)

    def _distance(self, points: torch.Tensor, index: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """Return the distances of points to given landmarks, shape ``[n_points, n_neighbors]``."""
        here = (points - self.centre).float().nan_to_num(nan=FAR).clamp(-FAR, FAR)
        cells = self._cells(index) if cells is None else cells
        square = self.square[index] - 2 * torch.bmm(cells, here.unsqueeze(2)).squeeze(2)
        return (square + (here * here).sum(dim=1, keepdim=True)).clamp_min_(0).sqrt_()

    def _vote(self, index: torch.Tensor) -> torch.Tensor:
        """Return the label that most of the neighbours have; of two that are level, that of the nearer ones."""
        labels = self.labels[index] + 1
        votes = torch.zeros((index.shape[0], int(self.labels.max()) + 2), device=index.device)
        # What tells level ones apart adds up to less than a vote.
        k = index.shape[1]
        weight = 1.0 + torch.arange(k, 0, -1, device=index.device, dtype=votes.dtype) / (k * (k + 1))
        votes.scatter_add_(1, labels, weight.expand_as(labels))
        return votes.argmax(dim=1) - 1


def _nearest(
    points: torch.Tensor, cells: torch.Tensor, square: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances to the nearest cells and which these are, unsorted, both of shape ``[n_points, k]``."""
    # A point far out, or no number, is as far as can be from every cell; products of larger numbers would overflow.
    points = points.nan_to_num(nan=FAR).clamp(-FAR, FAR)
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
    """Return Gaussian weights that add up to one; half of the largest distance is their width.

    The weight of the farthest cell is small, so that it may give way to another one smoothly.
    """
    width = (0.5 * distance.amax(dim=1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.softmax(-0.5 * (distance / width) ** 2, dim=1)


class Companions:
    """The cells near each particle, searched for again after it has moved on: the search costs more than the rest.

    Parameters
    ----------
    region
        The cells.
    search_every
        Share of the spacing of the cells by which a particle moves before the cells near it are searched for again.

    Examples
    --------
    >>> import torch
    >>> from cellrank_velot.dynamics.region import Companions
    >>> companions = Companions(dynamics.Region.of(vk.cells.x), search_every=0.5)
    >>> companions.of(torch.tensor(vk.cells.x[:3]), torch.arange(3)).shape
    torch.Size([3, 15])
    """

    def __init__(self, region: Region, search_every: float) -> None:
        device = region.cells.device
        self.region = region
        self.search_after = search_every * region.typical_spacing
        self.index = torch.empty((0, region.n_neighbors), dtype=torch.int64, device=device)
        self.at = torch.empty((0, region.cells.shape[1]), dtype=torch.float64, device=device)

    def of(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return which landmarks are near particles with these numbers, shape ``[n, n_neighbors]``."""
        n = int(ids.max()) + 1 if ids.numel() else 0
        if n > self.index.shape[0]:
            self.index = torch.zeros((n, self.index.shape[1]), dtype=torch.int64, device=x.device)
            self.at = torch.full((n, x.shape[1]), torch.nan, dtype=x.dtype, device=x.device)
        # True for a particle that was never looked for, whose place is no number.
        moved = ~((x - self.at[ids]).norm(dim=1) <= self.search_after)
        if moved.any():
            self.index[ids[moved]] = self.region.nearest(x[moved])
            self.at[ids[moved]] = x[moved]
        return self.index[ids]


class Rescaled:
    """A field in units of a stretch of time: times are shares of it, velocities are per stretch.

    Parameters
    ----------
    field
        Anything with ``on``, such as a :class:`cellrank_velot.field.VelocityField`.
    first, last
        The stretch.

    Examples
    --------
    >>> import torch
    >>> field, x = dynamics.Rescaled(sk.field, *sk.cells.time_range), sk.cells.x[:3]
    >>> velocity = field.on("cpu")(torch.tensor(x), torch.full((3,), 0.5)).detach()
    >>> np.allclose(velocity, 3 * sk.query_velocity(x, 1.5), atol=1e-4)  # of three days
    True
    """

    def __init__(self, field: Any, first: float, last: float) -> None:
        self.field, self.first, self.length = field, first, last - first

    def on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the field as a function of positions ``[n, n_dims]`` and shares ``[n]``."""
        function = self.field.on(device)
        return lambda x, share: function(x, self.first + self.length * share) * self.length


@dataclass(frozen=True, eq=False)
class Interpolated:
    """Velocity between cells, as the mean over the nearest ones: a field without a network.

    Attributes
    ----------
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    velocity
        Their velocities, shape ``[n_cells, n_dims]``; cells with NaN are left out.
    n_neighbors
        Number of nearest cells.

    Examples
    --------
    >>> import torch
    >>> field = dynamics.Interpolated(vk.cells.x, vk.raw_velocity, n_neighbors=10)
    >>> field.on("cpu")(torch.tensor(vk.cells.x[:3]), torch.zeros(3)).shape
    torch.Size([3, 20])
    """

    x: NDArray[np.float64]
    velocity: NDArray[np.float64]
    n_neighbors: int = 15

    def on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return it as a function of tensors, ``x [n, n_dims]`` and ``time [n]``, which does not matter.

        Raises
        ------
        ValueError
            If no cell has a velocity.
        """
        known = np.isfinite(self.velocity).all(axis=1)
        if not known.any():
            raise ValueError("Expected cells with a velocity to interpolate between, found none.")
        region = Region.of(self.x[known], n_neighbors=self.n_neighbors, device=device)
        velocity = torch.tensor(self.velocity[known][region.chosen], device=device)
        return lambda x, _time: region.mean_of(velocity, x)
