"""Where the heavy stages run: devices, their memory, and threads on the CPU."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from cellrank_velot._utils.lazy import torch

__all__ = ["as_tensor", "float_on", "in_parts", "is_full", "resolve_device", "single_thread", "with_halves"]

logger = logging.getLogger("cellrank_velot")

Result = TypeVar("Result")
# What torch and the libraries below it say where there is no memory left; not all of it has a type of its own.
FULL = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")


def resolve_device(device: str) -> torch.device:
    """Return the torch device of a name. ``"auto"`` is a GPU where torch sees one."""
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
    """Counts the callers inside :func:`single_thread`: the first sets BLAS to one thread, the last sets it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._undo = ExitStack()

    def enter(self, held: list[bool]) -> None:
        """Count a caller, and note it in ``held``: Ctrl-C may come before."""
        with self._lock:
            self._inside += 1
            held.append(True)
            if self._inside == 1:
                self._undo.enter_context(_blas().limit(limits=1, user_api="blas"))

    def leave(self) -> None:
        """Count a caller less."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo.close()


_single_thread = _SingleThread()


@contextmanager
def single_thread(device: torch.device | None = None) -> Iterator[None]:
    """Let torch and BLAS use one thread on the CPU: small operations cost less than it takes to share them out.

    It also makes results independent of the number of cores.
    """
    if device is not None and device.type != "cpu":
        yield
        return
    # Torch counts for each thread of Python, so each sets its number back by itself. The last to leave an interrupted
    # run is a worker, which could not set back the number of the caller.
    before = torch.get_num_threads()
    held: list[bool] = []
    try:
        _single_thread.enter(held)
        if before != 1:
            torch.set_num_threads(1)
        yield
    finally:
        if before != 1:
            torch.set_num_threads(before)
        if held:
            _single_thread.leave()


def float_on(device: torch.device) -> torch.dtype:
    """Return the type of floating numbers on a device: double precision, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor that is only read: on the CPU the array itself."""
    if np.issubdtype(array.dtype, np.floating):
        wanted = float_on(device)
        array = array.astype(str(wanted).removeprefix("torch."), copy=False)
    return torch.from_numpy(array).to(device)


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a device has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in FULL)


def in_parts(work: Callable[[Any], Result], parts: Iterable[Any], step: str) -> Iterator[tuple[Any, Result]]:
    """Yield each part, in order, and what the function returned for it, or its halves where the device is full.

    A part is a range or an array. The function is called again for the halves: what it did before it failed must not
    count. A part of one element without memory for it is a MemoryError, which says what to set.
    """
    waiting, bound = deque(parts), None
    while waiting:
        part = waiting.popleft()
        if bound is not None and len(part) > bound:
            waiting.extendleft([part[bound:], part[:bound]])
            continue
        done, result = _tried(work, part, len(part), step)
        if done:
            yield part, result
            continue
        if bound is None:
            logger.warning("The device has no memory left for %d at a time of %s: taking fewer", len(part), step)
        bound = -(-len(part) // 2)
        waiting.appendleft(part)


def with_halves(work: Callable[[int], Result], size: int, step: str) -> tuple[Result, int]:
    """Call a function of a size, and of half of it as often as the device is full; return the result and the size."""
    while True:
        done, result = _tried(work, size, size, step)
        if done:
            return result, size
        logger.warning("The device has no memory left for batches of %d in %s: taking %d", size, step, size // 2)
        size //= 2


def _tried(work: Callable[[Any], Result], argument: Any, size: int, step: str) -> tuple[bool, Any]:
    """Return whether there was memory, and the result."""
    try:
        return True, work(argument)
    except RuntimeError as error:
        if not is_full(error):
            raise
        if size < 2:
            raise MemoryError(
                f"The device has no memory left for {step}, even in the smallest parts: set `device='cpu'`, or free "
                "memory of the device."
            ) from error
    # Here, where the error no longer holds what was on the device.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, None


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
