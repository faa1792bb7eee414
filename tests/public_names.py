"""What is public: what users call, and what comes back. Tests of the help, the examples and the pages share this."""

import enum
import inspect
import re
from collections.abc import Iterator
from typing import Any

import cellrank_velot as cv

MODULES = ("pl", "pp", "metrics", "datasets", "direction", "dynamics", "estimators", "clones")


def ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("cellrank_velot")


def kernels() -> list[type]:
    """Return the classes of kernels, first the one by whose name shared methods go."""
    return [cv.OTVelocityKernel, cv.OTTimeSeriesKernel]


def handed_out() -> Iterator[tuple[str, Any]]:
    """Yield what the package and its public modules hand out, constants and types included, by full names."""
    for name in cv.__all__:
        if name not in MODULES and name[0] != "_":
            yield name, getattr(cv, name)
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


def returned(value: Any) -> Iterator[type]:
    """Yield the classes of this package that a function or property says it returns."""
    function = inspect.unwrap(value.fget if isinstance(value, property) else value)
    said = str(getattr(function, "__annotations__", {}).get("return", ""))
    for word in re.findall(r"[A-Z]\w+", said):
        found = function.__globals__.get(word)
        if inspect.isclass(found) and ours(found) and not issubclass(found, enum.Enum):
            yield found


def results() -> dict[str, type]:
    """Return the classes of what public functions, and methods and properties of kernels, return."""
    asked = [value for _, value in handed_out() if inspect.isfunction(value)]
    asked += [value for kernel in kernels() for _, value in members("", kernel)]
    return {cls.__name__: cls for value in asked for cls in returned(value) if cls not in kernels()}


def public() -> dict[str, Any]:
    """Return all functions and classes that are public, and the methods of kernels, each once."""
    named = [(name, value) for name, value in handed_out() if inspect.isroutine(value) or inspect.isclass(value)]
    named += results().items()
    named += [member for kernel in kernels() for member in members(kernel.__name__, kernel)]
    found: dict[str, Any] = {}
    for name, value in named:
        if not any(value is known for known in found.values()):
            found[name] = value
    return found


def with_methods() -> dict[str, Any]:
    """Return what is public, and the methods and properties of all its classes."""
    found = public()
    classes = [(name, value) for name, value in found.items() if inspect.isclass(value) and value not in kernels()]
    return found | {name: value for cls in classes for name, value in members(*cls)}
