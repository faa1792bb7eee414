"""The root check: whether a reference and the place of the earliest cells support the direction of time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed
from cellrank_velot.direction._common import FloatArray, check_labels, check_time

__all__ = ["ReferenceKind", "RootCheck", "Verdict", "root_check"]

ReferenceKind = Literal["experimental_time", "cytotrace", "increasing_marker", "decreasing_marker"]

# A CytoTRACE score is high in cells that are not yet differentiated.
EXPECTED_SIGN = {"experimental_time": 1, "cytotrace": -1, "increasing_marker": 1, "decreasing_marker": -1}


class Verdict(StrEnum):
    """What a check says about the direction of time.

    Examples
    --------
    >>> check = direction.root_check(1 - vk.cells.time, adata.obs["true_time"], n_bootstrap=100)
    >>> check.direction == direction.Verdict.CONTRADICTED
    True
    """

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, eq=False)
class RootCheck:
    """Result of :func:`root_check`. Printed, it says what it means. Parts that were not asked for are NaN, undecided.

    Attributes
    ----------
    kind
        Kind of the reference.
    correlation
        Spearman correlation of time and reference, times the expected sign: a positive one supports the direction.
    interval
        Bootstrap interval of the correlation, low and high.
    n_cells
        Number of cells with a reference.
    direction
        Verdict on the direction, by the reference.
    root_share
        Share of the earliest cells that lie in the expected clusters.
    root_base
        Share of all cells that lie in the expected clusters.
    root
        Verdict on the root, by the earliest cells.

    Examples
    --------
    >>> stem = np.asarray(adata[:, "Stem"].X).ravel()
    >>> check = direction.root_check(vk.cells.time, stem, "decreasing_marker", n_bootstrap=100)
    >>> str(check.direction), check.interval[0] > 0.1, str(check.root)
    ('supported', True, 'undecided')
    """

    kind: str
    correlation: float
    interval: tuple[float, float]
    n_cells: int
    direction: Verdict
    root_share: float
    root_base: float
    root: Verdict

    def to_frame(self) -> pd.DataFrame:
        """Return one row per check: estimate, interval or base rate, verdict."""
        return pd.DataFrame(
            {
                "estimate": [self.correlation, self.root_share],
                "low": [self.interval[0], np.nan],
                "high": [self.interval[1], np.nan],
                "base": [0.0, self.root_base],
                "verdict": [str(self.direction), str(self.root)],
            },
            index=pd.Index([self.kind, "root"], name="check"),
        )

    def __str__(self) -> str:
        lines = []
        if np.isfinite(self.correlation):
            lines.append(
                f"Direction {self.direction} by {self.kind.replace('_', ' ')}: correlation in the direction expected "
                f"{self.correlation:+.2f} ({self.interval[0]:+.2f} to {self.interval[1]:+.2f}, {self.n_cells} cells)."
            )
        if np.isfinite(self.root_share):
            lines.append(
                f"Root {self.root}: {self.root_share:.0%} of the earliest cells lie in the expected clusters, "
                f"which hold {self.root_base:.0%} of all cells."
            )
        return "\n".join(lines)


def root_check(
    time: ArrayLike,
    reference: ArrayLike | None = None,
    kind: ReferenceKind = "experimental_time",
    *,
    labels: ArrayLike | None = None,
    root: Hashable | Sequence[Hashable] | None = None,
    min_correlation: float = 0.1,
    earliest: float = 0.05,
    level: float = 0.95,
    n_bootstrap: int = 500,
    random_state: int = 0,
) -> RootCheck:
    """Compare a pseudotime with what is known from elsewhere: a reference, the cluster of the root, or both.

    The direction is supported where the whole interval of the correlation lies above ``min_correlation``, contradicted
    where it lies below ``-min_correlation``, and undecided in between. A root is supported where at least half of the
    earliest cells lie in its clusters, and contradicted where their share is below that of all cells. The interval is
    valid for these cells: cells of one sample are not independent, so another sample may differ by more.

    Parameters
    ----------
    time
        Pseudotime of each cell, shape ``[n_cells]``.
    reference
        Reference value of each cell, shape ``[n_cells]``. Cells where it is NaN are left out. Without a reference,
        ``labels`` and ``root`` are needed.
    kind
        Kind of the reference, which decides the expected sign of the correlation. It is positive for
        ``"experimental_time"`` and ``"increasing_marker"``, negative for ``"decreasing_marker"`` and ``"cytotrace"``,
        the CytoTRACE score, which is high in undifferentiated cells. CellRank's ``ct_pseudotime`` is a time.
    labels
        Cluster of each cell, shape ``[n_cells]``; used with ``root`` only.
    root
        Cluster, or clusters, where the process is expected to begin. Without it the root is not checked.
    min_correlation
        Smallest correlation that counts, in ``[0, 1)``.
    earliest
        Share of the cells that count as the earliest, in ``(0, 1]``; at least one cell.
    level
        Level of the interval, in ``(0, 1)``.
    n_bootstrap
        Number of bootstrap samples.
    random_state
        Seed of the bootstrap samples.

    Returns
    -------
    Correlation with its interval, share of the earliest cells in the root, and a verdict on each.

    Raises
    ------
    TypeError
        If an option is no number.
    ValueError
        If there is nothing to compare with, shapes do not fit, a value is not finite or constant, a cluster is
        unknown, or an option is out of range.

    Examples
    --------
    >>> known, clusters = adata.obs["true_time"], adata.obs["clusters"]
    >>> check = direction.root_check(vk.cells.time, known, labels=clusters, root="Progenitor")
    >>> str(check.direction), str(check.root)
    ('supported', 'supported')
    """
    check_choice("kind", kind, ReferenceKind)
    check_number("min_correlation", min_correlation, low=0, high=1, open_high=True)
    check_number("earliest", earliest, low=0, high=1, open_low=True)
    check_number("level", level, low=0, high=1, open_low=True, open_high=True)
    check_integer("n_bootstrap", n_bootstrap, low=1)
    values = check_time(time)
    if reference is None and root is None:
        raise ValueError("Expected a `reference`, a `root` with its `labels`, or both, found neither.")
    correlation, interval, n_cells, direction = np.nan, (np.nan, np.nan), 0, Verdict.UNDECIDED
    if reference is not None:
        a, b = _complete(values, reference)
        sign, n_cells = EXPECTED_SIGN[kind], a.size
        ranks = rankdata(a), sign * rankdata(b)
        correlation = _pearson(*ranks)
        interval = _bootstrap(*ranks, n_bootstrap, level, random_state)
        direction = _verdict(interval[0] > min_correlation, interval[1] < -min_correlation)
    share, base, verdict = np.nan, np.nan, Verdict.UNDECIDED
    if root is not None:
        share, base = _root_share(values, labels, root, earliest)
        verdict = _verdict(share >= 0.5, share < base)
    return RootCheck(kind, correlation, interval, n_cells, direction, share, base, verdict)


def _complete(time: FloatArray, reference: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return time and reference of the cells that have one."""
    values = np.asarray(reference, dtype=np.float64)
    if values.shape != time.shape:
        raise ValueError(f"Expected `reference` of shape `{time.shape}`, found `{values.shape}`.")
    known = np.isfinite(values)
    if known.sum() < 3 or np.ptp(values[known]) == 0 or np.ptp(time[known]) == 0:
        raise ValueError(
            f"Expected `reference` and time to vary in at least 3 cells, found `{known.sum()}` cells with a reference "
            f"and `{np.unique(values[known]).size}` different values."
        )
    return time[known], values[known]


