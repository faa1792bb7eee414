"""Differences between groups of samples: means, intervals, and tests that fit the number of samples.

Values are compared on a scale on which samples differ alike, high or low: the arc sine of the root for shares, the
logarithm for speeds. Means and the ends of intervals are turned back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import combinations, product
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import TINY
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed

__all__ = ["SCALES", "Differences", "Scale", "TestKind", "TestOptions", "adjusted", "differences", "smallest_p"]

FloatArray = NDArray[np.float64]
TestKind = Literal["auto", "permutation", "t"]

# A permutation test must be able to come so low after the adjustment. One that can just reach 5 %, such as of four
# samples a side, is in truth a test of 3 %, and finds less than a t test.
ENOUGH = 0.01
# So many relabellings are all counted; of more, some are drawn.
MOST_EXACT = 20_000
# From so many genes on, their variances tell what the variance of a gene is like.
FEWEST_MODERATED = 20
# Statistics held at a time, to bound the memory.
BLOCK = 4_000_000


@dataclass(frozen=True, kw_only=True)
class TestOptions(Options):
    """How differences are tested."""

    __test__ = False  # no test case, whatever pytest makes of the name

    test: TestKind = "auto"
    n_permutations: int = 9999
    level: float = 0.95
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_choice("test", self.test, TestKind)
        check_integer("n_permutations", self.n_permutations, low=99)
        check_number("level", self.level, low=0, high=1, open_low=True, open_high=True)
        check_seed(self.random_state)


@dataclass(frozen=True)
class Scale:
    """The way to the scale of a comparison, and back."""

    to: Callable[[FloatArray], FloatArray]
    back: Callable[[FloatArray], FloatArray]

    def spread(self, middle: FloatArray, difference: FloatArray) -> FloatArray:
        """Return the difference in the units of the values, of two means around a middle of the scale.

        It is zero where the one on the scale is, and rises with it.
        """
        return np.asarray(self.back(middle + difference / 2) - self.back(middle - difference / 2))


SCALES = {
    "share": Scale(lambda p: np.arcsin(np.sqrt(np.clip(p, 0, 1))), lambda y: np.sin(np.clip(y, 0, np.pi / 2)) ** 2),
    "positive": Scale(lambda x: np.log(np.maximum(x, TINY)), np.exp),
    "plain": Scale(lambda x: x, lambda x: x),
}


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences of several measures between two groups of samples, each array of shape ``[n_measures]``."""

    mean: FloatArray
    reference_mean: FloatArray
    difference: FloatArray
    low: FloatArray
    high: FloatArray
    p: FloatArray
    n: NDArray[np.int64]
    n_reference: NDArray[np.int64]
    test: NDArray[np.str_]
    smallest_p: FloatArray

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return them by name, as columns of a table."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def differences(
    values: FloatArray,
    first: NDArray[np.int64],
    others: NDArray[np.int64],
    scale: Scale,
    options: TestOptions = TestOptions(),
    *,
    n_tests: int | None = None,
    pair: NDArray[np.int64] | None = None,
    moderated: bool = False,
) -> Differences:
    """Compare the samples ``first`` with the ``others``, which are the reference, in each column of ``values``.

    ``values`` has the shape ``[n_samples, n_measures]``, NaN where a sample has none. With ``pair``, shape
    ``[n_samples]``, differences within pairs count, and samples without a partner do not. p-values are to be corrected
    for ``n_tests``, or as many as there are columns.
    """
    y = scale.to(values)
    if pair is not None:
        shared = np.intersect1d(pair[first], pair[others])
        first, others = (np.array([at[pair[at] == name][0] for name in shared], dtype=int) for at in (first, others))
        y = np.where(np.isfinite(y), y, np.nan)
        together = np.isfinite(y[first]) & np.isfinite(y[others])
        y = y.copy()
        y[first], y[others] = np.where(together, y[first], np.nan), np.where(together, y[others], np.nan)
    found = _Found(y.shape[1])
    known = np.isfinite(y)
    kinds, of_column = np.unique(known[np.concatenate([first, others])], axis=1, return_inverse=True)
    of_column = np.asarray(of_column).ravel()
    n_tests = values.shape[1] if n_tests is None else n_tests
    for number in range(kinds.shape[1]):
        columns = np.flatnonzero(of_column == number)
        has = kinds[:, number]
        one, other = first[has[: first.size]], others[has[first.size :]]
        if one.size and other.size:
            found.fill(
                columns, y[one][:, columns], y[other][:, columns], n_tests, scale, options, pair is not None, moderated
            )
    return found.result()


