"""The time of the cells, and the cell where the process begins, read from an AnnData."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_known, check_scale, first_names
from cellrank_velot.cells.time_texts import numbers_of

__all__ = ["TIME_KEYS", "TimeKind", "find_time_key", "read_root", "read_roots", "read_time"]

logger = logging.getLogger("cellrank_velot")

TimeKind = Literal["pseudotime", "experimental"]
# Columns that a pseudotime, or the time of a series, is looked for in, in this order.
TIME_KEYS = (
    "pseudotime",
    "consensus_pseudotime",
    "geodesic_pseudotime",
    "dpt_pseudotime",
    "palantir_pseudotime",
    "latent_time",
    "velocity_pseudotime",
    "ct_pseudotime",
)
# A root that was named for a time is near its start: a smoothed time is not zero there.
NEAR_START = 0.05
SERIES_KEYS = ("day", "time", "hours", "age", "experimental_time")


def find_time_key(
    adata: AnnData, time_key: str | None = None, time_kind: TimeKind = "pseudotime", hint: str = ""
) -> str:
    """Return ``time_key``, or the first usual column of ``adata.obs`` for this kind of time.

    ``hint`` says what to do where there is none.
    """
    if time_key is not None:
        check_known("adata.obs", time_key, adata.obs.columns)
        return time_key
    series = check_choice("time_kind", time_kind, TimeKind) == "experimental"
    usual = SERIES_KEYS if series else TIME_KEYS
    found = [key for key in usual if key in adata.obs]
    if not found:
        otherwise = ", or compute a pseudotime, e.g. with `cellrank_velot.pp.prepare(adata, root_cluster=...)`"
        hint = hint or f"Pass `time_key`{'' if series else otherwise}."
        raise KeyError(
            f"Expected one of {list(usual)} in `adata.obs`, found the keys {sorted(map(str, adata.obs.columns))}. "
            f"{hint}"
        )
    logger.info("Using time from `adata.obs[%r]`", found[0])
    return found[0]


def read_time(adata: AnnData, time_key: str) -> NDArray[np.float64]:
    """Return the time of each cell in its own units, finite and not constant, shape ``[n_cells]``."""
    check_known("adata.obs", time_key, adata.obs.columns)
    time = _numbers(adata.obs[time_key], time_key)
    if time.size == 0:
        raise ValueError("Expected an AnnData with cells, found none.")
    bad = ~np.isfinite(time)
    if bad.any():
        raise ValueError(
            f"Expected `adata.obs[{time_key!r}]` to be finite, found NaN or infinite values in `{bad.sum()}` of "
            f"`{time.size}` cells: {first_names(adata.obs_names, bad)}. {_remedy(adata, time_key, time)}"
        )
    if (time == time[0]).all():
        raise ValueError(f"Expected `adata.obs[{time_key!r}]` to vary, found the constant `{time[0]:g}`.")
    check_scale(f"adata.obs[{time_key!r}]", time)
    return time


def _numbers(column: pd.Series, time_key: str) -> NDArray[np.float64]:
    """Return a column as numbers; of texts, dates and durations those that they are sure to mean."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if not pd.api.types.is_bool_dtype(column.dtype) and column.dtype.kind != "c":
        if column.dtype.kind not in "mM":
            try:
                return np.asarray(pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan))
            except (TypeError, ValueError):  # texts
                pass
        read = numbers_of(column)
        if read is not None:
            _say_what_was_read(column, *read, time_key)
            return read[0]
    values = pd.unique(column.dropna())[:3].tolist()
    raise TypeError(
        f"Expected `adata.obs[{time_key!r}]` to be numeric, found `{column.dtype}` such as "
        f"{', '.join(map(repr, values)) or 'none'}. Say which number each is: `adata.obs['time'] = "
        f"adata.obs[{time_key!r}].map({{{', '.join(f'{value!r}: {k}' for k, value in enumerate(values))}, ...}})"
        ".astype(float)`."
    )


def _say_what_was_read(column: pd.Series, numbers: NDArray[np.float64], unit: str, time_key: str) -> None:
    latest = int(np.nanargmax(numbers))
    spelt = f"{numbers[latest]:g} {unit}".strip()
    logger.info("Reading `adata.obs[%r]` as numbers: %r is %s", time_key, str(column.iloc[latest]), spelt)


def _remedy(adata: AnnData, time_key: str, time: NDArray[np.float64]) -> str:
    """Say what to do about cells without a time, by what is known to leave them without one."""
    if np.isinf(time).any():
        return (
            "A pseudotime is infinite for cells that the neighbour graph does not connect with the root: use more "
            f"neighbours, or leave these cells out, `adata = adata[np.isfinite(adata.obs[{time_key!r}])].copy()`."
        )
    if np.isnan(time).all():
        return "No cell has a time: compute it anew."
    # Slingshot and Monocle number the times of the lineages.
    stem = time_key.rstrip("0123456789")
    others = [key for key in map(str, adata.obs.columns) if key.rstrip("0123456789") == stem]
    lineages = others if len(others) > 1 else [time_key, "..."]
    return (
        "The time of one lineage (Slingshot, Palantir, Monocle) is NaN for the cells of others. Leave them out, "
        f"`adata = adata[adata.obs[{time_key!r}].notna()].copy()`, or take the mean over the lineages, "
        f"`adata.obs['pseudotime'] = adata.obs[{lineages}].mean(axis=1)`."
    )


def read_root(adata: AnnData, time_key: str) -> int | None:
    """Return the position of the cell that the time begins at; ``None`` where it is not known for sure.

    It is the one that ``pp.prepare`` has named for this time, else the position ``adata.uns["iroot"]``. Scanpy leaves
    that number as it is where cells are taken away or put in another order, so it counts only if the cell has the
    smallest time.
    """
    time = read_time(adata, time_key)
    named = read_roots(adata, time_key)
    if named is not None and time[named[0]] <= time.min() + NEAR_START * np.ptp(time):
        return int(named[0])
    root = adata.uns.get("iroot")
    if root is None:
        return None
    is_position = np.ndim(root) == 0 and np.issubdtype(np.asarray(root).dtype, np.integer) and 0 <= root < adata.n_obs
    if is_position and time[int(root)] == time.min():
        return int(root)
    found = f"is {root!r}, no position among {adata.n_obs} cells" if not is_position else "is not the earliest cell"
    logger.warning("`adata.uns['iroot']` %s: it is left out", found)
    return None


def read_roots(adata: AnnData, time_key: str) -> NDArray[np.int64] | None:
    """Return the positions of the root cells that ``pp.prepare`` has written for this time; ``None`` without them."""
    stored = adata.uns.get("pseudotime")
    if not isinstance(stored, Mapping) or stored.get("key") != time_key or "roots" not in stored:
        return None
    positions = adata.obs_names.get_indexer(pd.Index(np.atleast_1d(stored["roots"]).astype(str)))
    return positions.astype(np.int64) if positions.size and (positions >= 0).all() else None
