"""Metrics against planted truths, loops that follow their definitions, VelOT's own, and degenerate cells."""

import cellrank as cr
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import ortho_group, pearsonr
from sklearn.neighbors import kneighbors_graph

from cellrank_velot import OTVelocityKernel, metrics
from cellrank_velot.metrics import direction as direction_module
from cellrank_velot.metrics import genes as genes_module
from cellrank_velot.transitions.matrix import compute_transitions
from cellrank_velot.transitions.options import TransitionOptions
from cellrank_velot.transitions.similarities import edge_similarities

NAMES = np.array(["stem", "left", "right"])
EDGES = [("stem", "left"), ("stem", "right")]
kinds = pytest.mark.parametrize("kind", ["cosine", "fraction"])


def neighbor_graph(x: np.ndarray, n_neighbors: int = 10) -> sp.csr_matrix:
    graph = kneighbors_graph(x, n_neighbors)
    return sp.csr_matrix(graph.maximum(graph.T))


def straight_flow(n_cells: int, n_dims: int = 5) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Noisy cells that move along the first dimension at speed 4: positions, time and graph."""
    rng = np.random.default_rng(0)
    time = rng.permutation(np.linspace(0, 1, n_cells))
    x = rng.normal(scale=0.15, size=(n_cells, n_dims))
    x[:, 0] += 4 * time
    return x, time, neighbor_graph(x)


def arc(n_cells: int) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Noisy cells that move along three quarters of a circle: positions, time and graph."""
    rng = np.random.default_rng(0)
    time = rng.permutation(np.linspace(0, 1, n_cells))
    angle = 1.5 * np.pi * time
    x = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(n_cells)])
    x += rng.normal(scale=0.02, size=x.shape)
    return x, time, neighbor_graph(x)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm > 0 else 0.0


def loop_boundary(x, velocity, graph, labels, edges, kind) -> list[float]:
    """Cell by cell, as the metric is defined."""
    scores = []
    for source, target in edges:
        per_cell = []
        for i in np.flatnonzero((labels == source) & np.isfinite(velocity).all(1)):
            neighbors = graph[i].indices[labels[graph[i].indices] == target]
            if neighbors.size:
                values = np.array([cosine(velocity[i], x[j] - x[i]) for j in neighbors])
                per_cell.append(values.mean() if kind == "cosine" else (values > 0).mean())
        scores.append(np.mean(per_cell) if per_cell else np.nan)
    return scores


def loop_coherence(velocity, graph, labels) -> dict[str, float]:
    known = np.isfinite(velocity).all(1)
    scores = {}
    for cluster in np.unique(labels):
        per_cell = []
        for i in np.flatnonzero((labels == cluster) & known):
            neighbors = [j for j in graph[i].indices if labels[j] == cluster and known[j]]
            if neighbors:
                per_cell.append(np.mean([cosine(velocity[i], velocity[j]) for j in neighbors]))
        scores[cluster] = np.mean(per_cell) if per_cell else np.nan
    return scores


@pytest.fixture(scope="module")
def line() -> tuple[np.ndarray, sp.csr_matrix, np.ndarray]:
    """Cells exactly on a line, three clusters in a row."""
    x = np.outer(np.linspace(0, 1, 60), [3.0, 4.0, 0.0])
    return x, neighbor_graph(x, 6), np.repeat(["a", "b", "c"], 20)


@pytest.fixture(scope="module")
def noisy(planted) -> dict[str, np.ndarray]:
    """A bifurcation with noisy velocities: some zero, some unknown, and two cells of two clusters at one place."""
    x = planted.x.copy()
    x[np.flatnonzero(planted.labels == 0)[-1]] = x[np.flatnonzero(planted.labels == 1)[0]]
    velocity = planted.velocity + np.random.default_rng(0).normal(scale=3, size=x.shape)
    velocity[:5] = 0
    velocity[50:60] = np.nan
    return {"x": x, "velocity": velocity, "graph": neighbor_graph(x), "labels": NAMES[planted.labels]}


# ---------------------------------------------------------------------------------------- cross-boundary, coherence
@pytest.mark.parametrize(("sign", "fraction"), [(1, 1.0), (-1, 0.0)])
def test_a_flow_along_a_line_is_correct_and_reversed_it_is_not(line, sign, fraction):
    x, graph, labels = line
    velocity = np.tile(sign * np.array([3.0, 4.0, 0.0]), (60, 1))
    edges = [("a", "b"), ("b", "c")]
    score = metrics.cross_boundary_correctness(x, velocity, graph, labels, edges)
    np.testing.assert_allclose(score, sign, atol=1e-12)
    assert list(score.index) == edges
    assert score["a", "b"] == pytest.approx(sign)
    share = metrics.cross_boundary_correctness(x, velocity, graph, labels, edges, "fraction")
    np.testing.assert_array_equal(share, fraction)
    np.testing.assert_allclose(metrics.inner_cluster_coherence(velocity, graph, labels), 1)


