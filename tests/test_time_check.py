"""A time against the distance from its own root, and loops: planted errors are found, and no others."""

import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from planted import PlantedCells, neighbor_graph, plant_cells

from cellrank_velot import OTVelocityKernel, datasets, pl, pp
from cellrank_velot.direction import time_check
from cellrank_velot.direction.cycle import Loop, find_loop

NAMES = np.array(["stem", "left", "right"])


def ring(n_cells: int = 400, noise: float = 0.15, seed: int = 0) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
    """Return positions around a closed loop in ten dimensions, the phase, and the graph."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(size=n_cells)
    x = noise * rng.normal(size=(n_cells, 10))
    x[:, :2] += np.column_stack([np.cos(2 * np.pi * phase), np.sin(2 * np.pi * phase)])
    return x, phase, neighbor_graph(x, 20)


def with_error(cells: PlantedCells) -> np.ndarray:
    """Return the time with the left fate reversed, from the branching on."""
    return np.where(cells.labels == 1, 1.499 - cells.time, cells.time)


@pytest.mark.parametrize("seed", range(3))
def test_planted_error_is_found_where_it_is(seed: int):
    cells = plant_cells(400, seed=seed)
    check = time_check(cells.x, with_error(cells), cells.graph, NAMES[cells.labels])
    shares = check.to_frame()["falling"]
    assert shares["left"] > 0.6
    assert shares[["right", "stem"]].max() < 0.1
    assert len(check.findings) == 1
    assert f"In cluster left time falls with the distance from the root: {shares['left']:.0%} of its cells." in str(
        check
    )
    assert check.loop == ""


def test_right_time_is_left_alone():
    cells = plant_cells()
    check = time_check(cells.x, cells.time, cells.graph, NAMES[cells.labels])
    assert str(check) == "Time rises with the distance from its root in 100% of the cells."
    assert check.findings == []
    assert np.corrcoef(check.distance, cells.time)[0, 1] > 0.95


def test_units_order_and_rotation_do_not_matter():
    cells = plant_cells()
    rng = np.random.default_rng(1)
    order, turn = rng.permutation(240), np.linalg.qr(rng.normal(size=(5, 5)))[0]
    time = with_error(cells)
    usual = time_check(cells.x, time, cells.graph).agreement
    changed = time_check(3 * cells.x[order] @ turn, 7 * time[order] - 2, cells.graph[order][:, order]).agreement
    np.testing.assert_allclose(changed, usual[order], atol=1e-6)


def test_each_part_of_the_graph_has_its_own_root_and_cells_without_neighbours_none():
    one, other = plant_cells(200, seed=1), plant_cells(200, seed=2)
    graph = sp.block_diag([one.graph, other.graph, sp.csr_matrix((3, 3))], format="csr")
    x = np.concatenate([one.x, other.x + 50, np.full((3, 5), 99.0)])
    time = np.concatenate([one.time, other.time + 0.3, [0, 0.1, 0.2]])
    check = time_check(x, time, graph)
    assert check.falling_share == 0
    np.testing.assert_array_equal(np.isnan(check.agreement), np.arange(403) >= 400)


def test_roots_that_are_known_are_taken():
    adata = datasets.convergence(400, random_state=0)
    pp.prepare(adata, root_cluster=["Root A", "Root B"], n_pcs=10, normalize=False)
    kernel = OTVelocityKernel(adata)
    check = kernel.check_time("clusters")
    assert (check.distance == 0).sum() == 2
    assert check.findings == []
    del adata.uns["pseudotime"]
    check = OTVelocityKernel(adata).check_time()  # finds both by itself
    assert set(adata.obs["clusters"][check.distance == 0]) == {"Root A", "Root B"}
    assert check.falling_share == 0
    cells = kernel.cells
    with pytest.raises(ValueError, match="positions among `400` cells, found"):
        time_check(cells.x, cells.time, kernel.connectivities, roots=[400])


def test_nothing_is_said_of_cells_in_one_place(planted):
    check = time_check(np.ones_like(planted.x), planted.time, planted.graph, planted.labels.astype(str))
    assert check.to_frame().columns.tolist() == ["falling", "agreement", "n"]
    assert not len(check.to_frame())
    assert str(check) == "Time and the distance from its root cannot be compared: around no cell do both vary."


@pytest.mark.parametrize("seed", range(3))
def test_phase_on_a_ring_closes_and_a_distance_runs_around_both_ways(seed: int):
    x, phase, graph = ring(seed=seed)
    assert find_loop(x, phase, graph) is Loop.CLOSED
    assert find_loop(x, np.minimum(phase, 1 - phase), graph) is Loop.BOTH_WAYS
    assert find_loop(x, np.random.default_rng(seed + 100).uniform(size=400), graph) is Loop.NONE


@pytest.mark.parametrize("make", [datasets.bifurcation, datasets.tree, datasets.convergence])
def test_no_loop_without_a_cycle(make):
    adata = make(600, random_state=3)
    x, graph = adata.obsm["X_pca"], adata.obsp["connectivities"]
    for key in ("dpt_pseudotime", "true_time"):
        assert find_loop(x, adata.obs[key].to_numpy(), graph) is Loop.NONE


def test_kernel_warns_of_a_cycle_once(caplog):
    x, phase, graph = ring()
    adata = AnnData(x, obs=pd.DataFrame({"pseudotime": phase}, index=[f"c{i}" for i in range(400)]))
    adata.obsm["X_pca"], adata.obsp["connectivities"] = x, graph
    caplog.set_level(logging.WARNING, "cellrank_velot")
    kernel = OTVelocityKernel(adata)
    kernel.compute_windows()
    assert caplog.text.count("A cycle has no beginning") == 1
    assert "Along this time first cells are neighbours of last ones" in str(kernel.check_time())


def test_picture_is_of_the_check(adata: AnnData):
    kernel = OTVelocityKernel(adata)
    ax = pl.time_check(kernel, show=False)
    assert ax.get_title("left") == "Time rises with the distance from its root in 100% of the cells."
    check = time_check(kernel.cells.x[:200], kernel.cells.time[:200], kernel.connectivities[:200, :200])
    with pytest.raises(ValueError, match="of `240` cells, found one of `200`"):
        pl.time_check(kernel, check, show=False)
    with pytest.raises(TypeError, match="the `OTVelocityKernel` itself"):
        kernel.plot_time_check.__func__(adata)
