"""Figures: how they open, look and close, and the options of a figure that every plot takes.

A plot is written as ``@draws def plot(data, ..., **figure: Unpack[FigureOptions])``. It draws within
``with drawing(figure) as canvas`` and returns ``canvas.result``. An animation takes ``FilmOptions`` in their place, see
``animation.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from cellrank_velot._utils.files import replacing
from cellrank_velot._utils.validation import check_integer

__all__ = [
    "Canvas",
    "FigureOptions",
    "close_figure",
    "color_bar",
    "drawing",
    "draws",
    "even_columns",
    "open_axes",
    "style",
]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

STYLE: dict[str, Any] = {
    "axes.edgecolor": "#555555",
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": "#333333",
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.color": "#1a1a1a",
    "text.parse_math": False,  # a `$` in the name of a cluster is a dollar
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


class FigureOptions(TypedDict, total=False):
    """Options of the figure that every plot takes.

    Parameters
    ----------
    title
        Title of the plot, or of the figure where the plot has several panels. By default that which the plot describes,
        or none.
    figsize
        Width and height of the figure in inches.
    dpi
        Dots per inch.
    save
        File to save to. A relative one lies in scanpy's ``settings.figdir``.
    show
        Whether to show the figure. By default it is shown unless it is saved or drawn into ``ax``.
    ax
        Axes to draw into, as many as the plot has panels. A new figure where not given.
    """

    title: str | None
    figsize: tuple[float, float] | None
    dpi: float | None
    save: str | Path | None
    show: bool | None
    ax: Axes | Sequence[Axes] | None


@dataclass(frozen=True)
class Canvas:
    """An open figure: its panels, and whether the caller gets them back."""

    figure: Figure
    panels: list[Axes]
    n_columns: int
    ours: bool
    returned: bool
    single: bool

    @property
    def ax(self) -> Axes:
        """The panel of a plot that has one."""
        return self.panels[0]

    @property
    def legend_place(self) -> Axes | Figure:
        """Where a legend beside all panels goes: the figure, or in the caller's figure the last panel."""
        return self.figure if self.ours else self.panels[-1]

    def is_left(self, place: int) -> bool:
        """Whether the labels of an axis from bottom to top belong to this panel; in the caller's figure to all."""
        return not self.ours or place % self.n_columns == 0

    def share_labels(self) -> None:
        """Leave the labels of the axes to the panels on the left and below."""
        for place, panel in enumerate(self.panels if self.ours else []):
            if not self.is_left(place):
                panel.set_ylabel("")
            if place + self.n_columns < len(self.panels):
                panel.set_xlabel("")

    @property
    def result(self) -> Any:
        """What the plot returns: its Axes, or a list of them, where ``show=False``; nothing otherwise."""
        return None if not self.returned else self.ax if self.single else self.panels


@contextmanager
def drawing(
    figure: FigureOptions,
    *,
    n_panels: int | None = None,
    n_columns: int = 4,
    panel_size: tuple[float, float] = (5.0, 4.2),
    title: str = "",
    projection: str | None = None,
) -> Iterator[Canvas]:
    """Open a figure in our style; give it its title, save, show and close it after the drawing.

    A plot with ``n_panels``, even of one, returns a list of Axes. Its title is that of the only panel, or of the whole
    figure. A ``title`` that the user did not ask for stays out of the caller's figure.
    """
    check_integer("n_columns", n_columns, low=1)
    if n_panels == 0:
        raise ValueError("Expected at least one panel to draw, found none: choose more, or leave the choice out.")
    asked = figure.get("title")
    with style():
        opened, panels, ours = open_axes(
            figure.get("ax"),
            n_panels=n_panels or 1,
            n_columns=n_columns,
            panel_size=panel_size,
            figsize=figure.get("figsize"),
            dpi=figure.get("dpi"),
            projection=projection,
        )
        show, single = figure.get("show"), n_panels is None
        try:
            yield Canvas(opened, panels, n_columns, ours, returned=show is False, single=single)
            if single or (asked is not None and len(panels) == 1):
                panels[0].set_title(title if asked is None else asked)
            elif asked or (title and asked is None and ours):
                opened.suptitle(asked or title, x=0.01, ha="left", fontsize=11)
            close_figure(opened, ours=ours, save=figure.get("save"), show=show)
        except BaseException:  # also of a file that cannot be written
            if ours:
                plt.close(opened)
            raise


