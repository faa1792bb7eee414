"""What metrics need of a kernel, so that they know none."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot.cells import CellStates
from cellrank_velot.transport import TransportVelocity

__all__ = ["VelocityKernel"]


class VelocityKernel(Protocol):
    """A kernel as the metrics see it, such as :class:`~cellrank_velot.OTVelocityKernel`."""

    @property
    def adata(self) -> AnnData:
        """Annotated data of the kernel."""

    @property
    def backward(self) -> bool | None:
        """Whether the kernel is of the process in reverse."""

    @property
    def connectivities(self) -> sp.csr_matrix:
        """Neighbour graph, shape ``[n_cells, n_cells]``."""

    @property
    def params(self) -> dict[str, Any]:
        """Options of the transition matrix; empty without one."""

    @property
    def transition_matrix(self) -> sp.csr_matrix:
        """Transition matrix, shape ``[n_cells, n_cells]``."""

    @property
    def cells(self) -> CellStates:
        """Positions and time of the cells."""

    @property
    def transport(self) -> TransportVelocity | None:
        """Result of transport."""

    @property
    def velocity(self) -> NDArray[np.float64]:
        """Velocity of the field at the cells, shape ``[n_cells, n_dims]``."""

    @property
    def raw_velocity(self) -> NDArray[np.float64]:
        """Velocity from transport, NaN where there is none, shape ``[n_cells, n_dims]``."""

    def reversed_velocity(self) -> NDArray[np.float64]:
        """Return the velocity of the field where time runs the other way, shape ``[n_cells, n_dims]``."""

    def copy(self) -> Any:
        """Return a copy, which has ``compute_transition_matrix``."""
