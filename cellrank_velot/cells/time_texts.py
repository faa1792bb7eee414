"""Times that are written as texts, dates or durations, such as "E8.5", "12h" or "day 3", read as numbers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["numbers_of"]

# One number, with letters before and behind it at most.
TEXT = re.compile(r"^\s*([a-z]*)[\s._-]*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z]*)\s*$", re.IGNORECASE)
# Letters that say that a number is a time, and its unit; some name the event that the time is counted from.
PREFIXES = {
    **dict.fromkeys(("d", "day", "days", "e", "ed", "p"), "days"),
    **dict.fromkeys(("h", "hr", "hour", "hours"), "hours"),
    **dict.fromkeys(("w", "wk", "week", "weeks", "gw", "pcw"), "weeks"),
    **dict.fromkeys(("month", "months"), "months"),
    **dict.fromkeys(("", "t", "time", "timepoint", "tp"), ""),
}
SUFFIXES = {
    "": "",
    **dict.fromkeys(("s", "sec", "second", "seconds"), "seconds"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "minutes"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours", "hpf", "hpi", "hpa"), "hours"),
    **dict.fromkeys(("d", "day", "days", "dpf", "dpi", "dpa", "dpc", "dpp"), "days"),
    **dict.fromkeys(("w", "wk", "wks", "week", "weeks", "pcw", "gw", "wpf"), "weeks"),
    **dict.fromkeys(("mo", "month", "months"), "months"),
    **dict.fromkeys(("y", "yr", "yrs", "year", "years"), "years"),
}
DAY = pd.Timedelta(days=1)


def numbers_of(column: pd.Series) -> tuple[NDArray[np.float64], str] | None:
    """Return the times as numbers, NaN where there is none, and their unit, empty where it is not known.

    ``None`` where it cannot be told what the numbers are: dates count in days from the first one. Texts have one number
    each and the same letters around it, which name a unit of time or are none. Letters in different texts may differ
    in how they are spelt, not in their unit.
    """
    if column.dtype.kind == "M":
        return _days(column - column.min()), "days since the first"
    if column.dtype.kind == "m":
        return _days(column), "days"
    names = column.dropna().unique()
    parts = {name: _parts(name) for name in names}
    if not parts or None in parts.values():
        return None
    values, kinds = {}, set()
    for name, (prefix, number, suffix) in parts.items():  # type: ignore[misc]
        values[name] = float(number)
        if prefix not in PREFIXES or suffix not in SUFFIXES:
            return None
        kinds.add((PREFIXES[prefix], SUFFIXES[suffix], _counted_from(prefix, suffix)))
    if len(kinds) != 1:
        return None
    before, behind, _ = kinds.pop()
    if before and behind and before != behind:
        return None
    return column.map(values).to_numpy(dtype=np.float64, na_value=np.nan), before or behind


def _parts(value: Any) -> tuple[str, str, str] | None:
    found = TEXT.match(value) if isinstance(value, str) else None
    return None if found is None else (found[1].lower(), found[2], found[3].lower())


def _counted_from(prefix: str, suffix: str) -> str:
    """Return the event that a time is counted from, where the letters say it: E and P differ by the birth."""
    event = {"e": "conception", "ed": "conception", "p": "birth"}.get(prefix, "")
    return event or (suffix if suffix[1:] in ("pf", "pi", "pa", "pc", "pp", "cw") else "")


def _days(column: pd.Series) -> NDArray[np.float64]:
    return (column / DAY).to_numpy(dtype=np.float64, na_value=np.nan)
