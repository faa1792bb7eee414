"""The shift of fates: shares of perturbed less those of unperturbed particles, and how other genes would shift them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, norm

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.perturbation.changes import Perturbation
from cellrank_velot.perturbation.flow import Fates, Variants

__all__ = ["FateShift", "ShiftOptions", "compute_fate_shift", "shares_of", "standard_error"]

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShiftOptions(Options):
    """Options of the comparison of fates, explained by :meth:`cellrank_velot.OTVelocityKernel.fate_shift`."""

    n_particles: int = 300
    n_null: int = 20
    level: float = 0.95
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_integer("n_particles", self.n_particles, low=1)
        check_integer("n_null", self.n_null)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_seed(self.random_state)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FateShift(Stage):
    """Shares of fates before and after a perturbation.

    Attributes
    ----------
    name
        What was done, in words.
    groups
        Names of the groups of starts, shape ``[n_groups]``.
    lineages
        Names of the fates, shape ``[n_lineages]``.
    before, after
        Shares of the fates among the particles that come to one, without and with the perturbation, shape ``[n_groups,
        n_lineages]``.
    low, high
        Ends of the interval of the difference, of the same shape. It covers the chance of the particles, not the error
        of the field.
    null
        Differences that other genes make, shape ``[n_null, n_groups, n_lineages]``.
    null_genes
        Names of these genes, shape ``[n_null, n_genes]``.
    no_fate
        Share of the particles without a fate before and after, shape ``[n_groups, 2]``.
    changed
        Share of the particles that come elsewhere after the perturbation than before, shape ``[n_groups]``.
    n_particles
        Number of particles in each group.
    level
        Level of the interval.

    Examples
    --------
    >>> half = {"FateA": ("scale", 0.5)}
    >>> shift = vk.fate_shift(half, n_particles=20, n_null=2, n_steps=20)
    >>> shift.lineages.tolist()
    ['Progenitor', 'Transition', 'Fate A', 'Fate B']
    >>> shift.delta.shape == shift.p_values.shape == shift.p_adjusted.shape == (1, 4)
    True
    >>> shift.n_null
    2
    """

    name: str
    groups: NDArray[np.str_]
    lineages: NDArray[np.str_]
    before: FloatArray
    after: FloatArray
    low: FloatArray
    high: FloatArray
    null: FloatArray
    null_genes: NDArray[np.str_]
    no_fate: FloatArray
    changed: FloatArray
    n_particles: int
    level: float

    @property
    def delta(self) -> FloatArray:
        """Share after less share before, shape ``[n_groups, n_lineages]``."""
        return np.asarray(self.after - self.before)

    @property
    def n_null(self) -> int:
        """Number of other perturbations that this one is compared with."""
        return int(self.null.shape[0])

    @property
    def p_values(self) -> FloatArray:
        """Share of perturbations that shift a fate as far, this one among them :cite:`phipson:10`; shape of ``delta``.

        NaN without other perturbations, else at least ``1 / (1 + n_null)``.
        """
        if self.n_null == 0:
            return np.full_like(self.before, np.nan)
        # Equal differences may differ by rounding. Those of no particles (NaN) count as far, as nothing is known.
        as_far = ~(np.abs(self.null) < np.abs(self.delta) - 1e-12)
        return np.where(np.isnan(self.delta), np.nan, (1 + as_far.sum(axis=0)) / (1 + self.n_null))

    @property
    def p_adjusted(self) -> FloatArray:
        """P-values adjusted for all groups and lineages by the method of Benjamini and Hochberg, shape of ``delta``."""
        p = self.p_values
        known = np.isfinite(p)
        adjusted = np.full_like(p, np.nan)
        if known.any():
            adjusted[known] = false_discovery_control(p[known], method="bh")
        return adjusted

    def null_interval(self, level: float | None = None) -> tuple[FloatArray, FloatArray]:
        """Return the interval of the differences that other genes make.

        Parameters
        ----------
        level
            Share of these differences inside the interval; that of the shift where not given.

        Returns
        -------
        Its two ends, each of shape ``[n_groups, n_lineages]``; NaN without other genes.

        Raises
        ------
        ValueError
            If ``level`` is not above 0, or above 1.

        Examples
        --------
        >>> shift = vk.fate_shift({"FateA": ("scale", 0.5)}, n_particles=20, n_null=2, n_steps=20)
        >>> low, high = shift.null_interval(0.9)
        >>> bool((low <= high).all())
        True
        """
        level = self.level if level is None else check_number("level", level, low=0, high=1, open_low=True)
        if self.n_null == 0:
            return np.full_like(self.before, np.nan), np.full_like(self.before, np.nan)
        known = np.where(np.isnan(self.null).all(axis=0), 0.0, self.null)
        ends = np.nanquantile(known, [(1 - level) / 2, (1 + level) / 2], axis=0)
        low, high = np.where(np.isnan(self.null).all(axis=0), np.nan, ends)
        return low, high

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each group and lineage.

        Returns
        -------
        Shares ``before`` and ``after``, their difference ``delta`` with its interval, ``low`` and ``high``, the
        interval of other genes, ``null_low`` and ``null_high``, the p-value, ``p_value`` and ``p_adjusted``, and the
        number of other genes, ``n_null``.

        Examples
        --------
        >>> shift = vk.fate_shift({"FateA": ("scale", 0.5)}, n_particles=20, n_null=0, n_steps=20)
        >>> shift.to_frame()[["group", "lineage"]].iloc[0].tolist()
        ['all', 'Progenitor']
        """
        null_low, null_high = self.null_interval()
        columns = {
            "before": self.before,
            "after": self.after,
            "delta": self.delta,
            "low": self.low,
            "high": self.high,
            "null_low": null_low,
            "null_high": null_high,
            "p_value": self.p_values,
            "p_adjusted": self.p_adjusted,
        }
        index = {
            "group": np.repeat(self.groups, self.lineages.size),
            "lineage": np.tile(self.lineages, self.groups.size),
        }
        return pd.DataFrame(index | {key: value.ravel() for key, value in columns.items()}).assign(n_null=self.n_null)

    def __repr__(self) -> str:
        if not np.isfinite(self.delta).any():
            return f"FateShift[{self.name}; no particle came to a fate]"
        group, lineage = np.unravel_index(np.nanargmax(np.abs(self.delta)), self.delta.shape)
        found = f"{self.lineages[lineage]} {self.delta[group, lineage]:+.3f} from {self.groups[group]}"
        p = self.p_values[group, lineage]
        return f"FateShift[{self.name}; largest: {found}{'' if np.isnan(p) else f', p = {p:.3g}'}]"


