"""False alarms and power of the test of direction, with a diffusion pseudotime computed as a user would.

Cells without direction are counts of one cloud, counts of three unordered types, and a bifurcation with shuffled time;
cells with one are counts of the families. Writes docs/direction.md; about ten minutes on one core. `--quick` takes five
seeds and writes nothing.
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
import scanpy as sc
import scipy.sparse as sp
from common import table
from families import FAMILIES, HELD_BACK, Family, _circuit, _curves, _observe

from cellrank_velot import OTVelocityKernel, datasets, pp

DOCS = Path(__file__).parents[2] / "docs"
N_CELLS, FIRST_SEED = 600, 100


def cloud(seed: int, n_types: int = 1, spread: float = 0.0, n_latent: int = 12, apart: float = 0.0) -> ad.AnnData:
    """Return counts of one type or more, each a Gaussian cloud of log expression in latent dimensions."""
    rng = np.random.default_rng([seed, 31])
    loading = rng.normal(0, 0.6, (12, 1500)) * (rng.uniform(size=(12, 1500)) < 0.25)
    centre = rng.normal(size=(n_types, 12))
    centre *= apart / np.linalg.norm(centre, axis=1, keepdims=True)
    latent = centre[rng.integers(n_types, size=N_CELLS)]
    latent[:, :n_latent] += spread * rng.standard_normal((N_CELLS, n_latent))
    expected = np.exp(rng.normal(0, 1.3, 1500) + latent @ loading)
    return prepared(_observe(expected, Family(n_cells=N_CELLS), rng), seed)


def one_cloud(seed: int) -> ad.AnnData:
    """Return one cell type: noise of the counts alone, or with a variation in 12 or in 5 dimensions."""
    spread, n_latent = ((0.0, 12), (0.3, 12), (0.5, 5))[seed % 3]
    return cloud(seed, spread=spread, n_latent=n_latent)


def three_types(seed: int) -> ad.AnnData:
    """Return three unordered types, near to each other or far, with or without a variation of their own."""
    apart, spread = ((0.5, 0.0), (1.0, 0.0), (1.0, 0.15), (2.0, 0.3))[seed % 4]
    return cloud(seed, 3, spread=spread, apart=apart)


def family(name: str, seed: int) -> ad.AnnData:
    """Return counts of a family, with a pseudotime from its earliest cell."""
    made = (FAMILIES | HELD_BACK)[name.partition(" (")[0]].scaled(n_cells=N_CELLS)
    made = made.scaled(depth=1500.0) if "depth" in name else made
    rng = np.random.default_rng([seed, 17])
    expected, _, obs, _ = _circuit(made, seed) if made.circuit else _curves(made, rng)
    return prepared(_observe(expected, made, rng), seed, root=int(np.argmin(obs["true_time"])))


def shuffled(seed: int) -> ad.AnnData:
    """Return two fates whose time tells nothing."""
    adata = family("two fates", seed)
    adata.obs["pseudotime"] = np.random.default_rng(seed).permutation(adata.obs["pseudotime"].to_numpy())
    return adata


def positions(seed: int, n_types: int) -> ad.AnnData:
    """Return Gaussian positions without genes, of one type or three that touch."""
    adata = datasets.gaussian_blob(N_CELLS, random_state=seed)
    rng = np.random.default_rng(seed)
    adata.obsm["X_pca"] += 4 * rng.standard_normal((n_types, 10))[rng.integers(n_types, size=N_CELLS)] / np.sqrt(5)
    return timed(ad.AnnData(obsm={"X_pca": adata.obsm["X_pca"]}), seed)


def prepared(counts: np.ndarray, seed: int, root: int | None = None) -> ad.AnnData:
    """Prepare counts with scanpy."""
    adata = ad.AnnData(sp.csr_matrix(counts[:, (counts > 0).sum(axis=0) >= 3].astype(np.float32)))
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if adata.n_vars > 1000:
        sc.pp.highly_variable_genes(adata, n_top_genes=1000)
    sc.pp.pca(adata, n_comps=30, random_state=seed)
    return timed(adata, seed, root)


def timed(adata: ad.AnnData, seed: int, root: int | None = None) -> ad.AnnData:
    """Add diffusion pseudotime: from the root, else from an extreme cell or any, by turns."""
    sc.pp.neighbors(adata, n_neighbors=30, use_rep="X_pca", random_state=seed)
    sc.tl.diffmap(adata)
    if root is None:
        extreme = int(np.argmax(adata.obsm["X_diffmap"][:, 1]))
        root = extreme if seed % 2 else int(np.random.default_rng(seed).integers(adata.n_obs))
    pp.set_pseudotime(adata, [root])  # that of scanpy; finite where the graph has several parts
    adata.obs["pseudotime"] = adata.obs["dpt_pseudotime"]
    return adata


SETS: dict[str, tuple[Callable[[int], ad.AnnData], int]] = {
    "one cloud, counts": (one_cloud, 100),
    "three types, counts": (three_types, 100),
    "two fates, shuffled time": (shuffled, 100),
    "one cloud, positions alone": (lambda seed: positions(seed, 1), 40),
    "three types, positions alone": (lambda seed: positions(seed, 3), 40),
} | {
    name: (lambda seed, name=name: family(name, seed), 20)
    for name in ("two fates", "one line", "four fates", "circuit: bifurcation", "two fates (depth 1500)", "low depth")
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="sets whose name has this in it; writes nothing")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows = []
    for name, (make, n_seeds) in SETS.items():
        if arguments.only and arguments.only not in name:
            continue
        tests = []
        for seed in range(FIRST_SEED, FIRST_SEED + (5 if arguments.quick else n_seeds)):
            kernel = OTVelocityKernel(make(seed), time_key="pseudotime")
            tests.append(kernel.test_direction(flip=False, random_state=seed))
        p = np.array([test.p_value for test in tests])
        evidence = pd.concat([test.to_frame() for test in tests])
        said = evidence.groupby("evidence")["for"].mean().reindex(["time", "course", "continuity", "genes"])
        found = int(sum(test.found for test in tests))
        rows.append([name, len(p), found, f"{np.median(p):.2g}", *("-" if np.isnan(v) else f"{v:.2f}" for v in said)])
        print(*rows[-1], sep=" | ", flush=True)
    columns = ["data", "seeds", "direction found", "median p", "time", "course", "continuity", "genes"]
    text = TEXT + table(pd.DataFrame(rows, columns=columns)) + AFTER
    if not arguments.quick and not arguments.only:
        (DOCS / "direction.md").write_text(text)


TEXT = """# Is there a direction at all?

