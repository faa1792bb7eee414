"""Many steps of many particles: who moves on, who ends and why, and which points are kept.

Depends on the rest of this folder, numpy, torch and tqdm.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed
from cellrank_velot.dynamics.guide import TimeFrom
from cellrank_velot.dynamics.paths import Status, Trajectories
from cellrank_velot.dynamics.region import Companions
from cellrank_velot.dynamics.solvers import Step

__all__ = ["SIGNS", "Direction", "Limits", "check_motion_options", "move"]

Direction = Literal["forward", "backward", "both"]

# Signs of time, by direction.
SIGNS: dict[str, tuple[int, ...]] = {"forward": (1,), "backward": (-1,), "both": (1, -1)}
# A particle is looked at again after it has moved by this share of the spacing of the cells: it cannot have left the
# data, or come to another cluster, without moving, and looking costs more than moving.
LOOK_EVERY = 0.5
MANY_PARTICLES = 2000


@dataclass(frozen=True)
class Limits:
    """When a particle ends.

    Attributes
    ----------
    n_steps
        Largest number of steps.
    step_size
        Time of one step.
    time_range
        Beginning and end of time; a particle whose time moves ends there. None where not given.
    max_distance
        Distance from the data at which a particle has left them, see :meth:`Region.look`.
    min_speed
        A particle has stalled that is slower on its way by half of the spacing of the cells.
    save_every
        Steps from one point kept to the next.
    """

    n_steps: int
    step_size: float
    time_range: tuple[float, float] | None = (0.0, 1.0)
    max_distance: float = 2.5
    min_speed: float = 0.0
    save_every: int = 1


def check_motion_options(
    n_steps: int,
    step_size: float,
    save_every: int,
    time_from: str,
    confine: float,
    max_distance: float,
    min_speed: float,
    n_neighbors: int,
    random_state: int,
) -> None:
    """Refuse options of motion that are out of range.

    Raises
    ------
    TypeError, ValueError
        If one is.
    """
    for name, count in (("n_steps", n_steps), ("save_every", save_every), ("n_neighbors", n_neighbors)):
        check_integer(name, count, low=1)
    check_seed(random_state)
    check_number("step_size", step_size, low=0, high=1, open_low=True)
    check_number("max_distance", max_distance, low=1)
    check_number("confine", confine, low=0)
    check_choice("time_from", time_from, TimeFrom)
    check_number("min_speed", min_speed, low=0)


def move(
    step: Step,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    companions: Companions,
    limits: Limits,
    *,
    sign: int = 1,
    time_from: TimeFrom = "cells",
    start_ix: NDArray[np.int64],
    clusters: NDArray[np.str_],
    targets: NDArray[np.int64] | None = None,
    show_progress_bar: bool = False,
) -> Trajectories:
    """Move particles until each of them ends.

    Parameters
    ----------
    step
        Moves particles by one step.
    x, time
        Where and when they start, shapes ``[n_particles, n_dims]`` and ``[n_particles]``.
    companions
        The cells, and which of them are near each particle.
    limits
        When a particle ends.
    sign
        ``1`` for forward in time and ``-1`` for backward; the drift of ``step`` has it already.
    time_from
        ``"path"`` where the time of a particle moves with it, ``"start"`` where it stays that of its start, and
        ``"cells"`` where the step takes it from the cells around the particle.
    start_ix
        Cell at which each of them starts, shape ``[n_particles]``.
    clusters
        Names of the clusters.
    targets
        Clusters to arrive at; a particle that comes to one ends at its last point before it leaves it.
    show_progress_bar
        Whether to show a progress bar.
    """
    crowd = _Crowd(x, time, companions, targets, limits, time_from)
    clock = sign if time_from == "path" else 0
    device = companions.region.cells.device
    # Few particles make small products: to hand them out to threads costs more than they do.
    threads = single_thread(device) if len(x) < MANY_PARTICLES else nullcontext()
    with (
        threads,
        torch.no_grad(),
        tqdm(total=limits.n_steps, desc="motion", unit="step", disable=not show_progress_bar) as bar,
    ):
        for number in range(1, limits.n_steps + 1):
            crowd.advance(step, number, clock)
            bar.update()
            if crowd.active.numel() == 0:
                break
        crowd.end(torch.ones_like(crowd.active, dtype=torch.bool), Status.OUT_OF_STEPS, limits.n_steps)
    return crowd.result(sign, start_ix, clusters)


class _Crowd:
    """Particles on their way: ``x``, ``time`` and ``active`` are of those that move, the rest is of all."""

    def __init__(
        self,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        companions: Companions,
        targets: NDArray[np.int64] | None,
        limits: Limits,
        time_from: TimeFrom,
    ) -> None:
        region, device = companions.region, companions.region.cells.device
        self.region, self.companions, self.limits, self.time_from = region, companions, limits, time_from
        self.targets = None if targets is None else torch.tensor(targets, device=device)
        self.x = torch.tensor(np.array(x, dtype=np.float64), device=device)
        self.time = torch.tensor(np.array(time, dtype=np.float64), device=device)
        self.active = torch.arange(len(x), device=device)
        self.look_after = LOOK_EVERY * region.typical_spacing
        self._read_time(self.active)
        _, label = region.look(self.x, companions.of(self.x, self.active))
        n = len(x)
        self.status = torch.full((n,), int(Status.OUT_OF_STEPS), dtype=torch.int8, device=device)
        self.start_label = label.clone()  # notes of later sightings are written over it
        # Where each particle was last seen among the data, and last in the target that it came to.
        step = torch.zeros(n, dtype=torch.int64, device=device)
        self.seen = _Sighting(step, self.x.clone(), self.time.clone(), label)
        self.target = self.seen.copy()
        self.passed = torch.zeros(n, dtype=torch.bool, device=device)  # came to a target and left it
        self.kept: list[tuple[NDArray[np.int64], int, NDArray[np.float64], NDArray[np.float64]]] = []
        self._keep(0)

    def advance(self, step: Step, number: int, clock: int) -> None:
        """Move by one step, look at those that have moved far enough, and end those whose time has come."""
        limits = self.limits
        dt = torch.full_like(self.time, limits.step_size)
        left = self._time_left(clock)
        if left is not None:
            dt = torch.minimum(dt, left)
        self.x = step(self.x, self.time, self.active, dt, clock)
        self.time = self.time + clock * dt
        moved = (self.x - self.seen.x[self.active]).norm(dim=1)
        # A comparison with a position that is no number fails: the particle is looked at, and is outside.
        self.end(self._look(~(moved < self.look_after), number), Status.LEFT_DATA, number)
        self.end(self.passed[self.active], Status.ARRIVED, number)
        waited = (number - self.seen.step[self.active]) * limits.step_size
        self.end(waited * limits.min_speed > self.look_after, Status.STALLED, number)
        left = self._time_left(clock)
        if left is not None:
            self.end(left <= 1e-9 * limits.step_size, Status.END_OF_TIME, number)
        if number % limits.save_every == 0:
            self._keep(number)

    def _time_left(self, clock: int) -> torch.Tensor | None:
        if clock == 0 or self.limits.time_range is None:
            return None
        low, high = self.limits.time_range
        return (high - self.time if clock > 0 else self.time - low).clamp_min(0.0)

    def _look(self, which: torch.Tensor, number: int) -> torch.Tensor:
        """Look at some of the particles, note where they are, and return which of all active ones are outside."""
        outside = torch.zeros_like(which)
        at = which.nonzero().squeeze(1)
        if at.numel() == 0:
            return outside
        self._read_time(at)
        x = self.x[at]
        ratio, label = self.region.look(x, self.companions.of(x, self.active[at]))
        inside = (ratio <= self.limits.max_distance) & x.isfinite().all(dim=1)
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
        if self.time_from == "cells" and at.numel():
            x = self.x[at]
            self.time[at] = self.region.time_around(x, self.companions.of(x, self.active[at])).to(self.time.dtype)

    def _keep(self, number: int) -> None:
        if self.active.numel():
            self._read_time(torch.arange(self.active.numel(), device=self.active.device))
            arrays = (self.active, self.x, self.time)
            ids, x, time = (tensor.cpu().numpy().copy() for tensor in arrays)
            self.kept.append((ids, number, x, time))

    def result(self, sign: int, start_ix: NDArray[np.int64], clusters: NDArray[np.str_]) -> Trajectories:
        """Return the paths, each up to the last point among the data, or in a target where it came to one."""
        arrived = self.target.step > 0
        last = self.seen.where(arrived, self.target)
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
            direction=np.full(end.size, sign, dtype=np.int8),
            start_ix=np.asarray(start_ix, dtype=np.int64),
            clusters=clusters,
            start_cluster=self.start_label.cpu().numpy(),
            end_cluster=last.label.cpu().numpy(),
            n_tried=int(end.size),
            targets=np.empty(0, dtype=np.int64) if self.targets is None else self.targets.cpu().numpy(),
        )


@dataclass(frozen=True, eq=False)
class _Sighting:
    """Step, position, time and cluster at which each particle was last seen somewhere."""

    step: torch.Tensor
    x: torch.Tensor
    time: torch.Tensor
    label: torch.Tensor

    def copy(self) -> _Sighting:
        return _Sighting(self.step.clone(), self.x.clone(), self.time.clone(), self.label.clone())

    def note(self, ids: torch.Tensor, number: int, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> None:
        self.step[ids], self.x[ids], self.time[ids], self.label[ids] = number, x, time, label

    def where(self, mask: torch.Tensor, other: _Sighting) -> _Sighting:
        """Return this one, and the other where the mask holds."""
        return _Sighting(
            torch.where(mask, other.step, self.step),
            torch.where(mask.unsqueeze(1), other.x, self.x),
            torch.where(mask, other.time, self.time),
            torch.where(mask, other.label, self.label),
        )
