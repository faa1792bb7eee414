"""Which gene drives which, and which drives growth: means of derivatives of the field over cells, with a bootstrap.

Depends on derivatives, numpy and pandas; knows neither AnnData nor CellRank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_known, check_number, check_seed
from cellrank_velot.regulation.derivatives import Differentiable, Genes, Reading, has_growth

__all__ = ["MAX_GENES", "Regulation", "bin_times", "compute_growth_genes", "compute_regulation", "name_intervals"]

logger = logging.getLogger("cellrank_velot")

#: Genes that edges are computed between: there are as many as pairs of them, in every replicate of the bootstrap.
MAX_GENES = 200


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Regulation(Stage):
    """Mean effect of genes, or dimensions of the basis, on one another, by group of cells.

    Attributes
    ----------
    jacobian
        Mean over the cells of a group of the derivative of the drift of gene ``i`` by gene ``j``, shape ``[n_groups,
        n_genes, n_genes]``: the effect of source ``j`` on target ``i``, per unit of time.
    std, lower, upper
        Standard deviation and interval of that mean over replicates of the bootstrap, same shape.
    stability
        Share of the replicates whose sign is that of the mean, same shape; zero where the mean is zero.
    held
        Share of a change of each gene that the basis holds, in ``[0, 1]``, mean over the cells of a group, shape
        ``[n_groups, n_genes]``; one for dimensions of the basis.
    n_cells
        Number of cells of each group, shape ``[n_groups]``.
    groups, names
        Names of groups and of genes.
    degradation
        Rates that were taken off, shape ``[n_genes]``.
    level
        Share of the replicates in the interval.

    Examples
    --------
    >>> regulation = vk.compute_regulation(
    ...     ["Stem", "FateA", "FateB"], groups="clusters", n_bootstrap=50
    ... )
    >>> regulation.matrix("Transition").shape
    (3, 3)
    >>> len(regulation.edges(group="Transition", self_loops=False))
    6
    >>> regulation.contraction.shape  # of each group
    (4,)
    """

    jacobian: NDArray[np.float64]
    std: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    stability: NDArray[np.float64]
    held: NDArray[np.float64]
    n_cells: NDArray[np.int64]
    groups: NDArray[np.str_]
    names: NDArray[np.str_]
    degradation: NDArray[np.float64]
    level: float

    def __post_init__(self) -> None:
        """Take names as text, which a file returns as objects, and check shapes."""
        for name in ("groups", "names"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.str_).reshape(-1))
        Stage.__post_init__(self)
        shape = (self.groups.size, self.names.size, self.names.size)
        for name in ("jacobian", "std", "lower", "upper", "stability"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"Expected `{name}` of the shape `{shape}`, found `{getattr(self, name).shape}`.")

    def __repr__(self) -> str:
        """How many groups and genes, and the strongest effect of one gene on another."""
        told = f"Regulation[groups={self.groups.size}; names={self.names.size}"
        strongest = self.edges(1, self_loops=False)
        if not len(strongest):
            return f"{told}]"
        edge = strongest.loc[strongest["effect"].abs().idxmax()]
        return f"{told}; {edge['source']} to {edge['target']}: {edge['effect']:+.3g} in {edge['group']}]"

    @property
    def contraction(self) -> NDArray[np.float64]:
        """Mean rate at which the drift pulls dimensions together, minus the mean diagonal, shape ``[n_groups]``.

        Of the dimensions of the basis it is how fast cells come together whatever they regulate. A field of
        pseudotime contracts, too, as it brings cells back to their path: between genes this puts the negative of what
        they share in the basis onto every edge, and, given as ``degradation``, is taken off again.
        """
        return -np.asarray(np.diagonal(self.jacobian, axis1=1, axis2=2).mean(axis=1))

    def matrix(self, group: str) -> pd.DataFrame:
        """Return the mean effects in one group, targets by sources.

        Raises
        ------
        KeyError
            If there is no such group.
        """
        check_known("groups", group, self.groups)
        at = int(np.flatnonzero(self.groups == group)[0])
        return pd.DataFrame(self.jacobian[at], index=self.names, columns=self.names)

    def edges(
        self, n: int | None = None, group: str | None = None, *, self_loops: bool = True, min_stability: float = 0.0
    ) -> pd.DataFrame:
        """Return effects as a table, the strongest first.

        Parameters
        ----------
        n
            Number of edges of each group; all where not given.
        group
            Group to return; all, one after the other, where not given.
        self_loops
            Whether to return the effects of genes on themselves.
        min_stability
            Least stability of an edge, in ``[0, 1]``.

        Returns
        -------
        One row for each edge: ``source``, ``target``, ``group``, ``effect`` (the mean), its ``std``, ``lower`` and
        ``upper``, ``sign`` (1 activates, -1 represses) and ``stability``.

        Raises
        ------
        KeyError
            If there is no such group.
        ValueError
            If ``n`` or ``min_stability`` is out of range.
        """
        check_number("min_stability", min_stability, low=0, high=1)
        if n is not None:
            check_integer("n", n, low=1)
        if group is not None:
            check_known("groups", group, self.groups)
        tables = [
            self._edges(at, n, self_loops, min_stability)
            for at, name in enumerate(self.groups)
            if group is None or name == group
        ]
        return pd.concat(tables, ignore_index=True)

    def _edges(self, at: int, n: int | None, self_loops: bool, min_stability: float) -> pd.DataFrame:
        target, source = np.divmod(np.arange(self.names.size**2), self.names.size)
        columns = {"source": self.names[source], "target": self.names[target], "group": str(self.groups[at])}
        stored = (self.jacobian, self.std, self.lower, self.upper, self.stability)
        table = pd.DataFrame(columns | _columns(*(array[at].ravel() for array in stored)))
        table = table[(table["stability"] >= min_stability) & (self_loops | (source != target))]
        strongest = table["effect"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[strongest[:n]]


def compute_regulation(
    field: Differentiable | Sequence[Differentiable],
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    groups: Any = None,
    *,
    genes: Genes | None = None,
    names: Sequence[str] | None = None,
    degradation: float | NDArray[np.float64] = 0.0,
    n_bootstrap: int = 200,
    level: float = 0.95,
    min_cells: int = 5,
    random_state: int = 0,
    device: str = "auto",
) -> Regulation:
    r"""Average the Jacobian of the drift over groups of cells.

    Between genes it is the derivative of their drift :math:`D v` by their levels, :math:`\partial_x (D v) D^+`
    :cite:`qiu:22`, where :math:`D` is the Jacobian of the decoder, of which only the rows of the chosen genes are
    taken, and :math:`D^+` its pseudo-inverse, over all genes that the decoder knows. Where the decoder is linear, it
    is :math:`D J D^+`, and with the loadings of a PCA, which are orthonormal over all its genes, :math:`W^T J W`. A
    gene is thus changed together with all that the basis cannot tell from it: an edge is of a gene and its companions,
    and tells who changes with whose level, not who binds where.

    The diagonal holds degradation as well as self-regulation: subtracted from the drift, :math:`\gamma_i g_i` adds
    :math:`-\gamma_i` there, or :math:`-\gamma_i (D D^+)_{ij}` where the basis holds only part of the genes.
    ``degradation`` takes it off again, so that the sign of the diagonal is that of self-regulation.

    On simulated circuits seen through a PCA, genes that repress each other and activate themselves are found so from
    the velocity of a pseudotime, once :attr:`Regulation.contraction` is taken off. Of all edges, the coexpression of
    two genes tells the sign more often than such a field does: take an edge as a question to an experiment.

    Parameters
    ----------
    field
        The field; or several, such as fields fitted to halves of the cells. The mean is over all of them then, and
        replicates are divided among them, so that the interval holds what fields differ in.
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    groups
        Group of each cell, missing for none; a categorical gives the order. All cells in one where ``None``.
    genes
        Genes to compute edges between, at most 200; the dimensions of the basis where ``None``.
    names
        Names of the dimensions, without ``genes``; ``"0"``, ``"1"``, ... where not given.
    degradation
        Degradation rate of each gene per unit of time, not negative, shape ``[n_genes]`` or one for all.
    n_bootstrap
        Number of replicates, for each of which the cells of a group are drawn with replacement :cite:`efron:79`. They
        tell how the mean depends on which cells there are, given the field, and nothing of the error of a field.
    level
        Share of the replicates within the interval, in ``(0, 1)``.
    min_cells
        Groups of fewer cells are left out, and named in a warning.
    random_state
        Seed of the bootstrap.
    device
        Torch device of the field, or ``"auto"``.

    Returns
    -------
    The regulation.

    Raises
    ------
    TypeError
        If a number is none.
    ValueError
        If shapes do not agree, an option is out of range, there are too many genes, or no group has enough cells.
    FloatingPointError
        If a derivative is not finite.

    Examples
    --------
    >>> import torch
    >>> from cellrank_velot.regulation.matrix import compute_regulation
    >>> class Chain:  # A drives B
    ...     def on(self, device):
    ...         return lambda x, time: torch.stack([-x[:, 0], 0.5 * x[:, 0] - x[:, 1]], dim=1)
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> found = compute_regulation(Chain(), x, np.zeros(50), names=["A", "B"])
    >>> round(float(found.matrix("all").loc["B", "A"]), 6)  # targets by sources
    0.5
    """
    reading = Reading(_names(x, genes, names), genes)
    rate = _rates(degradation, reading.names)
    if genes is not None and len(genes.names) > MAX_GENES:
        raise ValueError(
            f"Expected at most `{MAX_GENES}` genes, as edges are between all pairs, found `{len(genes.names)}`. Name "
            "those of interest."
        )
    bootstrap = _Bootstrap(n_bootstrap, level, random_state)
    where, fields = resolve_device(device), _fields(field)
    parts = _parts(x, time, groups, min_cells)

    def chunks(one: Differentiable, cells: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
        return reading.of_drift(one, x[cells], time[cells], rate, where)

    with single_thread(where):
        found = [
            bootstrap.summarize([chunks(one, cells) for one in fields], cells.size, reading.jacobian(rate))
            for cells in parts.values()
        ]
    mean, std, lower, upper, stability = (np.stack(column)[:, :-1] for column in zip(*found, strict=True))
    return Regulation(
        jacobian=mean,
        std=std,
        lower=lower,
        upper=upper,
        stability=stability,
        held=np.stack([values[0][-1] for values in found]),
        n_cells=np.array([cells.size for cells in parts.values()]),
        groups=np.array(list(parts)),
        names=np.array(reading.names),
        degradation=rate,
        level=level,
    )


def compute_growth_genes(
    field: Any,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    groups: Any = None,
    *,
    genes: Genes | None = None,
    names: Sequence[str] | None = None,
    n_bootstrap: int = 200,
    level: float = 0.95,
    min_cells: int = 5,
    random_state: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    r"""Average the gradient of the growth rate over groups of cells: what makes cells divide more, or die less.

    By a gene it is :math:`(D^+)^T \nabla g`, with the loadings of a PCA :math:`W^T \nabla g`, as for
    :func:`compute_regulation`; any number of genes may be asked for.

    Parameters
    ----------
    field
        The field, or several, with ``growth_on``.
    x, time, groups, genes, names, n_bootstrap, level, min_cells, random_state, device
        As for :func:`compute_regulation`.

    Returns
    -------
    One row for each gene and group, the strongest of each group first: ``gene``, ``group``, ``effect`` (the mean, per
    unit of time and of the gene), its ``std``, ``lower``, ``upper``, ``sign`` and ``stability``.

    Raises
    ------
    RuntimeError
        If the field has no growth.
    TypeError, ValueError, FloatingPointError
        As :func:`compute_regulation`.

    Examples
    --------
    >>> from cellrank_velot.regulation.derivatives import Genes
    >>> from cellrank_velot.regulation.matrix import compute_growth_genes
    >>> genes = Genes(("Gene1", "Gene2"), loadings=series.varm["PCs"][:2].T)
    >>> table = compute_growth_genes(
    ...     sk.field, sk.cells.x, sk.cells.time, genes=genes, n_bootstrap=50
    ... )
    >>> sorted(table["gene"])
    ['Gene1', 'Gene2']
    """
    reading = Reading(_names(x, genes, names), genes)
    bootstrap = _Bootstrap(n_bootstrap, level, random_state)
    where, fields = resolve_device(device), _fields(field)
    if not all(has_growth(one) for one in fields):
        raise RuntimeError(
            "Expected a field with growth, found none: fit it to an experimental time, with growth, first. A "
            "pseudotime tells nothing of growth."
        )
    parts = _parts(x, time, groups, min_cells)
    tables = []
    with single_thread(where):
        for group, cells in parts.items():
            chunks = [reading.of_growth(one, x[cells], time[cells], where) for one in fields]
            values = bootstrap.summarize(chunks, cells.size, reading.gradient)
            table = pd.DataFrame({"gene": reading.names, "group": group} | _columns(*values))
            tables.append(table.loc[table["effect"].abs().sort_values(ascending=False, kind="stable").index])
    return pd.concat(tables, ignore_index=True)


def bin_times(time: NDArray[np.float64], n_bins: int) -> pd.Categorical:
    """Return bins of time with as many cells each, named by their ends, to use as groups.

    Where there are no more times than bins, as in a time series, each time is a bin.

    Parameters
    ----------
    time
        Time of each cell, shape ``[n_cells]``.
    n_bins
        Number of bins; fewer where many cells have the same time.

    Raises
    ------
    ValueError
        If ``n_bins`` is below one.

    Examples
    --------
    >>> from cellrank_velot.regulation.matrix import bin_times
    >>> bin_times(np.linspace(0, 1, 9), 2).value_counts().to_dict()
    {'0 to 0.5': 5, '0.5 to 1': 4}
    """
    check_integer("n_bins", n_bins, low=1)
    values, codes = np.unique(time, return_inverse=True)
    if values.size <= n_bins:
        return pd.Categorical.from_codes(codes.ravel(), [f"{value:.6g}" for value in values])
    bins = pd.qcut(time, n_bins, duplicates="drop")
    ends = [max(bins.categories[0].left, values[0]), *(each.right for each in bins.categories)]
    return bins.rename_categories(name_intervals(ends))


def name_intervals(ends: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Return a name for each interval between two ends, with as few digits as tell them apart.

    Parameters
    ----------
    ends
        Ends of the intervals, rising, shape ``[n_intervals + 1]``.

    Examples
    --------
    >>> from cellrank_velot.regulation.matrix import name_intervals
    >>> name_intervals([0.0, 0.25, 1.0])
    ['0 to 0.25', '0.25 to 1']
    """
    for digits in (3, 6, 12, 17):
        texts = [f"{end:.{digits}g}" for end in ends]
        if len(set(texts)) == len(texts):
            break
    return [f"{low} to {high}" for low, high in pairwise(texts)]