def test_random_velocities_score_nothing():
    x, time, graph = straight_flow(1000, 10)
    labels = NAMES[(time * 3).astype(int).clip(max=2)]
    velocity = np.random.default_rng(1).normal(size=x.shape)
    args = (x, velocity, graph, labels, [("stem", "left"), ("left", "right")])
    assert abs(metrics.cross_boundary_correctness(*args).mean()) < 0.12
    assert abs(metrics.cross_boundary_correctness(*args, "fraction").mean() - 0.5) < 0.2
    assert abs(metrics.inner_cluster_coherence(velocity, graph, labels).mean()) < 0.05


@kinds
def test_cross_boundary_equals_its_loop(noisy, kind):
    args = [noisy[name] for name in ("x", "velocity", "graph", "labels")]
    edges = [*EDGES, ("left", "stem"), ("left", "left")]
    found = metrics.cross_boundary_correctness(*args, edges, kind)
    np.testing.assert_allclose(found, loop_boundary(*args, edges, kind), rtol=1e-12)


def test_cross_boundary_is_computed_on_the_cpu(noisy, monkeypatch):
    used = []

    def noted(*args, run):
        used.append(run.device)
        return edge_similarities(*args, run=run)

    monkeypatch.setattr(direction_module, "edge_similarities", noted)
    metrics.cross_boundary_correctness(*(noisy[name] for name in ("x", "velocity", "graph", "labels")), EDGES)
    assert used == ["cpu"]


def test_coherence_equals_its_loop(noisy):
    args = [noisy[name] for name in ("velocity", "graph", "labels")]
    found = metrics.inner_cluster_coherence(*args)
    assert found.to_dict() == pytest.approx(loop_coherence(*args), rel=1e-12)


@kinds
def test_both_equal_velot(noisy, adata, kind):
    velot = pytest.importorskip("velot.metrics")
    adata.obsm["X_pca"], adata.obsp["connectivities"] = noisy["x"], noisy["graph"]
    velocity = np.nan_to_num(noisy["velocity"])
    adata.obsm["v"] = velocity
    keys = {"cluster_key": "clusters", "velocity_key": "v"}
    theirs, mean = velot.cross_boundary_correctness(
        adata, EDGES, embedding_key="X_pca", majority_vote=kind == "fraction", **keys
    )
    ours = metrics.cross_boundary_correctness(noisy["x"], velocity, noisy["graph"], adata.obs["clusters"], EDGES, kind)
    assert ours.to_dict() == pytest.approx(theirs, rel=1e-10)
    assert ours.mean() == pytest.approx(mean, rel=1e-10)
    theirs, mean = velot.inner_cluster_coherence(adata, **keys)
    ours = metrics.inner_cluster_coherence(velocity, noisy["graph"], adata.obs["clusters"])
    assert ours.to_dict() == pytest.approx(theirs, rel=1e-10)
    assert ours.mean() == pytest.approx(mean, rel=1e-10)


@pytest.mark.parametrize("change", ["rotation", "shift", "speed", "permutation", "weights"])
def test_invariances(noisy, change):
    def scores(x, velocity, graph, labels):
        boundary = metrics.cross_boundary_correctness(x, velocity, graph, labels, EDGES)
        return np.r_[boundary, metrics.inner_cluster_coherence(velocity, graph, labels)]

    x, velocity, graph, labels = (noisy[name] for name in ("x", "velocity", "graph", "labels"))
    before = scores(x, velocity, graph, labels)
    rng = np.random.default_rng(0)
    if change == "rotation":
        rotation = ortho_group.rvs(x.shape[1], random_state=0)
        x, velocity = x @ rotation, velocity @ rotation
    elif change == "shift":
        x = x + 7
    elif change == "speed":
        velocity = velocity * rng.uniform(0.1, 1e3, size=(x.shape[0], 1))
    elif change == "permutation":
        order = rng.permutation(x.shape[0])
        x, velocity, graph, labels = x[order], velocity[order], graph[order][:, order], labels[order]
    else:
        graph = graph.copy()
        graph.data = rng.uniform(1, 2, graph.data.size)
    np.testing.assert_allclose(scores(x, velocity, graph, labels), before, rtol=1e-9)


