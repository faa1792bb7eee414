"""Scores over a grid of parameters, as a heat map of the table that :func:`cellrank_velot.gridsearch` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.metrics.table import SCORES
from cellrank_velot.plotting._draw.colors import INK, VALUES
from cellrank_velot.plotting._draw.figure import FigureOptions, color_bar, drawing, draws

__all__ = ["gridsearch_heatmap"]

_LABELS = {
    "cross_boundary_direction": "Direction across borders",
    "cross_boundary_forward": "Cosine across borders",
    "cross_boundary_reversed": "Cosine across borders, reversed time",
    "cross_boundary_no_time": "Cosine across borders, without time",
    "inner_cluster_coherence": "Inner-cluster coherence",
    "step_forward": "Share of cells that step forward",
    "speed": "Median speed",
    "coverage": "Share of cells with an estimate",
    "converged": "Share of converged couplings",
    "cosine_to_truth": "Cosine to the known velocity",
    "cosine_to_truth_raw": "Cosine to the known velocity (transport)",
    "seconds": "Seconds",
}
_HATCHED: dict[str, Any] = {"facecolor": "#F3F4F6", "edgecolor": "#B4B8BE", "hatch": "////", "linewidth": 0}
_LONG = 8  # tick labels of more characters lie aslant


@dataclass(frozen=True)
class _Grid:
    """Mean score of each cell, and whether some of its combinations have none; shape ``[n_rows, n_columns]``."""

    mean: NDArray[np.float64]
    partial: NDArray[np.bool_]
    rows: list[str]
    columns: list[str]


@draws
def gridsearch_heatmap(
    results: pd.DataFrame,
    x: str,
    y: str | None = None,
    *,
    score: str = "cross_boundary_direction",
    cmap: str | Colormap = VALUES,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw a score over one or two parameters of a grid.

    The value is the mean over the other parameters of the grid, random seeds among them. Combinations without a score
    are left out of the mean, which then has a star; where none has a score, the cell is hatched. The default title
    says this, and what the mean is over.

    Parameters
    ----------
    results
        What :func:`cellrank_velot.gridsearch` returned, or some of its rows.
    x
        Parameter along the horizontal axis. Numbers are sorted.
    y
        Parameter along the vertical axis; one row of cells where not given.
    score
        Column of the score, or ``"seconds"``.
    cmap
        Colours of the score.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If ``x`` or ``y`` is no parameter of the grid, or ``score`` no score.
    ValueError
        If both axes are of one parameter, or the table is empty or none of :func:`cellrank_velot.gridsearch`.

    Examples
    --------
    >>> from cellrank_velot import gridsearch
    >>> grid = {"epsilon": [0.02, 0.1], "lambda_smooth": [0.3, 1.0]}
    >>> results = gridsearch(adata, grid, fixed_params={"n_steps": 20})
    >>> ax = pl.gridsearch_heatmap(
    ...     results, "epsilon", "lambda_smooth", score="step_forward", show=False
    ... )
    """
    others = _other_parameters(results, x, y, score)
    grid = _mean_over_others(results, x, y, score)
    n_rows, n_columns = grid.mean.shape
    size = (1.9 + 0.8 * max(n_columns, 3), 1.3 + 0.55 * max(n_rows, 2))
    with drawing(figure, panel_size=size, title=_title(others, grid)) as canvas:
        panel = canvas.ax
        colors = panel.pcolormesh(grid.mean, cmap=cmap, norm=_norm(grid.mean), edgecolors="white", linewidth=1.5)
        _write_values(panel, grid, colors)
        panel.set_xticks(np.arange(n_columns) + 0.5, grid.columns)
        panel.set_yticks(np.arange(n_rows) + 0.5 if y is not None else [], grid.rows if y is not None else [])
        if max(map(len, grid.columns)) > _LONG:
            panel.set_xticks(panel.get_xticks(), grid.columns, rotation=30, ha="right", rotation_mode="anchor")
        panel.set(xlabel=x, ylabel=y or "")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        # A bar beside few rows would be too short for its label.
        place: dict[str, Any] = {"aspect": 16} if n_rows > 4 else {"location": "bottom", "aspect": 30}
        color_bar(colors, panel, _LABELS.get(score, score), pad=0.03, shrink=1.0, **place)
    return canvas.result


