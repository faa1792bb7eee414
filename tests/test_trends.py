"""Trends of genes: planted curves within their bands, an independent solver, tables, and the kernel."""

import numpy as np
import pandas as pd
import pytest
from pygam import LinearGAM, s

from cellrank_velot import OTVelocityKernel, pl
from cellrank_velot.fates import GeneTrends, TrendOptions, fit_trends
from cellrank_velot.fates.trends import fit_smooth


def curves(time: np.ndarray, n_genes: int, seed: int = 0) -> np.ndarray:
    """Return smooth curves of several shapes, ``[n_times, n_genes]``."""
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 3, n_genes) * (1 + np.sin(rng.uniform(0, 6, n_genes) + 3 * time[:, None]))


def planted(n_cells: int = 800, n_genes: int = 60, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return times, expression of genes whose noise grows with their level, and weights from almost none to one."""
    rng = np.random.default_rng(1)
    time = rng.uniform(size=n_cells)
    level = curves(time, n_genes)
    weight = np.clip(np.where(rng.random(n_cells) < 0.5, 0.95, 0.1) + rng.normal(scale=0.05, size=n_cells), 0.01, 1)
    return time, level + noise * np.sqrt(level) * rng.normal(size=level.shape), weight


def test_planted_curves_lie_within_their_bands():
    time, expression, weight = planted()
    found = fit_smooth(time, expression, weight)
    truth = curves(found.time, expression.shape[1])
    inside = (found.low <= truth) & (truth <= found.high)
    assert 0.9 < inside.mean() < 0.99
    assert np.sqrt(np.mean((found.mean - truth) ** 2)) < 0.1
    narrow = fit_smooth(time, expression, weight, TrendOptions(level=0.5))
    np.testing.assert_array_equal(narrow.mean, found.mean)
    assert 0.4 < ((narrow.low <= truth) & (truth <= narrow.high)).mean() < 0.62


def test_a_curve_is_that_of_a_generalised_additive_model():
    time, expression, weight = planted(n_genes=4)
    found = fit_smooth(time, expression, weight)
    for gene in range(4):
        fitted = LinearGAM(s(0, n_splines=12)).gridsearch(
            time[:, None], expression[:, gene], weights=weight, lam=np.logspace(-3, 3, 13), progress=False
        )
        other = fitted.predict(found.time[:, None])
        assert np.abs(other - found.mean[:, gene]).max() < 0.12 * np.ptp(other)


def test_only_cells_of_the_lineage_count():
    time, expression, _ = planted(n_genes=3)
    here = np.arange(time.size) % 2 == 0
    one = fit_smooth(time[here], expression[here], np.ones(here.sum()))
    other = fit_smooth(time, np.where(here[:, None], expression, 50.0), here.astype(float))
    np.testing.assert_allclose(other.mean, one.mean)
    np.testing.assert_allclose(other.high, one.high)


def test_curves_move_with_units():
    time, expression, weight = planted(n_genes=3)
    one = fit_smooth(time, expression, weight)
    other = fit_smooth(24 * time + 5, 7 * expression - 3, 0.4 * weight)
    np.testing.assert_allclose(other.time, 24 * one.time + 5)
    np.testing.assert_allclose(other.mean, 7 * one.mean - 3, atol=1e-6)
    np.testing.assert_allclose(other.low, 7 * one.low - 3, atol=1e-6)


def test_curves_of_values_whose_squares_are_too_large():
    time, expression, weight = planted(n_genes=3)
    found = fit_smooth(time, expression * 1e300, weight)
    assert np.isfinite([found.mean, found.low, found.high]).all()


def test_curves_of_a_time_far_from_zero():
    time, expression, weight = planted(n_genes=3)
    time = np.round(time * 64) / 64
    one, far = fit_smooth(time, expression, weight), fit_smooth(2.0**46 + time, expression, weight)
    np.testing.assert_array_equal(far.mean, one.mean)


@pytest.mark.parametrize("case", ["few cells", "one time", "no weight", "constant gene"])
def test_poor_input_gives_finite_curves(case: str):
    time, expression, weight = planted(n_cells=6 if case == "few cells" else 50, n_genes=2)
    time = np.zeros_like(time) if case == "one time" else time
    weight = np.zeros_like(weight) if case == "no weight" else weight
    expression = np.full_like(expression, 2.0) if case == "constant gene" else expression
    found = fit_smooth(time, expression, weight)
    assert all(np.isfinite(values).all() for values in (found.time, found.mean, found.low, found.high))
    assert (found.low <= found.mean).all()
    if case == "constant gene":
        np.testing.assert_allclose(found.high, 2.0)


@pytest.fixture(scope="module")
def trends() -> GeneTrends:
    """Of two lineages: `early` peaks before `late` in A, and the other way round in B."""
    rng = np.random.default_rng(0)
    time, is_a = rng.uniform(size=600), np.arange(600) % 2 == 0
    peak = np.column_stack([np.where(is_a, 0.2, 0.8), np.where(is_a, 0.8, 0.2)])
    expression = np.exp(-20 * (time[:, None] - peak) ** 2) + rng.normal(scale=0.1, size=(600, 2))
    weights = np.column_stack([is_a, ~is_a]).astype(float)
    labels = np.where(time < 0.5, "young", "old")
    return fit_trends(time, expression, weights, ["A", "B"], ["early", "late"], labels)


def test_tables(trends: GeneTrends, tmp_path):
    np.testing.assert_allclose(trends.peaks(), [[0.2, 0.8], [0.8, 0.2]], atol=0.06)
    long = trends.to_frame()
    assert long.columns.tolist() == ["lineage", "gene", "time", "expression", "low", "high"]
    long.to_csv(tmp_path / "trends.csv", index=False)
    again = pd.read_csv(tmp_path / "trends.csv")
    pd.testing.assert_frame_equal(again, long, check_dtype=False)
    wide = trends.wide("B")
    at = long[(long["lineage"] == "B") & (long["gene"] == "late")]
    np.testing.assert_array_equal(wide.loc["late"], at["expression"])
    np.testing.assert_array_equal(wide.columns, at["time"])
    assert trends.cluster[0, [5, -5]].tolist() == ["young", "old"]
    np.testing.assert_allclose(trends.n_cells, 300)
    with pytest.raises(KeyError, match="lineage"):
        trends.wide("C")


def test_heat_maps_have_the_genes_by_their_peaks_and_columns_with_labels(trends: GeneTrends):
    one, other = pl.trend_heatmap(trends, marks={"half way": 0.5}, show=False)
    assert [text.get_text() for text in one.get_yticklabels()] == ["early", "late"]
    assert [text.get_text() for text in other.get_yticklabels()] == ["late", "early"]
    assert one.get_xticklabels()[-1].get_text() == f"{trends.time[0, -1]:.2f}"
    assert [text.get_text() for text in one.texts] == ["half way"]
    shown = np.asarray(one.images[0].get_array())
    assert shown.min() >= 0
    assert shown.max() == pytest.approx(1, abs=0.1)
    _, same = pl.trend_heatmap(trends, sort_by="A", clusters=False, show=False)
    assert [text.get_text() for text in same.get_yticklabels()] == ["early", "late"]
    (lines,) = pl.gene_trends(trends, {"A": ["late"]}, show=False)
    np.testing.assert_allclose(lines.lines[0].get_xdata(), trends.time[0])
    assert len(lines.collections) == 1  # its band
    with pytest.raises(KeyError, match="nothing"):
        pl.trend_heatmap(trends, ["nothing"])
    with pytest.raises(TypeError, match="GeneTrends"):
        pl.trend_heatmap(trends.to_frame())
    with pytest.raises(TypeError, match="time_key"):
        pl.gene_trends(None)


def test_the_kernel_takes_fates_of_any_kind(computed: OTVelocityKernel):
    adata = computed.adata
    left = np.where(adata.obs["clusters"] == "left", 1.0, np.where(adata.obs["clusters"] == "right", 0.0, 0.5))
    table = pd.DataFrame({"left": left, "right": 1 - left}, index=adata.obs_names)
    genes = ["gene_0", "gene_1"]
    found = computed.gene_trends(genes, table)
    assert found.lineages.tolist() == ["left", "right"]
    assert found.cluster[0, [0, -1]].tolist() == ["stem", "left"]
    adata.obsm["lineages_fwd"] = table.to_numpy()
    adata.obs["term_states_fwd"] = pd.Categorical([*["left", "right"] * (len(left) // 2)])
    np.testing.assert_array_equal(computed.gene_trends(genes).mean, found.mean)
    shuffled = computed.gene_trends(genes, table.sample(frac=1, random_state=0), "left")
    np.testing.assert_array_equal(shuffled.mean, found.mean[:1])
    assert len(computed.plot_gene_trends(found, show=False)) == 2
    without = table.assign(right=np.nan).iloc[: len(table) // 2]
    half = computed.gene_trends(genes, without, "left")  # cells without a fate do not count
    expected = computed.gene_trends(genes, table.mul(np.arange(len(table)) < len(without), axis=0), "left")
    np.testing.assert_array_equal(half.mean, expected.mean)
    for fates, lineages, error, match in (
        (table, "up", KeyError, "lineages"),
        (table.reset_index(drop=True), None, ValueError, "by name"),
        (left, None, TypeError, "as a table"),
    ):
        with pytest.raises(error, match=match):
            computed.gene_trends(genes, fates, lineages)
    for option, value in (("n_points", 1), ("n_splines", 3), ("level", 1.0)):
        with pytest.raises(ValueError, match=option):
            computed.gene_trends(genes, table, **{option: value})
