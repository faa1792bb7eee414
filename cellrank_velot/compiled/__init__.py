"""Loops over windows and edges, compiled for the processor: what arrays and torch can only do in many passes.

Each works on a part of the cells without Python's lock, so that parts can run in threads. No stage is decided here: the
same numbers come out of torch on another device. Depends on numba and numpy only.
"""

from cellrank_velot.compiled.edges import connected_components, edge_similarities, neighbor_means, row_softmax
from cellrank_velot.compiled.pairs import MAX_EXCESS, add_rows, transport_pairs

__all__ = [
    "MAX_EXCESS",
    "add_rows",
    "connected_components",
    "edge_similarities",
    "neighbor_means",
    "row_softmax",
    "transport_pairs",
]
