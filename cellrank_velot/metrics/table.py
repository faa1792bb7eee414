"""All metrics of one kernel in a table.

Reads AnnData through a kernel, which does not import it in turn; depends on the other metrics, numpy and pandas.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.metrics.chain import step_forward_fraction
from cellrank_velot.metrics.direction import (
    BoundaryKind,
    cosine_to_truth,
    cross_boundary_correctness,
    inner_cluster_coherence,
)

if TYPE_CHECKING:
    from cellrank_velot.kernel import OTVelocityKernel

__all__ = ["SCORES", "summary"]

#: Scores of a kernel as a whole, of those that :func:`summary` gives.
SCORES = (
    "cross_boundary_cosine",
    "cross_boundary_fraction",
    "inner_cluster_coherence",
    "step_forward",
    "speed",
    "coverage",
    "converged",
    "cosine_to_truth",
    "cosine_to_truth_raw",
)


def summary(
    kernel: OTVelocityKernel,
    cluster_key: str,
    edges: Iterable[tuple[str, str]] | None = None,
    truth_key: str | None = None,
) -> pd.DataFrame:
    """Return what can be said of the velocity of a kernel, in one table.

    Parameters
    ----------
    kernel
        Kernel with a velocity field.
    cluster_key
        Key in ``adata.obs`` of the clusters.
    edges
        Pairs of clusters, from and to, that cells are known to move along; no scores of borders where not given.
    truth_key
        Key in ``adata.obsm`` of a known velocity in the basis of the kernel; no ``cosine_to_truth`` where not given.

    Returns
    -------
    Columns ``metric``, ``group`` and ``value``; the group is an edge as ``"A -> B"``, a cluster, or ``"all"``.

    - ``cross_boundary_cosine``, ``cross_boundary_fraction``: by edge, and the mean over edges, if ``edges`` are given;
    - ``inner_cluster_coherence``: by cluster, and the mean over clusters;
    - ``speed``: median norm of the velocity, in basis per time, by cluster and over all cells;
    - ``coverage``: share of cells with an estimate from transport, by cluster and over all cells;
    - ``converged``: share of the couplings that converged;
    - ``step_forward``: share of cells that a step leads on in time, or back for a backward kernel, if there is a
      transition matrix;
    - ``cosine_to_truth``, ``cosine_to_truth_raw``: of the field and of transport, if ``truth_key`` is given.

    Raises
    ------
    KeyError
        If a key or a cluster of an edge is missing.
    ValueError
        If the known velocity has another shape.
    RuntimeError
        If the kernel has no velocity field yet.

    Examples
    --------
    >>> edges = [("Progenitor", "Transition")]
    >>> table = metrics.summary(vk, "clusters", edges, truth_key="true_velocity_pca")
    >>> value = table[table["group"] == "all"].set_index("metric")["value"]
    >>> bool(value["cosine_to_truth"] > value["cosine_to_truth_raw"])
    True
    """
    adata = kernel.adata
    velocity = kernel.velocity
    check_known("adata.obs", cluster_key, adata.obs.columns)
    labels = adata.obs[cluster_key]
    rows: list[tuple[str, str, float]] = []
    if edges is not None:
        pairs = list(edges)
        for kind in get_args(BoundaryKind):
            score = cross_boundary_correctness(kernel.cells.x, velocity, kernel.connectivities, labels, pairs, kind)
            rows += [(str(score.name), f"{a} -> {b}", value) for (a, b), value in score.items()]
            rows.append((str(score.name), "all", score.mean()))
    score = inner_cluster_coherence(velocity, kernel.connectivities, labels)
    rows += [(str(score.name), str(cluster), value) for cluster, value in score.items()]
    rows.append((str(score.name), "all", score.mean()))
    rows += _by_cluster("speed", pd.Series(np.linalg.norm(velocity, axis=1)), labels, "median")
    rows += _by_cluster("coverage", pd.Series(_estimated(kernel), dtype=np.float64), labels, "mean")
    rows.append(("converged", "all", _converged(kernel)))
    if kernel.params:
        time = -kernel.cells.time if kernel.backward else kernel.cells.time
        rows.append(("step_forward", "all", step_forward_fraction(kernel.transition_matrix, time)))
    if truth_key is not None:
        check_known("adata.obsm", truth_key, adata.obsm.keys())
        truth = np.asarray(adata.obsm[truth_key])
        rows.append(("cosine_to_truth", "all", cosine_to_truth(velocity, truth)))
        rows.append(("cosine_to_truth_raw", "all", cosine_to_truth(kernel.raw_velocity, truth)))
    return pd.DataFrame(rows, columns=["metric", "group", "value"]).astype({"value": np.float64})


def _by_cluster(metric: str, values: pd.Series, labels: pd.Series, how: str) -> list[tuple[str, str, float]]:
    """Return rows of one metric: of each cluster and of all cells."""
    grouped = values.groupby(labels.to_numpy(), sort=True).agg(how)
    rows = [(metric, str(cluster), float(value)) for cluster, value in grouped.items()]
    return [*rows, (metric, "all", float(values.agg(how)))]


def _estimated(kernel: OTVelocityKernel) -> NDArray[np.bool_]:
    """Return which cells have a velocity from transport."""
    return np.asarray(np.isfinite(kernel.raw_velocity).all(axis=1))


def _converged(kernel: OTVelocityKernel) -> float:
    """Return the share of converged couplings, of those that were computed."""
    assert kernel.transport is not None  # the velocity was read from it
    computed = np.isfinite(kernel.transport.marginal_error)
    return float(kernel.transport.converged[computed].mean()) if computed.any() else float("nan")
