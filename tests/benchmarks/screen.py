"""The screen of all genes: the approximation against exact shifts and single particles, and its false discoveries.

Writes the tables of docs/perturbation.md. The decoys are genes of the pancreas whose values are dealt out anew among
twenty cells next to each other in time, *before* the PCA: they have a part in it, as a real gene has.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from common import pancreas, quiet, table

import cellrank_velot as cv

PAGE = Path(__file__).parents[2] / "docs" / "perturbation.md"
N_DECOYS, ALIKE, SEEDS = 500, 20, (0, 1, 2)
QUIET = {"show_progress_bar": False}


def kernel_of(adata: ad.AnnData) -> Any:
    """Return the kernel with its matrix."""
    return cv.OTVelocityKernel(adata).compute_transition_matrix(**QUIET)


def approximation() -> pd.DataFrame:
    """Compare first-order shifts with exact ones and with those of particles, on two sets."""
    rows = []
    simulated = cv.datasets.bifurcation(n_cells=1000)
    sets = {
        "simulated": (simulated, ["Fate A", "Fate B"], {}),
        "pancreas": (pancreas(), ["Alpha", "Beta", "Delta", "Epsilon"], {"source_cluster": "Pre-endocrine"}),
    }
    for name, (adata, fates, where) in sets.items():
        vk = kernel_of(adata)
        start = time.perf_counter()
        vk.screen(n_exact=0, n_null=0, cluster_key="clusters", **where, **QUIET)
        plain = time.perf_counter() - start
        start = time.perf_counter()
        found = vk.screen(n_exact=40, cluster_key="clusters", **where, **QUIET)
        seconds = time.perf_counter() - start
        exact = np.isfinite(found.exact)
        largest = found.to_frame().drop_duplicates(["gene", "change"]).head(12)
        pairs = []
        for _, row in largest.iterrows():
            options = {"terminal_clusters": fates, "n_null": 0, "n_particles": 400, "cluster_key": "clusters"}
            shift = vk.fate_shift({row["gene"]: row["value"]}, **options, **where, **QUIET)
            at = (found.changes.tolist().index(row["change"]), found.genes.tolist().index(row["gene"]))
            for number, lineage in enumerate(found.lineages):
                if lineage in shift.lineages:
                    pairs.append((found.exact[at][number], shift.delta[0, shift.lineages.tolist().index(lineage)]))
        ours, particles = np.array(pairs).T
        rows.append(
            {
                "cells": name,
                "genes": found.genes.size,
                "correlation with exact shifts": f"{np.corrcoef(found.delta[exact], found.exact[exact])[0, 1]:.3f}",
                "slope": f"{np.polyfit(found.delta[exact], found.exact[exact], 1)[0]:.2f}",
                "same sign": f"{(np.sign(found.delta[exact]) == np.sign(found.exact[exact])).mean():.2f}",
                "exact and particles: correlation": f"{np.corrcoef(ours, particles)[0, 1]:.2f}",
                "seconds, first order": f"{plain:.1f}",
                "with p-values and 40 exact": f"{seconds:.1f}",
            }
        )
    return pd.DataFrame(rows)


def with_decoys(seed: int) -> ad.AnnData:
    """Return the pancreas with decoys, its PCA and graph made anew."""
    adata = pancreas()
    adata = adata[:, adata.var["highly_variable"]].copy()
    rng = np.random.default_rng(seed)
    values = adata.X.toarray()
    chosen = rng.choice(adata.n_vars, N_DECOYS, replace=False)
    order = np.argsort(adata.obs["consensus_pseudotime"].to_numpy(), kind="stable")
    decoys = np.empty((adata.n_obs, N_DECOYS), dtype=np.float32)
    for column, gene in enumerate(chosen):
        for first in range(0, order.size, ALIKE):
            block = order[first : first + ALIKE]
            decoys[block, column] = values[rng.permutation(block), gene]
    new = ad.AnnData(np.hstack([values, decoys]), obs=adata.obs.copy())
    new.var_names = [*adata.var_names, *(f"decoy {adata.var_names[gene]}" for gene in chosen)]
    sc.pp.pca(new, n_comps=30)
    sc.pp.neighbors(new, n_neighbors=30)
    return new


def discoveries() -> pd.DataFrame:
    """Count decoys among the genes that are called."""
    rows = []
    for seed in SEEDS:
        vk = kernel_of(with_decoys(seed))
        found = vk.screen(source_cluster="Pre-endocrine", cluster_key="clusters", n_exact=0, **QUIET)
        decoy = np.char.startswith(found.genes, "decoy")
        for level in (0.05, 0.1):
            called = found.p_adjusted <= level
            rows.append(
                {
                    "seed": seed,
                    "fates": found.lineages.size,
                    "false discovery rate asked": level,
                    "called": int(called.sum()),
                    "share of decoys among them": f"{called[:, decoy].sum() / max(called.sum(), 1):.3f}",
                    "of real genes called": f"{called[:, ~decoy].mean():.3f}",
                    "of decoys": f"{called[:, decoy].mean():.3f}",
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print, and write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    quiet()
    text = PAGE.read_text(encoding="utf-8")
    for name, measure in (("approximation", approximation), ("decoys", discoveries)):
        made = table(measure())
        print(made, flush=True)
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n\n{made}\n<!-- end of {name} -->" + rest.split(f"<!-- end of {name} -->")[1]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
