"""The bootstrap: means over cells drawn with replacement, of values that come in chunks and are not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_integer, check_number, check_seed

__all__ = ["RegulationOptions", "bootstrap"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RegulationOptions(Options):
    """Options of the groups and the bootstrap. ``OTVelocityKernel.compute_regulation`` explains them."""

    n_bootstrap: int = 200
    level: float = 0.95
    min_cells: int = 5
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_integer("n_bootstrap", self.n_bootstrap, low=2)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_integer("min_cells", self.min_cells, low=1)
        check_seed(self.random_state)


def bootstrap(
    fields: Sequence[Iterator[FloatArray]],
    n_cells: int,
    finish: Callable[[FloatArray], FloatArray],
    options: RegulationOptions,
) -> tuple[FloatArray, ...]:
    """Return mean, standard deviation, both ends of the interval and stability of what ``finish`` makes of means.

    Replicates draw cells with replacement :cite:`efron:79`. Each field yields its values at the cells in chunks, and
    has its share of the replicates.
    """
    rng = np.random.default_rng(options.random_state)
    shares = [part.size for part in np.array_split(np.arange(options.n_bootstrap), len(fields))]
    pairs = [_resampled(chunks, n_cells, n, rng) for chunks, n in zip(fields, shares, strict=True)]
    total = np.mean([mean for mean, _ in pairs], axis=0)
    if not np.isfinite(total).all():
        raise FloatingPointError("A derivative of the field or of the decoder is not finite.")
    mean = finish(total[None])[0]
    replicates = finish(np.concatenate([each for _, each in pairs]))
    lower, upper = np.quantile(replicates, [(1 - options.level) / 2, (1 + options.level) / 2], axis=0)
    stability = np.mean(replicates * np.sign(mean) > 0, axis=0)
    return mean, replicates.std(axis=0), lower, upper, stability


def _resampled(
    chunks: Iterator[FloatArray], n_cells: int, n_replicates: int, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return the mean over the cells, and over as many cells drawn with replacement for each replicate.

    How many draws fall into a chunk is binomial given the chunks before, and multinomial over its cells. Together they
    are draws from all cells at once.
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
