"""Ends of a process: planted branches, side groups, cycles, small ends that time misses, invariances, and options."""

import copy
import logging
import pickle

import cellrank as cr
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot.fates import EndOptions, Ends, TerminalStates, find_ends, terminal_states, with_stability
from cellrank_velot.fates.ends import _reached_through
from cellrank_velot.fates.stability import _half
from cellrank_velot.graph.geodesic import near_graph
from cellrank_velot.graph.shortest import ShortestPaths
from cellrank_velot.graph.smoothing import smooth_cells

ARMS = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])


def star(n_cells: int = 900, lengths: tuple[float, ...] = (1.0, 1.0, 1.0), seed: int = 0):
    """Return positions, time, arm and velocity of cells on a stem of length one and arms that begin at its end."""
    rng = np.random.default_rng(seed)
    arm = rng.choice(len(lengths) + 1, n_cells, p=np.array([1.0, *lengths]) / (1 + sum(lengths)))
    along = rng.uniform(0, np.array([1.0, *lengths])[arm])
    heading = np.vstack([[0.0, 0.0, 1.0], np.column_stack([ARMS[: len(lengths)], np.zeros(len(lengths))])])[arm]
    start = np.where(arm[:, None] == 0, [0.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    x = start + along[:, None] * heading + rng.normal(0, 0.04, (n_cells, 3))
    return x, np.where(arm == 0, along, 1 + along), arm, heading


def neighbors(x: np.ndarray, k: int = 15) -> sp.csr_matrix:
    graph = kneighbors_graph(x, k)
    return sp.csr_matrix(graph.maximum(graph.T))


def ends_of(x, time, velocity, labels=None, **options) -> Ends:
    graph = neighbors(x)
    cells = smooth_cells(x, time, graph, 2)
    return find_ends(x, graph, time, cells, velocity, labels, options=EndOptions(**options))


def matches(found: Ends, arm: np.ndarray) -> list[int]:
    """Return the arm that each end lies in; -1 where it does not lie in one."""
    best = [np.bincount(arm[cells]).argmax() for cells in found.cells]
    return sorted(int(a) if (arm[c] == a).mean() > 0.9 else -1 for a, c in zip(best, found.cells, strict=True))


# ------------------------------------------------------------------------------------------------- planted branches
@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 1.0), (1.0, 1.0, 1.0), (1.5, 1.0, 0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_arm_is_an_end_and_the_stem_is_none(lengths, seed):
    x, time, arm, velocity = star(lengths=lengths, seed=seed)
    assert matches(ends_of(x, time, velocity), arm) == list(range(1, len(lengths) + 1))


def test_where_the_first_cells_are_everywhere_the_flow_says_which_cells_stand_for_an_end():
    x, time, arm, velocity = star(lengths=(1.0, 1.0))
    labels = np.array(["stem", "left", "right"])[arm]
    roots = np.random.default_rng(0).choice(len(x), 60, replace=False)  # as the first day of a series
    graph = neighbors(x)
    given = (x, graph, time, smooth_cells(x, time, graph, 2), velocity, labels, roots, EndOptions(max_through=1.0))
    by_depth, by_flow = (find_ends(*given, by_flow=flow) for flow in (False, True))
    assert {"left", "right"} <= set(by_flow.names)
    for name in ("left", "right"):
        first, other = (time[found.cells[found.names.index(name)][:15]].mean() for found in (by_flow, by_depth))
        assert first > 1.85 > other


def test_a_small_end_that_time_and_flow_miss_is_found_by_its_name():
    x, time, arm, velocity = star(lengths=(1.0, 1.0, 0.15))
    small = arm == 3
    assert small.sum() < 60
    time[small], velocity[small] = 1.0 - 0.5 * (time[small] - 1), -velocity[small]  # it turns back
    labels = np.array(["stem", "one", "two", "small"])[arm]
    found = ends_of(x, time, velocity, labels)
    assert set(found.names) == {"one", "two", "small"}
    row = found.to_frame().query("group == 'small' and `from` == 'cluster'").iloc[0]
    assert row["through"] <= 0.05
    assert row["stay"] < 1
    assert row["verdict"] == "end"


def test_halves_of_the_cells_tell_arms_from_accidents():
    x, time, arm, velocity = star()
    labels = np.array(["stem", "one", "two", "three"])[arm]
    graph = neighbors(x)
    asked = (x, graph, time, smooth_cells(x, time, graph, 2), velocity, labels, None)
    options = EndOptions(n_halves=6)
    found = find_ends(*asked, options)
    table = with_stability(found, asked, options, show_progress_bar=False).to_frame()
    named = table[table["from"] == "cluster"].set_index("group")["stable"]
    assert (named[["one", "two", "three"]] == 1).all()
    assert table.sort_values("time")["stable"].iloc[0] == 0  # of the stem
    again = with_stability(found, asked, options, show_progress_bar=False).to_frame()
    np.testing.assert_array_equal(again["stable"], table["stable"])
    none = EndOptions(n_halves=0)
    assert with_stability(found, asked, none).to_frame()["stable"].isna().all()
    assert EndOptions().halves_of(20_000) == 10
    assert EndOptions().halves_of(20_001) == 0
    # Half of each name, rounded up.
    half = _half(np.array([0, 0, 0, 1, 1, 2]), np.random.default_rng(0))
    assert np.bincount(np.array([0, 0, 0, 1, 1, 2])[half]).tolist() == [2, 1, 1]


def test_a_cluster_in_the_middle_is_none_and_says_why():
    x, time, arm, velocity = star(lengths=(1.0, 1.0))
    labels = np.where(arm == 0, np.where(time < 0.5, "root", "middle"), np.where(arm == 1, "one", "two"))
    frame = ends_of(x, time, velocity, labels, min_time=0.1).to_frame()
    named = frame[frame["from"] == "cluster"].set_index("group")
    assert named.loc["middle", "verdict"] == "others are reached through it"
    assert named.loc["middle", "through"] > 1
    assert (named.loc[["one", "two"], "stay"] > 1).all()
    assert "root" not in named.index or named.loc["root", "verdict"] != "end"


def test_an_early_spur_is_no_end():
    x, time, arm, velocity = star(lengths=(1.0, 1.0))
    spur = np.random.default_rng(3).uniform(0, 0.5, 60)
    x = np.vstack([x, np.column_stack([spur, 0 * spur, 0 * spur]) + np.random.default_rng(4).normal(0, 0.04, (60, 3))])
    time = np.concatenate([time, 0.1 * spur])
    velocity = np.vstack([velocity, np.tile([0.0, 0.0, 1.0], (60, 1))])
    labels = np.concatenate([np.array(["stem", "one", "two"])[arm], np.full(60, "spur")])
    found = ends_of(x, time, velocity, labels)
    assert set(found.names) == {"one", "two"}
    assert found.to_frame().query("group == 'spur'")["verdict"].isin(["early"]).all()


def test_a_ring_has_no_end(caplog):
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 600))
    x = np.column_stack([np.cos(angle), np.sin(angle)]) + rng.normal(0, 0.03, (600, 2))
    velocity = np.column_stack([-np.sin(angle), np.cos(angle)])
    # Whatever its beginning is called, the way around leads past it.
    found = ends_of(x, (angle / (2 * np.pi) + 0.2) % 1, velocity)
    stays = found.to_frame()["stay"]
    assert (stays < 1).all()
    assert (found.to_frame()["verdict"] != "end").mean() > 0.7
    none = Ends((), (), (), 600)
    with caplog.at_level(logging.WARNING, logger="cellrank_velot"):
        assert terminal_states(none, [f"c{i}" for i in range(600)]) == {}
    assert "Found no terminal state" in caplog.text


