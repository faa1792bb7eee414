"""How loops are compiled."""

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
    """Compile a function into each compiled function that calls it.

    Compiled by itself it would exist twice, alone and within its caller, with sums in two orders. The process that
    compiles would use the one and a process that reads the cache on disk the other, and last digits would differ.
    """
    return numba.njit(forceinline=True, **OPTIONS)(function)


def read_only(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return views of arrays that cannot be written to.

    For numba, an array that can be written to is another type, for which the function would be compiled again.
    """
    views = tuple(np.ascontiguousarray(array).view(np.ndarray) for array in arrays)
    for view in views:
        view.flags.writeable = False
    return views
