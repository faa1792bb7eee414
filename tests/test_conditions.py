"""Conditions: planted differences between samples, tests that hold their level, and inputs that are refused."""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from cellrank_velot import OTTimeSeriesKernel, OTVelocityKernel, compare_conditions, datasets, pl
from cellrank_velot.conditions import ComparisonOptions, Design, MeasuredCells, commitment, compare
from cellrank_velot.conditions.inference import SCALES, TestOptions, adjusted, differences
from cellrank_velot.conditions.measures import lineage_shares, rotations

FIRST, LAST = np.arange(3), np.arange(3, 6)


def samples(n: int = 3, shift: float = 0.0, n_measures: int = 400, seed: int = 0) -> NDArray[np.float64]:
    """Return values of ``n`` samples and of ``n`` others that differ by the shift, one column for each measure."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2 * n, n_measures)) + shift * (np.arange(2 * n) >= n)[:, None]


# --------------------------------------------------------------------------------------------------------- numbers
def test_t_test_is_that_of_scipy_and_its_interval_says_the_same():
    values = samples(4, 1.0)
    found = differences(values, np.arange(4, 8), np.arange(4), SCALES["plain"], TestOptions(test="t"))
    peer = stats.ttest_ind(values[4:], values[:4], equal_var=False)
    np.testing.assert_allclose(found.p, peer.pvalue)
    low, high = peer.confidence_interval()
    np.testing.assert_allclose((found.low, found.high), (low, high))
    assert set(found.test) == {"t"}


@pytest.mark.parametrize("scale", ["share", "positive"])
def test_an_interval_holds_zero_where_the_test_says_so(scale: str):
    values = SCALES[scale].back(0.7 + 0.1 * samples(4, 1.0))
    found = differences(values, np.arange(4, 8), np.arange(4), SCALES[scale], TestOptions(test="t"))
    np.testing.assert_array_equal((found.low > 0) | (found.high < 0), found.p < 0.05)
    np.testing.assert_allclose(found.difference, found.mean - found.reference_mean)
    assert (found.low < found.difference).all()
    assert (found.difference < found.high).all()
    assert 20 < (found.p < 0.05).sum() < 380


def test_permutations_are_all_relabellings():
    values = samples(4, 1.5, n_measures=5)
    found = differences(values, np.arange(4, 8), np.arange(4), SCALES["plain"], TestOptions(test="permutation"))
    for column, p in zip(values.T, found.p, strict=True):
        seen = [
            abs(stats.ttest_ind(column[list(one)], np.delete(column, one), equal_var=False).statistic)
            for one in combinations(range(8), 4)
        ]
        assert p == pytest.approx(np.mean(np.array(seen) >= seen[-1] - 1e-9))
    assert found.smallest_p[0] == pytest.approx(2 / 70)


def test_many_samples_are_permuted_at_random():
    values, groups = samples(9, 0.0, n_measures=300), (np.arange(9, 18), np.arange(9))
    options = TestOptions(test="permutation", n_permutations=199)
    found, again = (differences(values, *groups, SCALES["plain"], options) for _ in range(2))
    assert found.smallest_p[0] == 1 / 200
    assert 0.02 < (found.p <= 0.05).mean() < 0.09
    np.testing.assert_array_equal(found.p, again.p)


def test_the_test_fits_the_number_of_samples():
    """Permutation where one finding alone could come to 1 % after the adjustment, else t."""
    for n, n_tests, test in ((4, 1, "t"), (5, 1, "permutation"), (5, 2, "t"), (6, 4, "permutation"), (6, 5, "t")):
        values = samples(n, n_measures=n_tests)
        found = differences(values, np.arange(n, 2 * n), np.arange(n), SCALES["plain"])
        assert set(found.test) == {test}, (n, n_tests)


def test_moderated_variances_find_more_and_hold_the_level():
    rng = np.random.default_rng(1)
    sd = 1 / np.sqrt(rng.gamma(3, 1, 2000))
    shift = np.where(np.arange(2000) < 200, 3.0, 0.0)
    values = sd * (samples(3, n_measures=2000) + shift * (np.arange(6) >= 3)[:, None])
    plain, moderated = (
        differences(values, LAST, FIRST, SCALES["plain"], TestOptions(test="t"), moderated=m) for m in (False, True)
    )
    assert 0.03 < (moderated.p[200:] < 0.05).mean() < 0.07
    q = adjusted(moderated.p)
    assert (q[:200] < 0.05).sum() > 3 * max((adjusted(plain.p)[:200] < 0.05).sum(), 10)
    assert (q[200:] < 0.05).sum() < 0.1 * (q < 0.05).sum()
    np.testing.assert_allclose(q, stats.false_discovery_control(moderated.p))


def test_pairs_take_away_what_donors_share():
    rng = np.random.default_rng(0)
    donor = 5 * rng.normal(size=(5, 200))
    values = np.concatenate([donor, donor]) + 0.3 * samples(5, 3.0, n_measures=200)
    pair = np.tile(np.arange(5), 2)
    found = differences(values, np.arange(5, 10), np.arange(5), SCALES["plain"], pair=pair)
    np.testing.assert_allclose(found.p, stats.ttest_rel(values[5:], values[:5]).pvalue)
    assert set(found.test) == {"paired t"}
    assert (found.p < 0.05).mean() > 0.8
    alone = pair.copy()
    alone[9] = 7  # without a partner
    found = differences(values, np.arange(5, 10), np.arange(5), SCALES["plain"], pair=alone)
    np.testing.assert_allclose(found.p, stats.ttest_rel(values[5:9], values[:4]).pvalue)
    flips = differences(
        values, np.arange(5, 10), np.arange(5), SCALES["plain"], TestOptions(test="permutation"), pair=pair
    )
    assert flips.p.min() == 2 / 32


def test_samples_without_a_value_do_not_count():
    values = samples(3, n_measures=4)
    values[0, 1] = np.nan
    values[[0, 1], 2] = np.nan
    values[:3, 3] = np.nan
    found = differences(values, LAST, FIRST, SCALES["plain"])
    assert found.n_reference.tolist() == [3, 2, 1, 0]
    np.testing.assert_array_equal(np.isnan(found.p), [False, False, True, True])
    np.testing.assert_array_equal(np.isnan(found.difference), [False, False, False, True])
    assert found.p[1] == pytest.approx(stats.ttest_ind(values[3:, 1], values[1:3, 1], equal_var=False).pvalue)
    same = differences(np.full((6, 1), 0.3), LAST, FIRST, SCALES["share"])
    assert same.p[0] == 1


def test_commitment_is_from_the_start_to_one_fate_rare_or_not():
    start = np.array([0.02, 0.98])
    fates = np.array([start] * 20 + [[1, 0], [0, 1], [0.51, 0.49], [0.01, 0.99], [np.nan, np.nan]])
    found = commitment(fates, np.concatenate([np.linspace(0, 0.1, 20), [1.0] * 5]))
    np.testing.assert_allclose(found, [0.0] * 20 + [1, 1, 0.5, 0.5, 0], atol=1e-9)


@pytest.mark.parametrize("chance", [0.03, 0.3, 0.9])
@pytest.mark.parametrize("flux", [0.1, 0.5])
def test_lineage_shares_are_the_chances_of_the_sample(chance: float, flux: float):
    """Also of cells that lean to a fate only, of rare fates, and where the chain is off in its chances at the start."""
    rng = np.random.default_rng(0)
    is_a, sure = rng.random(20_000) < chance, rng.uniform(size=20_000)
    seen = rng.normal(4 * sure**2 * np.where(is_a, 1, -1), 2 * sure)
    odds = 2 * seen + np.log(flux / (1 - flux))  # two Gaussians: 2 m x / sd^2
    fates = np.column_stack([1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(odds))])
    start = np.array([flux, 1 - flux])
    one = np.zeros(is_a.size, dtype=np.int64)
    shares, number = lineage_shares(one, fates, start, sure, 1, 10)
    assert shares[0, 0] == pytest.approx(chance, abs=0.02)
    assert shares.sum() == pytest.approx(1)
    assert number[0] == pytest.approx(sure.sum())
    assert np.isnan(lineage_shares(one[:9], fates[:9], start, np.ones(9), 1, 10)[0]).all()


def test_rotation_is_the_angle_between_conditions_and_blind_to_them():
    angle = np.radians([0, 2, -2, 30, 32, 28])
    mean = np.zeros((6, 1, 4))
    mean[:, 0, 1], mean[:, 0, 3] = np.cos(angle), np.sin(angle)
    turned = mean @ np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    condition = np.array([0, 0, 0, 1, 1, 1])
    for directions in (mean, turned, 3 * mean):
        found = rotations(directions, condition)[:, 0]
        assert found[3:].mean() - found[:3].mean() == pytest.approx(30, abs=1e-6)
    np.testing.assert_allclose(rotations(mean, 1 - condition), -rotations(mean, condition))


# -------------------------------------------------------------------------------------------------------- cells
def planted(shift: float = 0.2, n: int = 4, n_cells: int = 200, seed: int = 0, sd: float = 0.1) -> tuple:
    """Return cells of samples that go to A by a known chance, half of them undecided, and their design."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(n_cells // 2, 2 * n_cells, 2 * n)
    sample = np.repeat(np.arange(2 * n), sizes)
    condition = (np.arange(2 * n) >= n).astype(int)
    odds = np.log(np.array([0.5, 0.5 + shift]) / (0.5 - np.array([0, shift])))[condition] + sd * rng.normal(size=2 * n)
    is_a = rng.random(sample.size) < (1 / (1 + np.exp(-odds)))[sample]
    time = rng.uniform(size=sample.size)
    sure = np.where(time < 0.5, 0.5, 0.98)
    fate = np.where(is_a, sure, 1 - sure)
    cluster = np.where(time < 0.5, 0, np.where(is_a, 1, 2))
    velocity = np.column_stack([np.ones_like(time), np.where(is_a, 1.0, -1.0) * (time > 0.5)])
    velocity += 0.1 * rng.normal(size=velocity.shape)
    level = 0.05 * rng.normal(size=2 * n)[sample]
    genes = np.column_stack([3 * time, np.full(time.size, 2.0), (1 + condition[sample]) * time]) + level[:, None]
    genes += 0.2 * rng.normal(size=genes.shape)
    cells = MeasuredCells(
        fates=np.column_stack([fate, 1 - fate]),
        lineages=["A", "B"],
        cluster=cluster,
        clusters=["start", "A cells", "B cells"],
        time=time,
        velocity=velocity,
        expression=genes,
        genes=["up", "flat", "steeper"],
    )
    names = np.array([f"s{i}" for i in range(2 * n)])
    design = Design.of(
        pd.Series(pd.Categorical(np.array(["ctrl", "stim"])[condition][sample]), name="condition"),
        pd.Series(pd.Categorical(names[sample]), name="sample"),
    )
    return cells, design


