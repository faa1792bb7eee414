"""Expression along lineages: a penalised spline of each gene over time, in which cells count by their fate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.stats import norm
from sklearn.preprocessing import SplineTransformer

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot._utils.validation import check_integer, check_number

__all__ = ["GeneTrends", "Smooth", "TrendOptions", "fit_smooth", "fit_trends"]

FloatArray = NDArray[np.float64]

# A trend ends where this share of the lineage's cells is behind it.
SHOWN = (0.005, 0.995)
# Penalties that are tried, in units in which the largest leaves about a straight line.
PENALTIES = np.logspace(-6, 6, 49)
# Genes that are fitted at a time, to bound the memory.
BLOCK_GENES = 500


@dataclass(frozen=True, kw_only=True)
class TrendOptions(Options):
    """Options of trends, explained by :meth:`cellrank_velot.OTVelocityKernel.gene_trends`."""

    n_points: int = 100
    n_splines: int = 12
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check them."""
        check_integer("n_points", self.n_points, low=2)
        check_integer("n_splines", self.n_splines, low=4)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)


@dataclass(frozen=True)
class Smooth:
    """Genes over time: the mean and the ends of its interval, shape ``[n_points, n_genes]``, at some times."""

    time: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class GeneTrends(Stage):
    """Expression of genes along lineages, with confidence bands.

    Attributes
    ----------
    lineages
        Names of the lineages, shape ``[n_lineages]``.
    genes
        Names of the genes, shape ``[n_genes]``.
    time
        Times of the points of each lineage, shape ``[n_lineages, n_points]``.
    mean
        Expression there, shape ``[n_lineages, n_points, n_genes]``.
    low, high
        Ends of its interval, of the same shape. The interval is that of a sample of cells, given their times and fates.
    n_cells
        Effective number of cells of each lineage, shape ``[n_lineages]``.
    level
        Share of the intervals that hold the expression.
    cluster
        Most frequent cluster among the cells of the lineage around each point, empty without clusters; shape
        ``[n_lineages, n_points]``.

    Examples
    --------
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> trends = vk.gene_trends(["FateA", "FateB"], fates)
    >>> bool(trends.peaks().loc["FateA", "Fate A"] > 0.5)
    True
    """

    lineages: NDArray[np.str_]
    genes: NDArray[np.str_]
    time: FloatArray = field(metadata=stored("n_lineages", "n_points"))
    mean: FloatArray = field(metadata=stored("n_lineages", "n_points", "n_genes"))
    low: FloatArray = field(metadata=stored("n_lineages", "n_points", "n_genes"))
    high: FloatArray = field(metadata=stored("n_lineages", "n_points", "n_genes"))
    n_cells: FloatArray
    level: float
    cluster: NDArray[np.str_]

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each lineage, gene and time; ``to_frame().to_csv(path)`` writes it.

        Returns
        -------
        ``lineage``, ``gene``, ``time``, ``expression``, and the ends of its interval, ``low`` and ``high``.
        """
        shape = (self.lineages.size, self.genes.size, self.time.shape[1])
        columns = {
            "lineage": np.broadcast_to(self.lineages[:, None, None], shape),
            "gene": np.broadcast_to(self.genes[None, :, None], shape),
            "time": np.broadcast_to(self.time[:, None, :], shape),
            "expression": self.mean.transpose(0, 2, 1),
            "low": self.low.transpose(0, 2, 1),
            "high": self.high.transpose(0, 2, 1),
        }
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()})

    def wide(self, lineage: str) -> pd.DataFrame:
        """Return the expression along a lineage, genes as rows and times as columns.

        Parameters
        ----------
        lineage
            Name of the lineage.

        Raises
        ------
        KeyError
            If there is no such lineage.
        """
        at = self.number(lineage)
        return pd.DataFrame(self.mean[at].T, pd.Index(self.genes, name="gene"), pd.Index(self.time[at], name="time"))

    def peaks(self) -> pd.DataFrame:
        """Return the time at which each gene is highest, genes as rows and lineages as columns."""
        at = self.mean.argmax(axis=1)
        values = np.take_along_axis(self.time, at, axis=1)
        return pd.DataFrame(values.T, pd.Index(self.genes, name="gene"), list(map(str, self.lineages)))

    def number(self, lineage: str) -> int:
        """Return the row of a lineage.

        Parameters
        ----------
        lineage
            Its name.
        """
        known = self.lineages.tolist()
        if lineage not in known:
            raise KeyError(f"Expected a lineage of the trends {known}, found {lineage!r}.")
        return known.index(lineage)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} of {self.genes.size} genes along {self.lineages.size} lineages: "
            f"{', '.join(self.lineages.tolist())}"
        )


def fit_trends(
    time: FloatArray,
    expression: FloatArray,
    weights: FloatArray,
    lineages: Sequence[str],
    genes: Sequence[str],
    labels: NDArray[np.str_] | None = None,
    options: TrendOptions = TrendOptions(),
) -> GeneTrends:
    """Fit the expression ``[n_cells, n_genes]`` over time along each lineage, by the weights ``[n_cells, n_lineages]``.

    ``labels`` are the clusters of the cells, empty for none.
    """
    found = [fit_smooth(time, expression, weight, options) for weight in weights.T]
    clusters = [
        np.full(one.time.shape, "") if labels is None else _clusters(one.time, time, weight, labels)
        for one, weight in zip(found, weights.T, strict=True)
    ]
    return GeneTrends(
        lineages=np.array(list(lineages), dtype=np.str_),
        genes=np.array(list(genes), dtype=np.str_),
        time=np.stack([one.time for one in found]),
        mean=np.stack([one.mean for one in found]),
        low=np.stack([one.low for one in found]),
        high=np.stack([one.high for one in found]),
        n_cells=np.array([_n_effective(weight) for weight in weights.T]),
        level=options.level,
        cluster=np.stack(clusters).astype(np.str_),
    )


@np.errstate(invalid="ignore")  # of a gene with a value that is no number
def fit_smooth(
    time: FloatArray, expression: FloatArray, weight: FloatArray, options: TrendOptions = TrendOptions()
) -> Smooth:
    r"""Fit each gene by a cubic P-spline over time :cite:`eilers:96`; cross-validation (GCV) chooses its penalty.

    With the basis :math:`B`, the weights :math:`W` of the cells and the penalty :math:`\lambda P` on second
    differences, coefficients are :math:`A B^T W y` with :math:`A = (B^T W B + \lambda P)^{-1}`. Weights are shares, not
    precisions, and noise grows with expression. So the variance is that of the sum itself, :math:`A B^T W^2 R B A` with
    the squared residuals :math:`R`. To it comes the bias that the penalty is expected to leave, :math:`\sigma^2 A
    \lambda P A`, as in the Bayesian intervals of generalised additive models :cite:`wood:17`.
    """
    weight = np.where(np.isfinite(time), np.clip(weight, 0, None), 0.0)
    weight = weight if weight.sum() > 0 else np.isfinite(time).astype(np.float64)
    low, high = _ends(time, weight)
    inside = np.flatnonzero((weight > 0) & (time >= low) & (time <= high))
    grid: FloatArray = np.linspace(low, high, options.n_points, dtype=np.float64)
    # In shares of the way: knots of a time far from zero would be the same numbers.
    knots = np.linspace(0, 1, options.n_splines - 2)
    splines = SplineTransformer(knots.size, knots=knots[:, None])
    basis = splines.fit_transform(((time[inside] - low) / (high - low))[:, None])
    at_grid = splines.transform(np.linspace(0, 1, options.n_points)[:, None])
    unit = _unit(expression[inside])
    scaled = expression[inside] / unit
    parts = [
        _fit(basis, scaled[:, start : start + BLOCK_GENES], weight[inside], at_grid)
        for start in range(0, expression.shape[1], BLOCK_GENES)
    ]
    mean, error = (np.concatenate(part, axis=1) * unit for part in zip(*parts, strict=True))
    width = norm.ppf(0.5 + options.level / 2) * error
    # A spline may swing out of the range where there are few cells; expression does not.
    bounds = expression[inside].min(axis=0), expression[inside].max(axis=0)
    return Smooth(grid, *(np.clip(values, *bounds) for values in (mean, mean - width, mean + width)))


def _unit(expression: FloatArray) -> FloatArray:
    """Return what to divide each gene by: a power of two where its squares are too large, which loses no digit."""
    largest = np.abs(expression).max(axis=0)
    huge = np.isfinite(largest) & (largest > 1e100)
    return np.exp2(np.floor(np.log2(np.where(huge, largest, 1.0))))


def _fit(
    basis: FloatArray, expression: FloatArray, weight: FloatArray, at_grid: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return mean and standard error at the grid, both of shape ``[n_points, n_genes]``."""
    n_splines, n_cells = basis.shape[1], _n_effective(weight)
    difference = np.diff(np.eye(n_splines), n=2, axis=0)
    inner = basis.T @ (weight[:, None] * basis)
    size = np.trace(inner) / n_splines
    # In these coordinates fit and penalty are diagonal for every strength of the penalty.
    inner += 1e-9 * size * np.eye(n_splines)
    rough, turn = eigh(difference.T @ difference * size, inner)
    centre = np.average(expression, axis=0, weights=weight)
    y = expression - centre
    score = turn.T @ (basis.T @ (weight[:, None] * y))
    shrink = 1 / (1 + PENALTIES[:, None] * np.maximum(rough, 0))
    left = (weight @ y**2)[None] - (2 * shrink - shrink**2) @ score**2
    free = n_cells - shrink.sum(axis=1)
    gcv = np.maximum(left, 0) / np.maximum(free, 1)[:, None] ** 2
    # A curve through all cells leaves none to judge it by.
    gcv[:-1][free[:-1] < 1] = np.inf
    # Where all penalties leave the same, the smoothest.
    best = len(PENALTIES) - 1 - np.argmin(gcv[::-1], axis=0)
    shrink = shrink[best].T
    to_grid, to_cells = at_grid @ turn, basis @ turn
    residual = y - to_cells @ (shrink * score)
    free = np.maximum(n_cells - shrink.sum(axis=0), 1)
    freedom = n_cells / free
    variance = to_grid**2 @ (shrink * (1 - shrink)) * (weight @ residual**2 / free)
    for gene in range(y.shape[1]):
        spread = to_cells * (weight * residual[:, gene])[:, None]
        rows = to_grid * shrink[:, gene]
        variance[:, gene] += freedom[gene] * np.einsum("pi,ij,pj->p", rows, spread.T @ spread, rows)
    return centre + to_grid @ (shrink * score), np.sqrt(np.maximum(variance, 0))


def _ends(time: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Return the times between which the lineage has its cells."""
    order = np.argsort(time, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    low, high = (float(time[order][min(int(np.searchsorted(share, at)), time.size - 1)]) for at in SHOWN)
    return low, high if high > low else low + max(abs(low), 1.0) * 1e-6


def _clusters(grid: FloatArray, time: FloatArray, weight: FloatArray, labels: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the cluster that has most weight among the cells nearest to each point of the grid."""
    nearest = np.abs(time[:, None] - grid).argmin(axis=1)
    names, codes = np.unique(labels, return_inverse=True)
    counts = np.zeros((grid.size, names.size))
    np.add.at(counts, (nearest, codes), np.where(labels == "", 0.0, weight))
    # A point without cells has the clusters around it, the nearest most.
    distance = np.abs(np.subtract.outer(np.arange(grid.size), np.arange(grid.size)))
    counts = np.exp(-distance) @ counts
    return names[counts.argmax(axis=1)]


def _n_effective(weight: FloatArray) -> float:
    """Return of how many cells of equal weight a mean would be as exact."""
    return float(weight.sum() ** 2 / max((weight**2).sum(), TINY))
