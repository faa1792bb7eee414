"""Training of the velocity field: its losses, and the step whose weights are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from anndata import AnnData
from matplotlib.axes import Axes

from cellrank_velot._utils.validation import check_choice
from cellrank_velot.field import VelocityField
from cellrank_velot.plotting._draw.figure import FigureOptions, drawing, draws
from cellrank_velot.plotting._draw.kernel import HasAnnData, history_of
from cellrank_velot.plotting._draw.legends import RIGHT

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
    "growth": ("growth", "#009E73", "--"),
    "score": ("score", "#CC79A7", "-."),
}


@draws
def training(
    data: VelocityField | AnnData | HasAnnData,
    *,
    terms: Sequence[str] = ("held_out", "fit"),
    key: str = "T_fwd",
    **figure: Unpack[FigureOptions],
) -> Axes | None:
    """Draw the losses of the velocity field over the steps of its training.

    The error of the fit is relative to the velocities: a field that is zero everywhere has an error of 1. Where the
    held-out error rises while the other falls, the field has begun to learn the noise. The weights of the marked step
    are kept. With real time points the field is trained on points of the paths between cells, each drawn once, and the
    held-out error is that of other points.

    Parameters
    ----------
    data
        A kernel with its field, a field, or an AnnData to which a kernel was written.
    terms
        Losses to draw, of ``"held_out"``, ``"fit"``, ``"smooth"``, ``"curl"``, ``"divergence"`` and ``"total"``, with
        real time points of ``"held_out"``, ``"fit"``, ``"growth"``, ``"score"`` and ``"total"``.
    key
        Key under which the kernel was written, for an AnnData.

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
    history, best_step = history_of(data, key)
    for term in terms:
        check_choice("terms", term, tuple(name for name in _LINES if name in history))
    points = {"held_out": "held-out points"} if "growth" in history else {}
    relative = set(terms) <= {"held_out", "fit"}
    with drawing(figure, panel_size=(5.6, 3.4)) as canvas:
        for term in terms:
            label, color, line = _LINES[term]
            width = 2.2 if term == "held_out" else 1.0
            label = points.get(term, label)
            canvas.ax.plot(history["step"], history[term], line, color=color, linewidth=width, label=label)
        kept: dict[str, Any] = {"color": "#555555", "linewidth": 1, "linestyle": (0, (2, 2))}
        canvas.ax.axvline(best_step, label=f"kept: step {best_step}", **kept)
        canvas.ax.set(xlabel="Step", ylabel="Relative error" if relative else "Loss")
        canvas.ax.legend(**RIGHT)
    return canvas.result