def row(table: pd.DataFrame, **of: str) -> pd.Series:
    found = table[np.all([table[name] == value for name, value in of.items()], axis=0)]
    assert len(found) == 1
    return found.iloc[0]


def test_a_planted_shift_is_found_where_it_is():
    cells, design = planted()
    found = compare(cells, design)
    lineage = row(found.shares, measure="lineage share", lineage="A")
    assert lineage["difference"] == pytest.approx(0.2, abs=0.05)
    assert lineage["low"] < lineage["difference"] < lineage["high"]
    assert lineage["q"] < 0.05
    assert row(found.fates, cluster="start", lineage="A")["q"] > 0.05
    steeper = row(found.genes, measure="rise", lineage="A", gene="steeper")
    assert steeper["difference"] == pytest.approx(1.0, abs=0.15)
    assert steeper["q"] < 0.05
    assert row(found.genes, measure="expression", lineage="B", gene="flat")["q"] > 0.05
    assert not (found.velocity["q"] < 0.05).any()
    true = found.samples.query("measure == 'cluster share' and cluster == 'A cells'").set_index("sample")["value"]
    share = pd.Series(cells.cluster == 1).groupby(design.samples[design.sample]).mean()
    np.testing.assert_allclose(true.loc[share.index], share)
    assert found.found["measure"].iloc[:2].tolist() == ["lineage share"] * 2
    assert (found.found["q_all"].iloc[2:] <= 0.05).all()
    own = found.table[~(found.table["measure"].isin(["fate", "lineage share"]) & (found.table["lineage"] == "B"))]
    np.testing.assert_allclose(own["q_all"], stats.false_discovery_control(own["p"]))
    for name, part in own.groupby("measure"):
        np.testing.assert_allclose(part["q"], stats.false_discovery_control(part["p"]), err_msg=name)
    shares = found.shares[found.shares["measure"] == "lineage share"]
    assert shares[["q", "q_all"]].nunique().tolist() == [1, 1]
    two_of_three = replace(cells, fates=0.8 * cells.fates)  # no mirrors, so that both count
    alike = compare(two_of_three, design).fates
    np.testing.assert_allclose(alike["q"], stats.false_discovery_control(alike["p"]))
    assert any("stim differs from ctrl in" in line for line in found.summary())


