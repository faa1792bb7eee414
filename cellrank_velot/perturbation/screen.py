"""All genes at once: how far each one, changed alone, shifts the fates of a group of cells, and how far chance would.

Fates of a chain are linear in its matrix, to first order. So one sensitivity of the fates to a displacement of each
cell does for every gene, and a gene costs a product of vectors. A few are then computed without that approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, t
from tqdm.auto import tqdm

from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import TINY, Stage
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.dynamics.region import Region
from cellrank_velot.fates import absorption_probabilities, expected_visits
from cellrank_velot.perturbation.changes import Change, parse_changes

__all__ = ["Chain", "Screen", "ScreenOptions", "compute_screen", "parse_kinds"]

FloatArray = NDArray[np.float64]

# What is done to each gene by a name alone; over-expression sets it to a level that one in twenty of the cells that
# express it exceeds.
KNOCKOUT, OVEREXPRESSION = "knockout", "overexpression"
HIGH = 0.95
# Cells next to each other in time that pass for cells of one time.
ALIKE = 20
# Displacement of the differences that give the sensitivity, in units of the spacing of cells.
STEP = 0.05
# Genes whose values are dense at a time.
CHUNK_GENES = 256


@dataclass(frozen=True, kw_only=True)
class ScreenOptions(Options):
    """Options of ``OTVelocityKernel.screen``, which explains them."""

    weight: float = 0.8
    n_exact: int = 20
    n_null: int = 50
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_number("weight", self.weight, low=0, high=1, open_low=True)
        check_integer("n_exact", self.n_exact)
        check_integer("n_null", self.n_null)
        check_seed(self.random_state)


@dataclass(frozen=True, eq=False)
class Chain:
    """Cells whose transitions answer to a displacement, where they start from, and where they come to."""

    x: FloatArray  # positions, [n_cells, n_dims]
    time: FloatArray  # [n_cells]
    matrix_at: Callable[[FloatArray], sp.csr_matrix]  # transitions of cells displaced by [n_cells, n_dims]
    starts: NDArray[np.bool_]  # [n_cells]
    states: Mapping[str, NDArray[np.int64]]  # rows of the cells of each terminal state


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Screen(Stage):
    """What becomes of the fates of a group of cells when each gene is changed alone.

    Attributes
    ----------
    genes
        Names of the genes, shape ``[n_genes]``.
    changes
        Names of what is done to each, shape ``[n_changes]``.
    values
        Level, factor or difference of each change, shape ``[n_changes, n_genes]``.
    lineages
        Names of the terminal states, shape ``[n_lineages]``.
    before
        Mean fate probabilities of the starts, unperturbed, shape ``[n_lineages]``.
    delta
        First-order change of these, shape ``[n_changes, n_genes, n_lineages]``; NaN for a gene that does not change.
    exact
        The same without the approximation, for the genes that it was computed for; NaN for others.
    reach
        Mean length of the displacement of the cells, shape ``[n_changes, n_genes]``.
    p_values
        How rarely the same values in other cells of the same time shift a fate as much, shape of ``delta``.

    Examples
    --------
    >>> found = vk.screen(n_exact=0, show_progress_bar=False)
    >>> found.changes.tolist(), found.lineages.tolist()
    (['knockout', 'overexpression'], ['Fate A', 'Fate B'])
    >>> bool(
    ...     np.nanmax(np.abs(found.delta.sum(axis=2))) < 1e-6
    ... )  # what one fate gains, the others lose
    True
    """

    genes: NDArray[np.str_]
    changes: NDArray[np.str_]
    values: FloatArray
    lineages: NDArray[np.str_]
    before: FloatArray
    delta: FloatArray
    exact: FloatArray
    reach: FloatArray
    p_values: FloatArray

    @property
    def p_adjusted(self) -> FloatArray:
        """P-values adjusted for all genes, changes and lineages by the method of Benjamini and Hochberg."""
        known = np.isfinite(self.p_values)
        adjusted = np.full_like(self.p_values, np.nan)
        if known.any():
            adjusted[known] = false_discovery_control(self.p_values[known], method="bh")
        return adjusted

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each gene, change and lineage, the largest shifts first.

        Returns
        -------
        Columns ``gene``, ``change``, ``value``, ``lineage``; ``before``, the mean fate probability of the starts;
        ``delta``, how much it changes to first order; ``exact``, without that approximation, where it was computed;
        ``reach``, how far the gene moves cells; ``p_value`` and ``p_adjusted``, against the same values in other cells.

        Examples
        --------
        >>> table = vk.screen(n_exact=2, show_progress_bar=False).to_frame()
        >>> table.columns.tolist()[:5]
        ['gene', 'change', 'value', 'lineage', 'before']
        """
        n_changes, n_genes, n_lineages = self.delta.shape
        wide = np.broadcast_to
        table = pd.DataFrame(
            {
                "gene": np.tile(np.repeat(self.genes, n_lineages), n_changes),
                "change": np.repeat(self.changes, n_genes * n_lineages),
                "value": np.repeat(self.values.ravel(), n_lineages),
                "lineage": np.tile(self.lineages, n_changes * n_genes),
                "before": wide(self.before, self.delta.shape).ravel(),
                "delta": self.delta.ravel(),
                "exact": self.exact.ravel(),
                "reach": np.repeat(self.reach.ravel(), n_lineages),
                "p_value": self.p_values.ravel(),
                "p_adjusted": self.p_adjusted.ravel(),
            }
        )
        largest = table["delta"].abs().fillna(-1).sort_values(ascending=False, kind="stable")
        return table.loc[largest.index].reset_index(drop=True)

    def __repr__(self) -> str:
        if not np.isfinite(self.delta).any():
            return f"Screen[{self.genes.size} genes; none changes]"
        change, gene, lineage = np.unravel_index(np.nanargmax(np.abs(self.delta)), self.delta.shape)
        found = f"{self.changes[change]} of {self.genes[gene]}: {self.lineages[lineage]}"
        return f"Screen[{self.genes.size} genes; largest: {found} {self.delta[change, gene, lineage]:+.3f}]"


