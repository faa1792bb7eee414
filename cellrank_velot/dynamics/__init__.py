"""Motion in the velocity field: where particles go, where they came from, and with which fates.

A field and the positions and times of cells go in; paths of particles come out, each with how it ended, and the shares
of their fates. Where the flow comes to rest, and the likeliest path against it, are found, too. In a time series,
particles can follow the process itself, whose noise and growth the field knows.
"""

from cellrank_velot.dynamics.action import ActionOptions, LeastActionPath, find_least_action_path
from cellrank_velot.dynamics.descent import ProcessFates, fate_table, labels_near
from cellrank_velot.dynamics.fields import Field, Interpolated, Rescaled
from cellrank_velot.dynamics.fixed_points import FixedPointOptions, FixedPoints, find_fixed_points
from cellrank_velot.dynamics.flow import simulate_flow
from cellrank_velot.dynamics.options import Direction, FlowOptions, Method, TimeFrom, TrajectoryOptions
from cellrank_velot.dynamics.paths import NO_FATE, Status, Trajectories
from cellrank_velot.dynamics.process import ProcessField, ProcessPaths, SimulationOptions, simulate_process
from cellrank_velot.dynamics.trajectories import compute_trajectories

__all__ = [
    "NO_FATE",
    "ActionOptions",
    "Direction",
    "Field",
    "FixedPointOptions",
    "FixedPoints",
    "FlowOptions",
    "Interpolated",
    "LeastActionPath",
    "Method",
    "ProcessFates",
    "ProcessField",
    "ProcessPaths",
    "Rescaled",
    "SimulationOptions",
    "Status",
    "TimeFrom",
    "Trajectories",
    "TrajectoryOptions",
    "compute_trajectories",
    "fate_table",
    "find_fixed_points",
    "find_least_action_path",
    "labels_near",
    "simulate_flow",
    "simulate_process",
]


def __dir__() -> list[str]:
    return __all__
