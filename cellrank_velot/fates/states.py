"""Candidates for initial states: the sources of the flow of a transition matrix, the sinks of the reversed one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_number

__all__ = [
    "SinkOptions",
    "Sinks",
    "SourceOptions",
    "find_sinks",
    "reverse_transitions",
    "suggest_initial_states",
]

logger = logging.getLogger("cellrank_velot")

# Steps that take a cell this many times through all of time: by then what flows has arrived.
N_PASSAGES = 2.0
MAX_STEPS = 2000
MIN_CELLS = 10


@dataclass(frozen=True, kw_only=True)
class SinkOptions(Options):
    """Options of sinks: size, contrast, earliest time and number of steps of the flow."""

    n_cells: int | None = None
    min_persistence: float = 1.5
    min_time: float = 0.25
    n_steps: int | None = None

    def __post_init__(self) -> None:
        """Check them."""
        check_number("min_persistence", self.min_persistence, low=0)
        check_number("min_time", self.min_time, low=0, high=1)
        for name in ("n_cells", "n_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), low=1)

    def cells_of(self, n_cells: int) -> int:
        """Return the number of cells of a state, of all these cells."""
        return max(MIN_CELLS, n_cells // 100) if self.n_cells is None else self.n_cells


@dataclass(frozen=True, kw_only=True)
class SourceOptions(SinkOptions):
    """Options of ``OTVelocityKernel.suggest_initial_states``: a source is a sink of the reversed flow, and early."""

    min_time: float = field(init=False)
    max_time: float = 0.5

    def __post_init__(self) -> None:
        """Check them."""
        check_number("max_time", self.max_time, low=0, high=1)
        object.__setattr__(self, "min_time", 1 - self.max_time)
        super().__post_init__()


@dataclass(frozen=True, slots=True, eq=False)
class Sinks(Stage):
    """Where the flow collects, the most distinct sink first. :func:`find_sinks` says how it is found."""

    # The cell of each sink where most arrives, [n_sinks].
    peak: NDArray[np.int64]
    # How far the log arrival at the peak lies above the pass to a higher sink, or above the lowest cell, [n_sinks].
    persistence: NDArray[np.float64]
    # The sink that each cell belongs to, -1 for none, [n_cells].
    basin: NDArray[np.int64]
    # Log of the mass that arrives at each cell, averaged over its neighbours, [n_cells]. Zero is the mean of all cells.
    arrival: NDArray[np.float64]
    # Expected change of time in one step from each cell, [n_cells].
    advance: NDArray[np.float64]
    # Time of each cell, [n_cells].
    time: NDArray[np.float64]

    @property
    def n_sinks(self) -> int:
        """Number of sinks."""
        return int(self.peak.size)

    def cells(self, sink: int, n_cells: int) -> NDArray[np.int64]:
        """Return the cells of a sink that are latest and where most arrives, by the sum of both ranks, best first."""
        around = np.flatnonzero(self.basin == sink)
        score = rankdata(self.arrival[around]) + rankdata(self.time[around])
        return around[np.lexsort((-self.arrival[around], -score))[:n_cells]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per sink: its peak, persistence and share of the cells, and their mean time and advance."""
        around = [self.basin == sink for sink in range(self.n_sinks)]
        return pd.DataFrame(
            {
                "peak": self.peak,
                "persistence": self.persistence,
                "share": [inside.mean() for inside in around],
                "time": self.time[self.peak],
                "time_around": [self.time[inside].mean() for inside in around],
                "advance": [self.advance[inside].mean() for inside in around],
            },
            index=pd.RangeIndex(self.n_sinks, name="sink"),
        )


