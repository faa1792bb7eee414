"""Where a process ends: groups of cells that no way leads through, and that the flow comes to and does not leave."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import dijkstra
from sklearn.cluster import KMeans

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.shown import as_line, as_table
from cellrank_velot._utils.slices import Slices
from cellrank_velot._utils.validation import check_integer, check_number
from cellrank_velot.graph.compiled import neighbor_means
from cellrank_velot.graph.geodesic import N_SMOOTHING, earliest_cells, near_graph
from cellrank_velot.graph.order import MemoryOrder
from cellrank_velot.graph.shortest import ShortestPaths
from cellrank_velot.graph.smoothing import SmoothedCells, smoothed
from cellrank_velot.transitions import TransitionOptions, compute_transitions

__all__ = ["EndOptions", "Ends", "TerminalStates", "find_ends", "terminal_states"]

logger = logging.getLogger("cellrank_velot")

# Steps of the flow after which one asks who is still there, and the scale of its softmax.
N_STEPS, SOFTMAX_SCALE = 8, 2.0
# Steps after which the flow has collected.
N_COLLECTING = 300
# A group lies on the way to a cell if the way around it is longer by more than this share.
DETOUR = 1.02
# Cells that stand for an end: as many as CellRank takes, at most half of the end, but not fewer than a few.
USUAL_CELLS, FEW_CELLS = 30, 10
# Groups smaller than this are noise. Groups of its own have so many cells in the mean at least.
MIN_CELLS, MEAN_CELLS = 8, 20
# Cells that the groups are found from: the others go to the nearest.
GROUPED_CELLS = 20_000
# A group that others are reached through, at most one for each of its own cells, may be an end if the flow stays.
MOST_THROUGH = 1.0
# Halves of the cells that the ends are sought in again, up to so many cells: each takes half as long as the search.
N_HALVES, MANY_CELLS = 10, 20_000
# Two ends of which neither goes on for this share of the longest way, after their ways part, are one.
LEAST_BRANCH = 0.08


@dataclass(frozen=True, kw_only=True)
class EndOptions(Options):
    """Options of ``OTVelocityKernel.suggest_terminal_states``, which explains them."""

    n_cells: int | None = None
    max_through: float = 0.05
    min_stay: float = 0.5
    min_time: float = 0.3
    n_groups: int | None = None
    n_halves: int | None = None
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_number("max_through", self.max_through, low=0)
        check_number("min_stay", self.min_stay, low=0)
        check_number("min_time", self.min_time, low=0, high=1)
        check_integer("random_state", self.random_state, low=0)
        if self.n_cells is not None:
            check_integer("n_cells", self.n_cells, low=1)
        if self.n_groups is not None:
            check_integer("n_groups", self.n_groups, low=2)
        if self.n_halves is not None:
            check_integer("n_halves", self.n_halves, low=0)

    def cells_of(self, n_inside: int, n_cells: int) -> int:
        """Return the number of cells that stand for an end with so many inside, of all these cells."""
        if self.n_cells is not None:
            return self.n_cells
        return int(max(FEW_CELLS, min(max(USUAL_CELLS, n_cells // 100), n_inside // 2)))

    def halves_of(self, n_cells: int) -> int:
        """Return the number of halves of these cells that are drawn."""
        if self.n_halves is not None:
            return self.n_halves
        return N_HALVES if n_cells <= MANY_CELLS else 0

    def groups_of(self, n_cells: int) -> int:
        """Return the number of groups of these cells: more where there are more cells, but few."""
        wanted = round(5 * np.log10(n_cells)) - 5 if self.n_groups is None else self.n_groups
        return int(max(2, min(wanted, n_cells // MEAN_CELLS)))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group of cells that was asked whether it is an end, and what speaks for it."""

    name: str
    source: str  # "cluster" or "shape"
    cells: NDArray[np.int64]
    through: float  # cells that are reached through it, for each of its own
    stay: float  # how many times more of the flow is still there than of a walk without direction
    time: float  # share of the cells that are earlier
    verdict: str  # "end", or why it is none
    stable: float = np.nan  # share of halves of the cells in which most of it lies in an end

    @property
    def is_end(self) -> bool:
        """Whether it is one."""
        return self.verdict == "end"


