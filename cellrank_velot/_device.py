"""Where the heavy stages run. Depends on torch and threadpoolctl only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def single_thread(device: torch.device | None = None) -> Iterator[None]:
    """Let torch and BLAS use one thread on the CPU: for many small operations, handing out work costs more than it.

    It also makes results independent of the number of cores.
    """
    n_threads = torch.get_num_threads() if device is None or device.type == "cpu" else 1
    if n_threads == 1:  # or a thread is inside already, and will set it back
        with _blas().limit(limits=1, user_api="blas"):
            yield
        return
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(n_threads)


def float_on(device: torch.device) -> torch.dtype:
    """Return the floating numbers that a device computes with: double precision, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_tensor(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor that is only read: on the CPU the array itself."""
    if np.issubdtype(array.dtype, np.floating):
        wanted = float_on(device)
        array = array.astype(str(wanted).removeprefix("torch."), copy=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