A pseudotime is smooth over the cells that it was computed from, whether they have an order or not. A shuffled time is
not smooth. So any pseudotime beats shuffled ones, that of a Gaussian cloud, too. `kernel.test_direction()` asks four
other questions, and there is a direction only if all answers say so:

| evidence | question | chance |
|---|---|---|
| time | does the time agree with a pseudotime computed anew from one of its ends? | a rank correlation of 0.3 |
| course | does a random walk take longer along the cells than across? | one elliptic cloud of the same covariance |
| continuity | are there cells in between? | several clouds, as many as the spectrum of the walk suggests |
| genes | does the order in half of the genes explain the other half within groups of 25 near cells? | random signs |

Made by `python tests/benchmarks/direction.py`: 600 cells, diffusion pseudotime by scanpy, from the earliest cell in the
families, else from an extreme cell or any, by turns. Of cells without direction, at most 5 in 100 should be found
directed. The last four columns are the shares of parts of the graph in which that evidence speaks for a direction.

"""
AFTER = """
"One cloud" has the noise of counts alone, or besides a variation in 12 or in 5 dimensions, by turns. "Three types" are
near or far, with or without a variation of their own. "Positions alone" has no genes: only time, course and continuity
are asked. "Low depth" has about 700 counts a cell.

**What the test cannot tell.** Which end is the beginning: both directions of time get the same verdict. Where counts
are very few, a course is no longer than a cloud to the walk: "not shown" is not "there is none". Few cells have few in
between: parts of fewer than 60 cells are not tested. Of more than 1500 cells, 1500 are drawn.

**What was tried without success**, on these sets with other seeds. Velocities that agree with their neighbours', or the
variance that a local regression on time explains: no more along a course than in a cloud. How well neighbours in one
half of the genes predict the other half: much better than in elliptic clouds for a cloud of counts with a variation in
5 dimensions, which is not quite elliptic. The slowest mode of the walk without the later ones: so is that of a sheet in
two dimensions. The share of edges between clusters of k-means: hardly differs between a course and clouds. The
statistic of the halves with each cell among its own neighbours: 7 standard deviations in a cloud of noise, as cells of
few counts are noisy in both halves.
"""


if __name__ == "__main__":
    main()
