"""Bridges: the paths of coupled pairs of cells between their time points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot.timeseries.couplings import SnapshotCouplings
from cellrank_velot.timeseries.cycle import CommonTurn

__all__ = ["Bridges", "limited_slope"]

# A slope is at most so many times the flatter of the two secants beside it: a steeper cubic may overshoot its ends
# (Fritsch and Carlson).
MAX_SLOPE = 3.0


class Bridges:
    """Positions, velocities and masses of the pairs of a coupling, at any time between their time points.

    A pair moves along a cubic from its source to its target. At an inner time point its slope is that of
    :func:`limited_slope`, at the first and the last that of a parabola. With two time points, or if ``straight``, it
    moves straight. Where the population goes round as a whole, see :class:`CommonTurn`, it moves straight and with the
    turn.
    """

    def __init__(
        self,
        couplings: SnapshotCouplings,
        x: NDArray[np.float64],
        *,
        device: torch.device | str = "cpu",
        straight: bool = False,
    ) -> None:
        self.couplings = couplings
        self.straight = straight

        def tensor(values: NDArray[np.float64] | NDArray[np.int64]) -> torch.Tensor:
            return torch.tensor(values, device=device)

        self.x, self.before, self.after = tensor(x), tensor(couplings.before), tensor(couplings.after)
        self.source, self.target = tensor(couplings.source), tensor(couplings.target)
        self.log_start, self.log_end = tensor(np.log(couplings.start)), tensor(np.log(couplings.end))
        self.times = tensor(couplings.times)
        self.length = torch.diff(self.times)
        intervals = np.repeat(np.arange(couplings.n_intervals), np.diff(couplings.offsets))
        self.interval = tensor(intervals)
        self.turn = None if straight else _turn(couplings, x, device)

    def move(self, pairs: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions and velocities of pairs, ``[n, n_dims]``, at a share in ``[0, 1]`` of their interval."""
        here, there = self.x[self.source[pairs]], self.x[self.target[pairs]]
        dt = self.length[self.interval[pairs]].unsqueeze(1)
        secant = (there - here) / dt
        if self.turn is not None:
            lean, slope = self.turn.lean(self.interval[pairs], share)
            return here + share.unsqueeze(1) * (there - here) + lean, secant + slope / dt
        start, end = self._slopes(pairs, secant)
        s = share.unsqueeze(1)
        # The cubic, written as what it adds to the straight line.
        lean_start, lean_end = (start - secant) * dt, (end - secant) * dt
        bend = s * (1 - s) * ((1 - s) * lean_start - s * lean_end)
        turn = (1 - s) * (1 - 3 * s) * lean_start - s * (2 - 3 * s) * lean_end
        return here + s * (there - here) + bend, secant + turn / dt

    def log_mass(self, pairs: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the mass of pairs, shape ``[n]``."""
        return (1 - share) * self.log_start[pairs] + share * self.log_end[pairs]

    def _slopes(self, pairs: torch.Tensor, secant: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n_intervals = self.length.numel()
        if self.straight or n_intervals == 1:
            return secant, secant
        k = self.interval[pairs]
        first, last = (k == 0).unsqueeze(1), (k == n_intervals - 1).unsqueeze(1)
        length, length_before, length_after = (
            self.length[(k + by).clamp(0, n_intervals - 1)].unsqueeze(1) for by in (0, -1, 1)
        )
        came, goes = self.before[self.source[pairs]], self.after[self.target[pairs]]
        start = limited_slope(came, secant, length_before, length)
        end = limited_slope(secant, goes, length, length_after)
        return (
            torch.where(first, _no_steeper(1.5 * secant - 0.5 * end, secant), start),
            torch.where(last, _no_steeper(1.5 * secant - 0.5 * start, secant), end),
        )


def _turn(couplings: SnapshotCouplings, x: NDArray[np.float64], device: torch.device | str) -> CommonTurn | None:
    """Return the turn of the population, if it has one, by the means of the time points."""
    means, widths = [], []
    for k in range(couplings.times.size):
        part = couplings.pairs(min(k, couplings.n_intervals - 1))
        last = k == couplings.n_intervals
        cells, mass = (couplings.target, couplings.end) if last else (couplings.source, couplings.start)
        weight = np.bincount(cells[part], mass[part], minlength=x.shape[0])
        there = np.flatnonzero(weight)
        share = weight[there] / weight[there].sum()
        means.append(share @ x[there])
        widths.append(np.sqrt(share @ np.square(x[there] - means[-1]).sum(axis=1)))
    return CommonTurn.of(np.array(means), float(np.mean(widths)), couplings.times, device)


def limited_slope(
    before: torch.Tensor, after: torch.Tensor, time_before: torch.Tensor, time_after: torch.Tensor
) -> torch.Tensor:
    """Return the velocity between two secants, shape ``[n, n_dims]``.

    It is the slope of the parabola through the three points, no steeper than three times the flatter secant
    :cite:`fritsch:80`, times the cosine of the angle between the secants, zero where that is obtuse: a path that turns
    is slow there. In one dimension that is the rule for cubics that keep monotone; in more it does not depend on the
    axes.
    """
    slope = (before * time_after + after * time_before) / (time_before + time_after)
    length = before.norm(dim=1) * after.norm(dim=1)
    cosine = (before * after).sum(1) / torch.where(length > 0, length, 1.0)
    flatter = torch.where((before.norm(dim=1) < after.norm(dim=1)).unsqueeze(1), before, after)
    return _no_steeper(slope, flatter) * cosine.clamp_min(0).unsqueeze(1)


def _no_steeper(slope: torch.Tensor, secant: torch.Tensor) -> torch.Tensor:
    size = slope.norm(dim=1, keepdim=True)
    return slope * (MAX_SLOPE * secant.norm(dim=1, keepdim=True) / torch.where(size > 0, size, 1.0)).clamp_max(1.0)
