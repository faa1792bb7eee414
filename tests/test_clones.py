"""Clones: readers, planted fates that sisters confirm, choices and updates without leaks, and tables of any kernel."""

from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import gammaln
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel, clones, pl
from cellrank_velot.cells import read_clones, read_fates
from cellrank_velot.clones.evidence import fit_clones
from cellrank_velot.clones.scores import cast_votes
from cellrank_velot.clones.sisters import Sisters
from cellrank_velot.datasets import barcoded as simulated
from cellrank_velot.timeseries import choose_epsilon, clonal

FATES = ["A", "B", "C"]
QUICK = {"n_bootstraps": 100}


def planted(
    n_clones: int = 300, concentration: float = 2.0, seed: int = 0, late: float = 6.0, together: int = 1
) -> AnnData:
    """Return early cells with the fates of their state, and late sisters drawn from the composition of their clone.

    The composition is Dirichlet around the fates of the state; each draw gives ``together`` sisters of one fate.
    """
    rng = np.random.default_rng(seed)
    state = rng.dirichlet(np.ones(3), n_clones)
    truth = rng.dirichlet(np.ones(3), n_clones) if concentration == 0 else _dirichlet(concentration * state, rng)
    n_early, n_late = 1 + rng.poisson(1.0, n_clones), rng.poisson(late, n_clones)
    early = np.repeat(np.arange(n_clones), n_early)
    mother = np.repeat(np.arange(n_clones), n_late)
    chosen = (rng.random((mother.size, 1)) > truth[mother].cumsum(axis=1)).sum(axis=1).clip(max=2)
    clone, fate = (
        np.concatenate([first, np.repeat(then, together)]) for first, then in ((early, mother), (early * 0 - 1, chosen))
    )
    order = rng.permutation(clone.size)
    clone, fate = clone[order], fate[order]
    adata = AnnData(obs=pd.DataFrame(index=[f"cell{i}" for i in range(clone.size)]))
    adata.obs["clusters"] = pd.Categorical.from_codes(fate + 1, ["start", *FATES])
    adata.obs["day"] = np.where(fate < 0, 2, 6)
    adata.obs["well"] = pd.Categorical(np.where(fate < 0, None, rng.choice(["one", "two"], fate.size)))
    adata.obs["clone_id"] = pd.Categorical([f"c{number}" for number in clone])
    adata.obsm["fates"] = pd.DataFrame(state[clone], adata.obs_names, FATES)
    adata.obsm["truth"] = pd.DataFrame(truth[clone], adata.obs_names, FATES)
    return adata


