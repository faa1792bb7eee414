"""How particles move and when they end: the options of trajectories and of flow, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed

__all__ = ["SIGNS", "Direction", "FlowOptions", "Method", "MotionOptions", "TimeFrom", "TrajectoryOptions"]

Direction = Literal["forward", "backward", "both"]
Method = Literal["euler", "rk4", "dopri5"]
TimeFrom = Literal["cells", "path", "start"]

# A slow speed limit or a short step must not make a run endless.
MOST_STEPS = 10_000
# Signs of time, by direction.
SIGNS: dict[str, tuple[int, ...]] = {"forward": (1,), "backward": (-1,), "both": (1, -1)}


@dataclass(frozen=True, kw_only=True)
class MotionOptions(Options):
    """Options that trajectories and flow share."""

    direction: Direction = "forward"
    n_steps: int | None = None
    step_size: float = 0.01
    save_every: int = 1
    time_from: TimeFrom = "cells"
    confine: float = 0.7
    max_distance: float = 2.5
    min_speed: float = 0.1
    n_neighbors: int = 15
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_choice("direction", self.direction, Direction)
        if self.n_steps is not None:
            check_integer("n_steps", self.n_steps, low=1)
        for name in ("save_every", "n_neighbors"):
            check_integer(name, getattr(self, name), low=1)
        check_seed(self.random_state)
        check_number("step_size", self.step_size, low=0, high=1, open_low=True)
        check_number("max_distance", self.max_distance, low=1)
        check_number("confine", self.confine, low=0)
        check_choice("time_from", self.time_from, TimeFrom)
        check_number("min_speed", self.min_speed, low=0)

    @property
    def most_steps(self) -> int:
        """Number of steps after which a run ends: ``n_steps``, or as many as the slowest particle may need.

        A particle slower than ``min_speed`` has stalled, so the whole of time takes one at most ``1 / min_speed`` of
        it, in steps of ``step_size``. With a time that moves along the path, the whole of time is enough.
        """
        if self.n_steps is not None:
            return self.n_steps
        if self.time_from == "path":
            return math.ceil(1 / self.step_size) + 1
        slowest = max(self.min_speed * self.step_size, 1 / MOST_STEPS)
        return max(math.ceil(1 / slowest - 1e-9), math.ceil(1 / self.step_size))


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions(MotionOptions):
    """Options of trajectories, explained by :meth:`cellrank_velot.OTVelocityKernel.compute_trajectories`.

    Examples
    --------
    >>> options = dynamics.TrajectoryOptions(n_trajectories=5, direction="backward")
    >>> options.most_steps, options.method
    (1000, 'rk4')
    """

    n_trajectories: int = 20
    method: Method = "rk4"
    rtol: float = 1e-4
    atol: float = 1e-6
    max_attempts_factor: int = 10

    def __post_init__(self) -> None:
        """Check them."""
        super().__post_init__()
        check_choice("method", self.method, Method)
        check_integer("n_trajectories", self.n_trajectories, low=1)
        check_integer("max_attempts_factor", self.max_attempts_factor, low=1)
        check_number("rtol", self.rtol, low=0, open_low=True)
        check_number("atol", self.atol, low=0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class FlowOptions(MotionOptions):
    """Options of a flow, explained by :meth:`cellrank_velot.OTVelocityKernel.simulate_flow`.

    Examples
    --------
    >>> dynamics.FlowOptions(n_particles=50, n_steps=300).most_steps
    300
    """

    n_particles: int = 200
    diffusion: float = 1.0
    noise_scale: float = 0.0

    def __post_init__(self) -> None:
        """Check them."""
        super().__post_init__()
        check_integer("n_particles", self.n_particles, low=1)
        check_number("diffusion", self.diffusion, low=0)
        check_number("noise_scale", self.noise_scale, low=0)
