"""Whether what a plot was given is our kernel, and what it has: computed, or written to an AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import CellStates, read_basis
from cellrank_velot.field import VelocityField
from cellrank_velot.storage.saved import SavedKernel
from cellrank_velot.transport.velocity import TransportVelocity
from cellrank_velot.transport.windows import Windows

__all__ = [
    "HasAnnData",
    "adata_of",
    "cells_of",
    "estimate_of",
    "field_of",
    "graph_of",
    "history_of",
    "kernel_of",
    "saved_or_kernel",
    "suffix_of",
    "time_of",
    "transitions_of",
    "transport_of",
    "weights_of",
    "windows_of",
]

FloatArray = NDArray[np.float64]

# What the kernel for real time points alone has.
OF_TIME_POINTS = {"ancestry", "fate_probabilities", "growth", "interpolate", "simulate_process"}
WRITE_FIRST = "Call `kernel.write_to_adata()` first."
WRITE_OR_PASS = "Call `kernel.write_to_adata()` first, or pass the kernel."
# Where `write_to_adata` puts what the kernel has under these names.
WRITTEN = {
    "confidence": ("obs", "velot_confidence"),
    "growth": ("obs", "velot_growth"),
    "raw_velocity": ("obsm", "velot_velocity_raw"),
    "velocity": ("obsm", "velot_velocity"),
    "velocity_uncertainty": ("obs", "velot_uncertainty"),
}


class HasAnnData(Protocol):
    """A kernel or an estimator."""

    @property
    def adata(self) -> AnnData:
        """Annotated data."""


# -------------------------------------------------------------------------------------------------------- what it is
def adata_of(data: AnnData | HasAnnData) -> AnnData:
    """Return the AnnData, or that of a kernel or an estimator."""
    adata = data if isinstance(data, AnnData) else getattr(data, "adata", None)
    if not isinstance(adata, AnnData):
        raise TypeError(f"Expected an `AnnData`, a kernel or an estimator, found `{type(data).__name__}`.")
    return adata


def suffix_of(data: AnnData | HasAnnData, backward: bool | None) -> str:
    """Return ``"bwd"`` or ``"fwd"``, CellRank's ending of keys; that of a kernel or an estimator where not given."""
    return "bwd" if (getattr(data, "backward", False) if backward is None else backward) else "fwd"


def kernel_of(data: Any, *needs: str) -> Any:
    """Return the kernel, which has the attributes that a plot needs; others, and combinations, lack them."""
    try:
        for name in needs:
            getattr(data, name)
    except AttributeError as error:
        if isinstance(error, RuntimeError):  # our kernel of the other kind of time, which says so
            raise
        ours = "OTTimeSeriesKernel" if OF_TIME_POINTS & set(needs) else "OTVelocityKernel"
        raise TypeError(f"Expected the `{ours}` itself, found `{type(data).__name__}`.") from None
    return data


def saved_or_kernel(data: Any, key: str) -> Any:
    """Return the kernel, or the record of the one that was written to an AnnData, with all the checks of reading it."""
    if isinstance(data, AnnData):
        check_known("adata.uns['velot']", key, data.uns.get("velot", {}), WRITE_OR_PASS)
        return SavedKernel.read(data, key)
    adata_of(data)
    return kernel_of(data, "windows")


# -------------------------------------------------------------------------------------------------------- what it has
def windows_of(kernel: Any) -> Windows:
    """Return the windows of a kernel, or say how to compute them."""
    found: Windows = _computed(kernel.windows, "windows", "compute_windows")
    return found


def transport_of(kernel: Any) -> TransportVelocity:
    """Return the transport velocity of a kernel, or say how to compute it."""
    found: TransportVelocity = _computed(kernel.transport, "velocity", "compute_velocity")
    return found


def field_of(data: Any) -> VelocityField:
    """Return a field itself, or that of a kernel, or say how to compute it."""
    if isinstance(data, VelocityField):
        return data
    found: VelocityField = _computed(kernel_of(data, "field").field, "field", "fit_field")
    return found


