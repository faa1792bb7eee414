"""The search of parameters: every stage once, the same results as by hand and with any jobs, and its heat map."""

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from joblib import parallel_config
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import cellrank_velot
from cellrank_velot import OTVelocityKernel, datasets, gridsearch, metrics
from cellrank_velot.kernel import base as base_module
from cellrank_velot.kernel import pseudotime as kernel_module
from cellrank_velot.kernel import transitions as matrix_module
from cellrank_velot.metrics.table import SCORES
from cellrank_velot.plotting import gridsearch_heatmap

EDGES = [("stem", "left"), ("stem", "right")]
FIXED = {"min_window_size": 10, "hidden": (8,), "n_steps": 20, "max_iter": 100}
STAGES = {"build_windows": "windows", "estimate_velocity": "velocity", "fit_field": "field"}


def search(adata: AnnData, grid: dict, fixed: dict | None = None, edges=EDGES, **kwargs) -> pd.DataFrame:
    return gridsearch(adata, grid, edges, "clusters", FIXED | (fixed or {}), show_progress_bar=False, **kwargs)


def by_hand(adata: AnnData, random_state: int = 0, epsilon: float = 0.05, **transition) -> dict[str, float]:
    kernel = OTVelocityKernel(adata).compute_windows(min_window_size=10, random_state=random_state)
    kernel.compute_velocity(epsilon=epsilon, max_iter=100, show_progress_bar=False)
    kernel.fit_field((8,), n_steps=20, random_state=random_state, show_progress_bar=False)
    table = metrics.summary(kernel.compute_transition_matrix(**transition), "clusters", EDGES, "truth")
    return dict(table[table["group"] == "all"][["metric", "value"]].to_numpy())


