"""The permutation test: whether there is more direction than shuffled time gives, overall and across borders."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.parallel import run
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_choice, check_integer
from cellrank_velot.direction._common import (
    FloatArray,
    IntArray,
    VelocityByTime,
    check_cells,
    check_labels,
    pattern,
    velocity_by_time,
)

__all__ = ["PermutationTest", "Statistic", "permutation_test"]

logger = logging.getLogger("cellrank_velot")

Statistic = Literal["both", "coherence", "ascent"]
Edges = Sequence[tuple[Hashable, Hashable]]

STATISTICS = ("coherence", "ascent")
# Edges whose displacements are held at a time.
CHUNK_EDGES = 2**18


@dataclass(frozen=True, slots=True, eq=False)
class PermutationTest(Stage):
    """Result of :func:`permutation_test`. Printed, it says what it means.

    Attributes
    ----------
    statistics
        Names of the statistics.
    observed
        Statistics with the time given, shape ``[n_statistics]``.
    null
        The same with shuffled time, shape ``[n_permutations, n_statistics]``.
    edges
        Source and target cluster of each border.
    n_border
        Number of edges of the neighbour graph across each border, shape ``[n_borders]``.
    flow
        Mean cosine between the velocity at each border and the way across it, shape ``[n_borders]``; NaN where the
        clusters do not touch.
    null_flow
        The same with shuffled time, shape ``[n_permutations, n_borders]``.

    Examples
    --------
    >>> test = direction.permutation_test(
    ...     vk.cells.x, vk.cells.time, vk.connectivities, n_permutations=39
    ... )
    >>> test.null.shape, bool((test.observed > test.null).all())
    ((39, 2), True)
    >>> print(test)
    Direction: more than chance, p = 0.025 of 39 permutations: ...
    """

    statistics: tuple[str, ...]
    observed: NDArray[np.float64]
    null: NDArray[np.float64]
    edges: tuple[tuple[Any, Any], ...]
    n_border: NDArray[np.int64]
    flow: NDArray[np.float64]
    null_flow: NDArray[np.float64]

    @property
    def n_permutations(self) -> int:
        """Number of permutations."""
        return int(self.null.shape[0])

    @property
    def p_value(self) -> float:
        """Global p-value: that of the statistic with the largest one, as all of them must exceed chance."""
        return float(_p_values(self.observed, self.null).max())

    @property
    def p_border(self) -> NDArray[np.float64]:
        """p-value of each border, shape ``[n_borders]``; NaN where clusters do not touch."""
        return _p_values(self.flow, self.null_flow)

    @property
    def p_border_adjusted(self) -> NDArray[np.float64]:
        """p-values that hold for all borders together :cite:p:`westfall:93`, shape ``[n_borders]``."""
        return _max_p_values(self.flow, self.null_flow)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per statistic and one per border: observed value, mean and deviation by chance, p-values."""
        borders = [f"{source} -> {target}" for source, target in self.edges]
        observed, null = np.concatenate([self.observed, self.flow]), np.hstack([self.null, self.null_flow])
        return pd.DataFrame(
            {
                "observed": observed,
                "null_mean": null.mean(axis=0),
                "null_std": null.std(axis=0),
                "p_value": _p_values(observed, null),
                "p_adjusted": np.concatenate([np.full(len(self.statistics), np.nan), self.p_border_adjusted]),
                "n_border": pd.array([pd.NA] * len(self.statistics) + self.n_border.tolist(), dtype="Int64"),
            },
            index=pd.Index([*self.statistics, *borders], name="test"),
        )

    def __str__(self) -> str:
        found = "more than chance" if self.p_value <= 0.05 else "no more than chance"
        values = ", ".join(
            f"{name} {value:.2f} (chance {chance:.2f})"
            for name, value, chance in zip(self.statistics, self.observed, self.null.mean(axis=0), strict=True)
        )
        lines = [f"Direction: {found}, p = {self.p_value:.3g} of {self.n_permutations} permutations: {values}."]
        lines += [
            f"  {source} -> {target}: flow {flow:+.2f}, p = {p:.3g} (adjusted {adjusted:.3g})"
            for (source, target), flow, p, adjusted in zip(
                self.edges, self.flow, self.p_border, self.p_border_adjusted, strict=True
            )
        ]
        return "\n".join(lines)