def test_a_difference_in_velocity_is_found_by_the_fields_of_the_samples():
    cells, design = planted(shift=0.0, n=3)
    fast = 1 + 0.5 * design.condition + 0.05 * np.random.default_rng(0).normal(size=6)
    turned = cells.velocity @ np.array([[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]])
    fields = np.stack([s * (turned if c else cells.velocity) for s, c in zip(fast, design.condition, strict=True)])
    fields += 0.02 * np.random.default_rng(1).normal(size=(6, 1, 2))
    known = {name: getattr(cells, name) for name in ("fates", "lineages", "cluster", "clusters", "time")}
    found = compare(MeasuredCells(**known, of_sample=fields), design)
    speed, turn = (row(found.velocity, measure=name, cluster="start") for name in ("speed", "rotation"))
    assert speed["difference"] / speed["reference_mean"] == pytest.approx(0.5, abs=0.1)
    assert turn["difference"] == pytest.approx(np.degrees(0.3), abs=3)
    assert max(speed["q"], turn["q"]) < 0.05
    np.testing.assert_allclose(found.fields[1], fields[3:].mean(axis=0))


def test_samples_hold_the_level_where_cells_do_not():
    """Without a difference, tests of cells are wrong for most measures; those of samples in one of twenty."""
    p, of_cells = [], []
    for seed in range(40):
        cells, design = planted(shift=0.0, n=3, n_cells=150, seed=seed, sd=0.4)
        found = compare(replace(cells, expression=None), design)
        p.append(row(found.shares, measure="lineage share", lineage="A")["p"])
        treated, late = design.cells_of(1), cells.time > 0.5
        of_cells.append(stats.mannwhitneyu(*(cells.fates[late & here, 0] for here in (treated, ~treated))).pvalue)
    assert np.mean(np.array(p) < 0.05) <= 0.1
    assert np.mean(np.array(of_cells) < 0.05) > 0.25


