"""What the parts of the kernel may rely on: declared here, defined in :mod:`cellrank_velot.kernel.core`.

Depends on the stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot.cells.read import CellStates
from cellrank_velot.field import VelocityField
from cellrank_velot.field.uncertainty import Uncertainty
from cellrank_velot.transport.velocity import TransportVelocity
from cellrank_velot.transport.windows import Windows

__all__ = ["Parts"]


class Parts:
    """Base of the parts of the kernel; it has nothing of its own."""

    if TYPE_CHECKING:
        adata: AnnData
        backward: bool
        connectivities: sp.csr_matrix
        transition_matrix: sp.csr_matrix
        # What the host and the kernel keep, which its matrix and its saving change.
        _init_kwargs: dict[str, Any]
        _params: dict[str, Any]
        _settings: dict[str, dict[str, Any]]
        _transition_matrix: sp.csr_matrix | None
        _computed: sp.csr_matrix | None
        _logits: sp.csr_matrix | None
        _condition_number: float | None
        _request: dict[str, Any] | None
        _components: NDArray[np.int64] | None

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
        @property
        def uncertainty(self) -> Uncertainty | None: ...
        @property
        def velocity_uncertainty(self) -> NDArray[Any]: ...
        @property
        def growth(self) -> NDArray[Any]: ...
        @property
        def ends(self) -> NDArray[np.bool_]: ...
        @property
        def settings(self) -> dict[str, dict[str, Any]]: ...
        def current_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> VelocityField: ...
        def compute_velocity(
            self,
            *,
            device: str = "auto",
            n_jobs: int | None = None,
            memory_limit: float | str | None = None,
            show_progress_bar: bool = True,
        ) -> Any: ...
        def fit_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> Any: ...
        def compute_uncertainty(self, *, show_progress_bar: bool = True) -> Any: ...
        def interpolate(self, time: float) -> Any: ...
        def write_to_adata(self, key: str | None = None, copy: bool = False) -> None: ...
        @classmethod
        def from_adata(cls, adata: AnnData, key: str, copy: bool = False) -> Self: ...
        def _names_of(self, step: str) -> list[str]: ...
        def _needed(self, stage: str, method: str) -> Any: ...
