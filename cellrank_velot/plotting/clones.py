"""What clones say of fates: calibration, scores with intervals, and how far the clones of two fates are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cellrank_velot._utils.validation import check_known
from cellrank_velot.clones import CloneChoice, CloneFates, CloneJudgement
from cellrank_velot.clones.scores import ALL, SCORES
from cellrank_velot.plotting._draw.colors import BACKGROUND, INK, palette
from cellrank_velot.plotting._draw.figure import Canvas, FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.legends import BELOW, dot

__all__ = ["clone_calibration", "clone_overlap", "clone_scores"]

TITLES = {"auc": "AUC", "rank_correlation": "Rank correlation", "slope": "Calibration slope", "skill": "Skill (nats)"}
# What fates that tell nothing score, and what calibrated ones do.
NOTHING, RIGHT = {"auc": 0.5, "rank_correlation": 0.0, "skill": 0.0}, {"slope": 1.0}
# Area of a point of the curve, per clone, and its bounds.
PER_CLONE, SMALLEST, LARGEST = 1.5, 8.0, 90.0


@draws
def clone_calibration(
    judgement: CloneJudgement | CloneFates | CloneChoice,
    fates: Sequence[str] | str | None = None,
    sources: Sequence[str] | str | None = None,
    *,
    n_columns: int = 3,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw what sisters became where a fate was given some probability, a panel for each fate.

    On the diagonal a probability of 0.7 means that 70 % of the sisters took the fate. A flatter curve belongs to fates
    that are too sure, a steeper one to fates that are too vague. Lines are intervals over clones; the more clones a
    point stands for, the larger it is.

    Parameters
    ----------
    judgement
        The result of :func:`cellrank_velot.clones.judge_by_clones`. Of :func:`cellrank_velot.clones.update_by_clones`
        and :func:`cellrank_velot.clones.choose_by_clones` their judgement by sisters or clones that were held out.
    fates
        Fates to draw; all where not given.
    sources
        Sources of fates to draw; all where not given.
    n_columns
        Number of panels in a row.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If there is no such fate or source.
    TypeError
        If ``judgement`` is something else.

    Examples
    --------
    >>> judged = clones.judge_by_clones(
    ...     barcoded, {"seen": "true_fates_seen", "all": "true_fates"}
    ... )
    >>> axes = pl.clone_calibration(judged, show=False)
    >>> len(axes)
    3
    """
    found = _judgement(judgement)
    names, shown = _chosen(fates, found.fates, "fates"), _chosen(sources, found.sources, "sources")
    colors = dict(zip(found.sources, palette(len(found.sources)), strict=True))
    with drawing(figure, n_panels=len(names), n_columns=n_columns, panel_size=(3.3, 3.3)) as canvas:
        for place, (panel, name) in enumerate(zip(canvas.panels, names, strict=True)):
            panel.plot([0, 1], [0, 1], color=BACKGROUND, linewidth=1.5, zorder=0)
            for source in shown:
                part = found.curve[(found.curve["source"] == source) & (found.curve["fate"] == name)]
                part = part.sort_values("predicted")
                x, y = part["predicted"].to_numpy(), part["observed"].to_numpy()
                panel.vlines(x, part["low"], part["high"], color=colors[source], linewidth=1.1, alpha=0.6)
                panel.plot(x, y, color=colors[source], linewidth=1.2, alpha=0.8)
                area = np.clip(PER_CLONE * part["n_clones"].to_numpy(), SMALLEST, LARGEST)
                panel.scatter(x, y, s=area, color=colors[source], linewidths=0, zorder=3)
            panel.set(
                title=name, xlabel="Probability of the fate", ylabel="Share of sisters" if canvas.is_left(place) else ""
            )
            panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        canvas.share_labels()
        slopes = {source: "{:.2f} ({:.2f} to {:.2f})".format(*found.value("slope", ALL, source)) for source in shown}
        _legend(canvas, {f"{source}: slope {slopes[source]}": colors[source] for source in shown})
    return canvas.result