def test_stored_zeros_and_self_loops_are_no_neighbours(noisy):
    x, velocity, graph, labels = (noisy[name] for name in ("x", "velocity", "graph", "labels"))
    padded = sp.csr_matrix(graph + sp.eye(x.shape[0]))
    extra = sp.csr_matrix((np.ones(1), ([0], [150])), shape=graph.shape)
    padded = sp.csr_matrix(padded + extra)
    padded[0, 150] = graph[0, 150]
    for name, arguments in (
        ("inner_cluster_coherence", lambda g: (velocity, g, labels)),
        ("cross_boundary_correctness", lambda g: (x, velocity, g, labels, EDGES)),
    ):
        metric = getattr(metrics, name)
        pd.testing.assert_series_equal(metric(*arguments(padded)), metric(*arguments(graph)))


def test_nothing_to_score_is_nan(line):
    x, graph, labels = line
    velocity = np.ones_like(x)
    score = metrics.cross_boundary_correctness(x, velocity, graph, labels, [("a", "c"), ("a", "b")])
    assert np.isnan(score["a", "c"])
    assert np.isfinite(score.mean())
    velocity = np.full_like(x, np.nan)
    assert metrics.cross_boundary_correctness(x, velocity, graph, labels, [("a", "b")]).isna().all()
    assert metrics.inner_cluster_coherence(velocity, graph, labels).isna().all()
    assert metrics.inner_cluster_coherence(np.ones_like(x), sp.csr_matrix(graph.shape), labels).isna().all()
    categorical = pd.Categorical(labels, categories=["a", "b", "c", "empty"])
    assert np.isnan(metrics.inner_cluster_coherence(np.ones_like(x), graph, categorical)["empty"])


def test_cells_without_a_label_belong_to_no_cluster(line):
    x, graph, labels = line
    velocity = x.copy()
    partial = pd.Series(labels, dtype=object)
    partial[20:40] = None
    score = metrics.inner_cluster_coherence(velocity, graph, partial)
    assert list(score.index) == ["a", "c"]
    assert np.isnan(metrics.cross_boundary_correctness(x, velocity, graph, partial, [("a", "c")]).iloc[0])


def test_an_edge_given_twice_counts_once(noisy):
    args = [noisy[name] for name in ("x", "velocity", "graph", "labels")]
    once = metrics.cross_boundary_correctness(*args, EDGES)
    pd.testing.assert_series_equal(metrics.cross_boundary_correctness(*args, [*EDGES, list(EDGES[0])]), once)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"edges": [("a", "nope")]}, KeyError, r"clusters \['a', 'b', 'c'\], found \['nope'\]"),
        ({"edges": []}, ValueError, "at least one pair"),
        ({"edges": ["ab"]}, ValueError, "pairs of clusters"),
        ({"kind": "other"}, ValueError, "`kind`"),
        ({"velocity": np.ones((60, 2))}, ValueError, r"`velocity` of shape `\(60, 3\)`, found `\(60, 2\)`"),
        ({"velocity": np.ones(60)}, ValueError, r"`\[n_cells, n_dims\]`"),
        ({"graph": sp.eye(59).tocsr()}, ValueError, r"`graph` of shape `\(60, 60\)`"),
        ({"labels": ["a"] * 59}, ValueError, "`labels`"),
        ({"x": np.full((60, 3), np.nan)}, ValueError, "finite positions"),
    ],
)
def test_bad_input_is_refused(line, change, error, match):
    x, graph, labels = line
    arguments = {"x": x, "velocity": x, "graph": graph, "labels": labels, "edges": [("a", "b")]} | change
    with pytest.raises(error, match=match):
        metrics.cross_boundary_correctness(**arguments)


# ------------------------------------------------------------------------------------------ direction across borders
def to_neighbors(x: np.ndarray, graph: sp.csr_matrix) -> np.ndarray:
    return np.stack([x[graph[i].indices].mean(axis=0) - x[i] for i in range(x.shape[0])])


def test_direction_across_borders_knows_the_truth_from_noise(planted):
    """The way to the neighbours' mean scores as high as the truth by the old score, and nothing by the new one."""
    rng = np.random.default_rng(0)
    x = np.hstack([planted.x, rng.normal(scale=0.6, size=(planted.x.shape[0], 10))])  # as counts have it
    truth = np.hstack([planted.velocity, np.zeros((x.shape[0], 10))])
    graph, labels = neighbor_graph(x), NAMES[planted.labels]
    home = to_neighbors(x, graph)

    def scores(forward, backward):
        return metrics.cross_boundary_direction(x, forward, backward, graph, labels, EDGES)

    true, noise, both = scores(truth, -truth), scores(home, home), scores(truth + 5 * home, -truth + 5 * home)
    np.testing.assert_allclose(noise["direction"], 0, atol=1e-12)
    for table in (true, noise, both):
        np.testing.assert_allclose(table["no_time"], noise["forward"], rtol=1e-12)
        np.testing.assert_allclose(table["direction"], (table["forward"] - table["reversed"]) / 2)
    assert (noise["forward"] > true["forward"]).all()
    assert (both["forward"] > true["forward"]).all()
    assert (true["direction"] > both["direction"] + 0.1).all()
    assert (true["direction"] > 0.3).all()
    np.testing.assert_allclose(scores(-truth, truth)["direction"], -true["direction"])


