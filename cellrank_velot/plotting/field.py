"""Training of the velocity field: its losses, and the step whose weights are kept.

Depends on matplotlib and on what the field keeps of its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData
from matplotlib.axes import Axes

from cellrank_velot._utils.validation import check_choice
from cellrank_velot.field import VelocityField
from cellrank_velot.plotting._draw.embedding import HasAnnData
from cellrank_velot.plotting._draw.figure import close_figure, open_axes, style
from cellrank_velot.plotting._draw.kernel import history_of

__all__ = ["training"]

# Label, colour and line of each loss; dashes as well as hues tell the terms apart. The losses of training are those of
# one batch and jump about, so they are drawn thin.
_LINES: dict[str, tuple[str, str, str]] = {
    "held_out": ("held-out cells", "#D55E00", "-"),
    "fit": ("training batches", "#0072B2", "-"),
    "total": ("weighted sum", "#1A1A1A", "-"),
    "smooth": ("smoothness", "#009E73", "--"),
    "curl": ("curl", "#CC79A7", "-."),
    "divergence": ("divergence", "#7F7F7F", ":"),
}


def training(
    data: VelocityField | AnnData | HasAnnData,
    *,
    terms: Sequence[str] = ("held_out", "fit"),
    key: str = "T_fwd",
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
) -> Axes | None:
    """Draw the losses of the velocity field over the steps of its training.

    The error of the fit is relative to the velocities: a field that is zero everywhere has 1. A held-out error that
    rises while the other falls is a field that has begun to learn the noise; the weights kept are those of the marked
    step.

    Parameters
    ----------
    data
        A kernel with its field, a field, or an AnnData to which a kernel was written.
    terms
        Losses to draw, of ``"held_out"``, ``"fit"``, ``"smooth"``, ``"curl"``, ``"divergence"`` and ``"total"``.
    key
        Key under which the kernel was written, for an AnnData.
    title
        Title of the Axes; none where not given.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to; a relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default shown unless saved or drawn into ``ax``.
    ax
        Axes to draw into.

    Returns
    -------
    The Axes where ``show=False``, nothing otherwise.

    Raises
    ------
    KeyError
        If no field was written to the AnnData.
    RuntimeError
        If the kernel has no field.
    ValueError
        If a term is unknown.

    Examples
    --------
    >>> ax = pl.training(vk, terms=["held_out", "fit", "smooth"], show=False)
    """
    for term in terms:
        check_choice("terms", term, tuple(_LINES))
    history, best_step = history_of(data, key)
    with style():
        figure, (panel,), ours = open_axes(ax, panel_size=(5.6, 3.4), figsize=figsize, dpi=dpi)
        for label, color, line, term in ((*_LINES[term], term) for term in terms):
            panel.plot(
                history["step"],
                history[term],
                line,
                color=color,
                linewidth=2.2 if term == "held_out" else 1.0,
                label=label,
            )
        panel.axvline(best_step, color="#555555", linewidth=1, linestyle=(0, (2, 2)), label=f"kept: step {best_step}")
        panel.set(
            xlabel="Step", ylabel="Relative error" if set(terms) <= {"held_out", "fit"} else "Loss", title=title or ""
        )
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return panel if close_figure(figure, ours=ours, save=save, show=show) else None