def test_one_sample_a_side_has_no_p_and_says_why():
    cells, design = planted(n=1)
    found = compare(cells, design)
    assert found.table["p"].isna().all()
    assert found.table["low"].isna().all()
    assert row(found.shares, measure="lineage share", lineage="A")["difference"] == pytest.approx(0.2, abs=0.12)
    assert "a test needs two a side; there are 1 and 1" in repr(found)
    pl.condition_fates(found, show=False)
    plt.close("all")


def test_the_smallest_p_that_the_design_can_give_is_said():
    cells, design = planted(n=3)
    assert "permuting the labels of so few samples could give no p-value below 0.1" in repr(compare(cells, design))
    found = compare(cells, design, ComparisonOptions(test="permutation"))
    assert "whose smallest p-value is 0.1" in repr(found)
    assert found.table["p"].min() >= 0.1
    assert "permutation of the samples&#x27; labels" in found._repr_html_()


def test_what_is_missing_of_lineages_is_said():
    cells, design = planted(n=2)
    one = replace(cells, fates=np.ones((cells.time.size, 1)), lineages=["A"])
    assert "There is one lineage" in repr(compare(one, design))
    undecided = np.where((design.sample == 0)[:, None], 0.5, cells.fates)
    found = compare(replace(cells, fates=undecided), design)
    assert "Fewer than 10 committed cells, hence no shares of lineages: s0." in repr(found)
    assert row(found.shares, measure="lineage share", lineage="A")["n_reference"] == 1