def find_sinks(
    transitions: sp.csr_matrix, graph: sp.csr_matrix, time: ArrayLike, options: SinkOptions = SinkOptions()
) -> Sinks:
    r"""Find where the flow collects.

    Each cell sends out the same mass. What arrives at the cells in S steps, on average, is
    :math:`a = \sum_{s=0}^{S} (T^\top)^s 1 / (S + 1)`: much where the flow converges and slows down. Sinks are the
    maxima of :math:`\log a` on the neighbour graph, after an average over each cell and its neighbours. A maximum
    counts by its persistence, which is its height above the pass to a higher one :cite:`chazal:13`. A maximum of less
    persistence belongs to the sink behind its highest pass. Nothing is drawn at random.
    """
    transitions, graph, values = _check_flow(transitions, graph, time)
    advance = transitions @ values - values
    n_steps = options.n_steps
    if n_steps is None:
        pace = max(float(np.abs(advance).mean()), N_PASSAGES * np.ptp(values) / MAX_STEPS)
        n_steps = int(np.ceil(N_PASSAGES * np.ptp(values) / pace))

    arrival = _average(np.log(_arrival(transitions, n_steps)), graph)
    peaks, persistence, basin = _persistent_maxima(arrival, graph, options.min_persistence)
    earlier = np.searchsorted(np.sort(values), values[peaks]) / values.size
    size = np.bincount(basin, minlength=peaks.size)
    distinct = (persistence >= options.min_persistence) & (earlier >= options.min_time)
    kept = np.flatnonzero(distinct & (size >= options.cells_of(values.size)))
    kept = kept[np.argsort(-persistence[kept], kind="stable")]
    number = np.full(peaks.size, -1)
    number[kept] = np.arange(kept.size)
    return Sinks(peaks[kept], persistence[kept], number[basin], arrival, advance, values)


def suggest_initial_states(
    transitions: sp.csr_matrix,
    graph: sp.csr_matrix,
    time: ArrayLike,
    names: Sequence[str] | NDArray[np.str_],
    clusters: ArrayLike | None = None,
    options: SourceOptions = SourceOptions(),
    *,
    backward: bool = False,
) -> dict[str, list[str]]:
    """Return the names of the cells of each source of the flow, which is a sink of the reversed flow."""
    flow = transitions if backward else reverse_transitions(transitions)
    return _suggest("initial", flow, graph, -_numbers(time), names, clusters, options)


def reverse_transitions(transitions: sp.csr_matrix) -> sp.csr_matrix:
    """Return the transpose with rows of sum one: each cell goes where it may have come from, or stays if nowhere."""
    came = sp.csr_matrix(sp.csr_matrix(transitions, dtype=np.float64).T)
    total = np.asarray(came.sum(axis=1)).ravel()
    stays = sp.diags((total <= 0).astype(np.float64))
    return sp.csr_matrix(sp.diags(1 / np.where(total > 0, total, 1.0)) @ came + stays)


def _suggest(
    kind: str,
    flow: sp.csr_matrix,
    graph: sp.csr_matrix,
    time: NDArray[np.float64],
    names: Sequence[str] | NDArray[np.str_],
    clusters: ArrayLike | None,
    options: SinkOptions,
) -> dict[str, list[str]]:
    """Find the sinks and name their cells."""
    called = np.asarray(names, dtype=object)
    labels = np.full(called.size, kind) if clusters is None else np.asarray(clusters).astype(str)
    for what, values in (("names", called), ("clusters", labels)):
        if values.shape != time.shape:
            raise ValueError(f"Expected `{what}` of shape `{time.shape}`, found `{values.shape}`.")
    sinks = find_sinks(flow, graph, time, options)
    if not sinks.n_sinks:
        logger.warning("Found no %s state: the flow has no sink that is distinct, in time and large enough", kind)
    states = [sinks.cells(sink, options.cells_of(time.size)) for sink in range(sinks.n_sinks)]
    return {name: called[cells].tolist() for name, cells in zip(_state_names(labels, states), states, strict=True)}


