"""How loops are compiled."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import event
from numpy.typing import NDArray

__all__ = ["compiled", "compiled_in_order", "inlined", "read_only"]

logger = logging.getLogger("cellrank_velot")

TELL_AFTER = 2.0  # seconds of compiling
# Sums may be reordered, so that they use all lanes of the processor; infinities and NaN keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, which runs without Python's lock; kept on disk where that can be."""
    return _compiled(function, OPTIONS)


def compiled_in_order(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function whose sums stay in their order.

    Faster where a sum reads from all over an array: lanes would have to be filled with numbers one by one.
    """
    return _compiled(function, OPTIONS | {"fastmath": FAST - {"reassoc"}})


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: neither the package's nor the user's
        return numba.njit(**options)(function)


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


class _Told(event.Listener):
    """Says once in a process that loops are being compiled, where that takes seconds."""

    def __init__(self) -> None:
        self.seconds, self.since = 0.0, 0.0

    def on_start(self, event: event.Event) -> None:
        if self.seconds > TELL_AFTER and _is_ours(event):
            logger.info(
                "Compiling loops for this machine, once: later runs take them from disk, where that can be written to"
            )
            self.seconds = -math.inf
        self.since = time.perf_counter()

    def on_end(self, event: event.Event) -> None:
        if _is_ours(event):
            self.seconds += time.perf_counter() - self.since


def _is_ours(event: event.Event) -> bool:
    return str(event.data["dispatcher"].py_func.__module__).startswith("cellrank_velot")


event.register("numba:compile", _Told())
