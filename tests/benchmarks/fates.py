"""Ends that are suggested, cells that keep to their end, and fate probabilities, on real cells and simulated counts.

Beside CellRank's PseudotimeKernel and ConnectivityKernel, and the matrix of 0.1.0, which had no weights and no ends.
Writes docs/fates.md. `--quick` takes two sets of each and writes nothing. About 20 minutes of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
import scipy.sparse as sp
from borders import sets
from common import quiet, table
from families import FAMILIES, HELD_BACK, simulate
from scipy.sparse.linalg import splu
from scipy.stats import norm
from sklearn.cluster import KMeans

import cellrank_velot as cv
from cellrank_velot.cells import find_time_key

DOCS = Path(__file__).parents[2] / "docs"
# Seeds that nothing was chosen on.
SEEDS = (50, 51)
# The name of a late stage counts for the end of its branch.
STAGES = {"96h M": "120h M", "96h En": "120h En", "72h En": "120h En"}
LEVELS = (0.5, 0.8, 0.95)
MIX = 0.8  # share of the kernel, the rest is of the connectivities

ABOUT = """# Ends and fates

Made by `python tests/benchmarks/fates.py`.

**Which ends are found.** `suggest_terminal_states("clusters")` on real cells, prepared by `pp.prepare` from their
root. *Other* are suggestions that are no known end; a late stage of the branch of an end counts as found. Beside it,
CellRank's PseudotimeKernel with GPCCA's macrostates and terminal states, all at their defaults. The thresholds of the
suggestion were chosen on these sets and on simulated counts: the figures are in-sample.

{ends}
**Mature cells keep to their end.** The latest quarter of each known end, at most 30 cells, is absorbing. The figure
is the share of the other cells of these clusters whose likeliest fate is their own, mean over the ends, with 0.8 of
the kernel and 0.2 of the connectivities. *By clusters* is `settle="clusters"`; *0.1.0* is `weighted=False,
settle=False` with the velocity of now.

{mature}
**Fate probabilities.** Simulated counts, pseudotime as `pp.prepare` computes it, seeds {seeds}. The latest 15 cells
of each fate are absorbing, at most a quarter. The figure is the total variation from the true probabilities, mean
over all cells, in brackets that of the mean over the first fifth of time: a cell just after a fork has a fate that
nothing can tell, so that no method comes to zero. *Neighbours* gives each cell the mean of the true probabilities of
its 30 neighbours: what the graph can tell at most.

{fates}
**Intervals.** `vk.fate_intervals(states, groups)` on the same sets, for ten groups of cells that k-means makes of their
positions. The share of the intervals that contain the true mean of the group; one of two fates is counted. *Error* is
the mean distance of the estimate from the truth, *half-width* that of the 95 % interval. Seeds {seeds}; the constants
were chosen on seed 3.

