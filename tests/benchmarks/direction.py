"""False alarms and power of the permutation test: data without direction, time shuffled, and data with a direction.

Writes docs/direction.md; about 20 minutes on two cores. `--quick` takes five seeds and writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from common import table

from cellrank_velot import OTVelocityKernel, datasets

DOCS = Path(__file__).parents[2] / "docs"


def shuffled(seed: int) -> ad.AnnData:
    """Return a bifurcation whose time tells nothing."""
    adata = datasets.bifurcation(600, random_state=seed)
    rng = np.random.default_rng(seed)
    adata.obs["pseudotime"] = rng.permutation(adata.obs["dpt_pseudotime"].to_numpy())
    return adata


def directed(seed: int) -> ad.AnnData:
    """Return a noisy bifurcation with its diffusion pseudotime."""
    adata = datasets.bifurcation(600, noise=2.0, random_state=seed)
    adata.obs["pseudotime"] = adata.obs["dpt_pseudotime"]
    return adata


SETS: dict[str, tuple[Callable[[int], ad.AnnData], int]] = {
    "Gaussian blob, random time": (lambda seed: datasets.gaussian_blob(600, random_state=seed), 100),
    "bifurcation, shuffled time": (shuffled, 100),
    "bifurcation, noise 2": (directed, 20),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for name, (make, n_seeds) in SETS.items():
        seeds = range(5 if quick else n_seeds)
        p = [
            OTVelocityKernel(make(seed), time_key="pseudotime")
            .permutation_test(n_permutations=99, random_state=seed)
            .p_value
            for seed in seeds
        ]
        rows.append([name, len(p), int(np.sum(np.array(p) > 0.05)), f"{np.median(p):.2f}", f"{np.min(p):.2f}"])
    frame = pd.DataFrame(rows, columns=["data", "seeds", "p > 0.05", "median p", "smallest p"])
    text = (
        "# Is there a direction at all?\n\nMade by `python tests/benchmarks/direction.py`: the global p-value of "
        "`kernel.permutation_test()` with 99 permutations and 600 cells. On data without direction it should be above "
        "0.05 in at least 95 of 100 seeds. The last row has a direction: there no seed should be above 0.05.\n\n"
        f"{table(frame)}"
    )
    print(text)
    if not quick:
        (DOCS / "direction.md").write_text(text)


if __name__ == "__main__":
    main()