@dataclass(frozen=True, eq=False)
class Ends:
    """All candidates, and the ends among them after those that are one were joined."""

    candidates: tuple[Candidate, ...]
    names: tuple[str, ...]
    cells: tuple[NDArray[np.int64], ...]  # of each end, the cells that are farthest in it first
    n_cells: int

    @property
    def label(self) -> NDArray[np.int64]:
        """The number of the end that each cell lies in, -1 for none, shape ``[n_cells]``."""
        label = np.full(self.n_cells, -1)
        for number, cells in reversed(list(enumerate(self.cells))):
            label[cells] = number
        return label

    def to_frame(self) -> pd.DataFrame:
        """Return one row per candidate, the ends first."""
        rows = [
            {
                "group": of.name,
                "from": of.source,
                "cells": of.cells.size,
                "through": of.through,
                "stay": of.stay,
                "time": of.time,
                "stable": of.stable,
                "verdict": of.verdict,
            }
            for of in sorted(self.candidates, key=lambda of: (not of.is_end, -of.time))
        ]
        columns = ["group", "from", "cells", "through", "stay", "time", "stable", "verdict"]
        return pd.DataFrame(rows, columns=columns)


class TerminalStates(dict[str, list[str]]):
    """Names of the cells of each terminal state: a dictionary that also knows what else was considered.

    It goes into ``GPCCA.set_terminal_states`` as it is. ``del states["Beta"]`` takes a state out, :meth:`add` takes a
    group in that was considered and left out, and ``states["mine"] = [...]`` names cells of one's own.

    Parameters
    ----------
    states
        Names of the cells of each state.
    evidence
        What :meth:`to_frame` returns.
    cells
        Names of the cells of each group that :meth:`add` takes.

    Examples
    --------
    >>> states = vk.suggest_terminal_states("clusters")
    >>> sorted(states)
    ['Fate A', 'Fate B']
    >>> set(states.to_frame().query("verdict == 'end'")["group"]) <= set(states)
    True
    """

    def __init__(
        self,
        states: dict[str, list[str]],
        evidence: pd.DataFrame | None = None,
        cells: dict[str, list[str]] | None = None,
    ) -> None:
        super().__init__(states)
        self._evidence = pd.DataFrame() if evidence is None else evidence
        self._cells = {} if cells is None else cells

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each group that was considered, and why it is an end or not.

        ``through`` is the number of cells whose shortest way from the root leads through the group, for each cell of
        the group: near zero at an end. ``stay`` says how many times more of the flow that starts there is still there
        after some steps than of a walk without a direction: above one at an end. ``time`` is the share of the cells
        that are earlier. ``stable`` is the share of random halves of the cells in which most of the group lies in an
        end again; NaN where no halves were drawn.
        """
        return self._evidence.copy()

    def add(self, name: str) -> TerminalStates:
        """Take a group of :meth:`to_frame` that was left out.

        Parameters
        ----------
        name
            Its name in the column ``group``.

        Returns
        -------
        The states, changed.

        Raises
        ------
        KeyError
            If no group has this name.
        """
        if name not in self._cells:
            raise KeyError(f"Expected one of the groups {sorted(self._cells)}, found {name!r}.")
        self[name] = list(self._cells[name])
        return self

    def __repr__(self) -> str:
        facts = {name: f"{len(cells)} cells" for name, cells in self.items()}
        return as_line(type(self).__name__, facts | {"considered": len(self._evidence)})

    def _repr_html_(self) -> str:
        table = self._evidence.round(2)
        return as_table(type(self).__name__, {name: f"{len(cells)} cells" for name, cells in self.items()}) + (
            table.to_html(index=False, border=0) if len(table) else ""
        )

    def __reduce__(self) -> tuple[type, tuple[dict[str, list[str]], pd.DataFrame, dict[str, list[str]]]]:
        return type(self), (dict(self), self._evidence, self._cells)


def find_ends(
    x: NDArray[np.float64],
    graph: sp.csr_matrix,
    time: NDArray[np.float64],
    cells: SmoothedCells,
    velocity: NDArray[np.float64],
    labels: ArrayLike | None = None,
    roots: NDArray[np.int64] | None = None,
    options: EndOptions = EndOptions(),
    *,
    by_flow: bool = False,
) -> Ends:
    """Find the ends of a process: groups of cells that no way leads through, late, and that the flow does not leave.

    The groups are the clusters in ``labels``, where there are any, and groups of smoothed positions. Three things are
    asked of each.

    *Through*: shortest ways lead from the root to all cells along a graph of smoothed positions. Without the group,
    how many of the others are cut off or reached by a longer way? At an end hardly any: the way to nowhere leads
    through it.

    *Stay*: cells walk some steps from the group, with the ``velocity`` of the smoothed ``cells`` and without. Of how
    many times more is the place in the group then? More than one at an end, less where the flow goes on.

    *Time*: an end is later than many cells.

    A group that nothing is reached through is an end where the flow stays or hardly leaves. A cluster that was named
    is one without that, as some other sign made somebody tell it apart. A group that a little is reached through is an
    end where the flow stays. Groups on one branch are one end.

    The cells of an end come in order, those that are farthest from the root first. With ``by_flow`` these are those in
    which the flow collects: where cells of the first time point are everywhere, as in a series, distance says little.
    """
    order = MemoryOrder.of(graph)
    found = _found(
        order.values(x),
        order.graph(graph),
        order.values(time),
        SmoothedCells(order.values(cells.x), order.values(cells.time), order.graph(cells.graph)),
        order.values(velocity),
        None if labels is None else order.values(np.asarray(labels).astype(str)),
        None if roots is None else order.places[roots],
        order.values(_partition(cells.x, options)),
        options,
        by_flow,
    )
    candidates = tuple(replace(of, cells=order.cells[of.cells]) for of in found.candidates)
    return replace(found, candidates=candidates, cells=tuple(order.cells[cells] for cells in found.cells))


def _found(
    x: NDArray[np.float64],
    graph: sp.csr_matrix,
    time: NDArray[np.float64],
    cells: SmoothedCells,
    velocity: NDArray[np.float64],
    names: NDArray[np.str_] | None,
    roots: NDArray[np.int64] | None,
    partition: NDArray[np.int64],
    options: EndOptions,
    by_flow: bool,
) -> Ends:
    """Find the ends, in whatever order the cells are."""
    n_cells = len(x)
    lengths = near_graph(smoothed(x, graph, N_SMOOTHING), graph)
    if roots is None:
        roots = earliest_cells(time, lengths)
    paths = ShortestPaths.of(lengths, roots)
    depth = paths.distance
    flow = compute_transitions(cells.x, velocity, cells.graph, TransitionOptions(softmax_scale=SOFTMAX_SCALE)).matrix
    ranks = np.searchsorted(np.sort(time), time) / n_cells

    groups = [("shape", "", group) for group in _groups(partition)]
    if names is not None:
        groups += [("cluster", name, group) for name, group in _named(names)]
    groups = [of for of in groups if of[2].size >= MIN_CELLS and not np.isin(roots, of[2]).all()]
    inside = np.zeros((n_cells, len(groups)), dtype=bool)
    for column, (_, _, group) in enumerate(groups):
        inside[group, column] = True
    stay = _share_that_stays(flow, inside) / np.maximum(_share_that_stays(cells.graph, inside), 1e-12)
    outward = _collected(flow) if by_flow else depth
    found = []
    for (source, name, group), stays in zip(groups, stay, strict=True):
        through = _reached_through(group, paths)
        at = float(ranks[group].mean())
        verdict = _verdict(source, through, float(stays), at, options)
        called = name or ("" if names is None else _commonest(names[group]))
        first = group[np.argsort(-outward[group], kind="stable")]
        found.append(Candidate(called, source, first, through, float(stays), at, verdict))
    joined = _joined([of for of in found if of.is_end], lengths, depth)
    ordered = [(name, cells_[np.argsort(-outward[cells_], kind="stable")]) for name, cells_ in joined]
    return Ends(tuple(found), tuple(n for n, _ in ordered), tuple(c for _, c in ordered), n_cells)


def terminal_states(
    ends: Ends, obs_names: Iterable[str], options: EndOptions = EndOptions(), cluster_key: str | None = None
) -> TerminalStates:
    """Return the names of the cells of each end, and of each candidate for :meth:`TerminalStates.add`."""
    called = np.asarray(list(obs_names), dtype=object)
    names = _numbered([name or "terminal" for name in ends.names])
    states = {name: called[_some(cells, ends, options)].tolist() for name, cells in zip(names, ends.cells, strict=True)}
    if not states:
        logger.warning(
            "Found no terminal state: no group of late cells lies at the end of a branch. The process may be a cycle. "
            "`.to_frame()` of the result lists what was considered; name states yourself: "
            "`g.set_terminal_states({'Beta': [...]})`"
        )
    table = ends.to_frame()
    table.attrs = {"max_through": options.max_through, "min_time": options.min_time, "cluster_key": cluster_key}
    others: dict[str, list[str]] = {}
    for of in ends.candidates:
        if of.name and (of.source == "cluster" or of.name not in others):
            others[of.name] = called[_some(of.cells, ends, options)].tolist()
    return TerminalStates(states, table, others)


def _some(cells: NDArray[np.int64], ends: Ends, options: EndOptions) -> NDArray[np.int64]:
    """Return the cells that stand for an end."""
    return cells[: options.cells_of(cells.size, ends.n_cells)]


# ------------------------------------------------------------------------------------------------------ the groups
def _partition(x: NDArray[np.float64], options: EndOptions) -> NDArray[np.int64]:
    """Return the group of each cell, by k-means of the smoothed positions."""
    n_groups = options.groups_of(len(x))
    means = KMeans(n_groups, n_init=4, random_state=options.random_state)
    means.fit(x[:: -(-len(x) // GROUPED_CELLS)])
    return np.asarray(means.predict(x), dtype=np.int64)


def _groups(partition: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for number in np.unique(partition):
        yield np.flatnonzero(partition == number)


def _named(names: NDArray[np.str_]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    for name in np.unique(names):
        if name not in ("nan", "None", "<NA>"):  # cells without a cluster
            yield str(name), np.flatnonzero(names == name)


def _commonest(names: NDArray[np.str_]) -> str:
    found, counts = np.unique(names, return_counts=True)
    return str(found[counts.argmax()])


def _numbered(names: list[str]) -> list[str]:
    """Return the names, with a number where several are the same."""
    return [f"{name}_{names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


# ---------------------------------------------------------------------------------------------------- the evidence
def _reached_through(group: NDArray[np.int64], paths: ShortestPaths) -> float:
    """Return how many of the other cells are cut off or reached by a longer way without the group, for each of it."""
    changed = paths.without(group) > DETOUR * paths.distance
    changed[group] = False
    return float((changed & np.isfinite(paths.distance)).sum() / group.size)


def _share_that_stays(weights: sp.csr_matrix, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of a walk from each group, ``inside [n_cells, n_groups]``, that is in it after some steps.

    The walk takes edges in proportion to their weights.
    """
    edges = weights.indptr, weights.indices, np.asarray(weights.data, dtype=np.float64)
    chance = inside.astype(np.float64)  # to be in the group, by where the walk begins

    def step(part: slice) -> NDArray[np.float64]:
        return neighbor_means(chance, *edges, 0.0, np.arange(part.start, part.stop))

    with Slices(len(chance)) as slices:
        for _ in range(N_STEPS):
            chance = np.concatenate(slices.map(step))
    return np.asarray(np.einsum("ij,ij->j", chance, inside) / inside.sum(axis=0))