def permutation_test(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    labels: ArrayLike | None = None,
    edges: Sequence[tuple[Hashable, Hashable]] | None = None,
    *,
    n_permutations: int = 199,
    statistic: Statistic = "both",
    neighborhoods: NDArray[np.int64] | None = None,
    window_options: Mapping[str, Any] | None = None,
    velocity_options: Mapping[str, Any] | None = None,
    random_state: int = 0,
    n_jobs: int | None = None,
) -> PermutationTest:
    r"""Test whether there is more direction than shuffled time would give.

    For the time given and for each permutation of it, windows are made and transported. The velocities :math:`v_i`,
    before any smoothing, are summarised over the edges (i, j) of the neighbour graph:

    - ``"coherence"``, the mean of :math:`\cos(v_i, v_j)`: neighbours agree on where to go;
    - ``"ascent"``, the mean of :math:`\cos(v_i, x_j - x_i)` weighted by :math:`t_j - t_i`: they go where it is later.

    Shuffled time gives one of them by chance, but hardly both. So by default both must exceed chance: the p-value is
    the larger of their values of :math:`p = (1 + \#\{null \geq observed\}) / (1 + n_{permutations})`, each of which is
    exact under the null :cite:p:`phipson:10`. This is conservative: of 100 data sets without direction, clearly fewer
    than 5 have a p-value below 0.05.

    The null is *time unrelated to position*. A pseudotime that is a function of the positions, such as diffusion
    pseudotime, always gives a coherent field: on a formless cloud as well, and the opposite field from a root at the
    other end. No shuffling can tell such a direction from a true one. The direction always comes from the time given;
    support for it must come from elsewhere, see :func:`root_check`.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``, to test the flow across borders of clusters. Without them no borders
        are tested.
    edges
        Source and target cluster of each border to test. Where not given, all clusters that touch, in both directions.
    n_permutations
        Number of permutations.
    statistic
        ``"coherence"``, ``"ascent"``, or ``"both"``.
    neighborhoods
        Codes of the spatial clusters in which windows are made, shape ``[n_cells]``; KMeans in ``x`` where not given.
        They must not depend on time.
    window_options
        Options of the windows by name, such as ``{"n_clusters": 5}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.compute_windows`, with its defaults.
    velocity_options
        Options of the transport by name, such as ``{"epsilon": 0.1}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.compute_velocity`, with its defaults but for ``tol=1e-3`` and
        ``relaxation=0.0``: the relaxation points to the manifold, whatever the time is.
    random_state
        Seed of the permutations and of KMeans.
    n_jobs
        Number of jobs. ``None`` takes that of joblib's ``parallel_config``, which also chooses between threads,
        processes and a cluster. The result is the same.

    Returns
    -------
    Observed and shuffled statistics, with p-values. The flow of a border is the mean cosine between the velocity at
    both its sides and the displacement across. It is tested one-sided: a border that is crossed the other way has a
    p-value near one. ``p_border_adjusted`` holds for all borders together.

    Raises
    ------
    TypeError
        If an option is unknown or of the wrong type.
    ValueError
        If shapes do not fit, values are not finite, a cluster is unknown, or no windows can be built.

    Examples
    --------
    >>> x, time, graph = vk.cells.x, vk.cells.time, vk.connectivities
    >>> test = direction.permutation_test(
    ...     x, time, graph, adata.obs["clusters"], n_permutations=9
    ... )
    >>> float(test.p_value)
    0.1
    """
    x, time, graph = check_cells(x, time, graph)
    check_integer("n_permutations", n_permutations, low=1)
    check_choice("statistic", statistic, Statistic)
    names = STATISTICS if statistic == "both" else (str(statistic),)
    chosen = [STATISTICS.index(name) for name in names]
    geometry = _measure(x, graph, labels, edges)
    velocity = velocity_by_time(
        x, graph, neighborhoods, window_options, velocity_options, random_state, relaxation=0.0, tol=1e-3
    )

    observed = geometry.summarise(velocity(time), time)
    seeds = np.random.SeedSequence(random_state).spawn(n_permutations)
    shared = (time, velocity, geometry)
    shuffled = np.stack(list(run(_summarise_shuffled, [(seed,) for seed in seeds], shared, n_jobs=n_jobs)))
    n_statistics = len(STATISTICS)
    return PermutationTest(
        statistics=names,
        observed=observed[chosen],
        null=shuffled[:, chosen],
        edges=tuple(geometry.borders),
        n_border=np.array([border.n_edges.sum() for border in geometry.borders.values()], dtype=np.int64),
        flow=observed[n_statistics:],
        null_flow=shuffled[:, n_statistics:],
    )


@dataclass(frozen=True, eq=False)
class _Border:
    """Sum over a cell's edges across a border of the unit vectors to the far side, positive from source to target."""

    cells: IntArray
    way: FloatArray
    n_edges: IntArray

    def flow(self, unit: FloatArray, known: NDArray[np.bool_]) -> float:
        """Return the mean cosine with the way across, NaN without an edge."""
        if not self.cells.size:
            return np.nan
        return float((unit[self.cells] * self.way).sum() / max(self.n_edges[known[self.cells]].sum(), 1))


@dataclass(frozen=True, eq=False)
class _Geometry:
    """All of the edges that does not depend on time. A permutation then costs sparse products only."""

    x: FloatArray
    source: IntArray
    adjacent: sp.csr_matrix
    inverse_length: sp.csr_matrix
    borders: dict[tuple[Any, Any], _Border]

    def summarise(self, velocity: FloatArray, time: FloatArray) -> FloatArray:
        """Return coherence, ascent and the flow of each border, shape ``[2 + n_borders]``."""
        norm = np.linalg.norm(velocity, axis=1)
        known = np.isfinite(norm) & (norm > 0)
        unit = np.zeros_like(velocity)
        unit[known] = velocity[known] / norm[known, None]
        n_pairs = known @ (self.adjacent @ known.astype(np.float64))
        coherence = (unit * (self.adjacent @ unit)).sum() / max(n_pairs, 1.0)
        later = np.abs(time[self.adjacent.indices] - time[self.source])[known[self.source]].sum()
        ascent = (unit * self._uphill(time)).sum() / (later if later > 0 else 1.0)
        return np.array([coherence, ascent, *(border.flow(unit, known) for border in self.borders.values())])

    def _uphill(self, time: FloatArray) -> FloatArray:
        """Sum over the neighbours j of each cell i the unit vectors from i to j times the difference in time."""
        x, t, near = self.x, time[:, None], self.inverse_length
        return np.asarray(near @ (t * x) - t * (near @ x) - x * (near @ t) + t * x * (near @ np.ones_like(t)))


