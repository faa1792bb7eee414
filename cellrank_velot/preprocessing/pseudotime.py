"""A pseudotime from its root: the root cell of a cluster, and the distance of each cell from the roots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from scipy.stats import rankdata

from cellrank_velot._utils.validation import check_choice, check_known
from cellrank_velot.cells import read_basis, read_clusters
from cellrank_velot.graph.geodesic import N_SMOOTHING, near_graph, never_falling, shortest_paths
from cellrank_velot.graph.smoothing import smoothed

__all__ = ["PSEUDOTIME_KEYS", "PseudotimeMethod", "as_list", "choose_root_cell", "known_clusters", "set_pseudotime"]

logger = logging.getLogger("cellrank_velot")

PseudotimeMethod = Literal["consensus", "geodesic", "diffusion"]
PSEUDOTIME_KEYS = {
    "consensus": "consensus_pseudotime",
    "geodesic": "geodesic_pseudotime",
    "diffusion": "dpt_pseudotime",
}

# Diffusion components that the pseudotime uses, the trivial one included, as in scanpy.
_N_DPT = 10
# Steps by which the distance from the root is averaged over the neighbours.
_N_STEPS_OF_TIME = 4


def choose_root_cell(adata: AnnData, root_cluster: str, cluster_key: str = "clusters") -> int:
    r"""Choose the most extreme cell of a cluster in diffusion space.

    It is the cell of the cluster that lies farthest from the centroid of all cells outside. Squared distances are those
    of diffusion pseudotime, :math:`\sum_k (\lambda_k / (1 - \lambda_k))^2 (\psi_k(x) - \psi_k(y))^2` over the diffusion
    components :math:`\psi_k` with eigenvalues :math:`\lambda_k` :cite:p:`haghverdi:16`. Distances are first averaged
    over each cell's neighbours in the cluster, so that no outlier is chosen. By custom one takes the extreme cell of a
    diffusion component; here no component has to be chosen by eye.

    Parameters
    ----------
    adata
        Annotated data with a diffusion map (``obsm["X_diffmap"]``, ``uns["diffmap_evals"]``) and
        ``obsp["connectivities"]``.
    root_cluster
        Category of ``obs[cluster_key]``.
    cluster_key
        Column of `obs` with the clusters.

    Returns
    -------
    Position of the root cell in `adata`.

    Raises
    ------
    KeyError
        If `cluster_key`, the diffusion map or the neighbours are missing.
    ValueError
        If `root_cluster` is unknown or holds every cell.

    Examples
    --------
    >>> root = pp.choose_root_cell(adata, "Progenitor")
    >>> adata.obs["clusters"].iloc[root]
    'Progenitor'
    >>> root == adata.uns["iroot"]  # the one that `prepare` has chosen
    True
    """
    (name,) = known_clusters(adata, root_cluster, cluster_key)
    position = _diffusion_position(adata)
    check_known("adata.obsp", "connectivities", adata.obsp.keys(), "Call `scanpy.pp.neighbors(adata)` first.")
    inside = (adata.obs[cluster_key].astype(str) == name).to_numpy()
    distance = np.linalg.norm(position[inside] - position[~inside].mean(axis=0), axis=1)
    graph = sp.csr_matrix(adata.obsp["connectivities"])[inside][:, inside] + sp.identity(distance.size)
    smooth = graph @ distance / np.asarray(graph.sum(axis=1)).ravel()
    root = int(np.flatnonzero(inside)[np.argmax(smooth)])
    logger.info("Chose cell %r of cluster %r as a root", str(adata.obs_names[root]), name)
    return root


def set_pseudotime(
    work: AnnData, roots: Sequence[int], method: PseudotimeMethod = "diffusion", *, basis: str = "X_pca"
) -> None:
    r"""Write a pseudotime, the distance from the nearest root, in [0, 1].

    Diffusion pseudotime :cite:p:`haghverdi:16` is a distance in the diffusion map. Its few components cannot follow
    every branch: on a tree it may fall towards the end of an inner branch.

    The geodesic pseudotime is the length of the shortest path along a neighbour graph. Noise would make short cuts.
    So positions are smoothed first, three times by :math:`x_i \leftarrow (x_i + \bar x_{N(i)}) / 2` with the weighted
    mean of the neighbours in the graph given; paths lead over the 15 cells that are nearest there; and four such steps
    over these cells smooth the lengths.

    The consensus is the mean of the ranks that a cell has by both, smoothed likewise. A diffusion pseudotime that falls
    along a shortest path is first replaced by the largest value on the path. So the geodesic one decides on the order
    within a branch, and both on how late a branch ends.

    Parameters
    ----------
    work
        Annotated data with ``obsp["connectivities"]``, and for a diffusion pseudotime with a diffusion map of scanpy,
        ``obsm["X_diffmap"]`` and ``uns["diffmap_evals"]``.
    roots
        Positions of the cells where the process begins.
    method
        ``"diffusion"``, ``"geodesic"`` or ``"consensus"``.
    basis
        Key in `obsm` of the positions for a geodesic pseudotime or the consensus.

    Returns
    -------
    Nothing. Written are ``uns["iroot"]``, the first root, and ``obs["dpt_pseudotime"]``,
    ``obs["geodesic_pseudotime"]`` or ``obs["consensus_pseudotime"]``. But for a diffusion pseudotime, cells that no
    path leads to are infinitely late.

    Raises
    ------
    KeyError
        If there is no diffusion map, no graph, or no such basis.
    ValueError
        If the method is unknown.

    Examples
    --------
    >>> pp.set_pseudotime(adata, [0])
    >>> float(adata.obs["dpt_pseudotime"].iloc[0])
    0.0
    >>> pp.set_pseudotime(adata, [0], "geodesic")
    >>> bool(adata.obs["geodesic_pseudotime"].iloc[0] < 0.1)
    True
    """
    check_choice("method", method, PseudotimeMethod)
    time = _diffusion_time(work, roots) if method == "diffusion" else _path_time(work, roots, method, basis)
    work.uns["iroot"] = roots[0]
    work.obs[PSEUDOTIME_KEYS[method]] = time


def _diffusion_time(work: AnnData, roots: Sequence[int]) -> NDArray[np.float64]:
    position = _diffusion_position(work)
    scaled = []
    for root in roots:
        distance = np.linalg.norm(position - position[root], axis=1)
        scaled.append(distance / distance.max())
    nearest = np.min(scaled, axis=0)
    return np.asarray(nearest / nearest.max())


def _path_time(work: AnnData, roots: Sequence[int], method: str, basis: str) -> NDArray[np.float64]:
    """Return the geodesic pseudotime, or the consensus of it and the diffusion pseudotime."""
    check_known("adata.obsp", "connectivities", work.obsp.keys(), "Call `scanpy.pp.neighbors(adata)` first.")
    graph = sp.csr_matrix(work.obsp["connectivities"], dtype=np.float64)
    lengths = near_graph(smoothed(read_basis(work, basis), graph, N_SMOOTHING), graph)
    # Whether near or nearest, a cell counts as one: the lengths themselves hold their noise.
    near = lengths.sign()
    distance, before = shortest_paths(lengths, np.asarray(roots, dtype=np.int64))
    time = smoothed(distance, near, _N_STEPS_OF_TIME)
    if method == "consensus":
        diffusion = never_falling(smoothed(_diffusion_time(work, roots), near, _N_STEPS_OF_TIME), before)
        ranks = np.where(np.isfinite(time), rankdata(time) + rankdata(diffusion), np.inf)
        time = smoothed(ranks, near, _N_STEPS_OF_TIME)
    reached = time[np.isfinite(time)]
    return np.asarray((time - reached.min()) / np.ptp(reached))


def known_clusters(adata: AnnData, root_cluster: str | Sequence[str], cluster_key: str) -> list[str]:
    """Return the names of the root clusters, of which each exists."""
    clusters = read_clusters(adata, cluster_key)
    wanted = [str(name) for name in as_list(root_cluster)]
    present = sorted(clusters.dropna().astype(str).unique())
    unknown = [name for name in wanted if name not in present]
    if unknown or not wanted:
        raise ValueError(
            f"Expected `root_cluster` to be of {present} in `adata.obs[{cluster_key!r}]`, found {unknown}."
        )
    if len(present) == 1 and clusters.notna().all():
        raise ValueError(
            f"Expected a root cluster, found every cell in cluster {present[0]!r}. Pass `root_cell` instead."
        )
    return wanted


def as_list(values: Any) -> list[Any]:
    """Return one value or several as a list."""
    return [values] if isinstance(values, str) or np.ndim(values) == 0 else list(values)


def _diffusion_position(adata: AnnData) -> NDArray[np.float64]:
    """Return coordinates whose Euclidean distances are those of diffusion pseudotime, shape ``[n_cells, 9]``."""
    check_known("adata.obsm", "X_diffmap", adata.obsm.keys(), "Call `scanpy.tl.diffmap(adata)` first.")
    eigenvalues = np.asarray(adata.uns["diffmap_evals"], dtype=np.float64)[1:_N_DPT]
    components = np.asarray(adata.obsm["X_diffmap"], dtype=np.float64)[:, 1:_N_DPT]
    # Eigenvalues are stored in single precision, in which 1 - eigenvalue is known to about 1e-7.
    return np.asarray(components * eigenvalues / np.maximum(1 - eigenvalues, 1e-6))
