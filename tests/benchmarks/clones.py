"""Fates judged, chosen and updated by clones, on simulated barcoded lineages whose fates are known.

Writes the tables of docs/clones.md. `--quick` takes one seed and few sets, and writes nothing. Settings were chosen on
seeds from 100 on; those reported are others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import quiet, table
from joblib import Parallel, delayed

from cellrank_velot import OTVelocityKernel, clones, datasets
from cellrank_velot.fates import absorption_probabilities
from cellrank_velot.field import ProcessOptions

PAGE = Path(__file__).parents[2] / "docs" / "clones.md"
MARK = "<!-- figures -->\n"
SEEDS = (0, 1, 2)
SETS: dict[str, dict[str, Any]] = {
    "like LARRY (default)": {},
    "all bias visible": {"hidden": 0.0},
    "most bias hidden": {"hidden": 0.8},
    "weak bias": {"bias": 1.5},
    "nothing inherited": {"bias": 0.0},
    "fates grow unequally": {"growth_contrast": 0.4},
    "70 % of barcodes missing": {"missing": 0.7},
    "two fates": {"n_fates": 2},
}
OURS, SERIES, SEEN = "cellrank_velot", "cellrank_velot, days", "what the state tells"
# Error below which a share of it tells nothing.
NEAR = 0.02


def fates_of(adata: ad.AnnData, n_steps: int) -> dict[str, pd.DataFrame]:
    """Return the fates of day 2 by each kernel; the cells of day 6 in a fate are the ends."""
    names = [name for name in adata.obs["clusters"].cat.categories if name != "Progenitor"]
    last = (adata.obs["day"] == adata.obs["day"].max()).to_numpy()
    states = [np.flatnonzero(last & (adata.obs["clusters"] == name).to_numpy()) for name in names]
    vk = OTVelocityKernel(adata, time_key="pseudotime").compute_transition_matrix(show_progress_bar=False)
    ck = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    pk = cr.kernels.PseudotimeKernel(adata, time_key="pseudotime").compute_transition_matrix(show_progress_bar=False)
    matrices = {
        OURS: 0.8 * vk.transition_matrix + 0.2 * ck.transition_matrix,
        "ConnectivityKernel": ck.transition_matrix,
        "PseudotimeKernel": pk.transition_matrix,
    }
    found = {
        name: pd.DataFrame(absorption_probabilities(sp.csr_matrix(matrix), states), adata.obs_names, names)
        for name, matrix in matrices.items()
    }
    series = OTVelocityKernel(adata, time_key="day", time_kind="experimental").compute_velocity(show_progress_bar=False)
    series.fit_field(n_steps=n_steps, show_progress_bar=False)
    found[SERIES] = series.fate_probabilities(terminal_clusters=names, cluster_key="clusters").table
    found[SEEN] = adata.obsm["true_fates_seen"]
    return found


def distance(one: pd.DataFrame, truth: pd.DataFrame, cells: pd.Index) -> float:
    """Return the mean total variation."""
    names = list(truth.columns)
    one = one.loc[cells, names].div(one.loc[cells, names].sum(axis=1), axis=0)
    return float((one - truth.loc[cells]).abs().sum(axis=1).mean() / 2)


def run(name: str, seed: int, n_cells: int, n_steps: int) -> list[dict[str, Any]]:
    """Return a row for each kernel of a set."""
    quiet()
    adata = datasets.barcoded_lineages(n_cells, random_state=seed, **SETS[name])
    found, truth, rows = fates_of(adata, n_steps), adata.obsm["true_fates"], []
    day = adata.obs["day"] == adata.obs["day"].min()
    for kernel, fates in found.items():
        judged = clones.judge_by_clones(adata, fates)
        updated = clones.update_by_clones(adata, fates, split_key="well")
        without = clones.update_by_clones(adata, fates)
        with_sisters = adata.obs_names[updated.updated]
        others = adata.obs_names[day & ~updated.updated]
        held_out = updated.held_out
        assert held_out is not None
        gain = held_out.gains.set_index(["fate", "score"]).loc[("all", "skill")]
        given = fates.reindex(adata.obs_names)
        rows.append(
            {
                "set": name,
                "seed": seed,
                "kernel": kernel,
                "AUC": judged.value("auc")[0],
                "skill": judged.value("skill")[0],
                "slope": judged.value("slope")[0],
                "slope of the update": held_out.value("slope", source="after")[0],
                "gain": gain["value"],
                "gain is sure": float(gain["low"] > 0),
                "before": distance(fates, truth, with_sisters),
                "after": distance(updated.fates, truth, with_sisters),
                "without wells": distance(without.fates, truth, with_sisters),
                "others before": distance(fates, truth, others),
                "others after": distance(updated.fates, truth, others),
                "others changed": float((updated.fates.loc[others] != given.loc[others]).to_numpy().sum()),
            }
        )
    return rows


def alone(name: str, seed: int, n_cells: int) -> dict[str, Any]:
    """Return the baselines: the mean fates, and the sisters by themselves; and the ceiling, the right fates judged."""
    adata = datasets.barcoded_lineages(n_cells, random_state=seed, **SETS[name])
    truth = adata.obsm["true_fates"]
    updated = clones.update_by_clones(adata, truth, split_key="well", recalibrate=False)
    cells = adata.obs_names[updated.updated]
    evidence, n = updated.evidence, truth.shape[1]
    weight = evidence["weight"].to_numpy()[:, None]
    counts = (updated.fates.loc[cells] - (1 - weight) * truth.loc[cells]) / weight
    mean = pd.DataFrame(np.broadcast_to(truth.loc[cells].mean().to_numpy(), (len(cells), n)), cells, truth.columns)
    return {
        "set": name,
        "mean fates": distance(mean, truth, cells),
        "sisters alone": distance(counts.clip(lower=0), truth, cells),
        "slope of the truth": clones.judge_by_clones(adata, truth).value("slope")[0],
        "skill of the truth": clones.judge_by_clones(adata, truth).value("skill")[0],
    }


def choice(seed: int, n_cells: int) -> list[dict[str, Any]]:
    """Return what is chosen of weights of a combination and of sharpness, and what that does to the error."""
    quiet()
    adata = datasets.barcoded_lineages(n_cells, random_state=seed)
    truth = adata.obsm["true_fates"]
    names = list(truth.columns)
    last = (adata.obs["day"] == adata.obs["day"].max()).to_numpy()
    states = [np.flatnonzero(last & (adata.obs["clusters"] == name).to_numpy()) for name in names]
    ck = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix().transition_matrix
    vk = OTVelocityKernel(adata, time_key="pseudotime").compute_transition_matrix(show_progress_bar=False)
    auto = vk.params["softmax_scale"]
    candidates = {}
    for factor in (1.0, 0.25, 4.0):
        matrix = vk.compute_transition_matrix(softmax_scale=factor * auto, show_progress_bar=False).transition_matrix
        for weight in (0.8, 1.0, 0.5, 0.2, 0.0):
            mixed = sp.csr_matrix(weight * matrix + (1 - weight) * ck)
            values = absorption_probabilities(mixed, states)
            candidates[f"{weight:g} vk + {1 - weight:g} ck, softmax x {factor:g}"] = pd.DataFrame(
                values, adata.obs_names, names
            )
    found = clones.choose_by_clones(adata, candidates)
    cells = adata.obs_names[adata.obs["day"] == 2]
    errors = {key: distance(fates, truth, cells) for key, fates in candidates.items()}
    first = next(iter(candidates))
    gain = found.judgement.gains.set_index(["fate", "score"]).loc[("all", "skill")]
    return [
        {
            "seed": seed,
            "chosen": found.best,
            "skill, held out": f"{found.judgement.value('skill')[0]:.3f}",
            "gain over the first": f"{-gain['value']:.3f} ({-gain['high']:.3f} to {-gain['low']:.3f})",
            "error of the first": f"{errors[first]:.3f}",
            "of the chosen": f"{errors[found.best]:.3f}",
            "of the best that was there": f"{min(errors.values()):.3f}",
        }
    ]


def speed() -> str:
    """Return seconds on 50 000 cells and 5000 clones."""
    rng = np.random.default_rng(0)
    n, n_clones = 50_000, 5000
    adata = ad.AnnData(obs=pd.DataFrame(index=np.arange(n).astype(str)))
    adata.obs["day"] = rng.choice([2, 4, 6], n)
    adata.obs["clusters"] = np.where(adata.obs["day"] == 2, "start", rng.choice(list("ABCDEFGH"), n))
    adata.obs["clusters"] = adata.obs["clusters"].astype("category")
    kept = np.flatnonzero(rng.random(n) < 0.5)
    entries = (np.ones(kept.size), (kept, rng.integers(n_clones, size=kept.size)))
    adata.obsm["X_clone"] = sp.csr_matrix(entries, shape=(n, n_clones))
    fates = pd.DataFrame(rng.dirichlet(np.ones(8), n), adata.obs_names, list("ABCDEFGH"))
    seconds = {}
    for function in (clones.judge_by_clones, clones.update_by_clones):
        start = time.perf_counter()
        function(adata, fates)
        seconds[function.__name__] = time.perf_counter() - start
    start = time.perf_counter()
    clones.choose_by_clones(adata, dict.fromkeys(range(10), fates))
    seconds["choose_by_clones (10 settings)"] = time.perf_counter() - start
    shown = ", ".join(f"`{name}` {value:.1f} s" for name, value in seconds.items())
    return f"50 000 cells, 5000 clones, eight fates, one core: {shown}.\n"


TEXTS = (
    """## Figures

