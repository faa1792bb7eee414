"""How loops are compiled. Depends on numba and numpy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["compiled", "inlined", "read_only"]

# Sums may be reordered, so that they use all lanes of the processor; infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, which runs without Python's lock; kept on disk where that can be."""
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder to write to: neither the package's nor the user's
        return numba.njit(**OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function into each compiled one that calls it.

    As a function of its own it would be there twice, alone and beside its caller, with sums in orders of their own; the
    process that compiles takes the one, and those that read what it kept on disk the other: last places would differ.
    """
    return numba.njit(forceinline=True, **OPTIONS)(function)


def read_only(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return views that are only read: an array that can be written to would be a type of its own, compiled again."""
    views = tuple(np.ascontiguousarray(array).view(np.ndarray) for array in arrays)
    for view in views:
        view.flags.writeable = False
    return views
