"""False positives and power of the comparison of conditions; writes the tables of docs/conditions.md.

One field and one set of fates are computed for a large simulated pool of cells, whose fates are known. Sets of samples
are drawn from the pool: each sample has its own chance of fate A, number of cells, lateness and levels of genes. So the
sets share one field, and do not show how fields vary; some runs from the counts to the comparison are below them.
``python tests/benchmarks/conditions.py``, half an hour of one core; ``--sets 20`` for a first look. Rules were chosen
while ``--seed 0`` was looked at, so the page has another one.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import statsmodels.api as sm
from common import DATA, quiet, table
from scipy.special import expit, logit
from scipy.stats import chi2_contingency, mannwhitneyu, ttest_ind
from scipy.stats import t as student
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import cross_val_predict

import cellrank_velot as cv
from cellrank_velot.conditions import ConditionComparison, Design, MeasuredCells, commitment, compare

PAGE = Path(__file__).parents[2] / "docs" / "conditions.md"
MARK = "<!-- figures -->"
QUIET = {"show_progress_bar": False}
ALPHA = 0.05
CHOSEN = 0.5  # commitment from which on a test of cells takes a cell for one on a lineage
MEASURES = ("lineage share", "cluster share", "fate", "speed", "rotation", "expression", "rise")
CLASSIFIER = {"max_iter": 150, "learning_rate": 0.05, "max_leaf_nodes": 15, "random_state": 0}


@dataclass(frozen=True)
class Drawn:
    """Samples of cells, the true chance of fate A in each sample, and which cells of the pool they are."""

    cells: MeasuredCells
    design: Design
    chance: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Pool:
    """Cells to draw from, where each of them ends, and fates by a classifier that was shown where others end."""

    cells: dict[str, Any]
    fate: np.ndarray
    classified: np.ndarray
    late: np.ndarray
    role: np.ndarray


def fitted(adata: Any) -> tuple[Any, pd.DataFrame]:
    """Return the kernel and the fates of the cells."""
    vk = cv.OTVelocityKernel(adata).compute_windows().compute_velocity(**QUIET).fit_field(n_steps=200, **QUIET)
    vk.compute_transition_matrix(**QUIET)
    last = adata.obs.sort_values("consensus_pseudotime", ascending=False)
    ends = {name: list(last.index[last["clusters"] == name][:30]) for name in ("Fate A", "Fate B")}
    estimator = cv.estimators.GPCCA(vk)
    estimator.set_terminal_states(ends)
    estimator.compute_fate_probabilities()
    return vk, pd.DataFrame(np.asarray(estimator.fate_probabilities.X), adata.obs_names, list(ends))


def pool(n_cells: int, seed: int) -> Pool:
    """Simulate the pool, without any difference between samples, and compute its field and fates."""
    quantities = {"shift": 0.0, "sample_sd": 0.0, "gene_sd": 0.0, "response": 0.0}
    adata = cv.datasets.two_conditions(n_cells // 10, 5, **quantities, random_state=7 + seed)
    vk, fates = fitted(adata)
    cells = {
        "fates": fates[["Fate A", "Fate B"]].to_numpy(),
        "lineages": ["Fate A", "Fate B"],
        "cluster": adata.obs["clusters"].cat.codes.to_numpy().astype(np.int64),
        "clusters": [str(name) for name in adata.obs["clusters"].cat.categories],
        "time": np.asarray(vk.cells.time),
        "velocity": vk.velocity,
        "expression": np.asarray(adata.X, dtype=np.float64),
        "genes": [str(name) for name in adata.var_names],
    }
    time = adata.obs["true_time"].to_numpy()
    fate = (adata.obs["true_fate"] == "Fate B").to_numpy().astype(int)
    classifier = HistGradientBoostingClassifier(**CLASSIFIER)
    classified = cross_val_predict(classifier, cells["expression"], fate, method="predict_proba")
    return Pool(cells, fate, classified, time / time.max(), adata.var["role"])


def draw(
    source: Pool, n: int, n_cells: int, rng: np.random.Generator, *, shift: float, sample_sd: float, response: float
) -> Drawn:
    """Draw samples of cells of both conditions, no cell twice."""
    condition = np.repeat([0, 1], n)
    chance = expit(logit(np.array([0.5, 0.5 + shift])[condition]) + sample_sd * rng.standard_normal(2 * n))
    sizes = np.round(n_cells * np.exp(0.35 * rng.standard_normal(2 * n))).astype(int)
    late = np.exp(0.2 * rng.standard_normal(2 * n))
    free = np.ones(source.fate.size, dtype=bool)
    chosen = []
    for size, share, tilt in zip(sizes, chance, late, strict=True):
        first = rng.binomial(size, share)
        rows = []
        for fate, number in enumerate((first, size - first)):
            has = np.flatnonzero(free & (source.fate == fate))
            t = np.clip(source.late[has], 0.01, 0.99)
            if has.size < number:
                raise ValueError("Expected a larger pool: its cells of one fate are used up.")
            weight = t ** (tilt - 1) * (1 - t) ** (1 / tilt - 1)
            rows.append(rng.choice(has, number, replace=False, p=weight / weight.sum()))
            free[rows[-1]] = False
        chosen.append(np.concatenate(rows))
    sample = np.repeat(np.arange(2 * n), [rows.size for rows in chosen])
    rows = np.concatenate(chosen)
    cells = {name: values[rows] if isinstance(values, np.ndarray) else values for name, values in source.cells.items()}
    level = 0.1 * rng.standard_normal((2 * n, len(cells["genes"])))
    responds = np.flatnonzero(source.role == "unrelated")[:5]
    level[np.ix_(condition == 1, responds)] += response
    cells["expression"] = cells["expression"] + level[sample]
    names = np.array(["control", "treated"])[condition]
    design = Design.of(
        pd.Series(pd.Categorical(names[sample]), name="condition"),
        pd.Series(pd.Categorical(sample.astype(str)), name="sample"),
    )
    return Drawn(MeasuredCells(**cells), design, chance[design.samples.astype(int)], rows)


def of_cells(cells: MeasuredCells, design: Design) -> dict[str, list[float]]:
    """Return p-values of tests that take each cell for a replicate."""
    treated = design.cells_of(1)
    chosen = commitment(cells.fates, cells.time) > CHOSEN
    lineage = mannwhitneyu(cells.fates[chosen & treated, 0], cells.fates[chosen & ~treated, 0]).pvalue
    shares, speed = [], []
    length = np.linalg.norm(cells.velocity, axis=1)
    for number in range(len(cells.clusters)):
        inside = cells.cluster == number
        shares.append(chi2_contingency(pd.crosstab(treated, inside)).pvalue)
        speed.append(mannwhitneyu(length[treated & inside], length[~treated & inside]).pvalue)
    on = chosen & (cells.fates[:, 0] > 0.5)
    genes = ttest_ind(cells.expression[on & treated], cells.expression[on & ~treated]).pvalue
    return {"lineage share": [lineage], "cluster share": shares, "speed": speed, "expression": list(genes)}


def tested(found: ConditionComparison) -> pd.DataFrame:
    """Return the rows that are tests of their own: of two lineages, the first."""
    rows = found.table[found.table["p"].notna()]
    mirrored = rows["measure"].isin(["fate", "lineage share"]) & (rows["lineage"] == "Fate B")
    return rows[~mirrored]


def null(source: Pool, n_sets: int, sample_sd: float, first: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Return false positives of each measure, and how often anything at all is found, without a difference."""
    positive: dict[str, list[float]] = {name: [] for name in MEASURES}
    any_found: dict[str, list[bool]] = {name: [] for name in MEASURES}
    cellwise: dict[str, list[float]] = {}
    anything: list[tuple[bool, ...]] = []
    for seed in range(n_sets):
        rng = np.random.default_rng([1, *([first] if first else []), seed])
        drawn = draw(source, 3, 400, rng, shift=0.0, sample_sd=sample_sd, response=0.0)
        cells, design = drawn.cells, drawn.design
        found = compare(cells, design)
        rows = tested(found)
        for name, part in rows.groupby("measure"):
            positive[name] += list(part["p"] <= ALPHA)
            any_found[name].append(bool((part["q"] <= ALPHA).any()))
        any_q, any_q_all = (bool((rows[name] <= ALPHA).any()) for name in ("q", "q_all"))
        anything.append((any_q, any_q_all, bool(len(found.found))))
        for name, p in of_cells(cells, design).items():
            cellwise.setdefault(name, []).extend(np.array(p) <= ALPHA)
    rows = [
        {
            "measure": name,
            "tests": len(positive[name]) // n_sets,
            "p at most 0.05, samples": f"{np.mean(positive[name]):.3f}",
            "sets with anything at q 0.05": f"{np.mean(any_found[name]):.3f}",
            "p at most 0.05, cells taken for replicates": f"{np.mean(cellwise[name]):.2f}" if name in cellwise else "",
        }
        for name in MEASURES
    ]
    return pd.DataFrame(rows), np.mean(anything, axis=0)


