"""How much cells of one place differ in their ways: fates by ``epsilon`` and ``noise``, against what is known.

Barcoded lineages, a branching process, clones of blood formation and held-out time points. Writes a table of
docs/time_series.md; `--quick` takes one seed and writes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from common import DATA, quiet, table

from cellrank_velot import OTVelocityKernel, clones, datasets
from cellrank_velot.metrics import held_out_time

PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"
MARKS = ("<!-- spread: begin -->\n", "<!-- spread: end -->\n")
QUIET = {"show_progress_bar": False}
TRIED: list[tuple[Any, tuple[float, ...]]] = [(0.05, (1.0, 2.0, 3.0)), (0.1, (1.0, 2.0)), ("clones", (1.0,))]
SERIES = {"zebrafish": "X_latent", "emt": "X_pca", "mouse_hematopoiesis": "X_latent", "misa": "X_state"}
N_CELLS = 1000


def barcoded(seed: int, **options: Any) -> tuple[ad.AnnData, pd.DataFrame]:
    """Return lineages, and what their states tell of the fates."""
    adata = datasets.barcoded_lineages(400, random_state=seed, **options)
    return adata, adata.obsm["true_fates_seen"]


def branching(seed: int) -> tuple[ad.AnnData, pd.DataFrame]:
    """Return a branching process, and the fates of the descendants."""
    adata = datasets.birth_death(400, random_state=seed)
    expected = adata.obsm["true_descendants"]
    values = expected / expected.sum(axis=1, keepdims=True)
    return adata, pd.DataFrame(values, adata.obs_names, ["Fate A", "Fate B"])


def blood() -> tuple[ad.AnnData, None]:
    """Return some cells of blood formation in culture."""
    adata = ad.read_h5ad(DATA / "mouse_hematopoiesis_time_series.h5ad")
    rng, day = np.random.default_rng(0), adata.obs["day"].to_numpy()
    kept = [rng.permutation(np.flatnonzero(day == point))[:N_CELLS] for point in np.unique(day)]
    adata = adata[np.sort(np.concatenate(kept))].copy()
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_latent")
    return adata, None


def overlap(fates: pd.DataFrame) -> float:
    """Return the overlap of the ancestors, a mean over each two fates."""
    share = (fates / fates.sum()).to_numpy()
    pairs = [(i, j) for i in range(share.shape[1]) for j in range(i)]
    return float(np.mean([np.minimum(share[:, i], share[:, j]).sum() for i, j in pairs]))


def rows_of(
    name: str, adata: ad.AnnData, truth: pd.DataFrame | None, fates: list[str], basis: str
) -> list[dict[str, Any]]:
    """Return error, skill and overlap of a set for each setting."""
    rows = []
    for epsilon, factors in TRIED:
        if epsilon == "clones" and "X_clone" not in adata.obsm:
            continue
        kernel = OTVelocityKernel(
            adata, time_key="day", time_kind="experimental", basis=basis, cluster_key="clusters"
        ).compute_velocity(epsilon, **QUIET)
        kernel.fit_field(**QUIET)
        for factor in factors:
            found = kernel.fate_probabilities(terminal_clusters=fates, noise=factor).table
            # A cell stands for its descendants.
            row = {"set": name, "epsilon": epsilon, "noise": factor}
            one = found[fates].div(found[fates].sum(axis=1), axis=0)
            row["overlap"] = overlap(found[fates] if truth is None else one)
            if truth is not None:
                known = truth.loc[one.index]
                row |= {"error": float((one - known).abs().sum(axis=1).mean() / 2), "true overlap": overlap(known)}
            if "X_clone" in adata.obsm:
                row["skill"] = clones.judge_by_clones(adata, one, n_bootstraps=20).value("skill")[0]
            rows.append(row)
    return rows


def held_out(epsilon: float) -> float:
    """Return W1 of ten held-out time points over that of exact transport."""
    ratios = []
    for name, basis in SERIES.items():
        adata = ad.read_h5ad(DATA / f"{name}_time_series.h5ad")
        x, time = np.asarray(adata.obsm[basis], dtype=np.float64), adata.obs["day"].to_numpy(dtype=np.float64)
        rng = np.random.default_rng(0)
        kept = np.concatenate([rng.permutation(np.flatnonzero(time == t))[:N_CELLS] for t in np.unique(time)])
        options = {"methods": ["paths", "exact"], "n_cells": N_CELLS, "coupling_options": {"epsilon": epsilon}}
        found = held_out_time(x[kept], time[kept], **options).pivot_table(index="time", columns="method", values="w1")
        ratios += (found["paths"] / found["exact"]).tolist()
    return float(np.mean(ratios))


def report(rows: pd.DataFrame, ratios: dict[float, float]) -> str:
    """Return the table."""
    mean = rows.groupby(["set", "epsilon", "noise"], sort=False).mean(numeric_only=True).reset_index()
    shown = []
    for (epsilon, noise), part in mean.groupby(["epsilon", "noise"], sort=False):
        by_set = part.set_index("set")
        row: dict[str, Any] = {"`epsilon`": epsilon, "`noise`": f"{noise:g}"}
        for name in rows["set"].unique():
            one = by_set.loc[name] if name in by_set.index else None
            if name != "blood":
                row[f"{name}: error"] = "" if one is None else f"{one['error']:.3f}"
            if one is not None and np.isfinite(one.get("skill", np.nan)):
                row[f"{name}: skill"] = f"{one['skill']:.2f}"
            elif name in rows.dropna(subset="skill")["set"].unique():
                row[f"{name}: skill"] = ""
            true = rows[rows["set"] == name]["true overlap"].mean()
            label = f"{name}: overlap" if name != "blood" else "Neu and Mo: overlap (clones .19)"
            label += f" (true {true:.2f})" if np.isfinite(true) else ""
            row[label] = "" if one is None else f"{one['overlap']:.2f}"
        row["held-out points"] = f"{ratios[epsilon]:.2f}" if epsilon in ratios else ""
        shown.append(row)
    return table(pd.DataFrame(shown))


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    quiet()
    torch.set_num_threads(1)
    three, rows = ["Fate A", "Fate B", "Fate C"], []
    for seed in (0,) if quick else (0, 1):
        rows += rows_of("barcoded", *barcoded(seed), three, "X_pca")
        rows += rows_of("all visible", *barcoded(seed, hidden=0.0), three, "X_pca")
        rows += rows_of("birth and death", *branching(seed), ["Fate A", "Fate B"], "X_pca")
    rows += rows_of("blood", *blood(), ["Neu", "Mo"], "X_latent")
    ratios = {} if quick else {epsilon: held_out(epsilon) for epsilon in (0.05, 0.1)}
    text = report(pd.DataFrame(rows), ratios)
    print(text)
    if not quick:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(MARKS[0])
        PAGE.write_text(head + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


if __name__ == "__main__":
    main()
