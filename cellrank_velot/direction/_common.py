"""Checks of input, and the velocity as a function of time, for the tests of direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.options import Run, options_of
from cellrank_velot._utils.validation import check_seed
from cellrank_velot.transport import TransportOptions, WindowOptions, build_windows, cluster_cells, compute_velocity

__all__ = [
    "FloatArray",
    "IntArray",
    "VelocityByTime",
    "check_cells",
    "check_labels",
    "check_time",
    "pattern",
    "velocity_by_time",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
VelocityByTime = Callable[[FloatArray], FloatArray]


def check_time(time: ArrayLike) -> FloatArray:
    """Return one time per cell, finite and not constant."""
    values = np.asarray(time, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("Expected one finite `time` per cell, found NaN, infinite values or another shape.")
    if values.size == 0 or np.ptp(values) == 0:
        raise ValueError("Expected `time` to vary, found a constant.")
    return values


def check_cells(x: FloatArray, time: FloatArray, graph: sp.csr_matrix) -> tuple[FloatArray, FloatArray, sp.csr_matrix]:
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
    x: FloatArray,
    graph: sp.csr_matrix,
    neighborhoods: IntArray | None,
    window_options: Mapping[str, Any] | None,
    velocity_options: Mapping[str, Any] | None,
    random_state: int,
    **usual: Any,
) -> VelocityByTime:
    """Return the velocity as a function of time, which can be pickled. Windows are in the same clusters for any time.

    ``usual`` are options of transport in place of its own defaults.
    """
    check_seed(random_state)
    (windows,) = options_of("window_options", window_options, WindowOptions, random_state=random_state)
    options, run = options_of("velocity_options", velocity_options, TransportOptions, Run, device="cpu", **usual)
    labels = cluster_cells(x, random_state=random_state) if neighborhoods is None else neighborhoods
    return partial(_velocity, x=x, graph=graph, labels=labels, windows=windows, options=options, run=run)


def _velocity(
    time: FloatArray,
    x: FloatArray,
    graph: sp.csr_matrix,
    labels: IntArray,
    windows: WindowOptions,
    options: TransportOptions,
    run: Run,
) -> FloatArray:
    built = build_windows(x, time, windows, labels=labels)
    return compute_velocity(x, time, built, graph, options, run).velocity
