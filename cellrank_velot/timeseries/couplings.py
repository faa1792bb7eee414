"""Couplings between snapshots: which cells of consecutive time points belong together, and how their mass changes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils import parallel
from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options, Run
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.transport.sinkhorn import sinkhorn
from cellrank_velot.transport.velocity import TransportVelocity, report_convergence
from cellrank_velot.transport.windows import Windows

__all__ = ["CouplingOptions", "PopulationOptions", "SnapshotCouplings", "couple_snapshots"]

# Tolerance of all passes but the last, and of the balanced transport at the end: `_Batch.draw` sets the masses right.
ROUGH_TOL = 1e-3
# Share of the cells of a batch, and smallest number, over which growth and displacement are averaged.
NEAR_SHARE = 0.05
MIN_NEAR = 10
# Rounds in which drawn pairs are scaled to the sums of the coupling; more make no visible difference.
N_ROUNDS = 10


@dataclass(frozen=True, slots=True, eq=False)
class SnapshotCouplings(Stage):
    r"""Pairs of cells of consecutive time points, drawn from their couplings, and the mass that each carries.

    A pair has the mass :math:`m_0` at its source and :math:`m_1` at its target, and grows at a constant rate between,
    :math:`m(s) = m_0^{1 - s} m_1^s`. The pairs that start in a cell have its mass in sum, and so have those that end in
    a cell: both time points are met exactly, however relaxed the coupling.

    Attributes
    ----------
    source, target
        Cells of each pair, shape ``[n_pairs]``, by interval.
    offsets
        Where the pairs of each interval start, and the end, shape ``[n_times]``.
    start, end
        Mass of each pair at its source and its target, shape ``[n_pairs]``.
    times
        Time points, shape ``[n_times]``.
    mass
        Mass of each time point, shape ``[n_times]``.
    before, after
        Mean velocity of the pairs that lead to a cell, and of those that it starts, in basis per time, shape
        ``[n_cells, n_dims]``; NaN at the first, respectively the last time point.
    scale
        Mean squared distance between the cells of two time points, of each interval, shape ``[n_times - 1]``.
    epsilon, tau
        Entropic regularisation, relative to ``scale``, and how strictly source and target weights were kept, shape
        ``[2]``.

    Examples
    --------
    >>> couplings = sk.couplings
    >>> first = couplings.pairs(0)  # pairs of days 0 and 1
    >>> np.unique(sk.cells.time[couplings.target[first]]).tolist()
    [1.0]
    >>> round(float(couplings.start[first].sum()), 6), couplings.matrix(0, 400).shape
    (1.0, (400, 400))
    """

    source: NDArray[np.int64] = field(metadata=stored("n_coupled", low=0, high="n_cells"))
    target: NDArray[np.int64] = field(metadata=stored("n_coupled", low=0, high="n_cells"))
    offsets: NDArray[np.int64] = field(metadata=stored("n_times", low=0))
    start: NDArray[np.float64] = field(metadata=stored("n_coupled", low=TINY))
    end: NDArray[np.float64] = field(metadata=stored("n_coupled", low=TINY))
    times: NDArray[np.float64] = field(metadata=stored("n_times"))
    mass: NDArray[np.float64] = field(metadata=stored("n_times", low=TINY))
    before: NDArray[np.float64] = field(metadata=stored("n_cells", "n_dims", gaps=True))
    after: NDArray[np.float64] = field(metadata=stored("n_cells", "n_dims", gaps=True))
    scale: NDArray[np.float64] = field(metadata=stored("n_intervals", low=TINY))
    epsilon: float = field(metadata=stored(low=TINY))
    tau: NDArray[np.float64] = field(metadata=stored(2, low=TINY, high=1))

    def _facts(self) -> dict[str, Any]:
        return {"times": list(map(float, self.times)), "pairs_of_cells": self.source.size, "epsilon": self.epsilon}

    def __post_init__(self) -> None:
        """Check that the parts belong together."""
        Stage.__post_init__(self)
        n = self.source.size
        for name in ("target", "start", "end"):
            if getattr(self, name).shape != (n,):
                raise ValueError(f"Expected `{name}` of shape `({n},)`, found `{getattr(self, name).shape}`.")
        if self.offsets.shape != self.times.shape or (self.offsets.size and self.offsets[-1] != n):
            raise ValueError(f"Expected `offsets` of `{self.times.size}` values that end at `{n}`.")

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return int(self.source.size)

    @property
    def n_intervals(self) -> int:
        """Number of intervals between time points."""
        return int(self.times.size - 1)

    @property
    def rate(self) -> NDArray[np.float64]:
        """Growth rate of each pair, per time, shape ``[n_pairs]``."""
        return np.log(self.end / self.start) / np.repeat(np.diff(self.times), np.diff(self.offsets))

    @property
    def diffusion(self) -> float:
        r"""Diffusion whose Schroedinger bridge has this entropic regularisation, in basis per root time.

        Transport with cost :math:`|x - y|^2` and regularisation :math:`\epsilon` is the static bridge of a Brownian
        motion of variance :math:`\sigma^2 \Delta t = \epsilon / 2` per dimension; here the mean over the intervals.
        """
        return float(np.sqrt(np.sum(self.epsilon * self.scale / 2) / np.sum(np.diff(self.times))))

    def pairs(self, interval: int) -> slice:
        """Return where the pairs of an interval are.

        Parameters
        ----------
        interval
            Number of the interval, from zero: the one between time points ``interval`` and ``interval + 1``.
        """
        return slice(int(self.offsets[interval]), int(self.offsets[interval + 1]))

    def mass_at(self, pairs: NDArray[np.int64] | slice, share: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Return the mass of some pairs when this share of their interval is over, shape ``[n]``.

        Parameters
        ----------
        pairs
            Numbers of the pairs, shape ``[n]``, or a slice of them such as :meth:`pairs` returns.
        share
            Share of the interval, in ``[0, 1]``: of each pair, shape ``[n]``, or one for all.
        """
        return np.asarray(self.start[pairs] ** (1.0 - share) * self.end[pairs] ** share)

    def matrix(self, interval: int, n_cells: int) -> sp.csr_matrix:
        """Return the coupling of an interval, as drawn: mass from each cell to each, ``[n_cells, n_cells]``.

        The mass of an entry is that which the pair carries half-way.

        Parameters
        ----------
        interval
            Number of the interval, from zero: the one between time points ``interval`` and ``interval + 1``.
        n_cells
            Number of cells of the whole series.
        """
        part = self.pairs(interval)
        entries = (self.mass_at(part, 0.5), (self.source[part], self.target[part]))
        return sp.csr_matrix(entries, shape=(n_cells, n_cells))


