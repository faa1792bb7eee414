"""Sinks and sources: planted beginnings of simulated flows, invariances, a naive persistence."""

import logging

import numpy as np
import pytest
import scipy.sparse as sp
from cellrank.estimators import GPCCA
from scipy.sparse.csgraph import connected_components

from cellrank_velot import OTVelocityKernel, datasets, pp
from cellrank_velot.fates.states import (
    SinkOptions,
    Sinks,
    SourceOptions,
    _persistent_maxima,
    find_sinks,
    reverse_transitions,
    suggest_initial_states,
)

PLANTED = {
    "bifurcation": (1000, {"Fate A", "Fate B"}, {"Progenitor"}),
    "tree": (1500, {"Fate A1", "Fate A2", "Fate B1", "Fate B2"}, {"Progenitor"}),
    "convergence": (1000, {"Fate"}, {"Root A", "Root B"}),
}


def suggest(function, kernel, *options) -> dict[str, list[str]]:
    adata = kernel.adata
    return function(
        kernel.transition_matrix,
        kernel.connectivities,
        kernel.cells.time,
        adata.obs_names,
        adata.obs["clusters"],
        *options,
    )


def computed_kernel(adata, random_state: int = 0) -> OTVelocityKernel:
    kernel = OTVelocityKernel(adata).compute_windows(random_state=random_state)
    kernel.compute_velocity(show_progress_bar=False).fit_field(random_state=random_state, show_progress_bar=False)
    return kernel.compute_transition_matrix(show_progress_bar=False)


