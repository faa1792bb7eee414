"""The transition matrix side by side under rules for the softmax scale, with and without cells that stay at ends.

Steps forward in time, effective neighbours, fates and macrostates.
Prints the Markdown table of docs/softmax.md. Takes about five minutes; `--quick` takes one seed.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import bifurcation, pancreas, quiet
from scipy.sparse.linalg import splu

import cellrank_velot as cv
from cellrank_velot import datasets, metrics
from cellrank_velot.datasets.circuit import BIFURCATION, TREE, Circuit, Network, integrate
from cellrank_velot.transitions.matrix import compute_transitions, effective_neighbors
from cellrank_velot.transitions.options import TransitionOptions

# Options of the matrix, and whether cells at an end mostly keep among themselves.
RULES: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({}, True),
    "2, cells flow on": ({}, False),
    "median": ({"softmax_scale": "median"}, False),
    "median, no weights": ({"weighted": False}, False),
    "auto, no weights": ({"softmax_scale": "auto", "weighted": False}, False),
    "10, no weights": ({"softmax_scale": 10.0, "weighted": False}, False),
}
N_CELLS = 1000
# Columns of the table, and digits.
COLUMNS = {
    "scale": 2,
    "effective": 2,
    "forward": 3,
    "cosine": 3,
    "fate error": 3,
    "fates found": 1,
    "failed": 1,
}
SETS: dict[str, tuple[Callable[[int], ad.AnnData], str, tuple[str, ...], Circuit | None]] = {
    "pancreas": (lambda seed: pancreas(), "pseudotime", ("Alpha", "Beta", "Delta", "Epsilon"), None),
    "shared bifurcation": (lambda seed: bifurcation(), "pseudotime", (), None),
    "bifurcation": (
        lambda seed: datasets.bifurcation(N_CELLS, random_state=seed),
        "dpt_pseudotime",
        ("Fate A", "Fate B"),
        BIFURCATION,
    ),
    "tree": (
        lambda seed: datasets.tree(N_CELLS, random_state=seed),
        "dpt_pseudotime",
        ("Fate A1", "Fate A2", "Fate B1", "Fate B2"),
        TREE,
    ),
    "convergence": (
        lambda seed: datasets.convergence(N_CELLS, random_state=seed),
        "dpt_pseudotime",
        ("Fate",),
        None,
    ),
}


def true_fates(adata: ad.AnnData, circuit: Circuit, fates: tuple[str, ...], n_runs: int = 60) -> np.ndarray:
    """Return how often each cell ends in each fate, run on from its true state, shape ``[n_cells, n_fates]``."""
    genes, n = list(circuit.bias), len(circuit.bias)
    bias, rate, base, amplitude = (adata.var[key].to_numpy()[:n] for key in ("bias", "rate", "base", "amplitude"))
    weights = adata.varp["true_regulation"][:n, :n].T
    network = Network(tuple(genes), ("circuit",) * n, weights, bias, rate, np.ones(n), base, amplitude)
    start = np.repeat((adata.layers["true_expression"][:, :n] - base) / amplitude, n_runs, axis=0)
    duration = np.full(len(start), 15.0)
    end = integrate(network, start, duration, process_sd=0.02, rng=np.random.default_rng(0))
    markers = {cluster: genes.index(gene) for cluster, gene, _ in circuit.clusters}
    best = end[:, [markers[fate] for fate in fates]].argmax(axis=1).reshape(-1, n_runs)
    return np.stack([(best == i).mean(axis=1) for i in range(len(fates))], axis=1)


def fate_error(adata: ad.AnnData, matrix: sp.csr_matrix, fates: tuple[str, ...], truth: np.ndarray) -> float:
    """Return the total variation from the true fates, mean over cells; the 20 last cells of each fate absorb."""
    clusters, late = adata.obs["clusters"].to_numpy(), np.argsort(adata.obs["true_time"].to_numpy())
    found = np.zeros((adata.n_obs, len(fates)))
    for column, fate in enumerate(fates):
        found[late[clusters[late] == fate][-20:], column] = 1
    rest = np.flatnonzero(found.sum(axis=1) == 0)
    inner = sp.eye(rest.size) - matrix[rest][:, rest]
    found[rest] = splu(sp.csc_matrix(inner)).solve(matrix[rest] @ found)
    return float(0.5 * np.abs(found - truth).sum(axis=1).mean())


def macrostates(adata: ad.AnnData, matrix: sp.csr_matrix, fates: tuple[str, ...]) -> tuple[int, int]:
    """Return how many fates are among 8 macrostates, fewer where GPCCA fails, and for how many of 2 to 8 it does."""
    g, found, failed = cr.estimators.GPCCA(cr.kernels.PrecomputedKernel(matrix, adata)), 0, 0
    try:
        g.compute_schur(n_components=12, method="brandts")
    except RuntimeError:  # eigenvalues so near each other that they cannot be put in order
        return 0, 7
    for n_states in range(2, 9):
        try:
            g.compute_macrostates(n_states=n_states, n_cells=20, cluster_key="clusters")
        except (ValueError, RuntimeError):  # a macrostate is left with next to no cells, or two cannot be told apart
            failed += 1
            continue
        names = {str(name).split("_")[0] for name in g.macrostates.cat.categories}
        found = len(names & set(fates))
    return found, failed


def measure(seeds: int) -> Iterator[dict[str, Any]]:
    """Yield what each rule gives on each set and seed."""
    for name, (make, time_key, fates, circuit) in SETS.items():
        for seed in range(seeds):
            adata = make(seed)
            kernel = cv.OTVelocityKernel(adata, time_key=time_key).compute_windows(random_state=seed)
            kernel.fit_field(random_state=seed, show_progress_bar=False)
            graph, velocity = kernel.connectivities, kernel.velocity
            degree = np.diff(graph.indptr)
            truth = None if circuit is None else true_fates(adata, circuit, fates)
            for label, (options, settle) in RULES.items():
                ends = kernel._find_ends(None).label if settle else None
                result = compute_transitions(kernel.cells.x, velocity, graph, TransitionOptions(**options), ends=ends)
                row = {"data": name, "rule": label, "scale": result.softmax_scale}
                row["forward"] = metrics.step_forward_fraction(result.matrix, kernel.cells.time)
                row["effective"] = np.median(effective_neighbors(result.matrix) / degree)
                if "true_velocity_pca" in adata.obsm:
                    step = result.matrix @ kernel.cells.x - kernel.cells.x
                    row["cosine"] = metrics.cosine_to_truth(step, adata.obsm["true_velocity_pca"])
                if truth is not None:
                    row["fate error"] = fate_error(adata, result.matrix, fates, truth)
                if fates:
                    row["fates found"], row["failed"] = macrostates(adata, result.matrix, fates)
                yield row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quiet()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    seeds = 1 if parser.parse_args().quick else 3
    mean = pd.DataFrame(measure(seeds)).groupby(["data", "rule"], sort=False).mean()
    print("| data | rule | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for (data, rule), row in mean[list(COLUMNS)].iterrows():
        values = ["" if np.isnan(row[name]) else f"{row[name]:.{digits}f}" for name, digits in COLUMNS.items()]
        print(f"| {data} | {rule} | " + " | ".join(values) + " |")


if __name__ == "__main__":
    main()
