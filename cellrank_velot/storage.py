"""Stages to AnnData and back, such that every value survives h5ad bit for bit and reading executes nothing.

One of the few modules that know AnnData. Depends on the stages. What is stored under ``uns`` is arrays, numbers,
strings and dictionaries of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from cellrank_velot._stage import Stage
from cellrank_velot._validation import check_known
from cellrank_velot.couplings import SnapshotCouplings
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.field import VelocityField
from cellrank_velot.perturbation import PerturbedField
from cellrank_velot.uncertainty import Uncertainty
from cellrank_velot.velocity import TransportVelocity
from cellrank_velot.windows import Windows

__all__ = ["FORMAT_VERSION", "fingerprint", "pack", "plain", "read_trajectories", "unpack", "write_trajectories"]

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
    packed: dict[str, Any] = {"format_version": FORMAT_VERSION}
    for name, stage in stages.items():
        if stage is not None:
            packed[name] = {key: _writeable(value) for key, value in stage.to_dict().items() if value is not None}
    return packed


def unpack(packed: dict[str, Any]) -> dict[str, Stage]:
    """Rebuild what :func:`pack` returned.

    Raises
    ------
    ValueError
        If the entry is of an unknown format or damaged.
    """
    _check_version(packed)
    stages = {}
    for name, stage in STAGES.items():
        if name in packed:
            if name == "field" and "amounts" in packed[name]:
                stage = PerturbedField
            try:
                stages[name] = stage.from_dict({key: plain(value) for key, value in packed[name].items()})
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"The stored stage {name!r} is damaged: {error}") from error
    return stages


def write_trajectories(adata: AnnData, key: str, trajectories: Trajectories) -> None:
    """Write trajectories to ``adata.uns[key]``, as arrays that h5ad can hold."""
    packed = {name: _writeable(value) for name, value in trajectories.to_dict().items()}
    adata.uns[key] = {"format_version": FORMAT_VERSION, "cells": _names_of(adata), **packed}


def read_trajectories(adata: AnnData, key: str) -> Trajectories:
    """Return trajectories that were written to ``adata.uns[key]``.

    Raises
    ------
    KeyError
        If there are none.
    ValueError
        If they are of an unknown format, damaged or of other cells.
    """
    check_known("adata.uns", key, adata.uns.keys(), "Compute them with `kernel.compute_trajectories()` or the like.")
    if not isinstance(adata.uns[key], Mapping):
        raise ValueError(f"Expected trajectories in `adata.uns[{key!r}]`, found `{type(adata.uns[key]).__name__}`.")
    packed = dict(adata.uns[key])
    _check_version(packed)
    del packed["format_version"]
    if packed.pop("cells", None) != _names_of(adata):
        raise ValueError(f"Expected trajectories of these `{adata.n_obs}` cells in `adata.uns[{key!r}]`, found others.")
    try:
        return Trajectories.from_dict({name: plain(value) for name, value in packed.items()})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"The trajectories in `adata.uns[{key!r}]` are damaged: {error}") from error


def _names_of(adata: AnnData) -> str:
    """Return a digest of the cells' names, in their order."""
    return fingerprint({"names": "\n".join(map(str, adata.obs_names))})


def _check_version(packed: dict[str, Any]) -> None:
    version = packed.get("format_version")
    if version is None or int(version) != FORMAT_VERSION:
        raise ValueError(
            f"Expected an entry of format `{FORMAT_VERSION}`, found `{version}`: it was written by another version "
            "of cellrank_velot. Compute it again."
        )


def plain(value: Any) -> Any:
    """Return numpy scalars as Python's own, also inside dictionaries: files give the former, users read the latter."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value.item()
    return value


def fingerprint(packed: dict[str, Any]) -> str:
    """Return a digest of packed stages, to tell whether they belong to a transition matrix."""
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