def _dirichlet(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.gamma(np.maximum(alpha, 1e-3)) + 1e-12
    return drawn / drawn.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return planted()


@pytest.fixture(scope="module")
def lineages() -> AnnData:
    return without_graph(600, 3)


def without_graph(n_cells: int, seed: int) -> AnnData:
    """Return simulated lineages without the graph, whose making takes longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "sc", SimpleNamespace(pp=SimpleNamespace(neighbors=lambda *a, **k: None)))
        return simulated.barcoded_lineages(n_cells, random_state=seed)


# ------------------------------------------------------------------------------------------------------------- readers
@pytest.mark.parametrize("kind", ["matrix", "flags", "counts", "dense", "frame", "column", "texts", "numbers", "gaps"])
def test_clones_are_read_in_any_form(kind: str):
    codes = np.array([0, 2, -1, 2, 1, 0])
    matrix = sp.csr_matrix((np.ones(5), (np.flatnonzero(codes >= 0), codes[codes >= 0])), shape=(6, 4))
    adata = AnnData(obs=pd.DataFrame(index=list("uvwxyz")))
    names = np.array(["a", "b", "c"], dtype=object)
    texts = np.where(codes >= 0, names[codes], None)
    if kind in ("column", "texts", "numbers", "gaps"):
        adata.obs["clone_id"] = {
            "column": pd.Categorical(texts),
            "texts": np.where(codes >= 0, names[codes], "nan"),
            "numbers": codes,
            "gaps": np.where(codes >= 0, codes, np.nan),
        }[kind]
    else:
        adata.obsm["X_clone"] = {
            "matrix": matrix,
            "flags": sp.csc_matrix(matrix, dtype=bool),
            "counts": 7 * matrix.astype(int),
            "dense": matrix.toarray(),
            "frame": pd.DataFrame(matrix.toarray(), adata.obs_names, list("abcd")),
        }[kind]
    found, _ = read_clones(adata)
    assert (found[:, None] == found).tolist() == ((codes[:, None] == codes) | False).tolist()
    assert (found < 0).tolist() == (codes < 0).tolist()


def test_a_cell_with_several_barcodes_is_of_the_larger_clone():
    adata = AnnData(
        obs=pd.DataFrame(index=list("uvw")), obsm={"X_clone": sp.csr_matrix([[1, 1, 0], [0, 1, 0], [1, 1, 1]])}
    )
    assert read_clones(adata, "clone")[0].tolist() == [1, 1, 1]


def test_bad_clones_and_fates_are_refused(adata: AnnData):
    bad = AnnData(obs=pd.DataFrame({"none": [None, None], "half": [0.5, 1.0]}, index=["u", "v"]))
    bad.obsm["negative"] = np.array([[1.0, -1.0], [0.0, 1.0]])
    bad.obsm["texts"] = pd.DataFrame({"a": ["x", "y"]}, index=bad.obs_names)
    for key, error, message in (
        (None, KeyError, "Expected clones in"),
        ("none", ValueError, "Expected cells with a clone"),
        ("half", TypeError, "whole numbers"),
        ("negative", ValueError, "found some in `1` cells: 'u'"),
        ("texts", TypeError, "matrix of numbers"),
    ):
        with pytest.raises(error, match=message):
            read_clones(bad, key)
    for fates, error, message in (
        (None, KeyError, "lineages_fwd"),
        (3, TypeError, "Expected `fates` as a table"),
        (pd.DataFrame({"A": [1.0]}, index=["nobody"]), ValueError, "one row for each cell"),
        (adata.obsm["fates"] - 2, ValueError, "no negative"),
    ):
        with pytest.raises(error, match=message):
            read_fates(adata, fates)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lineages": ["A"]}, ValueError, "at least two fates"),
        ({"lineages": ["A", "X"]}, KeyError, "fates that are clusters"),
        ({"cluster_key": "cell_type"}, KeyError, "cell_type"),
        ({"early": {"day": (6, 6)}, "late": {"day": (6, 6)}}, ValueError, "either in `early` or in `late`"),
        ({"early": {"day": (6, 6)}}, ValueError, "none share one"),
        ({"clones": ["nobody"]}, KeyError, "names of clones"),
        ({"weight_by": "cells"}, ValueError, "`weight_by` to be one of"),
        ({"n_bootstraps": 1}, ValueError, "`n_bootstraps` to be at least"),
    ],
)
def test_bad_options_are_refused(adata: AnnData, options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        clones.judge_by_clones(adata, "fates", **options)


def test_fates_of_any_form_are_the_same(adata: AnnData):
    table = adata.obsm["fates"]
    early = table[adata.obs["day"] == 2]
    numbered = table.assign(A_1=table["A"] / 3, A_2=2 * table["A"] / 3).drop(columns="A")
    lineage = SimpleNamespace(names=FATES, X=table.to_numpy())
    forms = {
        "estimator": SimpleNamespace(fate_probabilities=lineage),
        "series": SimpleNamespace(table=early.assign(rest=0.2)),
        "numbered": numbered[["B", "A_1", "A_2", "C"]],
        "scaled": 0.5 * table,
    }
    judged = clones.judge_by_clones(adata, {"as it is": "fates", **forms}, **QUICK)
    assert judged.gains[["value", "low", "high"]].abs().max(axis=None) < 1e-9


# --------------------------------------------------------------------------------------------------------------- judge
def test_right_fates_are_calibrated_and_others_are_not(adata: AnnData):
    state = adata.obsm["fates"]
    sure, vague = (state.pow(power).div(state.pow(power).sum(axis=1), axis=0) for power in (4, 0.4))
    judged = clones.judge_by_clones(adata, {"state": state, "truth": "truth", "sure": sure, "vague": vague}, **QUICK)
    slope = {name: judged.value("slope", source=name) for name in judged.sources}
    assert all(slope[name][1] < 1 < slope[name][2] for name in ("state", "truth"))
    assert slope["sure"][2] < 0.9
    assert slope["vague"][1] > 1.2
    skill = {name: judged.value("skill", source=name)[0] for name in judged.sources}
    assert skill["truth"] > skill["state"] > max(skill["sure"], skill["vague"])
    gains = judged.gains.set_index(["source", "fate", "score"])
    assert gains.loc[("truth", "all", "auc"), "low"] > 0
    curve = judged.curve[judged.curve["source"] == "truth"]
    assert ((curve["low"] <= curve["predicted"]) & (curve["predicted"] <= curve["high"])).mean() > 0.8


def test_scores_are_those_of_the_definitions(adata: AnnData):
    """With one sister for each cell, they are the usual AUC and the usual slope."""
    from sklearn.metrics import roc_auc_score

    one = planted(n_clones=500, seed=4)
    early = one.obs["day"] == 2
    keep = early.to_numpy() | ~one.obs.duplicated(["clone_id", "day"]).to_numpy()
    keep &= ~(early & one.obs.duplicated(["clone_id", "day"])).to_numpy()
    one = one[keep].copy()
    judged = clones.judge_by_clones(one, "fates", weight_by="sisters", **QUICK)
    late = one.obs[one.obs["day"] == 6].set_index("clone_id")["clusters"]
    first = one.obs[one.obs["day"] == 2]
    first = first[first["clone_id"].isin(late.index)]
    outcome = late.reindex(first["clone_id"]).to_numpy() == "B"
    predicted = one.obsm["fates"].loc[first.index, "B"].to_numpy()
    assert judged.value("auc", "B")[0] == pytest.approx(roc_auc_score(outcome, predicted))
    assert judged.value("slope", "B")[0] == pytest.approx(np.polyfit(predicted, outcome, 1)[0])
    assert judged.n_cells == len(first) == judged.n_sisters == judged.n_clones


def test_intervals_are_over_clones_not_cells(adata: AnnData):
    """Each sister five times over: nothing is known that was not known before."""
    many = planted(together=5)
    few = clones.judge_by_clones(planted(), "fates", **QUICK).value("auc")
    found = clones.judge_by_clones(many, "fates", **QUICK).value("auc")
    assert 0.6 < (found[2] - found[1]) / (few[2] - few[1]) < 1.6


def test_only_clones_that_are_named_judge(adata: AnnData):
    whole = clones.judge_by_clones(adata, "fates", **QUICK)
    names = whole.clones[:80]
    part = clones.judge_by_clones(adata, "fates", clones=list(names), **QUICK)
    subset = adata[adata.obs["clone_id"].isin(names)].copy()
    assert part.n_clones == 80
    pd.testing.assert_frame_equal(part.table, clones.judge_by_clones(subset, "fates", **QUICK).table)


def test_no_late_cell_is_judged_and_no_earlier_cell_judges(lineages: AnnData):
    day, fates = lineages.obs["day"], lineages.obsm["true_fates_seen"]
    judged = clones.judge_by_clones(lineages, fates, **QUICK)
    changed = fates.copy()
    changed[day > 2] = changed[day > 2].to_numpy()[:, ::-1]  # fates of later cells do not matter
    pd.testing.assert_frame_equal(judged.table, clones.judge_by_clones(lineages, changed, **QUICK).table)
    both = clones.judge_by_clones(lineages, fates, early={"clusters": "Progenitor"}, late={"day": (4, 4)}, **QUICK)
    first = clones.judge_by_clones(lineages, fates, early={"day": (2, 2)}, late={"day": (4, 4)}, **QUICK)
    assert (both.n_cells, both.n_sisters) == (first.n_cells, first.n_sisters)


def test_time_points_are_found_or_done_without(adata: AnnData):
    other = adata.copy()
    other.obs["age"] = np.where(np.arange(other.n_obs) % 2, "young", "old")  # no time, and no reason to stop
    other.obs["time_info"] = [f"day {day}" for day in other.obs["day"]]
    del other.obs["day"]
    named = clones.judge_by_clones(other, "fates", **QUICK)
    del other.obs["time_info"]
    without = clones.judge_by_clones(other, "fates", **QUICK)
    expected = clones.judge_by_clones(adata, "fates", **QUICK).table
    pd.testing.assert_frame_equal(named.table, expected)
    pd.testing.assert_frame_equal(without.table, expected)
    with pytest.raises(TypeError, match="age"):
        clones.judge_by_clones(other, "fates", time_key="age")


def test_overlap_of_clones_is_what_right_fates_expect(adata: AnnData):
    judged = clones.judge_by_clones(adata, {"truth": "truth", "state": "fates"}, **QUICK)
    table = judged.overlap.set_index("source")
    assert (table.loc["truth", "clones"] - table.loc["truth", "expected"]).abs().max() < 0.05
    assert (table.loc["state", "expected"] > table.loc["state", "high"]).all()
    assert (table["of_cells"] > table["expected"] - 0.05).all()


# -------------------------------------------------------------------------------------------------------------- update
@pytest.mark.parametrize("concentration", [0.5, 2.0, 8.0])
def test_the_concentration_is_found(concentration: float):
    adata = planted(n_clones=800, concentration=concentration, seed=1)
    updated = clones.update_by_clones(adata, "fates", n_bootstraps=20)
    model = updated.models.loc[2.0]
    assert model["concentration"] == pytest.approx(concentration, rel=0.3)
    assert model["sharpness"] == pytest.approx(1.0, abs=0.15)
    assert model["correlation"] < 0.1


def test_sharpness_is_mended(adata: AnnData):
    sure = adata.obsm["fates"].pow(3).div(adata.obsm["fates"].pow(3).sum(axis=1), axis=0)
    updated = clones.update_by_clones(adata, sure, **QUICK)
    assert updated.models["sharpness"].iloc[0] == pytest.approx(1 / 3, abs=0.1)
    assert updated.held_out.value("slope", source="before")[2] < 0.8
    value, low, high = updated.held_out.value("slope", source="after")
    assert low < 1 < high


def test_the_likelihood_is_that_of_the_dirichlet_multinomial():
    counts, fates = np.array([[3.0, 1.0], [0.0, 4.0], [2.0, 2.0]]), np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5]])
    units = np.arange(3)
    sisters = Sisters(
        names=["A", "B"], cells=units, unit=units, clone=units, time=np.zeros(3), first=np.ones(3, dtype=bool),
        group_unit=units, group_counts=counts, clone_names=np.array(["a", "b", "c"]), fates={"fates": fates},
    )  # fmt: skip
    model = fit_clones(sisters, fates, recalibrate=False)

    def loss(alpha: float) -> float:
        m = model.prior(fates)
        total = gammaln(alpha) - gammaln(alpha + 4) + (gammaln(alpha * m + counts) - gammaln(alpha * m)).sum(axis=1)
        return float(-total.sum() + 0.5 * ((np.log(alpha) - np.log(2)) / 2) ** 2)

    tried = np.logspace(-2, 4, 2001)
    assert model.concentration == pytest.approx(tried[np.argmin([loss(alpha) for alpha in tried])], rel=0.02)
    assert model.log_likelihood == pytest.approx(-loss(model.concentration))
    # The probability that sisters tell of their clone, by integration over the concentration.
    logs = np.linspace(-20, 25, 9001)
    whole = np.exp([-loss(alpha) for alpha in np.exp(logs)]).sum() * (logs[1] - logs[0]) / np.sqrt(2 * np.pi) / 2
    alone = np.exp((counts * np.log(model.prior(fates))).sum())
    assert model.told == pytest.approx(whole / (whole + alone), abs=0.02)


def test_few_clones_that_tell_nothing_leave_fates_alone():
    """Sisters that agree by chance are told from such as inherit something."""
    told, moved = [], []
    for seed in range(8):
        nothing = planted(n_clones=80, concentration=1e6, seed=seed)
        updated = clones.update_by_clones(nothing, "fates", n_bootstraps=20)
        told.append(updated.models["told"].iloc[0])
        moved.append(updated.evidence["shift"].mean())
        assert (updated.evidence["weight"] <= told[-1]).all()
    assert np.mean(told) < 0.2
    assert np.mean(moved) < 0.03
    inherited = clones.update_by_clones(planted(n_clones=80, concentration=2.0), "fates", n_bootstraps=20)
    assert inherited.models["told"].iloc[0] > 0.999


@pytest.mark.parametrize("split_key", [None, "well"])
def test_updated_chances_come_true_as_often_as_they_say(split_key: str | None):
    """In the mean over sets: the slope of one of 600 cells has a spread of .05 to .1."""
    slopes = []
    for seed in range(3, 9):
        adata = without_graph(600, seed)
        updated = clones.update_by_clones(adata, adata.obsm["true_fates_seen"], split_key=split_key, **QUICK)
        slopes.append(updated.held_out.value("slope", source="after")[0])
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("split_key", [None, "well"])
def test_clones_lower_the_error_by_a_third_and_leave_the_others(lineages: AnnData, split_key: str | None):
    before, truth = lineages.obsm["true_fates_seen"], lineages.obsm["true_fates"]
    updated = clones.update_by_clones(lineages, before, split_key=split_key, **QUICK)
    error = [(table - truth).abs().sum(axis=1)[updated.updated].mean() for table in (before, updated.fates)]
    assert error[1] < error[0] * 2 / 3
    pd.testing.assert_frame_equal(updated.fates[~updated.updated], before[~updated.updated])
    np.testing.assert_allclose(updated.fates.sum(axis=1), 1)
    assert updated.evidence.index.tolist() == [n for n in updated.evidence.index if updated.updated[n]]
    assert updated.held_out.gains.set_index(["fate", "score"]).loc[("all", "skill"), "low"] > 0


def test_sisters_that_grew_together_are_no_independent_witnesses():
    """One mother decides for eight: wells show it, and the evidence is that of the mothers."""
    adata = planted(n_clones=600, concentration=8.0, seed=2, late=4.0, together=1)
    late = adata.obs["day"] == 6
    copies = adata[np.concatenate([np.arange(adata.n_obs), np.tile(np.flatnonzero(late), 7)])].copy()
    copies.obs_names_make_unique()
    kept = copies.obs.groupby(["clone_id", "well"], observed=True)["clusters"].transform("first")
    copies.obs["clusters"] = copies.obs["clusters"].where(copies.obs["day"] == 2, kept)  # one mother in each well
    error = {}
    for key in (None, "well"):
        updated = clones.update_by_clones(copies, "fates", split_key=key, **QUICK)
        cells = updated.updated
        error[key] = (updated.fates - copies.obsm["truth"])[cells].abs().sum(axis=1).mean()
    assert updated.models["correlation"].iloc[0] > 0.9
    assert error["well"] < 0.7 * error[None]


def test_what_is_held_out_has_no_part_in_the_update(adata: AnnData):
    """Where sisters tell nothing beyond the fates, held-out sisters must not say that they do."""
    nothing = planted(n_clones=400, concentration=1e6, seed=5)
    gain = clones.update_by_clones(nothing, "fates", **QUICK).held_out.gains.set_index(["fate", "score"])
    assert gain.loc[("all", "skill"), "low"] < 0.01
    assert abs(gain.loc[("all", "skill"), "value"]) < 0.03


def test_mass_of_other_fates_stays(adata: AnnData):
    table = 0.8 * adata.obsm["fates"]
    table["rest"] = 0.2
    updated = clones.update_by_clones(adata, table, **QUICK)
    np.testing.assert_allclose(updated.fates["rest"], 0.2)
    np.testing.assert_allclose(updated.fates.sum(axis=1), 1)


# -------------------------------------------------------------------------------------------------------------- choose
def test_the_right_setting_is_chosen_by_others_than_judge_it(adata: AnnData):
    state = adata.obsm["fates"]
    candidates = {p: state.pow(p).div(state.pow(p).sum(axis=1), axis=0) for p in (0.2, 0.5, 1.0, 2.0, 5.0)}
    candidates[3.0] = lambda: state.pow(3).div(state.pow(3).sum(axis=1), axis=0)
    choice = clones.choose_by_clones(adata, candidates, **QUICK)
    assert choice.best == 1.0
    pd.testing.assert_frame_equal(choice.fates, state)
    assert choice.table["chosen"].sum() == choice.chosen.size == 5
    assert choice.table.loc[1.0, "difference"] == 0
    # What is chosen for a fold does not depend on it: mix up the outcomes of its clones.
    held = choice.folds.index[choice.folds == 0]
    other = adata.copy()
    there = other.obs["clone_id"].isin(held).to_numpy() & (other.obs["day"] == 6).to_numpy()
    other.obs.loc[there, "clusters"] = np.random.default_rng(0).permutation(other.obs.loc[there, "clusters"].to_numpy())
    again = clones.choose_by_clones(other, candidates, **QUICK)
    pd.testing.assert_series_equal(again.folds, choice.folds)
    assert again.chosen[0] == choice.chosen[0]


def test_a_choice_among_noise_does_not_flatter_itself():
    adata = planted(n_clones=60, seed=7)
    rng = np.random.default_rng(0)
    noise = {k: pd.DataFrame(rng.dirichlet(np.ones(3), adata.n_obs), adata.obs_names, FATES) for k in range(40)}
    choice = clones.choose_by_clones(adata, noise, **QUICK)
    assert choice.judgement.value("skill", source="chosen")[0] < choice.table["skill"].max() - 0.01


def test_bad_candidates_are_refused(adata: AnnData):
    for candidates, error, message in (
        ("fates", TypeError, "dictionary of fates"),
        ({"one": "fates"}, ValueError, "at least two `candidates`"),
    ):
        with pytest.raises(error, match=message):
            clones.choose_by_clones(adata, candidates)
    with pytest.raises(ValueError, match="for `n_folds`"):
        clones.choose_by_clones(adata, {"a": "fates", "b": "truth"}, n_folds=2000)


# ------------------------------------------------------------------------------------------------------- time series
@pytest.fixture
def few_values(monkeypatch: pytest.MonkeyPatch):
    """Try few values of the regularisation."""
    monkeypatch.setattr(clonal, "TRIED", (0.0125, 0.05, 0.2, 0.8))


def of_two_days(spread: float, n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cells of two days along a circle, whose sisters lie apart by ``spread``; a third have no clone."""
    rng = np.random.default_rng(seed)
    place = rng.uniform(0, 2 * np.pi, n)
    both = np.concatenate([place, place + spread * rng.normal(size=n)])
    x = np.column_stack([np.cos(both), np.sin(both)])
    clone = np.tile(np.where(rng.random(n) < 1 / 3, -1, np.arange(n) // 2), 2)
    return x, np.repeat([0.0, 1.0], n), clone


def test_the_regularisation_is_that_by_which_sisters_part(few_values, monkeypatch: pytest.MonkeyPatch):
    found = [choose_epsilon(*of_two_days(spread)) for spread in (0.05, 0.4, 1.2)]
    assert found[0].best < found[1].best < found[2].best
    assert all(choice.log_likelihood[choice.epsilon == choice.best] == choice.log_likelihood.max() for choice in found)
    x, time, clone = of_two_days(0.4)
    monkeypatch.setattr(clonal, "MOST_CELLS", 60)  # fewer than there are
    part = choose_epsilon(x, time, clone)
    assert part.best == found[1].best
    assert 10 <= part.n_clones < found[1].n_clones
    with pytest.raises(ValueError, match="Expected at least `10` clones"):
        choose_epsilon(x, time, np.where(clone < 6, clone, -1))


def test_a_kernel_takes_the_regularisation_from_clones(few_values, lineages: AnnData):
    series = lineages[(lineages.obs["day"] < 6) & (np.arange(lineages.n_obs) % 3 > 0)].copy()
    graph = kneighbors_graph(series.obsm["X_pca"], 15, mode="connectivity", include_self=False)
    series.obsp["connectivities"] = sp.csr_matrix((graph + graph.T) / 2)
    series.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"use_rep": "X_pca"}}
    kernel = OTVelocityKernel(series, time_key="day", time_kind="experimental")
    with pytest.raises(ValueError, match="`clone_key` with `epsilon='clones'` only"):
        kernel.compute_velocity(0.1, clone_key="X_clone")
    with pytest.raises(ValueError, match="`epsilon` to be one of"):
        kernel.compute_velocity("clone")
    with pytest.raises(KeyError, match="barcodes"):
        kernel.compute_velocity("clones", clone_key="barcodes")
    kernel.compute_velocity("clones", clone_key="clone_id", show_progress_bar=False)
    expected = choose_epsilon(kernel.cells.x, kernel.cells.time, read_clones(series, "clone_id")[0]).best
    said = kernel.settings["velocity"]
    assert (said["epsilon"], said["clone_key"]) == (kernel.couplings.epsilon, "clone_id") == (expected, "clone_id")
    assert 0.05 < expected < 0.5
    assert (kernel._noise(None), kernel._noise(0.5)) == (1.0, 0.5)
    judged = kernel.judge_by_clones("true_fates_seen", **QUICK)
    assert judged.sources == ["fates", "ConnectivityKernel", "PseudotimeKernel"]
    assert (judged.gains.query("fate == 'all' and score == 'skill'")["value"] < 0).all()
    again = kernel.copy().compute_velocity(**kernel._arguments("velocity"), show_progress_bar=False)
    np.testing.assert_array_equal(again.couplings.start, kernel.couplings.start)
    assert again._noise(None) == 2.0


# ------------------------------------------------------------------------------------------------------ data, pictures
def test_fates_of_simulated_lineages_are_those_that_cells_take(lineages: AnnData):
    early = lineages.obs["day"] == 2
    assert (lineages.obs.loc[early, "clusters"] == "Progenitor").mean() > 0.98
    judged = clones.judge_by_clones(lineages, {"true": "true_fates", "seen": "true_fates_seen"}, **QUICK)
    for source in judged.sources:
        _, low, high = judged.value("slope", source=source)
        assert low < 1.05
        assert high > 0.95
    codes = lineages.obs["clone_id"].cat.codes.to_numpy()
    assert ((codes >= 0) == (lineages.obsm["X_clone"].sum(axis=1).A1 > 0)).all()
    assert 0.3 < (codes < 0).mean() < 0.5


def test_votes_are_shared_among_early_sisters(adata: AnnData):
    judged = clones.judge_by_clones(adata, "fates", **QUICK)
    fewer = clones.judge_by_clones(adata, "fates", weight_by="clones", **QUICK)
    assert judged.table.loc[("fates", "all"), "slope"] != fewer.table.loc[("fates", "all"), "slope"]
    units = np.array([0, 0, 1])
    sisters = Sisters(
        names=["A", "B"], cells=np.arange(3), unit=units, clone=np.array([4, 9]), time=np.zeros(2),
        first=np.ones(2, dtype=bool), group_unit=np.array([0, 1]), group_counts=np.array([[3.0, 1.0], [0.0, 2.0]]),
        clone_names=np.array(list("abcdefghij")), fates={},
    )  # fmt: skip
    np.testing.assert_allclose(cast_votes(sisters, "sisters").weight, [2, 2, 2])
    np.testing.assert_allclose(cast_votes(replace(sisters), "clones").weight, [0.5, 0.5, 1])


def test_pictures_are_drawn(adata: AnnData, tmp_path):
    judged = clones.judge_by_clones(adata, {"state": "fates", "truth": "truth"}, **QUICK)
    updated = clones.update_by_clones(adata, "fates", **QUICK)
    panels = pl.clone_calibration(judged, show=False)
    assert [panel.get_title(loc="left") for panel in panels] == FATES
    pl.clone_calibration(updated, "A", sources=["after"], save=tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000
    assert len(pl.clone_scores(judged, ["auc", "skill"], show=False)) == 2
    ax = pl.clone_overlap(judged, show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["A and B", "A and C", "B and C"]
    for call, message in (
        (lambda: pl.clone_scores(judged, ["accuracy"]), "accuracy"),
        (lambda: pl.clone_calibration(judged, sources="nobody"), "nobody"),
    ):
        with pytest.raises(KeyError, match=message):
            call()
    with pytest.raises(TypeError, match="judge_by_clones"):
        pl.clone_overlap(adata)
    plt.close("all")


def test_many_cells_and_clones_take_seconds():
    rng = np.random.default_rng(0)
    n, n_clones = 50_000, 5000
    adata = AnnData(obs=pd.DataFrame(index=np.arange(n).astype(str)))
    adata.obs["day"] = rng.choice([2, 4, 6], n)
    adata.obs["state_info"] = pd.Categorical(np.where(adata.obs["day"] == 2, "start", rng.choice(FATES, n)))
    kept = np.flatnonzero(rng.random(n) < 0.5)
    entries = (np.ones(kept.size), (kept, rng.integers(n_clones, size=kept.size)))
    adata.obsm["X_clone"] = sp.csr_matrix(entries, shape=(n, n_clones))
    fates = pd.DataFrame(rng.dirichlet(np.ones(3), n), adata.obs_names, FATES)
    updated = clones.update_by_clones(adata, fates, n_bootstraps=20)
    assert updated.held_out.n_clones > 3000
    assert updated.held_out.gains.set_index(["fate", "score"]).loc[("all", "skill"), "value"] > 0