def parse_kinds(changes: Sequence[str] | Mapping[str, Any]) -> dict[str, Change | None]:
    """Return what is done to each gene, by its name; ``None`` for over-expression, whose level is that of the gene."""
    if isinstance(changes, Mapping):
        return dict(parse_changes(changes))
    names = [changes] if isinstance(changes, str) else [str(name) for name in changes]
    known = {KNOCKOUT: Change("set", 0.0), OVEREXPRESSION: None}
    if not names or set(names) - set(known):
        raise ValueError(
            f"Expected `changes` among `{list(known)}`, or a mapping such as {{'half': ('scale', 0.5)}}, found "
            f"`{names}`."
        )
    return {name: known[name] for name in names}


def compute_screen(
    chain: Chain,
    expression: Any,
    loadings: FloatArray,
    names: NDArray[np.str_],
    kinds: Mapping[str, Change | None],
    options: ScreenOptions = ScreenOptions(),
    *,
    cells: NDArray[np.bool_] | None = None,
    scale: FloatArray | None = None,
    show_progress_bar: bool = False,
) -> Screen:
    r"""Change each gene alone, with ``expression [n_cells, n_genes]`` and ``loadings [n_dims, n_genes]``.

    With the fate probabilities :math:`F`, the visits :math:`n_i` of each cell by walks from the starts, and the
    displacement :math:`D_i` of a cell, the mean fate of the starts changes by
    :math:`\sum_i n_i \sum_{jd} \partial T_{ij} / \partial x_{id} \, D_{id} F_j`. The derivatives are differences of
    matrices of cells that are displaced along each dimension. ``cells`` are those that are perturbed, ``scale
    [n_genes]`` is what the PCA divided genes by.
    """
    n_cells, n_genes = expression.shape
    cells = np.ones(n_cells, dtype=bool) if cells is None else cells
    scale = np.ones(n_genes) if scale is None else scale
    columns = sp.csc_matrix(expression) if sp.issparse(expression) else np.asarray(expression)
    region = Region.of(chain.x)
    around = _around(region, chain.x)
    fates, slopes = _sensitivity(chain, STEP * region.typical_spacing, show_progress_bar)
    known = region.chosen  # the cells whose changes count
    weights = np.hstack([around.T @ slope for slope in slopes]) * cells[known, None]
    answers = _Answers(weights, chain.x[known], chain.time[known], len(slopes), options)
    shape = (len(kinds), n_genes)
    values, reach = np.empty(shape), np.zeros(shape)
    delta, p_values = np.zeros((*shape, len(slopes))), np.zeros((*shape, len(slopes)))
    parts = np.array_split(np.arange(n_genes), -(-n_genes // CHUNK_GENES))
    for part in tqdm(parts, desc="Genes", disable=not show_progress_bar, leave=False):
        dense = _dense(columns, part)
        for at, change in enumerate(kinds.values()):
            values[at, part], amounts = _amounts(dense, change, cells)
            amounts /= scale[part]
            reach[at, part] = np.abs(amounts[cells]).mean(axis=0) * np.linalg.norm(loadings[:, part], axis=0)
            found = answers(amounts[known], dense[known] / scale[part], loadings[:, part])
            delta[at, part], p_values[at, part] = found
    still = reach == 0
    delta[still], p_values[still] = np.nan, np.nan
    exact = np.full_like(delta, np.nan)
    before = fates[chain.starts].mean(axis=0)
    largest = np.nan_to_num(np.abs(delta)).max(axis=2)
    chosen = [
        np.unravel_index(each, shape) for each in np.argsort(-largest, axis=None, kind="stable")[: options.n_exact]
    ]
    for at, gene in tqdm(chosen, desc="Exact fates", unit=" genes", disable=not show_progress_bar, leave=False):
        amounts = _amounts(_dense(columns, np.array([gene])), list(kinds.values())[at], cells)[1] * cells[:, None]
        matrix = chain.matrix_at((around @ amounts[known] / scale[gene]) * loadings[:, gene])
        after = absorption_probabilities(matrix, list(chain.states.values()))
        exact[at, gene] = after[chain.starts].mean(axis=0) - before
    return Screen(
        genes=names,
        changes=np.array(list(kinds)),
        values=values,
        lineages=np.array(list(chain.states)),
        before=before,
        delta=delta,
        exact=exact,
        reach=reach,
        p_values=p_values,
    )


class _Answers:
    """How fates answer to changes of genes, and to those of the same genes in other cells of the same time.

    A gene whose values are dealt out anew among cells of one time has the same values and the same course, and a
    loading that is found by regression on the positions. It knows nothing of the fates that it could not know by time.
    """

    def __init__(
        self, weights: FloatArray, x: FloatArray, time: FloatArray, n_states: int, options: ScreenOptions
    ) -> None:
        self.weights, self.n_states = weights, n_states
        centred = x - x.mean(axis=0)
        self.regression = centred / np.maximum(np.square(centred).sum(axis=0), TINY)
        rng = np.random.default_rng(options.random_state)
        self.dealt = [_dealt(time, rng) for _ in range(options.n_null)]

    def __call__(self, amounts: FloatArray, values: FloatArray, loadings: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the shift of each state by each gene, shape ``[n_genes, n_states]``, and its p-value."""
        delta = self._shift(amounts.T @ self.weights, loadings)
        null = np.empty((len(self.dealt), *delta.shape))
        for number, order in enumerate(self.dealt):
            null[number] = self._shift(amounts.T @ self.weights[order], (values.T @ self.regression[order]).T)
        if len(null) < 2:
            return delta, np.full_like(delta, np.nan)
        spread = null.std(axis=0, ddof=1) * np.sqrt(1 + 1 / len(null))
        away = np.abs(delta - null.mean(axis=0))
        return delta, 2 * t.sf(np.divide(away, spread, out=np.zeros_like(away), where=spread > 0), len(null) - 1)

    def _shift(self, weight: FloatArray, loadings: FloatArray) -> FloatArray:
        n_genes = weight.shape[0]
        return np.einsum("gsd,dg->gs", weight.reshape(n_genes, self.n_states, -1), loadings)


def _dealt(time: FloatArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an order in which each cell is replaced by another one of its time, or next to it in time."""
    order = np.lexsort((rng.random(time.size), time))
    result = np.empty(time.size, dtype=np.int64)
    first = int(rng.integers(ALIKE))
    bounds = np.unique(np.r_[0, np.arange(first, time.size, ALIKE), time.size])
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        result[order[low:high]] = rng.permutation(order[low:high])
    return result


def _around(region: Region, x: FloatArray) -> sp.csr_matrix:
    """Return by what shares the cells of a region count in the mean around each cell."""
    points = torch.tensor(x)
    index = region.nearest(points)
    weight = region.around(points, index).weight.double().numpy()
    n_cells, k = weight.shape
    rows = np.repeat(np.arange(n_cells), k)
    return sp.csr_matrix((weight.ravel(), (rows, index.numpy().ravel())), shape=(n_cells, region.chosen.size))


def _sensitivity(chain: Chain, step: float, show_progress_bar: bool) -> tuple[FloatArray, list[FloatArray]]:
    """Return fate probabilities, and how each of the starts answers to a displacement of each cell.

    The second is an array ``[n_cells, n_dims]`` for each state.
    """
    n_cells, n_dims = chain.x.shape
    states = list(chain.states.values())
    base = chain.matrix_at(np.zeros_like(chain.x))
    fates = absorption_probabilities(base, states)
    start = chain.starts / chain.starts.sum()
    visits = expected_visits(base, np.unique(np.concatenate(states)), start)
    weights: list[FloatArray] = [np.empty((n_cells, n_dims)) for _ in states]
    bar = tqdm(range(n_dims), desc="Sensitivity", unit=" dimensions", disable=not show_progress_bar, leave=False)
    for dim in bar:
        shift = np.zeros_like(chain.x)
        shift[:, dim] = step
        slope = (chain.matrix_at(shift) @ fates - chain.matrix_at(-shift) @ fates) / (2 * step)
        for number, weight in enumerate(weights):
            weight[:, dim] = visits * slope[:, number]
    return fates, weights


def _amounts(values: FloatArray, change: Change | None, cells: NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Return the level of a change for each gene, and by how much the genes would change in each cell."""
    if change is not None:
        return np.full(values.shape[1], change.value), change.of(values) + np.zeros_like(values)
    known = np.where((values > 0) & cells[:, None], values, np.nan)
    some = np.isfinite(known).any(axis=0)
    level = np.zeros(values.shape[1])
    level[some] = np.nanquantile(known[:, some], HIGH, axis=0)
    return level, np.where(some, level - values, 0.0)


def _dense(columns: Any, chosen: NDArray[np.int64]) -> FloatArray:
    part = columns[:, chosen]
    return np.asarray(part.toarray() if sp.issparse(part) else part, dtype=np.float64)
