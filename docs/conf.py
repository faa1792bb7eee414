"""How Sphinx builds the site. ``make docs`` calls it; nothing is fetched, so that it builds without a network."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy.typing

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # docstrings and mathml


class NDArray(Generic[TypeVar("DType")]):
    """Stands for numpy's, so that a type is shown as it was written and not as what it is short for."""


class ArrayLike:
    """Likewise."""


for stand_in in (NDArray, ArrayLike):  # before the package is imported
    stand_in.__module__ = "numpy.typing"
    setattr(numpy.typing, stand_in.__name__, stand_in)

from cellrank.estimators import GPCCA  # noqa: E402
from cellrank.kernels import Kernel  # noqa: E402

import cellrank_velot  # noqa: E402
from cellrank_velot import metrics  # noqa: E402

# Types that a module imports for type checkers only.
vars(metrics.host).update(GPCCA=GPCCA, Kernel=Kernel)

project = "cellrank_velot"
author = copyright = "The cellrank_velot developers"
version = release = cellrank_velot.__version__

extensions = [
    "docstrings",
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = True
# Names of other packages, whose lists of names would have to be fetched.
nitpick_ignore_regex = [
    (r"py:.*", rf"({package})\..*")
    for package in (
        "anndata",
        "argparse",
        "cellrank",
        "collections",
        "enum",
        "jinja2",
        "matplotlib",
        "numpy",
        "pandas",
        "pathlib",
        "pickle",
        "scanpy",
        "scipy",
        "sklearn",
        "torch",
        "typing",
        r"cellrank_velot(\.\w+)*\._\w+",  # protocols of modules that are not public
    )
]

# ------------------------------------------------------------------------------------------------------------- pages
html_theme = "furo"
html_title = f"cellrank_velot {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
myst_update_mathjax = False
nb_execution_mode = "off"  # notebooks are kept with what they printed

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# --------------------------------------------------------------------------------------------------------------- API
autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"


def from_cellrank() -> list[str]:
    """Return the names that the kernel has from CellRank as they are."""
    kernel = cellrank_velot.OTVelocityKernel
    owners = {name: next(c for c in kernel.__mro__ if name in vars(c)) for name in dir(kernel) if name[0] != "_"}
    return sorted(name for name, owner in owners.items() if not owner.__module__.startswith("cellrank_velot."))


KERNELS = ["OTVelocityKernel", "OTTimeSeriesKernel"]
autosummary_context = {"from_cellrank": from_cellrank(), "kernels": KERNELS}


def copy_notebooks(app: Any) -> None:
    """Copy the notebooks to where Sphinx looks for pages."""
    target = HERE / "generated" / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    others = shutil.ignore_patterns(".*", "*.h5ad", "*.py", "__pycache__")
    shutil.copytree(HERE.parent / "notebooks", target, ignore=others)


def find_notebooks(app: Any, name: str, source: list[str]) -> None:
    """Lead links to notebooks, which hold where the repository is read, to the copies."""
    source[0] = source[0].replace("](../notebooks/", "](generated/notebooks/")


def setup(app: Any) -> None:
    """Register what is ours."""
    app.connect("builder-inited", copy_notebooks, priority=100)
    app.connect("source-read", find_notebooks)
