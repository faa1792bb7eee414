"""Methods of the kernel that are done whole or not at all: Ctrl-C and errors leave all as it was before the call.

Depends on the device, for what it says when it is full. Knows AnnData.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from anndata import AnnData

from cellrank_velot._utils.device import is_full

__all__ = ["all_or_nothing"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Where methods of the kernel write to.
SLOTS = ("obsm", "obsp", "uns")


def all_or_nothing(*, writes: bool = False) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Let a method of the kernel leave it as it was when it fails or is interrupted, also half-way through its steps.

    Parameters
    ----------
    writes
        Whether the method writes to :attr:`adata`, which is then restored, too. Others leave it alone: several kernels
        may share one.
    """

    def decorate(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        known = signature(method).parameters

        @wraps(method)
        def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            kernel: Any = args[0]
            kernel._refuse_options(method.__name__, [name for name in kwargs if name not in known])
            attributes = _copied(vars(kernel))
            written = _Written(kernel.adata) if writes else None
            try:
                return method(*args, **kwargs)
            except BaseException as error:
                if written is not None:
                    written.restore()
                vars(kernel).update(attributes)
                for name in vars(kernel).keys() - attributes.keys():
                    del vars(kernel)[name]
                if is_full(error) and not isinstance(error, MemoryError):
                    raise MemoryError(
                        f"The device has no memory left for `{method.__name__}`: set `device='cpu'`, free memory of "
                        "the device, or take fewer cells at a time, with experimental time by a smaller `batch_size` "
                        "of `compute_windows`."
                    ) from error
                raise

        return guarded

    return decorate


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a kernel; dictionaries are copied, for all else in it is replaced and never changed."""
    return {name: dict(value) if type(value) is dict else value for name, value in attributes.items()}


class _Written:
    """What an AnnData holds where the kernel may write."""

    def __init__(self, adata: AnnData) -> None:
        self.adata, self.was_view = adata, adata.is_view
        self.columns = {name: adata.obs[name] for name in adata.obs.columns}
        self.slots = {slot: dict(getattr(adata, slot)) for slot in SLOTS}

    def restore(self) -> None:
        """Put it back."""
        if self.was_view and self.adata.is_view:  # nothing was written: that would have made it a copy
            return
        obs = self.adata.obs
        for name in [name for name in obs.columns if name not in self.columns]:
            del obs[name]
        for place, (name, column) in enumerate(self.columns.items()):
            if name in obs.columns:
                obs[name] = column
            else:
                obs.insert(place, name, column)
        for slot, before in self.slots.items():
            now = getattr(self.adata, slot)
            for name in [name for name in now if name not in before]:
                del now[name]
            for name, value in before.items():
                if name not in now or now[name] is not value:
                    now[name] = value
