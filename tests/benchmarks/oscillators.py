"""Oscillators: foretell every second time point from the others; and particles that are known at each time.

Writes the table at the end of docs/time_series.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import ot
import pandas as pd
import scanpy as sc
from common import DATA, quiet, table

import cellrank_velot as cv

PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"
SETS = ("lotka_volterra", "repressilator")
SEEDS = (0, 1, 2)
QUIET = {"show_progress_bar": False}


def kernel_of(x: np.ndarray, times: np.ndarray, **options: Any) -> Any:
    """Return the kernel of snapshots ``[n_times, n_cells, n_dims]``, coupled."""
    n_times, n_cells, n_dims = x.shape
    adata = ad.AnnData(np.zeros((n_times * n_cells, 1), dtype=np.float32))
    adata.obs["day"] = np.repeat(times.astype(float), n_cells)
    adata.obsm["X_pca"] = x.reshape(-1, n_dims)
    sc.pp.neighbors(adata, use_rep="X_pca", n_neighbors=min(15, n_cells - 1))
    kernel = cv.OTVelocityKernel(adata, time_key="day", time_kind="experimental", basis="X_pca")
    return kernel.compute_velocity(**options, **QUIET)


def distance(a: np.ndarray, b: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the exact Wasserstein distance, of weighted points from points."""
    shares = [] if weights is None else weights / weights.sum()
    return float(ot.emd2(shares, [], ot.dist(a, b, "euclidean")))


def foretold() -> pd.DataFrame:
    """Return W1 at the even times, from the odd ones."""
    rows = []
    for name in SETS:
        x = np.load(DATA / "series" / f"{name}.npz")["Xs"].astype(float)
        odd = np.arange(0, len(x), 2)
        found = []
        for seed in SEEDS:
            kernel = kernel_of(x[odd], odd, random_state=seed).fit_field(random_state=seed, **QUIET)
            for time in odd[:-1] + 1:
                here, there = x[time - 1], x[time + 1]
                pairs = ot.emd([], [], ot.dist(here, there)).argmax(axis=1)
                half = np.random.default_rng(seed).permutation(len(here))
                ours = [kernel.interpolate(float(time), **how) for how in ({}, {"method": "field"}, {"straight": True})]
                found.append(
                    [distance(here, x[time]), distance((here + there[pairs]) / 2, x[time])]
                    + [distance(one.x, x[time], one.weights) for one in ours]
                    + [distance(x[time][half[::2]], x[time][half[1::2]])]
                )
        mean = np.mean(found, axis=0)
        columns = ["time before", "exact lines", "paths", "field", "paths, straight", "two halves"]
        row = dict(zip(columns, (f"{value:.3f}" for value in mean), strict=True))
        rows.append({"set": name, **row, "paths / lines": f"{mean[2] / mean[1]:.2f}"})
    return pd.DataFrame(rows)


def followed() -> pd.DataFrame:
    """Return the share of particles that the heaviest pair takes to themselves, from each time to the next."""
    x = np.load(DATA / "series" / "followed_triangles.npz")["arr_0"].astype(float)
    n_times, n_cells, _ = x.shape
    own = np.arange(n_cells)
    exact = [(ot.emd([], [], ot.dist(a, b)).argmax(axis=1) == own).mean() for a, b in zip(x[:-1], x[1:], strict=True)]
    rows = [{"how": "exact transport", "followed right": f"{np.mean(exact):.3f}"}]
    for epsilon in (0.05, 0.01, 0.001):
        couplings = kernel_of(x, np.arange(n_times), epsilon=epsilon).couplings
        right = []
        for k in range(n_times - 1):
            block = couplings.matrix(k, n_times * n_cells)[k * n_cells : (k + 1) * n_cells]
            right.append(block[:, (k + 1) * n_cells : (k + 2) * n_cells].toarray().argmax(axis=1) == own)
        rows.append({"how": f"epsilon={epsilon:g}", "followed right": f"{np.mean(right):.3f}"})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print, and write the page."""
    quiet()
    text = PAGE.read_text(encoding="utf-8")
    for name, measure in (("oscillators", foretold), ("followed", followed)):
        made = table(measure())
        print(made, flush=True)
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n\n{made}\n<!-- end of {name} -->" + rest.split(f"<!-- end of {name} -->")[1]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
