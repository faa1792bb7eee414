"""The times of `pp.prepare` on simulated cells whose true time and velocity are known, and what its checks say.

Writes the table of docs/pseudotime.md; about ten minutes of one core. `--quick` takes one seed and writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from common import table
from families import FAMILIES, HELD_BACK, Branch, Family, simulate
from methods import local_regression
from scipy.sparse.csgraph import connected_components
from scipy.stats import spearmanr

from cellrank_velot import datasets, metrics, pp
from cellrank_velot.direction import time_check
from cellrank_velot.graph.smoothing import smoothed

PAGE = Path(__file__).parents[2] / "docs" / "pseudotime.md"
METHODS = {"diffusion": "dpt_pseudotime", "geodesic": "geodesic_pseudotime", "consensus": "consensus_pseudotime"}
SEEDS = (50, 51, 52)  # nothing was chosen on them
CYCLE = Family((Branch(-1, 0, 1, 1.0, cycle=True),), length=6.0)
MIN_PART = 20  # cells of a part of the graph that has a root


def gaussian(make: Callable[..., ad.AnnData], n_cells: int) -> Callable[[int], ad.AnnData]:
    """Return a simulated circuit with Gaussian noise, with the names of the families."""

    def made(seed: int) -> ad.AnnData:
        adata = make(n_cells, random_state=seed)
        adata.obs["branch"] = adata.obs["clusters"].astype(str)
        return adata

    return made


SETS: dict[str, tuple[Callable[[int], ad.AnnData], tuple[str, ...]]] = {
    **{
        f"Gaussian {make.__name__}, {n}": (gaussian(make, n), ("Root A", "Root B") * (make is datasets.convergence))
        for make in (datasets.bifurcation, datasets.tree, datasets.convergence)
        for n in (600, 2000)
    },
    **{
        name: (lambda seed, family=family: simulate(family, seed), family.root_clusters)
        for name, family in {**FAMILIES, **HELD_BACK, "a cycle": CYCLE}.items()
    },
}


def set_times(adata: ad.AnnData, root_clusters: tuple[str, ...]) -> None:
    """Write each time from the earliest cell, of each root cluster, of each part of the graph."""
    part = connected_components(adata.obsp["connectivities"])[1]
    times = {key: np.zeros(adata.n_obs) for key in METHODS.values()}
    for number in np.flatnonzero(np.bincount(part) >= MIN_PART):
        cells = np.flatnonzero(part == number)
        piece = adata[cells].copy()
        sc.tl.diffmap(piece)
        true, branch = piece.obs["true_time"].to_numpy(), piece.obs["branch"].to_numpy()
        first = [np.where(branch == name, true, np.inf) for name in root_clusters] or [true]
        for method, key in METHODS.items():
            pp.set_pseudotime(piece, [int(np.argmin(at)) for at in first], method)
            times[key][cells] = piece.obs[key]
    adata.obs = adata.obs.assign(**times)


def measure(adata: ad.AnnData) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rank correlation and cosine to the truth, falling cells and loops, of each time."""
    x, graph = adata.obsm["X_pca"].astype(float), sp.csr_matrix(adata.obsp["connectivities"], dtype=float)
    true, smooth = adata.obs["true_time"].to_numpy(dtype=float), smoothed(x, graph, 2)
    for name, key in {**METHODS, "true": "true_time"}.items():
        time = adata.obs[key].to_numpy(dtype=float)
        velocity = local_regression(smooth, graph, time, adata)
        check = time_check(x, time, graph)
        yield (
            name,
            {
                "rank": spearmanr(time, true).statistic,
                "cosine": metrics.cosine_to_truth(velocity, adata.obsm["true_velocity_pca"]),
                "falling": check.falling_share,
                "loop": bool(check.loop),
            },
        )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found = []
    for data, (make, root_clusters) in SETS.items():
        for seed in SEEDS[: 1 if quick else None]:
            adata = make(seed)
            set_times(adata, root_clusters)
            found += [{"data": data, "time": name, **row} for name, row in measure(adata)]
        print(pd.DataFrame(found[-4:]).round(3).to_string(header=False), flush=True)
    text = report(pd.DataFrame(found))
    print(text)
    if not quick:
        head, _, rest = PAGE.read_text().partition("<!-- times -->")
        tail = rest.partition("<!-- end of times -->")[2]
        PAGE.write_text(f"{head}<!-- times -->\n\n{text}\n<!-- end of times -->{tail}")


def report(found: pd.DataFrame) -> str:
    """Return the table, the means over counts without a cycle and over Gaussian sets below."""
    counts = ~found["data"].str.startswith("Gaussian") & ~found["data"].str.contains("cycle")
    means = [found[counts].assign(data="mean of the counts, no cycle")]
    means.append(found[found["data"].str.startswith("Gaussian")].assign(data="mean of the Gaussian sets"))
    rows = []
    for data, group in pd.concat([found, *means]).groupby("data", sort=False):
        by_time = group.groupby("time", sort=False).mean(numeric_only=True)
        row = {"data": data}
        for name in METHODS:
            row[name] = f"{by_time['cosine'][name]:.3f} ({by_time['rank'][name]:.2f})"
        row["true time"] = f"{by_time['cosine']['true']:.3f}"
        row["falling, %"] = ", ".join(f"{100 * by_time['falling'][name]:.1f}" for name in by_time.index)
        row["loop, of all"] = f"{int(group['loop'].sum())} of {len(group)}"
        rows.append(row)
    return table(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
