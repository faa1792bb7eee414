"""Stages to AnnData and back, such that every value survives h5ad bit for bit and reading executes nothing.

One of the few modules that know AnnData. Depends on the stages. What is stored under ``uns`` is arrays, numbers,
strings and dictionaries of them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from cellrank_velot._stage import Stage
from cellrank_velot.field import VelocityField
from cellrank_velot.uncertainty import Uncertainty
from cellrank_velot.velocity import TransportVelocity
from cellrank_velot.windows import Windows

__all__ = ["FORMAT_VERSION", "fingerprint", "pack", "plain", "unpack"]

FORMAT_VERSION = 1
STAGES: dict[str, type[Stage]] = {
    "windows": Windows,
    "transport": TransportVelocity,
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
    version = packed.get("format_version")
    if version is None or int(version) != FORMAT_VERSION:
        raise ValueError(
            f"Expected an entry of format `{FORMAT_VERSION}`, found `{version}`: it was written by another version "
            "of cellrank_velot. Compute the kernel again."
        )
    stages = {}
    for name, stage in STAGES.items():
        if name in packed:
            try:
                stages[name] = stage.from_dict({key: plain(value) for key, value in packed[name].items()})
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"The stored stage {name!r} is damaged: {error}") from error
    return stages


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
