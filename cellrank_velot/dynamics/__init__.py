"""Motion in the velocity field: where particles go, where they came from, and with which fates.

One file per job: ``paths`` (the result and its statuses), ``region`` (where the data lie), ``guide`` (what moves a
particle), ``starts`` (where from and where to), ``solvers`` (one step of an ordinary or a stochastic differential
equation), ``motion`` (many steps of many particles), ``trajectories`` and ``flow`` (the two uses). Of a time series,
``process`` follows the process itself and ``descent`` counts fates and ancestors. Plain arrays in and out: knows
neither AnnData nor CellRank.
"""

from cellrank_velot.dynamics.descent import ProcessFates, fate_table, labels_near
from cellrank_velot.dynamics.flow import simulate_flow
from cellrank_velot.dynamics.guide import Field, TimeFrom
from cellrank_velot.dynamics.motion import Direction
from cellrank_velot.dynamics.paths import NO_FATE, Status, Trajectories
from cellrank_velot.dynamics.process import ProcessPaths, simulate_process
from cellrank_velot.dynamics.region import Interpolated, Region, Rescaled
from cellrank_velot.dynamics.solvers import Method
from cellrank_velot.dynamics.trajectories import compute_trajectories

__all__ = [
    "NO_FATE",
    "Direction",
    "Field",
    "Interpolated",
    "Method",
    "ProcessFates",
    "ProcessPaths",
    "Region",
    "Rescaled",
    "Status",
    "TimeFrom",
    "Trajectories",
    "compute_trajectories",
    "fate_table",
    "labels_near",
    "simulate_flow",
    "simulate_process",
]


def __dir__() -> list[str]:
    return __all__
