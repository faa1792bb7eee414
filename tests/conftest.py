"""What every test may use: a backend without a screen, the real data, a planted bifurcation, and what is public."""

import gc
import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import matplotlib
import numpy as np
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, Phase, settings
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from planted import PlantedCells, plant_cells
from umap import umap_

from cellrank_velot import OTVelocityKernel

matplotlib.use("Agg")

# The suite draws the same cases each time; `make fuzz` draws new ones, and writes down what fails.
_fuzz = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("suite", max_examples=200, derandomize=True, database=None, **_fuzz)
settings.register_profile("nightly", max_examples=2500, phases=[Phase.reuse, Phase.generate, Phase.shrink], **_fuzz)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def _little_overhead() -> Iterator[None]:
    """Spare each process what takes it seconds: to compile loops that run on few cells, and to look for lost objects.

    VelocityKernel's loops run as the Python that they are, those of neighbours are kept on disk, and no modules are
    searched for garbage.
    """
    host = importlib.import_module("cellrank.kernels.utils._similarity")
    utils = importlib.import_module("cellrank.kernels._utils")
    known: dict[str, Any] = {"_np_apply_along_axis": utils._np_apply_along_axis.py_func}
    for name in ("np_mean", "norm", "_softmax", "_softmax_masked", "_predict_transition_probabilities_numpy"):
        loop = getattr(host, name).py_func
        known[name] = FunctionType(loop.__code__, loop.__globals__ | known, name, loop.__defaults__)
    for loop in (umap_.smooth_knn_dist, umap_.compute_membership_strengths):
        with suppress(AttributeError, RuntimeError):  # of another kind, or no folder to write to
            loop.enable_caching()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for name, loop in known.items():
            patch.setattr(host, name, loop, raising=False)
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets, which are not part of the package."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CELLRANK_VELOT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the real data are missing: no folder {folder} (set CELLRANK_VELOT_DATA)")
    return folder


@pytest.fixture(scope="session")
def planted() -> PlantedCells:
    """Return 240 cells of two fates; nobody may write to them."""
    cells = plant_cells()
    for array in (cells.x, cells.time, cells.labels, cells.velocity):
        array.flags.writeable = False
    return cells


@pytest.fixture
def adata(planted: PlantedCells) -> AnnData:
    """Return these cells as an AnnData of one's own."""
    return planted.adata()


@pytest.fixture(scope="session")
def _computed(planted: PlantedCells) -> OTVelocityKernel:
    kernel = OTVelocityKernel(planted.adata(), cluster_key="clusters")
    kernel.compute_windows(min_window_size=10).compute_velocity(show_progress_bar=False)
    kernel.fit_field(hidden=(16, 16), n_steps=60, show_progress_bar=False)
    return kernel.compute_transition_matrix()


@pytest.fixture
def computed(_computed: OTVelocityKernel) -> OTVelocityKernel:
    """Return a quickly computed kernel of one's own, with an AnnData of one's own."""
    return _computed.copy(deep=True)


@pytest.fixture(scope="session")
def picture_distance() -> Callable[[Path, Path], float]:
    """Return the root mean squared difference of two pictures, from 0 to 1.

    Of means over blocks of 4 by 4 pixels, which forgive how edges are drawn.
    """

    def coarse(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
        height, width = (size // 4 * 4 for size in pixels.shape[:2])
        return pixels[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3))

    return lambda one, other: float(np.sqrt(np.mean((coarse(one) - coarse(other)) ** 2)))


@pytest.fixture
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pixels and streamlines, without a search for room: for tests that don't look at pictures."""
    savefig, streamplot = Figure.savefig, Axes.streamplot

    def save(self: Figure, path: Path, **options: Any) -> None:
        if options.get("bbox_inches") == "tight":  # no frame of a film
            self.set_layout_engine("none")
            options = {"dpi": 20}
        savefig(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    monkeypatch.setattr(Axes, "streamplot", lambda *x, **k: streamplot(*x, **{**k, "density": 0.2}))


SHORT = {"cellrank_velot.pl": "cellrank_velot.plotting", "cellrank_velot.pp": "cellrank_velot.preprocessing"}


@pytest.fixture(scope="session")
def docs() -> Path:
    """Return the folder of the pages, which a source archive has not."""
    folder = Path(__file__).parents[1] / "docs"
    if not folder.is_dir():
        pytest.skip("no docs, as in a source archive")
    return folder


@pytest.fixture(scope="session")
def listed(docs: Path) -> list[tuple[str, Any]]:
    """Return what the tables of the pages of the API list: full names, and what they name."""
    return [(name, resolve(name)) for page in sorted((docs / "api").glob("*.rst")) for name in listed_on(page)]


def listed_on(page: Path) -> Iterator[str]:
    """Yield the full names in the tables of a page of the API."""
    module, within = "", False
    for line in page.read_text(encoding="utf-8").splitlines():
        named = re.fullmatch(r"\.\. (?:auto|current)?module:: ([\w.]+)", line)
        if named:
            module = named[1]
        elif line and not line.startswith(" "):
            within = line == ".. autosummary::"
        elif within and re.fullmatch(r"   ~?[\w.]+", line):
            name = line.strip().lstrip("~")
            yield name if name.startswith("cellrank_velot.") else f"{module}.{name}"


def resolve(name: str) -> Any:
    """Return the object of a full name."""
    for short, full in SHORT.items():
        name = re.sub(rf"^{short}\b", full, name)
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except ImportError:
        return getattr(resolve(module), last)