def draws(plot: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Put the options of a figure in the place of ``**figure`` in the signature and the help of a plot.

    They are those of the annotation of ``**figure``, such as ``Unpack[FigureOptions]``.
    """
    own = inspect.signature(plot)
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    (group,) = get_args(get_type_hints(plot)["figure"])
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in get_type_hints(group).items()
    ]
    signature = own.replace(parameters=[*kept, *options])

    @wraps(plot)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:  # an argument that is unknown or missing, or one too many
            got = "got " if str(error).startswith("too many") else ""
            raise TypeError(f"{plot.__name__}() {got}{error}") from None
        if given.get("n_columns") is not None:  # before the plot computes anything
            check_integer("n_columns", given["n_columns"], low=1)
        return plot(*args, **kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    described = inspect.cleandoc(group.__doc__ or "").split("----------\n")[1]
    head, returns, rest = inspect.cleandoc(plot.__doc__ or "").partition("\n\nReturns\n")
    checked.__doc__ = f"{head}\n{described}{returns}{rest}"
    return checked


def style() -> AbstractContextManager[None]:
    """Return a context with the look of our figures; the settings of the caller come back after it."""
    return plt.rc_context(STYLE)  # type: ignore[arg-type]  # its stubs list every setting by name


def even_columns(n_panels: int, n_columns: int) -> int:
    """Return a number of columns that makes rows of like length: six panels are two rows of three, not four and two."""
    check_integer("n_columns", n_columns, low=1)
    n_rows = max(-(-n_panels // n_columns), 1)
    return max(-(-n_panels // n_rows), 1)


def color_bar(scale: ScalarMappable, ax: Axes | Sequence[Axes], label: str = "", **options: Any) -> Colorbar:
    """Draw a colour bar beside one panel or several."""
    panels = [ax] if isinstance(ax, Axes) else list(ax)
    place: Any = panels[0] if isinstance(ax, Axes) else panels
    look = {"shrink": 0.7, "aspect": 18, "pad": 0.02, **options}
    bar = panels[0].figure.colorbar(scale, ax=place, label=label, **look)
    bar.outline.set_visible(False)
    return bar


def open_axes(
    ax: Axes | Sequence[Axes] | None,
    *,
    n_panels: int = 1,
    n_columns: int = 4,
    panel_size: tuple[float, float] = (5.0, 4.2),
    figsize: tuple[float, float] | None = None,
    dpi: float | None = None,
    projection: str | None = None,
) -> tuple[Figure, list[Axes], bool]:
    """Return a figure, one Axes for each panel, and whether the figure is ours. ``panel_size`` is in inches."""
    if ax is not None:
        panels = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
        if len(panels) != n_panels:
            raise ValueError(f"Expected `{n_panels}` Axes in `ax`, found `{len(panels)}`.")
        return panels[0].figure.get_figure(root=True) or plt.gcf(), panels, False
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    size = figsize or (panel_size[0] * n_columns, panel_size[1] * n_rows)
    kind = {"projection": projection}
    figure, grid = plt.subplots(
        n_rows, n_columns, figsize=size, dpi=dpi, squeeze=False, layout="constrained", subplot_kw=kind
    )
    panels = list(grid.ravel())
    for unused in panels[n_panels:]:
        unused.remove()
    return figure, panels[:n_panels], True


def close_figure(figure: Figure, *, ours: bool, save: str | Path | None, show: bool | None) -> bool:
    """Save and show a figure as asked, and say whether its Axes are to be returned.

    A file without a suffix gets the one that scanpy uses.
    """
    if save is not None:
        path = Path(save)
        path = path if path.is_absolute() else Path(sc.settings.figdir) / path
        path = path if path.suffix else path.with_name(f"{path.name}.{sc.settings.file_format_figs}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, bbox_inches="tight", dpi=figure.dpi)
    if show or (show is None and save is None and ours):
        plt.show()
    elif show is None and ours:
        plt.close(figure)
    return show is False
