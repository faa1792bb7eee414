"""The transport between two batches of cells of consecutive time points: growth, pairs and velocities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot.timeseries.options import CouplingOptions
from cellrank_velot.transport.sinkhorn import sinkhorn

__all__ = ["ROUGH_TOL", "Batch", "Done", "Side", "mean_square", "transported"]

# Tolerance of all passes but the last, and of the balanced transport at the end: `Batch.draw` sets the masses right.
ROUGH_TOL = 1e-3
# Share of the cells of a batch, and smallest number, over which growth and displacement are averaged.
NEAR_SHARE = 0.05
MIN_NEAR = 10
# Rounds in which drawn pairs are scaled to the sums of the coupling; more make no visible difference.
N_ROUNDS = 10

# Values of each cell: see `Batch.side`.
Side = tuple[NDArray[np.float64], ...]


class Done(NamedTuple):
    """What is kept of the transport between two batches of cells."""

    sides: list[Side]  # of sources and of targets
    drawn: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
    converged: bool
    error: float


def transported(
    options: CouplingOptions,
    device: torch.device,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    log_weights: NDArray[np.float64],
    mass: tuple[NDArray[np.float64], NDArray[np.float64]],
    scale: float,
    dt: float,
    draws: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Done:
    """Transport a batch of cells to another: it is one task, and plans are too large to be kept."""
    with single_thread(device):
        batch = Batch(x, y, log_weights, scale, options, device)
        batch.weigh(*mass)
        sides = [batch.side(number, dt) for number in (0, 1)]
        return Done(sides, batch.draw(options.n_draws, draws), batch.converged, batch.error)


def mean_square(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the mean squared distance of two groups of cells, which their means and variances tell."""
    square = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + x.var(axis=0).sum() + y.var(axis=0).sum()
    return float(square) or 1.0