@dataclass(frozen=True, kw_only=True)
class CouplingOptions(Options):
    """How time points are coupled, as :meth:`~cellrank_velot.OTVelocityKernel.compute_velocity` of them explains.

    ``tau`` is one number, or two for source and target.
    """

    epsilon: float = 0.05
    tau: float | Sequence[float] = 0.9
    n_passes: int = 4
    n_draws: int = 4
    tol: float = 1e-6
    max_iter: int = 500
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        self._without_none("tau", "n_passes", "n_draws")
        check_number("epsilon", self.epsilon, low=0, open_low=True)
        tau: Any = self.tau
        if isinstance(tau, np.ndarray):
            tau = tau.tolist()  # of an array without dimensions a number
        values = tau if isinstance(tau, list | tuple) else [tau, tau]
        if len(values) != 2:
            raise ValueError(f"Expected `tau` as one number, or as two for source and target, found `{len(values)}`.")
        pair = tuple(check_number("tau", value, low=0, high=1, open_low=True) for value in values)
        object.__setattr__(self, "tau", pair if isinstance(tau, list | tuple) else tau)
        check_integer("n_passes", self.n_passes, low=1)
        check_integer("n_draws", self.n_draws, low=1)
        check_number("tol", self.tol, low=0, open_low=True)
        check_integer("max_iter", self.max_iter, low=1)
        check_seed(self.random_state)

    @property
    def both_tau(self) -> tuple[float, float]:
        """``tau`` of source and target."""
        source, target = self.tau if isinstance(self.tau, tuple) else (self.tau, self.tau)
        return float(source), float(target)


@dataclass(frozen=True, kw_only=True)
class PopulationOptions(CouplingOptions):
    """The same, with where the kernel has growth, mass and clones from; masses handed to it are ``"given"``."""

    growth_key: str | None = None
    mass: str | None = None
    clone_key: str | None = None


