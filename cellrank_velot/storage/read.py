"""What a file holds, compared with the fields of a stage before one is made of it.

A file may be damaged, or made by someone else. What it holds is never called: only arrays, numbers and names pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.stage import Stored
from cellrank_velot.field.network import n_clocks_of, n_outputs_of

__all__ = ["check_plain", "checked", "damaged", "plain"]

KINDS = {"f": "numbers with a point", "i": "whole numbers", "n": "numbers", "b": "booleans", "s": "names"}
# What an array of each kind may hold in a file, and a single value: there, a whole number stands for any.
IN_ARRAYS = {"f": "f", "i": "iu", "n": "fiu", "b": "b"}
IN_VALUES = {**IN_ARRAYS, "f": "fiu"}


@dataclass(frozen=True)
class Field:
    """What a field of a stage must be: a stage, a dictionary, an array or a single value."""

    kind: str
    stored: Stored
    dtype: Any = None
    is_array: bool = False
    is_dict: bool = False
    stage: type | None = None
    optional: bool = False


@cache
def fields_of(stage: Any) -> dict[str, Field]:
    """Return what the fields of a stage must be, by their types and metadata."""
    hints = get_type_hints(stage)
    return {
        one.name: _field(
            hints[one.name],
            one.metadata.get("stored", Stored()),
            optional=one.default is not MISSING or one.default_factory is not MISSING,
        )
        for one in fields(stage)
    }


def _field(hint: Any, stored: Stored, *, optional: bool) -> Field:
    if stored.stage is not None:
        return Field("", stored, stage=stored.stage, optional=optional)
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    is_dict = isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping)
    hint = get_args(hint)[1] if is_dict else hint
    # `NDArray[T]` stands for `ndarray[..., dtype[T]]`; from numpy 2.5 on it is an alias that is kept as it is.
    is_alias = get_origin(hint) is NDArray
    is_array = is_alias or get_origin(hint) is np.ndarray
    dtype = get_args(hint)[0] if is_alias else get_args(get_args(hint)[1])[0] if is_array else hint
    kinds = {float: "f", int: "i", bool: "b", str: "s", Any: "n"}
    kind = kinds[dtype] if dtype in kinds else np.dtype(dtype).kind
    return Field({"U": "s"}.get(kind, kind), stored, dtype, is_array, is_dict, optional=optional)


def checked(entry: str, values: Any, stage: type, sizes: dict[str, int]) -> dict[str, Any]:
    """Return the fields of a stage as the stage takes them; sizes that are found are added to ``sizes``.

    Raises
    ------
    ValueError
        If something else lies in ``entry``, such as ``adata.uns['velot']['T_fwd']['field']``, naming it.
    """
    if not isinstance(values, Mapping):
        damaged(entry, f"to be a dictionary, found `{type(values).__name__}`")
    expected = fields_of(stage)
    needed = {name for name, field in expected.items() if not field.optional}
    if not needed <= set(values) <= set(expected):
        damaged(entry, f"with the fields {sorted(needed)}, found {sorted(map(str, values))}")
    found = {
        name: _read(f"{entry}[{name!r}]", values[name], field, sizes)
        for name, field in expected.items()
        if name in values
    }
    if "weights" in found:
        _check_weights(f"{entry}['weights']", found)
    for name, cells in (("before", "target"), ("after", "source")):
        # Only the cells of the first, or last, time point have none.
        mean: Any = found.get(name)
        if mean is not None and not np.isfinite(mean[found[cells]]).all():
            damaged(f"{entry}[{name!r}]", f"to be finite in the cells of `{cells}`, found NaN or infinite values")
    if "n_times" in sizes and sizes.get("n_intervals", sizes["n_times"] - 1) != sizes["n_times"] - 1:
        damaged(f"{entry}['scale']", f"of `{sizes['n_times'] - 1}` intervals, found `{sizes['n_intervals']}`")
    return found


def _read(entry: str, value: Any, field: Field, sizes: dict[str, int]) -> Any:
    if field.stage is not None:
        return checked(entry, value, field.stage, sizes)
    if not field.is_dict:
        return _value(entry, value, field, sizes)
    if not isinstance(value, Mapping):
        damaged(entry, f"to be a dictionary, found `{type(value).__name__}`")
    return {str(name): _value(f"{entry}[{str(name)!r}]", item, field, sizes) for name, item in value.items()}


def damaged(entry: str, expected: str) -> NoReturn:
    """Say that an entry is not as it was written: what it should be, and what was found.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(
        f"Expected `{entry}` {expected}: the entry is damaged, or was changed. Compute it again, or read a copy of the "
        "file."
    )


