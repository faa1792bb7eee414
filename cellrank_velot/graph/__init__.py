"""The neighbour graph: values of its edges, row by row, and the way from each cell to its neighbours' mean.

In go positions and a sparse graph. Out come arrays with a value for each edge or each cell.
"""

from cellrank_velot.graph.residuals import residuals
from cellrank_velot.graph.smoothing import SmoothedCells, smooth_cells

__all__ = ["SmoothedCells", "residuals", "smooth_cells"]
