"""Calibration of the uncertainty: how often the true direction lies within the stated angle, on simulated cells.

Prints the two constants of `cellrank_velot.field.uncertainty` from the sets that they are taken from, and the coverage
on others. Writes docs/uncertainty.md. `--quick` takes one set of each and writes nothing.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import bifurcation, quiet, table

import cellrank_velot as cv
from cellrank_velot import datasets
from cellrank_velot.field import uncertainty

DOCS = Path(__file__).parents[2] / "docs"
LEVELS = (0.5, 2 / 3, 0.8, 0.9, 0.95)
FAMILIES = {"bifurcation": datasets.bifurcation, "tree": datasets.tree, "convergence": datasets.convergence}
# Family, number of cells, noise (None: the family's own), time.
KINDS = [
    *product(FAMILIES, (600, 1000, 2000), (None,), ("dpt_pseudotime",)),
    *product(FAMILIES, (1000, 2000), (2.0,), ("dpt_pseudotime",)),
    *product(FAMILIES, (1000,), (None,), ("true_time",)),
]
Kind = tuple[str, int, float | None, str]


def simulate(kind: Kind, seed: int) -> ad.AnnData:
    """Return one set."""
    family, n_cells, noise, time_key = kind
    options = {} if noise is None else {"noise": noise}
    adata = FAMILIES[family](n_cells=n_cells, random_state=seed, **options)
    adata.obs["pseudotime"] = adata.obs[time_key]
    return adata


def measure(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return spread, true squared deviation and stated angles [level, cell] of the 80 % fastest cells."""
    kernel = cv.OTVelocityKernel(adata, time_key="pseudotime").compute_uncertainty(show_progress_bar=False)
    truth = np.asarray(adata.obsm["true_velocity_pca"], dtype=np.float64)
    speed = np.linalg.norm(truth, axis=1)
    fast = speed > np.quantile(speed, 0.2)
    cosine = np.sum(kernel.velocity * truth, axis=1)[fast] / (np.linalg.norm(kernel.velocity, axis=1) * speed)[fast]
    angles = np.stack([kernel.uncertainty.angle(level)[fast] for level in LEVELS])
    return kernel.uncertainty.spread[fast], 2 - 2 * cosine, angles


def constants(found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Return mean and standard deviation of the logarithm of deviation over spread, each set counting alike."""
    logs = [np.log(square / spread) for spread, square, _ in found]
    mean = float(np.mean([log.mean() for log in logs]))
    return mean, float(np.sqrt(np.mean([np.mean((log - mean) ** 2) for log in logs])))


def coverage(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the share of cells whose true direction lies within the angle, for each level."""
    _, square, angles = found
    angle = np.degrees(2 * np.arcsin(np.sqrt(np.clip(square, 0, 4)) / 2))
    return (angle <= angles).mean(axis=1)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    quiet()
    warnings.simplefilter("ignore")
    kinds: list[Kind] = KINDS[::6] if quick else KINDS
    mean, std = constants([measure(simulate(kind, 100 + i)) for i, kind in enumerate(kinds)])
    rows = []
    for i, kind in enumerate(kinds):
        family, n_cells, noise, time_key = kind
        found = measure(simulate(kind, 200 + i))
        rows.append([family, n_cells, "usual" if noise is None else noise, time_key, *coverage(found)])
    found = measure(bifurcation())
    rows.append(["shared bifurcation", 3000, "", "pseudotime", *coverage(found)])
    levels = [f"{level:.0%}" for level in LEVELS]
    frame = pd.DataFrame(rows, columns=["data", "cells", "noise", "time", *levels])
    simulated = frame.iloc[:-1]
    means = simulated.groupby("data", sort=False)[levels].mean().reset_index()
    means.loc[len(means)] = ["all simulated", *simulated[levels].mean()]
    text = (
        "# Uncertainty\n\nMade by `python tests/benchmarks/calibration.py`.\n\n"
        "`compute_uncertainty()` fits fields to halves of the cells. `kernel.uncertainty.angle(level)` is the angle "
        "within which the true direction should lie in that share of the cells; `kernel.velocity_uncertainty` is that "
        "of two thirds.\n\n"
        "The spread between halves measures the noise of sampling, but not an error that all fields share. Two "
        "constants make up for it: the mean and the standard deviation of the logarithm of the true squared deviation "
        f"over that spread. They are {mean:.2f} and {std:.2f} on {len(kinds)} sets with one group of seeds; the "
        f"package has {uncertainty.LOG_RATIO_MEAN} and {uncertainty.LOG_RATIO_STD}. The table shows how often the "
        "angle holds on sets of the same families with other seeds, over the 80 % fastest cells.\n\n"
        f"{table(means.round(2))}\nOn average over sets the stated share holds. On a single set it may not: the error "
        "that all fields share depends on the data, and the data do not show it. Set by "
        f"set:\n\n{table(frame.round(2))}"
    )
    print(text)
    if not quick:
        (DOCS / "uncertainty.md").write_text(text)


if __name__ == "__main__":
    main()
