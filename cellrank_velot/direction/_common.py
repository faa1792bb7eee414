"""What the checks of direction share: checks of their input, and the velocity as a function of time.

Depends on the stages windows and velocity, numpy and scipy; knows neither AnnData nor CellRank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_seed
from cellrank_velot.transport import TransportOptions, WindowOptions, build_windows, cluster_cells, compute_velocity

__all__ = ["check_cells", "check_labels", "check_time", "pattern", "velocity_by_time"]


def check_time(time: ArrayLike) -> NDArray[np.float64]:
    """Return one time per cell, finite and not constant."""
    values = np.asarray(time, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("Expected one finite `time` per cell, found NaN, infinite values or another shape.")
    if values.size == 0 or np.ptp(values) == 0:
        raise ValueError("Expected `time` to vary, found a constant.")
    return values


def check_cells(
    x: NDArray[np.float64], time: NDArray[np.float64], graph: sp.csr_matrix
) -> tuple[NDArray[np.float64], NDArray[np.float64], sp.csr_matrix]:
    """Return positions, time scaled to [0, 1], as the time lag expects it, and the graph without stored zeros."""
    x, time = np.asarray(x, dtype=np.float64), check_time(time)
    if x.ndim != 2 or x.shape[0] != time.size or not np.isfinite(x).all():
        raise ValueError(f"Expected finite `x` of shape `[{time.size}, n_dims]`, found `{x.shape}` or NaN.")
    if graph.shape != (time.size, time.size):
        raise ValueError(f"Expected `graph` of shape `{(time.size, time.size)}`, found `{graph.shape}`.")
    graph = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    graph.setdiag(0)  # a cell agrees with itself whatever the time
    graph.eliminate_zeros()
    graph.sort_indices()
    if graph.nnz == 0:
        raise ValueError("Expected a neighbour graph with edges, found none.")
    return x, (time - time.min()) / np.ptp(time), graph


def check_labels(labels: ArrayLike, n_cells: int) -> NDArray[Any]:
    """Return one label per cell; those of dtype object as text."""
    names = np.asarray(labels)
    if names.shape != (n_cells,):
        raise ValueError(f"Expected `labels` of shape `({n_cells},)`, found `{names.shape}`.")
    return names.astype(str) if names.dtype == object else names


def pattern(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Return the graph with all weights one."""
    return sp.csr_matrix((np.ones(graph.nnz), graph.indices, graph.indptr), shape=graph.shape)


def velocity_by_time(
    x: NDArray[np.float64],
    graph: sp.csr_matrix,
    neighborhoods: NDArray[np.int64] | None,
    window_options: Mapping[str, Any] | None,
    velocity_options: Mapping[str, Any],
    random_state: int,
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the velocity as a function of time, which can be pickled; the neighbourhoods are the same for any time."""
    check_seed(random_state)
    if neighborhoods is None:
        neighborhoods = cluster_cells(x, random_state=random_state)
    windows = WindowOptions(**{"random_state": random_state, **(window_options or {})})
    options, rest = TransportOptions.split(velocity_options)
    run = Run(**{"device": "cpu", **rest})
    return partial(_velocity, x=x, graph=graph, labels=neighborhoods, windows=windows, options=options, run=run)


def _velocity(
    time: NDArray[np.float64],
    x: NDArray[np.float64],
    graph: sp.csr_matrix,
    labels: NDArray[np.int64],
    windows: WindowOptions,
    options: TransportOptions,
    run: Run,
) -> NDArray[np.float64]:
    built = build_windows(x, time, windows, labels=labels)
    return compute_velocity(x, time, built, graph, options, run).velocity