def test_each_time_point_is_compared_by_itself():
    cells, design = planted(shift=0.3)
    points = np.array([1.0, 2.0])
    late = np.random.default_rng(0).random(cells.time.size) < 0.5
    time = np.where(late, 2.0, 1.0)
    fates = np.where(late[:, None], cells.fates, 0.5)
    known = {name: getattr(cells, name) for name in ("lineages", "cluster", "clusters", "expression", "genes")}
    found = compare(MeasuredCells(fates=fates, time=time, points=points, **known), design)
    assert row(found.shares, measure="lineage share", lineage="A", time="2")["difference"] == pytest.approx(
        0.3, abs=0.1
    )
    assert not ((found.shares["measure"] == "lineage share") & (found.shares["time"] == "1")).any()  # none has chosen
    assert set(found.genes["measure"]) == {"expression"}
    assert row(found.genes, gene="up", lineage="A", time="2")["mean"] == pytest.approx(1.6, abs=0.3)


# -------------------------------------------------------------------------------------------------------- design
def table_of(**columns: list) -> dict[str, pd.Series]:
    return {name: pd.Series(pd.Categorical(values), name=name) for name, values in columns.items()}


GOOD = {"condition": ["b", "b", "a", "a"], "sample": ["1", "2", "3", "4"]}


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"condition": ["a", None, "b", "b"]}, {}, ValueError, r"a value for each cell in `adata.obs\['condition'\]`"),
        ({"sample": ["1", None, "3", "4"]}, {}, ValueError, r"for each cell in `adata.obs\['sample'\]`.*`1` cells"),
        ({"condition": ["a"] * 4}, {}, ValueError, r"two conditions in .*found only \['a'\]"),
        ({"sample": ["1", "2", "2", "4"]}, {}, ValueError, "'2' in more than one condition, .*pair_key"),
        ({}, {"reference": "c"}, KeyError, r"`reference` to be a condition .*\['a', 'b'\], found 'c'"),
        ({}, {"min_cells": 2}, ValueError, "at least `2` cells of each sample, found `4` with fewer: '"),
        ({"pair": ["x", "x", "x", "y"]}, {}, ValueError, "at most one sample of each condition .*two for 'x'"),
        ({"sample": ["1", "1", "3", "4"], "pair": ["x", "y", "x", "y"]}, {}, ValueError, "'1' in more than one pair"),
        ({"pair": ["x", None, "x", "y"]}, {}, ValueError, r"each cell in `adata.obs\['pair'\]`"),
    ],
)
def test_designs_that_are_none_are_refused(columns, options, error, message):
    with pytest.raises(error, match=message):
        Design.of(**table_of(**GOOD | columns), **options)


def test_a_design_has_its_reference_first():
    design = Design.of(**table_of(**GOOD), reference="b")
    assert design.conditions.tolist() == ["b", "a"]
    assert design.to_frame()["condition"].to_dict() == {"1": "b", "2": "b", "3": "a", "4": "a"}
    assert design.cells_of(1).tolist() == [False, False, True, True]


# -------------------------------------------------------------------------------------------------------- the kernel
@pytest.fixture
def replicated(computed: OTVelocityKernel) -> SimpleNamespace:
    """A kernel whose cells are of six samples, and fates by their side."""
    adata = computed.adata
    rng = np.random.default_rng(0)
    sample = rng.permutation(np.arange(adata.n_obs) % 6)
    adata.obs["sample"] = pd.Categorical(np.array(list("uvwxyz"))[sample])
    adata.obs["condition"] = pd.Categorical(np.where(sample < 3, "old", "young"), categories=["young", "old"])
    fates = pd.DataFrame({side: adata.obs["clusters"] == side for side in ("left", "right")}).astype(float)
    fates[adata.obs["clusters"] == "stem"] = 0.5
    return SimpleNamespace(kernel=computed, adata=adata, fates=fates)


