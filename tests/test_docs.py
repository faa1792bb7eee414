"""The pages list what is public, name files that are there, and have links that hold."""

import importlib
import re
import tomllib
from functools import partial, partialmethod
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import matplotlib.pyplot
import pytest
import yaml
from anndata import AnnData
from public_names import handed_out, public

import cellrank_velot
from cellrank_velot import OTTimeSeriesKernel, OTVelocityKernel, datasets

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="no docs, as in a source archive")


def script(name: str) -> ModuleType:
    """Import a script of the folder ``docs``."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def places(listed: list[tuple[str, Any]], value: Any, name: str) -> list[str]:
    """Return where a public name is in the tables."""
    last = name.rpartition(".")[2]
    return [full for full, found in listed if unbound(found) is unbound(value) and full.rpartition(".")[2] == last]


def unbound(value: Any) -> Any:
    """Return the function of a class method, and anything else as it is."""
    return getattr(value, "__func__", value)


@pytest.mark.parametrize("name", [*dict(handed_out()), *public()])
def test_every_public_name_is_listed_once(listed: list[tuple[str, Any]], name: str):
    value = (dict(handed_out()) | public())[name]
    assert len(places(listed, value, name)) == 1, "in no table of docs/api, or in more than one"


def test_what_is_listed_is_handed_out(listed: list[tuple[str, Any]]):
    """A page names nothing that is private, and a stage lists what its room hands out."""
    short = {"cellrank_velot.pl": "cellrank_velot.plotting", "cellrank_velot.pp": "cellrank_velot.preprocessing"}
    split = [name.rpartition(".") for name, _ in listed if "Kernel." not in name]
    modules = {module: importlib.import_module(short.get(module, module)) for module, _, _ in split}
    assert not [f"{module}.{name}" for module, _, name in split if name not in modules[module].__all__]


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")], ids=lambda page: page.name)
def test_links_between_files_hold(page: Path):
    links = re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_code_on_pages_is_read_without_scrolling(page: Path):
    blocks = re.findall(
        r"^ *```(?!{)[^\n]*\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert [line for block in blocks for line in block.splitlines() if len(line) > 88] == []


@pytest.mark.parametrize("page", ["architecture.md", "method.md"])
def test_files_that_pages_name_are_there(page: str):
    package = Path(cellrank_velot.__file__).parent
    named = re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", (DOCS / page).read_text(encoding="utf-8"))
    ours = [name for name in named if not name.startswith("tests/")]
    assert len(ours) > 10
    assert not [name for name in ours if not (package / name).exists()]


def test_comparison_is_one_and_its_tests_are_there():
    page = (DOCS / "comparison.md").read_text(encoding="utf-8")
    table, tests = (re.findall(r"^\|.*", part, flags=re.MULTILINE) for part in page.split("## What tests"))
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "\n".join(table) in readme, "make it again: python tests/benchmarks/peers.py"
    tested = {row.split("|")[1].strip(): re.findall(r"(test_\w+\.py)::(test_\w+)", row) for row in tests[2:]}
    for row in table[2:]:
        question, ours = (cell.strip() for cell in row.split("|")[1:3])
        assert tested.get(question) or ours == "no", f"nothing tests: {question}"
    for file, name in [found for names in tested.values() for found in names]:
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8"), name


def test_every_file_names_the_same_version():
    version = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changes = (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", changes, flags=re.MULTILINE)[0]
    citation = (DOCS / "CITATION.cff").read_text(encoding="utf-8")
    assert released == (
        re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE)[0],
        re.findall(r"^date-released: (.*)$", citation, flags=re.MULTILINE)[0],
    )
    assert version.startswith(released[0]) or "dev" in version


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = (DOCS.parent / ".conda" / "meta.yaml").read_text(encoding="utf-8")
    rendered = jinja2.Template(recipe).render(load_file_data=lambda *x, **k: {"project": project}, PYTHON="python")
    found = dict((*one.split(" ", 1), "")[:2] for one in yaml.safe_load(rendered)["requirements"]["run"])
    conda = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    expected: dict[str, set[str]] = {"python": {project["requires-python"]}}
    for requirement in project["dependencies"]:
        name, bounds = re.match(r"([\w-]+)([^;]*)", requirement).groups()
        expected.setdefault(conda.get(name, name), set()).update(bounds.strip().split(","))
    assert {name: set(bounds.split(",")) for name, bounds in found.items()} == {
        name: (bounds - {""}) or {""} for name, bounds in expected.items()
    }


def test_workflows_call_what_make_has():
    targets = set(re.findall(r"^([\w-]+):", (DOCS.parent / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    files = {path.name: path for path in (DOCS.parent / ".github").rglob("*.yml")}
    parsed = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in files.items()}
    assert {"test.yml", "release.yml", "bug.yml"} <= parsed.keys()
    suite = parsed["test.yml"]["jobs"]["suite"]["strategy"]["matrix"]
    called = [*suite["part"], *(more["part"] for more in suite["include"])]
    called += re.findall(r"make ([\w -]+)$", files["test.yml"].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {target for names in called for target in names.split()} <= targets


def test_figures_of_the_readme_are_those_of_the_pages():
    """The pages are written by scripts; what is copied from them must not grow old."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\.py`[^|]*\|$", readme, flags=re.MULTILINE)
    n_checked = 0
    for row in rows:
        pages = "".join((DOCS.parent / page).read_text(encoding="utf-8") for page in re.findall(r"\]\(([^)]+)\)", row))
        for number in re.findall(r"\b\d+\.\d+\b(?!\.)", re.sub(r"\d+\.\d+\.\d+", "", row)):
            assert number in pages, f"{number} is in the README, but not in the page that it names: {row}"
            n_checked += 1
    assert n_checked > 5


