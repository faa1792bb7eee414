"""A kernel as it was written to an AnnData, read with all checks and without the kernel itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import (
    CellStates,
    check_graph,
    find_basis,
    find_time_key,
    read_cells,
    readable,
    warn_about_graph,
)
from cellrank_velot.field import FieldOptions, ProcessOptions, VelocityField
from cellrank_velot.field.uncertainty import Uncertainty, UncertaintyOptions
from cellrank_velot.storage.pack import check_entry, fingerprint, same_digest, unpack
from cellrank_velot.storage.read import check_plain, damaged, plain
from cellrank_velot.timeseries.couplings import SnapshotCouplings
from cellrank_velot.timeseries.options import PopulationOptions
from cellrank_velot.timeseries.snapshots import SnapshotOptions
from cellrank_velot.transport import TransportOptions, TransportVelocity, WindowOptions, Windows

__all__ = ["STEPS", "Entry", "SavedKernel", "cells_fingerprint", "read_entry"]

# Arguments of the constructor of a kernel.
ARGUMENTS = [
    "adata",
    "backward",
    "time_key",
    "basis",
    "cluster_key",
    "conn_key",
    "check_connectivity",
    "time_kind",
]
# Options of each step of a kernel, by its kind of time.
STEPS: dict[str, dict[str, type[Options]]] = {
    "pseudotime": {
        "windows": WindowOptions,
        "velocity": TransportOptions,
        "field": FieldOptions,
        "uncertainty": UncertaintyOptions,
    },
    "experimental": {"windows": SnapshotOptions, "velocity": PopulationOptions, "field": ProcessOptions},
}


@dataclass(frozen=True, eq=False)
class SavedKernel:
    """What a kernel had when it was written; a stage that was not computed is ``None``."""

    adata: AnnData
    init: dict[str, Any]
    params: dict[str, Any]
    options: dict[str, Options]
    cells: CellStates
    connectivities: sp.csr_matrix
    windows: Windows | None = None
    transport: TransportVelocity | None = None
    couplings: SnapshotCouplings | None = None
    field: VelocityField | None = None
    uncertainty: Uncertainty | None = None

    @classmethod
    def read(cls, adata: AnnData, key: str) -> Self:
        """Read the kernel whose transition matrix is ``adata.obsp[key]``."""
        entry = read_entry(adata, key)
        try:
            adata, cells, graph = _read_cells(adata, entry.init)
        except (KeyError, TypeError, ValueError) as error:
            raise entry.other_data(error) from error
        stages, options = entry.stages(adata.obsp[key], cells)
        return cls(adata, entry.init, entry.params, options, cells, graph, **stages)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Options of each step, by step."""
        return {step: options.to_dict() for step, options in self.options.items()}

    @property
    def backward(self) -> bool:
        """Direction of the process."""
        return bool(self.init.get("backward", False))

    @property
    def basis(self) -> str:
        """Key in ``adata.obsm`` of the positions."""
        return find_basis(self.adata, self.init.get("basis", "X_pca"))

    @property
    def cluster_key(self) -> str | None:
        """Key in ``adata.obs`` of the clusters that windows are made in, where one was given."""
        key = self.init.get("cluster_key")
        return None if key is None else str(key)


@dataclass(frozen=True, eq=False)
class Entry:
    """What was written under one key, checked as far as it can be without reading the cells."""

    key: str
    packed: Mapping[str, Any]
    init: dict[str, Any]
    params: dict[str, Any]

    @property
    def where(self) -> str:
        """Where it lies, for messages."""
        return f"adata.uns['velot'][{self.key!r}]"

    def other_data(self, error: Exception) -> Exception:
        """Return the error of a kernel that these data do not give, of the same type as its cause."""
        return type(error)(
            f"`adata.obsp[{self.key!r}]` and `adata.uns['{self.key}_params']['init']` do not give a kernel of these "
            f"data: {error.args[0] if error.args else error}"
        )

    def stages(self, matrix: sp.spmatrix, cells: CellStates) -> tuple[dict[str, Any], dict[str, Options]]:
        """Return stages and options by name, after the check that they belong to the matrix and to the cells."""
        where = self.where
        if not same_digest(self.packed.get("fingerprint"), cells_fingerprint(matrix, cells)):
            raise ValueError(
                f"Expected the matrix that was saved in `adata.obsp[{self.key!r}]`, and the basis and time of "
                f"`adata.uns['{self.key}_params']['init']` that it was computed from, by `{where}['fingerprint']`, "
                "found others, or cells in another order. Compute the kernel again."
            )
        stages = unpack(self.packed, where, {"n_cells": cells.n_cells, "n_dims": cells.n_dims})
        couplings: Any = stages.get("couplings")
        if couplings is not None and not np.array_equal(couplings.times, cells.time_points):
            expected = f"to be the time points `{cells.time_points}`, found `{couplings.times}`"
            damaged(f"{where}['couplings']['times']", expected)
        windows: Any = stages.get("windows")
        if couplings is not None and windows is not None:
            known = np.searchsorted(cells.time_points, cells.time)
            if not np.array_equal(windows.cluster, known):
                damaged(f"{where}['windows']['cluster']", "to be the number of each cell's time point, found others")
        stored = self.packed.get("settings", {})
        return stages, _read_options(stored, f"{where}['settings']", cells.time_kind)


