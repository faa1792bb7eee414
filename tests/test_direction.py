"""Tests of direction: courses are found; clouds, types and shuffled time are not, though each has a pseudotime."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.stats import ortho_group, spearmanr

from cellrank_velot import OTVelocityKernel, datasets, pp
from cellrank_velot.direction import DirectionTest, Verdict, direction_test, flip_test, root_check
from cellrank_velot.direction.clouds import _cloud, compare_continuity, compare_length
from cellrank_velot.direction.halves import Border, explain_other_half
from cellrank_velot.direction.verdict import _borders
from cellrank_velot.direction.walk import nearest, rooted_time, slow_modes

SMALL = {"window_options": {"min_window_size": 10}}
QUICK = {"flip": False, "n_draws": 6}


def counted(latent: np.ndarray, seed: int, root: int) -> AnnData:
    """Return latent positions seen as negative-binomial counts, with a diffusion pseudotime as a user computes it."""
    rng = np.random.default_rng(seed)
    n_cells, n_latent = latent.shape
    rate = np.exp(rng.normal(0, 1, 400) + latent @ (0.5 * rng.normal(size=(n_latent, 400))))
    depth = 3000 * np.exp(0.3 * rng.normal(size=(n_cells, 1)))
    counts = rng.poisson(depth * rate / rate.sum(axis=1, keepdims=True) * rng.gamma(5, 0.2, rate.shape))
    adata = AnnData(counts.astype(np.float32))
    adata.layers["counts"] = adata.X.copy()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=20, random_state=seed)
    sc.pp.neighbors(adata, n_neighbors=20, random_state=seed)
    sc.tl.diffmap(adata)
    pp.set_pseudotime(adata, [root])
    return adata


def course(seed: int, n_cells: int = 500) -> AnnData:
    """Return cells along an arc, from its beginning."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2.5, n_cells))
    latent = np.column_stack([np.cos(angle), np.sin(angle), np.zeros((n_cells, 6))]) * 1.5
    adata = counted(latent + 0.15 * rng.normal(size=latent.shape), seed, root=0)
    adata.obs["clusters"] = pd.Categorical(np.array(["early", "mid", "late"])[np.arange(n_cells) * 3 // n_cells])
    return adata


def cloud(seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    return counted(0.4 * rng.normal(size=(400, 8)) * (seed % 2), seed, root=seed)


def types(seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    latent = np.eye(8)[rng.integers(3, size=400)] + 0.2 * rng.normal(size=(400, 8)) * (seed % 2)
    return counted(latent, seed, root=seed)


def shuffled(seed: int) -> AnnData:
    adata = course(seed)
    adata.obs["dpt_pseudotime"] = np.random.default_rng(seed).permutation(adata.obs["dpt_pseudotime"].to_numpy())
    return adata


def verdict(adata: AnnData, **options) -> DirectionTest:
    return OTVelocityKernel(adata).test_direction(**{**QUICK, **options})


# ------------------------------------------------------------------------------------------------------------- verdict
@pytest.mark.parametrize("seed", range(3))
def test_a_course_in_counts_is_found(seed):
    test = verdict(course(seed), cluster_key="clusters")
    assert test.found
    assert (test.null, test.share) == ("genes", 1.0)
    frame = test.border_frame()
    assert {"early -> mid", "mid -> late"} <= set(frame.index[frame["p_adjusted"] < 0.05])
    assert len(frame) == len({frozenset(name.split(" -> ")) for name in frame.index}), "each border once"


@pytest.mark.parametrize("without", [cloud, types, shuffled])
def test_what_has_no_direction_is_not_found(without):
    assert not [seed for seed in range(6) if verdict(without(seed), random_state=seed).found]


def test_positions_alone_are_enough_where_there_are_no_genes():
    adata = datasets.bifurcation(400)
    test = direction_test(adata.obsm["X_pca"], adata.obs["dpt_pseudotime"], flip=False)
    assert test.found
    assert test.null == "positions"
    assert "No expression of genes was at hand" in str(test)
    assert np.isnan(test.explained).all()
    for seed in range(4):
        adata = datasets.gaussian_blob(300, 6, random_state=seed)
        sc.tl.diffmap(adata)
        pp.set_pseudotime(adata, [seed])
        assert not direction_test(adata.obsm["X_pca"], adata.obs["dpt_pseudotime"], flip=False).found


def test_reversed_time_gets_the_same_verdict():
    adata = course(0)
    given = verdict(adata)
    adata.obs["dpt_pseudotime"] = 1 - adata.obs["dpt_pseudotime"]
    test = verdict(adata, cluster_key="clusters")
    assert test.found
    assert test.p_value == pytest.approx(given.p_value)
    assert {"mid -> early", "late -> mid"} <= set(test.border_frame().index)
    assert "No such test tells which end is the beginning" in str(test)


def test_parts_are_tested_by_themselves():
    adata = course(1)
    rng = np.random.default_rng(0)
    x = np.vstack([adata.obsm["X_pca"], 100 + rng.normal(size=(150, 20)), 300 + rng.normal(size=(30, 20))])
    time = np.concatenate([adata.obs["dpt_pseudotime"], rng.uniform(size=180)])
    test = direction_test(x, time, flip=False)
    assert sorted(test.n_cells) == [150, 500]
    assert test.n_left_out == 30
    assert test.share == pytest.approx(500 / 680)
    assert str(test).startswith("Direction: yes in 74% of the cells")


def test_units_rotation_and_log_expression_do_not_matter():
    adata = course(2)
    x, time, genes = adata.obsm["X_pca"], adata.obs["dpt_pseudotime"].to_numpy(), adata.layers["counts"]
    one = direction_test(x, time, genes, **QUICK)
    turned = 3 + 10 * x @ ortho_group.rvs(x.shape[1], random_state=0)
    other = direction_test(turned, 5 + 7 * time, adata.X, counts=False, **QUICK)
    assert one.found
    assert other.found
    np.testing.assert_allclose(one.agreement, other.agreement, rtol=1e-3)
    np.testing.assert_allclose(one.course, other.course, rtol=0.1)


def test_the_seed_decides():
    adata = course(0, 200)
    data = adata.obsm["X_pca"], adata.obs["dpt_pseudotime"], adata.layers["counts"]
    one, same, other = (direction_test(*data, max_cells=150, random_state=seed, **QUICK) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.p_evidence, same.p_evidence)
    assert (one.p_evidence != other.p_evidence).any()
    assert one.n_cells.sum() + one.n_left_out == 150


def test_the_verdict_names_what_speaks_against():
    test = verdict(shuffled(0), flip=True)
    text = str(test)
    assert text.startswith("Direction: not shown, p = 1.")
    assert "against: the time does not follow the cells" in text
    assert "in the others, noise across the course outweighs the flow" in text
    frame = test.to_frame()
    assert not frame.loc[frame["evidence"] == "time", "for"].any()
    assert frame.loc[frame["evidence"] == "course", "for"].all()
    with pytest.raises(AttributeError):
        test.level = 1.0


def test_few_cells_are_not_tested():
    test = direction_test(np.random.default_rng(0).normal(size=(40, 3)), np.arange(40.0), flip=False)
    assert (test.found, test.p_value, test.share) == (False, 1.0, 0.0)
    assert str(test).startswith("Direction: not tested")


def test_pancreas_has_a_direction(data_dir):
    adata = datasets.pancreas(data_dir / "pancreas_739.h5ad")
    pp.prepare(adata, root_cluster="Ductal")
    kernel = OTVelocityKernel(adata)
    test = kernel.test_direction("clusters")
    assert test.found
    assert test.reversed_share > 0.5
    borders = test.border_frame()
    assert (borders.loc[["Ngn3 low EP -> Ngn3 high EP", "Ngn3 high EP -> Pre-endocrine"], "p_adjusted"] < 0.05).all()
    data = kernel.cells.x, kernel.cells.time, adata.obsp["connectivities"], adata.obs["clusters"]
    given = flip_test(*data)
    mixed = flip_test(data[0], np.random.default_rng(0).permutation(data[1]), *data[2:])
    assert given.mean > 0.2 > 0 > mixed.mean
    assert root_check(data[1], labels=data[3], root="Ductal").root is Verdict.SUPPORTED


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"time": np.zeros(240)}, ValueError, "found a constant"),
        ({"time": np.full(240, np.nan)}, ValueError, "found NaN"),
        ({"x": np.zeros((3, 2))}, ValueError, "finite `x` of shape"),
        ({"expression": np.zeros((3, 50))}, ValueError, "`expression` of shape"),
        ({"expression": np.full((240, 50), np.nan)}, ValueError, "finite `expression`"),
        ({"labels": ["a"]}, ValueError, "`labels` of shape"),
        ({"max_cells": 10}, ValueError, "`max_cells`"),
        ({"n_draws": 2}, ValueError, "at least `3`"),
        ({"level": 1}, ValueError, r"`level` to be in \(0, 1\)"),
        ({"n_splits": "2"}, TypeError, "`n_splits`"),
    ],
)
def test_bad_input_is_refused(planted, change, error, match):
    good = {"x": planted.x, "time": planted.time, "flip": False}
    with pytest.raises(error, match=match):
        direction_test(**{**good, **change})


