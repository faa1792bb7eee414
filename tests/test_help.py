"""`help()` of everything public describes every parameter by name, where it stands, not elsewhere."""

import enum
import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest
from public_names import with_methods

from cellrank_velot._utils.options import Options

ELSEWHERE = re.compile(r"\s*(See|As in|As for|Like that of|Likewise)\b", re.IGNORECASE)


PUBLIC = with_methods()


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines of each section of a docstring in numpy's style."""
    lines = inspect.cleandoc(text).splitlines()
    starts = [
        i for i in range(1, len(lines)) if re.fullmatch(r"-{3,}", lines[i]) and len(lines[i]) == len(lines[i - 1])
    ]
    ends = [*(start - 1 for start in starts[1:]), len(lines)]
    return {lines[start - 1]: lines[start + 1 : end] for start, end in zip(starts, ends, strict=False)}


def described(lines: list[str]) -> dict[str, str]:
    """Return what a section says of each name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if line[:1].strip():
            names = [name.strip().lstrip("*") for name in line.partition(" : ")[0].split(",")]
            found |= dict.fromkeys(names, "")
        else:
            found |= {name: f"{found[name]}\n{line.strip()}".strip() for name in names}
    return found


def parameters(value: Any) -> list[str]:
    """Return the names of the parameters; of a class, those it is made with."""
    if isinstance(value, property) or getattr(value, "_is_protocol", False):
        return []
    if inspect.isclass(value) and (issubclass(value, enum.Enum | tuple | BaseException)):
        return []
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


def faults(value: Any) -> list[str]:
    """Return what is missing in a docstring."""
    if not value.__doc__:
        return ["no docstring"]
    found = sections(value.__doc__)
    said = described(found.get("Parameters", []) + found.get("Other Parameters", []))
    if is_dataclass(value):
        said |= described(found.get("Attributes", []))
    if inspect.isclass(value) and issubclass(value, Options):
        # Options of a public method: their docstring names the method, whose help describes them.
        methods = re.findall(r":meth:`~?cellrank_velot\.(.+?)`", value.__doc__)
        for method in methods:
            said |= described(sections(PUBLIC[method].__doc__)["Parameters"])
    names = parameters(value)
    missing = [name for name in names if not said.get(name)]
    elsewhere = [name for name in names if ELSEWHERE.match(said.get(name, ""))]
    unknown = [] if inspect.isclass(value) or isinstance(value, property) else sorted(set(said) - set(names))
    return [*missing, *(f"{name}: described elsewhere" for name in elsewhere), *(f"{n}: no such" for n in unknown)]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_described(name: str):
    assert not faults(PUBLIC[name]), f"help({name}) does not describe all"


def test_all_that_is_public_is_looked_at():
    names = set(PUBLIC)
    assert {"OTVelocityKernel.compute_velocity", "pl.windows", "gridsearch", "metrics.summary"} <= names
    assert {"Landscape", "Regulation", "Windows", "dynamics.Trajectories.select"} <= names


def planted(x: int, *, y: int, **kwargs: Any) -> None:
    """Do nothing.

    Parameters
    ----------
    x
        Some number.
    y
        See :func:`elsewhere`.
    z
        What is not there.
    """


def test_faults_are_found():
    assert faults(planted) == ["kwargs", "y: described elsewhere", "z: no such"]
    without: Callable[[], None] = lambda: None  # noqa: E731
    assert faults(without) == ["no docstring"]
