"""Couplings between snapshots: which cells of consecutive time points belong together, and how their mass changes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils import parallel
from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot.timeseries.batch import Side, mean_square, transported
from cellrank_velot.timeseries.options import CouplingOptions
from cellrank_velot.transport.velocity import TransportVelocity, report_convergence
from cellrank_velot.transport.windows import Windows

__all__ = ["SnapshotCouplings", "couple_snapshots"]


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
    scale = np.array([mean_square(x[windows.cluster == k], x[windows.cluster == k + 1]) for k in range(times.size - 1)])
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
    bar: dict[str, Any] = {"desc": "transport", "delay": 1.0, "show_progress_bar": run.show_progress_bar}
    found = parallel.run(transported, tasks, (options, where), n_jobs=n_jobs, **bar)
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
