"""Whether a velocity repeats itself: a field from one part of the cells, against transport in the other part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run, options_of
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_number, check_seed
from cellrank_velot.field import FieldOptions, fit_field
from cellrank_velot.graph import SmoothedCells, smooth_cells
from cellrank_velot.metrics.direction import cosines
from cellrank_velot.transport import (
    TransportOptions,
    TransportVelocity,
    WindowOptions,
    build_windows,
    estimate_velocity,
)

__all__ = ["FieldFunction", "HeldOutAgreement", "held_out_agreement"]

FloatArray = NDArray[np.float64]
FieldFunction = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOutAgreement(Stage):
    """Velocities of the held-out cells, predicted from the other cells and estimated from themselves.

    Attributes
    ----------
    cells
        Positions of the held-out cells among all, shape ``[n_held_out]``.
    predicted
        Velocity of the field of the other cells, shape ``[n_held_out, n_dims]``.
    estimated
        Velocity from transport among the held-out cells, shape ``[n_held_out, n_dims]``; NaN without an estimate.

    Examples
    --------
    >>> x, time, graph = vk.cells.x, vk.cells.time, vk.connectivities
    >>> found = metrics.held_out_agreement(
    ...     x, time, graph, windows={"n_clusters": 3}, field={"n_steps": 100}
    ... )
    >>> found.predicted.shape, bool(found.cosine > 0.3)
    ((150, 20), True)
    """

    cells: NDArray[np.int64]
    predicted: FloatArray
    estimated: FloatArray

    @property
    def cosine(self) -> float:
        """Mean cosine of both over the cells with an estimate, in ``[-1, 1]``; NaN where there is none."""
        cosine = cosines(self.predicted, self.estimated)
        known = np.isfinite(cosine)
        return float(cosine[known].mean()) if known.any() else float("nan")

    @property
    def r2(self) -> float:
        """Share of the variance of the estimates that the field predicts, at most one; NaN where nothing varies.

        Where all cells move alike, only noise varies, and the share is about zero or less: read the cosine there.
        """
        known = np.isfinite(self.estimated).all(axis=1) & np.isfinite(self.predicted).all(axis=1)
        estimated, predicted = self.estimated[known], self.predicted[known]
        if known.sum() < 2:
            return float("nan")
        total = float(np.square(estimated - estimated.mean(axis=0)).sum())
        return 1 - float(np.square(estimated - predicted).sum()) / total if total > 0 else float("nan")


def held_out_agreement(
    x: FloatArray,
    time: FloatArray,
    graph: sp.csr_matrix,
    *,
    labels: NDArray[np.int64] | None = None,
    held_out: float = 0.5,
    windows: Mapping[str, Any] | None = None,
    velocity: Mapping[str, Any] | None = None,
    field: Mapping[str, Any] | None = None,
    fit: Callable[[FloatArray, FloatArray, sp.csr_matrix], FieldFunction] | None = None,
    random_state: int = 0,
) -> HeldOutAgreement:
    """Fit a field without some of the cells and compare it there with an estimate from these cells alone.

    Both share no cell, so their agreement is no overfitting. It says that an estimate repeats itself, not that it is
    true: a bias of both stays hidden. The estimates are not smoothed, and their noise keeps the cosine below one.
    Compare fields under the same ``windows`` and ``velocity``.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``; each part keeps its own edges.
    labels
        Codes of the clusters in which windows are made, shape ``[n_cells]``; KMeans where not given.
    held_out
        Share of the cells that are held out, in ``(0, 1)``.
    windows
        Options of the windows by name, such as ``{"n_clusters": 5}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.compute_windows`, with its defaults.
    velocity
        Options of the transport by name, such as ``{"epsilon": 0.1}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.compute_velocity`, with its defaults.
    field
        Options of the field by name, such as ``{"n_steps": 500}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.fit_field`, with its defaults.
    fit
        Another method to judge, in place of windows, transport and field. It takes positions, time and graph of the
        cells that are kept, and returns a function from positions and time to velocities.
    random_state
        Seed that chooses the cells.

    Returns
    -------
    The velocities, with ``cosine`` and ``r2``.

    Raises
    ------
    TypeError
        If an option is unknown or of the wrong type.
    ValueError
        If shapes do not fit, a share is out of range, or a part has too few cells for its windows or its field.

    Examples
    --------
    >>> x, time, graph = vk.cells.x, vk.cells.time, vk.connectivities
    >>> options = {"windows": {"n_clusters": 3}, "held_out": 0.5}
    >>> found = metrics.held_out_agreement(x, time, graph, field={"n_steps": 100}, **options)

    Another method is judged by a function that fits it, here one that knows a single direction:

    >>> def fit(x, time, graph):
    ...     way = x[time > 0.9].mean(axis=0) - x[time < 0.1].mean(axis=0)
    ...     return lambda positions, time: np.tile(way, (len(positions), 1))
    >>> other = metrics.held_out_agreement(x, time, graph, fit=fit, **options)
    >>> bool(other.cosine < found.cosine)
    True
    """
    check_number("held_out", held_out, low=0, high=1, open_low=True, open_high=True)
    check_seed(random_state)
    n_cells = x.shape[0]
    if time.shape != (n_cells,) or graph.shape != (n_cells, n_cells) or (labels is not None and len(labels) != n_cells):
        raise ValueError(f"Expected time, graph and labels of `{n_cells}` cells, found another number.")
    chosen = np.zeros(n_cells, dtype=np.bool_)
    chosen[np.random.default_rng(random_state).permutation(n_cells)[: round(held_out * n_cells)]] = True
    (window_options,) = options_of("windows", windows, WindowOptions)
    options = (window_options, *options_of("velocity", velocity, TransportOptions, Run))
    kept, left_out = (_part(x, time, graph, labels, np.flatnonzero(c)) for c in (~chosen, chosen))
    if fit is None:
        field_options, run = options_of("field", field, FieldOptions, Run)
        cells, found = _estimate(kept, *options)
        estimate = found.velocity, found.fit_weight, cells.graph, found.relaxation
        predict: FieldFunction = fit_field(*kept[:2], *estimate, field_options, run, smoothed=cells)
    else:
        predict = fit(*kept[:3])
    predicted = np.asarray(predict(*left_out[:2]), dtype=np.float64)
    return HeldOutAgreement(np.flatnonzero(chosen), predicted, _estimate(left_out, *options)[1].velocity)


_Part = tuple[FloatArray, FloatArray, sp.csr_matrix, NDArray[np.int64] | None]


def _part(
    x: FloatArray, time: FloatArray, graph: sp.csr_matrix, labels: NDArray[np.int64] | None, cells: NDArray[np.int64]
) -> _Part:
    """Return positions, time, graph and labels of some cells."""
    codes = None if labels is None else np.unique(np.asarray(labels)[cells], return_inverse=True)[1].astype(np.int64)
    return x[cells], time[cells], sp.csr_matrix(graph)[cells][:, cells], codes


def _estimate(
    part: _Part, windows: WindowOptions, options: TransportOptions, run: Run
) -> tuple[SmoothedCells, TransportVelocity]:
    x, time, graph, labels = part
    cells = smooth_cells(x, time, graph, windows.n_smooth, n_jobs=run.n_jobs)
    return cells, estimate_velocity(cells, build_windows(cells.x, cells.time, windows, labels=labels), options, run)
