"""What a file must hold for a stage to be made of it: kinds, shapes and ranges, by tables.

A file may be damaged, or made by someone else. What it holds is compared with the tables and never called: only arrays,
numbers and names pass. Depends on numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

__all__ = ["STAGE_FIELDS", "TRAJECTORY_FIELDS", "checked", "damaged", "plain"]

KINDS = {"f": "numbers with a point", "i": "whole numbers", "n": "numbers", "b": "booleans", "s": "names"}
DTYPES: dict[str, Any] = {"f": np.float64, "i": np.int64, "n": None, "b": np.bool_, "s": np.str_}


@dataclass(frozen=True)
class Field:
    """What a field of a stage must be.

    Attributes
    ----------
    kind
        A key of ``KINDS``.
    shape
        Sizes, by number or by name; one name stands for one number in all stages of a kernel. ``None`` for a single
        value.
    low, high
        Range, the ends included; a name stands for the size of that name, which is not.
    gaps
        Whether NaN and infinity are values, too.
    optional
        Whether it may be missing.
    dtype
        Type of the array; that of its kind where not given.
    """

    kind: str
    shape: tuple[int | str, ...] | None = None
    low: float = -np.inf
    high: float | str = np.inf
    gaps: bool = False
    optional: bool = False
    dtype: Any = None


Table = Mapping[str, Any]
TINY = float(np.finfo(np.float64).tiny)
POSITIVE = Field("f", low=TINY)
PER_CELL = ("n_cells",)
VECTORS = ("n_cells", "n_dims")

VELOCITY_FIELD: Table = {
    "weights": {"*": Field("f", (), dtype=np.float32)},
    "centre": Field("f", ("n_dims",)),
    "x_scale": POSITIVE,
    "time_centre": Field("f"),
    "time_scale": POSITIVE,
    "velocity_scale": POSITIVE,
    "use_time": Field("b"),
    "history": {"*": Field("n", ("n_evaluations",), gaps=True)},
    "best_step": Field("i", low=0),
    "diffusion": Field("f", low=0, optional=True),
    "growth_scale": Field("f", low=0, optional=True),
    "score_scale": Field("f", low=0, optional=True),
}
STAGE_FIELDS: dict[str, Table] = {
    "windows": {
        "indices": Field("i", ("n_entries",), 0, "n_cells"),
        "offsets": Field("i", ("n_offsets",), 0),
        "pairs": Field("i", ("n_pairs", 2), 0, "n_offsets"),
        "dt": Field("f", ("n_pairs",)),
        "cluster": Field("i", PER_CELL, 0),
        "n_skipped": Field("i", low=0),
        "time_lag": Field("f", gaps=True, optional=True),
    },
    "transport": {
        "velocity": Field("f", VECTORS, gaps=True),
        "relaxation": Field("f", VECTORS),
        "spread": Field("f", VECTORS, 0, gaps=True),
        "n_effective": Field("f", PER_CELL, 0),
        "disagreement": Field("f", PER_CELL, 0, gaps=True),
        "support": Field("f", PER_CELL, 0, 1 + 1e-9),
        "n_forward": Field("i", PER_CELL, 0),
        "n_backward": Field("i", PER_CELL, 0),
        "converged": Field("b", ("n_pairs",)),
        "marginal_error": Field("f", ("n_pairs",), gaps=True),
        "growth": Field("f", PER_CELL, optional=True),
    },
    "couplings": {
        "source": Field("i", ("n_coupled",), 0, "n_cells"),
        "target": Field("i", ("n_coupled",), 0, "n_cells"),
        "offsets": Field("i", ("n_times",), 0),
        "start": Field("f", ("n_coupled",), TINY),
        "end": Field("f", ("n_coupled",), TINY),
        "times": Field("f", ("n_times",)),
        "mass": Field("f", ("n_times",), TINY),
        "before": Field("f", VECTORS, gaps=True),
        "after": Field("f", VECTORS, gaps=True),
        "scale": Field("f", ("n_intervals",), TINY),
        "epsilon": POSITIVE,
        "tau": Field("f", (2,), TINY, 1),
    },
    "field": VELOCITY_FIELD,
    "perturbed": {
        "field": VELOCITY_FIELD,
        "x": Field("f", VECTORS),
        "amounts": Field("f", ("n_cells", "n_genes")),
        "directions": Field("f", ("n_genes", "n_dims")),
        "push": Field("f", optional=True),
        "n_neighbors": Field("i", low=1, high="n_cells", optional=True),
    },
    "uncertainty": {
        "spread": Field("f", PER_CELL, 0),
        "std": Field("f", VECTORS, 0),
        "n_members": Field("i", low=2),
    },
}
PER_PATH = ("n_trajectories",)
TRAJECTORY_FIELDS: Table = {
    "ids": Field("i", PER_PATH, 0),
    "x": Field("f", ("n_points", "n_dims")),
    "time": Field("f", ("n_points",)),
    "offsets": Field("i", ("n_offsets",), 0),
    "status": Field("i", PER_PATH, 0, 4, dtype=np.int8),
    "direction": Field("i", PER_PATH, -1, 1, dtype=np.int8),
    "start_ix": Field("i", PER_PATH, 0, "n_cells"),
    "clusters": Field("s", ("n_clusters",)),
    "start_cluster": Field("i", PER_PATH, -1, "n_clusters"),
    "end_cluster": Field("i", PER_PATH, -1, "n_clusters"),
    "n_tried": Field("i", low=0),
    "targets": Field("i", ("n_targets",), 0, "n_clusters", optional=True),
    "basis": Field("s", optional=True),
}


def checked(entry: str, values: Any, table: Table, sizes: dict[str, int]) -> dict[str, Any]:
    """Return the fields of a stage as the stage takes them.

    Parameters
    ----------
    entry
        Where they lie, such as ``adata.uns['velot']['T_fwd']['field']``.
    values
        What lies there.
    table
        What there must be.
    sizes
        Sizes known so far, by name; those that are found are added.

    Raises
    ------
    ValueError
        If something else is there, naming it.
    """
    if not isinstance(values, Mapping):
        damaged(entry, f"to be a dictionary, found `{type(values).__name__}`")
    any_name = table.get("*")
    if any_name is not None:
        return {str(name): _value(f"{entry}[{str(name)!r}]", value, any_name, sizes) for name, value in values.items()}
    needed = {name for name, field in table.items() if isinstance(field, Mapping) or not field.optional}
    if not needed <= set(values) <= set(table):
        damaged(entry, f"with the fields {sorted(needed)}, found {sorted(map(str, values))}")
    found = {}
    for name in (name for name in table if name in values):
        inner, field = f"{entry}[{name!r}]", table[name]
        check = checked if isinstance(field, Mapping) else _value
        found[name] = check(inner, values[name], field, sizes)
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


def damaged(entry: str, expected: str) -> NoReturn:
    """Say that an entry is not as it was written.

    Parameters
    ----------
    entry
        Where it is.
    expected
        What it should be, and what was found.

    Raises
    ------
    ValueError
        Always.

    Examples
    --------
    >>> from cellrank_velot.storage.pack import damaged
    >>> damaged("adata.uns['velot']", "to be a dictionary, found `list`")
    Traceback (most recent call last):
        ...
    ValueError: Expected `adata.uns['velot']` to be a dictionary, found `list`: the entry is damaged, ...
    """
    raise ValueError(
        f"Expected `{entry}` {expected}: the entry is damaged, or was changed. Compute it again, or read a copy of the "
        "file."
    )


def plain(value: Any) -> Any:
    """Return numpy scalars as Python's own, also inside dictionaries: files give the former, users read the latter.

    Parameters
    ----------
    value
        Anything.

    Examples
    --------
    >>> from cellrank_velot.storage.pack import plain
    >>> plain({"n_steps": np.int64(300), "name": np.array("umap")})
    {'n_steps': 300, 'name': 'umap'}
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return value.item()
    return value


