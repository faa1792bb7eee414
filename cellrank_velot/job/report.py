"""A report as one HTML file that can be mailed: pictures inside, nothing to load from elsewhere.

Knows neither AnnData nor CellRank: it is handed sentences, tables and the bytes of pictures. Depends on jinja2.
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cellrank_velot._utils.files import replacing

__all__ = ["Cell", "Figure", "Report", "Table", "package_versions", "render", "write_report"]

PACKAGES = ("cellrank_velot", "cellrank", "scanpy", "anndata", "torch", "numpy", "scipy", "pandas")


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its title, what a reader should see in it, and a text for those who cannot see it.

    Attributes
    ----------
    title
        Heading.
    caption
        What a reader should see in it.
    png
        The picture, a file of PNG.
    wide
        Whether it takes the whole width of the page.

    Examples
    --------
    >>> from cellrank_velot.job.report import Figure
    >>> Figure("Velocity", "Streamlines of the velocity.", png=b"...").uri
    'data:image/png;base64,Li4u'
    """

    title: str
    caption: str
    png: bytes
    wide: bool = True

    @property
    def uri(self) -> str:
        """The picture itself as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Cell:
    """An entry of a table; ``share`` in ``[0, 1]`` is drawn as a bar behind it.

    Attributes
    ----------
    text
        What is written.
    share
        Length of the bar, in ``[0, 1]``; none where ``None``.

    Examples
    --------
    >>> from cellrank_velot.job.report import Cell
    >>> Cell("70 %", share=0.7)
    Cell(text='70 %', share=0.7)
    """

    text: str
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its title and caption; the first column holds the names of the rows.

    Attributes
    ----------
    title
        Heading.
    caption
        What a reader should see in it.
    columns
        Names of the columns.
    rows
        Entries of each row, as many as there are columns.

    Examples
    --------
    >>> from cellrank_velot.job.report import Cell, Report, Table, render
    >>> rows = [[Cell("Fate A"), Cell("70 %", share=0.7)]]
    >>> table = Table("Fates", "Mean of all cells.", ["", "share"], rows)
    >>> "Mean of all cells." in render(Report("Pancreas", ["Two fates."], tables=[table]))
    True
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says, from top to bottom.

    Attributes
    ----------
    title
        Heading.
    summary
        Sentences with the main result.
    facts
        Name and value of the few numbers shown at the top.
    figures
        Pictures, in order.
    tables
        Tables, in order.
    parameters
        Groups of parameters: name of the group, then name and value.
    warnings
        What the package warned of.
    versions
        Name and version of each package.
    footer
        Last line, e.g. when and how the report was made.

    Examples
    --------
    >>> from cellrank_velot.job.report import Report, render
    >>> report = Report("Pancreas", ["Two fates were found."], facts={"cells": "300"})
    >>> "Two fates were found." in render(report)
    True
    """

    title: str
    summary: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    footer: str = ""


def render(report: Report) -> str:
    """Return the report as HTML; every text in it is escaped.

    Parameters
    ----------
    report
        What it says.

    Examples
    --------
    >>> from cellrank_velot.job.report import Report, render
    >>> render(Report("A < B", ["One sentence."])).count("A &lt; B") > 0
    True
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report)


def write_report(path: str | Path, report: Report) -> Path:
    """Write the report to an HTML file and return its path; the folder must exist.

    Parameters
    ----------
    path
        File to write.
    report
        What it says.

    Raises
    ------
    OSError
        If the file cannot be written, naming it.

    Examples
    --------
    >>> from cellrank_velot.job.report import Report, write_report
    >>> write_report("report.html", Report("Pancreas", ["Two fates were found."])).name
    'report.html'
    """
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
    return path


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of packages; those that are not installed are said to be so.

    Parameters
    ----------
    names
        Names of packages; those that a result depends on where not given.

    Examples
    --------
    >>> from cellrank_velot.job.report import package_versions
    >>> list(package_versions(["numpy", "cellrank"]))
    ['python', 'numpy', 'cellrank']
    """
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source tree" if name == "cellrank_velot" else "not installed"
    return found