@pytest.mark.parametrize("change", ["rotation", "shift", "speed", "permutation", "weights", "self-loops"])
def test_invariances_of_direction_across_borders(noisy, change):
    rng = np.random.default_rng(0)
    x, velocity, graph, labels = (noisy[name] for name in ("x", "velocity", "graph", "labels"))
    backward = rng.normal(size=x.shape) - velocity
    before = metrics.cross_boundary_direction(x, velocity, backward, graph, labels, EDGES)
    if change == "rotation":
        x, velocity, backward = (a @ ortho_group.rvs(x.shape[1], random_state=0) for a in (x, velocity, backward))
    elif change == "shift":
        x = x + 7
    elif change == "speed":
        velocity, backward = 1e3 * velocity, 0.1 * backward
    elif change == "permutation":
        order = rng.permutation(x.shape[0])
        x, velocity, backward, labels = (a[order] for a in (x, velocity, backward, labels))
        graph = graph[order][:, order]
    elif change == "weights":
        graph = graph.copy()
        graph.data = rng.uniform(1, 2, graph.data.size)
    else:
        graph = sp.csr_matrix(graph + sp.eye(x.shape[0]))
    after = metrics.cross_boundary_direction(x, velocity, backward, graph, labels, EDGES)
    pd.testing.assert_frame_equal(after, before, rtol=1e-9)


def test_direction_across_borders_counts_the_same_cells_throughout(noisy):
    x, velocity, graph, labels = (noisy[name] for name in ("x", "velocity", "graph", "labels"))
    backward = -velocity
    backward[100:130] = np.nan
    unknown = np.isnan(velocity).any(axis=1) | np.isnan(backward).any(axis=1)
    found = metrics.cross_boundary_direction(x, velocity, backward, graph, labels, EDGES)
    each = {"forward": velocity, "reversed": backward, "no_time": to_neighbors(x, graph)}
    for column, vectors in each.items():
        vectors = np.where(unknown[:, None], np.nan, vectors)
        np.testing.assert_allclose(found[column], loop_boundary(x, vectors, graph, labels, EDGES, "cosine"), rtol=1e-9)
    nothing = metrics.cross_boundary_direction(x, velocity, np.full_like(x, np.nan), graph, labels, EDGES)
    assert nothing.isna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"edges": [("a", "nope")]}, KeyError, r"clusters \['a', 'b', 'c'\], found \['nope'\]"),
        ({"edges": []}, ValueError, "at least one pair"),
        ({"reversed_velocity": np.ones((60, 2))}, ValueError, r"`reversed_velocity` of shape `\(60, 3\)`, found `\(60"),
        ({"reversed_velocity": np.ones(60)}, ValueError, r"`reversed_velocity` of shape `\[n_cells, n_dims\]`"),
        ({"graph": sp.eye(59).tocsr()}, ValueError, r"`graph` of shape `\(60, 60\)`"),
        ({"labels": ["a"] * 59}, ValueError, "`labels`"),
        ({"x": np.full((60, 3), np.nan)}, ValueError, "finite positions"),
    ],
)
def test_bad_input_for_direction_across_borders(line, change, error, match):
    x, graph, labels = line
    arguments = {
        "x": x,
        "velocity": x,
        "reversed_velocity": -x,
        "graph": graph,
        "labels": labels,
        "edges": [("a", "b")],
    }
    with pytest.raises(error, match=match):
        metrics.cross_boundary_direction(**arguments | change)


# ---------------------------------------------------------------------------------------------------- known velocity
def test_cosine_to_truth_recovers_the_angle():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 2))
    angle = np.deg2rad(60)
    turned = truth @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    speed = rng.uniform(0.1, 9, size=(200, 1))
    assert metrics.cosine_to_truth(turned * speed, truth) == pytest.approx(0.5)
    assert metrics.cosine_to_truth(-truth, truth, fastest=1) == pytest.approx(-1)
    np.testing.assert_allclose(metrics.cosines(turned, truth), 0.5)


