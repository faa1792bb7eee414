"""A population that goes round as a whole: the way of its mean between the time points, from all of them together.

Between two snapshots of an oscillation half a turn apart, the straight way leads through the middle, where no cell is.
A linear map from each mean to the next one knows the turn: its pair of complex eigenvalues, as in dynamic mode
decomposition :cite:`schmid:10`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch

__all__ = ["CommonTurn"]

FloatArray = NDArray[np.float64]

# Fewest time points that show a turn; share of the variation of the means that the plane of the map holds.
MIN_TIMES, HELD = 5, 0.95
# What an oscillation is: a pair of eigenvalues of modulus about one and an angle of 30 degrees at least; steps that the
# map explains, and that are twice as long as the population is wide. Set so that two oscillators turn, and no other
# series of `tests/benchmarks/process_fit.py` does.
LEAST_MODULUS, MOST_MODULUS, LEAST_ANGLE, LEAST_EXPLAINED, LEAST_STEP = 0.85, 1.15, np.pi / 6, 0.8, 2.0


@dataclass(frozen=True, eq=False)
class CommonTurn:
    """The turn of the means, in coordinates in which it is diagonal."""

    means: torch.Tensor  # of each time point, complex, [n_times, n_modes]
    rates: torch.Tensor  # logarithm of the eigenvalues for one interval, [n_modes]
    basis: torch.Tensor  # of these coordinates, [n_modes, n_dims]

    @classmethod
    def of(cls, means: FloatArray, width: float, times: FloatArray, device: torch.device | str = "cpu") -> Self | None:
        """Return the turn of means ``[n_times, n_dims]`` of populations of a width, ``None`` where they do not turn.

        The time points must be evenly spaced.
        """
        n_times, spacing = times.size, np.diff(times)
        if n_times < MIN_TIMES or np.ptp(spacing) > 0.01 * spacing.mean():
            return None
        steps = np.diff(means, axis=0)
        if np.linalg.norm(steps, axis=1).mean() < LEAST_STEP * width:
            return None
        centred = means - means.mean(axis=0)
        _, size, axes = np.linalg.svd(centred, full_matrices=False)
        held = np.cumsum(size**2) / max(float(np.square(size).sum()), np.finfo(np.float64).tiny)
        n_axes = min(max(int(np.searchsorted(held, HELD)) + 1, 2), n_times - 3, size.size)
        axes = axes[:n_axes]
        flat = centred @ axes.T
        before = np.column_stack([flat[:-1], np.ones(n_times - 1)])
        found = np.linalg.lstsq(before, flat[1:], rcond=None)[0]
        explained = 1 - np.square(before @ found - flat[1:]).sum() / np.square(np.diff(flat, axis=0)).sum()
        matrix = np.eye(n_axes + 1)
        matrix[:, :n_axes] = found  # row vectors with a one at the end, times the matrix
        values, left = np.linalg.eig(matrix.T)  # columns: v with v^T matrix = value v^T, for coordinates of rows
        modulus, angle = np.abs(values), np.abs(np.angle(values))
        turns = (angle >= LEAST_ANGLE) & (modulus >= LEAST_MODULUS) & (modulus <= MOST_MODULUS)
        # A negative real eigenvalue has no half of a step.
        if explained < LEAST_EXPLAINED or not turns.any() or np.isclose(angle, np.pi).any() or (modulus < 1e-6).any():
            return None
        rows = np.column_stack([flat, np.ones(n_times)])
        inverse = left.T  # rows of modes
        modes = np.linalg.solve(inverse.T, rows.T.astype(complex)).T
        back = inverse[:, :n_axes] @ axes
        tensors = (torch.tensor(part, dtype=torch.complex128, device=device) for part in (modes, np.log(values), back))
        return cls(*tensors)

    def lean(self, interval: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how far the mean is off the straight way at shares of intervals, ``[n, n_dims]``, and its slope.

        The way is the mean of that from the time point before and that back from the one after, by what is left to
        each. The slope is that over the share.
        """
        s = share.to(torch.complex128).unsqueeze(1)
        start, end = self.means[interval], self.means[interval + 1]
        on, back = start * torch.exp(self.rates * s), end * torch.exp(self.rates * (s - 1))
        lean = (1 - s) * on + s * back - (1 - s) * start - s * end
        slope = back - on + self.rates * ((1 - s) * on + s * back) - (end - start)
        return (lean @ self.basis).real, (slope @ self.basis).real
