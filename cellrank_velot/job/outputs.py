"""Files of the main job: tables, pictures, an h5ad and a report in one folder, each written whole or not at all.

Depends on the pipeline's result, on the plots and on the report. Knows AnnData.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem
from cellrank import Lineage

from cellrank_velot import plotting
from cellrank_velot._utils.files import replacing
from cellrank_velot.job import JobResult
from cellrank_velot.job.report import Cell, Figure, Report, Table, package_versions, write_report

__all__ = ["write_h5ad", "write_results"]

logger = logging.getLogger("cellrank_velot")

DPI = 160
N_DRIVERS = 10
EARLY = 0.1  # share of cells that stand for the start in the summary


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write an AnnData with all results of CellRank, also where anndata and CellRank disagree on how.

    CellRank 2.0 cannot write its fate probabilities with a recent anndata. They are written as the plain arrays that
    they are; their names are those of the terminal states, from which CellRank takes them when it reads the file.

    HDF5 does not bear a disk that is full: it cannot close the file, and crashes when the process ends. It is therefore
    given memory to write to, as much as the compressed file takes.

    Parameters
    ----------
    adata
        Annotated data. Its columns of text become categories, as ``AnnData.write_h5ad`` makes them.
    path
        File to write; one that is there is replaced once the new one is complete.

    Raises
    ------
    OSError
        If the file cannot be written, naming it.

    Examples
    --------
    >>> import anndata
    >>> from cellrank_velot.job.outputs import write_h5ad
    >>> write_h5ad(adata, "cells.h5ad")
    >>> anndata.read_h5ad("cells.h5ad").n_obs
    300
    """
    kept = {key: value for key, value in adata.obsm.items() if isinstance(value, Lineage)}
    try:
        for key, value in kept.items():
            adata.obsm[key] = np.asarray(value.X)
        adata.strings_to_categoricals()
        buffer = BytesIO()
        with h5py.File(buffer, "w") as file:
            write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    finally:
        for key, value in kept.items():
            adata.obsm[key] = value


def write_results(
    result: JobResult, folder: Path, *, source: str, warnings: Sequence[str] = (), footer: str = ""
) -> list[Path]:
    """Write all files of a result and return their paths.

    Parameters
    ----------
    result
        What the job found.
    folder
        Where to write; files of these names are replaced, others are left alone.
    source
        Name of the data, for the report.
    warnings
        What the package warned of, for the report.
    footer
        Last line of the report.

    Returns
    -------
    Paths of the files, the report last.

    Raises
    ------
    OSError
        If one cannot be written, naming it; those before are complete.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cellrank_velot.job.outputs import write_results
    >>> from cellrank_velot.job import JobOptions, analyse, prepare_inputs
    >>> result = analyse(
    ...     vk, prepare_inputs(adata, JobOptions(terminal_states=("Fate A", "Fate B")))
    ... )
    >>> folder = Path("results")
    >>> folder.mkdir()
    >>> write_results(result, folder, source="simulated cells")[-1].name
    'report.html'
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    written = _write_figures(result, folder / "figures")
    paths = list(written.values())
    if result.fates is not None:
        paths.append(_write_csv(_fate_table(result), folder / "fate_probabilities.csv"))
    if result.drivers is not None:
        paths.append(_write_csv(result.drivers, folder / "drivers.csv"))
    report = _report(result, written, source=source, warnings=warnings, footer=footer)
    write_report(folder / "report.html", report)
    write_h5ad(result.adata, folder / "adata.h5ad")
    return [*paths, folder / "adata.h5ad", folder / "report.html"]


def _write_csv(table: pd.DataFrame, path: Path) -> Path:
    with replacing(path) as temporary:
        table.to_csv(temporary)
    return path


def _fate_table(result: JobResult) -> pd.DataFrame:
    """Return the fate probabilities with time and cluster of each cell, which CellRank's names do not clash with."""
    options, adata = result.options, result.adata
    columns: dict[str, object] = {"time": adata.obs[options.time_key]}
    if options.cluster_key is not None:
        columns["cluster"] = adata.obs[options.cluster_key]
    assert result.fates is not None
    fates = result.fates.add_prefix("to ")
    return pd.DataFrame(columns, index=adata.obs_names).join(fates).rename_axis("cell")


