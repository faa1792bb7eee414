"""The house: its rooms, its floors, and which way imports go. ``docs/architecture.py`` reads the imports."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

MOST_ROOMS, MOST_FLOORS = 28, 12
# From the ground up: a room imports only rooms that stand before it here.
ORDER = (
    "_utils", "graph", "cells", "transport", "timeseries", "transitions", "fates", "field", "dynamics", "perturbation",
    "landscape", "regulation", "embedding", "direction", "conditions", "preprocessing", "datasets", "metrics", "clones",
    "storage", "plotting", "estimators", "kernel", "search", "job",
)  # fmt: skip
# Rooms of numbers alone: arrays in and out.
WITHOUT_ANNDATA = (
    "_utils", "graph", "transport", "timeseries", "transitions", "fates", "field", "dynamics", "perturbation",
    "landscape", "regulation", "embedding", "direction", "conditions",
)  # fmt: skip
WITH_CELLRANK = {"datasets", "estimators", "job", "kernel"}


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    script = Path(__file__).parents[1] / "docs" / "architecture.py"
    if not script.exists():
        pytest.skip("no docs, as in a source archive")
    spec = spec_from_file_location("architecture", script)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def imports(architecture: ModuleType) -> dict[str, set[str]]:
    return architecture.read_package()[0]


def test_rooms_are_few(imports: dict[str, set[str]]):
    assert len(imports) <= MOST_ROOMS
    assert set(imports) <= set(ORDER), "give the new room its place in `ORDER`"


def test_imports_go_down(imports: dict[str, set[str]]):
    pairs = [(room, used) for room in imports for used in imports[room]]
    assert not [f"{room} -> {used}" for room, used in pairs if ORDER.index(used) > ORDER.index(room)]


def test_floors_are_few_and_imports_go_in_no_circle(architecture: ModuleType, imports: dict[str, set[str]]):
    assert 1 + max(architecture.floors(imports).values()) <= MOST_FLOORS


def test_numbers_know_neither_anndata_nor_cellrank(architecture: ModuleType):
    hosts: dict[str, set[str]] = {name: set() for name in ORDER}
    for path in architecture.PACKAGE.rglob("*.py"):
        names = architecture.imported(architecture.source(path))
        hosts.setdefault(architecture.room_of(path), set()).update(name.split(".")[0] for name in names)
    assert not [room for room in WITHOUT_ANNDATA if hosts[room] & {"anndata", "cellrank", "scanpy", "scvelo"}]
    assert {room for room in ORDER if "cellrank" in hosts[room]} <= WITH_CELLRANK


def test_picture_is_up_to_date(architecture: ModuleType):
    drawn = architecture.FIGURE.read_text(encoding="utf-8")
    assert drawn == architecture.draw(), "draw it again: python docs/architecture.py"


def test_a_room_stands_above_the_highest_that_it_imports(architecture: ModuleType):
    floors = architecture.floors
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 2, "b": 1, "c": 0}
    with pytest.raises(ValueError, match="in a circle: "):
        floors({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_imports_are_those_that_run(architecture: ModuleType):
    late = "if TYPE_CHECKING:\n    import c\ndef f():\n    import g\n"
    source = f"import a.b\n{late}try:\n    from d import e\nexcept E:\n    pass"
    assert list(architecture.imported(architecture.ast.parse(source))) == ["a.b", "g", "d.e"]


def test_a_name_that_the_package_hands_out_belongs_to_its_room(architecture: ModuleType):
    rooms = [
        architecture.room(f"cellrank_velot.{name}") for name in ("pl", "OTVelocityKernel", "search", "__version__")
    ]
    assert rooms == ["plotting", "kernel", "search", None]
