"""Tests of direction: planted flows are found, shuffled time is not, and the arithmetic agrees with plain loops."""

import logging

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ortho_group, spearmanr

from cellrank_velot import datasets, pp
from cellrank_velot.direction import PermutationTest, Verdict, flip_test, permutation_test, root_check
from cellrank_velot.direction.permutation import _max_p_values, _measure, _p_values

SMALL = {"window_options": {"min_window_size": 10}}


@pytest.fixture(scope="module")
def tested(planted) -> PermutationTest:
    labels = np.array(["stem", "left", "right"])[planted.labels]
    return permutation_test(planted.x, planted.time, planted.graph, labels, n_permutations=59, **SMALL)


# ---------------------------------------------------------------------------------------------------- permutations
def test_a_planted_flow_is_found(tested):
    assert tested.p_value == pytest.approx(1 / 60)
    assert (tested.observed > tested.null.max(axis=0)).all()


def test_each_border_is_crossed_one_way(tested):
    frame = tested.to_frame()
    names = ("left", "right", "stem")
    assert tested.edges == tuple((a, b) for a in names for b in names if a != b)
    assert frame.loc[["left -> right", "right -> left"], "p_adjusted"].min() > 0.05
    for fate in ("left", "right"):
        assert frame.loc[f"stem -> {fate}", "p_value"] == pytest.approx(1 / 60)
        assert frame.loc[f"stem -> {fate}", "p_adjusted"] <= 0.05
        assert frame.loc[f"{fate} -> stem", "p_value"] == 1
        assert frame.loc[f"stem -> {fate}", "observed"] == pytest.approx(-frame.loc[f"{fate} -> stem", "observed"])


@pytest.mark.parametrize("name", ["blob", "shuffled bifurcation"])
def test_without_direction_p_is_rarely_small(name):
    if name == "shuffled bifurcation":
        adata = datasets.bifurcation(300)
    p_values = []
    for seed in range(7):
        if name == "blob":
            adata = datasets.gaussian_blob(200, 5, random_state=seed)
            time = adata.obs["pseudotime"].to_numpy()
        else:
            time = np.random.default_rng(seed).permutation(adata.obs["dpt_pseudotime"].to_numpy())
        result = permutation_test(
            adata.obsm["X_pca"], time, adata.obsp["connectivities"], n_permutations=39, random_state=seed
        )
        p_values.append(result.p_value)
    assert sum(p > 0.05 for p in p_values) >= 6


def test_pancreas_has_a_direction(data_dir):
    adata = datasets.pancreas(data_dir / "pancreas_739.h5ad")
    pp.prepare(adata, root_cluster="Ductal")
    data = adata.obsm["X_pca"], adata.obs["dpt_pseudotime"], adata.obsp["connectivities"], adata.obs["clusters"]
    edges = [("Ngn3 high EP", "Pre-endocrine"), ("Pre-endocrine", "Beta"), ("Beta", "Pre-endocrine")]
    result = permutation_test(*data, edges, n_permutations=39)
    assert result.p_value == pytest.approx(1 / 40)
    np.testing.assert_allclose(result.p_border, [1 / 40, 1 / 40, 1])
    given = flip_test(*data)
    shuffled = flip_test(data[0], np.random.default_rng(0).permutation(data[1]), *data[2:])
    assert given.mean > 0.2 > 0 > shuffled.mean
    assert root_check(data[1], labels=data[3], root="Ductal").root is Verdict.SUPPORTED


