"""Stages to AnnData and back, such that every value survives h5ad bit for bit and reading executes nothing.

One of the few modules that know AnnData. Depends on the stages. What is stored under ``uns`` is arrays, numbers,
strings and dictionaries of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from anndata import AnnData

from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_known
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.field import VelocityField
from cellrank_velot.field.uncertainty import Uncertainty
from cellrank_velot.perturbation import PerturbedField
from cellrank_velot.storage.read import check_plain, checked, damaged, plain
from cellrank_velot.timeseries.couplings import SnapshotCouplings
from cellrank_velot.transport.velocity import TransportVelocity
from cellrank_velot.transport.windows import Windows

__all__ = [
    "FORMAT_VERSION",
    "check_entry",
    "check_plain",
    "damaged",
    "fingerprint",
    "pack",
    "package_version",
    "plain",
    "read_trajectories",
    "same_digest",
    "sealed",
    "unpack",
    "write_trajectories",
]

#: Version of what is stored; what was stored by another one is refused.
FORMAT_VERSION = 1
STAGES: dict[str, type[Stage]] = {
    "windows": Windows,
    "transport": TransportVelocity,
    "couplings": SnapshotCouplings,
    "field": VelocityField,
    "uncertainty": Uncertainty,
}


def pack(stages: dict[str, Stage | None]) -> dict[str, Any]:
    """Return stages as nested dictionaries of arrays and numbers, which h5ad can hold; missing ones are left out."""
    packed: dict[str, Any] = {"format_version": FORMAT_VERSION, "version": package_version()}
    for name, stage in stages.items():
        if stage is not None:
            packed[name] = {key: _writeable(value) for key, value in stage.to_dict().items() if value is not None}
    return packed


def sealed(packed: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with its checksum, which tells later whether anything in it has changed."""
    return {**packed, "checksum": fingerprint(packed)}


def unpack(packed: Any, where: str = "packed", sizes: dict[str, int] | None = None) -> dict[str, Stage]:
    """Rebuild what :func:`pack` returned, with the sizes ``n_cells`` and ``n_dims`` where they are known.

    Raises
    ------
    ValueError
        If the entry is of an unknown format or damaged, naming what is.
    """
    check_entry(packed, where)
    known = {**(sizes or {})}
    stages: dict[str, Stage] = {}
    for name, kind in STAGES.items():
        if name not in packed:
            continue
        perturbed = name == "field" and isinstance(packed[name], Mapping) and "amounts" in packed[name]
        entry, found = f"{where}[{name!r}]", PerturbedField if perturbed else kind
        values = checked(entry, packed[name], found, known)
        try:
            stages[name] = found.from_dict(values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"`{entry}` is damaged: {error} Compute it again, or read a copy of the file.") from error
    _check_seal(packed, where)
    return stages


def check_entry(packed: Any, where: str) -> None:
    """Refuse what is no entry of a format that can be read: say which version wrote it and what to do."""
    if not isinstance(packed, Mapping):
        damaged(where, f"to be a dictionary, found `{type(packed).__name__}`")
    found, writer = plain(packed.get("format_version")), plain(packed.get("version"))
    if isinstance(found, int) and not isinstance(found, bool) and found == FORMAT_VERSION:
        return
    by = f" ({writer})" if isinstance(writer, str) else ""
    newer = isinstance(found, int) and found > FORMAT_VERSION
    what = "Update cellrank_velot, or compute it again" if newer else "Compute it again"
    raise ValueError(
        f"Expected an entry of format `{FORMAT_VERSION}`, found `{found}`: it was written by another version of "
        f"cellrank_velot{by} than this one ({package_version()}), in `{where}`. {what}."
    )


