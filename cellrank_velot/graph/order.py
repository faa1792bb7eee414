"""An order of the cells in which neighbours lie close in memory: loops over the edges of many cells wait for memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import reverse_cuthill_mckee

from cellrank_velot._utils.slices import Slices
from cellrank_velot.graph.compiled import move_rows

__all__ = ["MemoryOrder"]

# Fewer cells fit in the cache in any order.
WORTH_FROM = 20_000
# Cells of one task.
BLOCK_CELLS = 8192

Values = TypeVar("Values", bound=NDArray[Any])


@dataclass(frozen=True, eq=False)
class MemoryOrder:
    """Which cell comes at each place, shape ``[n_cells]``; the order of the cells themselves where they are few."""

    cells: NDArray[np.int64]
    is_own: bool

    @classmethod
    def of(cls, graph: sp.csr_matrix) -> Self:
        """Return an order for the edges of a graph."""
        n_cells = graph.shape[0]
        if n_cells < WORTH_FROM:
            return cls(np.arange(n_cells), True)
        # Otherwise scipy adds the transpose, which takes longer than the order. Edges in one direction do no harm.
        return cls(reverse_cuthill_mckee(sp.csr_matrix(graph), symmetric_mode=True).astype(np.int64), False)

    @property
    def places(self) -> NDArray[np.int64]:
        """The place of each cell, shape ``[n_cells]``."""
        places = np.empty_like(self.cells)
        places[self.cells] = np.arange(self.cells.size)
        return places

    def values(self, values: Values) -> Values:
        """Return values of cells, ``[n_cells, ...]``, in this order."""
        return values if self.is_own else values[self.cells]  # type: ignore[return-value]

    def graph(self, graph: sp.csr_matrix) -> sp.csr_matrix:
        """Return a graph of cells in this order."""
        return graph if self.is_own else _moved(graph, self.cells, self.places)

    def back(self, values: Values) -> Values:
        """Return values in this order as values of the cells."""
        return values if self.is_own else values[self.places]  # type: ignore[return-value]

    def graph_back(self, graph: sp.csr_matrix) -> sp.csr_matrix:
        """Return a graph in this order as one of the cells."""
        return graph if self.is_own else _moved(graph, self.places, self.cells)


def _moved(graph: sp.csr_matrix, cells: NDArray[np.int64], places: NDArray[np.int64]) -> sp.csr_matrix:
    """Return the graph whose rows and columns are those of ``cells``, its rows sorted."""
    indptr = np.concatenate([[0], np.cumsum(np.diff(graph.indptr)[cells])]).astype(graph.indptr.dtype)
    # SciPy looks at the indices to choose their type.
    found = sp.csr_matrix((np.empty_like(graph.data), np.zeros_like(graph.indices), indptr), shape=graph.shape)
    with Slices(cells.size, BLOCK_CELLS) as slices:  # in threads: to send the graph elsewhere takes longer
        slices.map(lambda part: move_rows(graph, found, cells, places, part.start, part.stop))
    found.has_sorted_indices = True
    return found
