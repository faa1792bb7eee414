"""The neighbour graph: rows of its edges, and how far each cell lies from the mean of its neighbours.

In go positions and a sparse graph, out come arrays with a value for each edge or each cell.
"""

from cellrank_velot.graph.residuals import residuals, structured_share

__all__ = ["residuals", "structured_share"]