{intervals}
"""


def rows_of(matrix: Any) -> sp.csr_matrix:
    """Return a matrix whose rows sum to one."""
    matrix = sp.csr_matrix(matrix, dtype=float)
    return sp.csr_matrix(sp.diags(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix)


def absorbed(matrix: sp.csr_matrix, states: list[np.ndarray]) -> np.ndarray:
    """Return the probability that each cell comes to each state, ``[n_cells, n_states]``."""
    fates = np.zeros((matrix.shape[0], len(states)))
    for number, cells in enumerate(states):
        fates[cells, number] = 1
    free = np.flatnonzero(fates.sum(axis=1) == 0)
    inner = sp.identity(free.size) * (1 + 1e-12) - matrix[free][:, free]
    fates[free] = splu(sp.csc_matrix(inner)).solve(np.asarray(matrix[free] @ fates))
    return fates


def matrices(adata: ad.AnnData, time_key: str, *, clusters: bool) -> dict[str, sp.csr_matrix]:
    """Return the transition matrices that are compared, by name."""
    options: dict[str, Any] = {"show_progress_bar": False}
    kernel = cv.OTVelocityKernel(adata, time_key=time_key).fit_field(**options)
    found = {"cellrank_velot": kernel.compute_transition_matrix(**options).transition_matrix}
    if clusters:
        found["by clusters"] = kernel.compute_transition_matrix(settle="clusters", **options).transition_matrix
    plain = kernel.compute_transition_matrix(weighted=False, settle=False, **options)
    found["0.1.0"] = plain.transition_matrix
    theirs = cr.kernels.PseudotimeKernel(adata, time_key=time_key).compute_transition_matrix(show_progress_bar=False)
    found["PseudotimeKernel"] = sp.csr_matrix(theirs.transition_matrix)
    found["connectivities"] = rows_of(adata.obsp["connectivities"])
    return found


def ends(adata: ad.AnnData, time_key: str, known: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the ends that we suggest, and of those that the PseudotimeKernel and GPCCA predict."""
    kernel = cv.OTVelocityKernel(adata, time_key=time_key).fit_field(show_progress_bar=False)
    yield "cellrank_velot", list(kernel.suggest_terminal_states("clusters"))
    theirs = cr.kernels.PseudotimeKernel(adata, time_key=time_key).compute_transition_matrix(show_progress_bar=False)
    g = cr.estimators.GPCCA(theirs)
    names: list[str] = []
    with contextlib.suppress(ValueError):
        g.compute_schur(n_components=20, method="brandts", verbose=False)
        g.compute_macrostates(cluster_key="clusters")
        g.predict_terminal_states()
        names = [str(name).split("_")[0] for name in g.terminal_states.cat.categories]
    yield "PseudotimeKernel", names


