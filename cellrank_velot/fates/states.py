"""Where the flow ends and begins: sinks and sources of a transition matrix, candidates for terminal and initial states.

Plain functions over arrays. Depends on numpy, scipy and pandas; knows neither AnnData nor CellRank.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_number

__all__ = ["Sinks", "find_sinks", "reverse_transitions", "suggest_initial_states", "suggest_terminal_states"]

logger = logging.getLogger("cellrank_velot")

# Steps that take a cell this many times through all of time: by then what flows has arrived.
N_PASSAGES = 2.0
MAX_STEPS = 2000
MIN_CELLS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Sinks(Stage):
    """Where the flow collects, the most distinct first.

    Attributes
    ----------
    peak
        Cell of each sink where most arrives, shape ``[n_sinks]``.
    persistence
        Logarithm of how many times more arrives there than at the pass to a greater sink, or, of the greatest, than
        where least arrives; shape ``[n_sinks]``.
    basin
        Sink that each cell lies around, shape ``[n_cells]``, -1 where it is none of these.
    arrival
        Logarithm of what arrives at each cell, averaged over its neighbours, shape ``[n_cells]``. Zero is the mean of
        all cells before the average.
    advance
        Expected change of time in one step from each cell, shape ``[n_cells]``: small where the flow is slow.
    time
        Time of each cell, shape ``[n_cells]``.

    Examples
    --------
    >>> from cellrank_velot.fates.states import find_sinks
    >>> sinks = find_sinks(vk.transition_matrix, vk.connectivities, vk.cells.time)
    >>> sinks.n_sinks, sinks.cells(0, 10).shape
    (2, (10,))
    >>> sinks.to_frame().columns.tolist()
    ['peak', 'persistence', 'share', 'time', 'time_around', 'advance']
    """

    peak: NDArray[np.int64]
    persistence: NDArray[np.float64]
    basin: NDArray[np.int64]
    arrival: NDArray[np.float64]
    advance: NDArray[np.float64]
    time: NDArray[np.float64]

    @property
    def n_sinks(self) -> int:
        """Number of sinks."""
        return int(self.peak.size)

    def cells(self, sink: int, n_cells: int) -> NDArray[np.int64]:
        """Return the cells around a sink that are late and where much arrives, by the sum of both ranks, best first."""
        around = np.flatnonzero(self.basin == sink)
        score = rankdata(self.arrival[around]) + rankdata(self.time[around])
        return around[np.lexsort((-self.arrival[around], -score))[:n_cells]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per sink: its peak, persistence, share of the cells around it, and their time and advance."""
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
    transitions: sp.csr_matrix,
    graph: sp.csr_matrix,
    time: ArrayLike,
    *,
    min_persistence: float = 1.5,
    min_time: float = 0.25,
    min_cells: int | None = None,
    n_steps: int | None = None,
) -> Sinks:
    r"""Find where the flow collects.

    Every cell sends out the same mass, and :math:`a = \sum_{s=0}^{S} (T^\top)^s 1 / (S + 1)` is what passes or stays at
    a cell in S steps: large where the flow converges and slows down. Sinks are the maxima of :math:`\log a`, averaged
    over each cell and its neighbours, on the neighbour graph. A maximum counts by its persistence, the height above the
    pass that leads to a higher one, as in :cite:`chazal:13`; others belong to the sink behind their lowest pass.
    Nothing is drawn at random, and the order of the cells does not matter.

    Parameters
    ----------
    transitions
        Transition matrix of shape ``[n_cells, n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``, taken as undirected.
    time
        Time of each cell, shape ``[n_cells]``.
    min_persistence
        Smallest persistence of a sink; 1.5 asks for a contrast of :math:`e^{1.5} = 4.5`. Chosen on
        simulated flows, where true sinks had at least 2.7 and others at most 0.5.
    min_time
        Share of the cells that are earlier than the peak of a sink, at least.
    min_cells
        Smallest number of cells around a sink; a hundredth of them, at least 10, where not given.
    n_steps
        Number of steps S; twice as many as time from beginning to end takes, at most 2000, where not given.

    Returns
    -------
    The sinks, the most distinct first.

    Raises
    ------
    TypeError
        If an option is no number.
    ValueError
        If shapes do not fit, rows are no probabilities, time is not finite or constant, or an option is out of range.

    Examples
    --------
    >>> from cellrank_velot.fates.states import find_sinks
    >>> sinks = find_sinks(vk.transition_matrix, vk.connectivities, vk.cells.time)
    >>> sorted(adata.obs["clusters"].iloc[sinks.peak])
    ['Fate A', 'Fate B']
    """
    check_number("min_persistence", min_persistence, low=0)
    check_number("min_time", min_time, low=0, high=1)
    transitions, graph, values = _check_flow(transitions, graph, time)
    if min_cells is None:
        min_cells = _default_cells(values.size)
    check_integer("min_cells", min_cells, low=1)
    advance = transitions @ values - values
    if n_steps is None:
        pace = max(float(np.abs(advance).mean()), N_PASSAGES * np.ptp(values) / MAX_STEPS)
        n_steps = int(np.ceil(N_PASSAGES * np.ptp(values) / pace))
    check_integer("n_steps", n_steps, low=1)

    arrival = _average(np.log(_arrival(transitions, n_steps)), graph)
    peaks, persistence, basin = _persistent_maxima(arrival, graph, min_persistence)
    earlier = np.searchsorted(np.sort(values), values[peaks]) / values.size
    size = np.bincount(basin, minlength=peaks.size)
    kept = np.flatnonzero((persistence >= min_persistence) & (earlier >= min_time) & (size >= min_cells))
    kept = kept[np.argsort(-persistence[kept], kind="stable")]
    number = np.full(peaks.size, -1)
    number[kept] = np.arange(kept.size)
    return Sinks(peaks[kept], persistence[kept], number[basin], arrival, advance, values)