def _other_parameters(results: pd.DataFrame, x: str, y: str | None, score: str) -> list[str]:
    """Check the columns and return the parameters that vary and are on no axis."""
    names = list(results.columns)
    first = min((names.index(name) for name in SCORES if name in names), default=0)
    if first == 0 or len(results) == 0:
        raise ValueError("Expected the table that `cellrank_velot.gridsearch` returns, found no parameters or no rows.")
    for axis in (x,) if y is None else (x, y):
        check_known("results", axis, names[:first])
    if x == y:
        raise ValueError(f"Expected two parameters, found `{x!r}` as `x` and as `y`.")
    check_known("results", score, [name for name in names[first:] if name != "error"])
    return [name for name in names[:first] if name not in (x, y) and len(_levels(results[name])[1]) > 1]


def _mean_over_others(results: pd.DataFrame, x: str, y: str | None, score: str) -> _Grid:
    column, columns = _levels(results[x])
    row, rows = (np.zeros(len(results), dtype=np.int64), [""]) if y is None else _levels(results[y])
    values = results[score].to_numpy(dtype=np.float64)
    cell, shape = row * len(columns) + column, (len(rows), len(columns))
    scored = np.isfinite(values)
    count = np.bincount(cell[scored], minlength=shape[0] * shape[1])
    total = np.bincount(cell[scored], values[scored], minlength=shape[0] * shape[1])
    mean = np.divide(total, count, out=np.full(count.size, np.nan), where=count > 0)
    partial = (count > 0) & (count < np.bincount(cell, minlength=count.size))
    return _Grid(mean.reshape(shape), partial.reshape(shape), rows, columns)


def _levels(values: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Return the place of each value on an axis, and what is written there: numbers sorted, others as they come."""
    # Told apart by their text: lists and functions can be neither compared nor looked up.
    texts = [repr(value) for value in values]
    found: dict[str, Any] = {}
    for text, value in zip(texts, values, strict=True):
        found.setdefault(text, value)
    order = sorted(found, key=lambda text: (not _is_number(found[text]), found[text] if _is_number(found[text]) else 0))
    place = {text: at for at, text in enumerate(order)}
    return np.array([place[text] for text in texts], dtype=np.int64), [_text(found[text]) for text in order]


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and bool(np.isfinite(value))


def _text(value: Any) -> str:
    """Return a value as it stands beside an axis."""
    if _is_number(value):
        return f"{value:g}"
    return str(getattr(value, "__name__", value))


def _norm(mean: NDArray[np.float64]) -> Normalize:
    """Return the ends of the colours; equal scores lie in the middle."""
    known = mean[np.isfinite(mean)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def _write_values(panel: Axes, grid: _Grid, colors: ScalarMappable) -> None:
    """Write the score into each cell, and hatch those without one."""
    known = grid.mean[np.isfinite(grid.mean)]
    spread = float(np.ptp(known)) if known.size else 0.0
    # Two digits of what differs, so that cells of different colour have different numbers.
    decimals = int(np.clip(1 - np.floor(np.log10(spread)), 0, 4)) if spread > 0 else 2
    for (row, column), value in np.ndenumerate(grid.mean):
        if not np.isfinite(value):
            panel.add_patch(Rectangle((column + 0.01, row + 0.02), 0.98, 0.96, **_HATCHED))
            continue
        text = f"{value:.{decimals}f}{'*' if grid.partial[row, column] else ''}"
        color = _ink(colors.to_rgba(np.array(value)))
        panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=9)


def _ink(background: Any) -> str:
    """Return the colour, white or nearly black, that is read on another."""
    red, green, blue = to_rgb(background)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else "white"


def _title(others: list[str], grid: _Grid) -> str:
    """Return what the mean is over, and below it what the marks mean, where there are any."""
    marks = {"* without those that have no score": grid.partial.any(), "hatched: no score": np.isnan(grid.mean).any()}
    second = ", ".join(mark for mark, used in marks.items() if used)
    return "\n".join(line for line in (f"Mean over {', '.join(others)}" if others else "", second) if line)