def mature(matrix: sp.csr_matrix, time: np.ndarray, labels: np.ndarray, known: list[str]) -> float:
    """Return the share of mature cells whose likeliest fate is that of their cluster, mean over the ends."""
    states, others = [], []
    for name in known:
        cells = np.flatnonzero(labels == name)
        cells = cells[np.argsort(-time[cells], kind="stable")]
        size = max(3, min(30, cells.size // 4))
        states.append(cells[:size])
        others.append(cells[size:])
    fates = absorbed(matrix, states)
    return float(np.mean([(fates[cells].argmax(axis=1) == number).mean() for number, cells in enumerate(others)]))


def on_real_cells(n_sets: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ends that are found, and the share of mature cells that keep to theirs."""
    found, kept = [], []
    for name, adata, _ in list(sets())[:n_sets]:
        known = list(adata.uns.get("terminal_states", ["Alpha", "Beta", "Delta", "Epsilon"]))
        time_key, labels = find_time_key(adata), adata.obs["clusters"].astype(str).to_numpy()
        row: dict[str, Any] = {"data": name, "cells": adata.n_obs, "known": len(known)}
        for method, names in ends(adata, time_key, known):
            called = {STAGES.get(end, end) for end in names}
            other = sorted(called - set(known))
            row[f"{method}: found"] = len(called & set(known))
            row[f"{method}: other"] = f"{len(other)} ({', '.join(other)})" if other else "0"
        found.append(row)
        if len(known) > 1:
            time = adata.obs[time_key].to_numpy(dtype=float)
            connected = rows_of(adata.obsp["connectivities"])
            kept.append(
                {"data": name}
                | {
                    method: mature(MIX * matrix + (1 - MIX) * connected, time, labels, known)
                    for method, matrix in matrices(adata, time_key, clusters=True).items()
                }
            )
    return pd.DataFrame(found), _with_mean(pd.DataFrame(kept))


def coverage(adata: ad.AnnData, states: list[np.ndarray], truth: np.ndarray) -> pd.DataFrame:
    """Return for each group and fate by how many half-widths of 95 % the estimate is off, and the error."""
    kernel = cv.OTVelocityKernel(adata, time_key="consensus_pseudotime").compute_transition_matrix(
        show_progress_bar=False
    )
    groups = KMeans(10, n_init=4, random_state=0).fit_predict(np.asarray(adata.obsm["X_pca"]))
    adata.obs["group"] = pd.Categorical(groups.astype(str))
    names = {f"{number}": list(adata.obs_names[cells]) for number, cells in enumerate(states)}
    table = kernel.fate_intervals(names, "group", show_progress_bar=False)
    free = np.setdiff1d(np.arange(adata.n_obs), np.concatenate(states))
    known = pd.DataFrame(truth[free], columns=list(names)).groupby(groups[free].astype(str)).mean().stack()
    table["truth"] = known.reindex(table.index).to_numpy()
    if truth.shape[1] == 2:
        table = table.xs("0", level="fate")
    at, low, high, true = (np.arcsin(np.sqrt(table[name])) for name in ("probability", "low", "high", "truth"))
    half = np.maximum(at - low, high - at)  # one side may end at 0 or 1
    error = (table["probability"] - table["truth"]).abs()
    return pd.DataFrame({"off": (at - true).abs() / half, "error": error, "width": (table["high"] - table["low"]) / 2})


def on_counts(n_families: int | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the total variation from the true probabilities, and the coverage of intervals, by family."""
    rows, covered = [], []
    for name, family in list((FAMILIES | HELD_BACK).items())[:n_families]:
        scores: dict[str, list[tuple[float, float]]] = {}
        off = []
        for seed in SEEDS:
            adata = simulate(family, seed)
            truth = np.asarray(adata.obsm["true_fates"], dtype=float)
            if truth.shape[1] < 2 or "cycle" in name:
                continue
            time = adata.obs["consensus_pseudotime"].to_numpy(dtype=float)
            early = adata.obs["true_time"] <= 0.2 * adata.obs["true_time"].max()
            states = []
            for number in range(truth.shape[1]):
                cells = np.flatnonzero(truth[:, number] == 1)
                states.append(cells[np.argsort(-time[cells])][: max(3, min(15, cells.size // 4))])
            connected = rows_of(adata.obsp["connectivities"])
            found = {
                method: absorbed(MIX * matrix + (1 - MIX) * connected, states)
                for method, matrix in matrices(adata, "consensus_pseudotime", clusters=False).items()
            }
            off.append(coverage(adata, states, truth))
            found["neighbours"] = rows_of(connected.sign()) @ truth
            for method, fates in found.items():
                apart = 0.5 * np.abs(fates - truth).sum(axis=1).mean()
                at_first = 0.5 * np.abs(fates[early].mean(axis=0) - truth[early].mean(axis=0)).sum()
                scores.setdefault(method, []).append((apart, at_first))
        if scores:
            rows.append({"data": name} | {method: np.mean(of, axis=0) for method, of in scores.items()})
            groups = pd.concat(off)
            row = {"data": name, "intervals": len(groups)}
            for level in LEVELS:
                row[f"{level:.0%}"] = (groups["off"] <= norm.ppf(0.5 + level / 2) / norm.ppf(0.975)).mean()
            covered.append(row | {"error": groups["error"].mean(), "half-width": groups["width"].mean()})
    frame = pd.DataFrame(rows)
    mean = {"data": "mean"} | {method: np.mean(np.stack(frame[method]), axis=0) for method in frame.columns[1:]}
    frame = pd.concat([frame, pd.DataFrame([mean])], ignore_index=True)
    shown = frame.map(lambda value: value if isinstance(value, str) else f"{value[0]:.3f} ({value[1]:.2f})")
    intervals = _with_mean(pd.DataFrame(covered))
    return shown, intervals.astype({"intervals": int})


def _with_mean(frame: pd.DataFrame) -> pd.DataFrame:
    mean = frame.mean(numeric_only=True).to_dict() | {"data": "mean"}
    return pd.concat([frame, pd.DataFrame([mean])], ignore_index=True).round(3)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    some = 2 if parser.parse_args().quick else None
    quiet()
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        found, kept = on_real_cells(some)
        fates, intervals = on_counts(some)
    tables = {"ends": found, "mature": kept, "fates": fates, "intervals": intervals}
    shown = {name: table(of) for name, of in tables.items()}
    text = ABOUT.format(**shown, seeds=" and ".join(map(str, SEEDS)))
    print(text)
    if some is None:
        (DOCS / "fates.md").write_text(text)


if __name__ == "__main__":
    main()