def test_cells_of_two_parts_have_their_ends_each():
    x, time, arm, velocity = star(lengths=(1.0,))
    both = np.vstack([x, x + 10])
    found = ends_of(both, np.tile(time, 2), np.tile(velocity, (2, 1)))
    assert len(found.cells) == 2
    assert {bool(cells.min() >= len(x)) for cells in found.cells} == {False, True}
    assert all((np.tile(arm, 2)[cells] == 1).mean() > 0.9 for cells in found.cells)


# ----------------------------------------------------------------------------------------------------- the evidence
def test_ways_without_a_group_are_those_of_the_graph_without_it():
    x, time, arm, _ = star(300)
    lengths = near_graph(x, neighbors(x))
    roots = np.argsort(time)[:3]
    paths = ShortestPaths.of(lengths, roots)
    group = np.flatnonzero((arm == 0) & (time > 0.6))
    left = np.setdiff1d(np.arange(300), group)
    dense = np.where(lengths[left][:, left].toarray() > 0, lengths[left][:, left].toarray(), np.inf)
    around = np.where(np.isin(left, roots), 0.0, np.inf)
    for _ in range(300):  # Bellman and Ford
        around = np.minimum(around, (around[:, None] + dense).min(axis=0))
    expected = (around > 1.02 * paths.distance[left]).sum() / group.size
    assert _reached_through(group, paths) == expected > 1