def couple_snapshots(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    windows: Windows,
    options: CouplingOptions = CouplingOptions(),
    *,
    prior: NDArray[np.float64] | None = None,
    mass: NDArray[np.float64] | None = None,
    run: Run = Run(),
) -> tuple[SnapshotCouplings, TransportVelocity]:
    r"""Transport each snapshot to the next, and draw pairs of cells from the couplings.

    The transport is entropic and unbalanced :cite:`chizat:18`: where it does not keep the mass of the cells, they grow
    or are lost. Growth is averaged over the nearest cells, or a cell that lies apart would seem to die. With these
    masses the transport is solved once more, and keeps them. With the coupling :math:`P`, its row sums :math:`r` and
    column sums :math:`c` and the masses of the cells :math:`p, q`, a pair carries :math:`P_{ij} p_i / r_i` at its
    source and :math:`P_{ij} q_j / c_j` at its target.

    ``prior`` is the expected growth rate of each cell, shape ``[n_cells]``, ``mass`` that of each time point, shape
    ``[n_times]``, one where not given.
    """
    where = resolve_device(run.device)
    times = np.unique(time)
    total = np.ones(times.size) if mass is None else np.asarray(mass, dtype=np.float64)
    cell_mass = (total / np.bincount(windows.cluster, minlength=times.size))[windows.cluster]
    scale = np.array(
        [_mean_square(x[windows.cluster == k], x[windows.cluster == k + 1]) for k in range(times.size - 1)]
    )
    rng = np.random.default_rng(options.random_state)
    tasks, cells, interval = [], [], []
    for (source, target), dt in zip(windows.pairs, windows.dt, strict=True):
        i, j = windows.cells(source), windows.cells(target)
        k = int(windows.cluster[i[0]])
        expected = np.zeros(i.size) if prior is None else prior[i] * dt
        draws = rng.random((i.size, 1)), rng.random((j.size, 1))
        tasks.append((x[i], x[j], expected, (cell_mass[i], cell_mass[j]), scale[k], float(dt), draws))
        cells.append((i, j))
        interval.append(k)
    n_jobs = run.n_jobs if where.type == "cpu" else 1
    shown = run.show_progress_bar
    found = parallel.run(
        _transported, tasks, (options, where), n_jobs=n_jobs, desc="transport", show_progress_bar=shown
    )
    sides, drawn, converged, errors = _Sides(x.shape), [], [], []
    with closing(found):
        for (i, j), (*_, dt, _), done in zip(cells, tasks, found, strict=True):
            sides.add(done.sides, (i, j), dt)
            rows, columns, begin, finish = done.drawn
            drawn.append((i[rows], j[columns], begin, finish))
            converged.append(done.converged)
            errors.append(done.error)
    sizes = np.bincount(interval, [pairs[0].size for pairs in drawn], minlength=times.size - 1).astype(np.int64)
    source, target, start, end = (np.concatenate(part) for part in zip(*drawn, strict=True))
    report_convergence(np.array(converged), np.array(errors))
    couplings = SnapshotCouplings(
        source=source,
        target=target,
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        start=start,
        end=end,
        times=times,
        mass=total,
        before=sides.before,
        after=sides.after,
        scale=scale,
        epsilon=float(options.epsilon),
        tau=np.array(options.both_tau),
    )
    return couplings, sides.velocity(np.array(converged), np.array(errors))


def _mean_square(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the mean squared distance of two groups of cells, which their means and variances tell."""
    square = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + x.var(axis=0).sum() + y.var(axis=0).sum()
    return float(square) or 1.0


# Values of each cell: see `_Batch.side`.
Side = tuple[NDArray[np.float64], ...]


class _Done(NamedTuple):
    """What is kept of the transport between two batches of cells."""

    sides: list[Side]  # of sources and of targets
    drawn: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
    converged: bool
    error: float


def _transported(
    options: CouplingOptions,
    device: torch.device,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    log_weights: NDArray[np.float64],
    mass: tuple[NDArray[np.float64], NDArray[np.float64]],
    scale: float,
    dt: float,
    draws: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> _Done:
    """Transport a batch of cells to another: it is one task, and plans are too large to be kept."""
    with single_thread(device):
        batch = _Batch(x, y, log_weights, scale, options, device)
        batch.weigh(*mass)
        sides = [batch.side(number, dt) for number in (0, 1)]
        return _Done(sides, batch.draw(options.n_draws, draws), batch.converged, batch.error)


class _Batch:
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


class _Sides:
    """Velocity and growth of each cell, as a source in the interval after it (0) and a target in the one before (1)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean = np.full((2, *shape), np.nan)
        self.spread = np.full((2, *shape), np.nan)
        self.n_effective = np.zeros((2, shape[0]))
        self.growth = np.full((2, shape[0]), np.nan)
        self.support = np.zeros((2, shape[0]))
        self.dt = np.full((2, shape[0]), np.nan)

    @property
    def after(self) -> NDArray[np.float64]:
        """Mean velocity to the cells of the next time point."""
        return self.mean[0]

    @property
    def before(self) -> NDArray[np.float64]:
        """Mean velocity from the cells of the time point before."""
        return self.mean[1]

    def add(self, sides: list[Side], cells: tuple[NDArray[np.int64], NDArray[np.int64]], dt: float) -> None:
        """Fill in sources and targets of a batch."""
        kept = self.mean, self.spread, self.n_effective, self.growth, self.support
        for side, (of, found) in enumerate(zip(cells, sides, strict=True)):
            for array, values in zip(kept, found, strict=True):
                array[side, of] = values
            self.dt[side, of] = dt

    def velocity(self, converged: NDArray[np.bool_], error: NDArray[np.float64]) -> TransportVelocity:
        """Return velocity and growth of each cell: the mean of both sides, weighted as the slope of a parabola is."""
        known = np.isfinite(self.dt)
        # The nearer time point counts more.
        weight = np.where(known, 1.0 / np.where(known, self.dt, 1.0), 0.0)
        weight /= weight.sum(axis=0)
        velocity, growth, spread, n_effective, support = (
            np.einsum("sn,sn...->n...", weight, np.nan_to_num(values))
            for values in (self.mean, self.growth, self.spread, self.n_effective, self.support)
        )
        difference = np.nan_to_num(np.sum((self.mean[0] - self.mean[1]) ** 2, axis=1))
        return TransportVelocity(
            velocity=velocity,
            relaxation=np.zeros_like(velocity),
            spread=spread,
            n_effective=n_effective,
            disagreement=weight.prod(axis=0) * difference,
            support=support,
            n_forward=known[0].astype(np.int64),
            n_backward=known[1].astype(np.int64),
            converged=converged,
            marginal_error=error,
            growth=growth,
        )
