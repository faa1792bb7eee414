"""The clusters of a time series, and what flows from each to the next time point, in proportion to mass."""

from __future__ import annotations

from typing import Any, Unpack, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_number
from cellrank_velot.cells import find_cluster_key, read_clusters
from cellrank_velot.plotting._draw.colors import INK, palette_of
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, kernel_of

__all__ = ["sankey"]

FloatArray = NDArray[np.float64]

# Width of the bars of a time point, as a share of the way to the next one; gap between bars, as a share of the height.
BAR, GAP = 0.1, 0.015
# Bars lower than this share of the height have no name beside them.
LEAST_NAMED = 0.025


@draws
def sankey(
    data: AnnData | HasAnnData,
    cluster_key: str | None = None,
    *,
    min_share: float = 0.005,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw which clusters become which from each time point to the next. Heights are in proportion to mass.

    Bars are the clusters of a time point. Bands are the cells that the couplings lead from one cluster to another; a
    band that gets wider stands for cells that multiply.

    Parameters
    ----------
    data
        An :class:`~cellrank_velot.OTVelocityKernel` with experimental time, after ``compute_velocity``.
    cluster_key
        Column of ``adata.obs`` with the clusters; that of the kernel, or ``"clusters"``, where not given.
    min_share
        Bands of a smaller share of the mass of their time point are left out.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If there are no such clusters.
    RuntimeError
        If the kernel has pseudotime, or no velocity.
    TypeError
        If ``data`` is no kernel.
    ValueError
        If ``min_share`` is out of range.

    Examples
    --------
    >>> ax = pl.sankey(sk, show=False)
    """
    check_number("min_share", min_share, low=0, high=1)
    kernel = kernel_of(data)
    key = find_cluster_key(kernel.adata, cluster_key, usual=kernel.cluster_key)
    if key is None:
        raise KeyError("Expected clusters in `adata.obs['clusters']`, found none. Pass `cluster_key`.")
    flows = kernel.cluster_flows(key)
    colors = palette_of(kernel.adata, key, read_clusters(kernel.adata, key).cat.categories)
    times = np.unique([*flows["time"], *flows["next_time"]])
    with drawing(figure, panel_size=(1.2 + 1.9 * (times.size - 1), 4.2)) as canvas:
        _draw(canvas.ax, flows, colors, times, min_share)
    return cast("Axes | None", canvas.result)


def _draw(ax: Axes, flows: pd.DataFrame, colors: dict[Any, str], times: FloatArray, min_share: float) -> None:
    """Draw the bars of all time points, and the bands between them, each time point centred."""
    heights = [_bars(flows, k, times, list(colors)) for k in range(times.size)]
    tallest = max(height.sum() for height in heights)
    gap = GAP * tallest
    bottoms = [_stacked(height, gap) for height in heights]
    for k, (height, bottom) in enumerate(zip(heights, bottoms, strict=True)):
        for name in height.index:
            ax.add_patch(Rectangle((k - BAR / 2, bottom[name]), BAR, height[name], color=colors[name], lw=0, zorder=2))
            if height[name] >= LEAST_NAMED * tallest:
                _name(ax, k, bottom[name] + height[name] / 2, str(name), last=k == times.size - 1)
    for k in range(times.size - 1):
        part = flows[flows["time"] == times[k]]
        _bands(ax, k, part, bottoms[k], bottoms[k + 1], colors, min_share)
    ax.set(xlim=(-0.5, times.size - 0.4), ylim=(-0.02 * tallest, tallest + gap * len(colors)), yticks=[])
    ax.set_xticks(range(times.size), [f"{time:g}" for time in times])
    ax.set_xlabel("Time")
    ax.spines[["left", "right", "top"]].set_visible(False)


def _bars(flows: pd.DataFrame, k: int, times: FloatArray, names: list[Any]) -> pd.Series:
    """Return the mass of each cluster of a time point."""
    column, of, mass = ("time", "from", "mass") if k < times.size - 1 else ("next_time", "to", "next_mass")
    total = flows[flows[column] == times[k]].groupby(of, observed=True)[mass].sum()
    return total.reindex([name for name in names if name in total.index])


def _stacked(height: pd.Series, gap: float) -> pd.Series:
    """Return where each bar begins, the first one on top."""
    above = height[::-1].cumsum()[::-1] - height
    return above + gap * np.arange(len(height))[::-1]


def _name(ax: Axes, k: int, y: float, name: str, *, last: bool) -> None:
    side = 1 if last else -1
    place = (k + side * (BAR / 2 + 0.03), y)
    style: dict[str, Any] = {"va": "center", "fontsize": 7.5, "color": INK, "zorder": 3}
    ax.text(*place, name, ha="left" if last else "right", **style)


def _bands(
    ax: Axes,
    k: int,
    part: pd.DataFrame,
    here: pd.Series,
    there: pd.Series,
    colors: dict[Any, str],
    min_share: float,
) -> None:
    """Draw the bands from a time point to the next, in the order of their ends, so that few cross."""
    order = {name: place for place, name in enumerate(colors)}
    start, end = here.copy(), there.copy()
    rows = part.assign(a=part["from"].map(order).astype(int), b=part["to"].map(order).astype(int))
    # Bars are filled from below, and the first cluster is on top.
    lower: dict[tuple[Any, Any], float] = {}
    for row in rows.sort_values(["b", "a"], ascending=False).itertuples():
        lower[row.to, row.Index] = end[row.to]
        end[row.to] += row.next_mass
    for row in rows.sort_values(["a", "b"], ascending=False).itertuples():
        source, target = rows.at[row.Index, "from"], row.to
        bottom, top = start[source], lower[target, row.Index]
        start[source] += row.mass
        if row.mass >= min_share * part["mass"].sum():
            ends = (bottom, bottom + row.mass, top, top + row.next_mass)
            ax.add_patch(_band(k + BAR / 2, k + 1 - BAR / 2, *ends, colors[source]))


def _band(left: float, right: float, a0: float, a1: float, b0: float, b1: float, color: str) -> PathPatch:
    """Return a band between two heights, with level ends."""
    middle = (left + right) / 2
    points = [(left, a0), (middle, a0), (middle, b0), (right, b0), (right, b1), (middle, b1), (middle, a1), (left, a1)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3]
    return PathPatch(Path(points, codes), facecolor=color, alpha=0.45, lw=0, zorder=1)