def read_entry(adata: AnnData, key: str) -> Entry:
    """Return what was written under ``key``, or say what is missing or damaged."""
    check_known("adata.obsp", key, adata.obsp.keys())
    where, written = f"adata.uns['velot'][{key!r}]", adata.uns.get("velot", {})
    if not isinstance(written, Mapping) or written.get(key) is None:
        raise KeyError(f"Expected `{where}`, found none: it was not written by this kernel.")
    packed = written[key]
    check_entry(packed, where)
    n_cells = plain(packed.get("n_cells"))
    if not isinstance(n_cells, int) or n_cells != adata.n_obs:
        raise ValueError(
            f"Expected the `{n_cells}` cells that the kernel was saved with, found `{adata.n_obs}`, by "
            f"`{where}['n_cells']`."
        )
    return Entry(key, packed, *_read_params(adata, key))


def cells_fingerprint(matrix: sp.spmatrix, cells: CellStates) -> str:
    """Return a digest of a transition matrix and of the cells that it was computed from."""
    matrix = sp.csr_matrix(matrix)
    entries = {name: getattr(matrix, name).astype(np.int64) for name in ("indices", "indptr")}
    return fingerprint({"data": matrix.data, **entries, "x": cells.x, "time": cells.time})


def _read_params(adata: AnnData, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the kernel and of its transition matrix, as CellRank has saved them."""
    where = f"adata.uns['{key}_params']"
    check_known("adata.uns", f"{key}_params", adata.uns.keys())
    saved = adata.uns[f"{key}_params"]
    for name in ("init", "params"):
        if not isinstance(saved, Mapping) or not isinstance(saved.get(name), Mapping):
            damaged(f"{where}[{name!r}]", "to be a dictionary, found none")
        for entry, value in saved[name].items():
            check_plain(f"{where}[{name!r}][{entry!r}]", value)
    if not set(saved["init"]) <= set(ARGUMENTS):
        damaged(f"{where}['init']", f"with arguments of {ARGUMENTS}, found {sorted(map(str, saved['init']))}")
    matrix = sp.csr_matrix(adata.obsp[key])
    if matrix.dtype.kind != "f" or not (np.isfinite(matrix.data) & (matrix.data >= 0)).all():
        damaged(f"adata.obsp[{key!r}]", f"to be finite and not negative, found `{matrix.dtype}`")
    return plain(dict(saved["init"])), plain(dict(saved["params"]))


def _read_cells(adata: AnnData, init: dict[str, Any]) -> tuple[AnnData, CellStates, sp.csr_matrix]:
    """Return the AnnData, the cells and their graph, as a kernel with these arguments reads them."""
    backward, conn_key = init.get("backward", False), init.get("conn_key", "connectivities")
    if not isinstance(backward, bool):
        raise TypeError(f"Expected `backward` to be `bool`, found `{type(backward).__name__}`.")
    adata = readable(adata, conn_key)
    time_kind = init.get("time_kind", "pseudotime")
    time_key = find_time_key(adata, init.get("time_key"), time_kind)
    basis = find_basis(adata, init.get("basis", "X_pca"))
    check_graph(adata, conn_key)
    cells = read_cells(
        adata,
        time_key=time_key,
        basis=basis,
        cluster_key=init.get("cluster_key"),
        conn_key=conn_key,
        time_kind=time_kind,
    )
    graph = sp.csr_matrix(adata.obsp[conn_key]).astype(np.float64, copy=False)
    if not graph.has_canonical_format:  # an edge that is there twice would count twice
        graph = graph.copy()
        graph.sum_duplicates()
    warn_about_graph(graph, strict=init.get("check_connectivity", False))
    return adata, cells, graph


def _read_options(stored: Any, where: str, time_kind: str) -> dict[str, Options]:
    """Return the options of known steps and names, made of nothing but plain values and arrays."""
    steps = STEPS[time_kind]
    if not isinstance(stored, Mapping) or not set(stored) <= set(steps):
        found = sorted(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
        damaged(where, f"with steps of {sorted(steps)}, found `{found}`")
    return {step: _read_step(values, f"{where}[{step!r}]", steps[step]) for step, values in stored.items()}


def _read_step(values: Any, where: str, kind: type[Options]) -> Options:
    names = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping) or not set(values) <= set(names):
        found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
        damaged(where, f"with parameters of {names}, found `{found}`")
    for name, value in values.items():
        check_plain(f"{where}[{name!r}]", value)
    # A file holds no `None`: what is missing there was one.
    given = {
        name: tuple(value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in plain(dict(values)).items()
    }
    try:
        return kind(**(dict.fromkeys(names) | given))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{where}` is damaged: {error} Compute it again, or read a copy of the file.") from error