def _state_names(labels: NDArray[np.str_], states: Sequence[NDArray[np.int64]]) -> list[str]:
    """Name each state after its commonest cluster, numbered where several have it."""
    names = []
    for cells in states:
        found, counts = np.unique(labels[cells], return_counts=True)
        names.append(str(found[counts.argmax()]))
    return [f"{name}_{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _arrival(transitions: sp.csr_matrix, n_steps: int) -> NDArray[np.float64]:
    """Return the mean mass at each cell over some steps from one unit at every cell, shape ``[n_cells]``."""
    come = sp.csr_matrix(transitions.T)
    mass = np.ones(transitions.shape[0])
    total = mass.copy()
    for _ in range(n_steps):
        mass = come @ mass
        total += mass
    return total / (n_steps + 1)


def _average(values: NDArray[np.float64], graph: sp.csr_matrix) -> NDArray[np.float64]:
    """Average over each cell and its neighbours, all with the same weight."""
    return np.asarray((values + graph @ values) / (1 + np.diff(graph.indptr)))


def _persistent_maxima(
    height: NDArray[np.float64], graph: sp.csr_matrix, min_persistence: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the maxima on a graph, their persistence, and the persistent maximum that each cell belongs to.

    Each cell climbs to a maximum. Then maxima are joined over their passes, the highest pass first.
    """
    n_cells = height.size
    top = _climb(height, graph)
    peaks, basin = np.unique(top, return_inverse=True)
    rank = np.empty(peaks.size, dtype=np.int64)
    rank[np.lexsort((peaks, -height[peaks]))] = np.arange(peaks.size)  # 0 is the highest

    _, component = connected_components(graph, directed=False)
    lowest = np.full(component.max() + 1, np.inf)
    np.minimum.at(lowest, component, height)
    persistence = height[peaks] - lowest[component[peaks]]
    source = np.repeat(np.arange(n_cells), np.diff(graph.indptr))
    a, b = basin[source], basin[graph.indices]
    passing = np.minimum(height[source], height[graph.indices])
    across = np.flatnonzero(a < b)
    across = across[np.lexsort((b[across], a[across], -passing[across]))]
    _, first = np.unique(a[across] * peaks.size + b[across], return_index=True)
    joined, owner = np.arange(peaks.size), np.arange(peaks.size)
    # `joined`: the highest maximum that a path above the pass leads to. `owner`: the persistent one it counts to.
    for edge in across[np.sort(first)]:
        i, j = joined[a[edge]], joined[b[edge]]
        if i == j:
            continue
        high, low = (i, j) if rank[i] < rank[j] else (j, i)
        persistence[low] = height[peaks[low]] - passing[edge]
        if persistence[low] < min_persistence:
            nearest = owner[a[edge] if joined[a[edge]] == high else b[edge]]
            owner[owner == low] = nearest
        joined[joined == low] = high
    return peaks, persistence, owner[basin]


def _climb(height: NDArray[np.float64], graph: sp.csr_matrix) -> NDArray[np.int64]:
    """Return the maximum that each cell reaches by always going to its highest neighbour."""
    n_cells = height.size
    around = sp.csr_matrix(graph + sp.identity(n_cells, format="csr"))
    source = np.repeat(np.arange(n_cells), np.diff(around.indptr))
    # Sorted by height, the last of each row is its highest neighbour. Of equal ones it is the one that comes last.
    order = np.lexsort((around.indices, height[around.indices], source))
    goal = around.indices[order][around.indptr[1:] - 1].astype(np.int64)
    while (goal != goal[goal]).any():
        goal = goal[goal]
    return goal


def _numbers(time: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(time, dtype=np.float64)


def _check_flow(
    transitions: sp.csr_matrix, graph: sp.csr_matrix, time: ArrayLike
) -> tuple[sp.csr_matrix, sp.csr_matrix, NDArray[np.float64]]:
    """Return the transitions, the pattern of the graph without loops and directions, and the time."""
    values = _numbers(time)
    if values.ndim != 1 or not np.isfinite(values).all() or values.size == 0 or np.ptp(values) == 0:
        raise ValueError("Expected one finite `time` per cell that varies, found NaN, a constant or another shape.")
    shape = (values.size, values.size)
    for what, matrix in (("transitions", transitions), ("graph", graph)):
        if matrix.shape != shape:
            raise ValueError(f"Expected `{what}` of shape `{shape}`, found `{matrix.shape}`.")
    transitions = sp.csr_matrix(transitions, dtype=np.float64)
    rows = np.asarray(transitions.sum(axis=1)).ravel()
    if not (np.allclose(rows, 1, atol=1e-4) and (transitions.data >= 0).all()):
        raise ValueError("Expected rows of `transitions` to be probabilities of sum one, found others.")
    pattern = sp.csr_matrix(graph, dtype=np.float64, copy=True)
    pattern.setdiag(0)
    pattern.eliminate_zeros()
    pattern = sp.csr_matrix(pattern.maximum(pattern.T))
    pattern.data = np.ones_like(pattern.data)
    return transitions, pattern, values
