"""Where the heavy stages run. Depends on torch and threadpoolctl only."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

__all__ = ["as_tensor", "float_on", "resolve_device", "single_thread"]


def resolve_device(device: str) -> torch.device:
    """Return the torch device of a name; ``"auto"`` is a GPU where torch sees one.

    Raises
    ------
    TypeError
        If it is not a name.
    ValueError
        If torch does not know the name, or the device is not there.
    """
    if not isinstance(device, str):
        raise TypeError(f"Expected `device` to be a name such as 'auto' or 'cpu', found `{type(device).__name__}`.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"Expected `device` to be 'auto', 'cpu', 'cuda', ..., found `{device!r}`: {error}") from error
    return torch.device(device)


class _SingleThread:
    """How many are inside :func:`single_thread`: the first sets the number of threads, the last sets it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()

    def enter(self) -> None:
        """Come in."""
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._undo.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
                self._undo.enter_context(_blas().limit(limits=1, user_api="blas"))

    def leave(self) -> None:
        """Go out."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_single_thread = _SingleThread()


@contextmanager
def single_thread(device: torch.device | None = None) -> Iterator[None]:
    """Let torch and BLAS use one thread on the CPU: for many small operations, handing out work costs more than it.

    It also makes results independent of the number of cores.
    """
    if device is not None and device.type != "cpu":
        yield
        return
    _single_thread.enter()
    try:
        yield
    finally:
        _single_thread.leave()


def float_on(device: torch.device) -> torch.dtype:
    """Return the floating numbers that a device computes with: double precision, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor that is only read: on the CPU the array itself."""
    if np.issubdtype(array.dtype, np.floating):
        wanted = float_on(device)
        array = array.astype(str(wanted).removeprefix("torch."), copy=False)
    return torch.from_numpy(array).to(device)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


# Torch warns, once in a process, of an array that is read-only: here, where nobody sees it.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"read-only"[:8], dtype=np.uint8))
