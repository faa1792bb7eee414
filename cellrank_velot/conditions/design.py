"""Which cell comes from which sample, and which sample from which condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.stage import Stage

__all__ = ["Design"]


@dataclass(frozen=True, slots=True, eq=False)
class Design(Stage):
    """Samples of the cells, and the conditions of the samples.

    Attributes
    ----------
    sample
        Number of the sample of each cell, shape ``[n_cells]``.
    samples
        Names of the samples, shape ``[n_samples]``.
    condition
        Number of the condition of each sample, shape ``[n_samples]``.
    conditions
        Names of the conditions, the reference first, shape ``[n_conditions]``.
    pair
        Number of the pair of each sample, such as its donor, shape ``[n_samples]``; -1 where samples are not paired.
    pairs
        Names of the pairs, shape ``[n_pairs]``.
    """

    sample: NDArray[np.int64]
    samples: NDArray[np.str_]
    condition: NDArray[np.int64]
    conditions: NDArray[np.str_]
    pair: NDArray[np.int64]
    pairs: NDArray[np.str_]

    @classmethod
    def of(
        cls,
        condition: pd.Series,
        sample: pd.Series,
        pair: pd.Series | None = None,
        reference: str | None = None,
        min_cells: int = 1,
    ) -> Self:
        """Read it from one value of each for each cell, with all checks.

        Parameters
        ----------
        condition
            Condition of each cell, as categories. The name of the series is that in messages.
        sample
            Sample of each cell.
        pair
            Pair of each cell, such as the donor; none where samples are not paired.
        reference
            Condition that the others are compared with; the first where not given.
        min_cells
            Number of cells that each sample must have.

        Raises
        ------
        KeyError
            If the reference is none of the conditions.
        ValueError
            If a cell has no condition, sample or pair, if there is one condition only, if a sample is in two conditions
            or in two pairs, if a pair has two samples of one condition, or if a sample has too few cells.
        """
        given = [condition, sample] if pair is None else [condition, sample, pair]
        for values in given:
            _check_complete(values)
        names = [str(name) for name in condition.cat.categories if (condition == name).any()]
        if len(names) < 2:
            raise ValueError(f"Expected two conditions in `adata.obs[{condition.name!r}]`, found only {names}.")
        if reference is not None:
            if str(reference) not in names:
                raise KeyError(
                    f"Expected `reference` to be a condition of `adata.obs[{condition.name!r}]`, one of {names}, found "
                    f"{reference!r}."
                )
            names = [str(reference), *(name for name in names if name != str(reference))]
        table = pd.DataFrame({"condition": condition.astype(str).to_numpy(), "sample": sample.astype(str).to_numpy()})
        table["pair"] = "" if pair is None else pair.astype(str).to_numpy()
        _check_single(table, "condition", sample, condition, "in more than one condition", _SPLIT)
        _check_single(table, "pair", sample, pair, "in more than one pair", "")
        sizes = table["sample"].value_counts()
        small = sizes[sizes < min_cells]
        if len(small):
            found = ", ".join(f"{name!r} with `{size}`" for name, size in small.head(3).items())
            raise ValueError(
                f"Expected at least `{min_cells}` cells of each sample, found `{len(small)}` with fewer: {found}. "
                "Leave them out, or lower `min_cells`."
            )
        order = {name: number for number, name in enumerate(names)}
        rows = table.drop_duplicates("sample").sort_values(["condition", "sample"], key=_place(order), kind="stable")
        if pair is not None and rows.duplicated(["condition", "pair"]).any():
            twice = rows.loc[rows.duplicated(["condition", "pair"]), "pair"].iloc[0]
            raise ValueError(
                f"Expected at most one sample of each condition for each pair of `adata.obs[{pair.name!r}]`, found two "
                f"for {twice!r}. Join them into one sample."
            )
        samples = [str(name) for name in rows["sample"]]
        pairs = sorted(map(str, rows["pair"].unique())) if pair is not None else []
        return cls(
            sample=_codes(table["sample"], samples),
            samples=np.array(samples, dtype=np.str_),
            condition=rows["condition"].map(order).to_numpy(dtype=np.int64),
            conditions=np.array(names, dtype=np.str_),
            pair=_codes(rows["pair"], pairs),
            pairs=np.array(pairs, dtype=np.str_),
        )

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return int(self.samples.size)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of cells of each sample, shape ``[n_samples]``."""
        return np.bincount(self.sample, minlength=self.n_samples)

    @property
    def is_paired(self) -> bool:
        """Whether samples are paired."""
        return bool(self.pairs.size)

    def of_condition(self, number: int) -> NDArray[np.int64]:
        """Return the numbers of the samples of a condition.

        Parameters
        ----------
        number
            Number of the condition; 0 is the reference.
        """
        return np.flatnonzero(self.condition == number)

    def cells_of(self, number: int) -> NDArray[np.bool_]:
        """Return which cells are of a condition, shape ``[n_cells]``.

        Parameters
        ----------
        number
            Number of the condition; 0 is the reference.
        """
        return np.asarray(self.condition[self.sample] == number)

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each sample: its condition, its pair where there are any, and its cells."""
        table = pd.DataFrame({"condition": self.conditions[self.condition]}, pd.Index(self.samples, name="sample"))
        if self.is_paired:
            table["pair"] = self.pairs[self.pair]
        return table.assign(cells=self.sizes)


_SPLIT = (
    " A sample is one donor under one condition: join both columns to one"
    " and pass the donor as `pair_key` where both sides have the same donors."
)


def _codes(values: pd.Series, names: list[str]) -> NDArray[np.int64]:
    """Return the place of each value among the names, -1 where it is none of them."""
    return np.asarray(pd.Index(names, dtype=object).get_indexer(values.astype(object)), dtype=np.int64)


def _check_complete(values: pd.Series) -> None:
    missing = values.isna().to_numpy()
    if missing.any():
        cells = ", ".join(repr(str(name)) for name in values.index[missing][:3])
        raise ValueError(
            f"Expected a value for each cell in `adata.obs[{values.name!r}]`, found none for `{missing.sum()}` cells: "
            f"{cells}. Leave these cells out."
        )


def _check_single(
    table: pd.DataFrame, column: str, sample: pd.Series, other: pd.Series | None, what: str, hint: str
) -> None:
    """Refuse a sample that has more than one value of a column."""
    numbers = table.groupby("sample")[column].nunique()
    if other is not None and (numbers > 1).any():
        name = numbers.index[numbers > 1][0]
        found = sorted(table.loc[table["sample"] == name, column].unique())
        raise ValueError(
            f"Expected each sample of `adata.obs[{sample.name!r}]` once, found {name!r} {what}, {found}.{hint}"
        )


def _place(order: dict[str, int]):  # type: ignore[no-untyped-def]
    """Return a key that sorts conditions by their place, and other columns as they are."""
    return lambda column: column.map(order) if column.name == "condition" else column