def history_of(data: Any, key: str) -> tuple[Mapping[str, Any], int]:
    """Return the losses of the training of a field by name, and its best step."""
    if not isinstance(data, AnnData):
        field = field_of(data)
        return field.history, field.best_step
    try:
        written = data.uns["velot"][key]["field"]
    except KeyError as error:
        raise KeyError(
            f"Expected a field in `adata.uns['velot'][{key!r}]`: call `kernel.write_to_adata()` first."
        ) from error
    return written["history"], int(written["best_step"])


def estimate_of(data: Any, name: str) -> FloatArray:
    """Return an estimate of the kernel, by a name of ``WRITTEN``, or what was written of it to an AnnData."""
    if not isinstance(data, AnnData):
        return np.asarray(getattr(kernel_of(data, name), name), dtype=np.float64)
    slot, key = WRITTEN[name]
    step = "`kernel.compute_uncertainty()` and then " if name == "velocity_uncertainty" else ""
    available = data.obs.columns if slot == "obs" else data.obsm.keys()
    check_known(f"adata.{slot}", key, available, f"Call {step}{WRITE_FIRST.removeprefix('Call ')}")
    return np.asarray(getattr(data, slot)[key], dtype=np.float64)


def cells_of(data: Any) -> CellStates | None:
    """Return the cells as our kernel has read them; ``None`` of an AnnData or another kernel."""
    return getattr(data, "cells", None)


def time_of(data: Any) -> FloatArray:
    """Return the time of the cells of a kernel, shape ``[n_cells]``; an AnnData may have several."""
    cells = cells_of(data)
    if cells is None:
        raise TypeError(f"Expected a kernel, which knows the time of the cells, found `{type(data).__name__}`.")
    return np.asarray(cells.time, dtype=np.float64)


def transitions_of(data: Any, key: str | None) -> Any:
    """Return the transition matrix of any kernel, or the one that was written to an AnnData."""
    if isinstance(data, AnnData):
        return data.obsp[_matrix_key(data, key)]
    return _computed(data.transition_matrix, "transition matrix", "compute_transition_matrix")


def weights_of(data: Any, key: str | None) -> sp.csr_matrix | None:
    """Return the graph whose weights the transitions of our kernel have, alone or combined; ``None`` without one."""
    if isinstance(data, AnnData):
        stored = data.uns.get(f"{_matrix_key(data, key)}_params", {})
        params, init = stored.get("params", {}), stored.get("init", {})
        ours = "time_kind" in init and params.get("weighted", True)
        return data.obsp[init["conn_key"]] if ours else None
    for kernel in getattr(data, "kernels", ()):
        if cells_of(kernel) is not None and kernel.params.get("weighted", True):
            return sp.csr_matrix(kernel.connectivities)
    return None


def graph_of(data: Any, key: str | None) -> tuple[FloatArray, sp.csr_matrix, bool]:
    """Return the positions in the basis of a kernel, the graph of neighbours, and whether it goes backward."""
    if not isinstance(data, AnnData):
        return data.cells.x, data.connectivities, data.backward
    params = f"{_matrix_key(data, key)}_params"
    check_known("adata.uns", params, data.uns.keys(), WRITE_FIRST)
    init = data.uns[params]["init"]
    return read_basis(data, init["basis"]), sp.csr_matrix(data.obsp[init["conn_key"]]), bool(init["backward"])


def _matrix_key(adata: AnnData, key: str | None) -> str:
    key = key or f"T_{suffix_of(adata, None)}"
    check_known("adata.obsp", key, adata.obsp.keys(), WRITE_OR_PASS)
    return key


def _computed(value: Any, what: str, method: str) -> Any:
    if value is None:
        raise RuntimeError(f"Compute the {what} first, as `.{method}()`.")
    return value