def test_the_kernel_is_compared_and_writes_nothing_unless_asked(replicated, tmp_path):
    keys = set(replicated.adata.uns)
    found = compare_conditions(replicated.kernel, "condition", "sample", fates=replicated.fates, genes=["gene_0"])
    assert set(replicated.adata.uns) == keys
    assert found.reference == "young"
    assert all(len(part) for part in (found.fates, found.shares, found.velocity, found.genes))
    assert found.samples.query("measure == 'speed'")["sample"].nunique() == 6
    fewer = replicated.fates[::2]  # cells without a row have no fates
    compare_conditions(
        replicated.kernel, "condition", "sample", fates=fewer, min_cells=5, reference="old", key_added="conditions"
    )
    replicated.adata.write_h5ad(tmp_path / "cells.h5ad")
    written = ad.read_h5ad(tmp_path / "cells.h5ad").uns["conditions"]
    assert set(written["table"]["reference"]) == {"old"}
    assert written["params"]["sample_key"] == "sample"
    replicated.adata.obsm["lineages_fwd"] = replicated.fates.to_numpy()
    same = compare_conditions(replicated.kernel, "condition", "sample")
    pd.testing.assert_series_equal(same.shares["difference"], found.shares["difference"])


def test_each_sample_may_have_a_field(replicated):
    replicated.kernel.fit_field(hidden=(8,), n_steps=5, show_progress_bar=False)
    found = compare_conditions(
        replicated.kernel,
        *("condition", "sample"),
        fates=replicated.fates,
        separate_fields=True,
        n_jobs=1,
        show_progress_bar=False,
    )
    assert found.fields.shape == (2, *replicated.kernel.cells.x.shape)
    assert np.isfinite(found.velocity["difference"]).all()
    replicated.kernel.compute_transition_matrix()
    panels = pl.condition_velocity(replicated.kernel, found, "umap", show=False)
    assert [panel.get_title("left") for panel in panels] == ["young", "old", "old less young"]
    plt.close("all")


def test_a_series_is_compared_at_each_of_its_time_points(replicated):
    adata = replicated.adata
    rng = np.random.default_rng(0)
    drug = rng.random(adata.n_obs) < 0.2 + 0.6 * replicated.fates["left"]  # more of those that go to the left
    adata.obs["drug"] = np.where(drug, "yes", "no")
    adata.obs["dish"] = adata.obs["drug"] + rng.integers(2, size=adata.n_obs).astype(str)
    sk = OTTimeSeriesKernel(adata, time_key="stage").compute_velocity(show_progress_bar=False)
    sk.fit_field(hidden=(8,), n_steps=5, show_progress_bar=False)
    found = compare_conditions(sk, "drug", "dish", fates=replicated.fates, min_cells=5)
    assert set(found.velocity["time"]) == {"0", "1", "2", "3"}
    late = row(found.shares, measure="lineage share", lineage="left", time="3")
    assert late["difference"] == pytest.approx(0.6, abs=0.2)
    with pytest.raises(ValueError, match="a pseudotime for `separate_fields`, found time points"):
        compare_conditions(sk, "drug", "dish", fates=replicated.fates, separate_fields=True)


def test_inputs_at_fault_are_named_before_work_begins(replicated, monkeypatch):
    monkeypatch.setattr(OTVelocityKernel, "velocity", property(lambda self: pytest.fail("work began")))
    vk, fates = replicated.kernel, replicated.fates

    def refused(error, message, condition="condition", sample="sample", **options):
        with pytest.raises(error, match=message):
            compare_conditions(vk, condition, sample, **{"fates": fates, **options})

    refused(KeyError, r"adata.obs\['drug'\]", condition="drug")
    refused(KeyError, r"adata.obs\['mouse'\]", sample="mouse")
    refused(KeyError, r"adata.obs\['donor'\]", pair_key="donor")
    refused(KeyError, "lineages_fwd.*compute_fate_probabilities", fates=None)
    refused(KeyError, "genes of `adata.var_names`", genes=["nobody"])
    refused(KeyError, r"adata.obs\['types'\]", cluster_key="types")
    refused(ValueError, "in more than one condition", sample="clusters")
    refused(ValueError, "at least `50` cells of each sample", min_cells=50)
    refused(ValueError, "`test` to be one of", test="wilcoxon")
    refused(ValueError, "`level` to be in", level=1.0)
    refused(ValueError, "`n_permutations` to be at least", n_permutations=10)
    refused(TypeError, "`separate_fields` to be `True` or `False`", separate_fields="no")
    with pytest.raises(RuntimeError, match="a forward kernel"):
        compare_conditions(~vk, "condition", "sample", fates=fates)
    with pytest.raises(RuntimeError, match="fit_field"):
        compare_conditions(OTVelocityKernel(replicated.adata), "condition", "sample", fates=fates)
    with pytest.raises(TypeError, match="a kernel of this package, found `AnnData`"):
        compare_conditions(replicated.adata, "condition", "sample")


