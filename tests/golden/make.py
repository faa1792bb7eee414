"""Write the file that versions to come must read: ``python tests/golden/make.py``, run once for each format.

Simulated cells with a kernel of pseudotime and one of a time series, trajectories, and the velocities as they were.
A new format gets a file of its own; this one stays as it is.
"""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel
from cellrank_velot.storage import pack as storage

QUIET = {"show_progress_bar": False}
N_CELLS, N_DIMS = 60, 3


def cells() -> AnnData:
    """Return cells that move along the first dimension and part along the second one."""
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, N_CELLS)
    x = rng.normal(scale=0.1, size=(N_CELLS, N_DIMS))
    x[:, 0] += 3 * time
    x[:, 1] += rng.choice([-1.0, 1.0], N_CELLS) * np.maximum(time - 0.5, 0)
    graph = kneighbors_graph(x, 6)
    graph = (graph + graph.T).tocsr()
    graph.data[:] = 1.0
    adata = AnnData(np.zeros((N_CELLS, 1), np.float32), obs=pd.DataFrame(index=[f"cell_{i}" for i in range(N_CELLS)]))
    adata.obs["dpt_pseudotime"], adata.obs["day"] = time, np.floor(time * 2.999)
    adata.obsm["X_pca"], adata.obsp["connectivities"] = x, graph
    return adata


def main() -> None:
    """Compute both kernels and write them with what they gave."""
    storage.package_version = lambda: "0.1.0"  # a source tree may have none
    adata = cells()
    kernel = OTVelocityKernel(adata).compute_windows(n_clusters=1, min_window_size=8).compute_velocity(**QUIET)
    kernel.fit_field(hidden=(8, 8), n_steps=50, **QUIET).compute_uncertainty(2, **QUIET)
    kernel.compute_transition_matrix(**QUIET).write_to_adata()
    kernel.compute_trajectories(n_trajectories=3, n_steps=20, **QUIET)
    series = OTVelocityKernel(adata, time_key="day", time_kind="experimental")
    series.compute_velocity(**QUIET).fit_field(hidden=(8, 8), n_steps=50, **QUIET)
    series.compute_transition_matrix(**QUIET).write_to_adata("T_series")
    for name, one in {"T_fwd": kernel, "T_series": series}.items():
        adata.obsm[f"expected_{name}"] = one.velocity
        adata.obsm[f"expected_raw_{name}"] = one.raw_velocity
    adata.obs["expected_growth"] = series.growth
    adata.obs["expected_uncertainty"] = kernel.velocity_uncertainty
    with h5py.File(Path(__file__).with_name("velot_0_1.h5ad"), "w", libver="latest") as file:  # half the size
        write_elem(file, "/", adata)


if __name__ == "__main__":
    main()