def adjusted(p: FloatArray) -> FloatArray:
    """Return the p-values adjusted by Benjamini and Hochberg :cite:`benjamini:95`; NaN stays and does not count."""
    q, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


class _Found:
    """Differences as they are found, some columns at a time."""

    def __init__(self, n: int) -> None:
        names = ("mean", "reference_mean", "difference", "low", "high", "p", "smallest_p")
        self.numbers: dict[str, Any] = {name: np.full(n, np.nan) for name in names}
        self.counts: dict[str, Any] = {name: np.zeros(n, dtype=np.int64) for name in ("n", "n_reference")}
        self.test = np.full(n, "none", dtype="<U16")

    def fill(
        self,
        columns: NDArray[np.intp],
        one: FloatArray,
        other: FloatArray,
        n_tests: int,
        scale: Scale,
        options: TestOptions,
        paired: bool,
        moderated: bool,
    ) -> None:
        """Compare two groups without gaps, of which ``n_tests`` measures are tested in all."""
        means = one.mean(axis=0), other.mean(axis=0)
        middle, delta = (means[0] + means[1]) / 2, means[0] - means[1]
        put = self.numbers
        put["mean"][columns], put["reference_mean"][columns] = scale.back(means[0]), scale.back(means[1])
        put["difference"][columns] = scale.spread(middle, delta)
        self.counts["n"][columns], self.counts["n_reference"][columns] = len(one), len(other)
        if min(len(one), len(other)) < 2:
            return
        statistic, error, freedom, name = _t(one, other, paired, moderated)
        half = student.ppf(0.5 + options.level / 2, freedom) * error
        put["low"][columns], put["high"][columns] = (scale.spread(middle, delta + s * half) for s in (-1, 1))
        n_ways = _count(len(one), len(other), paired)
        smallest = smallest_p(len(one), len(other), paired, options)
        enough = smallest * n_tests <= ENOUGH
        if options.test == "permutation" or (options.test == "auto" and enough):
            put["p"][columns] = _permutation(one, other, paired, n_ways, options)
            put["smallest_p"][columns] = smallest
            self.test[columns] = "sign flips" if paired else "permutation"
        else:
            put["p"][columns] = np.where(error > 0, 2 * student.sf(np.abs(statistic), freedom), 1.0)
            put["smallest_p"][columns] = 0.0
            self.test[columns] = name

    def result(self) -> Differences:
        """Return all of them."""
        return Differences(**self.numbers, **self.counts, test=self.test)


# --------------------------------------------------------------------------------------------------------- t tests
def _t(
    one: FloatArray, other: FloatArray, paired: bool, moderated: bool
) -> tuple[FloatArray, FloatArray, FloatArray, str]:
    """Return statistic, standard error and degrees of freedom of each column, and what the test is called."""
    moderated = moderated and one.shape[1] >= FEWEST_MODERATED
    if paired:
        change = one - other
        freedom: FloatArray = np.full(one.shape[1], len(one) - 1.0)
        variance, size, name = change.var(axis=0, ddof=1), 1 / len(one), "paired t"
    elif moderated:
        freedom = np.full(one.shape[1], len(one) + len(other) - 2.0)
        variance = (
            np.square(one - one.mean(axis=0)).sum(axis=0) + np.square(other - other.mean(axis=0)).sum(axis=0)
        ) / freedom
        size, name = 1 / len(one) + 1 / len(other), "t"
    else:
        return *_welch(one, other), "t"
    if moderated:
        variance, freedom = _moderate(variance, freedom)
        name = f"moderated {name}"
    error = np.sqrt(variance * size)
    delta = one.mean(axis=0) - other.mean(axis=0)
    return _ratio(delta, error), error, freedom, name


