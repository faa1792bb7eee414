"""Notebooks run as they are, and hold the results of one run from the top, without traces of a machine.

They are run by ``notebooks/execute.py``, not by nbmake: the kernel is then the Python of the tests whatever kernels
are registered, figures are drawn as in a notebook although tests draw without a screen, and a notebook whose data are
missing is skipped with the reason.
"""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What is large in a notebook is smaller in a test.
VARIABLES = {"CELLRANK_VELOT_N_CELLS": "20000"}
LARGEST = 900_000
TRACES = re.compile(r"(?:/home/|/root/|/tmp/|/work/|/Users/|/usr/|/var/|[A-Z]:\\\\)\w*|https?://(?:localhost|127\.)\S*")

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="no notebooks, as in a source archive")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load() -> ModuleType:
    """Import the script that runs notebooks."""
    spec = spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@each
def test_it_runs(path: Path):
    script, notebook = load(), read(path)
    missing = sorted(name for name in script.data_files(notebook) if not (script.data_folder() / name).is_file())
    if missing:
        pytest.skip(f"the real data are missing: no {missing} in {script.data_folder()} (set CELLRANK_VELOT_DATA)")
    script.run(notebook, VARIABLES)
    drawn = [output for cell in code_of(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
    assert drawn


@each
def test_it_says_which_data_it_reads(path: Path):
    script, notebook = load(), read(path)
    asks = any(script.DATA_KEY in cell.source for cell in code_of(notebook))
    assert bool(script.data_files(notebook)) == asks


@each
def test_it_holds_one_run_from_the_top(path: Path):
    nbformat.validate(notebook := read(path))
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(cell.metadata for cell in notebook.cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@each
def test_it_is_small_and_knows_no_machine(path: Path):
    assert path.stat().st_size < LARGEST
    notebook = read(path)
    texts = [cell.source for cell in notebook.cells]
    for cell in code_of(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            texts += [output.get("text", ""), *(str(data[kind]) for kind in data if kind.startswith("text/"))]
    assert not [found for text in texts for found in TRACES.findall(text)]


def test_files_of_real_data_are_found():
    script = load()
    cells = [
        nbformat.v4.new_code_cell('DATA = Path(os.environ["CELLRANK_VELOT_DATA"])\nad.read_h5ad(DATA / "one.h5ad")'),
        nbformat.v4.new_code_cell('other = ad.read_h5ad(DATA / "two-2.h5ad")'),
        nbformat.v4.new_code_cell('adata.write_h5ad(folder / "ours.h5ad")'),
        nbformat.v4.new_markdown_cell("See `three.h5ad` in DATA / CELLRANK_VELOT_DATA."),
    ]
    assert script.data_files(nbformat.v4.new_notebook(cells=cells)) == {"one.h5ad", "two-2.h5ad"}


@pytest.mark.slow
def test_the_kernel_is_this_python(monkeypatch: pytest.MonkeyPatch):
    import sys

    script = load()
    monkeypatch.setenv("MPLBACKEND", "Agg")
    source = "import os, sys, matplotlib\nprint(sys.executable, matplotlib.get_backend(), os.environ['LENT'], sep='|')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    script.run(notebook, {"LENT": "yes"})
    python, backend, lent = notebook.cells[0].outputs[0].text.strip().split("|")
    assert (python, lent) == (sys.executable, "yes")
    assert "inline" in backend


def test_what_is_of_one_run_goes():
    cell = nbformat.v4.new_code_cell("1", metadata={"execution": {"iopub.status.busy": "2026"}})
    info = {"name": "python", "version": "3.11.7"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": info})
    tidied = load().tidy(notebook)
    nbformat.validate(tidied)
    assert (tidied.cells[0].id, tidied.cells[0].metadata) == ("cell-00", {})
    assert "version" not in tidied.metadata.language_info