def suggest_terminal_states(
    transitions: sp.csr_matrix,
    graph: sp.csr_matrix,
    time: ArrayLike,
    names: Sequence[str] | NDArray[np.str_],
    clusters: ArrayLike | None = None,
    *,
    n_cells: int | None = None,
    backward: bool = False,
    min_persistence: float = 1.5,
    min_time: float = 0.25,
    n_steps: int | None = None,
) -> dict[str, list[str]]:
    """Suggest terminal states: the sinks of the flow, see :func:`find_sinks`.

    Parameters
    ----------
    transitions
        Transition matrix of shape ``[n_cells, n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    time
        Time of each cell, shape ``[n_cells]``.
    names
        Names of the cells, shape ``[n_cells]``.
    clusters
        Cluster of each cell, shape ``[n_cells]``, which names the states; none where not given.
    n_cells
        Cells of each state; a hundredth of all, at least 10, where not given.
    backward
        Whether the transitions lead back in time.
    min_persistence, min_time, n_steps
        See :func:`find_sinks`.

    Returns
    -------
    Names of the cells of each state, the most distinct state first, as ``GPCCA.set_terminal_states`` takes them. A
    state is called after the commonest cluster of its cells; ``_1``, ``_2`` tell states of one cluster apart, and
    without clusters all are called ``terminal``. Empty, with a warning, where the flow has no sink.

    Raises
    ------
    TypeError
        If an option is no number.
    ValueError
        As :func:`find_sinks`, and if there are not as many names and clusters as cells.

    Examples
    --------
    >>> from cellrank_velot.fates.states import suggest_terminal_states
    >>> graph, names = vk.connectivities, adata.obs_names
    >>> states = suggest_terminal_states(
    ...     vk.transition_matrix, graph, vk.cells.time, names, adata.obs["clusters"]
    ... )
    >>> sorted(states)
    ['Fate A', 'Fate B']
    """
    flow = reverse_transitions(transitions) if backward else transitions
    return _suggest(
        "terminal", flow, graph, _numbers(time), names, clusters, n_cells, min_persistence, min_time, n_steps
    )