def line(n: int, drift: float = 0.8, joined: tuple[tuple[int, int], ...] = ()) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Return transitions that drift along a line, and its graph."""
    graph = sp.diags([np.ones(n - 1), np.ones(n - 1)], [-1, 1]).tolil()
    for a, b in joined:
        graph[a, b] = graph[b, a] = 1
    graph = sp.csr_matrix(graph)
    ahead = np.sign(graph.indices - np.repeat(np.arange(n), np.diff(graph.indptr)))
    weights = sp.csr_matrix((np.where(ahead > 0, drift, 1 - drift), graph.indices, graph.indptr), shape=(n, n))
    return sp.csr_matrix(sp.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights), graph


@pytest.fixture(scope="module")
def bifurcation_kernel() -> OTVelocityKernel:
    return computed_kernel(datasets.bifurcation(800))


# ------------------------------------------------------------------------------------------------ planted ends
@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_ends_and_beginnings_are_found(name):
    n_cells, ends, roots = PLANTED[name]
    kernel = computed_kernel(getattr(datasets, name)(n_cells, random_state=1))
    clusters = kernel.adata.obs["clusters"]
    for states, wanted in (
        (kernel.suggest_terminal_states("clusters"), ends),
        (suggest(suggest_initial_states, kernel), roots),
    ):
        assert set(states) == wanted
        for state, cells in states.items():
            assert len(set(cells)) == len(cells) in (30, max(10, n_cells // 100))
            assert (clusters[cells] == state).mean() >= 0.8


def test_the_suggestion_does_not_depend_on_the_seed(bifurcation_kernel):
    other = computed_kernel(bifurcation_kernel.adata.copy(), random_state=5)
    assert set(other.suggest_terminal_states("clusters")) == {"Fate A", "Fate B"}
    assert set(suggest(suggest_initial_states, other)) == {"Progenitor"}


def test_pancreas_begins_in_ductal_cells(data_dir):
    adata = datasets.pancreas(data_dir / "pancreas_739.h5ad")
    pp.prepare(adata, root_cluster="Ductal")
    assert set(suggest(suggest_initial_states, computed_kernel(adata))) == {"Ductal"}


def test_a_line_ends_at_its_end():
    transitions, graph = line(60)
    sinks = find_sinks(transitions, graph, np.arange(60))
    assert sinks.n_sinks == 1
    assert sinks.peak[0] >= 58
    np.testing.assert_array_equal(sinks.basin, 0)
    np.testing.assert_allclose(sinks.advance[1:-1], 0.6)
    assert set(sinks.cells(0, 5)) == set(range(55, 60))
    source = find_sinks(reverse_transitions(transitions), graph, -np.arange(60))
    assert source.n_sinks == 1
    assert source.peak[0] <= 1


def test_two_lines_that_nothing_joins_have_an_end_each():
    transitions, graph = (sp.block_diag([m, m], format="csr") for m in line(50))
    sinks = find_sinks(transitions, graph, np.tile(np.arange(50), 2))
    assert sorted(sinks.peak // 50) == [0, 1]
    np.testing.assert_array_equal(sinks.basin[sinks.peak], [0, 1])
    np.testing.assert_array_equal(sinks.basin // 1, np.repeat(sinks.basin[[0, 50]], 50))


def test_flow_to_one_place_is_told_from_none():
    n = 100
    graph = sp.csr_matrix(sp.diags([np.ones(n - 1), np.ones(n - 1)], [-1, 1]))
    walk = sp.csr_matrix(sp.diags(1 / np.asarray(graph.sum(1)).ravel()) @ graph)
    assert find_sinks(walk, graph, np.arange(n), SinkOptions(n_steps=200)).n_sinks == 0


def test_a_sink_must_be_late_distinct_and_large_enough():
    transitions, graph = line(60)
    time = np.arange(60)
    assert find_sinks(transitions, graph, -time).n_sinks == 0
    assert find_sinks(transitions, graph, -time, SinkOptions(min_time=0)).n_sinks == 1
    assert find_sinks(transitions, graph, time, SinkOptions(min_persistence=50)).n_sinks == 0
    assert find_sinks(transitions, graph, time, SinkOptions(n_cells=61)).n_sinks == 0
    assert (find_sinks(transitions, graph, time, SinkOptions(n_cells=61)).basin == -1).all()


# -------------------------------------------------------------------------------------------------- invariances
def test_the_order_of_the_cells_does_not_matter(bifurcation_kernel):
    k, adata = bifurcation_kernel, bifurcation_kernel.adata
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = suggest_initial_states(
        k.transition_matrix[order][:, order],
        k.connectivities[order][:, order],
        k.cells.time[order],
        adata.obs_names[order],
        adata.obs["clusters"].to_numpy()[order],
    )
    assert {name: set(cells) for name, cells in shuffled.items()} == {
        name: set(cells) for name, cells in suggest(suggest_initial_states, k).items()
    }


def test_units_of_time_and_weights_of_the_graph_do_not_matter(bifurcation_kernel):
    k = bifurcation_kernel
    one = find_sinks(k.transition_matrix, k.connectivities, k.cells.time)
    other = find_sinks(k.transition_matrix, 7 * k.connectivities, 100 + 24 * k.cells.time)
    np.testing.assert_array_equal(one.peak, other.peak)
    np.testing.assert_array_equal(one.basin, other.basin)
    np.testing.assert_allclose(24 * one.advance, other.advance, atol=1e-9)


def test_inputs_are_left_alone(bifurcation_kernel):
    k = bifurcation_kernel
    matrix, graph = k.transition_matrix.copy(), k.connectivities.copy()
    suggest(suggest_initial_states, k)
    assert (matrix != k.transition_matrix).nnz == 0
    assert (graph != k.connectivities).nnz == 0


def test_reversing_twice_restores_a_walk_that_is_uniform():
    rng = np.random.default_rng(0)
    matrix = sp.csr_matrix(sum(np.eye(12)[rng.permutation(12)] for _ in range(3)) / 3)
    np.testing.assert_allclose(reverse_transitions(matrix).toarray(), matrix.T.toarray())
    np.testing.assert_allclose(reverse_transitions(reverse_transitions(matrix)).toarray(), matrix.toarray())


def test_a_cell_that_none_leads_to_stays_when_time_is_reversed():
    matrix = sp.csr_matrix(np.array([[0.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]))
    reverse = reverse_transitions(matrix)
    np.testing.assert_allclose(reverse.toarray()[0], [1, 0, 0])
    np.testing.assert_allclose(reverse.sum(axis=1), 1)


def test_transitions_that_lead_back_swap_the_roles(bifurcation_kernel):
    k = bifurcation_kernel
    back = reverse_transitions(k.transition_matrix)
    args = k.connectivities, k.cells.time, k.adata.obs_names, k.adata.obs["clusters"]
    assert suggest_initial_states(back, *args, backward=True) == suggest(suggest_initial_states, k)


# ------------------------------------------------------------------------------------------ persistence, naively
def naive_persistence(height: np.ndarray, graph: sp.csr_matrix) -> dict[int, float]:
    """Lower a water level cell by cell: a maximum ends where its island first meets a higher one."""
    order, ended = np.argsort(-height), {}
    for n in range(1, height.size + 1):
        cells = order[:n]
        _, island = connected_components(graph[cells][:, cells], directed=False)
        tops = {cells[island == i][0] for i in range(island.max() + 1)}
        born = {int(c) for c in cells if (height[graph[c].indices] < height[c]).all()}
        for peak in born - {int(top) for top in tops} - ended.keys():
            ended[peak] = height[peak] - height[cells[-1]]
    return ended


@pytest.mark.parametrize("seed", range(4))
def test_persistence_agrees_with_a_naive_flood(seed):
    rng = np.random.default_rng(seed)
    graph = sp.random(40, 40, density=0.05, random_state=seed)
    graph = sp.csr_matrix(((graph + graph.T) > 0).astype(float) + line(40)[1])
    graph.setdiag(0)
    graph.eliminate_zeros()
    height = rng.permutation(40).astype(float)
    peaks, persistence, basin = _persistent_maxima(height, graph, 0.0)
    naive = naive_persistence(height, graph)
    assert dict(zip(peaks.tolist(), persistence, strict=True)) == {**naive, int(height.argmax()): 39.0}
    np.testing.assert_array_equal(basin[peaks], np.arange(peaks.size))

    merged = _persistent_maxima(height, graph, 5.0)[2]
    assert set(merged) == {i for i in range(peaks.size) if persistence[i] >= 5}
    for i in set(merged):
        assert connected_components(graph[merged == i][:, merged == i])[0] == 1


# ------------------------------------------------------------------------------------------------------- results
def test_the_host_takes_the_states(bifurcation_kernel):
    GPCCA(bifurcation_kernel).set_initial_states(suggest(suggest_initial_states, bifurcation_kernel))


def test_states_of_no_cluster_are_named_by_their_kind(bifurcation_kernel):
    k = bifurcation_kernel
    assert list(suggest_initial_states(k.transition_matrix, k.connectivities, k.cells.time, k.adata.obs_names)) == [
        "initial"
    ]


def test_no_source_is_said(bifurcation_kernel, caplog):
    with caplog.at_level(logging.WARNING, logger="cellrank_velot"):
        assert suggest(suggest_initial_states, bifurcation_kernel, SourceOptions(min_persistence=99)) == {}
    assert "Found no initial state" in caplog.text


def test_the_frame_lists_the_sinks(bifurcation_kernel):
    k = bifurcation_kernel
    sinks = find_sinks(k.transition_matrix, k.connectivities, k.cells.time)
    assert isinstance(sinks, Sinks)
    frame = sinks.to_frame()
    assert list(frame.columns) == ["peak", "persistence", "share", "time", "time_around", "advance"]
    assert (np.diff(frame["persistence"]) <= 0).all()
    assert frame["share"].sum() == pytest.approx(1)
    assert (frame["time"] > 0.5).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"time": np.arange(59)}, ValueError, r"`transitions` of shape `\(59, 59\)`"),
        ({"time": np.zeros(60)}, ValueError, "constant"),
        ({"time": np.full(60, np.nan)}, ValueError, "found NaN"),
        ({"graph": sp.identity(3, format="csr")}, ValueError, "`graph` of shape"),
        ({"transitions": sp.csr_matrix((60, 60))}, ValueError, "sum one"),
    ],
)
def test_bad_flows_are_refused(change, error, match):
    transitions, graph = line(60)
    with pytest.raises(error, match=match):
        find_sinks(**{"transitions": transitions, "graph": graph, "time": np.arange(60.0), **change})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"min_persistence": "high"}, TypeError, "`min_persistence` to be a number"),
        ({"min_time": 2}, ValueError, r"`min_time` to be in \[0, 1\]"),
        ({"n_steps": 0}, ValueError, "`n_steps` to be at least `1`"),
        ({"n_cells": 0}, ValueError, "`n_cells` to be at least `1`"),
    ],
)
def test_bad_options_are_refused(change, error, match):
    with pytest.raises(error, match=match):
        SinkOptions(**change)


def test_a_source_is_early_where_a_sink_of_the_reversed_flow_is_late():
    assert SourceOptions(max_time=0.3).min_time == 1 - 0.3
    with pytest.raises(ValueError, match=r"`max_time` to be in \[0, 1\]"):
        SourceOptions(max_time=3)
    with pytest.raises(ValueError, match="`n_cells` to be at least"):
        SourceOptions(n_cells=0)


def test_the_kernel_passes_all_options(bifurcation_kernel):
    early = bifurcation_kernel.suggest_initial_states("clusters", n_cells=12, max_time=0.2)
    assert early == suggest(suggest_initial_states, bifurcation_kernel, SourceOptions(n_cells=12, max_time=0.2))


def test_names_and_clusters_must_fit_the_cells():
    transitions, graph = line(60)
    names = [f"cell{i}" for i in range(60)]
    with pytest.raises(ValueError, match="`names` of shape"):
        suggest_initial_states(transitions, graph, np.arange(60), names[1:])
    with pytest.raises(ValueError, match="`clusters` of shape"):
        suggest_initial_states(transitions, graph, np.arange(60), names, ["a"])