@pytest.fixture
def adata(planted) -> AnnData:
    adata = planted.adata()
    adata.obsm["truth"] = planted.velocity.copy()
    return adata


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often each stage is computed."""
    counts: Counter = Counter()

    def count(module, name: str):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            counts[STAGES.get(name, "transition")] += 1
            return original(*args, **kwargs)

        return counted

    for name in STAGES:
        monkeypatch.setattr(kernel_module, name, count(kernel_module, name))
    monkeypatch.setattr(matrix_module, "compute_transitions", count(matrix_module, "compute_transitions"))
    return counts


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


# ------------------------------------------------------------------------------------------------------------ reuse
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"softmax_scale": [1.0, 4.0], "epsilon": [0.05, 0.2]}, (1, 2, 2, 4)),
        ({"similarity": ["cosine", "correlation"], "lambda_smooth": [0.0, 0.1], "overlap": [0.3, 0.5]}, (2, 2, 4, 8)),
        ({"field.random_state": [0, 1]}, (1, 1, 2, 2)),
        ({"random_state": [0, 1]}, (2, 2, 2, 2)),
    ],
)
def test_each_stage_is_computed_once(adata, calls, grid, expected, n_jobs):
    with parallel_config(backend="threading"):
        results = search(adata, grid, n_jobs=n_jobs)
        once = dict(zip(("windows", "velocity", "field", "transition"), expected, strict=True))
        # Scores of borders need the velocity in reversed time, too, but no matrix there.
        assert calls == {name: count * (1 + (name != "transition")) for name, count in once.items()}
        calls.clear()
        search(adata, grid, edges=None, n_jobs=n_jobs)
    assert calls == once
    assert len(results) == np.prod([len(values) for values in grid.values()])


def test_kernel_is_made_once_unless_it_varies(adata, monkeypatch):
    made = []
    read = base_module.read_cells
    monkeypatch.setattr(base_module, "read_cells", lambda *a, **kw: made.append(kw["time_key"]) or read(*a, **kw))
    search(adata, {"epsilon": [0.05, 0.1]})
    assert made == ["dpt_pseudotime"]
    adata.obs["other_time"] = adata.obs["dpt_pseudotime"] ** 2
    results = search(adata, {"kernel.time_key": ["dpt_pseudotime", "other_time"], "softmax_scale": [1.0, 2.0]})
    assert made[1:] == ["dpt_pseudotime", "other_time"]
    assert results["speed"].nunique() == 2


# --------------------------------------------------------------------------------------------------------- equality
def test_rows_are_those_of_a_kernel_by_hand(adata):
    grid = {"softmax_scale": [2.0, None], "random_state": [0, 3], "epsilon": [0.05, 0.2]}
    results = search(adata, grid, true_velocity_key="truth")
    assert list(results.columns) == [*grid, *SCORES, "seconds", "error"]
    assert results["softmax_scale"].tolist() == [2.0] * 4 + [None] * 4
    assert results["epsilon"].tolist() == [0.05, 0.2] * 4
    assert results["error"].isna().all()
    assert (results["seconds"] > 0).all()
    for row in (0, 7):
        expected = by_hand(adata, **results.loc[row, list(grid)].to_dict())
        assert results.loc[row, list(SCORES)].to_dict() == {name: expected[name] for name in SCORES}
    assert results.drop(columns=["seconds", "error"]).drop_duplicates().shape[0] == 8


def test_backward_and_raw_velocity(adata):
    results = search(adata, {"backward": [False, True], "smooth": [True, False]})
    # A step of the backward process leads back, which is forward for it, and the field is that of the forward one.
    assert (results["step_forward"] > 0.5).all()
    assert results["step_forward"].nunique() == 4
    assert results["cross_boundary_direction"].nunique() == 1


def test_jobs_do_not_change_the_result(adata):
    grid = {"epsilon": [0.05, -1.0, 0.2], "lambda_smooth": [0.0, 0.1], "similarity": ["cosine", "dot_product"]}
    serial = search(adata, grid)
    with parallel_config(backend="threading", n_jobs=2):
        threads = search(adata, grid, n_jobs=None)
    pd.testing.assert_frame_equal(serial.drop(columns="seconds"), threads.drop(columns="seconds"), check_exact=True)


def test_leaves_data_and_threads_alone(adata):
    before, n_threads = adata.copy(), torch.get_num_threads()
    with parallel_config(backend="threading"):
        search(adata, {"cluster_key": [None, "clusters"], "gene_subset": [None, "highly_variable"]}, n_jobs=2)
    assert torch.get_num_threads() == n_threads
    for slot in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(adata, slot), getattr(before, slot))
    for slot in ("obsm", "varm", "obsp", "layers", "uns"):
        assert set(getattr(adata, slot)) == set(getattr(before, slot))
    np.testing.assert_array_equal(adata.obsm["X_pca"], before.obsm["X_pca"])
    assert (adata.obsp["connectivities"] != before.obsp["connectivities"]).nnz == 0


# ----------------------------------------------------------------------------------------------------- what it scores
def test_scores_need_what_they_need(adata):
    results = search(adata, {"epsilon": [0.05]}, edges=None)
    assert not [name for name in results if name.startswith(("cross_boundary", "cosine_to_truth"))]
    assert results[["inner_cluster_coherence", "step_forward"]].notna().all(axis=None)


def test_cluster_named_all(adata):
    adata.obs["clusters"] = adata.obs["clusters"].cat.rename_categories({"stem": "all"})
    results = search(adata, {"epsilon": [0.05]}, edges=None)
    kernel = OTVelocityKernel(adata).compute_windows(min_window_size=10)
    kernel.compute_velocity(max_iter=100, show_progress_bar=False)
    kernel.fit_field((8,), n_steps=20, show_progress_bar=False)
    assert results["speed"].item() == np.median(np.linalg.norm(kernel.velocity, axis=1))


def test_failed_combinations_leave_the_others(adata, caplog, calls):
    grid = {"time_key": ["dpt_pseudotime", "nope"], "epsilon": [-1.0, 0.05], "similarity": ["cosine", "nope"]}
    results = search(adata, grid)
    assert "7 of 8 combinations failed" in caplog.text
    good = (results["time_key"] != "nope") & (results["epsilon"] > 0) & (results["similarity"] != "nope")
    assert (results["error"].isna() == good).all()
    assert results.loc[~good, [name for name in results if name in SCORES or name == "seconds"]].isna().all(axis=None)
    assert results.loc[good, "cross_boundary_direction"].notna().all()
    assert results.loc[0, "error"] == "ValueError: Expected `epsilon` to be in (0, inf), found `-1.0`."
    assert results.loc[3, "error"].startswith("ValueError: Expected `similarity`")
    assert results.loc[7, "error"].startswith("KeyError:")
    assert (calls["velocity"], calls["transition"]) == (2, 1)  # nothing is computed after an error


def test_other_errors_are_not_swallowed(adata, monkeypatch):
    monkeypatch.setattr(kernel_module, "estimate_velocity", lambda *args, **kwargs: 1 + None.missing)
    with pytest.raises(AttributeError, match="missing"):
        search(adata, {"epsilon": [0.05]})


def test_qualified_name_takes_its_step_from_the_plain_one(adata, monkeypatch):
    seeds = {}
    for name in ("build_windows", "fit_field"):
        original = getattr(kernel_module, name)

        def noted(*args, _name=name, _original=original, **kwargs):
            (seed,) = (value.random_state for value in args if hasattr(value, "random_state"))
            seeds.setdefault(_name, []).append(seed)
            return _original(*args, **kwargs)

        monkeypatch.setattr(kernel_module, name, noted)
    search(adata, {"random_state": np.array([4, 5])}, {"windows.random_state": 7})
    assert seeds == {"build_windows": [7, 7], "fit_field": [4, 4, 5, 5]}  # in either direction of time


def test_progress_bar_counts_every_step(adata, capsys):
    grid = {"epsilon": [0.05, -1.0], "similarity": ["cosine", "correlation"]}
    gridsearch(adata, grid, fixed_params=FIXED)
    assert "9/9" in capsys.readouterr().err  # 1 windows, 2 velocities, 2 fields, 4 matrices


def test_real_time_points_have_their_own_parameters():
    adata = datasets.birth_death(n_cells=60, times=[0, 1], random_state=0)
    series = {"time_kind": "experimental", "n_jobs": 1, "n_steps": 5, "hidden": [8], "n_passes": 1}
    grid = {"tau": [0.9, 1.0], "diffusion": [0.5]}
    mass = {"mass": [{0: 1.0, 1: 1.5}]}
    results = gridsearch(adata, grid | mass, [("Progenitor A", "Fate A")], fixed_params=series, show_progress_bar=False)
    assert results["error"].isna().all()
    assert results["speed"].nunique() == results["cross_boundary_direction"].nunique() == 2
    with pytest.raises(ValueError, match="found `'tau'`.* velocity: epsilon, lambda_time"):
        gridsearch(adata, grid, fixed_params={"time_key": "day"})
    both = gridsearch(
        adata, {"time_kind": ["experimental", "pseudotime"], "tau": [0.9]}, fixed_params={"time_key": "day"} | FIXED
    )
    assert both["error"].str.contains("Expected `.*` with .* only").all()


# ------------------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("grid", "fixed", "error", "match"),
    [
        ({}, {}, ValueError, "at least one parameter"),
        ([("epsilon", [1])], {}, TypeError, "`param_grid` to be a mapping .* found `list`"),
        ({"epsilon": []}, {}, ValueError, r"at least one value in `param_grid\['epsilon'\]`"),
        ({"epsilon": 0.1}, {}, TypeError, r"`param_grid\['epsilon'\]` to be a list of values, found `float`"),
        ({"similarity": "cosine"}, {}, TypeError, "found `str`"),
        ({"n_steps": [10]}, {}, ValueError, r"found \['n_steps'\] in both"),
        ({"epsilom": [0.1]}, {}, ValueError, r"found `'epsilom'`. Did you mean `epsilon`\? Known .* windows: n_clust"),
        ({"field.epsilon": [0.1]}, {}, ValueError, r"Did you mean `velocity.epsilon`\?"),
        ({"epsilon": [0.1]}, {"adata": 1}, ValueError, r"found `'adata'`\. "),
        ({3: [0.1]}, {}, ValueError, r"found `3`\. Known"),
        ({"epsilon": [0.1]}, {"velocity.epsilon": 1}, ValueError, r"`epsilon` once .* \['velocity'\] twice"),
    ],
)
def test_bad_grids(adata, calls, grid, fixed, error, match):
    with pytest.raises(error, match=match):
        gridsearch(adata, grid, fixed_params=FIXED | fixed)
    assert not calls


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"cluster_key": "nope"}, KeyError, r"adata.obs\['nope'\]"),
        ({"true_velocity_key": "nope"}, KeyError, r"adata.obsm\['nope'\]"),
        ({"cluster_edges": [("stem", "nope")]}, KeyError, "found \\['nope'\\]"),
        ({"cluster_edges": ["stem"]}, ValueError, "pairs of clusters"),
        ({"cluster_edges": []}, ValueError, "at least one pair"),
    ],
)
def test_bad_targets(adata, calls, kwargs, error, match):
    with pytest.raises(error, match=match):
        gridsearch(adata, {"epsilon": [0.1]}, **kwargs)
    assert not calls
    with pytest.raises(TypeError, match="found `dict`"):
        gridsearch({}, {"epsilon": [0.1]})


# ---------------------------------------------------------------------------------------------------------- heat map
@pytest.fixture
def results() -> pd.DataFrame:
    """Rows in no order: two parameters, two seeds, one cell without a score and one with half of its scores."""
    rows = [(scale, e, seed, 10 * e + seed, None) for e in (1.0, 0.5) for scale in (None, 2, 10) for seed in (0, 2)]
    table = pd.DataFrame(rows, columns=["softmax_scale", "epsilon", "seed", "cross_boundary_direction", "error"])
    table["softmax_scale"] = pd.Series([row[0] for row in rows], dtype=object)
    table["seconds"], table["similarity"] = 1.0, "cosine"
    table.loc[(table["epsilon"] == 1) & (table["softmax_scale"] == 2), "cross_boundary_direction"] = np.nan
    table.loc[11, "cross_boundary_direction"] = np.nan
    return table.iloc[np.random.default_rng(0).permutation(len(table))]


def written(ax: Axes) -> list[str]:
    return [text.get_text() for text in sorted(ax.texts, key=lambda t: (t.get_position()[1], t.get_position()[0]))]


def test_heatmap_means_over_the_rest(results):
    ax = gridsearch_heatmap(results, "softmax_scale", "epsilon", show=False)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "10", "None"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.5", "1"]
    assert written(ax) == ["6.0", "5.0*", "6.0", "11.0", "11.0"]
    assert [patch.get_xy() for patch in ax.patches if isinstance(patch, Rectangle)] == [(0.01, 1.02)]
    assert ax.get_title(loc="left").splitlines() == [
        "Mean over seed",
        "* without those that have no score, hatched: no score",
    ]
    np.testing.assert_allclose(ax.collections[0].get_array()[1], [np.nan, 11, 11])
    assert ax.figure.axes[1].get_xlabel() == "Direction across borders"


def test_heatmap_of_one_parameter(results):
    ax = gridsearch_heatmap(results, "epsilon", score="seconds", show=False)
    assert written(ax) == ["1.00", "1.00"]
    assert not len(ax.get_yticks())
    assert ax.get_title(loc="left") == "Mean over softmax_scale, seed"


def test_heatmap_without_any_score(results):
    results["cross_boundary_direction"] = np.nan
    ax = gridsearch_heatmap(results, "seed", "epsilon", show=False, title="mine")
    assert (len(ax.patches), written(ax), ax.get_title(loc="left")) == (4, [], "mine")


def test_heatmap_of_lists_and_functions(results):
    results["hidden"] = [[8], [8, 8, 8]] * 6
    results["similarity"] = [np.dot, "cosine"] * 6
    ax = gridsearch_heatmap(
        results[["hidden", "similarity", "cross_boundary_direction"]], "hidden", "similarity", show=False
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["[8]", "[8, 8, 8]"]
    assert ax.get_xticklabels()[0].get_rotation() == 30
    assert [label.get_text() for label in ax.get_yticklabels()] == ["dot", "cosine"]


def test_heatmap_of_a_search(adata, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    results = search(adata, {"epsilon": [0.05, 0.2], "lambda_smooth": [0.0, 0.1]})
    assert cellrank_velot.pl.gridsearch_heatmap(results, "epsilon", "lambda_smooth", save=tmp_path / "map.png") is None
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert not plt.get_fignums()
    _, ax = plt.subplots()
    assert gridsearch_heatmap(results, "epsilon", score="speed", ax=ax, show=False) is ax
    assert not shown
    gridsearch_heatmap(results, "epsilon", "lambda_smooth", score="seconds", figsize=(3, 2), dpi=40)
    assert shown == [True]
    np.testing.assert_allclose(plt.gcf().get_size_inches(), (3, 2))


@pytest.mark.parametrize(
    ("args", "error", "match"),
    [
        (("nope",), KeyError, r"results\['nope'\].*epsilon"),
        (("epsilon", "seconds"), KeyError, r"results\['seconds'\]"),
        (("epsilon", "epsilon"), ValueError, "two parameters"),
    ],
)
def test_bad_heatmaps(results, args, error, match):
    with pytest.raises(error, match=match):
        gridsearch_heatmap(results, *args)
    with pytest.raises(KeyError, match=r"results\['nope'\].*cross_boundary_direction"):
        gridsearch_heatmap(results, "epsilon", score="nope")
    for table in (results.iloc[:0], results.drop(columns="cross_boundary_direction")):
        with pytest.raises(ValueError, match="table that `cellrank_velot.gridsearch` returns"):
            gridsearch_heatmap(table, "epsilon")