def _summarise_shuffled(
    time: FloatArray, velocity: VelocityByTime, geometry: _Geometry, seed: np.random.SeedSequence
) -> FloatArray:
    shuffled = np.random.default_rng(seed).permutation(time)
    with _quiet():
        found = velocity(shuffled)
    return geometry.summarise(found, shuffled)


def _measure(x: FloatArray, graph: sp.csr_matrix, labels: ArrayLike | None, edges: Edges | None) -> _Geometry:
    """Measure the edges of the graph, once for all permutations."""
    x = x - x.mean(axis=0)  # differences of products cancel far from the origin
    source = np.repeat(np.arange(x.shape[0]), np.diff(graph.indptr))
    length = np.empty(graph.nnz)
    for start in range(0, graph.nnz, CHUNK_EDGES):
        part = slice(start, start + CHUNK_EDGES)
        length[part] = np.linalg.norm(x[graph.indices[part]] - x[source[part]], axis=1)
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    borders = {
        name: _border(x, source, graph.indices, inverse, *across)
        for name, across in _borders(graph, source, labels, edges).items()
    }
    inverse_length = sp.csr_matrix((inverse, graph.indices, graph.indptr), shape=graph.shape)
    return _Geometry(x, source, pattern(graph), inverse_length, borders)


def _border(
    x: FloatArray, source: IntArray, target: IntArray, inverse: FloatArray, forth: IntArray, back: IntArray
) -> _Border:
    """Gather the edges across a border by the cell that they start from, those on the way back turned around."""
    edge = np.concatenate([forth, back])
    sign = np.repeat([1.0, -1.0], [forth.size, back.size])
    ways = (x[target[edge]] - x[source[edge]]) * (sign * inverse[edge])[:, None]
    cells, place = np.unique(source[edge], return_inverse=True)
    way = np.zeros((cells.size, x.shape[1]))
    np.add.at(way, place, ways)
    return _Border(cells, way, np.bincount(place, minlength=cells.size))


def _borders(
    graph: sp.csr_matrix, source: IntArray, labels: ArrayLike | None, edges: Edges | None
) -> dict[tuple[Any, Any], tuple[IntArray, IntArray]]:
    """Return, for each pair of clusters, the edges of the graph from the first to the second, and those back."""
    if labels is None:
        if edges is not None:
            raise ValueError("Expected `labels` of the clusters that `edges` name, found none.")
        return {}
    names, codes = np.unique(check_labels(labels, graph.shape[0]), return_inverse=True)
    known = {name: code for code, name in enumerate(names.tolist())}
    pair = codes[source] * names.size + codes[graph.indices]
    if edges is None:
        touching = set(np.unique(pair).tolist())
        edges = [(a, b) for a, b in permutations(known, 2) if known[a] * names.size + known[b] in touching]
    borders = {}
    for a, b in edges:
        if a not in known or b not in known or a == b:
            raise ValueError(f"Expected `edges` between two of the clusters {list(known)}, found `{(a, b)!r}`.")
        forth, back = (known[i] * names.size + known[j] for i, j in ((a, b), (b, a)))
        borders[a, b] = np.flatnonzero(pair == forth), np.flatnonzero(pair == back)
    return borders


def _p_values(observed: FloatArray, null: FloatArray) -> FloatArray:
    """Return the share of permutations, the observed one included, that reach the observed value."""
    # Shuffled time without a value (NaN) counts against a direction. Without an observed value there is no p-value.
    p = (1 + (~(null < observed)).sum(axis=0)) / (1 + null.shape[0])
    return np.where(np.isnan(observed), np.nan, p)


def _max_p_values(observed: FloatArray, null: FloatArray) -> FloatArray:
    """Return p-values against the largest standardised value of each permutation."""
    adjusted = np.full(observed.size, np.nan)
    use = np.isfinite(observed)
    if use.any():
        # The observed row takes part in the scale: under the null all rows are exchangeable.
        rows = np.vstack([observed[use], null[:, use]])
        spread = rows.std(axis=0)
        rows = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        adjusted[use] = _p_values(rows[0], rows[1:].max(axis=1, keepdims=True))
    return adjusted


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back messages about shuffled time: there were the same about the time given."""

    def reject(record: logging.LogRecord) -> bool:  # one per call: a thread that is done must not unmute the others
        return False

    logger.addFilter(reject)
    try:
        yield
    finally:
        logger.removeFilter(reject)
