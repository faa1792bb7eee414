"""How a result shows itself: in one line, and as a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

__all__ = ["as_line", "as_table", "extent"]


def as_line(name: str, facts: Mapping[str, Any]) -> str:
    """Return ``Name[a=1, b=2]``, as CellRank shows its kernels."""
    return f"{name}[{', '.join(f'{key}={_short(value)}' for key, value in facts.items())}]"


def as_table(title: str, facts: Mapping[str, Any], done: Mapping[str, bool] | None = None) -> str:
    """Return HTML with a row for each fact; those of ``done`` have a mark that says whether they are."""
    marks = {} if done is None else {key: "&#10003;" if value else "&middot;" for key, value in done.items()}
    style = "text-align: left; vertical-align: top"
    rows = "".join(
        f'<tr><td style="{style}">{marks.get(key, "")}</td><th style="{style}">{escape(key)}</th>'
        f'<td style="{style}">{escape(_short(value))}</td></tr>'
        for key, value in facts.items()
    )
    return f"<div><b>{escape(title)}</b><table>{rows}</table></div>"


def extent(values: Any) -> str:
    """Return the smallest and the largest of some numbers, which may be none."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not values.size:
        return "none"
    low, high = _short(values.min()), _short(values.max())
    return low if low == high else f"{low} to {high}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)
