"""Fates under a series of doses of one change, from particles that start together and feel the same noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from cellrank_velot._utils.stage import Stage
from cellrank_velot.perturbation.changes import Perturbation
from cellrank_velot.perturbation.flow import Fates, Variants
from cellrank_velot.perturbation.shift import ShiftOptions, shares_of, standard_error

__all__ = ["DoseResponse", "compute_dose_response"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DoseResponse(Stage):
    """Shares of fates at several doses.

    Attributes
    ----------
    genes
        Names of the genes that are scaled, shape ``[n_genes]``.
    factors
        Factors of their expression, shape ``[n_doses]``; 1 is no change.
    lineages
        Names of the fates, shape ``[n_lineages]``.
    shares
        Share of each fate among the particles that come to one, shape ``[n_doses, n_lineages]``.
    low, high
        Interval of the difference to no change, around the share, of the same shape. It covers the chance of the
        particles, not the error of the field.
    no_fate
        Share of the particles without a fate, shape ``[n_doses]``.
    n_particles
        Number of particles.
    level
        Level of the interval.

    Examples
    --------
    >>> doses = vk.dose_response("FateA", [0, 1, 2], n_particles=20, step_size=0.03)
    >>> doses.shares.shape
    (3, 4)
    """

    genes: NDArray[np.str_]
    factors: FloatArray
    lineages: NDArray[np.str_]
    shares: FloatArray
    low: FloatArray
    high: FloatArray
    no_fate: FloatArray
    n_particles: int
    level: float

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each dose and lineage.

        Returns
        -------
        Columns ``factor``, ``lineage``, ``share``, and its interval ``low`` and ``high``.

        Examples
        --------
        >>> doses = vk.dose_response("FateA", [0, 1, 2], n_particles=20, step_size=0.03)
        >>> doses.to_frame()["factor"].unique().tolist()
        [0.0, 1.0, 2.0]
        """
        return pd.DataFrame(
            {
                "factor": np.repeat(self.factors, self.lineages.size),
                "lineage": np.tile(self.lineages, self.factors.size),
                "share": self.shares.ravel(),
                "low": self.low.ravel(),
                "high": self.high.ravel(),
            }
        )

    def __repr__(self) -> str:
        return f"DoseResponse[{', '.join(self.genes)} × {', '.join(f'{factor:g}' for factor in self.factors)}]"


def compute_dose_response(
    taken: Perturbation,
    factors: FloatArray,
    fates: Fates,
    starts: NDArray[np.bool_],
    lineages: list[str],
    options: ShiftOptions = ShiftOptions(),
) -> DoseResponse:
    """Scale genes by each of the factors, given the perturbation that takes them away.

    Particles start in the cells ``starts [n_cells]``. ``lineages`` are the fates, as ``fates`` counts them.
    """
    rng = np.random.default_rng(options.random_state)
    start_ix = np.resize(rng.permutation(np.flatnonzero(starts)), options.n_particles).astype(np.int64)
    # A factor takes away what a knock-out does, times one less the factor. No change comes first.
    amounts = (1 - np.concatenate([[1.0], factors]))[:, None, None] * taken.amounts
    variants = Variants(amounts, np.stack([taken.directions] * len(amounts)), taken.effect)
    codes, weights = fates(variants, start_ix, int(rng.integers(2**31)))
    weights = np.ones(codes.shape) if weights is None else weights
    codes, weights = codes[:, None], weights[:, None]  # one group
    shares = np.stack([shares_of(codes, weights, number)[:, 0] for number in range(len(lineages))], axis=1)
    pairs = ([0, at] for at in range(1, len(codes)))
    error = np.stack([standard_error(codes[p], weights[p], shares[p][:, None], len(lineages))[0] for p in pairs])
    half = norm.ppf((1 + options.level) / 2) * np.where(factors[:, None] == 1, 0.0, error)
    return DoseResponse(
        genes=taken.genes,
        factors=factors,
        lineages=np.array(lineages),
        shares=shares[1:],
        low=np.maximum(shares[1:] - half, 0.0),
        high=np.minimum(shares[1:] + half, 1.0),
        no_fate=((weights * (codes < 0)).sum(axis=2) / weights.sum(axis=2))[1:, 0],
        n_particles=options.n_particles,
        level=options.level,
    )
