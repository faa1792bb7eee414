"""What the main job adds for conditions with replicates: differences between them, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
from anndata import AnnData

from cellrank_velot import plotting
from cellrank_velot.cells import read_clusters
from cellrank_velot.conditions import ComparisonOptions, ConditionComparison, Design
from cellrank_velot.job.options import JobOptions
from cellrank_velot.job.report import Cell, Table
from cellrank_velot.kernel import compare_conditions

__all__ = ["check_conditions", "comparison_figures", "comparison_of", "comparison_table", "comparison_tables"]

N_GENES = 10  # of the driver genes of each lineage, that are compared
N_DRAWN = 4  # of them, in the picture
N_ROWS = 20  # of the table in the report
MOST_ROWS = 24  # that a picture of clusters may have


def check_conditions(adata: AnnData, options: JobOptions) -> None:
    """Refuse conditions and samples that cannot be compared, before anything is computed."""
    if options.condition_key is None:
        return
    condition, sample = (read_clusters(adata, str(key)) for key in (options.condition_key, options.sample_key))
    Design.of(condition, sample, None, options.reference, ComparisonOptions.min_cells)


def comparison_of(
    kernel: Any, fates: pd.DataFrame, drivers: pd.DataFrame | None, options: JobOptions
) -> ConditionComparison:
    """Compare the conditions, with the driver genes that go most with each lineage."""
    genes = None
    if drivers is not None:
        best = [drivers[f"{name}_corr"].nlargest(N_GENES).index for name in fates.columns]
        genes = list(dict.fromkeys(str(gene) for names in best for gene in names))
    return compare_conditions(
        kernel,
        str(options.condition_key),
        str(options.sample_key),
        fates=fates,
        genes=genes,
        reference=options.reference,
        cluster_key=options.cluster_key,
        random_state=options.seed,
    )


def comparison_tables(comparison: ConditionComparison) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the tables to write, by the name of their file."""
    yield "condition_differences.csv", comparison.table.set_index("measure")
    yield "condition_samples.csv", comparison.samples.set_index("measure")


def comparison_figures(
    kernel: Any, comparison: ConditionComparison, basis: str
) -> Iterator[tuple[str, Callable[..., object], str, str]]:
    """Yield the pictures: name, the plot with its arguments, title and caption."""
    measures = comparison.table["measure"]
    points = "Left, a point is a sample; right, the difference with its interval over samples. Full points hold at 5 %."
    if (measures == "lineage share").any():
        yield (
            "condition_fates",
            partial(plotting.condition_fates, comparison),
            "Fates under each condition",
            f"Share of the cells of each sample that go to each lineage. {points}",
        )
    if 0 < (measures == "cluster share").sum() <= MOST_ROWS:
        yield (
            "condition_clusters",
            partial(plotting.condition_fates, comparison, "clusters"),
            "Clusters under each condition",
            f"Share of all cells in each cluster. {points}",
        )
    yield (
        "condition_velocity",
        partial(plotting.condition_velocity, kernel, comparison, basis),
        "Velocity under each condition",
        "The one field at the cells of each condition, and the difference: it shows cells that lie elsewhere.",
    )
    if comparison.trends is not None and len(comparison.genes):
        ranked = comparison.genes.sort_values("p", kind="stable")["gene"]
        yield (
            "condition_trends",
            partial(plotting.condition_trends, comparison, list(dict.fromkeys(ranked))[:N_DRAWN]),
            "Genes under each condition",
            "Driver genes with the smallest p-values. Thick lines are means over samples, with their bands; thin lines "
            "are samples.",
        )


def comparison_table(comparison: ConditionComparison) -> Table:
    """Return the table of the report: the differences with the smallest p-values."""
    table = comparison.table.sort_values(["q", "p"], kind="stable").head(N_ROWS)
    rows = [
        [
            Cell(str(row["measure"])),
            Cell(", ".join(str(row[name]) for name in ("cluster", "lineage", "gene", "time") if row[name])),
            Cell(str(row["condition"])),
            Cell(f"{row['reference_mean']:.3g}"),
            Cell(f"{row['mean']:.3g}"),
            Cell(f"{row['difference']:+.3g}"),
            Cell("" if pd.isna(row["low"]) else f"{row['low']:+.2g} to {row['high']:+.2g}"),
            Cell("" if pd.isna(row["p"]) else f"{row['p']:.2g}"),
            Cell("" if pd.isna(row["q"]) else f"{row['q']:.2g}"),
        ]
        for _, row in table.iterrows()
    ]
    return Table(
        title="Differences between conditions",
        caption="Intervals and p-values are over samples, not cells; q is adjusted for all tests of the same measure. "
        "The first of them by q; all are in condition_differences.csv, and the value of each sample in "
        "condition_samples.csv.",
        columns=["Measure", "Of", "Condition", comparison.reference, "Condition", "Difference", "Interval", "p", "q"],
        rows=rows,
    )
