"""Large libraries that are imported where they are first used: torch alone takes longer than CellRank.

``from cellrank_velot._utils.lazy import torch`` gives a module that looks like torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import networkx as nx
    import ot
    import pyamg
    import torch
    import torchdiffeq

__all__ = ["nx", "ot", "pyamg", "torch", "torchdiffeq"]


class _Lazy(ModuleType):
    """A module that imports another when it is first asked for something."""

    def __init__(self, name: str, ready: Callable[[ModuleType], None] | None = None) -> None:
        super().__init__(name)
        self.__dict__["_ready"] = ready

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__.get("_module")
        if known is None:
            if name.startswith("__"):  # what pickle, inspect and the like ask of any module
                raise AttributeError(name)
            known = import_module(self.__name__)
            if self.__dict__["_ready"] is not None:
                self.__dict__["_ready"](known)
            self.__dict__["_module"] = known
        return getattr(known, name)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)


def _quiet(loaded: ModuleType) -> None:
    """Torch warns, once in a process, of an array that is read-only: here, where nobody sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.from_numpy(np.frombuffer(b"read-only"[:8], dtype=np.uint8))


if not TYPE_CHECKING:
    nx, ot, pyamg = (_Lazy(name) for name in ("networkx", "ot", "pyamg"))
    torch, torchdiffeq = _Lazy("torch", _quiet), _Lazy("torchdiffeq")
