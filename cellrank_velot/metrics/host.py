"""CellRank's own scores of a chain, with checked inputs: terminal states found, borders of clusters crossed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellrank_velot._utils.validation import check_integer, check_known
from cellrank_velot.cells import check_clusters

if TYPE_CHECKING:
    from cellrank.estimators import GPCCA
    from cellrank.kernels import Kernel

__all__ = ["step_boundary_correctness", "terminal_state_identification"]


def terminal_state_identification(
    estimator: GPCCA, terminal_states: Sequence[str], cluster_key: str, n_macrostates: int | None = None, **kwargs: Any
) -> float:
    """Return how soon CellRank's macrostates contain the known terminal states: ``GPCCA.tsi`` with checked input.

    For 1 to ``n_macrostates`` macrostates, the numbers of terminal states found are summed, and divided by the sum of
    the largest numbers possible :cite:`weiler:24`. All supported versions of CellRank have it.

    Parameters
    ----------
    estimator
        CellRank's GPCCA on any kernel with a transition matrix. Without PETSc it decomposes a dense matrix of
        ``8 * n_cells ** 2`` bytes. Its own macrostates and terminal states are kept.
    terminal_states
        Clusters that are terminal. CellRank names macrostates after clusters and cuts what follows an underscore.
    cluster_key
        Key in ``adata.obs`` of the clusters.
    n_macrostates
        Largest number of macrostates; the number of terminal states where not given.
    **kwargs
        Passed on to :meth:`cellrank.estimators.GPCCA.compute_macrostates`.

    Returns
    -------
    Score in ``[0, 1]``; one where every macrostate is a terminal state until all are found.

    Raises
    ------
    KeyError
        If the clusters or a terminal state are missing.
    TypeError
        If ``n_macrostates`` is no integer.
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
    check_clusters(estimator.adata, cluster_key, states)
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
    """Return whether the steps of a chain cross the borders of clusters: CellRank's ``Kernel.cbc`` for each edge.

    The score of a cell of A with neighbours in B is Pearson's correlation, over the dimensions of ``rep``, of two
    vectors: its expected step under the transition matrix, and the sum of the displacements to these neighbours,
    weighted by the graph. The score of the edge is the mean over these cells. Unlike
    :func:`~cellrank_velot.metrics.cross_boundary_direction` it judges the matrix and works for any kernel, also for a
    combined one. **It pays for noise**: steps to the mean of the neighbours, without any direction, score high. Compare
    with those of a ``ConnectivityKernel``. CellRank loops over the cells. All supported versions of CellRank have it.

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
    check_clusters(kernel.adata, cluster_key, [cluster for pair in pairs for cluster in pair])
    check_known("adata.obsm", rep, kernel.adata.obsm.keys())
    check_known("adata.obsp", graph_key, kernel.adata.obsp.keys())
    scores = [kernel.cbc(*pair, cluster_key=cluster_key, rep=rep, graph_key=graph_key) for pair in pairs]
    values = [float(np.mean(score)) if len(score) else np.nan for score in scores]
    sources, targets = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    index = pd.MultiIndex.from_arrays([sources, targets], names=["source", "target"])
    return pd.Series(values, index=index, dtype=np.float64, name="step_boundary_correctness")
