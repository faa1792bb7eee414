"""What is transported between pairs of windows: cells, their windows, and what moving costs.

Depends on windows, numpy, scipy and torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from cellrank_velot._utils.device import as_tensor
from cellrank_velot.transport.windows import Windows

__all__ = ["PairCosts", "PairProblem"]


@dataclass(frozen=True)
class PairCosts:
    """What moving costs, and how exactly the transport is solved.

    Attributes
    ----------
    epsilon, lambda_time, lambda_knn
        Regularisation, and what going back in time or to no neighbour costs.
    tol, max_iter
        Tolerance and bound on the iterations.

    Examples
    --------
    >>> from cellrank_velot.transport.problem import PairCosts
    >>> PairCosts(epsilon=0.05, lambda_time=1.0, lambda_knn=0.0, tol=1e-6, max_iter=500).epsilon
    0.05
    """

    epsilon: float
    lambda_time: float
    lambda_knn: float
    tol: float
    max_iter: int


@dataclass(frozen=True, eq=False)
class PairProblem:
    """Cells and their windows, between the pairs of which mass moves at some costs.

    Attributes
    ----------
    x, time
        Positions of shape ``[n_cells, n_dims]``, and the time of each cell.
    windows
        Windows and their pairs.
    graph
        Neighbour graph, where ``lambda_knn`` is above zero.
    costs
        Costs and options of the solver; ``lambda_knn`` is zero where there is no graph.

    Examples
    --------
    >>> from cellrank_velot.transport.problem import PairCosts, PairProblem
    >>> costs = PairCosts(epsilon=0.05, lambda_time=1.0, lambda_knn=0.0, tol=1e-6, max_iter=500)
    >>> problem = PairProblem.of(
    ...     vk.cells.x, vk.cells.time, vk.windows, vk.connectivities, costs
    ... )
    >>> problem.graph is None  # no cost needs it
    True
    """

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    windows: Windows
    graph: sp.csr_matrix | None
    costs: PairCosts

    @classmethod
    def of(
        cls,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        windows: Windows,
        graph: sp.csr_matrix | None,
        costs: PairCosts,
    ) -> PairProblem:
        """Bring together what :func:`cellrank_velot.transport.velocity.compute_velocity` is given."""
        x, time = (np.ascontiguousarray(values, dtype=np.float64) for values in (x, time))
        if graph is None or not costs.lambda_knn > 0:
            graph, costs = None, replace(costs, lambda_knn=0.0)
        return cls(x, time, windows, graph, costs)

    def cells_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions and times on a device."""
        return as_tensor(self.x, device), as_tensor(self.time, device)
