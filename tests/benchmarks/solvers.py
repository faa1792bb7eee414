"""Whether CellRank's own solvers converge on our matrices, without PETSc; writes a table of docs/reliability.md.

On every test set, alone and with a fifth of a `ConnectivityKernel`: macrostates from 2 to 8, and fate probabilities to
the known ends by both solvers of CellRank. About fifteen minutes of one core.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
import scanpy as sc
from common import DATA, bifurcation, pancreas, quiet, table
from sklearn.cluster import KMeans

import cellrank_velot as cv

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
QUIET = {"show_progress_bar": False}
STATES = range(2, 9)
SERIES = {"time_key": "day", "time_kind": "experimental"}
# Cells of each end that CellRank is given, the last ones of its cluster, and of a time series in all.
N_LAST, N_CELLS = 30, 1500
SEED = 50

# How to load it, and the clusters that are its ends: where none are named, all that are at the last time.
SETS: dict[str, tuple[Callable[[], ad.AnnData], tuple[str, ...], dict[str, Any]]] = {
    "bifurcation": (lambda: cv.datasets.bifurcation(1000, random_state=SEED), ("Fate A", "Fate B"), {}),
    "bifurcation, 600 cells": (lambda: cv.datasets.bifurcation(600, random_state=SEED), ("Fate A", "Fate B"), {}),
    "tree": (
        lambda: cv.datasets.tree(1000, random_state=SEED),
        ("Fate A1", "Fate A2", "Fate B1", "Fate B2"),
        {},
    ),
    "convergence": (lambda: cv.datasets.convergence(1000, random_state=SEED), ("Fate",), {}),
    # Its transition has late cells that nothing leads on from: an end that must be named, too.
    "shared bifurcation": (bifurcation, ("A", "B", "Trans"), {}),
    "pancreas": (pancreas, ("Alpha", "Beta", "Delta", "Epsilon"), {}),
    "birth and death": (lambda: with_neighbors(cv.datasets.birth_death(1000), "X_pca"), (), SERIES),
    "haematopoiesis": (lambda: series("mouse_hematopoiesis", "X_latent"), (), {**SERIES, "basis": "X_latent"}),
    "zebrafish": (lambda: series("zebrafish", "X_latent"), (), {**SERIES, "basis": "X_latent"}),
    "EMT": (lambda: series("emt", "X_pca"), (), SERIES),
    "MISA": (lambda: series("misa", "X_state"), (), {**SERIES, "basis": "X_state"}),
}


def series(name: str, basis: str) -> ad.AnnData:
    """Return some cells of a shared time series; clusters of its last time where it has none."""
    adata = ad.read_h5ad(DATA / f"{name}_time_series.h5ad")
    rng = np.random.default_rng(SEED)
    adata = adata[np.sort(rng.permutation(adata.n_obs)[:N_CELLS])].copy()
    adata.obs["day"] = adata.obs["day"].astype(float)
    adata.X = np.zeros(adata.shape, dtype=np.float32)  # there are no genes, but CellRank asks for a matrix
    if adata.obs["clusters"].nunique() == 1:
        labels = KMeans(4, random_state=0, n_init=10).fit_predict(adata.obsm[basis])
        adata.obs["clusters"] = pd.Categorical([f"state {label}" for label in labels])
    return with_neighbors(adata, basis)


def with_neighbors(adata: ad.AnnData, basis: str) -> ad.AnnData:
    if "connectivities" not in adata.obsp:
        sc.pp.neighbors(adata, n_neighbors=30, use_rep=basis)
    return adata


def ends_of(adata: ad.AnnData, names: tuple[str, ...], time: np.ndarray) -> dict[str, list[str]]:
    """Return the last cells of each end."""
    clusters = adata.obs["clusters"].astype(str).to_numpy()
    if not names:
        at_last = pd.Series(clusters[time == time.max()]).value_counts()
        names = tuple(map(str, at_last.index[at_last >= N_LAST]))
    found = {}
    for name in names:
        members = np.flatnonzero(clusters == name)
        found[name] = adata.obs_names[members[np.argsort(time[members], kind="stable")[-N_LAST:]]].tolist()
    return found


def macrostates(kernel: Any) -> tuple[int, str]:
    """Return how many numbers of macrostates are found, and what the others fail with."""
    estimator, failed = cr.estimators.GPCCA(kernel), []
    estimator.compute_schur(n_components=max(STATES) + 2, method="brandts")
    for n_states in STATES:
        try:
            estimator.compute_macrostates(n_states=n_states)
        except ValueError as error:
            failed.append(f"{n_states}: {str(error).split(',')[0]}")
    return len(STATES) - len(failed), "; ".join(failed)


def fates(kernel: Any, ends: dict[str, list[str]], solver: str) -> str:
    """Return how far fate probabilities are from rows of one, or what the host says."""
    estimator = cr.estimators.GPCCA(kernel)
    estimator.set_terminal_states(ends)
    # CellRank's default first; where it leaves values below zero, CellRank says to try less.
    for tolerance, note in ((1e-6, ""), (1e-10, " with `tol=1e-10`")):
        try:
            estimator.compute_fate_probabilities(solver=solver, use_petsc=False, tol=tolerance, **QUIET)
        except ValueError as error:
            said = str(error).split(".")[0]
        else:
            return f"{np.abs(np.asarray(estimator.fate_probabilities).sum(axis=1) - 1).max():.0e}{note}"
    return said


def rows(wanted: list[str], settle: bool) -> Iterator[dict[str, Any]]:
    for name in wanted or list(SETS):
        load, names, options = SETS[name]
        adata = load()
        kernel = cv.OTVelocityKernel(adata, **options).compute_transition_matrix(settle=settle, **QUIET)
        ends = ends_of(adata, names, kernel.cells.time)
        for weight in (0.0, 0.2):
            mixed = kernel
            if weight:
                connectivity = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
                mixed = (1 - weight) * kernel + weight * connectivity
            n_found, failed = macrostates(mixed)
            row = {"set": name, "connectivity": weight, "macrostates": f"{n_found} of {len(STATES)}", "ends": len(ends)}
            row |= {f"fates, {solver}": fates(mixed, ends, solver) for solver in ("gmres", "direct")}
            print(row, failed, flush=True)
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=[], help="only these; the table has no others then")
    parser.add_argument("--settle", action="store_true", help="with cells that stay at the ends; writes nothing")
    args = parser.parse_args()
    quiet()
    warnings.simplefilter("ignore")
    found = pd.DataFrame(rows(args.sets, args.settle))
    print(found.to_string())
    if not args.settle:
        head, _, rest = PAGE.read_text().partition("<!-- solvers -->")
        tail = rest.partition("<!-- end of solvers -->")[2]
        PAGE.write_text(f"{head}<!-- solvers -->\n\n{table(found)}\n<!-- end of solvers -->{tail}")


if __name__ == "__main__":
    main()