# --------------------------------------------------------------------------------------------------- bootstrap
@dataclass(frozen=True)
class _Bootstrap:
    """Means over cells drawn with replacement, of values that come in chunks and are not kept."""

    n_replicates: int
    level: float
    random_state: int

    def __post_init__(self) -> None:
        """Check the options."""
        check_integer("n_bootstrap", self.n_replicates, low=2)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_seed(self.random_state)

    def summarize(
        self,
        fields: Sequence[Iterator[NDArray[np.float64]]],
        n_cells: int,
        finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> tuple[NDArray[np.float64], ...]:
        """Return mean, standard deviation, ends of the interval and stability of what ``finish`` makes of means."""
        rng = np.random.default_rng(self.random_state)
        shares = [part.size for part in np.array_split(np.arange(self.n_replicates), len(fields))]
        pairs = [_resampled(chunks, n_cells, n, rng) for chunks, n in zip(fields, shares, strict=True)]
        total = np.mean([mean for mean, _ in pairs], axis=0)
        if not np.isfinite(total).all():
            raise FloatingPointError("A derivative of the field or of the decoder is not finite.")
        mean = finish(total[None])[0]
        replicates = finish(np.concatenate([each for _, each in pairs]))
        lower, upper = np.quantile(replicates, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        stability = np.mean(replicates * np.sign(mean) > 0, axis=0)
        return mean, replicates.std(axis=0), lower, upper, stability


def _resampled(
    chunks: Iterator[NDArray[np.float64]], n_cells: int, n_replicates: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean over the cells, and over as many cells drawn with replacement, for each replicate.

    How many draws fall into a chunk is binomial given those before, and multinomial over its cells: together they are
    the draws from all cells at once.
    """
    open_draws: NDArray[np.int64] = np.full(n_replicates, n_cells)
    open_cells = n_cells
    total: Any = 0.0
    replicates: Any = 0.0
    for values in chunks:
        size = len(values)
        draws = rng.binomial(open_draws, size / open_cells)
        weights = rng.multinomial(draws, np.full(size, 1 / size))
        total = total + values.sum(axis=0)
        replicates = replicates + weights @ values
        open_draws, open_cells = open_draws - draws, open_cells - size
    return total / n_cells, replicates / n_cells


def _columns(
    effect: NDArray[np.float64],
    std: NDArray[np.float64],
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    stability: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """Return the columns that tables of effects share."""
    sign = np.sign(effect).astype(np.int64)
    return {"effect": effect, "std": std, "lower": lower, "upper": upper, "sign": sign, "stability": stability}


# ------------------------------------------------------------------------------------------------------ checks
def _fields(field: Any) -> list[Any]:
    fields = list(field) if isinstance(field, Sequence) else [field]
    if not fields:
        raise ValueError("Expected a field or several, found none.")
    return fields


def _names(x: NDArray[np.float64], genes: Genes | None, names: Sequence[str] | None) -> list[str]:
    """Return the names of what edges are between."""
    if genes is not None:
        if names is not None:
            raise ValueError("Expected `names` of dimensions or `genes`, found both.")
        if genes.loadings is not None and genes.loadings.shape[0] != x.shape[1]:
            raise ValueError(
                f"Expected loadings of the `{x.shape[1]}` dimensions of the basis, found `{genes.loadings.shape[0]}`."
            )
        return list(genes.names)
    found = [str(at) for at in range(x.shape[1])] if names is None else [str(name) for name in names]
    if len(found) != x.shape[1] or len(set(found)) != len(found):
        raise ValueError(f"Expected a different name for each of the `{x.shape[1]}` dimensions, found {found}.")
    return found


def _rates(degradation: float | NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    rates: NDArray[np.float64] = np.asarray(degradation, dtype=np.float64)
    if rates.ndim > 1 or (rates.ndim == 1 and rates.size != len(names)):
        raise ValueError(
            f"Expected `degradation` of `{len(names)}` genes or one rate, found the shape `{rates.shape}`."
        )
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(f"Expected `degradation` to be finite and not negative, found `{degradation}`.")
    return np.broadcast_to(rates, (len(names),)).copy()


def _parts(
    x: NDArray[np.float64], time: NDArray[np.float64], groups: Any, min_cells: int
) -> dict[str, NDArray[np.int64]]:
    """Return the cells of each group that has enough of them."""
    check_integer("min_cells", min_cells, low=1)
    if time.shape != x.shape[:1]:
        raise ValueError(f"Expected a time for each of the `{x.shape[0]}` cells, found the shape `{time.shape}`.")
    labels = pd.Categorical(np.full(x.shape[0], "all") if groups is None else groups)
    if len(labels) != x.shape[0]:
        raise ValueError(f"Expected a group for each of the `{x.shape[0]}` cells, found `{len(labels)}`.")
    codes: NDArray[Any] = np.asarray(labels.codes)
    cells = {str(name): np.flatnonzero(codes == at) for at, name in enumerate(labels.categories)}
    few = {name: part.size for name, part in cells.items() if 0 < part.size < min_cells}
    if few:
        logger.warning("Groups of fewer than `min_cells=%d` cells are left out: %s", min_cells, few)
    enough = {name: part for name, part in cells.items() if part.size >= min_cells}
    if not enough:
        raise ValueError(f"Expected a group of at least `min_cells={min_cells}` cells, found none.")
    return enough