def test_statistics_agree_with_plain_loops(planted):
    rng = np.random.default_rng(0)
    labels = np.array(["stem", "left", "right"])[planted.labels]
    velocity = planted.velocity + rng.normal(size=planted.x.shape)
    velocity[:7] = np.nan
    geometry = _measure(planted.x + 100, planted.graph, labels, [("stem", "left")])
    coherence, ascent, flow = geometry.summarise(velocity, planted.time)

    unit = velocity / np.linalg.norm(velocity, axis=1, keepdims=True)
    agree, up, weight, across = [], [], [], []
    for i, j in zip(*planted.graph.nonzero(), strict=True):
        if i < 7:
            continue
        way = (planted.x[j] - planted.x[i]) / np.linalg.norm(planted.x[j] - planted.x[i])
        later = planted.time[j] - planted.time[i]
        if j >= 7:
            agree.append(unit[i] @ unit[j])
        up.append(unit[i] @ way * later)
        weight.append(abs(later))
        if {labels[i], labels[j]} == {"stem", "left"}:
            across.append(unit[i] @ way * (1 if labels[i] == "stem" else -1))
    assert coherence == pytest.approx(np.mean(agree))
    assert ascent == pytest.approx(np.sum(up) / np.sum(weight))
    assert flow == pytest.approx(np.mean(across))


def test_p_values_count_what_reaches_the_observed():
    null = np.array([[0.0, 5, np.nan], [1, 5, 0], [2, 5, 0]])
    np.testing.assert_allclose(_p_values(np.array([2.0, 5, 1]), null), [2 / 4, 4 / 4, 2 / 4])
    assert np.isnan(_p_values(np.array([np.nan]), null[:, :1])).all()


def test_adjusted_p_values_hold_for_all_borders_together():
    rng = np.random.default_rng(0)
    smallest = [_max_p_values(z[0], z[1:]).min() for z in rng.normal(size=(400, 100, 6))]
    assert np.mean(np.array(smallest) <= 0.05) < 0.09
    single = rng.normal(size=(100, 1))
    np.testing.assert_allclose(_max_p_values(single[0], single[1:]), _p_values(single[0], single[1:]))


def test_rotation_shift_and_scale_do_not_matter(planted):
    turn = ortho_group.rvs(planted.x.shape[1], random_state=0)
    one = permutation_test(planted.x, planted.time, planted.graph, n_permutations=3, **SMALL)
    other = permutation_test(3 + 10 * planted.x @ turn, 5 + 7 * planted.time, planted.graph, n_permutations=3, **SMALL)
    np.testing.assert_allclose(one.observed, other.observed, rtol=0.02)


def test_the_seed_decides_and_the_number_of_jobs_does_not(planted):
    def null(n_jobs: int = 1, random_state: int = 0) -> np.ndarray:
        neighborhoods = planted.labels.astype(np.int64)
        with joblib.parallel_config(backend="threading"):
            return permutation_test(
                planted.x, planted.time, planted.graph, n_permutations=6, neighborhoods=neighborhoods,
                random_state=random_state, n_jobs=n_jobs, **SMALL,
            ).null  # fmt: skip

    np.testing.assert_array_equal(null(), null(n_jobs=2))
    assert (null() != null(random_state=1)).any()


def test_statistics_can_be_asked_for_alone(planted):
    result = permutation_test(planted.x, planted.time, planted.graph, n_permutations=19, statistic="coherence", **SMALL)
    assert result.statistics == ("coherence",)
    assert result.null.shape == (19, 1)
    assert result.p_value == pytest.approx(1 / 20)


def test_a_border_that_does_not_exist_has_no_p_value(planted):
    labels = np.where(planted.time < 0.2, "early", np.where(planted.time > 0.8, "late", "mid"))
    result = permutation_test(
        planted.x,
        planted.time,
        planted.graph,
        labels,
        [("early", "late"), ("early", "mid")],
        n_permutations=19,
        **SMALL,
    )
    np.testing.assert_array_equal(result.n_border == 0, [True, False])
    assert np.isnan(result.p_border[0])
    assert np.isnan(result.p_border_adjusted[0])
    assert result.p_border[1] == pytest.approx(1 / 20)


def test_permutations_are_silent(planted, caplog):
    with caplog.at_level(logging.INFO, logger="cellrank_velot"):
        permutation_test(planted.x, planted.time, planted.graph, n_permutations=1, **SMALL)
        n_once = len(caplog.records)
        caplog.clear()
        permutation_test(planted.x, planted.time, planted.graph, n_permutations=5, **SMALL)
    assert len(caplog.records) == n_once


