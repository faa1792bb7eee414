"""CellRank's own scores of a chain, its inputs checked: terminal states found, borders of clusters crossed.

Calls public methods of CellRank's kernels and estimators and imports none of them; depends on numpy and pandas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cellrank_velot._utils.validation import check_integer, check_known

if TYPE_CHECKING:
    from cellrank.estimators import GPCCA
    from cellrank.kernels import Kernel

__all__ = ["step_boundary_correctness", "terminal_state_identification"]


def terminal_state_identification(
    estimator: GPCCA, terminal_states: Sequence[str], cluster_key: str, n_macrostates: int | None = None, **kwargs: Any
) -> float:
    """Return how soon the known terminal states are among the macrostates: CellRank's own ``GPCCA.tsi``, checked.

    For one macrostate up to ``n_macrostates``, the number of terminal states found, summed, over the same sum of the
    largest number possible :cite:`weiler:24`. Both lines of CellRank that are supported have it.

    Parameters
    ----------
    estimator
        CellRank's GPCCA on any kernel with a transition matrix. Without PETSc it decomposes a dense matrix, of
        ``8 n_cells ** 2`` bytes. Macrostates and terminal states that it has are kept.
    terminal_states
        Clusters that are terminal. CellRank names macrostates after clusters and cuts what follows an underscore.
    cluster_key
        Key in ``adata.obs`` of the clusters.
    n_macrostates
        Largest number of macrostates; the number of terminal states where not given.
    **kwargs
        Passed on to ``GPCCA.compute_macrostates``.

    Returns
    -------
    Score in ``[0, 1]``; one where every macrostate is a terminal state until all are found.

    Raises
    ------
    KeyError
        If the clusters or a terminal state are missing.
    ValueError
        If no terminal state is given, or a name has an underscore.
    RuntimeError
        If CellRank cannot compute so many macrostates.

    Examples
    --------
    >>> g = cr.estimators.GPCCA(vk)
    >>> score = metrics.terminal_state_identification(g, ["Fate A", "Fate B"], "clusters")
    >>> 0 <= score <= 1
    True
    """
    states = [terminal_states] if isinstance(terminal_states, str) else list(dict.fromkeys(terminal_states))
    _check_clusters(estimator.adata, cluster_key, states)
    if not states:
        raise ValueError("Expected at least one terminal state, found none.")
    if cut := [state for state in states if "_" in state]:
        raise ValueError(
            f"Expected names without an underscore, which CellRank cuts, found {cut}. Rename the clusters."
        )
    n_macrostates = check_integer("n_macrostates", len(states) if n_macrostates is None else n_macrostates, low=1)
    try:
        return float(estimator.tsi(n_macrostates, terminal_states=states, cluster_key=cluster_key, **kwargs))
    except IndexError as error:  # how the host fails where the largest number cannot be computed
        raise RuntimeError(f"CellRank cannot compute {n_macrostates} macrostates: ask for one more or less.") from error


def step_boundary_correctness(
    kernel: Kernel,
    edges: Iterable[tuple[str, str]],
    cluster_key: str,
    rep: str = "X_pca",
    graph_key: str = "distances",
) -> pd.Series:
    """Return how well the steps of a chain cross the borders of clusters: CellRank's own ``kernel.cbc``, per edge.

    At each cell of A with neighbours in B, Pearson's correlation over the dimensions of ``rep`` between the expected
    step under the transition matrix and the sum of the displacements to these neighbours, weighted by the graph;
    then the mean over the cells. Unlike
    :func:`~cellrank_velot.metrics.cross_boundary_correctness` it works for any kernel, for a combined one too, and
    judges the matrix. CellRank loops over the cells. Both lines of it that are supported have it.

    Parameters
    ----------
    kernel
        Any CellRank kernel with a transition matrix.
    edges
        Pairs of clusters, from and to.
    cluster_key
        Key in ``adata.obs`` of the clusters.
    rep
        Key in ``adata.obsm`` of the positions.
    graph_key
        Key in ``adata.obsp`` of the graph. ``"distances"``, CellRank's own choice, weighs far neighbours more.

    Returns
    -------
    Score by edge, in ``[-1, 1]``, index ``source`` and ``target``; NaN where no cell of A has a neighbour in B.

    Raises
    ------
    KeyError
        If a key or a cluster is missing.

    Examples
    --------
    >>> edges = [("Progenitor", "Transition"), ("Transition", "Fate A")]
    >>> ck = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    >>> score = metrics.step_boundary_correctness(0.8 * vk + 0.2 * ck, edges, "clusters")
    >>> bool(score.mean() > 0)
    True
    """
    pairs = list(dict.fromkeys((source, target) for source, target in edges))
    _check_clusters(kernel.adata, cluster_key, [cluster for pair in pairs for cluster in pair])
    check_known("adata.obsm", rep, kernel.adata.obsm.keys())
    check_known("adata.obsp", graph_key, kernel.adata.obsp.keys())
    scores = [kernel.cbc(*pair, cluster_key=cluster_key, rep=rep, graph_key=graph_key) for pair in pairs]
    values = [float(np.mean(score)) if len(score) else np.nan for score in scores]
    index = pd.MultiIndex.from_arrays(
        [[pair[0] for pair in pairs], [pair[1] for pair in pairs]], names=["source", "target"]
    )
    return pd.Series(values, index=index, dtype=np.float64, name="step_boundary_correctness")


def _check_clusters(adata: AnnData, cluster_key: str, clusters: Iterable[str]) -> None:
    """Refuse a missing column, and clusters that it does not have."""
    check_known("adata.obs", cluster_key, adata.obs.columns)
    available = list(pd.Categorical(adata.obs[cluster_key]).categories)
    missing = [cluster for cluster in dict.fromkeys(clusters) if cluster not in available]
    if missing:
        raise KeyError(f"Expected clusters of `adata.obs[{cluster_key!r}]`, {available}, found {missing}.")