def known_better(source: Pool, drawn: Drawn) -> dict[str, float]:
    """Return the p-value of the shift for those who know more: the same test of what they know of each sample."""
    treated, sample = drawn.design.condition == 1, drawn.design.sample
    ends = np.bincount(sample, source.fate[drawn.rows] == 0) / np.bincount(sample)
    angles = {"true chances": np.arcsin(np.sqrt(drawn.chance)), "true fate of each cell": np.arcsin(np.sqrt(ends))}
    p = {name: float(ttest_ind(y[treated], y[~treated], equal_var=False).pvalue) for name, y in angles.items()}
    cells = replace(drawn.cells, fates=source.classified[drawn.rows], velocity=None, expression=None)
    return p | {"a classifier's": float(of_lineage(compare(cells, drawn.design))["p"])}


def of_lineage(found: ConditionComparison) -> pd.Series:
    """Return the row of the shares of fate A."""
    return found.shares.query("measure == 'lineage share' and lineage == 'Fate A'").iloc[0]


def power(source: Pool, n_sets: int, first: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how often a shift of 0.15 in a fate is found, with genes that respond, and by those who know more."""
    rows, better = [], []
    unrelated = np.array(source.cells["genes"])[source.role == "unrelated"]
    for n, sample_sd, n_cells in (
        (4, 0.1, 600), (4, 0.2, 600), (4, 0.3, 600), (4, 0.2, 200), (3, 0.2, 600), (6, 0.2, 400), (6, 0.3, 400),
    ):  # fmt: skip
        hits, inside, wide, false, right, difference, known = [], [], [], [], [], [], []
        for seed in range(n_sets):
            rng = np.random.default_rng([2, *([first] if first else []), n, int(10 * sample_sd), n_cells, seed])
            drawn = draw(source, n, n_cells, rng, shift=0.15, sample_sd=sample_sd, response=0.5)
            found = compare(drawn.cells, drawn.design)
            known.append(known_better(source, drawn))
            table_, of = found.table, of_lineage(found)
            hits.append(of["q"] <= ALPHA)
            inside.append(of["low"] <= 0.15 <= of["high"])
            wide.append(of["high"] - of["low"])
            difference.append(of["difference"])
            genes = table_[
                (table_["measure"] == "expression") & table_["gene"].isin(unrelated) & (table_["q"] <= ALPHA)
            ]
            wrong = ~genes["gene"].isin(unrelated[:5])
            false.append(wrong.mean() if len(genes) else 0.0)
            right.append(genes.loc[~wrong, "gene"].nunique() / 5)
        setting = {"samples a side": n, "cells of a sample": n_cells, "spread of samples, log odds": sample_sd}
        reached = (pd.DataFrame(known) <= ALPHA).mean()
        better.append(setting | {f"power by {name}": f"{value:.2f}" for name, value in reached.items()})
        better[-1]["power"] = f"{np.mean(hits):.2f}"
        rows.append(
            setting
            | {
                "power": f"{np.mean(hits):.2f}",
                "mean difference": f"{np.mean(difference):.3f}",
                "interval holds 0.15": f"{np.mean(inside):.2f}",
                "its width": f"{np.median(wide):.2f}",
                "responding genes found": f"{np.mean(right):.2f}",
                "false among genes found": f"{np.mean(false):.3f}",
            }
        )
        print(rows[-1], better[-1], flush=True)
    return pd.DataFrame(rows), pd.DataFrame(better)


def mixed(n_sets: int, first: int, n_slow: int = 200) -> pd.DataFrame:
    """Return false positives and power of tests of samples of 50 to 1000 cells, whose values have a spread of 1.

    Besides t tests, there is a mixed model in closed form, in which samples count by their number of cells, and that of
    statsmodels for all cells, of ``n_slow`` sets.
    """
    rows = []
    for n, spread in (
        ((3, 3), (0.1, 0.1)), ((4, 4), (0.05, 0.05)), ((4, 4), (0.1, 0.1)), ((4, 4), (0.1, 0.3)), ((6, 3), (0.1, 0.3)),
    ):  # fmt: skip
        condition = np.repeat([0, 1], n)
        error = np.sqrt(sum((s**2 + 1 / 250) / size for s, size in zip(spread, n, strict=True)))
        found: dict[str, list[float]] = {}
        for shift in (0.0, 3 * error):
            rng = np.random.default_rng([3, first, *n, int(100 * spread[0]), int(100 * spread[1])])
            sizes = np.exp(rng.uniform(np.log(50), np.log(1000), (n_sets, condition.size))).astype(int)
            true = shift * condition + np.array(spread)[condition] * rng.standard_normal(sizes.shape)
            means = true + rng.standard_normal(sizes.shape) / np.sqrt(sizes)
            sides = means[:, condition == 1], means[:, condition == 0]
            p = {
                "Welch": ttest_ind(*sides, axis=1, equal_var=False).pvalue,
                "t test, equal spread": ttest_ind(*sides, axis=1).pvalue,
                "mixed model": mixed_p(means, 1 / sizes, condition),
                "statsmodels": np.array([of_statsmodels(true[k], sizes[k], condition, rng) for k in range(n_slow)]),
            }
            for name, values in p.items():
                found.setdefault(name, []).append(float(np.mean(values[np.isfinite(values)] <= ALPHA)))
        setting = {"samples": f"{n[0]} and {n[1]}", "spread of samples": f"{spread[0]} and {spread[1]}"}
        rows.append(setting | {name: f"{one:.3f}, {other:.2f}" for name, (one, other) in found.items()})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def mixed_p(means: np.ndarray, variance: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """Return p-values of a mixed model with one spread of samples, by REML, and the error of Knapp and Hartung."""

    def fitted(spread: np.ndarray) -> tuple[np.ndarray, ...]:
        w = 1 / (spread[:, None] + variance)
        one, both = w.sum(axis=1), (w * condition).sum(axis=1)
        y, treated = (w * means).sum(axis=1), (w * means * condition).sum(axis=1)
        determinant = both * (one - both)
        shift = (treated * one - both * y) / determinant
        level = (y - shift * both) / one
        misfit = (w * (means - level[:, None] - shift[:, None] * condition) ** 2).sum(axis=1)
        loss = np.log(determinant) + misfit - np.log(w).sum(axis=1)
        return loss, shift, np.sqrt(one / determinant), misfit

    candidates = means.var(axis=1) * np.concatenate([[0.0], np.geomspace(1e-5, 20, 80)])[:, None]
    best = np.argmin([fitted(candidate)[0] for candidate in candidates], axis=0)
    _, shift, error, misfit = fitted(candidates[best, np.arange(len(means))])
    freedom = condition.size - 2
    return 2 * student.sf(np.abs(shift) / error / np.sqrt(np.maximum(misfit / freedom, 1)), freedom)


def of_statsmodels(true: np.ndarray, sizes: np.ndarray, condition: np.ndarray, rng: np.random.Generator) -> float:
    """Return the p-value of the mixed model of statsmodels for cells, which takes its statistic for normal."""
    sample = np.repeat(np.arange(sizes.size), sizes)
    cells = true[sample] + rng.standard_normal(sample.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sm.MixedLM(cells, sm.add_constant(condition[sample].astype(float)), groups=sample).fit(reml=True)
    return float(found.pvalues[1])


def whole(n_runs: int, first: int) -> Iterator[dict[str, Any]]:
    """Yield what is found from the counts on, each time with cells and a field of its own."""
    for shift in (0.0, 0.15, 0.3):
        for seed in range(first, first + n_runs):
            adata = cv.datasets.two_conditions(250, 4, shift=shift, random_state=seed)
            vk, fates = fitted(adata)
            found = cv.compare_conditions(vk, "condition", "sample", fates=fates)
            fields = cv.compare_conditions(vk, "condition", "sample", fates=fates, separate_fields=True, **QUIET)
            lineage = of_lineage(found)
            known = adata.uns["two_conditions"]["samples"].groupby("condition")["true_share"].mean()
            seen = found.samples.query("measure == 'lineage share' and lineage == 'Fate A'").set_index("sample")[
                "value"
            ]
            true = adata.uns["two_conditions"]["samples"]["true_share"]
            yield {
                "planted": shift,
                "of these samples": f"{known['treated'] - known['control']:+.3f}",
                "found": f"{lineage['difference']:+.3f}",
                "interval": f"{lineage['low']:+.2f} to {lineage['high']:+.2f}",
                "p": f"{lineage['p']:.3f}",
                "speeds and rotations at p 0.05, separate fields": f"{(fields.velocity['p'] <= ALPHA).sum()} of 8",
                "share of samples, mean error": f"{(seen - true.loc[seen.index]).abs().mean():.3f}",
            }


def series(seed: int, n: int = 4, n_cells: int = 80) -> pd.DataFrame:
    """Return what is found at each time point of the shared branching series, from which samples are drawn.

    All of its cells are controls. Under the treatment, 0.15 more are drawn from those of the rare fate.
    """
    toy = pd.read_csv(DATA / "series" / "toy_branching_2d.csv")
    rng, condition = np.random.default_rng(seed), np.repeat([0, 1], n)
    share = float((toy.loc[toy["time"] == toy["time"].max(), "fate_label"] == "rare").mean())
    chance = expit(logit(np.array([share, share + 0.15])[condition]) + 0.2 * rng.standard_normal(2 * n))
    parts = []
    for sample, at in enumerate(chance):
        for _, part in toy.groupby("time"):
            rare = (part["fate_label"] == "rare").to_numpy()
            number = rng.binomial(n_cells, at) if rare.any() else 0
            rows = rng.choice(np.flatnonzero(~rare), n_cells - number, replace=False)
            rows = np.concatenate([rows, rng.choice(np.flatnonzero(rare), number)]) if number else rows
            name = "treated" if condition[sample] else "control"
            parts.append(part.iloc[rows].assign(sample=f"s{sample}", condition=name))
    drawn = pd.concat(parts, ignore_index=True)
    adata = ad.AnnData(obs=drawn[["time", "condition", "sample", "fate_label"]].set_index(drawn.index.astype(str)))
    adata.obsm["X_pca"] = drawn[["state_1", "state_2"]].to_numpy()
    sc.pp.neighbors(adata, n_neighbors=20, use_rep="X_pca")
    sk = cv.OTTimeSeriesKernel(adata, time_key="time").compute_velocity(**QUIET).fit_field(n_steps=500, **QUIET)
    last = adata.obs["time"] == adata.obs["time"].max()
    names = ["major", "rare"]
    fates = sk.fate_probabilities(np.flatnonzero(~last), cluster_key="fate_label", n_particles=10).table[names]
    ends = pd.get_dummies(adata.obs.loc[last, "fate_label"])[names].astype(float)
    options = {"fates": pd.concat([fates, ends]), "cluster_key": "fate_label"}
    shares = cv.compare_conditions(sk, "condition", "sample", **options).shares
    rows = shares[(shares["measure"] == "lineage share") & (shares["lineage"] == "rare")]
    rare = (drawn["fate_label"] == "rare").groupby([drawn["time"], drawn["condition"]]).mean().unstack()
    return pd.DataFrame(
        {
            "time": row["time"],
            "drawn": f"{rare['treated'][float(row['time'])] - rare['control'][float(row['time'])]:+.3f}",
            "found": f"{row['difference']:+.3f}",
            "interval": f"{row['low']:+.2f} to {row['high']:+.2f}",
            "q": f"{row['q']:.3f}",
        }
        for _, row in rows.iterrows()
    )


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1000, help="first of the seeds")
    arguments = parser.parse_args()
    quiet()
    source = pool(arguments.pool, arguments.seed)
    print("pool", source.fate.size, flush=True)
    parts = []
    for sample_sd in (0.2, 0.5):
        found, anything = null(source, arguments.sets, sample_sd, arguments.seed)
        parts.append(
            f"**No difference**, {arguments.sets} sets, three samples a side, spread of the samples {sample_sd} on the "
            f"scale of log odds:\n\n{table(found)}\nSets with anything at q 0.05 in any of the seven measures: "
            f"{anything[0]:.3f}; at q_all 0.05: {anything[1]:.3f}; with anything in `found.found`: {anything[2]:.3f}."
        )
        print(parts[-1], flush=True)
    found, better = power(source, arguments.sets, arguments.seed)
    parts.append(
        f"**A shift of 0.15 in a fate**, and five genes of 60 that respond, {arguments.sets} sets a row:\n\n"
        f"{table(found)}"
    )
    parts.append(
        "**The same test of the same sets by those who know more**: the chance of each sample, where each of its "
        "cells ends, or fates by a classifier that was shown where other cells of the pool end (gradient boosting of "
        f"all genes). The first is what this test finds where nothing but the spread of samples is in the way:\n\n"
        f"{table(better)}"
    )
    print(parts[-1], flush=True)
    parts.append(
        "**Tests of samples of 50 to 1000 cells**: positives at p 0.05 without a difference, and with one of three "
        "standard errors. The spread of samples is in units of that of cells. *Mixed model*: samples count by their "
        f"number of cells.\n\n{table(mixed(100 * arguments.sets, arguments.seed))}"
    )
    runs = pd.DataFrame(whole(arguments.runs, arguments.seed))
    parts.append(
        f"**From the counts on**, four samples a side of about 250 cells, a field for each set:\n\n{table(runs)}"
    )
    print(parts[-1], flush=True)
    head = (
        "**Time points**: shares of the rare fate in the shared branching series, four samples a side, 80 cells of "
        "each at each time point. Until 0.25 no cell has chosen, and at 0.5 both branches still lie close together:"
    )
    parts.append(f"{head}\n\n{table(series(arguments.seed))}")
    print(parts[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    command = (
        "Written by `python tests/benchmarks/conditions.py`. Rules were chosen on other seeds; these were drawn once."
    )
    figures = "\n\n".join(part.rstrip() for part in parts)
    PAGE.write_text(f"{text}{MARK}\n\n## Figures\n\n{command}\n\n{figures}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
