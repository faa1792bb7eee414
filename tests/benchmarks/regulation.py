"""Which gene drives which: signs that are read from the field, against the circuits that cells were simulated by.

Writes docs/regulation.md. `--quick` takes two sets and writes nothing.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from common import quiet, table
from families import FAMILIES, simulate
from joblib import Parallel, delayed

import cellrank_velot as cv
from cellrank_velot import datasets, metrics

DOCS = Path(__file__).parents[2] / "docs"
QUIET = {"show_progress_bar": False}
SEEDS = (50, 51)
SETS = [(circuit, counts) for circuit in ("bifurcation", "tree") for counts in (False, True)]
# Name of a setting; parameters of windows and of velocity; whether contraction is taken off.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "**defaults**": ({}, {}, False),
    "`n_smooth=0`": ({"n_smooth": 0}, {}, False),
    **{
        f"`relaxation={share}`{', contraction taken off' if off else ''}": ({}, {"relaxation": share}, off)
        for share in (0.1, 0.3, 0.5)
        for off in (False, True)
    },
}


def cells(circuit: str, counts: bool, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Return cells with the time ``obs["time"]``, and the weights of their circuit, targets by sources."""
    known = getattr(datasets, circuit)(1000, 100, random_state=seed, preprocess=not counts)
    adata = simulate(FAMILIES[f"circuit: {circuit}"], seed) if counts else known
    assert adata.n_vars == known.n_vars
    adata.obs["time"] = adata.obs["pseudotime" if counts else "dpt_pseudotime"]
    adata.var_names = known.var_names
    weights = known.varp["true_regulation"]
    return adata, np.asarray(weights.todense() if hasattr(weights, "todense") else weights).T


def signs(effects: np.ndarray, weights: np.ndarray) -> list[float]:
    """Return the share of right signs among switches, self-activation, no self-activation, and effects on others."""
    other = ~np.eye(len(weights), dtype=bool)
    switch = (weights < 0) & (weights.T < 0) & other
    itself = (weights > 0) & ~other
    right = [
        float(np.mean(np.sign(effects[of]) == np.sign(weights[of]))) for of in (switch, itself, weights * other != 0)
    ]
    right.insert(2, float(np.mean(effects[(weights <= 0) & ~other] <= 0)))
    return right


def measure(circuit: str, counts: bool, seed: int) -> list[tuple[Any, ...]]:
    """Return a row for each setting: what it is, the signs that are right, and the cosine of the velocity."""
    torch.set_num_threads(1)
    quiet()
    kind, rows = "counts" if counts else "Gaussian", []
    with warnings.catch_warnings(action="ignore"):
        adata, weights = cells(circuit, counts, seed)
        acting = (weights != 0).any(axis=0) | (weights != 0).any(axis=1)
        genes, weights = list(adata.var_names[acting]), weights[np.ix_(acting, acting)]
        x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
        switches, *_, others = signs(np.corrcoef(x[:, acting].T), weights)
        rows.append(("coexpression, no velocity", kind, switches, np.nan, np.nan, others, np.nan))
        for name, (windows, velocity, off) in SETTINGS.items():
            kernel = cv.OTVelocityKernel(adata, time_key="time").compute_windows(**windows)
            kernel.compute_velocity(**velocity, **QUIET).fit_field(**QUIET)
            contraction = max(float(kernel.compute_regulation(n_bootstrap=2).contraction[0]), 0.0) if off else 0.0
            found = kernel.compute_regulation(genes, degradation=contraction, n_bootstrap=2)
            cosine = metrics.cosine_to_truth(kernel.velocity, adata.obsm["true_velocity_pca"])
            rows.append((name, kind, *signs(found.jacobian[0], weights), cosine))
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    tasks = [(*of, seed) for of in SETS[: 2 if quick else None] for seed in SEEDS[: 1 if quick else None]]
    found = Parallel(n_jobs=2, verbose=5)(delayed(measure)(*task) for task in tasks)
    columns = ["field", "noise", "switches", "self-activation", "no self-activation", "effects on others", "cosine"]
    frame = pd.DataFrame([row for rows in found for row in rows], columns=columns)
    wide = frame.groupby(["field", "noise"], sort=False).mean().unstack().round(2)
    wide.columns = [f"{what}, {kind}" for what, kind in wide.columns]
    text = PAGE.format(n_sets=len(tasks), table=table(wide.fillna("").reset_index()).strip())
    print(text)
    if not quick:
        (DOCS / "regulation.md").write_text(text)


PAGE = """# Regulation

Made by `python tests/benchmarks/regulation.py`.

`compute_regulation` reads from the field which gene drives which: the sign of an effect says whether the velocity of \
the target rises or falls with the level of the source. Cells are simulated by gene circuits whose effects are known, \
so that the signs can be checked. They are seen through a PCA, with diffusion pseudotime, with Gaussian noise or as \
counts.

The table has the share of signs that are right, mean over {n_sets} sets. *Switches* are pairs of genes that repress \
each other. *Self-activation* is the effect of a gene on itself where it activates itself, *no self-activation* where \
it does not, which should not come out positive. *Effects on others* are all of the circuit, those on its targets, \
too. The cosine is that of the velocity to the truth.

{table}

**So leave the parameters as they are, and `degradation` out.** The field has about the same velocity for a cell and \
for its smoothed self, so it has no decay across the manifold that could be taken off. With `relaxation`, the velocity \
returns cells to the manifold, and that alone makes effects of genes on themselves negative until `contraction` is \
taken off. On counts that gains a little among the effects on others, and loses among switches, self-activation, and \
in the velocity. If regulation is all that you want, \
`vk.compute_windows(n_smooth=0).compute_velocity().fit_field()` before `compute_regulation` has a few more signs right.

Effects of a gene on itself are no proof: they come out positive for most genes that do not activate themselves, too. \
And over all effects the coexpression of two genes, which needs no velocity, tells the sign more often than any \
field. Take an effect as a question to an experiment.
"""


if __name__ == "__main__":
    main()