def _value(entry: str, value: Any, field: Field, sizes: dict[str, int]) -> Any:
    """Return one field, as an array or a plain value of its kind."""
    many = field.shape is not None
    found = np.asarray(value, dtype=object) if many and field.kind == "s" else plain(value)
    if many != isinstance(found, np.ndarray):
        damaged(entry, f"to be {'an array' if many else 'one value'}, found `{type(value).__name__}`")
    array = np.asarray(found) if not isinstance(found, str) else np.asarray(found, dtype=object)
    if not _is_kind(array, field.kind, many):
        damaged(entry, f"to be {KINDS[field.kind]}, found `{array.dtype if many else type(found).__name__}`")
    if field.shape:
        _check_shape(entry, array.shape, field.shape, sizes)
    if field.kind in "fin":
        _check_range(entry, array, field, sizes)
    array = array.astype(field.dtype or DTYPES[field.kind] or array.dtype, order="C")
    return array if many else array.item()


def _is_kind(array: np.ndarray[Any, Any], kind: str, many: bool) -> bool:
    if kind == "s":
        return array.dtype == object and all(isinstance(value, str) for value in array.ravel())
    # A whole number stands for one with a point, but an array of the other kind was not written by us.
    return array.dtype.kind in {"f": "f" if many else "fiu", "i": "iu", "n": "fiu", "b": "b"}[kind]


