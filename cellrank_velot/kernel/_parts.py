"""What the parts of the kernel may rely on: declared here, defined in :mod:`cellrank_velot.kernel.core`.

Depends on the stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot.cells import CellStates
from cellrank_velot.field import VelocityField
from cellrank_velot.velocity import TransportVelocity
from cellrank_velot.windows import Windows

__all__ = ["Parts"]


class Parts:
    """Base of the parts of the kernel; it has nothing of its own."""

    if TYPE_CHECKING:
        adata: AnnData
        backward: bool
        connectivities: sp.csr_matrix

        @property
        def basis(self) -> str: ...
        @property
        def cluster_key(self) -> str | None: ...
        @property
        def cells(self) -> CellStates: ...
        @property
        def windows(self) -> Windows | None: ...
        @property
        def transport(self) -> TransportVelocity | None: ...
        @property
        def field(self) -> VelocityField | None: ...
        @property
        def confidence(self) -> NDArray[Any]: ...
        @property
        def velocity(self) -> NDArray[Any]: ...
        @property
        def raw_velocity(self) -> NDArray[Any]: ...
        def current_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> VelocityField: ...
        def compute_velocity(self, *, device: str = "auto", show_progress_bar: bool = True) -> Any: ...
        def fit_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> Any: ...
        def interpolate(self, time: float) -> Any: ...
        def _needed(self, stage: str, method: str) -> Any: ...