@draws
def clone_scores(
    judgement: CloneJudgement | CloneFates | CloneChoice,
    scores: Sequence[str] = SCORES,
    sources: Sequence[str] | str | None = None,
    *,
    n_columns: int = 4,
    **figure: Unpack[FigureOptions],
) -> list[Axes] | None:
    """Draw how far fates agree with clones: a panel for each score, a row for each fate, with intervals over clones.

    A dashed line is the score of fates that tell nothing, a full one that of calibrated fates.

    Parameters
    ----------
    judgement
        The result of :func:`cellrank_velot.clones.judge_by_clones`. Of :func:`cellrank_velot.clones.update_by_clones`
        and :func:`cellrank_velot.clones.choose_by_clones` their judgement by sisters or clones that were held out.
    scores
        Scores to draw, of ``"auc"``, ``"rank_correlation"``, ``"slope"`` and ``"skill"``.
    sources
        Sources of fates to draw; all where not given.
    n_columns
        Number of panels in a row.

    Returns
    -------
    The list of Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If there is no such score or source.
    TypeError
        If ``judgement`` is something else.

    Examples
    --------
    >>> updated = clones.update_by_clones(barcoded, "true_fates_seen")
    >>> axes = pl.clone_scores(updated, ["auc", "slope"], show=False)
    """
    found = _judgement(judgement)
    names, shown = _chosen(scores, list(SCORES), "scores"), _chosen(sources, found.sources, "sources")
    colors = dict(zip(found.sources, palette(len(found.sources)), strict=True))
    fates = [ALL, *found.fates]
    size = (2.6, 0.9 + len(fates) * (0.12 + 0.16 * len(shown)))
    with drawing(figure, n_panels=len(names), n_columns=n_columns, panel_size=size) as canvas:
        for place, (panel, score) in enumerate(zip(canvas.panels, names, strict=True)):
            for values, style in ((NOTHING, "--"), (RIGHT, "-")):
                if score in values:
                    panel.axvline(values[score], color=BACKGROUND, linestyle=style, linewidth=1.5, zorder=0)
            table = found.scores[found.scores["score"] == score].set_index(["source", "fate"])
            for number, source in enumerate(shown):
                rows = [row for row, fate in enumerate(fates) if (source, fate) in table.index]
                part = table.loc[[(source, fates[row]) for row in rows]]
                y = np.array(rows) + 0.62 * ((number + 0.5) / len(shown) - 0.5)
                panel.hlines(y, part["low"], part["high"], color=colors[source], linewidth=1.4, alpha=0.7)
                panel.scatter(part["value"], y, s=18, color=colors[source], linewidths=0, zorder=3)
            panel.set(title=TITLES[score], ylim=(len(fates) - 0.4, -0.6))
            panel.set_yticks(range(len(fates)), fates if canvas.is_left(place) else [""] * len(fates))
            panel.tick_params(axis="y", length=0)
        _legend(canvas, {source: colors[source] for source in shown})
    return canvas.result


@draws
def clone_overlap(
    judgement: CloneJudgement | CloneFates | CloneChoice,
    sources: Sequence[str] | str | None = None,
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw how far the clones of two fates are the same, and how far they would be if the fates were right.

    Where fates expect less than the clones show, they are too sure: they part cells whose sisters go both ways.

    Parameters
    ----------
    judgement
        The result of :func:`cellrank_velot.clones.judge_by_clones`. Of :func:`cellrank_velot.clones.update_by_clones`
        and :func:`cellrank_velot.clones.choose_by_clones` their judgement by sisters or clones that were held out.
    sources
        Sources of fates to draw; all where not given.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If there is no such source.
    TypeError
        If ``judgement`` is something else.

    Examples
    --------
    >>> judged = clones.judge_by_clones(
    ...     barcoded, {"seen": "true_fates_seen", "all": "true_fates"}
    ... )
    >>> ax = pl.clone_overlap(judged, show=False)
    """
    found = _judgement(judgement)
    shown = _chosen(sources, found.sources, "sources")
    colors = dict(zip(found.sources, palette(len(found.sources)), strict=True))
    by_source = {source: part.reset_index(drop=True) for source, part in found.overlap.groupby("source", sort=False)}
    seen: pd.DataFrame = by_source[found.sources[0]]
    pairs = [f"{one} and {other}" for one, other in zip(seen["fate"], seen["other"], strict=True)]
    rows = np.arange(len(pairs))
    with drawing(figure, panel_size=(5.2, 1.3 + 0.34 * len(pairs))) as canvas:
        canvas.ax.hlines(rows, seen["low"], seen["high"], color=INK, linewidth=1.6)
        canvas.ax.scatter(seen["clones"], rows, s=34, color=INK, zorder=3)
        for source in shown:
            canvas.ax.scatter(by_source[source]["expected"], rows, s=30, color=colors[source], marker="D", zorder=4)
        canvas.ax.set_yticks(rows, pairs)
        canvas.ax.set(xlabel="Overlap of clones", ylim=(len(pairs) - 0.4, -0.6))
        canvas.ax.set_xlim(left=0)
        _legend(canvas, {"clones": INK, **{f"expected by {source}": colors[source] for source in shown}})
    return canvas.result


def _judgement(given: CloneJudgement | CloneFates | CloneChoice) -> CloneJudgement:
    """Return the judgement of what the functions of clones return."""
    found = given.held_out if isinstance(given, CloneFates) else given
    found = found.judgement if isinstance(found, CloneChoice) else found
    if not isinstance(found, CloneJudgement):
        raise TypeError(f"Expected what `judge_by_clones` returns, found `{type(given).__name__}` without a judgement.")
    return found


def _chosen(asked: Sequence[str] | str | None, known: Sequence[str], what: str) -> list[str]:
    names = list(known) if asked is None else [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        check_known(what, name, known)
    return names


def _legend(canvas: Canvas, colors: dict[str, str]) -> None:
    """Draw the sources below the panels."""
    handles = [dot(name, color) for name, color in colors.items()]
    if canvas.ours:
        canvas.figure.legend(handles=handles, loc="outside lower left", ncols=2 if len(canvas.panels) > 1 else 1)
    else:
        canvas.panels[-1].legend(handles=handles, **{**BELOW, "bbox_to_anchor": (0.0, -0.2)})
