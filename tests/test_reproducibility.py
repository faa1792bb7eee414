"""The same bits: again, in fresh processes, with more threads, other hashes and seeds, with loops just compiled."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData, read_h5ad

import cellrank_velot
from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot._utils.stage import Stage

pytestmark = pytest.mark.process

ROOT = Path(cellrank_velot.__file__).parents[1]
QUIET = {"show_progress_bar": False}
FEW = {"hidden": (16, 16), "n_steps": 60, **QUIET}

FRESH_PROCESS = """
import json, random, sys
import numpy as np, torch
seed = int(sys.argv[1])
random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
sys.path.insert(0, sys.argv[2])
from test_reproducibility import everything, files
print(json.dumps([torch.get_num_threads(), everything(*files(sys.argv[3]))]))
"""


def files(folder: str | Path) -> tuple[AnnData, AnnData]:
    return read_h5ad(Path(folder) / "pseudotime.h5ad"), read_h5ad(Path(folder) / "series.h5ad")


def hashed(*values) -> str:
    """Return a short hash of arrays, sparse matrices and stages: of every bit of every array in them."""
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, Stage):
            value = list(value.to_dict().values())
        if isinstance(value, (list, tuple, dict)):
            inner = value.items() if isinstance(value, dict) else value
            state.update(hashed(*inner).encode())
        elif sp.issparse(value):
            state.update(hashed(value.data, value.indices, value.indptr).encode())
        elif isinstance(value, np.ndarray) and value.dtype != object:
            state.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, pd.DataFrame):
            state.update(value.to_csv(float_format="%.17g").encode())
        else:
            assert isinstance(value, (str, int, float, bool, type(None), np.generic, np.ndarray)), type(value)
            state.update(str(value).encode())
    return state.hexdigest()[:12]


def of_pseudotime(adata: AnnData) -> dict[str, str]:
    kernel = OTVelocityKernel(adata, cluster_key="clusters").compute_transition_matrix(**QUIET)
    kernel.compute_uncertainty(n_members=2, **QUIET)
    sampled = kernel.copy().compute_transition_matrix(model="monte_carlo", n_samples=8, **QUIET)
    flow = {"source_cluster": "Progenitor", "n_particles": 20, "n_steps": 30}
    return {
        "windows": hashed(kernel.windows),
        "transport": hashed(kernel.transport),
        "field": hashed(kernel.field, kernel.velocity, kernel.query_velocity(kernel.cells.x[:50] + 0.1)),
        "transition matrix": hashed(kernel.transition_matrix),
        "sampled transition matrix": hashed(sampled.transition_matrix),
        "uncertainty": hashed(kernel.uncertainty, kernel.velocity_uncertainty),
        "trajectories": hashed(
            kernel.compute_trajectories(start_cluster="Progenitor", n_trajectories=8, n_steps=30, **QUIET)
        ),
        "flow": hashed(kernel.simulate_flow(noise_scale=0.1, **flow, **QUIET)),
        "regulation": hashed(kernel.compute_regulation(n_bootstrap=20)),
        "test of direction": hashed(kernel.test_direction(layer="true_expression", flip=False, n_draws=3)),
        "fate shift": hashed(kernel.fate_shift({adata.var_names[0]: 0.0}, n_null=2, **flow, **QUIET)),
    }


def of_series(adata: AnnData) -> dict[str, str]:
    kernel = OTVelocityKernel(adata, time_key="day", time_kind="experimental", cluster_key="clusters")
    kernel.compute_velocity(**QUIET).fit_field(**FEW).compute_transition_matrix(**QUIET)
    return {
        "couplings": hashed(kernel.couplings),
        "growth": hashed(kernel.growth),
        "transition matrix of a series": hashed(kernel.transition_matrix),
        "process": hashed(kernel.simulate_process(n_particles=40)),
        "landscape": hashed(kernel.compute_landscape()),
        "interpolation": hashed(kernel.interpolate(0.5)),
    }


def everything(pseudotime: AnnData, series: AnnData) -> dict[str, str]:
    return of_pseudotime(pseudotime) | of_series(series)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    datasets.bifurcation(n_cells=400, n_genes=30).write_h5ad(folder / "pseudotime.h5ad")
    datasets.birth_death(n_cells=100, times=(0.0, 1.0, 2.0), random_state=0).write_h5ad(folder / "series.h5ad")
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, str]:
    return everything(*files(folder))


def test_again_in_this_process_whatever_the_global_seeds(folder, expected):
    def states() -> list[str]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return [str(random.getstate()), str(numpy_state[1].tolist()), hashed(torch.get_rng_state().numpy())]

    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(99)
        before = states()
        assert everything(*files(folder)) == expected
        assert states() == before


def test_a_fresh_process(folder, expected, tmp_path):
    """Compiles the loops itself, and must not differ from this one by that, nor by its threads, hashes and seeds."""
    n_threads = 1 if torch.get_num_threads() > 1 else min(2, os.cpu_count() or 1)
    threads = {f"{name}_NUM_THREADS": str(n_threads) for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    own = {"PYTHONHASHSEED": "1", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore", **threads}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", FRESH_PROCESS, "1", str(Path(__file__).parent), str(folder)]
    environment = {**os.environ, **own, "PYTHONPATH": path}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [n_threads, expected]
    assert list(tmp_path.rglob("*.nbc")), "loops were compiled and kept"
