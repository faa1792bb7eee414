"""Trends of genes along lineages: what was planted is drawn, of each lineage by its own cells."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellrank_velot import pl


@pytest.fixture
def fates() -> AnnData:
    """300 cells of two lineages: gene `up` rises with time in lineage A alone, `all` is the same everywhere."""
    rng = np.random.default_rng(0)
    time, goes_to_a = rng.uniform(size=300), np.arange(300) % 2 == 0
    x = np.column_stack([2 * time * goes_to_a, np.full(300, 3.0)]) + rng.normal(scale=0.1, size=(300, 2))
    adata = AnnData(x, obs=pd.DataFrame({"t": time}, index=[f"c{i}" for i in range(300)]))
    adata.var_names = ["up", "all"]
    share = np.where(goes_to_a, 0.95, 0.05)
    adata.obsm["lineages_fwd"] = np.column_stack([share, 1 - share])
    adata.obs["term_states_fwd"] = pd.Categorical(np.where(goes_to_a, "A", "B"))
    yield adata
    plt.close("all")


def test_a_line_is_the_expression_along_its_lineage(fates):
    (panel,) = pl.gene_trends(fates, {"A": ["up", "all"]}, "t", show=False)
    others, _, along, flat = (np.asarray(line.get_ydata()) for line in panel.lines)
    time = panel.lines[2].get_xdata()
    np.testing.assert_allclose(along, time, atol=0.08)  # 2 t over its highest value
    assert others.max() < 0.15
    np.testing.assert_allclose(flat, 1, atol=0.03)
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["up", "all"]
    assert panel.get_title("left") == "A"


def test_a_line_ends_with_its_cells(fates):
    late_in_b = (fates.obs["term_states_fwd"] == "A") | (fates.obs["t"] < 0.5)
    one = fates[late_in_b].copy()
    one.obsm["lineages_fwd"] = np.round(one.obsm["lineages_fwd"])
    _, panel = pl.gene_trends(one, {"A": ["up"], "B": ["up"]}, "t", show=False)
    assert panel.lines[1].get_xdata().max() < 0.5


def test_lineages_have_one_scale(fates):
    fates.obsm["lineages_fwd"] = np.round(fates.obsm["lineages_fwd"])
    one, other = pl.gene_trends(fates, {"A": ["up"], "B": ["up"]}, "t", show=False)
    assert np.asarray(one.lines[1].get_ydata()).max() == pytest.approx(1)
    np.testing.assert_allclose(one.lines[0].get_ydata(), other.lines[1].get_ydata())  # those not of A are those of B
    fates.X[:, 1] = 0
    (panel,) = pl.gene_trends(fates, {"A": ["all"]}, "t", show=False)
    np.testing.assert_array_equal(panel.lines[1].get_ydata(), 0)


def test_few_times_and_names_with_dollars(fates):
    fates.obs["t"] = fates.obs["t"].round()
    fates.var_names = ["$up$", r"$\bad$"]
    (panel,) = pl.gene_trends(fates, {"A": list(fates.var_names)}, "t", show=False)
    panel.figure.canvas.draw()
    assert np.isfinite(panel.lines[0].get_ydata()).all()


def test_what_is_missing_is_named(fates):
    for genes, key, missing in (
        ({"C": ["up"]}, "t", "lineages"),
        ({"A": ["up"]}, "age", "age"),
        ({"A": ["x"]}, "t", "x"),
    ):
        with pytest.raises(KeyError, match=missing):
            pl.gene_trends(fates, genes, key)
    with pytest.raises(ValueError, match="at least one panel"):
        pl.gene_trends(fates, {}, "t")


@pytest.mark.parametrize("length", [3, 8, 14, 25])
def test_long_names_stay_below_their_panel(fates, length):
    wide = fates[:, ["up", "all"] * 3].copy()
    wide.var_names = [f"gene{number}".ljust(length, "x")[:length] + str(number) for number in range(6)]
    panels = pl.gene_trends(wide, {name: list(wide.var_names) for name in "AB"}, "t", show=False)
    panels[0].figure.draw_without_rendering()
    left, right = (panel.get_legend().get_window_extent() for panel in panels)
    assert left.x1 <= right.x0
    assert all(panel.get_window_extent().width > 0.3 * panels[0].figure.bbox.width for panel in panels)
