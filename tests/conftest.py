"""What every test may use: a backend without a screen, the real data, a planted bifurcation, and what is public."""

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import HealthCheck, Phase, settings
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.neighbors import kneighbors_graph
from umap import umap_

from cellrank_velot import OTVelocityKernel

matplotlib.use("Agg")

# The suite draws the same cases each time; `make fuzz` draws new ones, and writes down what fails.
_fuzz = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("suite", max_examples=200, derandomize=True, database=None, **_fuzz)
settings.register_profile("nightly", max_examples=2500, phases=[Phase.reuse, Phase.generate, Phase.shrink], **_fuzz)
settings.load_profile("suite")


# What VelocityKernel compiles anew in each process, which takes it ten seconds, and few cells a fraction of one.
HOST_LOOPS = {
    "cellrank.kernels._utils": ("_np_apply_along_axis", "norm", "np_mean"),
    "cellrank.kernels.utils._similarity": (
        "_predict_transition_probabilities_numpy",
        "_softmax",
        "_softmax_masked",
        "norm",
        "np_mean",
    ),
    "cellrank.kernels.utils._velocity_model": ("_calculate_starts",),
}


@pytest.fixture(scope="session", autouse=True)
def _little_compilation() -> Iterator[None]:
    """Run the loops of CellRank's VelocityKernel as the Python that they are, and keep those of neighbours on disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module, names in HOST_LOOPS.items():
            for name in names:
                loop = getattr(importlib.import_module(module), name)
                patch.setattr(f"{module}.{name}", getattr(loop, "py_func", loop))
        for loop in (umap_.smooth_knn_dist, umap_.compute_membership_strengths):
            with suppress(AttributeError, RuntimeError):  # of another kind, or no folder to write to
                loop.enable_caching()
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets, which are not part of the package."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CELLRANK_VELOT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the real data are missing: no folder {folder} (set CELLRANK_VELOT_DATA)")
    return folder


@dataclass(frozen=True)
class PlantedCells:
    """A stem that splits into two fates, with the velocity that made it.

    Cells move along the first dimension at speed 4; from time 0.5 on, the fates also part along the second one.
    """

    x: np.ndarray
    time: np.ndarray
    labels: np.ndarray
    velocity: np.ndarray
    graph: sp.csr_matrix

    def adata(self) -> AnnData:
        """Return a new AnnData of these cells, such as scanpy's preprocessing leaves it."""
        n_cells, n_dims = self.x.shape
        loadings = np.linalg.qr(np.random.default_rng(1).normal(size=(20, n_dims)))[0]
        adata = AnnData(
            (self.x @ loadings.T + 5).astype(np.float32),
            obs=pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)]),
            var=pd.DataFrame(index=[f"gene_{i}" for i in range(20)]),
        )
        adata.obs["dpt_pseudotime"] = self.time
        adata.obs["clusters"] = pd.Categorical(np.array(["stem", "left", "right"])[self.labels])
        adata.obs["stage"] = pd.Categorical(np.floor(self.time * 4).astype(int))
        adata.var["highly_variable"] = np.arange(20) < 12
        adata.obsm["X_pca"], adata.obsm["X_umap"] = self.x.copy(), self.x[:, :2].copy()
        adata.varm["PCs"] = loadings
        adata.obsp["connectivities"] = self.graph.copy()
        adata.obsp["distances"] = small_indices(kneighbors_graph(self.x, 10, mode="distance"))
        adata.uns["neighbors"] = {
            "connectivities_key": "connectivities",
            "distances_key": "distances",
            "params": {"n_neighbors": 11, "method": "umap", "use_rep": "X_pca"},
        }
        return adata


def plant_cells(n_cells: int = 240, n_dims: int = 5, noise: float = 0.15, seed: int = 0) -> PlantedCells:
    """Draw the cells of :class:`PlantedCells`."""
    rng = np.random.default_rng(seed)
    time = rng.permutation(np.linspace(0, 0.999, n_cells))
    side = rng.choice([-1.0, 1.0], n_cells)
    x = rng.normal(scale=noise, size=(n_cells, n_dims))
    x[:, 0] += 4 * time
    x[:, 1] += 4 * side * np.maximum(time - 0.5, 0)
    velocity = np.zeros_like(x)
    velocity[:, 0], velocity[:, 1] = 4, 4 * side * (time > 0.5)
    labels = np.where(time <= 0.5, 0, np.where(side < 0, 1, 2))
    return PlantedCells(x, time, labels, velocity, neighbor_graph(x))


def neighbor_graph(x: np.ndarray, n_neighbors: int = 10) -> sp.csr_matrix:
    """Return a symmetric neighbour graph whose weights fall with the distance."""
    distances = kneighbors_graph(x, n_neighbors, mode="distance")
    distances.data = np.exp(-((distances.data / distances.data.mean()) ** 2) / 2)
    return small_indices(sp.csr_matrix(distances.maximum(distances.T)))


def small_indices(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Return the graph with indices of 32 bits, as scanpy leaves it."""
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)
    return graph


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
