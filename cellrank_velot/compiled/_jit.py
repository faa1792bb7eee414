"""How loops are compiled. Depends on numba and numpy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["compiled", "read_only"]

# Sums may be reordered, so that they use all lanes of the processor; infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "nsz"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, which runs without Python's lock; kept on disk where that can be."""
    options: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: neither the package's nor the user's
        return numba.njit(**options)(function)


def read_only(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return views that are only read: an array that can be written to would be a type of its own, compiled again."""
    views = tuple(np.ascontiguousarray(array).view(np.ndarray) for array in arrays)
    for view in views:
        view.flags.writeable = False
    return views
