"""Where the heavy stages run. Depends on torch only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["resolve_device", "single_thread"]


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
def single_thread(device: torch.device) -> Iterator[None]:
    """Let torch use one thread on the CPU: for many small operations, handing out work costs more than the work.

    It also makes results independent of the number of cores.
    """
    n_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
