"""Files of the main job: tables, an h5ad, pictures and a report in one folder, each written whole or not at all.

What was computed is written first. Pictures come after that, one by one: one that fails is named in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cellrank_velot import plotting
from cellrank_velot._utils.files import replacing
from cellrank_velot.cells import read_clusters, read_root, read_time
from cellrank_velot.job.conditions import comparison_figures, comparison_table, comparison_tables
from cellrank_velot.job.log import attempt
from cellrank_velot.job.options import EndsBy, JobResult
from cellrank_velot.job.report import Cell, Figure, Report, Table, package_versions, write_report
from cellrank_velot.job.series import series_figures, series_tables
from cellrank_velot.storage import write_h5ad

__all__ = ["write_results"]

DPI = 160
N_DRIVERS = 10
N_TRENDS = 5  # genes of each lineage in the picture of trends
EARLY = 0.1  # share of cells that stand for the start in the summary
TABLES = (
    "terminal_states.csv",
    "fate_probabilities.csv",
    "drivers.csv",
    "descendants.csv",
    "ancestors.csv",
    "cluster_flows.csv",
    "condition_differences.csv",
    "condition_samples.csv",
)
FIGURES = (
    "velocity_stream",
    "fate_map",
    "macrostates",
    "gene_trends",
    "time",
    "time_check",
    "training",
    "confidence",
    "growth",
    "sankey",
    "descendants",
    "ancestors",
    "landscape",
    "condition_fates",
    "condition_clusters",
    "condition_velocity",
    "condition_trends",
)
ENDS_BY: dict[EndsBy | None, str] = {
    "names": "They are those that were named.",
    "shape": "They were found by the shape of the data and the flow, see the table of groups.",
    "macrostates": "No end was found by shape and flow: they are the macrostates that are stable and late.",
}
# Spreadsheets take a cell that begins like this for a formula, and run it.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_results(
    result: JobResult, folder: Path, *, source: str, warnings: Sequence[str] = (), footer: str = ""
) -> list[Path]:
    """Write all files of a result and return their paths, the report last.

    Files of these names are replaced, or taken away where there is no such result any more; others are left alone.
    ``source`` names the data in the report. What could not be made is added to ``result.missing``.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    paths = _write_tables(result, folder)
    if attempt(result.missing, "No adata.h5ad", _write_adata, result, folder / "adata.h5ad"):
        paths.append(folder / "adata.h5ad")
    figures = _write_figures(result, folder / "figures")
    paths += [folder / "figures" / f"{name}.png" for name in figures]
    for old in (*(folder / name for name in TABLES), *(folder / "figures" / f"{name}.png" for name in FIGURES)):
        if old not in paths:
            old.unlink(missing_ok=True)
    report = Report(
        title=f"Velocity and fates of {source}",
        summary=_summary(result),
        facts=_facts(result),
        figures=list(figures.values()),
        tables=_tables(result),
        parameters=_parameters(result),
        warnings=list(dict.fromkeys([*warnings, *result.missing])),
        versions=package_versions(),
        footer=footer,
    )
    return [*paths, write_report(folder / "report.html", report)]


def _write_tables(result: JobResult, folder: Path) -> list[Path]:
    paths = []
    if result.candidates is not None and len(result.candidates):
        paths.append(_write_csv(result.candidates.set_index("group"), folder / "terminal_states.csv"))
    if result.fates is not None:
        paths.append(_write_csv(_fate_table(result, result.fates), folder / "fate_probabilities.csv"))
    if result.drivers is not None:
        paths.append(_write_csv(result.drivers, folder / "drivers.csv"))
    if result.series is not None:
        paths += [_write_csv(table, folder / name) for name, table in result.series.tables()]
    if result.comparison is not None:
        paths += [_write_csv(table, folder / name) for name, table in comparison_tables(result.comparison)]
    return paths


def _write_adata(result: JobResult, path: Path) -> Path:
    write_h5ad(result.adata, path)
    return path


def _write_csv(table: pd.DataFrame, path: Path) -> Path:
    table = table.rename(index=_no_formula, columns=_no_formula)
    for column in table.columns[[not pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]]:
        table[column] = [_no_formula(value) for value in table[column]]
    with replacing(path) as temporary:
        table.to_csv(temporary)
    return path