def _bootstrap(a: FloatArray, b: FloatArray, n_samples: int, level: float, random_state: int) -> tuple[float, float]:
    """Return the percentile interval of the correlation of two rankings."""
    rng = np.random.default_rng(check_seed(random_state))
    drawn = np.empty(n_samples)
    for i in range(n_samples):
        cells = rng.integers(a.size, size=a.size)
        drawn[i] = _pearson(a[cells], b[cells])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _root_share(
    time: FloatArray, labels: ArrayLike | None, root: Hashable | Sequence[Hashable], earliest: float
) -> tuple[float, float]:
    """Return the share of the expected clusters among the earliest cells, and among all."""
    if labels is None:
        raise ValueError("Expected `labels` of the clusters that `root` names, found none.")
    names = check_labels(labels, time.size)
    wanted = [root] if isinstance(root, str) or not isinstance(root, Sequence) else list(root)
    unknown = [name for name in wanted if name not in set(names.tolist())]
    if unknown:
        raise ValueError(f"Expected `root` among the clusters {np.unique(names).tolist()}, found `{unknown}`.")
    inside = np.isin(names, np.asarray(wanted))
    # Cells as early as the last that counts do count: the answer must not depend on the order of the cells.
    first = time <= np.sort(time)[max(1, round(earliest * time.size)) - 1]
    return float(inside[first].mean()), float(inside.mean())


def _verdict(supported: bool, contradicted: bool) -> Verdict:
    if supported:
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if contradicted else Verdict.UNDECIDED


def _pearson(a: FloatArray, b: FloatArray) -> float:
    """Return the correlation, zero where one of both is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0
