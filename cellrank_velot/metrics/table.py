"""All metrics of one kernel in a table."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import read_clusters
from cellrank_velot.metrics._kernel import VelocityKernel
from cellrank_velot.metrics.chain import step_forward_fraction
from cellrank_velot.metrics.direction import cosine_to_truth, cross_boundary_direction, inner_cluster_coherence

__all__ = ["SCORES", "step_forward", "summary"]

#: Scores of a kernel as a whole, among those of :func:`summary`.
SCORES = (
    "cross_boundary_direction",
    "cross_boundary_forward",
    "cross_boundary_reversed",
    "cross_boundary_no_time",
    "inner_cluster_coherence",
    "step_forward",
    "speed",
    "coverage",
    "converged",
    "cosine_to_truth",
    "cosine_to_truth_raw",
)


def summary(
    kernel: VelocityKernel,
    cluster_key: str,
    edges: Iterable[tuple[str, str]] | None = None,
    truth_key: str | None = None,
    *,
    reversed_velocity: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Return all scores of the velocity of a kernel, in one table.

    Parameters
    ----------
    kernel
        Kernel with a velocity field.
    cluster_key
        Key in ``adata.obs`` of the clusters.
    edges
        Pairs of clusters, from and to, that cells are known to move along. Without them there are no scores of borders.
    truth_key
        Key in ``adata.obsm`` of a known velocity in the basis of the kernel, shape ``[n_cells, n_dims]``. Without it
        there is no ``cosine_to_truth``.
    reversed_velocity
        Velocity of the kernel in reversed time, shape ``[n_cells, n_dims]``, for the scores of borders. Where not
        given, ``kernel.reversed_velocity()``, which repeats all steps.

    Returns
    -------
    Columns ``metric``, ``group`` and ``value``. The group is an edge such as ``"A -> B"``, a cluster, or ``"all"``.

    - ``cross_boundary_direction``: by edge, and the mean over edges (if ``edges`` are given); beside it
      ``cross_boundary_forward``, ``cross_boundary_reversed`` and ``cross_boundary_no_time``, which
      :func:`cross_boundary_direction` explains;
    - ``inner_cluster_coherence``: by cluster, and the mean over clusters;
    - ``speed``: median norm of the velocity, in basis units per unit of time, by cluster and over all cells;
    - ``coverage``: share of cells with an estimate from transport, by cluster and over all cells;
    - ``converged``: share of the couplings that converged;
    - ``step_forward``: share of cells that a step leads to a later time, or to an earlier one for a backward kernel (if
      there is a transition matrix);
    - ``cosine_to_truth``, ``cosine_to_truth_raw``: of the field and of transport (if ``truth_key`` is given).

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
    labels = read_clusters(adata, cluster_key)
    rows: list[tuple[str, str, float]] = []
    if edges is not None:
        back = kernel.reversed_velocity() if reversed_velocity is None else reversed_velocity
        across = cross_boundary_direction(kernel.cells.x, velocity, back, kernel.connectivities, labels, edges)
        for column, score in across.items():
            rows += [(f"cross_boundary_{column}", f"{a} -> {b}", value) for (a, b), value in score.items()]
            rows.append((f"cross_boundary_{column}", "all", score.mean()))
    score = inner_cluster_coherence(velocity, kernel.connectivities, labels)
    rows += [(str(score.name), str(cluster), value) for cluster, value in score.items()]
    rows.append((str(score.name), "all", score.mean()))
    rows += _by_cluster("speed", pd.Series(np.linalg.norm(velocity, axis=1)), labels, "median")
    estimated = np.isfinite(kernel.raw_velocity).all(axis=1)
    rows += _by_cluster("coverage", pd.Series(estimated, dtype=np.float64), labels, "mean")
    rows.append(("converged", "all", _converged(kernel)))
    if kernel.params:
        rows.append(("step_forward", "all", step_forward(kernel)))
    if truth_key is not None:
        check_known("adata.obsm", truth_key, adata.obsm.keys())
        truth = np.asarray(adata.obsm[truth_key])
        rows.append(("cosine_to_truth", "all", cosine_to_truth(velocity, truth)))
        rows.append(("cosine_to_truth_raw", "all", cosine_to_truth(kernel.raw_velocity, truth)))
    return pd.DataFrame(rows, columns=["metric", "group", "value"]).astype({"value": np.float64})


def step_forward(kernel: VelocityKernel) -> float:
    """Return the share of cells that a step of a kernel leads on in time, or back for a backward kernel."""
    time = -kernel.cells.time if kernel.backward else kernel.cells.time
    return step_forward_fraction(kernel.transition_matrix, time)


def _by_cluster(metric: str, values: pd.Series, labels: pd.Series, how: str) -> list[tuple[str, str, float]]:
    """Return rows of one metric: of each cluster and of all cells."""
    grouped = values.groupby(labels.to_numpy(), sort=True).agg(how)
    rows = [(metric, str(cluster), float(value)) for cluster, value in grouped.items()]
    return [*rows, (metric, "all", float(values.agg(how)))]


def _converged(kernel: VelocityKernel) -> float:
    """Return the share of converged couplings, of those that were computed."""
    assert kernel.transport is not None  # the velocity was read from it
    computed = np.isfinite(kernel.transport.marginal_error)
    return float(kernel.transport.converged[computed].mean()) if computed.any() else float("nan")