def _no_formula(value: object) -> object:
    """Return a text with an apostrophe before it where a spreadsheet would take it for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _fate_table(result: JobResult, fates: pd.DataFrame) -> pd.DataFrame:
    """Return the fate probabilities with time and cluster of each cell, which CellRank's names do not clash with."""
    options, adata = result.options, result.adata
    columns: dict[str, object] = {"time": read_time(adata, str(options.time_key))}
    if options.cluster_key is not None:
        columns["cluster"] = read_clusters(adata, options.cluster_key)
    return pd.DataFrame(columns, index=adata.obs_names).join(fates.add_prefix("to ")).rename_axis("cell")


# ------------------------------------------------------------------------------------------------------ pictures
def _write_figures(result: JobResult, folder: Path) -> dict[str, Figure]:
    """Draw the figures of a result as PNG files, and return by name those that could be drawn."""
    options, kernel, estimator, basis = result.options, result.kernel, result.estimator, result.options.embedding
    figures: dict[str, Figure] = {}

    def draw(
        name: str, plot: Callable[..., object], *args: object, title: str, caption: str, wide: bool = False
    ) -> None:
        path = folder / f"{name}.png"

        def drawn() -> bytes:
            plot(*args, save=path.absolute(), dpi=DPI)
            return path.read_bytes()

        png = attempt(result.missing, f"No picture {name!r}", drawn)
        if png is not None:
            figures[name] = Figure(title, caption, png, wide)

    draw(
        "velocity_stream",
        plotting.velocity_stream,
        *(kernel, basis, options.cluster_key or options.time_key),
        title="Velocity",
        caption="Streamlines follow the velocity, projected through the transition matrix. Their direction comes from "
        "the time given; the embedding keeps neighbourhoods, not distances.",
        wide=True,
    )
    if result.series is not None:
        for name, plot, title, caption in series_figures(kernel, result.series, basis, options.cluster_key):
            draw(name, plot, title=title, caption=caption, wide=True)
    if result.fates is not None:
        caption = "Probability of each cell to end in each terminal state."
        draw("fate_map", plotting.fate_map, estimator, basis, title="Fate map", caption=caption, wide=True)
    if result.comparison is not None:
        for name, plot, title, caption in comparison_figures(kernel, result.comparison, basis):
            draw(name, plot, title=title, caption=caption, wide=True)
    if result.has_macrostates:
        caption = "Regions in which cells stay long; the cells most typical of each are coloured."
        caption += "" if result.ends_by == "macrostates" else " The terminal states do not depend on them."
        draw("macrostates", plotting.macrostates, estimator, basis, title="Macrostates", caption=caption)
    if result.drivers is not None and result.fates is not None:
        genes = {of: _best(result.drivers, of, N_TRENDS).index.tolist() for of in result.fates.columns}
        draw(
            "gene_trends",
            plotting.gene_trends,
            *(estimator, genes, options.time_key),
            title="Trends of the driver genes",
            caption="Expression of the first driver genes along their lineage: each cell counts by its probability to "
            "take it, with the band of the cells' noise. Dotted: the same gene in the other cells. Highest value 1.",
            wide=True,
        )
    draw(
        "time",
        partial(plotting.embedding, mark=read_root(result.adata, str(options.time_key))),
        *(result.adata, options.time_key, basis),
        title="Time",
        caption="The time that the velocity is computed from. With time reversed every arrow would turn around.",
    )
    if result.time_check is not None and result.time_check.findings:
        draw(
            "time_check",
            plotting.time_check,
            *(kernel, result.time_check, basis),
            title="Time and distance from its root",
            caption="Where time falls while the distance from the root rises, the velocity leads back to the root.",
        )
    draw(
        "training",
        plotting.training,
        kernel,
        title="Training of the field",
        caption="Squared error of the field relative to no velocity at all (1). Where the held-out error stays near 1, "
        + (
            "the ways between time points cross."
            if options.is_series
            else "neighbouring cells disagree on their velocity."
        ),
    )
    if result.kernel.uncertainty is None:
        return figures
    draw(
        "confidence",
        plotting.confidence,
        *(kernel, basis),
        title="Confidence",
        caption="The cosine to the true direction that is to be expected, as on simulated counts: near 1 where "
        "positions around a cell change with time and little else. It does not see a time that is wrong.",
    )
    return figures


# -------------------------------------------------------------------------------------------------------- report
def _facts(result: JobResult) -> dict[str, str]:
    """Return the few numbers at the top of the report."""
    facts = {"Cells": f"{result.adata.n_obs:,}", "Dimensions": str(result.kernel.cells.n_dims)}
    if result.has_macrostates and result.estimator is not None:
        facts["Macrostates"] = str(len(result.estimator.macrostates.cat.categories))
    facts["Terminal states"] = str(len(result.terminal_states))
    if result.direction is not None:
        facts["Direction"] = "yes" if result.direction.found else "not shown"
    if result.kernel.uncertainty is not None:
        facts["Bound of the angle"] = f"{np.median(result.kernel.velocity_uncertainty):.0f}°"
    return facts | _known_truth(result)


