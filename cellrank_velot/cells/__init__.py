"""Cells: what the stages need to know of an AnnData.

In goes an AnnData with the names of its slots. ``read`` checks positions, time and clusters and returns them as
arrays, ``select`` finds the cells that a user names, and ``time_points`` checks real time points.
"""

from cellrank_velot.cells.read import CellStates, TimeKind, find_basis, read_basis, read_cells, read_time
from cellrank_velot.cells.select import CellSelector, Interval, select_cells

__all__ = [
    "CellSelector",
    "CellStates",
    "Interval",
    "TimeKind",
    "find_basis",
    "read_basis",
    "read_cells",
    "read_time",
    "select_cells",
]