# ------------------------------------------------------------------------------------------------------ pictures
_CAPTIONS = {
    "velocity_stream": (
        "Velocity",
        "Streamlines follow the velocity, projected through the transition matrix. Their direction comes from the time "
        "given; the embedding keeps neighbourhoods, not distances.",
    ),
    "fate_map": ("Fate map", "Probability of each cell to end in each terminal state."),
    "macrostates": (
        "Macrostates",
        "Regions in which cells stay long; the cells most typical of each are coloured.",
    ),
    "time": ("Time", "The time that the velocity is computed from. With time reversed every arrow would turn around."),
    "training": (
        "Training of the field",
        "Squared error of the field relative to no velocity at all (1). Where the held-out error stays near 1, "
        "neighbouring cells disagree on their velocity.",
    ),
    "confidence": (
        "Confidence",
        "What the velocity of each cell from transport rests on: how plausible its displacements are, how little they "
        "spread, and how many windows agree on it, next to the best cell.",
    ),
}


def _write_figures(result: JobResult, folder: Path) -> dict[str, Path]:
    """Draw all figures of a result as PNG, and return their paths by name."""
    options, adata = result.options, result.adata
    basis, dpi = options.embedding, DPI
    root = adata.uns.get("iroot") if options.time_key == "dpt_pseudotime" else None
    draw: dict[str, Callable[[Path], object]] = {
        "velocity_stream": lambda save: plotting.velocity_stream(
            result.kernel, basis, options.cluster_key or options.time_key, save=save, dpi=dpi
        ),
        "time": lambda save: plotting.embedding(
            adata, str(options.time_key), basis, mark=None if root is None else int(root), save=save, dpi=dpi
        ),
        "training": lambda save: plotting.training(result.kernel, save=save, dpi=dpi),
        "confidence": lambda save: plotting.confidence(result.kernel, basis, save=save, dpi=dpi),
    }
    if result.has_macrostates:
        draw["macrostates"] = lambda save: plotting.macrostates(result.estimator, basis, save=save, dpi=dpi)
    if result.fates is not None:
        draw["fate_map"] = lambda save: plotting.fate_map(result.estimator, basis, save=save, dpi=dpi)
    paths = {}
    for name in (name for name in _CAPTIONS if name in draw):
        paths[name] = folder / f"{name}.png"
        draw[name](paths[name].absolute())
    return paths


# -------------------------------------------------------------------------------------------------------- report
def _report(
    result: JobResult, figures: dict[str, Path], *, source: str, warnings: Sequence[str], footer: str
) -> Report:
    wide = {"velocity_stream", "fate_map"}
    facts = {"Cells": f"{result.adata.n_obs:,}", "Dimensions": str(result.kernel.cells.n_dims)}
    if result.has_macrostates:
        facts["Macrostates"] = str(len(result.estimator.macrostates.cat.categories))
    facts["Terminal states"] = str(len(result.estimator.terminal_states.cat.categories))
    return Report(
        title=f"Velocity and fates of {source}",
        summary=_summary(result),
        facts=facts | _known_truth(result),
        figures=[Figure(*_CAPTIONS[name], png=path.read_bytes(), wide=name in wide) for name, path in figures.items()],
        tables=_tables(result),
        parameters=_parameters(result),
        warnings=warnings,
        versions=package_versions(),
        footer=footer,
    )


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
        **{step.capitalize(): _readable(values) for step, values in result.kernel.settings.items()},
    }


def _readable(settings: dict[str, object]) -> dict[str, object]:
    """Return the parameters of a step as people write them."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in settings.items()}


def _summary(result: JobResult) -> list[str]:
    options, adata = result.options, result.adata
    start = f" from {options.root_cluster}" if options.root_cluster else ""
    terminal = [str(name) for name in result.estimator.terminal_states.cat.categories]
    sentences = [
        f"{adata.n_obs:,} cells were followed along {options.time_key}{start}. "
        f"The velocity leads to {_count(len(terminal), 'terminal state')}: {_listed(terminal)}."
    ]
    if result.fates is not None and len(terminal) > 1:
        time = adata.obs[options.time_key]
        first = result.fates[(time <= time.quantile(EARLY)).to_numpy()].mean().sort_values(ascending=False)
        chances = _listed([f"{name} with probability {value:.2f}" for name, value in first.items()])
        sentences.append(f"A cell at the start, among the earliest {EARLY:.0%}, ends in {chances}.")
    elif result.fates is None:
        sentences.append("Fate probabilities could not be computed, see the warnings.")
    return sentences


def _tables(result: JobResult) -> list[Table]:
    tables = []
    if result.fates is not None and result.options.cluster_key is not None:
        tables.append(_cluster_table(result, result.fates))
    if result.drivers is not None and result.fates is not None:
        tables.append(_driver_table(result.drivers, list(result.fates.columns)))
    return tables


def _cluster_table(result: JobResult, fates: pd.DataFrame) -> Table:
    """Return the mean fate probabilities of each cluster, early clusters first."""
    obs = result.adata.obs
    labels = obs[result.options.cluster_key].astype(str).to_numpy()
    mean = fates.groupby(labels).mean()
    order = obs[result.options.time_key].groupby(labels).mean().sort_values().index
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