def test_the_result_is_for_people(tested):
    text = str(tested)
    assert text.startswith("Direction: more than chance, p = 0.0167 of 59 permutations: coherence")
    assert "stem -> left: flow +" in text
    frame = tested.to_frame()
    assert list(frame.index[:2]) == ["coherence", "ascent"]
    assert frame["n_border"].isna().sum() == 2
    with pytest.raises(AttributeError):
        tested.null = None


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"time": np.zeros(240)}, ValueError, "found a constant"),
        ({"time": np.full(240, np.nan)}, ValueError, "found NaN"),
        ({"x": np.zeros((3, 2))}, ValueError, "finite `x` of shape"),
        ({"graph": np.zeros((2, 2))}, ValueError, "`graph` of shape"),
        ({"graph": np.zeros((240, 240))}, ValueError, "graph with edges"),
        ({"n_permutations": 0}, ValueError, "at least `1`"),
        ({"statistic": "speed"}, ValueError, "`statistic` to be one of"),
        ({"edges": [("a", "b")]}, ValueError, "Expected `labels`"),
        ({"labels": ["a"]}, ValueError, "`labels` of shape"),
        ({"labels": ["a"] * 240, "edges": [("a", "z")]}, ValueError, "two of the clusters"),
        ({"window_options": {"size": 9}}, TypeError, r"'window_size'.* in `window_options`, found \['size'\]"),
        ({"velocity_options": {"eps": 9}}, TypeError, r"'epsilon'.* in `velocity_options`, found \['eps'\]"),
        ({"velocity_options": {"epsilon": 0}}, ValueError, "`epsilon`"),
    ],
)
def test_bad_input_is_refused(planted, change, error, match):
    good = {"x": planted.x, "time": planted.time, "graph": planted.graph, "n_permutations": 1}
    with pytest.raises(error, match=match):
        permutation_test(**{**good, **change})


# ------------------------------------------------------------------------------------------------------------ flip
def test_a_flow_reverses_with_time_and_noise_does_not(planted):
    labels = np.array(["stem", "left", "right"])[planted.labels]
    given = flip_test(planted.x, planted.time, planted.graph, labels, **SMALL)
    assert given.mean > 0.6
    assert given.reversed_share > 0.95
    assert (given.to_frame().loc[["stem", "left", "right"], "cosine"] > 0.5).all()
    shuffled = np.random.default_rng(0).permutation(planted.time)
    assert flip_test(planted.x, shuffled, planted.graph, **SMALL).mean < 0
    blob = datasets.gaussian_blob(300, 5)
    data = blob.obsm["X_pca"], blob.obs["pseudotime"], blob.obsp["connectivities"]
    assert flip_test(*data).mean < -0.5


def test_both_directions_of_time_flip_alike(planted):
    one = flip_test(planted.x, planted.time, planted.graph, **SMALL)
    other = flip_test(planted.x, -planted.time, planted.graph, **SMALL)
    np.testing.assert_allclose(one.cosine, other.cosine, atol=1e-6)


def test_the_current_velocity_reverses_by_construction(planted):
    options = {"velocity_options": {"relaxation": 0.0}, "smooth": False, **SMALL}
    shuffled = np.random.default_rng(0).permutation(planted.time)
    assert flip_test(planted.x, shuffled, planted.graph, **options).mean > 0.5


def test_the_flip_is_for_people(planted):
    result = flip_test(planted.x, planted.time, planted.graph, planted.labels, **SMALL)
    assert "the velocity reverses in" in str(result)
    frame = result.to_frame()
    assert list(frame.index) == ["all", "0", "1", "2"]
    assert frame.loc["all", "n"] == frame["n"].iloc[1:].sum()


