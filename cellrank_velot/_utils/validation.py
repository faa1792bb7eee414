"""Checks of arguments, shared by all rooms. Each failure says what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "check_choice",
    "check_flag",
    "check_integer",
    "check_known",
    "check_number",
    "check_scale",
    "check_seed",
    "first_names",
]

# Of positions and times: their squares, and sums of squares, must be numbers with all their digits.
LARGEST, SMALLEST = 1e100, 1e-100


def check_choice(name: str, value: Any, choices: Any) -> str:
    """Return ``value`` if it is one of ``choices``, a sequence of names or a ``Literal``."""
    valid: Sequence[str] = get_args(choices) or tuple(choices)
    if not isinstance(value, str) or value not in valid:
        raise ValueError(f"Expected `{name}` to be one of {list(valid)}, found `{value!r}`.")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return ``value`` as a bool if it is one: a text such as "False" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"Expected `{name}` to be `True` or `False`, found `{value!r}`.")
    return bool(value)


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a float if it is a finite number in ``[low, high]``, where an end may be open."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"Expected `{name}` to be a number, found `{type(value).__name__}`.")
    number = float(value)
    inside = (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    if not (np.isfinite(number) and inside):
        left = "(" if open_low or low == -np.inf else "["
        right = ")" if open_high or high == np.inf else "]"
        interval = f"{left}{low:g}, {high:g}{right}"
        raise ValueError(f"Expected `{name}` to be in {interval}, found `{value!r}`.")
    return number


def check_integer(name: str, value: Any, *, low: int = 0) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``low``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"Expected `{name}` to be an integer, found `{type(value).__name__}`.")
    if int(value) < low:
        raise ValueError(f"Expected `{name}` to be at least `{low}`, found `{value}`.")
    return int(value)


def check_seed(value: Any) -> int:
    """Return ``random_state`` as an int if every generator takes it as a seed: from 0 to 2**32 - 1."""
    seed = check_integer("random_state", value)
    if seed >= 2**32:
        raise ValueError(f"Expected `random_state` to be at most `{2**32 - 1}`, found `{value}`.")
    return seed


def check_known(slot: str, key: Any, available: Iterable[Any], hint: str = "") -> None:
    """Refuse a key that a slot of AnnData does not have, and name those that it has."""
    available = list(available)
    if key not in available:
        raise KeyError(
            f"Expected `{slot}[{key!r}]`, found the keys {sorted(map(str, available))}.{' ' if hint else ''}{hint}"
        )


def check_scale(slot: str, values: NDArray[np.float64]) -> None:
    """Refuse numbers whose squares are too large for the computer, or that hardly differ."""
    size = float(np.abs(values).max(initial=0))
    extent = float(np.ptp(values, axis=0).max()) if values.size and size <= LARGEST else 0.0
    if size > LARGEST or 0 < extent < SMALLEST:
        found = f"values up to `{size:g}`" if size > LARGEST else f"an extent of `{extent:g}`"
        raise ValueError(
            f"Expected `{slot}` to have values up to {LARGEST:g} and an extent of at least {SMALLEST:g}, found "
            f"{found}. Rescale it: the computer cannot hold the squares of such numbers."
        )


def first_names(names: Any, mask: Any, limit: int = 3) -> str:
    """Return the first names where ``mask`` holds, as a text such as ``'a', 'b', ...``."""
    chosen = [repr(str(name)) for name in np.asarray(names)[np.flatnonzero(mask)[: limit + 1]]]
    return ", ".join(chosen[:limit] + (["..."] if len(chosen) > limit else []))
