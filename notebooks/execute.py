"""Run the notebooks of this folder anew and keep what they print: ``python notebooks/execute.py [NAMES...]``.

A notebook runs in its folder, in a kernel of the Python that runs this script, whichever kernels are registered. The
tests run notebooks by the same function. Depends on nbformat, nbclient, ipykernel
and pillow.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
DATA_KEY = "CELLRANK_VELOT_DATA"
# What is kept beside the cells: nothing of the machine that ran them.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}


class ThisPython(AsyncKernelManager):
    """Starts this interpreter: a kernel that is registered as "python3" may be another one."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Return how to start it."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def data_folder() -> Path:
    """Return the folder of the real data: that of the environment, or ``shared/data`` beside the repository."""
    return Path(os.environ.get(DATA_KEY, HERE.parents[1] / "shared" / "data")).resolve()


def data_files(notebook: Any) -> set[str]:
    """Return the names of the files of real data that a notebook reads, as ``DATA / "cells.h5ad"`` or the like."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    read = [text for text in code if DATA_KEY in text or "DATA /" in text]
    return {name for text in read for name in re.findall(r"([\w-]+\.h5ad)", text)}


def run(notebook: Any, variables: Mapping[str, str] | None = None, timeout: int = 1200) -> Any:
    """Run all cells of a notebook, which then has its new outputs.

    Parameters
    ----------
    notebook
        What nbformat has read.
    variables
        Environment variables that it gets besides.
    timeout
        Seconds that a cell may take.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    with tempfile.TemporaryDirectory() as settings:
        # Figures are wanted, so no backend of a test run; nobody's start-up files; and bars of text will do.
        environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
        environment |= {
            "IPYTHONDIR": settings,
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "PYTHONWARNINGS": "ignore:IProgress not found",
            DATA_KEY: str(data_folder()),
        }
        client = NotebookClient(
            notebook,
            kernel_manager_class=ThisPython,
            resources={"metadata": {"path": str(HERE)}},
            timeout=timeout,
            record_timing=False,
        )
        return client.execute(env={**environment, **(variables or {})})


def tidy(notebook: Any) -> Any:
    """Take away what is of one run or one machine, and what is no result; and make the pictures small."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{number:02d}"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_bar(output)]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = of_few_colors(output.data["image/png"])
    return notebook


def is_bar(output: Any) -> bool:
    """Return whether this is a step of a progress bar, which is of one run."""
    return output.output_type == "stream" and output.name == "stderr" and (output.text + "\r")[0] in "\r\n"


def of_few_colors(png: str) -> str:
    """Return a picture with 256 colours, which is a quarter of the size and looks the same."""
    smaller = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        # A palette by the colours themselves: one by how often they occur changes those of dots in legends.
        few = image.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.putpalette([255 if value >= 254 else value for value in few.getpalette() or ()])
    few.save(smaller, "png", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def main(names: list[str]) -> None:
    """Run these notebooks, or all."""
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
        run(notebook)
        nbformat.write(tidy(notebook), path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