def plain(value: Any) -> Any:
    """Return numpy scalars as Python's own, also inside dictionaries: files give the former, users read the latter."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def check_plain(entry: str, value: Any) -> None:
    """Refuse what is neither a plain value nor a row of numbers.

    Raises
    ------
    ValueError
        If it is not.
    """
    value = plain(value)
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "bif" and value.ndim == 1
    if value is not None and not numbers and not isinstance(value, str | bool | int | float):
        damaged(entry, f"to be a number, a name or an array of numbers, found `{type(value).__name__}`")


def _value(entry: str, value: Any, field: Field, sizes: dict[str, int]) -> Any:
    """Return one field, as an array or a plain value of its kind."""
    found = np.asarray(value, dtype=object) if field.is_array and field.kind == "s" else plain(value)
    if field.is_array != isinstance(found, np.ndarray):
        damaged(entry, f"to be {'an array' if field.is_array else 'one value'}, found `{type(value).__name__}`")
    array = np.asarray(found, dtype=object) if isinstance(found, str) else np.asarray(found)
    if not _is_kind(array, field):
        damaged(entry, f"to be {KINDS[field.kind]}, found `{array.dtype if field.is_array else type(found).__name__}`")
    if field.stored.shape:
        _check_shape(entry, array.shape, field.stored.shape, sizes)
    if field.kind in "fin":
        _check_range(entry, array, field, sizes)
    array = array.astype(array.dtype if field.kind == "n" else field.dtype, order="C")
    return array if field.is_array else array.item()


def _is_kind(array: np.ndarray[Any, Any], field: Field) -> bool:
    if field.kind == "s":
        return array.dtype == object and all(isinstance(value, str) for value in array.ravel())
    return array.dtype.kind in (IN_ARRAYS if field.is_array else IN_VALUES)[field.kind]


def _check_shape(entry: str, found: tuple[int, ...], shape: tuple[int | str, ...], sizes: dict[str, int]) -> None:
    wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in shape]
    if len(found) != len(shape) or any(isinstance(w, int) and w != f for w, f in zip(wanted, found, strict=True)):
        damaged(entry, f"of shape `[{', '.join(map(str, wanted))}]`, found `{list(found)}`")
    sizes.update({w: f for w, f in zip(wanted, found, strict=True) if isinstance(w, str)})


def _check_range(entry: str, array: np.ndarray[Any, Any], field: Field, sizes: dict[str, int]) -> None:
    low, high, largest = field.stored.low, field.stored.high, np.iinfo(np.int64).max
    finite = np.isfinite(array)
    if not field.stored.gaps and not finite.all():
        damaged(entry, f"to be finite, found `{array[~finite][0] if array.ndim else array}`")
    highest: Any = sizes.get(high, largest) - 1 if isinstance(high, str) else high
    highest = min(highest, largest) if field.kind == "i" else highest
    known = array[finite]
    outside = known[(known < low) | (known > highest)]
    if outside.size:
        damaged(entry, f"from `{low:g}` to `{highest:g}`, found `{outside[0]}`")


def _check_weights(entry: str, field: dict[str, Any]) -> None:
    """Check that the weights are those of layers that follow one another, from positions to velocities."""
    weights, n_dims = field["weights"], int(field["centre"].size)
    n_layers = max(len(weights) // 2, 1)
    names = {f"{2 * layer}.{part}" for layer in range(n_layers) for part in ("weight", "bias")}
    if set(weights) != names:
        damaged(entry, f"with the layers {sorted(names)}, found {sorted(weights)}")
    times = field.get("times", np.zeros(1))
    shifts = field.get("growth_shift", np.zeros(0)).size
    if shifts not in (0, times.size - 1):
        damaged(
            f"{entry}['growth_shift']", f"of `{times.size - 1}` values, one between two time points, found `{shifts}`"
        )
    size = n_dims + field["use_time"] * n_clocks_of(times)
    for layer in range(n_layers):
        weight, bias = (weights[f"{2 * layer}.{part}"] for part in ("weight", "bias"))
        if weight.ndim != 2 or weight.shape[1] != size or bias.shape != weight.shape[:1]:
            damaged(
                f"{entry}['{2 * layer}.weight']",
                f"of shape `[n, {size}]` with `n` biases, found `{list(weight.shape)}` with `{list(bias.shape)}`",
            )
        size = weight.shape[0]
    n_outputs = n_outputs_of(n_dims, times) if field.get("diffusion", 0.0) > 0 else n_dims
    if size != n_outputs:
        damaged(f"{entry}['{2 * n_layers - 2}.weight']", f"with `{n_outputs}` rows, found `{size}`")
