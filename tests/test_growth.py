"""Scores and growth rates: planted dividing and dying cells, names in any spelling, and data no failure changes."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import spearmanr

from cellrank_velot.preprocessing.growth import (
    APOPTOSIS_GENES,
    PROLIFERATION_GENES,
    RateOptions,
    growth_rate,
    score_genes,
    score_growth,
)

N_CELLS = 150
COLUMNS = ["proliferation_score", "apoptosis_score", "growth_rate"]


def planted(seed: int = 0, names=str.upper) -> ad.AnnData:
    """Log expression in which a third of the cells divide, a third dies, and the rest does neither."""
    rng = np.random.default_rng(seed)
    known = [*PROLIFERATION_GENES, *(gene for gene in APOPTOSIS_GENES if gene not in PROLIFERATION_GENES)]
    genes = [*known, *(f"Other{i}" for i in range(400))]
    kind = np.arange(N_CELLS) % 3
    rate = np.tile(rng.uniform(0.2, 2.0, len(genes)), (N_CELLS, 1))
    rate[:, : len(PROLIFERATION_GENES)] *= np.where(kind == 0, 3, 1)[:, None]
    rate[:, len(PROLIFERATION_GENES) : len(known)] *= np.where(kind == 1, 2, 1)[:, None]
    adata = ad.AnnData(np.log1p(rng.poisson(rate)).astype(np.float32))
    adata.var_names = [names(gene) for gene in genes]
    adata.obs_names = [f"c{i}" for i in range(N_CELLS)]
    adata.obs["kind"] = pd.Categorical(np.array(["divides", "dies", "rests"])[kind])
    return adata


def scored(adata: ad.AnnData, *args, **kwargs) -> pd.DataFrame:
    score_growth(adata, *args, **kwargs)
    return adata.obs[COLUMNS]


def test_lists_are_those_of_their_sources():
    assert len(set(PROLIFERATION_GENES)) == 97
    assert len(set(APOPTOSIS_GENES)) == 161
    assert set(PROLIFERATION_GENES) & set(APOPTOSIS_GENES) == {"HMGB2", "TOP2A"}


def test_planted_kinds_are_told_apart():
    adata = planted()
    mean = scored(adata).groupby(adata.obs["kind"], observed=True).mean()
    assert mean["growth_rate"]["divides"] > mean["growth_rate"]["rests"] + 0.5
    assert mean["growth_rate"]["dies"] < mean["growth_rate"]["rests"] - 0.5
    assert mean["proliferation_score"].idxmax() == "divides"
    assert mean["apoptosis_score"].idxmax() == "dies"
    assert adata.obs["growth_rate"].between(-1.4, 1.4).all()


@pytest.mark.parametrize("names", [str.capitalize, str.lower])
def test_names_match_in_any_case(names):
    pd.testing.assert_frame_equal(scored(planted(names=names)), scored(planted()))


def test_other_names_of_the_same_gene():
    older = {"CENPU": "MLF1IP", "PIMREG": "FAM64A", "JPT1": "HN1", "H1-0": "H1F0", "TUBB4B": "TUBB2C"}
    pd.testing.assert_frame_equal(scored(planted(names=lambda gene: older.get(gene, gene))), scored(planted()))


@pytest.mark.parametrize(("organism", "n_found"), [("mouse", 159), ("auto", 159), ("human", 157)])
def test_mouse_orthologs_with_a_name_of_their_own(organism, n_found, caplog):
    mouse = {"FASLG": "Fasl", "GUCY2D": "Gucy2e"}
    with caplog.at_level(logging.INFO, "cellrank_velot"):
        score_growth(planted(names=lambda gene: mouse.get(gene, gene.capitalize())), organism)
    assert "Found 97 of 97 proliferation genes" in caplog.text
    assert f"Found {n_found} of 159 apoptosis genes" in caplog.text


def test_the_host_scores_alike():
    adata = planted()
    genes = list(PROLIFERATION_GENES)
    ours = score_genes(adata, genes)
    sc.tl.score_genes(adata, genes, score_name="theirs")
    np.testing.assert_allclose(ours, adata.obs["theirs"], atol=0.1)
    assert np.corrcoef(ours, adata.obs["theirs"])[0, 1] > 0.99


def test_sparse_dense_and_layers_agree():
    dense = scored(planted())
    for convert in (sp.csr_matrix, sp.csc_matrix):
        adata = planted()
        adata.layers["log"] = convert(adata.X)
        adata.X = np.zeros_like(adata.X)
        pd.testing.assert_frame_equal(scored(adata, layer="log"), dense, rtol=1e-4, atol=1e-5)


def test_names_that_are_not_unique():
    adata = planted()
    names = adata.var_names.to_numpy().copy()
    names[-50:] = "Other1"
    adata.var_names = names
    pd.testing.assert_frame_equal(scored(adata), scored(planted()))


def test_order_of_cells_does_not_matter():
    order = np.random.default_rng(0).permutation(N_CELLS)
    shuffled = planted()[order].copy()
    pd.testing.assert_frame_equal(scored(shuffled), scored(planted()).iloc[order], rtol=1e-4, atol=1e-5)


def test_seed_and_global_random_state():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    one, other = scored(planted(), random_state=1), scored(planted(), random_state=1)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix])
def test_expression_is_shared_not_copied(convert, monkeypatch):
    adata = planted()
    adata.X = convert(adata.X)
    seen = []
    host = sc.tl.score_genes
    monkeypatch.setattr(
        sc.tl, "score_genes", lambda light, *args, **kwargs: seen.append(light.X) or host(light, *args, **kwargs)
    )
    score_growth(adata)
    values = [getattr(x, "data", x) if sp.issparse(x) else x for x in (adata.X, *seen)]
    assert len(seen) == 2
    assert all(np.shares_memory(values[0], other) for other in values[1:])


def test_only_the_columns_are_written():
    adata = planted()
    before = adata.copy()
    score_growth(adata, key_added="prior")
    assert list(adata.obs) == ["kind", "proliferation_score", "apoptosis_score", "prior"]
    np.testing.assert_array_equal(adata.X, before.X)
    assert (dict(adata.uns), list(adata.var), list(adata.obsm)) == ({}, [], [])


def test_own_lists_share_no_gene():
    adata = planted()
    score_growth(
        adata, proliferation_genes=PROLIFERATION_GENES[:20], apoptosis_genes=PROLIFERATION_GENES[:20] + APOPTOSIS_GENES
    )
    alone = planted()
    score_growth(alone, proliferation_genes=PROLIFERATION_GENES[:20], apoptosis_genes=APOPTOSIS_GENES)
    pd.testing.assert_frame_equal(adata.obs[COLUMNS], alone.obs[COLUMNS])


def test_rates_follow_the_formula():
    # standardised scores of three cells are -a, 0, a with a = sqrt(3 / 2)
    score, a = np.array([-1.0, 0.0, 1.0]), np.sqrt(1.5)
    divide = 0.3 + 1.4 / (1 + np.exp(-4 * (score * a - 0.5)))
    die = 0.3 + 1.4 / (1 + np.exp(-4 * (score * a - 0.75) / 1.5))
    np.testing.assert_allclose(growth_rate(score, score), divide - die)
    np.testing.assert_allclose(growth_rate(score, score[::-1], RateOptions(birth=(1, 1), death=(0, 0))), 1)


def test_rates_do_not_depend_on_the_scale_and_origin_of_scores():
    p, a = np.random.default_rng(0).normal(size=(2, 50))
    np.testing.assert_allclose(growth_rate(10 * p - 3, 0.1 * a + 7), growth_rate(p, a))


def test_rates_rise_with_proliferation_and_fall_with_apoptosis():
    p, a = np.random.default_rng(0).normal(size=(2, 50))
    assert spearmanr(p, growth_rate(p, np.zeros(50))).statistic == pytest.approx(1)
    assert spearmanr(a, growth_rate(np.zeros(50), a)).statistic == pytest.approx(-1)


def test_units_of_time():
    p, a = np.random.default_rng(0).normal(size=(2, 50))
    per_day = growth_rate(p, a)
    np.testing.assert_allclose(growth_rate(p, a, RateOptions(time_unit="hour")) * 24, per_day)
    np.testing.assert_allclose(growth_rate(p, a, RateOptions(time_unit="week")) / 7, per_day)


def test_a_score_without_differences_is_reported(caplog):
    rate = growth_rate(np.full(5, 0.1), np.arange(5.0))
    assert "The proliferation score is the same in all cells" in caplog.text
    assert (np.diff(rate) < 0).all()


def test_negative_values_are_reported(caplog):
    adata = planted()
    adata.X -= 0.5
    score_growth(adata)
    assert "negative values" in caplog.text


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ("ensembl", {}, ValueError, "5` proliferation genes in `adata.var_names`, found `0` of `97`.*'ENSG0', 'ENSG1'"),
        ("raw", {}, ValueError, r"found `0` of `97`.*`adata.raw` has `656` genes: try `adata.raw.to_adata\(\)`"),
        ("few", {}, ValueError, "5` apoptosis genes in `adata.var_names`, found `0` of `159`"),
        ("counts", {}, ValueError, "log-normalised expression in `adata.X`, found whole numbers"),
        ("nan", {}, ValueError, "`adata.X` to be finite, found `1` NaN"),
        ("empty", {}, ValueError, "expression in `adata.X`, found none"),
        ("view", {}, ValueError, r"a view. Pass `adata.copy\(\)`"),
        (None, {"layer": "log"}, KeyError, r"adata.layers\['log'\]"),
        (None, {"organism": "fish"}, ValueError, "`organism` to be one of .*'mouse'"),
        (None, {"time_unit": "year"}, ValueError, "`time_unit` to be one of .*'day'"),
        (None, {"birth": (1.7, 0.3)}, ValueError, "lowest rate of `birth` before the highest"),
        (None, {"death": (-1, 1)}, ValueError, r"`death\[0\]` to be in"),
        (None, {"death": 1.0}, ValueError, "`death` to be a pair"),
        (None, {"key_added": 1}, TypeError, "`key_added` to be a string, found `int`"),
        (None, {"random_state": "a"}, TypeError, "`random_state`"),
        (None, {"apoptosis_genes": "BAX"}, TypeError, "`apoptosis_genes` to be a sequence of names, found `'BAX'`"),
        (None, {"proliferation_genes": ["A", "B"]}, ValueError, "at least `2` proliferation genes.*found `0` of `2`"),
    ],
)
def test_errors_leave_the_data_alone(change, options, error, message):
    adata = planted()
    if change == "ensembl":
        adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    elif change == "raw":
        adata.raw = adata
        adata = adata[:, -100:].copy()
    elif change == "few":
        adata = adata[:, [*range(97), *range(300, 600)]].copy()
    elif change == "counts":
        adata.X = np.round(np.expm1(adata.X))
    elif change == "nan":
        adata.X[0, 0] = np.nan
    elif change == "empty":
        adata.X = None
    elif change == "view":
        adata = adata[:100]
    with pytest.raises(error, match=message):
        score_growth(adata, **options)
    assert list(adata.obs) == ["kind"]


def test_both_lists_are_looked_up_before_anything_is_scored(monkeypatch):
    monkeypatch.setattr(sc.tl, "score_genes", lambda *args, **kwargs: pytest.fail("scored"))
    with pytest.raises(ValueError, match="at least `2` apoptosis genes"):
        score_growth(planted(), apoptosis_genes=["nope", "nor this"])


def test_no_anndata():
    with pytest.raises(TypeError, match="`adata` to be an AnnData, found `list`"):
        score_growth([])


@pytest.mark.parametrize(
    ("p", "a", "message"),
    [
        (np.zeros(3), np.zeros(4), "one score of either kind per cell"),
        ([np.nan, 1], [0, 1], "Expected finite scores"),
    ],
)
def test_scores_that_fit_no_cells(p, a, message):
    with pytest.raises(ValueError, match=message):
        growth_rate(p, a)


def test_pancreas_ductal_cells_divide_and_endocrine_cells_do_not(data_dir):
    adata = ad.read_h5ad(data_dir / "pancreas_739.h5ad")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    score_growth(adata, "mouse")
    mean = adata.obs.groupby("clusters", observed=True)["growth_rate"].mean()
    assert mean.idxmax() == "Ductal"
    assert mean["Ductal"] > mean[["Alpha", "Beta", "Delta", "Epsilon"]].max() + 0.3