def test_only_the_fastest_cells_count():
    truth = np.outer(np.arange(1, 11), [1.0, 0.0])
    velocity = truth.copy()
    velocity[:2] *= -1  # the slowest fifth
    assert metrics.cosine_to_truth(velocity, truth) == pytest.approx(1)
    assert metrics.cosine_to_truth(velocity, truth, fastest=1) == pytest.approx(0.6)
    velocity[2:4] = [[np.nan, 0], [0, 0]]  # no estimate is left out, a zero one has no direction
    assert metrics.cosine_to_truth(velocity, truth) == pytest.approx(6 / 7)


def test_cosine_to_truth_without_cells():
    truth = np.ones((4, 2))
    assert np.isnan(metrics.cosine_to_truth(np.full((4, 2), np.nan), truth))
    assert np.isnan(metrics.cosine_to_truth(truth, np.zeros((4, 2))))
    assert np.isnan(metrics.cosine_to_truth(truth, np.full((4, 2), np.nan)))
    with pytest.raises(ValueError, match="one shape"):
        metrics.cosine_to_truth(np.ones((4, 3)), truth)
    with pytest.raises(ValueError, match="fastest"):
        metrics.cosine_to_truth(truth, truth, fastest=0)


def test_cosines_of_very_small_and_large_vectors():
    a = np.array([[1e-200, 1e-200], [1e200, -1e200]])
    np.testing.assert_allclose(metrics.cosines(a, np.array([[5.0, 5.0], [1.0, 0.0]])), [1, np.sqrt(0.5)])


# ---------------------------------------------------------------------------------------------------------- matrices
def random_chain(seed: int, n: int = 40, density: float = 0.3) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=(n, n)) * (rng.uniform(size=(n, n)) < density) + 1e-3 * np.eye(n)
    return sp.csr_matrix(weights / weights.sum(1, keepdims=True))


def test_row_correlations_equal_pearson_row_by_row():
    a, b = random_chain(0), random_chain(1)
    full, other = a.toarray(), b.toarray()
    union = [(full[i] > 0) | (other[i] > 0) for i in range(40)]
    expected = [pearsonr(full[i, u], other[i, u])[0] for i, u in enumerate(union)]
    np.testing.assert_allclose(metrics.row_correlations(a, b), expected, atol=1e-12)
    everywhere = [pearsonr(full[i], other[i])[0] for i in range(40)]
    np.testing.assert_allclose(metrics.row_correlations(a, b, "all"), everywhere, atol=1e-12)
    assert metrics.reconstructability(a, b) == pytest.approx(np.median(expected))


def test_reconstructability_of_itself_of_its_opposite_and_of_chance():
    a = random_chain(0)
    assert metrics.reconstructability(a, a) == pytest.approx(1)
    opposite = a.copy()
    rows = np.repeat(np.arange(40), np.diff(a.indptr))
    opposite.data = 2 * np.bincount(rows, a.data)[rows] / np.diff(a.indptr)[rows] - a.data
    assert metrics.reconstructability(a, opposite) == pytest.approx(-1)
    big, other = random_chain(2, 400, 0.1), random_chain(3, 400, 0.1)
    other = sp.csr_matrix((np.random.default_rng(0).uniform(size=big.data.size), big.indices, big.indptr))
    assert abs(metrics.reconstructability(big, other)) < 0.05
    order = np.random.default_rng(1).permutation(40)
    b = random_chain(1)
    permuted = metrics.row_correlations(a[order][:, order], b[order][:, order])
    np.testing.assert_allclose(permuted, metrics.row_correlations(a, b)[order], atol=1e-12)


def test_constant_rows_have_no_correlation():
    third = sp.csr_matrix(np.full((3, 3), 1 / 3))
    stays = sp.eye(3).tocsr()
    assert np.isnan(metrics.row_correlations(third, random_chain(0, 3, 1.0))).all()
    assert np.isnan(metrics.reconstructability(third, third))
    assert np.isnan(metrics.row_correlations(stays, stays)).all()
    np.testing.assert_allclose(metrics.row_correlations(stays, stays, "all"), 1)
    with pytest.raises(ValueError, match="one shape"):
        metrics.reconstructability(third, random_chain(0))
    with pytest.raises(ValueError, match="`over`"):
        metrics.reconstructability(third, third, over="none")


def test_step_forward_fraction_counts_cells_that_gain_time():
    chain = sp.csr_matrix(np.eye(5, k=1) + np.diag([0, 0, 0, 0, 1.0]))
    assert metrics.step_forward_fraction(chain, np.arange(5)) == pytest.approx(0.8)
    assert metrics.step_forward_fraction(chain, -np.arange(5)) == 0
    assert metrics.step_forward_fraction(random_chain(0), np.full(40, 0.1)) == 0  # rounding is no step
    with pytest.raises(ValueError, match="one `time` a cell"):
        metrics.step_forward_fraction(chain, np.arange(4))
    with pytest.raises(ValueError, match="finite `time`"):
        metrics.step_forward_fraction(chain, [0, 1, 2, 3, np.nan])


