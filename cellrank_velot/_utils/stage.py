"""The base of every result of a stage: a frozen dataclass whose fields are arrays or plain Python values."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from cellrank_velot._utils.shown import as_line, as_table

__all__ = ["TINY", "Stage", "Stored", "frozen", "stored"]


# The smallest number that is above zero and has all its digits.
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Stored:
    """What a field of a stage must be in a file, beside its type.

    Attributes
    ----------
    shape
        Sizes, by number or by name; one name stands for one number in all stages of a kernel.
    low, high
        Range, the ends included; the name of a size stands for the numbers below it.
    gaps
        Whether NaN and infinity are values, too.
    stage
        The stage that the field holds, where its type does not say it.
    """

    shape: tuple[int | str, ...] = ()
    low: float = -np.inf
    high: float | str = np.inf
    gaps: bool = False
    stage: type | None = None


def stored(*shape: int | str, **bounds: Any) -> dict[str, Stored]:
    """Return the metadata of a field: ``x: NDArray[np.float64] = field(metadata=stored("n_cells", low=0))``."""
    return {"stored": Stored(shape, **bounds)}


class Stage:
    """Mixin of frozen dataclasses of arrays, which are read-only and stay so through :mod:`pickle` and h5ad.

    As nothing in a stage can change, a deep copy is the stage itself: copies of a kernel share it.
    """

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):  # or the dataclass gets one that prints every array
            cls.__repr__ = Stage.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return as_line(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return as_table(type(self).__name__, self._facts())

    def _facts(self) -> dict[str, Any]:
        """Return what it is of, in a few words or numbers: sizes that have a name, and plain values."""
        facts: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                names = field.metadata["stored"].shape if "stored" in field.metadata else ()
                sizes = {name: size for name, size in zip(names, value.shape, strict=False) if isinstance(name, str)}
                facts |= sizes or {field.name: list(value.shape)}
            elif isinstance(value, bool | int | float | str):
                facts[field.name] = value
        return facts

    def __post_init__(self) -> None:
        """Copy every array that somebody could still write to, and lock it."""
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                object.__setattr__(self, field.name, _locked(value))
            elif isinstance(value, dict):
                locked = {k: _locked(v) if isinstance(v, np.ndarray) else v for k, v in value.items()}
                object.__setattr__(self, field.name, MappingProxyType(locked))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.to_dict())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; :meth:`from_dict` is the inverse."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: dict(v) if isinstance(v, MappingProxyType) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build the stage from its fields by name.

        Parameters
        ----------
        values
            What :meth:`to_dict` returned. A field with a default may be missing: a file holds no ``None``.

        Raises
        ------
        KeyError
            If a field is missing or unknown.
        """
        names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        needed = {field.name for field in fields(cls) if field.default is field.default_factory is MISSING}  # type: ignore[arg-type]
        if not needed <= set(values) <= names:
            raise KeyError(f"Expected the fields {sorted(names)} of `{cls.__name__}`, found {sorted(values)}.")
        return cls(**values)


def frozen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Lock an array that nobody else holds: a stage then takes it without a copy."""
    array.flags.writeable = False
    return array


def _rebuild(cls: type[Stage], values: dict[str, Any]) -> Stage:
    return cls.from_dict(values)


def _locked(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array read-only: a copy where its owner could still write to it."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and not owner.flags.writeable:
        owner = owner.base
    if owner is not None:
        array = array.copy(order="C")
        array.flags.writeable = False
    return array