def like_the_pancreas() -> AnnData:
    """Return counts with the names of the pancreas, as the first pages download them; real ones: test_pancreas.py."""
    adata = datasets.bifurcation(n_cells=300, preprocess=False)
    names = {"Progenitor": "Ductal", "Transition": "Pre-endocrine", "Fate A": "Epsilon", "Fate B": "Delta"}
    adata.obs["clusters"] = adata.obs["clusters"].cat.rename_categories(names)
    return adata


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", DOCS / "quickstart.md"], ids=lambda page: page.name)
def test_code_of_the_first_pages_runs(page: Path, tmp_path: Path, monkeypatch):
    """On fewer cells and with a shorter training than it says, so that it takes seconds."""
    monkeypatch.chdir(tmp_path)
    for kernel in (OTVelocityKernel, OTTimeSeriesKernel):
        monkeypatch.setattr(kernel, "fit_field", partialmethod(kernel.fit_field, n_steps=60))
    for name in ("bifurcation", "birth_death"):
        monkeypatch.setattr(datasets, name, partial(getattr(datasets, name), n_cells=300))
    monkeypatch.setattr(datasets, "pancreas", like_the_pancreas)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.replace("n_permutations=99", "n_permutations=2"), page.name, "exec"), names)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="b.html"><a href="https://elsewhere.example">', None),
        ('<a href="b.html#missing">', "no anchor b.html#missing"),
        ('<a href="c.html"><a href="b.html">', "no file c.html"),
        ('<a href="b.html"><img src="c.png">', "no file c.png"),
        ('<a href="b.html"><script src="https://elsewhere.example/x.js">', "loads https://elsewhere.example/x.js"),
        ("", "b.html: no page leads here"),
    ],
)
def test_broken_links_are_found(tmp_path: Path, body: str, message: str | None):
    (tmp_path / "index.html").write_text(body, encoding="utf-8")
    (tmp_path / "b.html").write_text('<p id="there"><a href="#there">', encoding="utf-8")
    found = script("check_links").check(tmp_path)
    assert found == [] if message is None else message in found[0]
    assert len(found) == (message is not None)
