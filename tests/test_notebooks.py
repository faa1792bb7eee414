"""Notebooks run as they are, and hold the results of one run from the top, without traces of a machine.

Their cells run in the process of the tests, which has loaded and compiled all that they need; a kernel of its own would
take half of each one's time for that. ``make notebooks`` runs them in kernels and keeps the results, which the tests
look at. A notebook whose data are missing is skipped with the reason.
"""

import ast
import base64
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot
import nbformat
import numpy as np
import pytest
import scanpy as sc
from PIL import Image

from cellrank_velot import OTVelocityKernel

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# What is large in a notebook is smaller in a test.
VARIABLES = {"CELLRANK_VELOT_N_CELLS": "6000"}
LARGEST = 900_000
TRACES = re.compile(r"(?:/home/|/root/|/tmp/|/Users/|/usr/|/var/|[A-Z]:\\\\)\w*|https?://(?:localhost|127\.)\S*")

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


def run_cell(source: str, name: str, names: dict[str, Any]) -> Any:
    """Run a cell, and return the value of an expression that it ends with."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), names)
    return None if last is None else eval(compile(last, name, "eval"), names)


@contextmanager
def as_it_was() -> Iterator[None]:
    """Put back what a notebook may set for its process: styles, filters of warnings, levels of loggers, variables."""
    levels = {name: logging.getLogger(name).level for name in ("cellrank_velot", "scvelo", "scanpy", "cellrank")}
    scanpy_verbosity, environment = sc.settings.verbosity, dict(os.environ)
    with warnings.catch_warnings(), matplotlib.rc_context():
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            sc.settings.verbosity = scanpy_verbosity
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@pytest.mark.notebook
@each
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch):
    script, notebook = load(), read(path)
    missing = sorted(name for name in script.data_files(notebook) if not (script.data_folder() / name).is_file())
    if missing:
        pytest.skip(f"the real data are missing: no {missing} in {script.data_folder()} (set CELLRANK_VELOT_DATA)")
    monkeypatch.chdir(FOLDER)
    for name, value in {**VARIABLES, script.DATA_KEY: str(script.data_folder())}.items():
        monkeypatch.setenv(name, value)
    # As many steps as with a pseudotime are enough for a time series here.
    monkeypatch.setattr(OTVelocityKernel, "fit_field", partialmethod(OTVelocityKernel.fit_field, n_steps=300))
    with as_it_was():
        names: dict[str, Any] = {"__name__": "__main__"}
        for number, cell in enumerate(code_of(notebook), 1):
            shown = run_cell(cell.source, f"{path.name}, code cell {number}", names)
            for kind in ("_repr_html_", "__repr__"):  # it can be shown
                getattr(shown, kind, str)()
            matplotlib.pyplot.close("all")


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
    assert not [text for text in texts if str(FOLDER.parent) + os.sep in text]


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


def test_pictures_become_smaller_and_stay_what_they_are():
    figure, ax = matplotlib.pyplot.subplots(dpi=70)
    ax.scatter(*np.random.default_rng(0).normal(size=(2, 300)), c=np.arange(300))
    figure.savefig(drawn := io.BytesIO())
    matplotlib.pyplot.close(figure)
    png = base64.b64encode(drawn.getvalue()).decode()
    smaller = load().of_few_colors(png)
    assert len(smaller) < 0.6 * len(png)
    one, other = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"), dtype=int) for text in (png, smaller)
    )
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 1