# ------------------------------------------------------------------------------------------------------ its parts
def test_a_cloud_has_the_mean_and_covariance_of_the_cells_and_nothing_else():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 500)
    x = 5 + np.column_stack([np.cos(angle), 3 * np.sin(angle), 0.1 * rng.normal(size=500)])
    drawn = _cloud(x, rng)
    np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0))
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), atol=1e-10)
    holes = [np.linalg.norm((cells - 5)[:, :2] / [1, 3], axis=1) < 0.5 for cells in (x, drawn)]
    assert holes[0].mean() == 0
    assert holes[1].mean() > 0.02
    few = _cloud(x[:5], rng)  # fewer cells than a covariance needs
    assert few.shape == (5, 3)
    assert np.isfinite(few).all()


def test_only_a_course_is_both_long_and_continuous():
    rng = np.random.default_rng(0)
    noise = 0.15 * rng.normal(size=(400, 6))
    angle = rng.uniform(0, 3, 400)
    arc = np.column_stack([np.cos(angle), np.sin(angle), np.zeros((400, 4))]) + noise
    kinds = np.eye(6)[rng.integers(3, size=400)] + 2 * noise
    found = [
        [compare(x, 8, np.random.default_rng(1)).p_value < 0.05 for compare in (compare_length, compare_continuity)]
        for x in (arc, 7 * noise, kinds)
    ]
    assert found[0] == [True, True]
    assert found[1][0] is False
    assert found[2] == [True, False]


