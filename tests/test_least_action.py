"""Paths of least action: the double well, whose path and action are known; ways there and back; genes; the kernel."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.integrate import solve_ivp

from cellrank_velot import OTVelocityKernel, pl
from cellrank_velot.dynamics import ActionOptions, LeastActionPath, find_least_action_path

# A well of depth 1 on either side, and a valley between them that bends by this much.
BEND = 0.7
WELLS = np.array([[-1.0, 0.0], [1.0, 0.0]])


class Given:
    """A field that does not change with time."""

    def __init__(self, velocity: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.velocity = velocity

    def on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda x, _time: self.velocity(x)


def downhill(x: torch.Tensor) -> torch.Tensor:
    """Return the drift of the potential (x^2 - 1)^2 + 2 (y - bend (1 - x^2))^2."""
    off = x[:, 1] - BEND * (1 - x[:, 0] ** 2)
    return -torch.stack([4 * x[:, 0] * (x[:, 0] ** 2 - 1) + 8 * BEND * off * x[:, 0], 4 * off], dim=1)


def cells(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.uniform(-1.5, 1.5, 300), rng.uniform(-0.7, 1.3, 300)])
    return x, rng.uniform(size=300)


def path_of(field: Given, source: np.ndarray, target: np.ndarray, **options: float) -> LeastActionPath:
    given = ActionOptions(**{"confine": 0.0, "diffusion": 1.0, "n_points": 60, **options})
    return find_least_action_path(field, *cells(), source, target, given)


@pytest.fixture(scope="module")
def over() -> LeastActionPath:
    return path_of(Given(downhill), *WELLS)


def test_the_action_of_a_double_well_is_twice_its_barrier(over: LeastActionPath):
    assert over.action == pytest.approx(2.0, rel=0.01)
    assert over.reverse_action == pytest.approx(2.0, rel=0.01)
    assert over.straight_action > 2.5
    # All of it is spent up to the saddle, where the drift takes over.
    np.testing.assert_allclose(over.x[over.committed_ix], [0, BEND], atol=0.1)
    assert over.spent[-1] - over.spent[over.committed_ix] < 0.03


def test_the_path_leads_uphill_where_the_drift_comes_down(over: LeastActionPath):
    way = solve_ivp(
        lambda _, x: downhill(torch.tensor(x[None]))[0].numpy(), (0, 20), [-1e-3, BEND], rtol=1e-8, max_step=0.05
    ).y.T
    away = np.linalg.norm(over.x[:, None] - np.concatenate([way, way * [-1, 1]])[None], axis=2).min(axis=1)
    assert away.max() < 0.08
    np.testing.assert_allclose(over.reverse_x[::-1], over.x, atol=0.1)  # symmetric, and back the same way


def test_downhill_costs_nothing(over: LeastActionPath):
    path = path_of(Given(downhill), np.array([-0.05, BEND]), WELLS[0])
    assert path.action < 0.01
    assert path.reverse_action == pytest.approx(2.0, rel=0.02)


def test_a_current_that_circles_is_followed_round_on_the_way_back():
    field = Given(lambda x: torch.stack([-x[:, 1], x[:, 0]], dim=1))
    path = path_of(field, np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert max(path.action, path.reverse_action) < 0.02 < path.straight_action
    np.testing.assert_allclose(np.linalg.norm(path.x, axis=1), 1, atol=0.03)
    assert path.length == pytest.approx(np.pi / 2, rel=0.02)
    back = np.linalg.norm(np.diff(path.reverse_x, axis=0), axis=1).sum()
    assert back == pytest.approx(3 * np.pi / 2, rel=0.1)


def test_the_path_does_not_depend_on_the_noise_nor_on_the_coordinates(over: LeastActionPath):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(2, 2)))[0]
    back = torch.tensor(turn)
    x, time = cells()
    moved = find_least_action_path(
        Given(lambda y: 10 * downhill((y - 3) @ back / 10) @ back.T), 10 * x @ turn.T + 3, time,
        *(10 * WELLS @ turn.T + 3), ActionOptions(confine=0, diffusion=5.0, n_points=60),
    )  # fmt: skip
    assert moved.action == pytest.approx(4 * over.action, rel=0.01)  # of half the noise
    there = 10 * over.x @ turn.T + 3
    assert np.linalg.norm(moved.x[:, None] - there[None], axis=2).min(axis=1).max() < 0.6


def test_options_are_checked():
    for option, value in (("n_points", 5), ("confine", -1), ("diffusion", 0.0)):
        with pytest.raises(ValueError, match=option):
            ActionOptions(**{option: value})


def test_the_kernel_its_genes_and_its_picture(computed: OTVelocityKernel, adata: AnnData):
    path = computed.least_action_path("stem", "left", n_points=12)
    assert (path.source, path.target, path.basis) == ("stem", "left", "X_pca")
    assert path.action < 0.5 * min(path.reverse_action, path.straight_action + 1e9)
    assert path.to_frame().shape == (12, 5)
    genes = computed.path_genes(path)
    expected = (path.x[-1] - path.x[0]) @ adata.varm["PCs"].T
    np.testing.assert_allclose(genes.loc[adata.var_names, "change"], expected)
    np.testing.assert_allclose(genes["before"] + genes["after"], genes["change"])
    assert genes["change"].abs().is_monotonic_decreasing
    assert computed.path_genes(path, ["gene_3"]).index.tolist() == ["gene_3"]
    ax = computed.plot_least_action_path(path, show=False)
    assert ax.get_title("left") == "stem to left"
    for source, error, match in (
        ("nowhere", KeyError, "nowhere"),
        (np.zeros(3), ValueError, "finite position"),
        ("left", ValueError, "two places"),
        ([], ValueError, "`source`"),
    ):
        with pytest.raises(error, match=match):
            computed.least_action_path(source, "left")
    with pytest.raises(TypeError, match="LeastActionPath"):
        pl.least_action_path(computed, computed.cells.x)
    with pytest.raises(TypeError, match="LeastActionPath"):
        computed.path_genes(computed.cells.x)
