"""The test of direction: whether there is a course that cells follow, and whether the time given runs along it.

One verdict. A part of the cells has a direction where *all* of the evidence says so; what speaks against it is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.direction._common import FloatArray, IntArray, check_labels, check_time
from cellrank_velot.direction.clouds import compare_continuity, compare_length
from cellrank_velot.direction.flip import flip_test
from cellrank_velot.direction.halves import Border, Explained, explain_other_half, gene_halves
from cellrank_velot.direction.walk import nearest, parts, rooted_time, slow_modes

__all__ = ["DirectionTest", "direction_test"]

# Rank correlation with a time computed anew that a time must have, if it follows the cells.
MIN_AGREEMENT = 0.3
# Parts of fewer cells, and borders of fewer edges, are not tested.
MIN_CELLS, MIN_EDGES = 60, 10
MIN_GENES, MOST_GENES = 24, 2000
WORDS = {
    "time": ("the time follows the cells", "the time does not follow the cells"),
    "course": ("they form a course, not a cloud", "a cloud without structure is as long"),
    "continuity": ("there are cells in between, not only types", "separate types explain the cells"),
    "genes": ("half of the genes orders the other half", "the order in half of the genes says nothing of the other"),
}
Null = Literal["genes", "positions"]


@dataclass(frozen=True, slots=True, eq=False)
class DirectionTest(Stage):
    """Result of :func:`direction_test`. Printed, it is a verdict with what speaks for it and against it.

    Attributes
    ----------
    n_cells
        Number of cells tested, in each connected part, shape ``[n_parts]``. Parts of fewer than 60 cells are left out.
    n_left_out
        Number of cells in parts that are too small.
    agreement
        Rank correlation of the time with a diffusion pseudotime computed anew from its earliest cells, or back from its
        latest ones, the larger of both, shape ``[n_parts]``.
    course
        How much longer than a cloud of the same covariance the cells are, as a ratio of the numbers of steps that a
        random walk takes along and across, shape ``[n_parts]``.
    continuity
        How much more of the slow modes of the walk lies in between than between clouds, as a ratio of variances, shape
        ``[n_parts]``.
    explained
        How far the order in one half of the genes explains the other half, in standard deviations of chance, shape
        ``[n_parts]``; NaN without expression.
    p_evidence
        p-values of course, continuity and genes, shape ``[n_parts, 3]``; NaN without expression.
    borders
        Pairs of clusters that touch.
    flow
        Mean cosine between the velocity at each border and the way from the first cluster to the second, shape
        ``[n_borders]``. A negative one leads from the second to the first.
    p_border
        Two-sided p-value of each flow, shape ``[n_borders]``; NaN without expression.
    reversed_share
        Share of the cells whose velocity reverses with time, see :func:`flip_test`; NaN if not computed. It says how
        far noise outweighs the flow in single velocities, and does not change the verdict.
    level
        Level of the test.

    Examples
    --------
    >>> test = vk.test_direction("clusters")
    >>> test.found, test.p_value < 0.05
    (True, True)
    """

    n_cells: NDArray[np.int64]
    n_left_out: int
    agreement: NDArray[np.float64]
    course: NDArray[np.float64]
    continuity: NDArray[np.float64]
    explained: NDArray[np.float64]
    p_evidence: NDArray[np.float64]
    borders: tuple[tuple[str, str], ...]
    flow: NDArray[np.float64]
    p_border: NDArray[np.float64]
    reversed_share: float
    level: float

    @property
    def null(self) -> Null:
        """What chance is taken from: halves of the ``"genes"`` and clouds, or clouds of ``"positions"`` alone."""
        return "positions" if np.isnan(self.explained).all() else "genes"

    @property
    def p_parts(self) -> NDArray[np.float64]:
        """p-value of each part, shape ``[n_parts]``: the largest of its evidence, times the number of parts."""
        if not self.n_cells.size:
            return np.zeros(0)
        p = np.where(self.agreement >= MIN_AGREEMENT, np.nanmax(self.p_evidence, axis=1), 1.0)
        return np.asarray(np.minimum(p * p.size, 1.0))

    @property
    def p_value(self) -> float:
        """Smallest p-value of a part, which holds for all parts together; one where no part could be tested."""
        return float(self.p_parts.min(initial=1.0))

    @property
    def found(self) -> bool:
        """Whether there is a direction in any part."""
        return self.p_value <= self.level

    @property
    def share(self) -> float:
        """Share of the cells that are in a part with a direction."""
        total = int(self.n_cells.sum()) + self.n_left_out
        return float(self.n_cells[self.p_parts <= self.level].sum() / total)

    @property
    def p_border_adjusted(self) -> NDArray[np.float64]:
        """p-values that hold for all borders together, by Holm's method, shape ``[n_borders]``."""
        order = np.argsort(self.p_border)
        adjusted = np.empty(order.size)
        adjusted[order] = np.maximum.accumulate(self.p_border[order] * np.arange(order.size, 0, -1)).clip(max=1.0)
        return adjusted

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each piece of evidence in each part: its value, p-value, and whether it speaks for it."""
        values = {
            "time": (self.agreement, np.where(self.agreement >= MIN_AGREEMENT, 0.0, 1.0)),
            "course": (self.course, self.p_evidence[:, 0]),
            "continuity": (self.continuity, self.p_evidence[:, 1]),
            "genes": (self.explained, self.p_evidence[:, 2]),
        }
        rows = [
            {"part": part, "evidence": name, "value": value[part], "p_value": np.nan if name == "time" else p[part],
             "for": bool(p[part] * self.n_cells.size <= self.level)}
            for part in range(self.n_cells.size) for name, (value, p) in values.items() if np.isfinite(value[part])
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["part", "evidence", "value", "p_value", "for"])

    def border_frame(self) -> pd.DataFrame:
        """Return one row for each border, in the direction of its flow: flow and p-values."""
        names = [(a, b) if flow >= 0 else (b, a) for (a, b), flow in zip(self.borders, self.flow, strict=True)]
        return pd.DataFrame(
            {"flow": np.abs(self.flow), "p_value": self.p_border, "p_adjusted": self.p_border_adjusted},
            index=pd.Index([f"{a} -> {b}" for a, b in names], name="border"),
        )

    def summary(self) -> str:
        """Return the verdict with what speaks for it and against it, as one paragraph."""
        return (
            " ".join(line.strip() for line in [self._verdict(), *self._reasons(), *self._flip()])
            .replace(" for:", " For:")
            .replace(" against:", " Against:")
        )

    def __str__(self) -> str:
        return "\n".join([self._verdict(), *self._reasons(), *self._flip(), *self._more()])

    def _verdict(self) -> str:
        if not self.n_cells.size:
            return f"Direction: not tested, no connected part has {MIN_CELLS} cells."
        if self.found:
            where = "" if self.share == 1 else f" in {self.share:.0%} of the cells"
            return f"Direction: yes{where}, p = {self.p_value:.2g}."
        return f"Direction: not shown, p = {self.p_value:.2g}."

    def _reasons(self) -> list[str]:
        frame, lines = self.to_frame(), []
        shown = {"time": "rank correlation {:.2f}", "course": "{:.2f} times", "continuity": "{:.2f} times",
                 "genes": "z = {:.1f}"}  # fmt: skip
        for part, rows in frame.groupby("part"):
            name = "" if self.n_cells.size == 1 else f"Part {part + 1} ({self.n_cells[part]} cells), "
            for sign, chosen in (("for", rows[rows["for"]]), ("against", rows[~rows["for"]])):
                said = [
                    f"{WORDS[kind][sign == 'against']} ({shown[kind].format(value)})"
                    for kind, value in zip(chosen["evidence"], chosen["value"], strict=True)
                ]
                if said:
                    lines.append(f"  {name}{sign}: {'; '.join(said)}.")
        return lines

    def _flip(self) -> list[str]:
        if not np.isfinite(self.reversed_share):
            return []
        noisy = (
            "" if self.reversed_share > 0.5 else ": in the others, noise across the course outweighs the flow along it"
        )
        return [f"  Velocity: it reverses with time in {self.reversed_share:.0%} of the cells{noisy}."]

    def _more(self) -> list[str]:
        lines = []
        for name, row in self.border_frame().iterrows():
            known = np.isfinite(row["p_value"])
            p = f", adjusted p = {row['p_adjusted']:.2g}" if known else ""
            lines.append(
                f"  {name if not known or row['p_adjusted'] <= self.level else f'({name})'}: flow {row['flow']:.2f}{p}"
            )
        if self.null == "positions" and self.n_cells.size:
            lines.append(
                "  No expression of genes was at hand: chance was taken from clouds with the covariance of the "
                "positions. This is weaker, as noise is not told from structure by an independent half of the genes."
            )
        lines.append(
            "  No such test tells which end is the beginning: that comes from the time given, see `root_check`."
        )
        return lines


def direction_test(
    x: NDArray[np.float64],
    time: ArrayLike,
    expression: sp.csr_matrix | NDArray[Any] | None = None,
    labels: ArrayLike | None = None,
    *,
    counts: bool = True,
    flip: bool = True,
    max_cells: int = 1500,
    n_splits: int = 1,
    n_draws: int = 10,
    level: float = 0.05,
    random_state: int = 0,
) -> DirectionTest:
    r"""Test whether the cells form a course, and whether the time given runs along it.

    A pseudotime is smooth over the cells that it was computed from, whether they have an order or not. So it cannot be
    compared with shuffled time. Here the pseudotime is computed anew, on halves of the genes and on clouds without
    structure. A connected part of the neighbour graph has a direction if

    - **time**: its time agrees with a diffusion pseudotime from its own earliest cells, or back from its latest ones,
      rank correlation at least 0.3;
    - **course**: a random walk takes longer along it than across, compared with one elliptic cloud of the same
      covariance: :math:`\log \tau_1 - \overline{\log \tau_{5..10}}`, where :math:`\tau_k = 1 / (1 - \lambda_k)` is
      the number of steps of the k-th slowest mode, exceeds that of clouds by more than 0.15;
    - **continuity**: more cells lie in between than between several such clouds, as many as the walk has slow modes:
      the logarithm of the variance of the modes within clusters exceeds that of clouds by more than 0.15;
    - **genes**: the order in one half of the genes explains the other half within groups of 25 near cells. Chance: the
      same if what is left of each cell had a random sign. The noise of different genes is independent, so a pseudotime
      that follows noise explains nothing. Each half has the effect of its depth removed.

    All four must hold, so the p-value of a part is the largest of them. Clouds say what chance is; p-values come from
    the t distribution of a new cloud.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    expression
        Counts or log expression of shape ``[n_cells, n_genes]``, at least 24 genes. Without it, the genes are not
        asked, and the test is weaker.
    labels
        Cluster of each cell, shape ``[n_cells]``, for the flow across their borders; none where not given.
    counts
        Whether ``expression`` holds counts. They are normalised and made logarithmic.
    flip
        Whether to run :func:`flip_test` on the same cells, too, and report it. It does not change the verdict.
    max_cells
        Number of cells to test; of more, as many are drawn at random.
    n_splits
        Number of times that the genes are halved.
    n_draws
        Number of clouds of each comparison.
    level
        Level at which there is a direction.
    random_state
        Seed of the cells drawn, of halves and clouds.

    Returns
    -------
    The verdict, with what speaks for it and against it. Both directions of time get the same verdict: it cannot say
    which end is the beginning, see :func:`root_check`.

    Raises
    ------
    TypeError
        If an option is not a number.
    ValueError
        If shapes do not fit, values are not finite, or an option is out of range.

    Examples
    --------
    >>> expression = adata.layers["true_expression"]
    >>> test = direction.direction_test(vk.cells.x, vk.cells.time, expression, counts=False)
    >>> test.found
    True
    >>> shuffled = np.random.default_rng(0).permutation(vk.cells.time)
    >>> direction.direction_test(vk.cells.x, shuffled, expression, counts=False).found
    False
    """
    check_integer("max_cells", max_cells, low=MIN_CELLS)
    check_integer("n_splits", n_splits, low=1)
    check_integer("n_draws", n_draws, low=3)
    check_number("level", level, low=0, high=1, open_low=True, open_high=True)
    rng = np.random.default_rng(check_seed(random_state))
    x, time = _check_positions(x, time)
    names = None if labels is None else check_labels(labels, time.size).astype(str)
    genes = None if expression is None else _check_expression(expression, time.size)
    if time.size > max_cells:
        chosen = np.sort(rng.choice(time.size, max_cells, replace=False))
        x, time = x[chosen], time[chosen]
        names = None if names is None else names[chosen]
        genes = None if genes is None else genes[chosen]
    genes = None if genes is None else _most_variable(genes, counts)

    graph = nearest(x)
    part = parts(graph)
    size = np.bincount(part)
    tested = [np.flatnonzero(part == number) for number in np.flatnonzero(size >= MIN_CELLS)]
    pairs = _borders(graph, names)
    evidence, flows = [], []
    for cells in tested:
        inside = graph[cells][:, cells]
        local = [_within(border, cells) for border in pairs]
        of_part = None if genes is None else genes[cells]
        row, across = _examine(x[cells], time[cells], inside, of_part, local, counts, n_splits, n_draws, rng)
        evidence.append(row)
        flows.append((local, across))
    table = np.array(evidence).reshape(-1, 7)
    borders, flow, p_border = _joined(flows)
    return DirectionTest(
        n_cells=np.array([cells.size for cells in tested], dtype=np.int64),
        n_left_out=int(size[size < MIN_CELLS].sum()),
        agreement=table[:, 0],
        course=table[:, 1],
        continuity=table[:, 2],
        explained=table[:, 3],
        p_evidence=table[:, 4:],
        borders=borders,
        flow=flow,
        p_border=p_border,
        reversed_share=_reversed_share(x, time, graph) if flip else np.nan,
        level=float(level),
    )


def _examine(
    x: FloatArray,
    time: FloatArray,
    graph: sp.csr_matrix,
    genes: sp.csr_matrix | FloatArray | None,
    borders: Sequence[Border],
    counts: bool,
    n_splits: int,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[list[float], Explained]:
    """Return agreement, course, continuity, explained and three p-values of a part, and the flow across its borders."""
    walk, order, n_ends = slow_modes(graph), np.argsort(time, kind="stable"), max(3, time.size // 100)
    # From the earliest cells or back from the latest ones: the verdict is that of reversed time, too.
    ends = (order[:n_ends], order[-n_ends:])
    agreements = [
        float(np.corrcoef(rankdata(sign * time), rooted_time(walk, end))[0, 1]) if np.ptp(time) > 0 else 0.0
        for sign, end in zip((1, -1), ends, strict=True)
    ]
    best = int(np.argmax(agreements))
    agreement, first, sign = agreements[best], ends[best], (1, -1)[best]
    course, continuity = compare_length(x, n_draws, rng), compare_continuity(x, n_draws, rng)
    if genes is None:
        found = [explain_other_half(x, x, first, borders, rng)]
        z, p = np.nan, np.nan
    else:
        found = []
        for _ in range(n_splits):
            one, other = gene_halves(genes, counts, rng)
            found += [explain_other_half(*pair, first, borders, rng) for pair in ((one, other), (other, one))]
        # The mean of dependent normal values has at most their variance: this is conservative.
        z = float(np.mean([half.z for half in found]))
        p = float(norm.sf(z))
    across = Explained(
        z,
        sign * np.mean([half.border_z for half in found], axis=0),
        sign * np.mean([half.flow for half in found], axis=0),
    )
    ratios = [float(np.exp(known.observed - known.chance)) for known in (course, continuity)]
    return [agreement, *ratios, z, course.p_value, continuity.p_value, p], across


def _reversed_share(x: FloatArray, time: FloatArray, graph: sp.csr_matrix) -> float:
    """Return the share of the cells whose velocity reverses with time; NaN where no windows can be built."""
    try:
        return flip_test(x, time, graph).reversed_share
    except ValueError:
        return np.nan


def _check_positions(x: NDArray[np.float64], time: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, time = np.asarray(x, dtype=np.float64), check_time(time)
    if x.ndim != 2 or x.shape[0] != time.size or not np.isfinite(x).all():
        raise ValueError(f"Expected finite `x` of shape `[{time.size}, n_dims]`, found `{x.shape}` or NaN.")
    return x, time


def _check_expression(expression: sp.csr_matrix | NDArray[Any], n_cells: int) -> sp.csr_matrix | NDArray[Any] | None:
    """Return expression by cells, ``None`` where there are too few genes to halve."""
    genes = sp.csr_matrix(expression) if sp.issparse(expression) else np.asarray(expression)
    if genes.ndim != 2 or genes.shape[0] != n_cells:
        raise ValueError(f"Expected `expression` of shape `[{n_cells}, n_genes]`, found `{genes.shape}`.")
    if not np.isfinite(genes.data if sp.issparse(genes) else genes).all():
        raise ValueError("Expected finite `expression`, found NaN or infinite values.")
    return genes if genes.shape[1] >= MIN_GENES else None


def _most_variable(genes: sp.csr_matrix | NDArray[Any], counts: bool) -> sp.csr_matrix | NDArray[Any] | None:
    """Return the genes that vary, the most variable of them where there are many."""
    square = sp.csr_matrix(genes).power(2) if sp.issparse(genes) else np.asarray(genes, dtype=np.float64) ** 2
    mean = np.asarray(genes.mean(axis=0)).ravel()
    variance = np.asarray(square.mean(axis=0)).ravel() - mean**2
    # Of counts, what exceeds the Poisson variance, in relation to the mean, as the mean decides the variance.
    score = (variance - mean) / np.maximum(mean, 0.05) if counts else variance
    varied = np.flatnonzero(variance > 0)
    chosen = np.sort(varied[np.argsort(-score[varied], kind="stable")[:MOST_GENES]])
    return genes[:, chosen] if chosen.size >= MIN_GENES else None


def _borders(graph: sp.csr_matrix, names: NDArray[Any] | None) -> list[Border]:
    """Return each pair of clusters that touch once, with its edges."""
    if names is None:
        return []
    edges = graph.tocoo()
    kinds, code = np.unique(names, return_inverse=True)
    found = []
    for a, b in combinations(range(kinds.size), 2):
        across = np.flatnonzero((code[edges.row] == a) & (code[edges.col] == b))
        if across.size >= MIN_EDGES:
            found.append(Border(str(kinds[a]), str(kinds[b]), edges.row[across], edges.col[across]))
    return found


def _within(border: Border, cells: IntArray) -> Border:
    """Return the edges of a border that lie among some cells, which are numbered anew."""
    inside = np.isin(border.from_a, cells)
    return border._replace(
        from_a=np.searchsorted(cells, border.from_a[inside]), to_b=np.searchsorted(cells, border.to_b[inside])
    )


def _joined(
    flows: Sequence[tuple[Sequence[Border], Explained]],
) -> tuple[tuple[tuple[str, str], ...], FloatArray, FloatArray]:
    """Return borders, their flow and p-value: each border from the part that has most of its edges."""
    best: dict[tuple[str, str], tuple[int, float, float]] = {}
    for borders, found in flows:
        for border, flow, z in zip(borders, found.flow, found.border_z, strict=True):
            p = np.nan if np.isnan(found.z) else float(2 * norm.sf(abs(z)))
            key, size = (border.a, border.b), border.from_a.size
            if size and size > best.get(key, (0,))[0]:
                best[key] = (size, float(flow), p)
    values = list(best.values())
    return tuple(best), np.array([row[1] for row in values]), np.array([row[2] for row in values])
