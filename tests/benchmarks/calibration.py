"""Calibration of the uncertainty: how often the true direction lies within the stated angle, on simulated counts.

Prints the constants of `cellrank_velot.field.uncertainty` from the sets that they are taken from, and the coverage on
others. Writes docs/uncertainty.md. `--quick` takes three families and writes nothing.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import quiet, table
from families import FAMILIES, HELD_BACK, simulate
from joblib import Parallel, delayed

import cellrank_velot as cv
from cellrank_velot import datasets, metrics
from cellrank_velot.field import uncertainty

DOCS = Path(__file__).parents[2] / "docs"
LEVELS = (0.5, 2 / 3, 0.8, 0.9)
# A cycle has no beginning: no pseudotime finds the direction there, and the kernel says so.
COUNTS = {name: family for name, family in (FAMILIES | HELD_BACK).items() if "cycle" not in name}
GAUSSIAN = {"Gaussian bifurcation": datasets.bifurcation, "Gaussian tree": datasets.tree}
# Seeds of the sets that the constants are taken from, and of those that they are tried on.
CHOSEN_ON, TRIED_ON = (0,), 50


def measure(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return spread, true squared deviation and stated angles [level, cell] of the 80 % fastest cells."""
    torch.set_num_threads(1)
    quiet()
    with warnings.catch_warnings(action="ignore"):
        adata = GAUSSIAN[name](1000, random_state=seed) if name in GAUSSIAN else simulate(COUNTS[name], seed)
        key = "dpt_pseudotime" if name in GAUSSIAN else "pseudotime"
        kernel = cv.OTVelocityKernel(adata, time_key=key).compute_uncertainty(n_jobs=1, show_progress_bar=False)
    truth = np.asarray(adata.obsm["true_velocity_pca"], dtype=np.float64)
    speed = np.linalg.norm(truth, axis=1)
    fast = speed > np.quantile(speed, 0.2)
    square = 2 - 2 * metrics.cosines(kernel.velocity, truth)[fast]
    angles = np.stack([kernel.uncertainty.angle(level)[fast] for level in LEVELS])
    return kernel.uncertainty.spread[fast], square, angles


def constants(names: list[str], found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Return mean and maximum over families, and deviation within a family, of the log of deviation over spread."""
    logs = pd.DataFrame(
        {"name": name, "log": np.log(np.maximum(square, 1e-6) / np.maximum(spread, 1e-9))}
        for name, (spread, square, _) in zip(names, found, strict=True)
    ).explode("log")
    groups = logs.assign(log=logs["log"].astype(float)).groupby("name")["log"]
    means = groups.mean()
    return float(means.mean()), float(means.max()), float(np.sqrt((groups.std() ** 2).mean()))


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
    chosen = [(name, seed) for name in list(FAMILIES)[:: 5 if quick else 1] for seed in CHOSEN_ON]
    tried = list(COUNTS)[:: 9 if quick else 1] + ([] if quick else list(GAUSSIAN))
    tasks = [*chosen, *((name, TRIED_ON) for name in tried)]
    found = Parallel(n_jobs=2, verbose=5)(delayed(measure)(*task) for task in tasks)
    mean, worst, std = constants([name for name, _ in chosen], found[: len(chosen)])
    rows = [
        [name, "" if name in FAMILIES else "yes", *coverage(of), np.degrees(np.median(np.radians(of[2][1])))]
        for name, of in zip(tried, found[len(chosen) :], strict=True)
    ]
    levels = [f"{level:.0%}" for level in LEVELS]
    frame = pd.DataFrame(rows, columns=["data", "held back", *levels, "median angle, 67%"])
    frame[levels] = frame[levels].round(2)
    frame["median angle, 67%"] = frame["median angle, 67%"].round().astype(int)
    text = (
        "# Uncertainty\n\nMade by `python tests/benchmarks/calibration.py`.\n\n"
        "`compute_uncertainty()` fits fields to halves of the cells. `kernel.uncertainty.angle(level)` is the angle "
        "within which the true direction lies in at least that share of the cells; `kernel.velocity_uncertainty` is "
        "that of two thirds.\n\n"
        "The spread between halves measures the noise of sampling, but not the error that all fields share: what the "
        "noise of the cells does to the neighbour graph and to the time. How large that is depends on the data and "
        "cannot be seen in them. So **the angle is a bound**: it is as wide as the worst of the simulated families "
        "needs, and on most data more cells hold than stated.\n\n"
        "Constants, of the logarithm of the true squared deviation over the spread: mean over families "
        f"{mean:.2f}, worst family {worst:.2f}, deviation within a family {std:.2f}, on {len(chosen)} sets of one "
        f"group of seeds. The package has {uncertainty.LOG_RATIO_MEAN}, {uncertainty.LOG_RATIO_WORST} and "
        f"{uncertainty.LOG_RATIO_STD}. The table shows in how many cells the angle holds on sets with other seeds, and "
        f"of families that nothing was taken from, over the 80 % fastest cells:\n\n{table(frame)}"
    )
    print(text)
    if not quick:
        (DOCS / "uncertainty.md").write_text(text)


if __name__ == "__main__":
    main()