def suggest_initial_states(
    transitions: sp.csr_matrix,
    graph: sp.csr_matrix,
    time: ArrayLike,
    names: Sequence[str] | NDArray[np.str_],
    clusters: ArrayLike | None = None,
    *,
    n_cells: int | None = None,
    backward: bool = False,
    min_persistence: float = 1.5,
    max_time: float = 0.5,
    n_steps: int | None = None,
) -> dict[str, list[str]]:
    """Suggest initial states: the sources of the flow, which are the sinks of the reversed flow.

    Reversed flow also collects at the tips of fates, where few cells come from beyond; so a source must be early.

    Parameters
    ----------
    transitions, graph, time, names, clusters, n_cells, backward
        See :func:`suggest_terminal_states`.
    min_persistence, n_steps
        See :func:`find_sinks`.
    max_time
        Share of the cells that are earlier than the peak of a source, at most.

    Returns
    -------
    Names of the cells of each state, as ``GPCCA.set_initial_states`` takes them; without clusters all are called
    ``initial``.

    Raises
    ------
    TypeError
        If an option is no number.
    ValueError
        As :func:`suggest_terminal_states`.

    Examples
    --------
    >>> from cellrank_velot.fates.states import suggest_initial_states
    >>> graph, names = vk.connectivities, adata.obs_names
    >>> states = suggest_initial_states(
    ...     vk.transition_matrix, graph, vk.cells.time, names, adata.obs["clusters"]
    ... )
    >>> list(states)
    ['Progenitor']
    """
    check_number("max_time", max_time, low=0, high=1)
    flow = transitions if backward else reverse_transitions(transitions)
    min_time = 1 - max_time
    return _suggest(
        "initial", flow, graph, -_numbers(time), names, clusters, n_cells, min_persistence, min_time, n_steps
    )


def reverse_transitions(transitions: sp.csr_matrix) -> sp.csr_matrix:
    """Return the transitions of the flow reversed: each cell goes where it may have come from.

    Parameters
    ----------
    transitions
        Transition matrix of shape ``[n_cells, n_cells]``.

    Returns
    -------
    Its transpose with rows of sum one, as if as many cells had been everywhere. A cell that none leads to stays.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from cellrank_velot.fates.states import reverse_transitions
    >>> reverse_transitions(sp.csr_matrix([[0.0, 1.0], [0.0, 1.0]])).toarray().tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
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
    n_cells: int | None,
    min_persistence: float,
    min_time: float,
    n_steps: int | None,
) -> dict[str, list[str]]:
    """Find the sinks and name their cells."""
    called = np.asarray(names, dtype=object)
    labels = np.full(called.size, kind) if clusters is None else np.asarray(clusters).astype(str)
    for what, values in (("names", called), ("clusters", labels)):
        if values.shape != time.shape:
            raise ValueError(f"Expected `{what}` of shape `{time.shape}`, found `{values.shape}`.")
    if n_cells is None:
        n_cells = _default_cells(time.size)
    check_integer("n_cells", n_cells, low=1)
    sinks = find_sinks(
        flow, graph, time, min_persistence=min_persistence, min_time=min_time, min_cells=n_cells, n_steps=n_steps
    )
    if not sinks.n_sinks:
        logger.warning("Found no %s state: the flow has no sink that is distinct, in time and large enough", kind)
    states = [sinks.cells(sink, n_cells) for sink in range(sinks.n_sinks)]
    return {name: called[cells].tolist() for name, cells in zip(_state_names(labels, states), states, strict=True)}


def _state_names(labels: NDArray[np.str_], states: Sequence[NDArray[np.int64]]) -> list[str]:
    """Name each state after its commonest cluster, numbered where several have it."""
    names = []
    for cells in states:
        found, counts = np.unique(labels[cells], return_counts=True)
        names.append(str(found[counts.argmax()]))
    return [f"{name}_{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _default_cells(n_cells: int) -> int:
    return max(MIN_CELLS, n_cells // 100)


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
    """Average over each cell and its neighbours; a graph without weights, as these favour the nearest."""
    return np.asarray((values + graph @ values) / (1 + np.diff(graph.indptr)))


def _persistent_maxima(
    height: NDArray[np.float64], graph: sp.csr_matrix, min_persistence: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the maxima on a graph, their persistence, and the maximum that each cell belongs to.

    Cells climb to a maximum; from the highest pass down, maxima are joined, and the lower of both has met a higher one.
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
    # `joined`: maxima that a path above the pass connects; `owner`: the persistent one that a maximum is counted to.
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
    # The last of each row, by height, is its highest neighbour; of equals it is the one that comes last.
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
