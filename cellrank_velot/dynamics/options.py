"""How particles move and when they end: the options of trajectories and of flow, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed

__all__ = ["SIGNS", "Direction", "FlowOptions", "Method", "MotionOptions", "TimeFrom", "TrajectoryOptions"]

Direction = Literal["forward", "backward", "both"]
Method = Literal["euler", "rk4", "dopri5"]
TimeFrom = Literal["cells", "path", "start"]

# Signs of time, by direction.
SIGNS: dict[str, tuple[int, ...]] = {"forward": (1,), "backward": (-1,), "both": (1, -1)}


@dataclass(frozen=True, kw_only=True)
class MotionOptions(Options):
    """Options that trajectories and flow share."""

    direction: Direction = "forward"
    n_steps: int = 300
    step_size: float = 0.005
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
        for name in ("n_steps", "save_every", "n_neighbors"):
            check_integer(name, getattr(self, name), low=1)
        check_seed(self.random_state)
        check_number("step_size", self.step_size, low=0, high=1, open_low=True)
        check_number("max_distance", self.max_distance, low=1)
        check_number("confine", self.confine, low=0)
        check_choice("time_from", self.time_from, TimeFrom)
        check_number("min_speed", self.min_speed, low=0)


@dataclass(frozen=True, kw_only=True)
class TrajectoryOptions(MotionOptions):
    """Options of trajectories, explained by :meth:`cellrank_velot.OTVelocityKernel.compute_trajectories`.

    Examples
    --------
    >>> options = dynamics.TrajectoryOptions(n_trajectories=5, direction="backward")
    >>> options.n_steps, options.method
    (400, 'rk4')
    """

    n_trajectories: int = 20
    n_steps: int = 400
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
    >>> dynamics.FlowOptions(n_particles=50, diffusion=0.5).n_steps
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