class Batch:
    """The transport between two batches of cells."""

    def __init__(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.float64],
        log_weights: NDArray[np.float64],
        scale: float,
        options: CouplingOptions,
        device: torch.device,
    ) -> None:
        centre = y.mean(axis=0)
        # Centred, so that the squared distances don't cancel far from the origin.
        self.x, self.y = (torch.tensor(a - centre, dtype=torch.float64, device=device) for a in (x, y))
        self.scale, self.options = scale, options
        self.tau = options.both_tau
        a = torch.softmax(torch.tensor(log_weights, dtype=torch.float64, device=device), 0)
        b = torch.full_like(self.y[:, 0], 1.0 / y.shape[0])
        if min(self.tau) == 1:
            self._solve(self.x, a, b, self.tau, options.tol)
            self.kept = torch.ones_like(a), torch.ones_like(b)
        else:
            self._grow(a, b)

    def _grow(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Transport relative to the mean motion of the nearest cells, and once more with their mean growth.

        From the second pass on, the cost is what a cell moves beyond that motion.
        """
        options, near, moved = self.options, _near(self.x), self.x
        rough = max(options.tol, ROUGH_TOL)
        for _ in range(options.n_passes - 1):
            self._solve(moved, a, b, self.tau, rough)
            moved = self.x + self._common_way(near)
        self._solve(moved, a, b, self.tau, options.tol)
        kept_a, kept_b = self.rows / a, self.columns / b
        self.kept = kept_a.clamp_max(1.0), kept_b.clamp_max(1.0)
        grown_a, grown_b = a * kept_a[near].mean(1), b * kept_b[_near(self.y)].mean(1)
        self._solve(moved, grown_a / grown_a.sum(), grown_b / grown_b.sum(), (1.0, 1.0), rough)

    def _solve(
        self, moved: torch.Tensor, a: torch.Tensor, b: torch.Tensor, tau: tuple[float, float], tol: float
    ) -> None:
        norms = moved.square().sum(1)[:, None] + self.y.square().sum(1)
        cost = torch.addmm(norms, moved, self.y.T, alpha=-2).clamp_(min=0) / self.scale
        options = self.options
        epsilon = float(options.epsilon)
        solved = sinkhorn(cost[None], a[None], b[None], epsilon, tau=tau, tol=tol, max_iter=options.max_iter)
        self.plan = solved.plan[0]
        self.converged, self.error = bool(solved.converged[0]), float(solved.marginal_error[0])
        # The mass of a cell without plausible partners may vanish in double precision: it keeps the least number.
        tiny = torch.finfo(torch.float64).tiny
        self.rows, self.columns = self.plan.sum(1).clamp_min(tiny), self.plan.sum(0).clamp_min(tiny)

    def _common_way(self, near: torch.Tensor) -> torch.Tensor:
        """Return the mean displacement of the sources nearest to each, shape ``[n_sources, n_dims]``."""
        way = self.plan @ self.y / self.rows[:, None] - self.x
        kept = self.rows[near].unsqueeze(2)
        return (way[near] * kept).sum(1) / kept.sum(1)

    def weigh(self, p: NDArray[np.float64], q: NDArray[np.float64]) -> None:
        """Take the mass of each cell, sources and targets."""
        self.p, self.q = (torch.tensor(mass, dtype=torch.float64, device=self.plan.device) for mass in (p, q))
        self.log_start, self.log_end = (self.p / self.rows).log(), (self.q / self.columns).log()

    def draw(
        self, n: int, draws: tuple[NDArray[np.float64], NDArray[np.float64]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return source, target and masses of pairs: ``n`` for each cell, sources and targets.

        The weight of a pair is its mass in the plan over its expected number of draws. Rows and columns of the drawn
        plan are then scaled to the sums of the whole plan: else the chance of the draws would seem to be growth.
        """
        forward = _draw_columns(self.plan, self.rows, n, draws[0])
        backward = _draw_columns(self.plan.T, self.columns, n, draws[1])
        rows, columns = (
            torch.arange(drawn.shape[0], device=drawn.device).repeat_interleave(n) for drawn in (forward, backward)
        )
        source, target = torch.cat([rows, backward.ravel()]), torch.cat([forward.ravel(), columns])
        each = 1.0 / (n * (1.0 / self.rows[source] + 1.0 / self.columns[target]))
        for _ in range(N_ROUNDS):
            each = _shared(_shared(each, target, self.columns), source, self.rows)
        start = _shared((each.log() + self.log_start[source]).exp(), source, self.p)
        end = _shared((each.log() + self.log_end[target]).exp(), target, self.q)
        return source.cpu().numpy(), target.cpu().numpy(), start.cpu().numpy(), end.cpu().numpy()

    def side(self, number: int, dt: float) -> Side:
        """Return velocity, spread, effective number of partners, growth and support of sources (0) or targets (1)."""
        if number == 0:
            shares, own, other = self.plan / self.rows[:, None], self.x, self.y
            mine, theirs = self.log_start, self.log_end
        else:
            shares, own, other = (self.plan / self.columns).T, self.y, self.x
            mine, theirs = self.log_end, self.log_start
        sign = 1 - 2 * number
        place = shares @ other
        spread = (shares @ other.square() - place.square()).clamp_(min=0)
        growth = sign * (shares @ theirs - mine * shares.sum(1)) / dt
        of = (sign * (place - own) / dt, spread / dt**2, 1.0 / shares.square().sum(1), growth, self.kept[number])
        return tuple(values.cpu().numpy() for values in of)


def _near(x: torch.Tensor) -> torch.Tensor:
    """Return the points nearest to each, shape ``[n, k]``, itself among them."""
    n = min(x.shape[0], max(MIN_NEAR, round(NEAR_SHARE * x.shape[0])))
    return torch.cdist(x, x).topk(n, largest=False).indices


def _draw_columns(plan: torch.Tensor, rows: torch.Tensor, n: int, draws: NDArray[np.float64]) -> torch.Tensor:
    """Return ``n`` columns for each row in proportion to its entries, evenly spread from its draw, ``[n_rows, n]``."""
    cumulated = torch.cumsum(plan / rows[:, None], 1)
    start = torch.tensor(draws, device=plan.device)
    places = (torch.arange(n, dtype=torch.float64, device=plan.device) + start) / n * cumulated[:, -1:]
    return torch.searchsorted(cumulated, places).clamp_max(plan.shape[1] - 1)


def _shared(weights: torch.Tensor, cells: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Return weights of pairs scaled such that those of a cell sum to its mass."""
    # A mass of zero would have no growth rate.
    weights = weights.clamp_min(torch.finfo(torch.float64).tiny)
    return weights * (mass / torch.zeros_like(mass).index_add_(0, cells, weights))[cells]
