"""Print a hash of each result of the kernel: ``python tests/benchmarks/hashes.py > before.txt``.

For a change that must not change results: run it before and after, on one machine, and compare the two lists. The data
sets are simulated cells, the pancreas of the shared data, and a simulated time series.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import pancreas

import cellrank_velot as cv

QUIET = {"show_progress_bar": False}


def digest(value: Any) -> str:
    """Return a short hash of arrays, matrices and tables, to the last bit."""
    if sp.issparse(value):
        value = value.tocsr()
        parts = [value.data, value.indices.astype(np.int64), value.indptr.astype(np.int64)]
    elif isinstance(value, pd.DataFrame | pd.Series):
        parts = [value.to_numpy(dtype=np.float64)]
    else:
        parts = [np.asarray(value)]
    found = hashlib.sha256()
    for part in parts:
        found.update(str((part.shape, part.dtype.str)).encode() + np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:16]


def pseudotime_results(adata: Any, root: str, **options: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a kernel of a pseudotime computes."""
    vk = cv.OTVelocityKernel(adata, **options).compute_transition_matrix(**QUIET)
    yield "raw velocity", vk.raw_velocity
    yield "confidence", vk.confidence
    yield "velocity", vk.velocity
    yield "matrix", vk.transition_matrix
    yield "backward", (~vk).compute_transition_matrix(**QUIET).transition_matrix
    yield "settled", vk.compute_transition_matrix(settle=True, softmax_scale="auto", **QUIET).transition_matrix
    yield "uncertainty", vk.compute_uncertainty(n_members=4, **QUIET).velocity_uncertainty
    yield "monte carlo", vk.compute_transition_matrix(model="monte_carlo", n_samples=8, **QUIET).transition_matrix
    vk.compute_transition_matrix(**QUIET)
    paths = vk.compute_trajectories(start_cluster=root, n_trajectories=5, n_steps=60, step_size=0.02, **QUIET)
    yield "trajectories", paths.x
    back = vk.compute_trajectories(direction="backward", n_trajectories=5, n_steps=30, step_size=0.02, **QUIET)
    yield "trajectories backward", back.x
    flow = vk.simulate_flow(source_cluster=root, n_particles=40, n_steps=60, step_size=0.02, **QUIET)
    yield "flow", flow.x
    yield "projection", vk.project_velocity("umap")
    yield "linear map", vk.project_velocity("umap", method="linear_map")
    landscape = vk.compute_landscape()
    yield "landscape", landscape.potential
    yield "terminal states", np.sort(adata.obs_names.get_indexer(sum(vk.suggest_terminal_states().values(), [])))
    yield "flip test", vk.flip_test().cosine
    yield "test of direction", vk.test_direction(flip=False).p_evidence
    other = cv.OTVelocityKernel(adata, **options).compute_velocity(relaxation=0.1, lambda_knn=0.5, reach=None, **QUIET)
    yield "raw velocity, other options", other.raw_velocity


def series_results(adata: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a kernel of a time series computes."""
    sk = cv.OTVelocityKernel(adata, time_kind="experimental").compute_windows(batch_size=60)
    sk.compute_velocity(tau=0.8, **QUIET)
    yield "raw velocity", sk.raw_velocity
    yield "growth", sk.growth
    sk.fit_field(n_steps=300, **QUIET).compute_transition_matrix(**QUIET)
    yield "velocity", sk.velocity
    yield "matrix", sk.transition_matrix
    yield "backward", (~sk).compute_transition_matrix(**QUIET).transition_matrix
    yield "process", sk.simulate_process(n_particles=100).x
    yield "fates", sk.fate_probabilities(group_by="clusters").table
    yield "ancestry", sk.ancestry(group_by="clusters").table
    yield "population", sk.interpolate(1.5).x
    yield "landscape", sk.compute_landscape().potential
    yield "trajectories", sk.compute_trajectories(n_trajectories=5, n_steps=60, step_size=0.02, **QUIET).x


def main() -> None:
    """Print one line for each result."""
    warnings.simplefilter("ignore")
    sets = {
        "bifurcation": pseudotime_results(cv.datasets.bifurcation(n_cells=400), "Progenitor"),
        "pancreas": pseudotime_results(pancreas(), "Ductal"),
        "birth and death": series_results(cv.datasets.birth_death(n_cells=100)),
    }
    for name, results in sets.items():
        for result, value in results:
            print(f"{name:16} {result:28} {digest(value)}", flush=True)


if __name__ == "__main__":
    main()