def test_order_rotation_and_units_do_not_matter():
    x, time, arm, velocity = star()
    order = np.random.default_rng(1).permutation(len(x))
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    one = ends_of(x, time, velocity)
    other = ends_of(1e3 * (x @ turn)[order] + 5, 24 * time[order] - 3, 7 * (velocity @ turn)[order])
    assert matches(one, arm) == matches(other, arm[order]) == [1, 2, 3]
    named = [ends_of(x, time, velocity, np.array(list("sabc"))[arm], random_state=seed).names for seed in (0, 1, 2)]
    assert all(set(names) == {"a", "b", "c"} for names in named)


def test_inputs_are_left_alone():
    x, time, _, velocity = star(300)
    graph = neighbors(x)
    cells = smooth_cells(x, time, graph, 2)
    given = [a.copy() for a in (x, time, velocity, graph.data, cells.x)]
    find_ends(x, graph, time, cells, velocity)
    for before, after in zip(given, (x, time, velocity, graph.data, cells.x), strict=True):
        np.testing.assert_array_equal(before, after)


# ------------------------------------------------------------------------------------------------------- the states
@pytest.fixture(scope="module")
def kernel() -> OTVelocityKernel:
    adata = datasets.tree(800, random_state=2)
    kernel = OTVelocityKernel(adata).fit_field(show_progress_bar=False)
    return kernel.compute_transition_matrix(show_progress_bar=False)


FATES = {"Fate A1", "Fate A2", "Fate B1", "Fate B2"}


def test_states_are_a_dictionary_that_the_host_takes_and_that_can_be_changed(kernel):
    states = kernel.suggest_terminal_states("clusters")
    assert isinstance(states, TerminalStates)
    assert set(states) == FATES
    assert {len(cells) for cells in states.values()} == {30}
    frame = states.to_frame()
    assert list(frame) == ["group", "from", "cells", "through", "stay", "time", "stable", "verdict"]
    frame["stay"] = np.nan  # a copy
    assert states.to_frame()["stay"].notna().all()
    del states["Fate A1"]
    assert set(states.add("Fate A1").add("Branch A")) == FATES | {"Branch A"}
    with pytest.raises(KeyError, match="one of the groups .*'Branch A'.*, found 'Stem'"):
        states.add("Stem")
    del states["Branch A"]
    for other in (copy.deepcopy(states), pickle.loads(pickle.dumps(states))):
        assert other == states
        assert other.to_frame().equals(states.to_frame())
    g = cr.estimators.GPCCA(kernel).set_terminal_states(states)
    g.compute_fate_probabilities(use_petsc=False, show_progress_bar=False)
    fates = np.asarray(g.fate_probabilities[:, sorted(FATES)])
    clusters = kernel.adata.obs["clusters"].to_numpy()
    for number, name in enumerate(sorted(FATES)):
        assert fates[clusters == name, number].mean() > 0.9


def test_without_clusters_states_are_numbered(kernel):
    states = kernel.suggest_terminal_states()
    assert list(states) == [f"terminal_{number}" for number in (1, 2, 3, 4)]
    clusters = kernel.adata.obs["clusters"]
    assert {clusters[cells].mode()[0] for cells in states.values()} == FATES
    assert {len(cells) for cells in kernel.suggest_terminal_states(n_cells=7).values()} == {7}


def test_a_backward_kernel_knows_the_same_ends(kernel):
    assert (~kernel.copy()).suggest_terminal_states("clusters") == kernel.suggest_terminal_states("clusters")


def test_ends_are_found_anew_where_what_they_depend_on_has_changed(kernel):
    kernel = kernel.copy()
    one = kernel._find_ends("clusters")
    assert kernel._find_ends("clusters") is one
    assert kernel._find_ends(None) is not one
    one = kernel._find_ends("clusters")
    assert kernel._find_ends("clusters", options=EndOptions(n_groups=6)) is not one
    one = kernel._find_ends("clusters")
    kernel.fit_field(n_steps=20, show_progress_bar=False)
    assert kernel._find_ends("clusters") is not one


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"n_cells": 0}, ValueError, "`n_cells` to be at least `1`"),
        ({"max_through": "few"}, TypeError, "`max_through` to be a number"),
        ({"min_stay": -1}, ValueError, "`min_stay` to be in"),
        ({"min_time": 2}, ValueError, r"`min_time` to be in \[0, 1\]"),
        ({"n_groups": 1}, ValueError, "`n_groups` to be at least `2`"),
        ({"random_state": -1}, ValueError, "`random_state`"),
    ],
)
def test_bad_options_are_refused(kernel, change, error, match):
    with pytest.raises(error, match=match):
        kernel.suggest_terminal_states(**change)
