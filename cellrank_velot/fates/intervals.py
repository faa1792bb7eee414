"""How far the mean fates of a group of cells may be off: fields and ends of halves of the cells, and what all share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import norm

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_number, check_seed
from cellrank_velot.fates.absorption import Transient, reaching

__all__ = ["IntervalOptions", "absorption_probabilities", "fate_intervals"]

# On the scale of the arc sine of the root of a probability: by how much the spread of halves is widened, and the error
# that all halves share. Chosen on seed 3 of the families in `tests/benchmarks/families.py`.
WIDENED, SHARED = 1.5, 0.15


@dataclass(frozen=True, kw_only=True)
class IntervalOptions(Options):
    """Options of ``OTVelocityKernel.fate_intervals``, which explains them."""

    weight: float = 0.8
    level: float = 0.95
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_number("weight", self.weight, low=0, high=1, open_low=True)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_seed(self.random_state)


def absorption_probabilities(matrix: sp.csr_matrix, states: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return the probability of each cell to come to each state first, shape ``[n_cells, n_states]``.

    A cell that comes to none has zeros.
    """
    fates = np.zeros((matrix.shape[0], len(states)))
    for number, cells in enumerate(states):
        fates[cells, number] = 1
    ends = fates.any(axis=1)
    free = np.flatnonzero(~ends & reaching(matrix, np.flatnonzero(ends)))
    if free.size:
        steps = np.asarray(matrix[free] @ fates)
        # What leads to cells without a way to any state is lost. One less the rest would lose a small chance to leave.
        others = np.ones(matrix.shape[0])
        others[free] = 0.0
        fates[free] = Transient(matrix[free][:, free], np.asarray(matrix[free] @ others)).solve(steps).x
    return np.clip(fates, 0.0, 1.0)


def fate_intervals(
    matrix: sp.csr_matrix,
    members: Iterable[sp.csr_matrix],
    states: Mapping[str, NDArray[np.int64]],
    labels: NDArray[np.str_],
    options: IntervalOptions = IntervalOptions(),
) -> pd.DataFrame:
    r"""Return mean fates of each group of ``labels``, with an interval.

    The ``members`` are matrices by the fields of halves of the cells.
    Cells that stand for a state are not among those of their group. With :math:`y = \arcsin \sqrt p`, an interval is
    :math:`y \pm z \sqrt{(1.5 s)^2 + 0.15^2}`, where :math:`s` is the spread of the members.
    """
    rng = np.random.default_rng(options.random_state)
    in_state = np.zeros(labels.size, dtype=bool)
    for cells in states.values():
        in_state[cells] = True
    groups = {str(name): np.flatnonzero((labels == name) & ~in_state) for name in np.unique(labels)}
    groups = {name: cells for name, cells in groups.items() if cells.size}
    mean = _means(absorption_probabilities(matrix, list(states.values())), groups)
    square, count = np.zeros_like(mean), 0
    for member in members:
        some = [rng.choice(cells, max(1, (cells.size + 1) // 2), replace=False) for cells in states.values()]
        square += (_means(absorption_probabilities(member, some), groups) - mean) ** 2
        count += 1
    low, high = _interval(mean, np.sqrt(square / max(count, 1)), options.level)
    index = pd.MultiIndex.from_product([groups, states], names=["group", "fate"])
    table = pd.DataFrame({"probability": mean.ravel(), "low": low.ravel(), "high": high.ravel()}, index=index)
    return table.assign(cells=np.repeat([cells.size for cells in groups.values()], len(states)))


def _means(fates: NDArray[np.float64], groups: Mapping[str, NDArray[np.intp]]) -> NDArray[np.float64]:
    return np.stack([fates[cells].mean(axis=0) for cells in groups.values()])


def _interval(
    p: NDArray[np.float64], spread: NDArray[np.float64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the intervals around probabilities."""
    # The slope of the arc sine of the root is infinite at 0 and 1, where a spread is not.
    slope = 1 / (2 * np.sqrt(np.maximum(p * (1 - p), 0.002)))
    half = norm.ppf(0.5 + level / 2) * np.hypot(WIDENED * spread * slope, SHARED)
    y = np.arcsin(np.sqrt(p))
    return np.sin(np.maximum(y - half, 0)) ** 2, np.sin(np.minimum(y + half, np.pi / 2)) ** 2