def test_pictures(replicated):
    vk = replicated.kernel
    found = compare_conditions(vk, "condition", "sample", fates=replicated.fates, genes=["gene_0", "gene_1"])
    points, gaps = pl.condition_fates(found, "fates", rows=["stem"], show=False)
    assert [text.get_text() for text in points.get_yticklabels()] == ["stem to left", "stem to right"]
    assert gaps.get_xlabel() == "Difference from young"
    assert len(points.collections) == 4
    trends = pl.condition_trends(found, ["gene_1"], show=False)
    assert [panel.get_title("left") for panel in trends] == ["gene_1, left", "gene_1, right"]
    assert len(trends[0].lines) == 8
    left, right, less = pl.condition_velocity(vk, found, "umap", show=False)
    assert left.get_xlim() == right.get_xlim()
    with pytest.raises(KeyError, match="clusters"):
        pl.condition_fates(found, "fates", rows=["nobody"], show=False)
    with pytest.raises(ValueError, match="`of` to be one of"):
        pl.condition_fates(found, "genes", show=False)
    with pytest.raises(TypeError, match="result of `compare_conditions`"):
        pl.condition_trends(replicated.fates, show=False)
    without = compare_conditions(vk, "condition", "sample", fates=replicated.fates)
    with pytest.raises(ValueError, match="name `genes`"):
        pl.condition_trends(without, show=False)
    plt.close("all")


# ---------------------------------------------------------------------------------------------------- simulated cells
def test_simulated_conditions_have_the_shift_that_was_asked_for(tmp_path):
    adata = datasets.two_conditions(100, (3, 4), shift=0.3, sample_sd=0.0, preprocess=False)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    known = adata.uns["two_conditions"]["samples"]
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "cells.h5ad").uns["two_conditions"]["samples"], known)
    assert known["true_share"].round(6).unique().tolist() == [0.5, 0.8]
    assert known["cells"].nunique() > 4
    assert (adata.obs["sample"].value_counts().loc[known.index] == known["cells"]).all()
    share = (adata.obs["true_fate"] == "Fate A").groupby(adata.obs["condition"], observed=True).mean()
    assert share.loc["treated"] - share.loc["control"] == pytest.approx(0.3, abs=0.1)
    late = adata[adata.obs["clusters"] == "Fate A"].obs
    assert (late["true_fate"] == "Fate A").all()
    counts = np.asarray(adata.layers["counts"])
    np.testing.assert_array_equal(counts, counts.round())
    rate = np.log((counts / counts.sum(axis=1, keepdims=True)).mean(axis=0) + 1e-9)
    assert np.isfinite(rate).all()
    treated = (adata.obs["condition"] == "treated").to_numpy()
    shares = counts / counts.sum(axis=1, keepdims=True)
    change = np.log(shares[treated].mean(axis=0) / shares[~treated].mean(axis=0))
    unrelated = (adata.var["role"] == "unrelated").to_numpy()
    responds = adata.var["responds"].to_numpy()
    assert change[responds].min() > change[unrelated & ~responds].max()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_samples": (1, 2, 3)}, ValueError, "of each of two conditions, found `3`"),
        ({"n_samples": 0}, ValueError, "`n_samples` to be at least `1`"),
        ({"shift": 0.6}, ValueError, r"`share \+ shift` to be in \(0, 1\)"),
        ({"n_cells": 10}, ValueError, "`n_cells` to be at least"),
        ({"sample_sd": -1.0}, ValueError, "`sample_sd` to be in"),
        ({"gene_sd": "much"}, TypeError, "`gene_sd` to be a number"),
    ],
)
def test_simulations_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        datasets.two_conditions(**{"preprocess": False, **options})
