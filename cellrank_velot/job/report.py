"""A report as one HTML file that can be mailed: pictures inside, nothing to load from elsewhere.

It knows neither AnnData nor CellRank: it is handed sentences, tables and the bytes of pictures.
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


@dataclass(frozen=True)
class Figure:
    """A picture with its title, and what a reader should see in it. A wide one takes the whole width of the page."""

    title: str
    caption: str
    png: bytes
    wide: bool = True

    @property
    def uri(self) -> str:
        """The picture itself as an address."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


@dataclass(frozen=True)
class Cell:
    """An entry of a table. Its ``share``, in ``[0, 1]``, is drawn as a bar behind it."""

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table with its title and caption. The first column has the names of the rows."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Report:
    """What a report says, from top to bottom."""

    title: str
    summary: Sequence[str]
    facts: Mapping[str, str] = field(default_factory=dict)  # the few numbers at the top
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by groups
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    footer: str = ""


def render(report: Report) -> str:
    """Return the report as HTML. Every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(report=report)


def write_report(path: str | Path, report: Report) -> Path:
    """Write the report to an HTML file in a folder that exists, and return its path."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(render(report), encoding="utf-8")
    return path


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of packages, also of those that are not installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "source tree" if name == "cellrank_velot" else "not installed"
    return found
