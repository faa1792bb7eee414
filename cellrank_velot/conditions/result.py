"""What a comparison of conditions gives: tables, and what they say in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.shown import as_table
from cellrank_velot._utils.validation import check_integer
from cellrank_velot.conditions.design import Design
from cellrank_velot.conditions.inference import TestKind, TestOptions, smallest_p
from cellrank_velot.conditions.trends import SampleTrends

__all__ = ["KEYS", "TABLES", "ComparisonOptions", "ConditionComparison"]

FloatArray = NDArray[np.float64]

# A finding is what remains below it after the correction for many tests.
FOUND = 0.05
# The measure that says whether fates change.
FIRST = "lineage share"
# The tables, and the measures in each.
TABLES = {
    "fates": ("fate",),
    "shares": ("lineage share", "cluster share"),
    "velocity": ("speed", "rotation"),
    "genes": ("expression", "rise"),
}
KEYS = ["measure", "cluster", "lineage", "gene", "time"]
# What each test is called in a sentence.
_TESTS = {
    "t": "t tests of sample means, without equal variances",
    "moderated t": "t tests of sample means, with variances moderated over the genes",
    "paired t": "t tests of differences within pairs",
    "moderated paired t": "t tests of differences within pairs, with variances moderated over the genes",
    "permutation": "permutation of the samples' labels",
    "sign flips": "exchange of labels within pairs",
}


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(Options):
    """Options of a comparison, explained by :func:`cellrank_velot.compare_conditions`."""

    test: TestKind = "auto"
    n_permutations: int = 9999
    min_cells: int = 10
    level: float = 0.95
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_integer("min_cells", self.min_cells, low=1)
        self.tests()

    def tests(self) -> TestOptions:
        """Return those of the tests."""
        return TestOptions(
            test=self.test, n_permutations=self.n_permutations, level=self.level, random_state=self.random_state
        )


@dataclass(frozen=True, eq=False)
class ConditionComparison:
    """Differences between conditions, with the sample as the unit.

    Attributes
    ----------
    table
        One row for each measure and each condition that was compared with the reference: ``measure``; ``cluster``,
        ``lineage``, ``gene`` and ``time`` where it has them; the two conditions; ``mean``, ``reference_mean`` and their
        ``difference``, with the ends of its interval, ``low`` and ``high``; ``p``, and ``q``, adjusted for all tests of
        the same measure :cite:`benjamini:95`; ``q_all``, adjusted for those of all measures; the numbers of samples,
        ``n`` and ``n_reference``; the ``test``, and the smallest p-value that it could give, ``smallest_p``.
    samples
        One row for each measure and each sample: its ``value``, and the number of its ``cells``.
    design
        The samples, and the condition of each.
    options
        How it was compared.
    trends
        Trends of the genes of each sample, where genes were asked for.
    fields
        Mean velocity of all cells by the fields of the samples of each condition, shape
        ``[n_conditions, n_cells, n_dims]``, where each sample has a field.

    Examples
    --------
    >>> sample = np.arange(300) % 6  # three of each condition
    >>> adata.obs["sample"] = sample.astype(str)
    >>> adata.obs["condition"] = np.where(sample < 3, "control", "treated")
    >>> fates = adata.obs["clusters"].str.get_dummies()[["Fate A", "Fate B"]]
    >>> found = compare_conditions(vk, "condition", "sample", fates=fates)
    >>> found.design.to_frame()["condition"].tolist()
    ['control', 'control', 'control', 'treated', 'treated', 'treated']
    >>> found.shares.columns[-8:].tolist()
    ['high', 'p', 'q', 'q_all', 'n', 'n_reference', 'test', 'smallest_p']
    >>> found.to_frame().to_csv("comparison.csv", index=False)
    """

    table: pd.DataFrame
    samples: pd.DataFrame
    design: Design
    options: ComparisonOptions
    trends: SampleTrends | None = None
    fields: FloatArray | None = None

    @property
    def fates(self) -> pd.DataFrame:
        """Mean fates of each cluster."""
        return self._part("fates")

    @property
    def shares(self) -> pd.DataFrame:
        """Share of the cells that go to each lineage, and of those in each cluster."""
        return self._part("shares")

    @property
    def velocity(self) -> pd.DataFrame:
        """Speed of the velocity in each cluster, and its rotation in degrees."""
        return self._part("velocity")

    @property
    def genes(self) -> pd.DataFrame:
        """Mean expression of each gene along each lineage, and how much it rises from the start to the end."""
        return self._part("genes")

    @property
    def reference(self) -> str:
        """The condition that the others are compared with."""
        return str(self.design.conditions[0])

    @property
    def conditions(self) -> list[str]:
        """The conditions, the reference first."""
        return [str(name) for name in self.design.conditions]

    @property
    def found(self) -> pd.DataFrame:
        """What holds at 5 %, the smallest p-values first: shares of lineages by ``q``, all else by ``q_all``.

        Whether fates change is the first question. What is looked at besides must hold among all measures.
        """
        rows = self.table[self._holds]
        first = rows["measure"] != FIRST
        order = np.lexsort((rows["p"], first))
        return _without_empty(rows.iloc[order])

    @property
    def _holds(self) -> pd.Series:
        q = self.table["q"].where(self.table["measure"] == FIRST, self.table["q_all"])
        return q <= FOUND

    def to_frame(self) -> pd.DataFrame:
        """Return all differences as one table; ``to_frame().to_csv(path)`` writes it."""
        return self.table.copy()

    def summary(self) -> list[str]:
        """Return sentences for people: the design, what can be found with it, and what was found."""
        sizes = [f"{self.design.of_condition(i).size} of {name}" for i, name in enumerate(self.conditions)]
        cells = self.design.sizes
        pairs = ", in pairs" if self.design.is_paired else ""
        sentences = [f"Samples: {', '.join(sizes)}{pairs}; {cells.min()} to {cells.max()} cells each."]
        for number, name in enumerate(self.conditions[1:], 1):
            sentences.append(self._on_tests(number, name))
        sentences += self._on_lineages()
        for name in self.conditions[1:]:
            rows = self.found[self.found["condition"] == name]
            if rows.empty and self.table.loc[self.table["condition"] == name, "p"].notna().any():
                sentences.append(f"No difference between {name} and {self.reference} holds at 5 %.")
            elif len(rows):
                most = "; ".join(_said(row) for _, row in rows.head(5).iterrows())
                more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
                sentences.append(f"{name} differs from {self.reference} in {most}{more}.")
        return sentences

    def _on_lineages(self) -> list[str]:
        """Return what is missing of the shares of lineages, and why."""
        if not (self.samples["measure"] == "fate").any():
            return ["There is one lineage, or no cells with fates: no shares of lineages, and no mean fates."]
        having = self.samples.loc[self.samples["measure"] == "lineage share", "sample"]
        without = [str(name) for name in self.design.samples if name not in set(having)]
        few = f"{', '.join(without[:5])}{', ...' if len(without) > 5 else ''}"
        text = f"Fewer than {self.options.min_cells} committed cells, hence no shares of lineages: {few}."
        return [text] if without else []

    def _on_tests(self, number: int, name: str) -> str:
        """Return what the numbers of samples allow."""
        one, other = self.design.of_condition(number).size, self.design.of_condition(0).size
        rows = self.table[self.table["condition"] == name]
        if rows["p"].notna().sum() == 0:
            return (
                f"No p-values of {name} against {self.reference}: only several samples of a condition tell how much "
                f"samples differ anyway, so a test needs two a side; there are {one} and {other}. Cells of one sample "
                "are no replicates. What remains are the differences."
            )
        used = rows.loc[rows["p"].notna(), ["test", "smallest_p", "n", "n_reference"]]
        said = []
        for test, part in used.groupby("test", sort=False):
            smallest = float(part["smallest_p"].max())
            said.append(_TESTS[str(test)] + (f", whose smallest p-value is {smallest:.2g}" if smallest > 0 else ""))
        if (used["smallest_p"] == 0).any() and self.options.test == "auto":
            n, m = (int(used.loc[used["smallest_p"] == 0, column].max()) for column in ("n", "n_reference"))
            least = smallest_p(n, m, self.design.is_paired, self.options.tests())
            said.append(f"permuting the labels of so few samples could give no p-value below {least:.2g}")
        return f"{name} against {self.reference}, {one} samples against {other}: {'; '.join(said)}."

    def _part(self, name: str) -> pd.DataFrame:
        return _without_empty(self.table[self.table["measure"].isin(TABLES[name])])

    def _facts(self) -> dict[str, Any]:
        sizes = {name: self.design.of_condition(i).size for i, name in enumerate(self.conditions)}
        return {
            "samples": ", ".join(f"{name} {size}" for name, size in sizes.items()),
            "tests": int(self.table["p"].notna().sum()),
            "found": int(self._holds.sum()),
        }

    def __repr__(self) -> str:
        return "\n".join([type(self).__name__, *(f"  {line}" for line in self.summary())])

    def _repr_html_(self) -> str:
        rows = self.found.head(10)
        shown = rows.to_html(index=False, float_format=lambda value: f"{value:.3g}") if len(rows) else ""
        lines = dict(zip(("Design", *["Tests"] * (len(self.conditions) - 1)), self.summary(), strict=False))
        return as_table(type(self).__name__, {**self._facts(), **lines}) + shown


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the columns that say nothing in it."""
    empty = [name for name in KEYS[1:] if (table[name] == "").all()]
    return table.drop(columns=empty).reset_index(drop=True)


def _said(row: pd.Series) -> str:
    """Return a difference in words."""
    of = [str(row[name]) for name in ("gene", "lineage", "cluster") if str(row.get(name, "")) not in ("", "nan")]
    when = f" at {row['time']}" if str(row.get("time", "")) not in ("", "nan") else ""
    interval = "" if np.isnan(row["low"]) else f" ({row['low']:+.2g} to {row['high']:+.2g})"
    q = row["q"] if row["measure"] == FIRST else row["q_all"]
    return f"{row['measure']} of {', '.join(of)}{when}: {row['difference']:+.2g}{interval}, q {q:.2g}"