def write_trajectories(adata: AnnData, key: str, trajectories: Trajectories) -> None:
    """Write trajectories to ``adata.uns[key]``, as arrays that h5ad can hold.

    Parameters
    ----------
    adata
        Annotated data of the cells that they start from.
    key
        Key in ``adata.uns``; what is there is replaced.
    trajectories
        What to write.

    Examples
    --------
    >>> from cellrank_velot import read_trajectories
    >>> from cellrank_velot.storage.pack import write_trajectories
    >>> paths = vk.compute_trajectories(n_trajectories=3, n_steps=10, key_added=None)
    >>> write_trajectories(adata, "short", paths)
    >>> len(read_trajectories(adata, "short"))
    3
    """
    packed = {name: _writeable(value) for name, value in trajectories.to_dict().items()}
    head = {"format_version": FORMAT_VERSION, "version": package_version(), "cells": _names_of(adata)}
    adata.uns[key] = {**head, **packed}


def read_trajectories(adata: AnnData, key: str) -> Trajectories:
    """Return trajectories that were written to ``adata.uns[key]``.

    Parameters
    ----------
    adata
        Annotated data of the same cells.
    key
        Key in ``adata.uns``, that is ``key_added`` of :meth:`~cellrank_velot.OTVelocityKernel.compute_trajectories` or
        :meth:`~cellrank_velot.OTVelocityKernel.simulate_flow`.

    Raises
    ------
    KeyError
        If there are none.
    ValueError
        If they are of an unknown format, damaged or of other cells.

    Examples
    --------
    >>> from cellrank_velot import read_trajectories
    >>> paths = vk.compute_trajectories(
    ...     start_cluster="Progenitor", n_trajectories=5, n_steps=50
    ... )
    >>> len(read_trajectories(adata, "velot_trajectories"))
    5
    """
    check_known("adata.uns", key, adata.uns.keys(), "Compute them with `kernel.compute_trajectories()` or the like.")
    where = f"adata.uns[{key!r}]"
    if not isinstance(adata.uns[key], Mapping):
        raise ValueError(f"Expected trajectories in `{where}`, found `{type(adata.uns[key]).__name__}`.")
    packed = dict(adata.uns[key])
    check_entry(packed, where)
    if not same_digest(packed.pop("cells", None), _names_of(adata)):
        raise ValueError(f"Expected trajectories of these `{adata.n_obs}` cells in `{where}`, found others.")
    for name in ("format_version", "version"):
        packed.pop(name, None)
    try:
        return Trajectories.from_dict(checked(where, packed, Trajectories, {"n_cells": adata.n_obs}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The trajectories in `{where}` are damaged: {error}") from error


def same_digest(stored: Any, expected: str) -> bool:
    """Return whether a digest is the expected one; what a file holds in its place may be anything."""
    return isinstance(stored, str) and stored == expected


def package_version() -> str:
    """Return the version of this package, which entries are marked with."""
    try:
        return version("cellrank_velot")
    except PackageNotFoundError:  # a source tree that was not installed
        return "of a source tree"


def _check_seal(packed: Mapping[str, Any], where: str) -> None:
    """Refuse an entry that has changed since it was written; one without a checksum was written before there were any.

    Raises
    ------
    ValueError
        If it has.
    """
    rest = {name: value for name, value in packed.items() if name != "checksum"}
    if "checksum" in packed and not same_digest(packed["checksum"], fingerprint(rest)):
        damaged(where, "as it was written, found another checksum")


def _names_of(adata: AnnData) -> str:
    """Return a digest of the cells' names, in their order."""
    return fingerprint({"names": "\n".join(map(str, adata.obs_names))})


def fingerprint(packed: dict[str, Any]) -> str:
    """Return a digest of arrays, numbers and texts, also in dictionaries, whose order does not matter."""
    digest = hashlib.sha256()

    def update(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                digest.update(str(key).encode())
                update(value[key])
        elif isinstance(value, np.ndarray):
            digest.update(str((value.dtype.str, value.shape)).encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(repr(plain(value)).encode())

    update(packed)
    return digest.hexdigest()[:16]


def _writeable(value: Any) -> Any:
    """Return a copy that is the receiver's own: what lies in AnnData may be changed there."""
    if isinstance(value, dict):
        return {key: _writeable(item) for key, item in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value
