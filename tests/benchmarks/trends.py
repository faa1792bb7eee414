"""Trends of genes: whether their bands hold planted curves, and how long they take beside pyGAM.

Writes the table at the end of docs/trends.md. `--quick` takes few repeats and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import table
from pygam import LinearGAM, s
from scipy.stats import poisson

from cellrank_velot.fates.trends import fit_smooth

DOCS = Path(__file__).parents[2] / "docs"
N_GENES, N_PYGAM = 200, 3
COUNTS = np.arange(80)


def planted(noise: str, n_cells: int, seed: int) -> tuple[Any, ...]:
    """Return times, expression, weights of the cells, and the function that gives the truth."""
    rng = np.random.default_rng(seed)
    at, phase, size = rng.uniform(size=n_cells), rng.uniform(0, 6, N_GENES), rng.uniform(1, 3, N_GENES)
    weight = np.where(rng.random(n_cells) < 0.5, 0.9, 0.1) + rng.normal(scale=0.05, size=n_cells)

    def level(times: np.ndarray) -> np.ndarray:
        return size * (1 + np.sin(phase + 3 * times[:, None]))

    def mean_of_counts(times: np.ndarray) -> np.ndarray:
        return np.sum(np.log1p(COUNTS)[:, None, None] * poisson.pmf(COUNTS[:, None, None], level(times)[None]), axis=0)

    if noise == "counts, log1p":
        return at, np.log1p(rng.poisson(level(at))), np.clip(weight, 0.01, 1), mean_of_counts
    y = level(at) + 0.5 * rng.normal(size=(n_cells, N_GENES))
    return at, y, np.clip(weight, 0.01, 1), level


def row(noise: str, n_cells: int, n_repeats: int) -> dict[str, Any]:
    """Return how often the bands hold the truth."""
    inside, ends, seconds, theirs, apart = [], [], [], [], []
    for seed in range(n_repeats):
        at, y, weight, truth = planted(noise, n_cells, seed)
        start = time.perf_counter()
        found = fit_smooth(at, y, weight)
        seconds.append((time.perf_counter() - start) / N_GENES)
        expected = truth(found.time)
        hit = (found.low <= expected) & (expected <= found.high)
        inside.append(hit.mean())
        ends.append(hit[[0, -1]].mean())
        for gene in range(N_PYGAM):
            start = time.perf_counter()
            model = LinearGAM(s(0, n_splines=12)).gridsearch(at[:, None], y[:, gene], weights=weight, progress=False)
            theirs.append(time.perf_counter() - start)
            other = model.predict(found.time[:, None])
            apart.append(np.abs(other - found.mean[:, gene]).mean() / np.ptp(other))
    return {
        "noise": noise,
        "cells": n_cells,
        "held by 95 % bands": f"{np.mean(inside):.3f}",
        "at the two ends": f"{np.mean(ends):.3f}",
        "from pyGAM's curve, share of its range": f"{np.mean(apart):.3f}",
        "milliseconds a gene": f"{1000 * np.median(seconds):.2f}",
        "pyGAM": f"{1000 * np.median(theirs):.0f}",
    }


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rows = [row(noise, n, 2 if quick else 10) for noise in ("Gaussian", "counts, log1p") for n in (300, 2000)]
    text = f"## Figures\n\nWritten by `python tests/benchmarks/trends.py`.\n\n{table(pd.DataFrame(rows))}"
    print(text)
    if not quick:
        page = DOCS / "trends.md"
        head = page.read_text(encoding="utf-8").partition("<!-- figures -->\n")[0]
        page.write_text(f"{head}<!-- figures -->\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