Written by `python tests/benchmarks/clones.py`: `datasets.barcoded_lineages`, 450 cells on each of three days, three
seeds apart from those that settings were chosen on. The kernel is 0.8 of `OTVelocityKernel` and 0.2 of the
connectivities; the ends of all kernels are the cells of the fates on day 6. *Days* is the time series, by its
defaults. *What the state tells* is the right answer of a method that sees no clones.

**Judged.** The slope of the update is that by sisters that were held out.
""",
    "What the right fates get from the judge: it should find a slope of 1.\n",
    """**Updated.** Total variation from the true fates of cells of day 2 with sisters, before and after. *Sisters
alone* are their shares, *mean fates* those of the average cell. The gain is in the log-likelihood of held-out
sisters, in brackets in how many seeds its interval is above 0. Where nothing is inherited, or the state tells all and
fates are right, sisters tell nothing, and the update all but leaves fates alone.
""",
    """**Chosen**: weights of the velocity and scales of the softmax, 15 settings. They hardly differ, and the clones
say so.
""",
)


def report(rows: pd.DataFrame, baselines: pd.DataFrame, choices: pd.DataFrame) -> str:
    """Return the tables."""
    mean = rows.drop(columns="seed").groupby(["set", "kernel"], sort=False).mean().reset_index()
    judged = mean[["set", "kernel", "AUC", "skill", "slope", "slope of the update"]].round(2)
    alone = baselines.groupby("set", sort=False).mean().reset_index()
    known = mean.merge(alone, on="set")
    pairs = zip(known["before"], known["after"], strict=True)
    known["less"] = [f"{1 - after / before:.0%}" if before > NEAR else "" for before, after in pairs]
    known["gain (sure in)"] = [
        f"{gain:.2f} ({sure:.0%})" for gain, sure in zip(known["gain"], known["gain is sure"], strict=True)
    ]
    columns = ["set", "kernel", "before", "after", "less", "without wells", "sisters alone", "mean fates"]
    errors = known[[*columns, "others before", "others after", "gain (sure in)"]].round(3)
    truth = alone[["set", "slope of the truth", "skill of the truth"]].round(2)
    parts = zip(TEXTS, (judged, truth, errors, choices), strict=True)
    return "\n".join(f"{text}\n{table(shown)}" for text, shown in parts)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    seeds, sets = (SEEDS[:1], list(SETS)[:2]) if options.quick else (SEEDS, list(SETS))
    n_cells, n_steps = (300, 500) if options.quick else (450, ProcessOptions.n_steps)
    pool = Parallel(options.jobs, verbose=5)
    found = pool(delayed(run)(name, seed, n_cells, n_steps) for name in sets for seed in seeds)
    rows = pd.DataFrame([row for part in found for row in part])
    baselines = pd.DataFrame([alone(name, seed, n_cells) for name in sets for seed in seeds])
    choices = pd.DataFrame([row for seed in seeds for row in choice(seed, n_cells)])
    text = f"{report(rows, baselines, choices)}\n{speed()}"
    print(text)
    if not options.quick:
        head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
        PAGE.write_text(f"{head}{MARK}\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
