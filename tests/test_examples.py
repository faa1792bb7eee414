"""Every public name has an example, and it prints what it says.

Examples start from the lines in the docstring of the package, which the pages of the API show first.
"""

import doctest
import importlib
import inspect
import logging
import pickle
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pytest
from public_names import public

import cellrank_velot

PARSER = doctest.DocTestParser()
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# No part of what is public: loops without checks, and what runs when it is imported or from a shell.
UNREAD = (
    "cellrank_velot.graph.compiled",
    "cellrank_velot.transport.compiled",
    "cellrank_velot.job.cli",
    "cellrank_velot.__main__",
)


def called(value: Any) -> bool:
    """Return whether something is a function, a class or a property, and no constant or type."""
    return inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, property)


def described(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield the functions and classes of a module, and what classes define, by their full names."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__ or not getattr(value, "__doc__", None):
            continue
        if called(value):
            yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for member, inner in vars(value).items():
                if member[0] != "_" and called(inner) and inner.__doc__:
                    yield f"{module.__name__}.{name}.{member}", inner


def examples() -> dict[str, str]:
    """Return the docstrings that have examples, in an order that is the same in each process."""
    modules = [m.name for m in pkgutil.walk_packages(cellrank_velot.__path__, "cellrank_velot.")]
    read = [importlib.import_module(name) for name in modules if not name.startswith(UNREAD)]
    found = {name: inspect.getdoc(value) or "" for module in read for name, value in described(module)}
    return {name: text for name, text in sorted(found.items()) if ">>> " in text}


# Public names without an example, and why.
EXCEPTIONS: dict[str, str] = {}
EXAMPLES = examples()


def run(name: str, text: str, namespace: dict[str, Any]) -> doctest.DocTest:
    """Run the examples of a text, and return them with the namespace that they leave behind."""
    test = PARSER.get_doctest(text, namespace, name, None, None)
    said: list[str] = []
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # CellRank 2.3 writes its messages to where results are printed
    try:
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    finally:
        logging.disable(before)
    assert not said, "".join(said)
    return test


@pytest.fixture(scope="session")
def beginning() -> tuple[dict[str, ModuleType], bytes]:
    """Run the lines that all examples start from; return the modules and, as bytes to copy, the objects."""
    found = run("cellrank_velot", cellrank_velot.__doc__ or "", {}).globs
    found = {name: value for name, value in found.items() if name[0] != "_"}
    modules = {name: value for name, value in found.items() if isinstance(value, ModuleType)}
    return modules, pickle.dumps({name: value for name, value in found.items() if name not in modules})


@pytest.mark.usefixtures("_coarse_pictures")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(
    name: str,
    beginning: tuple[dict[str, ModuleType], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    modules, objects = beginning
    monkeypatch.chdir(tmp_path)
    try:
        run(name, EXAMPLES[name], {**modules, **pickle.loads(objects)})
    finally:
        plt.close("all")


def test_every_public_name_has_an_example():
    named = {name: value for name, value in public().items() if not getattr(value, "_is_protocol", False)}
    without = [name for name, value in named.items() if "\nExamples\n--------\n" not in (inspect.getdoc(value) or "")]
    assert sorted(without) == sorted(EXCEPTIONS)


def test_examples_end_with_examples_and_references():
    for name, text in EXAMPLES.items():
        after = text.partition("\nExamples\n--------\n")[2]
        assert after, f"{name}: examples outside of a section"
        headings = [line for line in after.splitlines() if line and set(line) == {"-"}]
        assert len(headings) <= after.count("\nReferences\n"), f"{name}: examples before another section"


def test_no_example_is_skipped():
    assert [name for name, text in EXAMPLES.items() if "doctest: +SKIP" in text] == []


def test_the_pages_show_what_examples_start_from(docs: Path):
    page = (docs / "api" / "index.rst").read_text(encoding="utf-8")
    shown = [example.source for example in PARSER.get_examples(page)]
    assert shown
    assert shown == [example.source for example in PARSER.get_examples(cellrank_velot.__doc__ or "")]
