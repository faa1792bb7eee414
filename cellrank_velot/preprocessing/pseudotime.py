"""A pseudotime from its root: the root cell of a cluster, and the distance of each cell from the roots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from cellrank_velot._utils.validation import check_choice, check_known
from cellrank_velot.cells import read_basis, read_clusters
from cellrank_velot.graph.geodesic import N_SMOOTHING, geodesic_distances, near_graph, never_falling, shortest_paths
from cellrank_velot.graph.smoothing import means_over, smoothed

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
# Steps by which the distance from the other clusters is smoothed.
_N_STEPS_OF_DEPTH = 2
# What counts as a branch that leaves the root cluster: so many cells, and such a share of all.
_FEWEST_CELLS, _SMALLEST_BRANCH = 5, 0.01


def choose_root_cell(adata: AnnData, root_cluster: str, cluster_key: str = "clusters", *, basis: str = "X_pca") -> int:
    """Choose the cell of a cluster that lies farthest from all other clusters.

    Where one stretch of other cells leaves the cluster, this is a cell at its far end. Where several branches leave it
    in different directions, it is a cell in its middle. A message says which. Distances are lengths of shortest paths
    over smoothed positions, as in :func:`set_pseudotime`. A cell counts as one of the cluster where most of the nearest
    cells do, and distances are averaged over these, so that no outlier is chosen.

    Parameters
    ----------
    adata
        Annotated data with positions and ``obsp["connectivities"]``.
    root_cluster
        Category of ``obs[cluster_key]``.
    cluster_key
        Column of `obs` with the clusters.
    basis
        Key in `obsm` of the positions.

    Returns
    -------
    Position of the root cell in `adata`.

    Raises
    ------
    KeyError
        If `cluster_key`, the basis or the neighbours are missing.
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
    x, lengths = _smoothed_graph(adata, basis)
    inside = (adata.obs[cluster_key].astype(str) == name).to_numpy()
    near = lengths.sign()
    # A single cell of another cluster among them is more likely a wrong name than the next stage.
    outside = means_over(near, (~inside).astype(np.float64)[:, None]).ravel() > 0.5
    outside = outside if (inside & ~outside).any() else ~inside
    depth = geodesic_distances(lengths, np.flatnonzero(outside))
    reached = np.isfinite(depth)
    if (inside & reached).any():
        depth = smoothed(np.where(reached, depth, 0.0), near, _N_STEPS_OF_DEPTH)
    else:  # a part of its own
        depth = -np.linalg.norm(x - x[inside].mean(axis=0), axis=1)
    root = int(np.flatnonzero(inside)[np.argmax(depth[inside])])
    _tell_root(str(adata.obs_names[root]), name, lengths, outside)
    return root


def _tell_root(cell: str, cluster: str, lengths: sp.csr_matrix, outside: NDArray[np.bool_]) -> None:
    """Say which root was chosen, and why: by how many branches leave its cluster, pieces of the graph outside it."""
    _, piece = connected_components(lengths[outside][:, outside], directed=False)
    size = np.bincount(piece)
    n_branches = int((size >= max(_FEWEST_CELLS, _SMALLEST_BRANCH * outside.size)).sum())
    if n_branches > 1:
        where = f"{n_branches} branches leave it, so the root is the cell in the middle, farthest from all of them"
    else:
        where = "the other cells lie on one side of it, so the root is the cell at its far end"
    logger.info("Chose cell %r of cluster %r as a root: %s", cell, cluster, where)


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


def _smoothed_graph(adata: AnnData, basis: str) -> tuple[NDArray[np.float64], sp.csr_matrix]:
    """Return the smoothed positions, and the graph of the cells that are nearest there, with their distances."""
    check_known("adata.obsp", "connectivities", adata.obsp.keys(), "Call `scanpy.pp.neighbors(adata)` first.")
    graph = sp.csr_matrix(adata.obsp["connectivities"], dtype=np.float64)
    x = smoothed(read_basis(adata, basis), graph, N_SMOOTHING)
    return x, near_graph(x, graph)


def _path_time(work: AnnData, roots: Sequence[int], method: str, basis: str) -> NDArray[np.float64]:
    """Return the geodesic pseudotime, or the consensus of it and the diffusion pseudotime."""
    _, lengths = _smoothed_graph(work, basis)
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
    hint = "`anndata.concat` does not keep it: call `scanpy.tl.diffmap(adata)` again."
    check_known("adata.uns", "diffmap_evals", adata.uns.keys(), hint)
    eigenvalues = np.asarray(adata.uns["diffmap_evals"], dtype=np.float64)[1:_N_DPT]
    components = np.asarray(adata.obsm["X_diffmap"], dtype=np.float64)[:, 1:_N_DPT]
    # Eigenvalues are stored in single precision, in which 1 - eigenvalue is known to about 1e-7.
    return np.asarray(components * eigenvalues / np.maximum(1 - eigenvalues, 1e-6))
