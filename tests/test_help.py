"""`help()` of everything public describes every parameter by name, where it stands, not elsewhere."""

import enum
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import cellrank_velot as cv

MODULES = ("pl", "pp", "metrics", "datasets", "direction", "dynamics")
ELSEWHERE = re.compile(r"\s*(See|As in|As for|Like that of|Likewise)\b", re.IGNORECASE)


def kernels() -> list[type]:
    return [value for name, value in vars(cv).items() if name.endswith("Kernel") and inspect.isclass(value)]


def ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("cellrank_velot")


def roots() -> Iterator[tuple[str, Any]]:
    """Yield what the package hands out and what its public modules do, by full names."""
    yield from ((name, getattr(cv, name)) for name in cv.__all__ if ours(getattr(cv, name)))
    for module in MODULES:
        yield from ((f"{module}.{name}", getattr(getattr(cv, module), name)) for name in getattr(cv, module).__all__)


def members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties of a class that are ours, inherited ones too."""
    for member in dir(cls):
        owner = next((c for c in cls.__mro__ if member in vars(c)), None)
        if member[0] != "_" and owner is not None and ours(owner):
            value = vars(owner)[member]
            value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if inspect.isfunction(value) or isinstance(value, property):
                yield f"{name}.{member}", value


def results(value: Any) -> Iterator[type]:
    """Yield the classes of this package that a function or property says it returns."""
    function = value.fget if isinstance(value, property) else value
    said = str(getattr(function, "__annotations__", {}).get("return", ""))
    for word in re.findall(r"[A-Z]\w+", said):
        found = inspect.unwrap(function).__globals__.get(word)
        if inspect.isclass(found) and ours(found) and not issubclass(found, enum.Enum):
            yield found


def public() -> dict[str, Any]:
    """Return everything public by its name: functions, kernels, results that they return, and methods of all these."""
    named = [(name, value) for name, value in roots() if inspect.isroutine(value) or inspect.isclass(value)]
    handed = [(cls.__name__, cls) for _, value in named if inspect.isfunction(value) for cls in results(value)]
    methods = [value for kernel in kernels() for _, value in members("", kernel)]
    handed += [(cls.__name__, cls) for value in methods for cls in results(value)]
    found: dict[str, Any] = {}
    for name, value in named + handed:
        if not any(value is known for known in found.values()):
            found[name] = value
    classes = [(name, value) for name, value in found.items() if inspect.isclass(value)]
    return found | {name: value for cls in classes for name, value in members(*cls)}


PUBLIC = public()
# One a line: what is still to be described.
TODO = (Path(__file__).parent / "help_todo.txt").read_text(encoding="utf-8").split()


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
    names = parameters(value)
    missing = [name for name in names if not said.get(name)]
    elsewhere = [name for name in names if ELSEWHERE.match(said.get(name, ""))]
    unknown = [] if inspect.isclass(value) or isinstance(value, property) else sorted(set(said) - set(names))
    return [*missing, *(f"{name}: described elsewhere" for name in elsewhere), *(f"{n}: no such" for n in unknown)]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in TODO])
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