# ------------------------------------------------------------------------------------------------------ root check
@pytest.mark.parametrize(
    ("kind", "sign"),
    [("experimental_time", 1), ("cytotrace", -1), ("increasing_marker", 1), ("decreasing_marker", -1)],
)
def test_a_reference_supports_or_contradicts(planted, kind, sign):
    rng = np.random.default_rng(0)
    reference = sign * np.exp(planted.time) + 0.2 * rng.normal(size=planted.time.size)
    result = root_check(planted.time, reference, kind)
    assert result.direction is Verdict.SUPPORTED
    assert result.correlation == pytest.approx(sign * spearmanr(planted.time, reference).statistic)
    assert result.interval[0] < result.correlation < result.interval[1]
    assert root_check(-planted.time, reference, kind).direction is Verdict.CONTRADICTED
    assert root_check(planted.time, rng.permutation(reference), kind).direction is Verdict.UNDECIDED


def test_the_interval_covers_the_correlation_of_the_population():
    rng = np.random.default_rng(0)
    rho, covered = 6 / np.pi * np.arcsin(0.6 / 2), 0  # Spearman's of a Gaussian with Pearson's 0.6
    for seed in range(100):
        a, b = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=150).T
        low, high = root_check(a, b, n_bootstrap=200, random_state=seed).interval
        covered += low <= rho <= high
    assert 88 <= covered <= 100


def test_the_earliest_cells_tell_the_root(planted):
    labels = pd.Categorical(np.array(["stem", "left", "right"])[planted.labels])
    early = root_check(planted.time, labels=labels, root="stem")
    assert (early.root, early.root_share) == (Verdict.SUPPORTED, 1.0)
    assert early.direction is Verdict.UNDECIDED
    assert early.root_base == pytest.approx((planted.labels == 0).mean())
    assert root_check(planted.time, labels=labels, root="left").root is Verdict.CONTRADICTED
    assert root_check(-planted.time, labels=labels, root=["left", "right"]).root is Verdict.SUPPORTED
    assert root_check(planted.time, labels=planted.labels, root=0).root is Verdict.SUPPORTED


def test_monotone_transforms_order_and_missing_references_do_not_matter(planted):
    rng = np.random.default_rng(0)
    reference = planted.time + rng.normal(size=planted.time.size)
    one = root_check(planted.time, reference)
    order = rng.permutation(planted.time.size)
    other = root_check(np.exp(planted.time[order]), reference[order] ** 3)
    assert one.correlation == pytest.approx(other.correlation)
    missing = root_check(np.append(planted.time, 0.5), np.append(reference, np.nan))
    assert missing.n_cells == planted.time.size
    assert missing.interval == one.interval


def test_the_root_check_is_for_people(planted):
    labels = np.array(["stem", "left", "right"])[planted.labels]
    result = root_check(planted.time, planted.time, labels=labels, root="stem")
    assert str(result).startswith("Direction supported by experimental time: correlation in the direction expected +1")
    assert "Root supported: 100% of the earliest cells" in str(result)
    assert result.to_frame()["verdict"].tolist() == ["supported", "supported"]
    assert "Direction" not in str(root_check(planted.time, labels=labels, root="stem"))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"reference": None}, ValueError, "found neither"),
        ({"reference": [1.0]}, ValueError, "`reference` of shape"),
        ({"reference": np.ones(20)}, ValueError, "vary in at least 3 cells"),
        ({"reference": np.full(20, np.nan)}, ValueError, "found `0` cells"),
        ({"time": np.ones(20)}, ValueError, "found a constant"),
        ({"kind": "age"}, ValueError, "`kind` to be one of"),
        ({"root": "a"}, ValueError, "Expected `labels`"),
        ({"root": "z", "labels": ["a"] * 20}, ValueError, r"clusters \['a'\], found `\['z'\]`"),
        ({"earliest": 0}, ValueError, r"`earliest` to be in \(0, 1\]"),
        ({"level": 1}, ValueError, r"`level` to be in \(0, 1\)"),
        ({"min_correlation": "big"}, TypeError, "`min_correlation` to be a number"),
    ],
)
def test_bad_references_are_refused(change, error, match):
    with pytest.raises(error, match=match):
        root_check(**{"time": np.arange(20.0), "reference": np.arange(20.0), **change})