def compute_fate_shift(
    perturbation: Perturbation,
    fates: Fates,
    starts: NDArray[np.bool_],
    lineages: list[str],
    options: ShiftOptions = ShiftOptions(),
    *,
    groups: NDArray[np.str_] | None = None,
    null: Variants | None = None,
    null_genes: NDArray[np.str_] | None = None,
) -> FateShift:
    """Compare the fates of perturbed and unperturbed particles, and of particles under other perturbations, ``null``.

    Particles start in the cells ``starts [n_cells]``, evenly in each of the ``groups [n_cells]``. ``lineages`` are the
    names of the fates, in the order of the numbers that ``fates`` returns.
    """
    if not starts.any():
        raise ValueError("Expected cells to start from, found none.")
    n_particles, level = options.n_particles, options.level
    rng = np.random.default_rng(options.random_state)
    labels = np.full(starts.size, "all") if groups is None else np.asarray(groups, dtype=np.str_)
    names = np.array(list(dict.fromkeys(labels[starts])) if groups is None else np.unique(labels[starts]))
    start_ix = [np.resize(rng.permutation(np.flatnonzero(starts & (labels == name))), n_particles) for name in names]
    variants = _with_controls(perturbation, null)
    seed = int(rng.integers(2**31))
    codes, weights = fates(variants, np.concatenate(start_ix).astype(np.int64), seed)
    codes = codes.reshape(len(variants), names.size, n_particles)
    weights = np.ones(codes.shape) if weights is None else weights.reshape(codes.shape)
    shares = np.stack([shares_of(codes, weights, number) for number in range(len(lineages))], axis=2)
    half = norm.ppf((1 + level) / 2) * standard_error(codes[:2], weights[:2], shares[:2], len(lineages))
    delta = shares[1] - shares[0]
    return FateShift(
        name=perturbation.name,
        groups=names,
        lineages=np.array(lineages),
        before=shares[0],
        after=shares[1],
        low=np.maximum(delta - half, -1.0),
        high=np.minimum(delta + half, 1.0),
        null=shares[2:] - shares[0],
        null_genes=np.empty((0, perturbation.genes.size), dtype=np.str_) if null_genes is None else null_genes,
        no_fate=(weights[:2] * (codes[:2] < 0)).sum(axis=2).T / weights[:2].sum(axis=2).T,
        changed=(codes[0] != codes[1]).mean(axis=1),
        n_particles=n_particles,
        level=level,
    )


def _with_controls(perturbation: Perturbation, null: Variants | None) -> Variants:
    """Return no perturbation, the given one, and the others."""
    amounts = np.stack([np.zeros_like(perturbation.amounts), perturbation.amounts])
    directions = np.stack([perturbation.directions] * 2)
    if null is not None:
        amounts = np.concatenate([amounts, null.amounts])
        directions = np.concatenate([directions, null.directions])
    return Variants(amounts, directions, perturbation.effect)


def shares_of(codes: IndexArray, weights: FloatArray, number: int) -> FloatArray:
    """Return the share of a fate among the particles with a fate, shape ``[n_variants, n_groups]``."""
    total = (weights * (codes >= 0)).sum(axis=2)
    return np.divide((weights * (codes == number)).sum(axis=2), total, out=np.full_like(total, np.nan), where=total > 0)


def standard_error(codes: IndexArray, weights: FloatArray, shares: FloatArray, n_lineages: int) -> FloatArray:
    r"""Return the standard error of the difference of paired shares, shape ``[n_groups, n_lineages]``.

    Each particle counts by what it adds to the difference, to first order,
    :math:`\psi_i = n [w'_i (1'_i - s') / \sum w' - w_i (1_i - s) / \sum w]`. To its mean square :math:`2 / n` is
    added, one particle in either direction, without which no change in a few particles would look like certainty that
    there is none; for plain counts this is nearly the adjusted Wald interval of :cite:`bonett:12`.
    """
    weights = weights * (codes >= 0)
    total = weights.sum(axis=2)
    n_effective = np.divide(total**2, (weights**2).sum(axis=2), out=np.ones_like(total), where=total > 0).min(axis=0)
    result = np.empty((codes.shape[1], n_lineages))
    for number in range(n_lineages):
        parts = weights * ((codes == number) - shares[:, :, number, None])
        parts = codes.shape[2] * parts / np.where(total > 0, total, np.nan)[:, :, None]
        spread = np.square(parts[1] - parts[0]).mean(axis=1)
        result[:, number] = np.sqrt((spread + 2 / n_effective) / n_effective)
    return result
