"""Many steps of many particles: who moves on, who ends and why, and which points are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot.dynamics.drift import mean_speed
from cellrank_velot.dynamics.fields import Field
from cellrank_velot.dynamics.options import MotionOptions
from cellrank_velot.dynamics.paths import Status, Trajectories
from cellrank_velot.dynamics.region import NearestCells, Region
from cellrank_velot.dynamics.solvers import Step
from cellrank_velot.dynamics.starts import codes_of, target_codes

__all__ = ["Motion", "move"]

# A particle whose time moves ends where the time of the cells begins or ends.
TIME_RANGE = (0.0, 1.0)
# Steps at least over which a mean position is taken.
FEWEST_STEPS = 4
# A particle is looked at again after it has moved by this share of the spacing of the cells: it cannot have left the
# data, or come to another cluster, without moving, and looking costs more than moving.
LOOK_EVERY = 0.5


@dataclass(frozen=True, eq=False)
class Motion:
    """What particles move among in one direction of time, how they move, and where they arrive."""

    near: NearestCells
    options: MotionOptions
    min_speed: float = 0.0  # unlike that of the options in units of the basis per time
    clusters: NDArray[np.str_] = field(default_factory=lambda: np.empty(0, dtype=np.str_))  # names
    targets: NDArray[np.int64] | None = None  # clusters to arrive at
    sign: int = 1  # 1 for forward in time, -1 for backward
    to_targets_only: bool = False  # whether a particle ends where it comes to a target, before it leaves it

    @classmethod
    def of(
        cls,
        velocity: Field,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        options: MotionOptions,
        *,
        clusters: Sequence[Any] | None,
        targets: str | Sequence[str] | None,
        search_every: float,
        device: str,
    ) -> Motion:
        """Return the motion among cells, forward in time."""
        labels, names = codes_of(clusters, x.shape[0])
        codes = target_codes(targets, names)
        region = Region.of(
            x,
            time,
            labels,
            n_neighbors=options.n_neighbors,
            random_state=options.random_state,
            device=resolve_device(device),
        )
        min_speed = options.min_speed * mean_speed(velocity, x, time)
        return cls(NearestCells(region, search_every), options, min_speed, names, codes)

    def again(self, sign: int = 1) -> Motion:
        """Return the same for other particles, in either direction of time."""
        return replace(self, near=self.near.again(), sign=sign)

    @property
    def region(self) -> Region:
        """The cells."""
        return self.near.region

    @property
    def device(self) -> torch.device:
        """Where particles are moved."""
        return self.region.cells.device


def move(
    motion: Motion,
    step: Step,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    start_ix: NDArray[np.int64],
    *,
    show_progress_bar: bool = False,
) -> Trajectories:
    """Move particles from ``x [n_particles, n_dims]`` at ``time`` and from the cells ``start_ix``, until each ends."""
    crowd = _Crowd(motion, x, time)
    n_steps = motion.options.most_steps
    clock = motion.sign if motion.options.time_from == "path" else 0
    with (
        single_thread(motion.device),  # threads of small products wait for each other where others use the cores, too
        torch.no_grad(),
        tqdm(total=len(x), desc="motion", unit="particle", disable=not show_progress_bar) as bar,
    ):
        for number in range(1, n_steps + 1):
            crowd.advance(step, number, clock)
            bar.update(len(x) - bar.n - crowd.active.numel())
            if crowd.active.numel() == 0:
                break
        crowd.end(torch.ones_like(crowd.active, dtype=torch.bool), Status.OUT_OF_STEPS, n_steps)
    return crowd.result(start_ix)


class _Crowd:
    """Particles on their way: ``x``, ``time`` and ``active`` are of those that move, the rest is of all."""

    def __init__(self, motion: Motion, x: NDArray[np.float64], time: NDArray[np.float64]) -> None:
        n, device = len(x), motion.device
        self.motion, self.region, self.options = motion, motion.region, motion.options
        self.targets = None if motion.targets is None else torch.tensor(motion.targets, device=device)
        self.x = torch.tensor(np.array(x, dtype=np.float64), device=device)
        self.time = torch.tensor(np.array(time, dtype=np.float64), device=device)
        self.active = torch.arange(n, device=device)
        self.look_after = LOOK_EVERY * self.region.typical_spacing
        self._read_time(self.active)
        _, label = self.region.look(self.x, motion.near.of(self.x, self.active))
        self.status = torch.full((n,), int(Status.OUT_OF_STEPS), dtype=torch.int8, device=device)
        self.start_label = label.clone()  # later sightings are written over it
        # Where each particle was last seen among the data, and last in the target that it came to.
        step = torch.zeros(n, dtype=torch.int64, device=device)
        self.seen = _Sighting(step, self.x.clone(), self.time.clone(), label)
        self.target = self.seen.copy()
        self.passed = torch.zeros(n, dtype=torch.bool, device=device)  # came to a target and left it
        self.rest = _Rest.of(motion, self.x)
        self.kept: list[tuple[NDArray[np.int64], int, NDArray[np.float64], NDArray[np.float64]]] = []
        self._keep(0)

    def advance(self, step: Step, number: int, clock: int) -> None:
        """Move by one step, look at those that have moved far enough, and end those whose time has come."""
        step_size = self.options.step_size
        dt = torch.full_like(self.time, step_size)
        if clock:
            dt = torch.minimum(dt, self._time_left(clock))
        self.x = step(self.x, self.time, self.active, dt, clock)
        self.time = self.time + clock * dt
        moved = (self.x - self.seen.x[self.active]).norm(dim=1)
        # A comparison with NaN fails: the particle is looked at, and is outside.
        self.end(self._look(~(moved < self.look_after), number), Status.LEFT_DATA, number)
        self.end(self.passed[self.active], Status.ARRIVED, number)
        waited = (number - self.seen.step[self.active]) * step_size
        self.end(waited * self.motion.min_speed > self.look_after, Status.STALLED, number)
        if self.rest is not None:
            self.end(self.rest.found(self.active, self.x), Status.STALLED, number)
        if clock:
            self.end(self._time_left(clock) <= 1e-9 * step_size, Status.END_OF_TIME, number)
        if number % self.options.save_every == 0:
            self._keep(number)

    def _time_left(self, clock: int) -> torch.Tensor:
        first, last = TIME_RANGE
        return (last - self.time if clock > 0 else self.time - first).clamp_min(0.0)

    def _look(self, which: torch.Tensor, number: int) -> torch.Tensor:
        """Look at some of the particles, note where they are, and return which of all active ones are outside."""
        outside = torch.zeros_like(which)
        at = which.nonzero().squeeze(1)
        if at.numel() == 0:
            return outside
        self._read_time(at)
        x = self.x[at]
        ratio, label = self.region.look(x, self.motion.near.of(x, self.active[at]))
        inside = (ratio <= self.options.max_distance) & x.isfinite().all(dim=1)
        outside[at] = ~inside
        at, label = at[inside], label[inside]
        self.seen.note(self.active[at], number, self.x[at], self.time[at], label)
        if self.targets is not None:
            ids = self.active[at]
            been = self.target.step[ids] > 0
            there = torch.where(been, label == self.target.label[ids], torch.isin(label, self.targets))
            self.passed[ids] = been & ~there
            at, label = at[there], label[there]
            self.target.note(self.active[at], number, self.x[at], self.time[at], label)
            self.passed[self.active[at]] = self.motion.to_targets_only
        return outside

    def end(self, which: torch.Tensor, status: Status, number: int) -> None:
        """End some of the active particles."""
        if not which.any():
            return
        if status is not Status.LEFT_DATA:
            # Where it ends must be in the data, too, and its cluster be known.
            outside = self._look(which, number)
            self.status[self.active[which & ~outside]] = int(status)
            self.status[self.active[outside]] = int(Status.LEFT_DATA)
        else:
            self.status[self.active[which]] = int(status)
        stays = ~which
        self.active, self.x, self.time = self.active[stays], self.x[stays], self.time[stays]

    def _read_time(self, at: torch.Tensor) -> None:
        """Take the time of some of the active particles from the cells around them, where that is theirs."""
        if self.options.time_from == "cells" and at.numel():
            x = self.x[at]
            self.time[at] = self.region.time_around(x, self.motion.near.of(x, self.active[at])).to(self.time.dtype)

    def _keep(self, number: int) -> None:
        if self.active.numel():
            self._read_time(torch.arange(self.active.numel(), device=self.active.device))
            arrays = (self.active, self.x, self.time)
            ids, x, time = (tensor.cpu().numpy().copy() for tensor in arrays)
            self.kept.append((ids, number, x, time))

    def _cut_at_rest(self, last: _Sighting) -> None:
        """Let particles at rest end at their first point within the scatter of the rest, if the cluster is the same."""
        if self.rest is None or not self.rest.at.any():
            return
        at, ends = self.rest.at.cpu().numpy(), last.step.cpu().numpy()
        place, spread = self.rest.last.cpu().numpy(), self.rest.spread.cpu().numpy()
        known = ~at
        first = []
        for ids, number, x, time in self.kept:
            new = np.flatnonzero(~known[ids] & (number < ends[ids]))
            new = new[np.square(x[new] - place[ids[new]]).sum(axis=1) <= spread[ids[new]]]
            known[ids[new]] = True
            first.append((ids[new], np.full(new.size, number), x[new], time[new]))
        which, steps, points, times = (
            torch.tensor(np.concatenate(part), device=self.x.device) for part in zip(*first, strict=True)
        )
        if not which.numel():
            return
        ratio, label = self.region.look(points, self.region.nearest(points))
        good = (label == last.label[which]) & (ratio <= self.options.max_distance)
        last.note(which[good], steps[good], points[good], times[good], label[good])

    def result(self, start_ix: NDArray[np.int64]) -> Trajectories:
        """Return the paths, each up to the last point among the data, or in a target where it came to one.

        One at rest ends where it came to rest: what follows is noise.
        """
        arrived = self.target.step > 0
        last = self.seen.where(arrived, self.target)
        self._cut_at_rest(last)
        status = torch.where(arrived, int(Status.ARRIVED), self.status)
        end = last.step.cpu().numpy()
        number = np.concatenate([np.full(ids.size, step) for ids, step, _, _ in self.kept])
        ids = np.concatenate([ids for ids, _, _, _ in self.kept])
        before = number < end[ids]
        ids = np.concatenate([ids[before], np.arange(end.size)])
        number = np.concatenate([number[before], end])
        x = np.concatenate([*(x for _, _, x, _ in self.kept)])[before]
        time = np.concatenate([*(time for _, _, _, time in self.kept)])[before]
        self.kept.clear()
        order = np.lexsort((number, ids))
        counts = np.bincount(ids, minlength=end.size)
        return Trajectories(
            ids=np.arange(end.size),
            x=np.concatenate([x, last.x.cpu().numpy()])[order],
            time=np.concatenate([time, last.time.cpu().numpy()])[order],
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            status=status.cpu().numpy().astype(np.int8),
            direction=np.full(end.size, self.motion.sign, dtype=np.int8),
            start_ix=np.asarray(start_ix, dtype=np.int64),
            clusters=self.motion.clusters,
            start_cluster=self.start_label.cpu().numpy(),
            end_cluster=last.label.cpu().numpy(),
            n_tried=int(end.size),
            targets=np.empty(0, dtype=np.int64) if self.targets is None else self.targets.cpu().numpy(),
        )


@dataclass(eq=False)
class _Rest:
    """Which particles have come to rest although noise, or a small circle, moves them to and fro.

    Mean positions over two spans of time, one after the other, then differ by less than the particle's scatter within
    them. On a straight way they differ by 3.5 times as much, and by twice as much where noise alone carries it along.
    """

    n_steps: int  # in a span: at the slowest speed, as many as to pass the spacing of the cells
    last: torch.Tensor  # mean position over the last span, [n_particles, n_dims]
    spread: torch.Tensor  # mean squared distance from it, [n_particles]
    total: torch.Tensor  # sum over this span of the way from that mean, and of its square
    square: torch.Tensor
    at: torch.Tensor  # whether each has been found, [n_particles]
    number: int = 0

    @classmethod
    def of(cls, motion: Motion, x: torch.Tensor) -> _Rest | None:
        """Return the search for particles at rest; nothing where there is no slowest speed."""
        waits = motion.min_speed * motion.options.step_size
        steps = motion.region.typical_spacing / waits if waits > 0 else math.inf
        if not steps < motion.options.most_steps:
            return None
        zero = torch.zeros_like(x[:, 0])
        n_steps = max(math.ceil(steps), FEWEST_STEPS)
        at = torch.zeros_like(zero, dtype=torch.bool)
        return cls(n_steps, x.clone(), zero, torch.zeros_like(x), zero.clone(), at)

    def found(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add positions ``x [n_active, n_dims]`` of particles ``ids``, and return which of them are at rest."""
        self.number += 1
        way = x - self.last[ids]
        self.total[ids] += way
        self.square[ids] += way.square().sum(dim=1)
        if self.number % self.n_steps:
            return torch.zeros_like(ids, dtype=torch.bool)
        shift = self.total[ids] / self.n_steps
        moved = shift.square().sum(dim=1)
        spread = self.square[ids] / self.n_steps - moved
        rests = moved < (spread + self.spread[ids]) / 2
        self.last[ids] += shift
        self.spread[ids] = spread
        self.total.zero_()
        self.square.zero_()
        # The first span has none before it: its way is that from the start.
        rests &= self.number > self.n_steps
        self.at[ids] = rests
        return rests


@dataclass(frozen=True, eq=False)
class _Sighting:
    """Step, position, time and cluster at which each particle was last seen somewhere."""

    step: torch.Tensor
    x: torch.Tensor
    time: torch.Tensor
    label: torch.Tensor

    def copy(self) -> _Sighting:
        return _Sighting(self.step.clone(), self.x.clone(), self.time.clone(), self.label.clone())

    def note(
        self, ids: torch.Tensor, number: int | torch.Tensor, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor
    ) -> None:
        self.step[ids], self.x[ids], self.time[ids], self.label[ids] = number, x, time, label

    def where(self, mask: torch.Tensor, other: _Sighting) -> _Sighting:
        """Return this one, and the other where the mask holds."""
        return _Sighting(
            torch.where(mask, other.step, self.step),
            torch.where(mask.unsqueeze(1), other.x, self.x),
            torch.where(mask, other.time, self.time),
            torch.where(mask, other.label, self.label),
        )
