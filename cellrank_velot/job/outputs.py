"""Files of the main job: tables, pictures, an h5ad and a report in one folder, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from cellrank_velot import plotting
from cellrank_velot._utils.files import replacing
from cellrank_velot.cells import read_clusters, read_root, read_time
from cellrank_velot.job.options import JobResult
from cellrank_velot.job.report import Cell, Figure, Report, Table, package_versions, write_report
from cellrank_velot.preprocessing.pseudotime import PSEUDOTIME_KEYS
from cellrank_velot.storage import write_h5ad

__all__ = ["write_results"]

DPI = 160
N_DRIVERS = 10
EARLY = 0.1  # share of cells that stand for the start in the summary


def write_results(
    result: JobResult, folder: Path, *, source: str, warnings: Sequence[str] = (), footer: str = ""
) -> list[Path]:
    """Write all files of a result and return their paths, the report last.

    Files of these names are replaced, others are left alone. ``source`` names the data in the report.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = _write_figures(result, folder / "figures")
    paths = [folder / "figures" / f"{name}.png" for name in figures]
    if result.fates is not None:
        paths.append(_write_csv(_fate_table(result, result.fates), folder / "fate_probabilities.csv"))
    if result.drivers is not None:
        paths.append(_write_csv(result.drivers, folder / "drivers.csv"))
    report = Report(
        title=f"Velocity and fates of {source}",
        summary=_summary(result),
        facts=_facts(result),
        figures=list(figures.values()),
        tables=_tables(result),
        parameters=_parameters(result),
        warnings=warnings,
        versions=package_versions(),
        footer=footer,
    )
    write_report(folder / "report.html", report)
    write_h5ad(result.adata, folder / "adata.h5ad")
    return [*paths, folder / "adata.h5ad", folder / "report.html"]


def _write_csv(table: pd.DataFrame, path: Path) -> Path:
    with replacing(path) as temporary:
        table.to_csv(temporary)
    return path


def _fate_table(result: JobResult, fates: pd.DataFrame) -> pd.DataFrame:
    """Return the fate probabilities with time and cluster of each cell, which CellRank's names do not clash with."""
    options, adata = result.options, result.adata
    columns: dict[str, object] = {"time": adata.obs[options.time_key]}
    if options.cluster_key is not None:
        columns["cluster"] = read_clusters(adata, options.cluster_key)
    return pd.DataFrame(columns, index=adata.obs_names).join(fates.add_prefix("to ")).rename_axis("cell")


# ------------------------------------------------------------------------------------------------------ pictures
def _write_figures(result: JobResult, folder: Path) -> dict[str, Figure]:
    """Draw the figures of a result as PNG files, and return them by name."""
    options, kernel, estimator, basis = result.options, result.kernel, result.estimator, result.options.embedding
    root = read_root(result.adata) if options.time_key in PSEUDOTIME_KEYS.values() else None
    figures: dict[str, Figure] = {}

    def draw(
        name: str, plot: Callable[..., object], *args: object, title: str, caption: str, wide: bool = False
    ) -> None:
        path = folder / f"{name}.png"
        plot(*args, save=path.absolute(), dpi=DPI)
        figures[name] = Figure(title, caption, path.read_bytes(), wide)

    draw(
        "velocity_stream",
        plotting.velocity_stream,
        *(kernel, basis, options.cluster_key or options.time_key),
        title="Velocity",
        caption="Streamlines follow the velocity, projected through the transition matrix. Their direction comes from "
        "the time given; the embedding keeps neighbourhoods, not distances.",
        wide=True,
    )
    if result.fates is not None:
        caption = "Probability of each cell to end in each terminal state."
        draw("fate_map", plotting.fate_map, estimator, basis, title="Fate map", caption=caption, wide=True)
    if result.has_macrostates:
        caption = "Regions in which cells stay long; the cells most typical of each are coloured."
        draw("macrostates", plotting.macrostates, estimator, basis, title="Macrostates", caption=caption)
    draw(
        "time",
        partial(plotting.embedding, mark=root),
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
        "neighbouring cells disagree on their velocity.",
    )
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
    if result.has_macrostates:
        facts["Macrostates"] = str(len(result.estimator.macrostates.cat.categories))
    facts["Terminal states"] = str(len(result.estimator.terminal_states.cat.categories))
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
            "training steps, at most": options.n_steps,
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
    options, adata = result.options, result.adata
    start = f" from {options.root_cluster}" if options.root_cluster else ""
    terminal = [str(name) for name in result.estimator.terminal_states.cat.categories]
    sentences = [
        f"{adata.n_obs:,} cells were followed along {options.time_key}{start}. "
        f"The velocity leads to {_count(len(terminal), 'terminal state')}: {_listed(terminal)}."
    ]
    if result.fates is not None and len(terminal) > 1:
        time = read_time(adata, str(options.time_key))
        first = result.fates[time <= np.quantile(time, EARLY)].mean().sort_values(ascending=False)
        chances = _listed([f"{name} with probability {value:.2f}" for name, value in first.items()])
        sentences.append(f"A cell at the start, among the earliest {EARLY:.0%}, ends in {chances}.")
    elif result.fates is None:
        sentences.append("Fate probabilities could not be computed, see the warnings.")
    if result.direction is not None:
        sentences.append(result.direction.summary())
    if result.time_check is not None:
        sentences += str(result.time_check).splitlines()
    return sentences


def _tables(result: JobResult) -> list[Table]:
    tables = []
    if result.fates is not None and result.options.cluster_key is not None:
        tables.append(_cluster_table(result, result.fates, result.options.cluster_key))
    if result.drivers is not None and result.fates is not None:
        tables.append(_driver_table(result.drivers, list(result.fates.columns)))
    return tables


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
        best = drivers[f"{lineage}_corr"].nlargest(N_DRIVERS)
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
