"""The transport problem: cells, their windows, and the costs of moving from one cell to another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.device import as_tensor
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_flag, check_integer, check_number
from cellrank_velot.transport.windows import Windows

__all__ = ["TransportProblem", "TransportOptions"]


@dataclass(frozen=True, kw_only=True)
class TransportOptions(Options):
    """Costs and solver of transport, as :meth:`~cellrank_velot.OTVelocityKernel.compute_velocity` explains them."""

    epsilon: float = 0.05
    lambda_time: float = 1.0
    lambda_knn: float = 0.0
    reach: float | None = 2.0
    relaxation: float = 0.0
    regression: bool = True
    tol: float = 1e-6
    max_iter: int = 500

    def __post_init__(self) -> None:
        """Check them."""
        check_number("epsilon", self.epsilon, low=0, open_low=True)
        check_number("lambda_time", self.lambda_time, low=0)
        check_number("lambda_knn", self.lambda_knn, low=0)
        if self.reach is not None:
            check_number("reach", self.reach, low=0, open_low=True)
        if str(self.relaxation) == "auto":  # in a file of version 0.1.0
            object.__setattr__(self, "relaxation", 0.0)
        check_number("relaxation", self.relaxation, low=0, high=1)
        self._where_missing(regression=False)
        check_flag("regression", self.regression)
        check_number("tol", self.tol, low=0, open_low=True)
        check_integer("max_iter", self.max_iter, low=1)


@dataclass(frozen=True, eq=False)
class TransportProblem:
    """Cells, windows between the pairs of which mass moves, and options. The graph is there where a cost needs it."""

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    windows: Windows
    graph: sp.csr_matrix | None
    options: TransportOptions

    @classmethod
    def of(
        cls,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        windows: Windows,
        graph: sp.csr_matrix | None,
        options: TransportOptions,
    ) -> TransportProblem:
        """Leave out the graph where no cost needs it."""
        x, time = (np.ascontiguousarray(values, dtype=np.float64) for values in (x, time))
        if graph is None or not options.lambda_knn > 0:
            graph, options = None, replace(options, lambda_knn=0.0)
        return cls(x, time, windows, graph, options)

    def cells_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return positions and times on a device."""
        return as_tensor(self.x, device), as_tensor(self.time, device)