def _parameters(result: JobResult) -> dict[str, dict[str, object]]:
    """Return what was asked for and found, as names and values for people."""
    options = result.options
    root = options.root_cluster or options.root_cell
    return {
        "Data": {
            "time": options.time_key,
            **({"root": root} if root else {}),
            "basis": options.basis,
            "embedding": options.embedding,
            "clusters": options.cluster_key or "none",
            **({"condition": options.condition_key, "sample": options.sample_key} if options.condition_key else {}),
            "components (if computed)": options.n_pcs,
            "neighbours (if computed)": options.n_neighbors,
        },
        "Analysis": {
            "velocity : neighbours": f"{options.weight:g} : {1 - options.weight:g}",
            **{
                key: f"{value:.4g}" if isinstance(value, float) else value
                for key, value in result.kernel.params.items()
            },
            "macrostates": options.n_states or "auto",
            "terminal states": ", ".join(options.terminal_states) or "auto",
            "seed": options.seed,
        },
        **{
            step.capitalize(): {
                name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in settings.items()
            }
            for step, settings in result.kernel.settings.items()
        },
    }


def _summary(result: JobResult) -> list[str]:
    options, adata, terminal = result.options, result.adata, result.terminal_states
    start = f" from {options.root_cluster}" if options.root_cluster else ""
    followed = f"{adata.n_obs:,} cells were followed along {options.time_key}{start}."
    if not terminal:
        return [
            f"{followed} No terminal state was found, so there are no fate probabilities and no driver genes. The "
            "process may be a cycle, or its end is not among the cells. If you know the clusters where it ends, name "
            "them with --terminal-states.",
            *_verdicts(result),
        ]
    sentences = [
        f"{followed} The velocity leads to {_count(len(terminal), 'terminal state')}: {_listed(terminal)}. "
        f"{ENDS_BY.get(result.ends_by, '')}"
    ]
    if result.fates is not None and len(terminal) > 1:
        time = read_time(adata, str(options.time_key))
        first = result.fates[time <= np.quantile(time, EARLY)].mean().sort_values(ascending=False)
        chances = _listed([f"{name} with probability {value:.2f}" for name, value in first.items()])
        sentences.append(f"A cell at the start, among the earliest {EARLY:.0%}, ends in {chances}.")
        if result.series is not None and result.series.descendants is not None:
            sentences.append(
                "These are chances of single cells, whatever they grow to. Descendants and ancestors, below, count how "
                "cells multiply and die on their way."
            )
    elif result.fates is None:
        sentences.append("Fate probabilities could not be computed, see the warnings.")
    else:
        sentences.append(
            f"There is one lineage: every cell goes to {terminal[0]}, and no gene drives a choice. If you know of "
            "other ends, name them all with --terminal-states."
        )
    if len(terminal) > 1 and result.fates is not None and result.drivers is None:
        sentences.append("There are no driver genes: the data have no genes, or see the warnings.")
    return sentences + _verdicts(result)


def _verdicts(result: JobResult) -> list[str]:
    """Return what tests say of the direction, of the time, and of single velocities."""
    sentences = [] if result.comparison is None else result.comparison.summary()
    if result.direction is not None:
        sentences.append(result.direction.summary())
    if result.time_check is not None:
        sentences += str(result.time_check).splitlines()
    if result.kernel.uncertainty is not None:
        angle = np.median(result.kernel.velocity_uncertainty)
        sentences.append(
            f"Of the typical cell, the true direction is expected within {angle:.0f}° of its velocity, in two of three "
            "cells at least. This bound was calibrated on simulated counts. It does not see a time that is wrong."
        )
    return sentences


def _tables(result: JobResult) -> list[Table]:
    tables = [] if result.series is None else series_tables(result.series)
    if result.comparison is not None:
        tables.append(comparison_table(result.comparison))
    if result.candidates is not None and len(result.candidates):
        tables.append(_end_table(result.candidates))
    if result.fates is not None and result.options.cluster_key is not None:
        tables.append(_cluster_table(result, result.fates, result.options.cluster_key))
    if result.drivers is not None and result.fates is not None:
        tables.append(_driver_table(result.drivers, list(result.fates.columns)))
    return tables