def _check_shape(entry: str, found: tuple[int, ...], shape: tuple[int | str, ...], sizes: dict[str, int]) -> None:
    wanted = [sizes.get(size, size) if isinstance(size, str) else size for size in shape]
    if len(found) != len(shape) or any(isinstance(w, int) and w != f for w, f in zip(wanted, found, strict=True)):
        damaged(entry, f"of shape `[{', '.join(map(str, wanted))}]`, found `{list(found)}`")
    sizes.update({w: f for w, f in zip(wanted, found, strict=True) if isinstance(w, str)})


def _check_range(entry: str, array: np.ndarray[Any, Any], field: Field, sizes: dict[str, int]) -> None:
    finite = np.isfinite(array)
    if not field.gaps and not finite.all():
        damaged(entry, f"to be finite, found `{array[~finite][0] if array.ndim else array}`")
    high: Any = field.high
    high = sizes.get(high, np.iinfo(np.int64).max) - 1 if isinstance(high, str) else high
    high = min(high, np.iinfo(np.int64).max) if field.kind == "i" else high
    known = array[finite]
    outside = known[(known < field.low) | (known > high)]
    if outside.size:
        damaged(entry, f"from `{field.low:g}` to `{high:g}`, found `{outside[0]}`")


def _check_weights(entry: str, field: dict[str, Any]) -> None:
    """Check that the weights are those of layers that follow one another, from positions to velocities."""
    weights, n_dims = field["weights"], int(field["centre"].size)
    n_layers = max(len(weights) // 2, 1)
    names = {f"{2 * layer}.{part}" for layer in range(n_layers) for part in ("weight", "bias")}
    if set(weights) != names:
        damaged(entry, f"with the layers {sorted(names)}, found {sorted(weights)}")
    size = n_dims + field["use_time"]
    for layer in range(n_layers):
        weight, bias = (weights[f"{2 * layer}.{part}"] for part in ("weight", "bias"))
        if weight.ndim != 2 or weight.shape[1] != size or bias.shape != weight.shape[:1]:
            damaged(
                f"{entry}['{2 * layer}.weight']",
                f"of shape `[n, {size}]` with `n` biases, found `{list(weight.shape)}` with `{list(bias.shape)}`",
            )
        size = weight.shape[0]
    n_outputs = 2 * n_dims + 1 if field.get("diffusion", 0.0) > 0 else n_dims
    if size != n_outputs:
        damaged(f"{entry}['{2 * n_layers - 2}.weight']", f"with `{n_outputs}` rows, found `{size}`")