# ---------------------------------------------------------------------------------------------------- held-out cells
QUICK = {"windows": {"min_window_size": 10}, "field": {"hidden": (16,), "n_steps": 100}}


def test_a_flow_agrees_with_held_out_cells_and_shuffled_time_does_not():
    x, time, graph = arc(400)
    found = metrics.held_out_agreement(x, time, graph, **QUICK)
    assert found.cells.shape == (200,)
    assert found.predicted.shape == found.estimated.shape == (200, 3)
    assert found.cosine > 0.75
    assert 0.3 < found.r2 <= 1
    shuffled = np.random.default_rng(0).permutation(time)
    none = metrics.held_out_agreement(x, shuffled, graph, **QUICK)
    assert none.cosine < 0.4 < found.cosine
    assert none.r2 < 0.1
    again = metrics.held_out_agreement(x, time, graph, **QUICK)
    np.testing.assert_array_equal(again.predicted, found.predicted)
    other = metrics.held_out_agreement(x, time, graph, random_state=1, **QUICK)
    assert not np.array_equal(other.cells, found.cells)


def test_another_method_is_judged_and_sees_no_held_out_cell():
    x, time, graph = straight_flow(300)
    seen = []

    def fit(*kept):
        seen.append(kept)
        return lambda at, when: np.tile([4.0, 0, 0, 0, 0], (len(at), 1))

    found = metrics.held_out_agreement(
        x, time, graph, labels=np.zeros(300, dtype=int), held_out=0.4, windows=QUICK["windows"], fit=fit
    )
    assert [part.shape for part in seen[0]] == [(180, 5), (180,), (180, 180)]
    assert not set(map(tuple, seen[0][0])) & set(map(tuple, x[found.cells]))
    assert found.cosine > 0.5


def test_agreement_of_planted_velocities():
    v = np.random.default_rng(0).normal(size=(30, 3))
    cells = np.arange(30)
    assert metrics.HeldOutAgreement(cells, v, v).cosine == pytest.approx(1)
    assert metrics.HeldOutAgreement(cells, v, v).r2 == pytest.approx(1)
    assert metrics.HeldOutAgreement(cells, np.tile(v.mean(0), (30, 1)), v).r2 == pytest.approx(0)
    gaps = v.copy()
    gaps[:10] = np.nan
    assert metrics.HeldOutAgreement(cells, v, gaps).r2 == pytest.approx(1)
    nothing = metrics.HeldOutAgreement(cells, v, np.full_like(v, np.nan))
    assert np.isnan(nothing.cosine)
    assert np.isnan(nothing.r2)


def test_held_out_agreement_refuses_bad_input(planted):
    with pytest.raises(ValueError, match="held_out"):
        metrics.held_out_agreement(planted.x, planted.time, planted.graph, held_out=1)
    with pytest.raises(ValueError, match="`240` cells"):
        metrics.held_out_agreement(planted.x, planted.time[1:], planted.graph)
    for name in ("windows", "velocity", "field"):
        with pytest.raises(TypeError, match=rf"in `{name}`, found \['nope'\]"):
            metrics.held_out_agreement(planted.x, planted.time, planted.graph, **{name: {"nope": 1}})


# ------------------------------------------------------------------------------------------------------------- genes
def test_gene_velocity_is_the_velocity_in_the_space_of_genes(computed):
    adata = computed.adata
    assert metrics.gene_velocity(computed) is None
    layer = adata.layers["velot_velocity"]
    assert layer.shape == adata.shape
    assert layer.dtype == np.float32
    np.testing.assert_allclose(layer, computed.velocity @ adata.varm["PCs"].T, rtol=1e-4, atol=1e-5)
    # Orthonormal loadings lose nothing.
    np.testing.assert_allclose(layer @ adata.varm["PCs"], computed.velocity, rtol=1e-4, atol=1e-5)


def test_gene_velocity_of_some_genes_and_of_those_without_loadings(computed, monkeypatch):
    monkeypatch.setattr(genes_module, "CHUNK_CELLS", 50)
    adata = computed.adata
    adata.varm["PCs"][12:] = 0
    metrics.gene_velocity(computed, key_added="all")
    assert np.isnan(adata.layers["all"][:, 12:]).all()
    assert np.isfinite(adata.layers["all"][:, :12]).all()
    frame = metrics.gene_velocity(computed, ["gene_7", "gene_2", "gene_15"], copy=True)
    assert list(frame.columns) == ["gene_7", "gene_2", "gene_15"]
    assert list(frame.index) == list(adata.obs_names)
    np.testing.assert_array_equal(frame, adata.layers["all"][:, [7, 2, 15]])
    assert "velot_velocity" not in adata.layers
    metrics.gene_velocity(computed, "highly_variable")
    np.testing.assert_array_equal(adata.layers["velot_velocity"], adata.layers["all"])
    metrics.gene_velocity(computed, ["gene_3"])
    assert np.flatnonzero(np.isfinite(adata.layers["velot_velocity"]).all(0)).tolist() == [3]
    raw = metrics.gene_velocity(computed, ["gene_3"], copy=True, smooth=False)
    np.testing.assert_array_equal(raw["gene_3"].isna(), ~computed.transport.has_estimate)