def _end_table(candidates: pd.DataFrame) -> Table:
    """Return the groups that were asked whether the process ends there, and what each answered."""
    columns = ["Group", "Verdict", "From", "Cells", "Reached through it", "Flow that stays", "Earlier cells"]
    halved = candidates["stable"].notna() & (candidates["verdict"] == "end")
    rows = []
    for (_, row), known in zip(candidates.iterrows(), halved, strict=True):
        cells = [
            Cell(str(row["group"]) or "(no name)"),
            Cell(row["verdict"]),
            Cell({"shape": "near cells"}.get(row["from"], row["from"])),
            Cell(f"{row['cells']:,}"),
            Cell(f"{row['through']:.2f}"),
            Cell(f"{row['stay']:.1f}"),
            Cell(f"{row['time']:.0%}"),
        ]
        if halved.any():
            cells.append(Cell(f"{row['stable']:.0%}" if known else ""))
        rows.append(cells)
    in_halves = (
        " In halves: share of random halves of the cells in which an end is an end as well." if halved.any() else ""
    )
    return Table(
        title="Where does the process end?",
        caption="Each group was asked: a cluster, or cells that are near each other, called after the cluster of most "
        "of them. Reached through it: cells whose shortest way from the start leads through the group, for each cell "
        "of the group; about 0 at an end. Flow that stays: how many times more of the flow from the group is still "
        "there after some steps than of a walk without direction; above 1 where the flow does not leave. Earlier "
        f"cells: share of all cells that are earlier than the group.{in_halves} A cluster that no others are reached "
        "through is an end also where the flow leaves it. Several groups of one end become one terminal state.",
        columns=[*columns, "In halves"] if halved.any() else columns,
        rows=rows,
    )


def _best(drivers: pd.DataFrame, lineage: str, n_genes: int) -> pd.Series:
    """Return the correlation of the genes that go most with a lineage."""
    return drivers[f"{lineage}_corr"].nlargest(n_genes)


def _cluster_table(result: JobResult, fates: pd.DataFrame, cluster_key: str) -> Table:
    """Return the mean fate probabilities of each cluster, early clusters first."""
    labels = read_clusters(result.adata, cluster_key).astype(str).to_numpy()
    mean = fates.groupby(labels).mean()
    time = pd.Series(read_time(result.adata, str(result.options.time_key)))
    order = time.groupby(labels).mean().sort_values().index
    sizes = pd.Series(labels).value_counts()
    rows = []
    for name in order:
        values = [Cell(f"{value:.2f}", share=float(np.clip(value, 0, 1))) for value in mean.loc[name]]
        rows.append([Cell(str(name)), Cell(f"{sizes[name]:,}"), *values])
    return Table(
        title="Fate probabilities by cluster",
        caption="Mean over the cells of each cluster; clusters in order of their mean time.",
        columns=["Cluster", "Cells", *mean.columns],
        rows=rows,
    )


def _driver_table(drivers: pd.DataFrame, lineages: list[str]) -> Table:
    """Return the genes whose expression goes most with each lineage, one column for each."""
    columns = []
    for lineage in lineages:
        best = _best(drivers, lineage, N_DRIVERS)
        columns.append([Cell(f"{gene} ({value:.2f})") for gene, value in best.items()])
    n_rows = max((len(column) for column in columns), default=0)
    rows = [
        [Cell(str(i + 1)), *(column[i] if i < len(column) else Cell("") for column in columns)] for i in range(n_rows)
    ]
    return Table(
        title="Driver genes",
        caption="Genes whose expression is most correlated with the fate probability, correlation in brackets. "
        "Correlation is no proof of regulation. All genes are in drivers.csv.",
        columns=["", *lineages],
        rows=rows,
    )


def _known_truth(result: JobResult) -> dict[str, str]:
    """Return how well the velocity agrees with the true one, for simulated cells that know it."""
    truth = result.adata.obsm.get("true_velocity_pca")
    velocity = result.kernel.velocity
    if truth is None or truth.shape != velocity.shape:
        return {}
    speed = np.linalg.norm(truth, axis=1)
    # The direction of a cell that hardly moves is not defined.
    moving = speed > np.quantile(speed, 0.2)
    length = np.maximum(speed * np.linalg.norm(velocity, axis=1), np.finfo(float).tiny)
    return {"Cosine with true velocity": f"{np.mean(((truth * velocity).sum(axis=1) / length)[moving]):.2f}"}


def _count(number: int, noun: str) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return f"{words[number] if number < len(words) else number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