def test_independent_halves_explain_nothing_and_halves_of_a_course_do():
    z = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        depth = np.exp(rng.normal(size=(200, 1)))  # cells of low depth are noisy in both halves
        own, other = depth * rng.normal(size=(200, 5)), depth * rng.normal(size=(200, 5))
        z.append(explain_other_half(own, other, np.arange(3), [], rng).z)
    assert abs(np.mean(z)) < 0.7
    assert np.std(z) < 1.5
    rng = np.random.default_rng(0)
    way = np.linspace(0, 5, 200)[:, None]
    own, other = np.hstack([way, rng.normal(size=(200, 2))]), np.hstack([-way, rng.normal(size=(200, 2))])
    names = np.where(way[:, 0] < 2.5, "first", "second")
    (border,) = _borders(nearest(own), names)
    found = explain_other_half(own, other, np.arange(3), [border, Border("b", "a", border.to_b, border.from_a)], rng)
    assert found.z > 4
    assert found.flow[0] > 0.5
    np.testing.assert_allclose(found.flow[0], -found.flow[1])


def test_the_time_of_the_walk_is_the_order_along_a_line():
    x = np.column_stack([np.linspace(0, 1, 120), np.zeros(120)])
    time = rooted_time(slow_modes(nearest(x)), np.arange(2))
    assert spearmanr(time, x[:, 0]).statistic > 0.99
    assert (time.min(), time.max()) == (0.0, 1.0)


def test_borders_hold_together_by_holms_method():
    test = DirectionTest(
        *(np.array([100]), 0, *np.ones((4, 1)), np.zeros((1, 3))),
        borders=(("a", "b"), ("a", "c"), ("b", "c")), flow=np.array([0.5, -0.2, 0.1]),
        p_border=np.array([0.01, 0.03, 0.02]), reversed_share=np.nan, level=0.05,
    )  # fmt: skip
    np.testing.assert_allclose(test.p_border_adjusted, [0.03, 0.04, 0.04])
    assert test.border_frame().index.tolist() == ["a -> b", "c -> a", "b -> c"]


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
    nowhere = flip_test(np.ones_like(planted.x), planted.time, planted.graph, **SMALL)
    assert np.isnan([nowhere.mean, nowhere.reversed_share]).all()
    assert str(nowhere) == "Reversed time: no cell has a velocity."
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


@pytest.mark.parametrize("far", [0.0, 1e-70, 1.0, 1e60])
def test_neighbours_of_cells_at_one_place_have_weights(far):
    x = np.zeros((80, 3))
    x[:5, 0] = far * np.arange(1, 6)
    graph = nearest(x)
    assert np.isfinite(graph.data).all()
    assert (graph.sum(axis=1)[10:] > 0).all()
