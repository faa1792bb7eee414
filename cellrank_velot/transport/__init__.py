"""Optimal transport in windows of time: from positions and a time to a velocity of each cell.

``windows`` groups the cells and pairs the groups, ``problem`` states what it costs to move a cell, ``sinkhorn`` solves
it, ``velocity`` averages the displacements of each cell, and ``estimate`` takes the mean with a regression on time. Out
come :class:`Windows` and :class:`TransportVelocity`.
"""

from cellrank_velot.transport.estimate import estimate_velocity
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.velocity import TransportVelocity, compute_velocity, end_cells, pair_coupling
from cellrank_velot.transport.windows import Tail, WindowOptions, Windows, build_windows, cluster_cells

__all__ = [
    "Tail",
    "TransportOptions",
    "TransportVelocity",
    "WindowOptions",
    "Windows",
    "build_windows",
    "cluster_cells",
    "compute_velocity",
    "end_cells",
    "estimate_velocity",
    "pair_coupling",
]
