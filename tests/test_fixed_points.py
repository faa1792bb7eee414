"""Fixed points: zeros and kinds of known fields, the ends of data that a flow runs into, and the known circuit."""

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from cellrank_velot import OTVelocityKernel, pl
from cellrank_velot.dynamics import FixedPointOptions, FixedPoints, find_fixed_points
from cellrank_velot.field import FieldOptions, fit_field

ZEROS = FixedPointOptions(confine=0, n_starts=40)


class Given:
    """A field that does not change with time."""

    def __init__(self, velocity: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.velocity = velocity

    def on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda x, _time: self.velocity(x)


def linear(matrix: np.ndarray, centre: np.ndarray) -> Given:
    slope, at = torch.tensor(matrix), torch.tensor(centre)
    return Given(lambda x: (x - at) @ slope.T)


def cells(n_cells: int = 200, n_dims: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-2, 2, (n_cells, n_dims)), rng.uniform(size=n_cells)


@pytest.mark.parametrize(
    ("matrix", "kind"),
    [
        ([[-1.0, 0.5], [0.0, -3.0]], "stable node"),
        ([[-1.0, 4.0], [-4.0, -1.0]], "stable focus"),
        ([[2.0, 1.0], [0.0, -1.0]], "saddle"),
        ([[1.0, 0.0], [0.3, 2.0]], "unstable node"),
        ([[1.0, 4.0], [-4.0, 1.0]], "unstable focus"),
        ([[0.0, 4.0], [-4.0, 0.0]], "undecided"),
    ],
)
def test_a_linear_field_has_its_point_its_kind_and_its_eigenvalues(matrix: list[list[float]], kind: str):
    a, centre = np.array(matrix), np.array([0.3, -0.2])
    points = find_fixed_points(linear(a, centre), *cells(), ZEROS)
    assert points.kind.tolist() == [kind]
    np.testing.assert_allclose(points.x, [centre], atol=1e-6)
    expected = np.linalg.eigvals(a)
    np.testing.assert_allclose(np.sort_complex(points.eigenvalues[0]), np.sort_complex(expected), atol=1e-6)
    assert not points.held.any()
    assert points.stable.tolist() == [kind.startswith("stable")]
    assert points.to_frame()["n_unstable"].tolist() == [(expected.real > 1e-9).sum()]


def double_well(x: torch.Tensor) -> torch.Tensor:
    """Go down from (0, 0) to (1, 0) and (-1, 0)."""
    return torch.stack([x[:, 0] - x[:, 0] ** 3, -2 * x[:, 1]], dim=1)


@pytest.mark.parametrize("confine", [0.0, 0.7])
def test_a_double_well_has_two_nodes_and_a_saddle(confine: float):
    x, time = cells()
    points = find_fixed_points(Given(double_well), x, time, FixedPointOptions(confine=confine, n_starts=len(x)))
    zeros = ~points.held
    assert points.kind[zeros].tolist() == ["stable node", "stable node", "saddle"]
    order = np.argsort(points.x[zeros, 0])
    np.testing.assert_allclose(points.x[zeros][order], [[-1, 0], [0, 0], [1, 0]], atol=1e-4)
    np.testing.assert_allclose(points.eigenvalues.real[zeros][:, 0], [-2, -2, 1], atol=1e-3)
    # Each cell comes to the well on its side.
    right = (x[:, 0] > 0).mean()
    np.testing.assert_allclose(points.basin[zeros][order], [1 - right, 0, right], atol=0.04)


def test_points_turn_and_grow_with_the_data():
    x, time = cells()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(2, 2)))[0]
    back = torch.tensor(turn)
    moved = Given(lambda y: 50 * double_well((y - 7) @ back / 10) @ back.T)
    one = find_fixed_points(Given(double_well), x, time, ZEROS)
    other = find_fixed_points(moved, 10 * x @ turn.T + 7, time, ZEROS)
    for point in one.x:
        assert np.linalg.norm(other.x - (10 * turn @ point + 7), axis=1).min() < 1e-3
    # The same times, and velocities five times as large over lengths ten times as large.
    np.testing.assert_allclose(other.eigenvalues.real, 5 * one.eigenvalues.real, rtol=1e-3)
    np.testing.assert_allclose(other.speed, one.speed, atol=1e-4)


def test_a_zero_far_from_the_data_does_not_count():
    points = find_fixed_points(linear(-np.eye(2), np.array([30.0, 0.0])), *cells(), ZEROS)
    assert len(points) == 0
    assert points.to_frame().empty
    assert "none near the data" in repr(points)


def test_where_the_data_end_a_steady_flow_is_held_whatever_its_speed():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(0, 10, 400), rng.normal(scale=0.1, size=(400, 2))])
    clusters = pd.Series(pd.Categorical(np.where(x[:, 0] > 8, "end", "way")))
    found = [
        find_fixed_points(
            Given(lambda y, rate=rate: torch.stack([rate * torch.exp(y[:, 0] / 3), 0 * y[:, 0], 0 * y[:, 0]], 1)),
            x,
            x[:, 0],
            clusters=clusters,
        )
        for rate in (1.0, 100.0)
    ]
    for points in found:
        assert points.kind.tolist() == ["stable node"]
        assert points.held.all()
        assert points.cluster.tolist() == ["end"]
        assert points.basin[0] > 0.95
        assert 9.5 < points.x[0, 0] < 11
    np.testing.assert_allclose(found[0].x, found[1].x, atol=1e-6)
    zeros = find_fixed_points(Given(lambda y: torch.ones_like(y)), x, x[:, 0], ZEROS)
    assert len(zeros) == 0


def test_a_seed_says_all():
    x, time = cells()
    one, same = (
        find_fixed_points(Given(double_well), x, time, FixedPointOptions(random_state=3, n_starts=20)) for _ in range(2)
    )
    np.testing.assert_array_equal(one.x, same.x)


def test_options_are_checked():
    for option, value in (("n_starts", 0), ("confine", -1), ("max_distance", 0.5), ("random_state", -1)):
        with pytest.raises(ValueError, match=option):
            FixedPointOptions(**{option: value})


# ------------------------------------------------------------------------------------------------------------ circuits
def test_the_true_drift_of_the_shared_circuit_has_its_three_ends(data_dir):
    adata = ad.read_h5ad(data_dir / "bifurcation_known_velocity.h5ad")
    x, time, graph = adata.obsm["X_pca"], adata.obs["pseudotime"].to_numpy(), adata.obsp["connectivities"]
    options = FieldOptions(use_time=False, n_steps=400)
    field = fit_field(x, time, adata.obsm["true_velocity_pca"], np.ones(len(x)), graph, options=options)
    points = find_fixed_points(field, x, time, FixedPointOptions(), clusters=adata.obs["clusters"])
    assert set(points.cluster[points.stable]) == {"A", "B", "Trans"}
    assert points.time[points.stable].min() > 0.7


def test_the_kernel_and_its_picture(computed: OTVelocityKernel):
    points = computed.fixed_points(n_starts=60)
    assert isinstance(points, FixedPoints)
    assert points.basis == "X_pca"
    assert set(points.cluster[points.stable]) <= {"left", "right"}
    ax = computed.plot_fixed_points(points, show=False)
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"stable ({points.stable.sum()})" in shown
    assert len([text for text in ax.texts if text.get_text().isdigit()]) == len(points)
    with pytest.raises(TypeError, match="FixedPoints"):
        pl.fixed_points(computed, computed.cells.x)
    with pytest.raises(KeyError, match="nowhere"):
        computed.fixed_points(cluster_key="nowhere")
