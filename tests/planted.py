"""The planted bifurcation that many tests share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.neighbors import kneighbors_graph

__all__ = ["PlantedCells", "neighbor_graph", "plant_cells"]


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