def test_gene_velocity_points_along_the_planted_one(computed, planted):
    truth = planted.velocity @ computed.adata.varm["PCs"].T
    found = metrics.gene_velocity(computed, copy=True)
    # Orthonormal loadings keep every angle.
    expected = metrics.cosine_to_truth(computed.velocity, planted.velocity)
    assert metrics.cosine_to_truth(found, truth) == pytest.approx(expected, abs=1e-5)
    assert expected > 0.6


def test_gene_functions_refuse_what_is_missing(computed, adata):
    with pytest.raises(KeyError, match=r"found `1` others: \['nope'\]"):
        metrics.gene_velocity(computed, ["gene_1", "nope"])
    with pytest.raises(KeyError, match=r"adata.var\['nope'\]"):
        metrics.gene_velocity(computed, "nope")
    with pytest.raises(RuntimeError, match="fit_field"):
        metrics.gene_velocity(OTVelocityKernel(adata))
    with pytest.raises(RuntimeError, match="compute_transition_matrix"):
        metrics.reconstructability_score(OTVelocityKernel(adata), ["gene_1"])
    computed.adata.varm["PCs"] = computed.adata.varm["PCs"][:, :3]
    with pytest.raises(ValueError, match="`5` dimensions of the velocity, found `3`"):
        metrics.gene_velocity(computed)
    del computed.adata.varm["PCs"]
    with pytest.raises(KeyError, match="loadings of a PCA"):
        metrics.gene_velocity(computed)


def test_reconstructability_grows_with_the_genes(computed):
    before = computed.transition_matrix.copy()
    names = list(computed.adata.var_names)
    scores = [metrics.reconstructability_score(computed, names[:n]) for n in (2, 8, 20)]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] == pytest.approx(1)  # orthonormal loadings keep every cosine
    assert metrics.reconstructability_score(computed, names[:2], over="all") > scores[0]
    assert (computed.transition_matrix != before).nnz == 0
    assert "gene_subset" not in computed.params
    loadings = computed.adata.varm["PCs"][:8].T
    reduced = compute_transitions(
        computed.cells.x,
        computed.velocity,
        computed.connectivities,
        TransitionOptions(softmax_scale=computed.params["softmax_scale"]),
        ends=computed._find_ends(computed.cluster_key).label,
        loadings=loadings,
    )
    assert scores[1] == pytest.approx(metrics.reconstructability(computed.transition_matrix, reduced.matrix))


def test_reconstructability_follows_the_options_of_the_matrix(computed):
    names = list(computed.adata.var_names)
    raw = computed.copy().compute_transition_matrix("correlation", smooth=False, variance_stabilize=False)
    assert raw.params["smooth"] is False
    assert -1 <= metrics.reconstructability_score(raw, names) < 1
    backward = (~computed).compute_transition_matrix(backward_mode="negate")
    assert metrics.reconstructability_score(backward, names) == pytest.approx(1)
    subset = computed.copy().compute_transition_matrix(gene_subset=names[:3])
    with pytest.raises(ValueError, match="found one of a subset"):
        metrics.reconstructability_score(subset, names)

    def product(v, d):
        return (v * d).sum(1)

    own = computed.copy().compute_transition_matrix(product)
    with pytest.raises(ValueError, match="function `product`"):
        metrics.reconstructability_score(own, names)
    assert metrics.reconstructability_score(own, names, similarity=product) == pytest.approx(1)


# -------------------------------------------------------------------------------------------------- CellRank's scores
def test_terminal_states_are_identified_by_cellrank(computed):
    estimator = cr.estimators.GPCCA(computed)
    columns = list(computed.adata.obs)
    assert metrics.terminal_state_identification(estimator, ["left", "right"], "clusters", 3) == pytest.approx(1)
    assert metrics.terminal_state_identification(estimator, ["stem"], "clusters") < 1
    assert list(computed.adata.obs) == columns
    assert estimator.macrostates is None
    with pytest.raises(KeyError, match=r"\['left', 'right', 'stem'\], found \['nope'\]"):
        metrics.terminal_state_identification(estimator, ["nope"], "clusters")
    with pytest.raises(ValueError, match="at least one terminal state"):
        metrics.terminal_state_identification(estimator, [], "clusters")
    computed.adata.obs["cut"] = computed.adata.obs["clusters"].cat.rename_categories({"left": "left_arm"})
    with pytest.raises(ValueError, match=r"underscore.*left_arm"):
        metrics.terminal_state_identification(estimator, ["left_arm"], "cut")


