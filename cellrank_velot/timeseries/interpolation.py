"""Populations between the time points, along the paths of their couplings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_seed
from cellrank_velot.cells.time_points import next_time
from cellrank_velot.timeseries.bridges import Bridges
from cellrank_velot.timeseries.couplings import SnapshotCouplings

__all__ = ["Population", "interpolate_paths"]


@dataclass(frozen=True, slots=True, eq=False)
class Population(Stage):
    """Weighted particles that stand for the cells at a time.

    Attributes
    ----------
    x
        Positions, shape ``[n_particles, n_dims]``.
    weights
        Mass of each particle, shape ``[n_particles]``.
    time
        The time.
    source
        Cell that each particle starts from, shape ``[n_particles]``.

    Examples
    --------
    >>> population = sk.interpolate(1.5)
    >>> population.time, population.mean.shape, population.sample(100).shape
    (1.5, (10,), (100, 10))
    """

    x: NDArray[np.float64]
    weights: NDArray[np.float64]
    time: float
    source: NDArray[np.int64]

    @property
    def mass(self) -> float:
        """Mass of the population."""
        return float(self.weights.sum())

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean position, shape ``[n_dims]``."""
        return np.asarray(np.average(self.x, axis=0, weights=self.weights))

    def sample(self, n: int, random_state: int = 0) -> NDArray[np.float64]:
        """Draw positions in proportion to the weights, as evenly as can be, shape ``[n, n_dims]``.

        Parameters
        ----------
        n
            Number of positions.
        random_state
            Seed of the draw.
        """
        rng = np.random.default_rng(check_seed(random_state))
        order = rng.permutation(self.weights.size)
        cumulated = np.cumsum(self.weights[order])
        places = (np.arange(n) + rng.random()) / n * cumulated[-1]
        return self.x[order[np.searchsorted(cumulated, places).clip(0, order.size - 1)]]


def interpolate_paths(
    couplings: SnapshotCouplings,
    x: NDArray[np.float64],
    time: float,
    *,
    straight: bool = False,
) -> Population:
    """Return the population at a time from the first time point to the last: where its pairs are, with their mass.

    The mass of the population goes from that of one time point to that of the next at a constant rate.
    """
    k = next_time(couplings.times, time)
    share = (time - couplings.times[k]) / (couplings.times[k + 1] - couplings.times[k])
    bridges = Bridges(couplings, x, straight=straight)
    part = couplings.pairs(k)
    pairs = torch.arange(part.start, part.stop)
    position, _ = bridges.move(pairs, torch.full((pairs.numel(),), float(share), dtype=torch.float64))
    weights = couplings.mass_at(part, share)
    mass = couplings.mass[k] ** (1 - share) * couplings.mass[k + 1] ** share
    return Population(
        x=position.numpy(),
        weights=weights * (mass / weights.sum()),
        time=float(time),
        source=couplings.source[part],
    )