def _collected(matrix: sp.csr_matrix) -> NDArray[np.float64]:
    """Return how many cells are at each after many steps, one having set out from each."""
    come, at = sp.csr_matrix(matrix.T), np.ones(matrix.shape[0])
    for _ in range(N_COLLECTING):
        at = come @ at
    return np.asarray(at)


def _verdict(source: str, through: float, stay: float, time: float, options: EndOptions) -> str:
    """Say whether a group is an end, or why not."""
    if time < options.min_time:
        return "early"
    leaf = through <= options.max_through
    if leaf and (source == "cluster" or stay >= options.min_stay):
        return "end"
    if through < MOST_THROUGH and stay >= 1:
        return "end"
    return "flow goes on" if leaf else "others are reached through it"


# ------------------------------------------------------------------------------------------------- what is one end
def _joined(
    ends: list[Candidate], lengths: sp.csr_matrix, depth: NDArray[np.float64]
) -> list[tuple[str, NDArray[np.int64]]]:
    """Return names and cells of the ends, each once. Clusters that somebody named stay apart."""
    named = {of.name: of.cells for of in ends if of.source == "cluster"}
    # A group of a cluster that is an end says nothing new.
    others = [of for of in ends if of.source == "shape" and of.name not in named]
    tips = [_tip(cells, depth) for cells in [*named.values(), *(of.cells for of in others)]]
    apart = dijkstra(lengths, directed=False, indices=tips) if tips else np.zeros((0, depth.size))
    longest = depth[np.isfinite(depth)].max()
    owner = list(range(len(tips)))
    for i in range(len(named), len(tips)):
        for j in range(i):
            same = others[i - len(named)].name == (others[j - len(named)].name if j >= len(named) else None) != ""
            part = (depth[tips[i]] + depth[tips[j]] - apart[i][tips[j]]) / 2  # how far both have the same way
            branch = min(depth[tips[i]], depth[tips[j]]) - part
            if (same or branch < LEAST_BRANCH * longest) and owner[i] != owner[j]:
                old, new = max(owner[i], owner[j]), min(owner[i], owner[j])
                if old < len(named):  # two that were named
                    continue
                owner = [new if of == old else of for of in owner]
    result = []
    members = [*named.values(), *(of.cells for of in others)]
    called = [*named, *(of.name for of in others)]
    for number in dict.fromkeys(owner):
        of = [k for k, o in enumerate(owner) if o == number]
        cells = members[of[0]] if number < len(named) else np.unique(np.concatenate([members[k] for k in of]))
        latest = max(of, key=lambda k: depth[tips[k]])
        result.append((called[number] if number < len(named) else called[latest], cells))
    return result


def _tip(cells: NDArray[np.int64], depth: NDArray[np.float64]) -> int:
    """Return a cell far out in the group, but not the farthest, which noise may have put there."""
    return int(cells[np.argsort(depth[cells], kind="stable")[int(0.9 * (cells.size - 1))]])