def test_step_boundary_correctness_is_the_hosts(computed):
    edges = [*EDGES, ("left", "stem")]
    computed.fit_field(show_progress_bar=False).compute_transition_matrix()  # to the end: few cells lie at a border
    found = metrics.step_boundary_correctness(computed, edges, "clusters")
    for edge, value in found.items():
        assert value == pytest.approx(computed.cbc(*edge, cluster_key="clusters", rep="X_pca").mean())
    assert found["stem", "left"] > 0 > found["left", "stem"]
    combined = 0.8 * computed + 0.2 * cr.kernels.ConnectivityKernel(computed.adata).compute_transition_matrix()
    assert metrics.step_boundary_correctness(combined, EDGES, "clusters").notna().all()
    with pytest.raises(KeyError, match="nope"):
        metrics.step_boundary_correctness(computed, [("stem", "nope")], "clusters")
    with pytest.raises(KeyError, match=r"adata.obsm\['X_none'\]"):
        metrics.step_boundary_correctness(computed, EDGES, "clusters", rep="X_none")


def test_step_boundary_correctness_without_a_border_is_nan(computed):
    computed.adata.obs["part"] = pd.Categorical(np.where(computed.cells.time < 0.1, "first", "last"))
    computed.adata.obs["part"] = computed.adata.obs["part"].cat.add_categories("none")
    assert metrics.step_boundary_correctness(computed, [("first", "none")], "part").isna().all()


# ----------------------------------------------------------------------------------------------------------- summary
def test_summary_holds_every_metric(computed, planted):
    computed.adata.obsm["truth"] = planted.velocity
    table = metrics.summary(computed, "clusters", EDGES, "truth")
    assert list(table.columns) == ["metric", "group", "value"]
    assert table["value"].notna().all()
    assert not table.duplicated(["metric", "group"]).any()
    value = table.set_index(["metric", "group"])["value"]
    clusters = ["left", "right", "stem", "all"]
    for metric in ("inner_cluster_coherence", "speed", "coverage"):
        assert list(value[metric].index) == clusters
    assert list(value["cross_boundary_direction"].index) == ["stem -> left", "stem -> right", "all"]
    x, velocity, graph, labels = computed.cells.x, computed.velocity, planted.graph, NAMES[planted.labels]
    across = metrics.cross_boundary_direction(x, velocity, computed.reversed_velocity(), graph, labels, EDGES)
    for column, score in across.items():
        # Not bit by bit: numpy 1.26 adds in another order where memory lies otherwise.
        np.testing.assert_allclose(value[f"cross_boundary_{column}"], [*score, score.mean()], rtol=1e-12)
    given = metrics.summary(computed, "clusters", EDGES, reversed_velocity=velocity)
    assert (given.loc[given["metric"] == "cross_boundary_direction", "value"] == 0).all()
    assert value["coverage", "all"] == computed.transport.has_estimate.mean()
    assert value["speed", "stem"] == pytest.approx(np.median(np.linalg.norm(velocity[labels == "stem"], axis=1)))
    assert value["cosine_to_truth", "all"] == metrics.cosine_to_truth(velocity, planted.velocity)
    assert value["cosine_to_truth_raw", "all"] == metrics.cosine_to_truth(computed.raw_velocity, planted.velocity)
    assert 0.5 < value["step_forward", "all"] <= 1
    assert value["converged", "all"] == 1


def test_summary_without_options_and_backward(computed, adata):
    short = set(metrics.summary(computed, "clusters")["metric"])
    assert short == {"inner_cluster_coherence", "speed", "coverage", "converged", "step_forward"}
    backward = metrics.summary((~computed).compute_transition_matrix(), "clusters").set_index(["metric", "group"])
    assert backward["value"]["step_forward", "all"] > 0.5  # back in time is forward for it
    assert "step_forward" not in set(metrics.summary(~computed, "clusters")["metric"])
    with pytest.raises(RuntimeError, match="fit_field"):
        metrics.summary(OTVelocityKernel(adata), "clusters")
    with pytest.raises(KeyError, match=r"adata.obs\['nope'\]"):
        metrics.summary(computed, "nope")
    with pytest.raises(KeyError, match=r"adata.obsm\['nope'\]"):
        metrics.summary(computed, "clusters", truth_key="nope")