def _welch(one: FloatArray, other: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return statistic, standard error and degrees of freedom of Welch's test :cite:`welch:47`."""
    parts = [values.var(axis=0, ddof=1) / len(values) for values in (one, other)]
    total = parts[0] + parts[1]
    freedom = total**2 / np.maximum(sum(s**2 / (len(v) - 1) for s, v in zip(parts, (one, other), strict=True)), TINY)
    error = np.sqrt(total)
    return _ratio(one.mean(axis=0) - other.mean(axis=0), error), error, np.maximum(freedom, 1.0)


def _ratio(delta: FloatArray, error: FloatArray) -> FloatArray:
    return np.divide(delta, error, out=np.zeros_like(delta), where=error > 0)


def _moderate(variance: FloatArray, freedom: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Move the variances of genes to what is usual among them, by an inverse gamma prior :cite:`smyth:04`."""
    positive = variance[variance > 0]
    if not positive.size:
        return variance, freedom
    half = freedom / 2
    e = np.log(np.maximum(variance, 1e-5 * np.median(positive))) - digamma(half) + np.log(half)
    excess = e.var(ddof=1) - polygamma(1, half).mean()
    if excess <= 0:
        return np.full_like(variance, np.exp(e.mean())), freedom + 1e6
    prior = 2 * _inverse_trigamma(float(excess))
    usual = np.exp(e.mean() + digamma(prior / 2) - np.log(prior / 2))
    return (prior * usual + freedom * variance) / (prior + freedom), freedom + prior


def _inverse_trigamma(x: float) -> float:
    """Return where the trigamma function is ``x``, by Newton's method on its inverse."""
    y = 0.5 + 1 / x
    for _ in range(50):
        value = float(polygamma(1, y))
        step = value * (1 - value / x) / float(polygamma(2, y))
        y += step
        if abs(step) < 1e-9 * y:
            break
    return y


# ----------------------------------------------------------------------------------------------- permutation tests
def _count(n: int, m: int, paired: bool) -> int:
    """Return in how many ways labels can be exchanged."""
    return 2**n if paired else comb(n + m, n)


def smallest_p(n: int, m: int, paired: bool, options: TestOptions) -> float:
    """Return the smallest p-value that labels can give: where groups are of one size, both can change their names."""
    n_ways = _count(n, m, paired)
    if n_ways > MOST_EXACT:
        return 1 / (options.n_permutations + 1)
    return (2 if paired or n == m else 1) / n_ways


def _permutation(one: FloatArray, other: FloatArray, paired: bool, n_ways: int, options: TestOptions) -> FloatArray:
    """Return the share of relabellings whose statistic of Welch is at least as far from zero."""
    rng = np.random.default_rng(options.random_state)
    exact = n_ways <= MOST_EXACT
    n, m = len(one), len(other)
    if paired:
        signs = product((1.0, -1.0), repeat=n) if exact else None
        ways = np.array(list(signs)) if signs else rng.choice([-1.0, 1.0], (options.n_permutations, n))
        values = one - other
    else:
        values = np.concatenate([one, other])
        if exact:
            chosen = np.array(list(combinations(range(n + m), n)))
        else:
            chosen = rng.permuted(np.tile(np.arange(n + m), (options.n_permutations, 1)), axis=1)[:, :n]
        ways = np.zeros((len(chosen), n + m))
        np.put_along_axis(ways, chosen, 1.0, axis=1)
    # Of values around zero, sums of squares lose no digits.
    values = values if paired else values - values.mean(axis=0)
    p = np.empty(values.shape[1])
    width = max(1, BLOCK // len(ways))
    for start in range(0, p.size, width):
        part = values[:, start : start + width]
        seen = _statistics(
            np.concatenate([[1.0] * n, [0.0] * m])[None] if not paired else np.ones((1, n)), part, paired
        )
        count = (_statistics(ways, part, paired) >= seen * (1 - 1e-9) - 1e-12).sum(axis=0)
        p[start : start + width] = count / len(ways) if exact else (count + 1) / (len(ways) + 1)
    return p


def _statistics(ways: FloatArray, values: FloatArray, paired: bool) -> FloatArray:
    """Return the size of the statistic for each relabelling and column."""
    if paired:
        mean = ways @ values / len(values)
        variance = (np.square(values).mean(axis=0) - mean**2) / (len(values) - 1)
        return np.abs(mean) / np.sqrt(np.maximum(variance, 1e-12 * np.square(values).mean(axis=0) + TINY))
    n = ways.sum(axis=1)[:, None]
    m = len(values) - n
    square = np.square(values)
    sums, squares = ways @ values, ways @ square
    total, total_square = values.sum(axis=0), square.sum(axis=0)
    one, other = sums / n, (total - sums) / m
    spread = (squares / n - one**2) / (n - 1) + ((total_square - squares) / m - other**2) / (m - 1)
    floor = 1e-12 * square.mean(axis=0) + TINY
    return np.asarray(np.abs(one - other) / np.sqrt(np.maximum(spread, floor)))
