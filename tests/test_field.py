"""The velocity field: estimators against exact Jacobians, the network against numpy, and what training recovers."""

import pickle
import random

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import ortho_group
from sklearn.neighbors import kneighbors_graph

from cellrank_velot._utils.options import Run
from cellrank_velot.field import FieldOptions, VelocityField, fit_field
from cellrank_velot.field import evaluation as evaluation_module
from cellrank_velot.field import training as training_module
from cellrank_velot.field.losses import curl_loss, divergence_loss, fit_loss, smoothness_loss
from cellrank_velot.field.network import build_network, draw_weights

N_DIMS = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------------- losses
@pytest.fixture
def matrix() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(N_DIMS, N_DIMS)))


def linear(matrix: torch.Tensor, with_time: bool):
    """Return the field ``x -> A x``, which also depends on time where that is an input."""

    def field(inputs: torch.Tensor) -> torch.Tensor:
        drift = 3 * inputs[:, N_DIMS:] * torch.arange(N_DIMS) if with_time else 0
        return inputs[:, :N_DIMS] @ matrix.T + drift

    return field


@pytest.mark.parametrize("with_time", [False, True])
def test_estimates_agree_with_the_exact_jacobian(matrix: torch.Tensor, with_time: bool):
    points = torch.randn(20_000, N_DIMS + with_time, dtype=torch.float64, generator=generator(1))
    field = linear(matrix, with_time)
    curl = curl_loss(field, points, N_DIMS, generator())
    divergence = divergence_loss(field, points, N_DIMS, generator())
    assert float(curl) == pytest.approx(float((matrix - matrix.T).square().sum()) / (2 * N_DIMS), rel=0.03)
    assert float(divergence) == pytest.approx(float(matrix.trace()) ** 2 / N_DIMS, abs=0.15)


def test_estimates_agree_with_the_exact_jacobian_of_a_network():
    network = build_network(N_DIMS + 1, N_DIMS, [16]).double()
    draw_weights(network, generator(0))
    point = torch.randn(1, N_DIMS + 1, dtype=torch.float64, generator=generator(2))
    jacobian = torch.func.jacrev(lambda p: network(p[None])[0])(point[0])[:, :N_DIMS].detach()
    points = point.repeat(20_000, 1)
    curl = (jacobian - jacobian.T).square().sum() / (2 * N_DIMS)
    assert curl_loss(network, points, N_DIMS, generator()).item() == pytest.approx(float(curl), rel=0.03)
    divergence = float(jacobian.trace()) ** 2 / N_DIMS
    assert divergence_loss(network, points, N_DIMS, generator()).item() == pytest.approx(divergence, abs=0.02)


def test_gradient_field_has_no_curl():
    def gradient(inputs: torch.Tensor) -> torch.Tensor:  # of |x|^4 / 4 + x_0 x_1
        rest = torch.stack([inputs[:, 1], inputs[:, 0], *torch.zeros(2, len(inputs)).double()], dim=1)
        return inputs * inputs.square().sum(1, keepdim=True) + rest

    points = torch.randn(50, N_DIMS, dtype=torch.float64, generator=generator())
    assert float(curl_loss(gradient, points, N_DIMS, generator())) < 1e-20
    assert float(divergence_loss(gradient, points, N_DIMS, generator())) > 1


def test_rotation_has_no_divergence(matrix: torch.Tensor):
    points = torch.randn(50, N_DIMS, dtype=torch.float64, generator=generator())
    rotation = linear(matrix - matrix.T, with_time=False)
    assert float(divergence_loss(rotation, points, N_DIMS, generator())) < 1e-20
    assert float(curl_loss(rotation, points, N_DIMS, generator())) > 1


def test_losses_are_differentiable_and_draw_from_their_generator_only(matrix: torch.Tensor):
    matrix.requires_grad_(True)
    points = torch.randn(30, N_DIMS, dtype=torch.float64, generator=generator())
    state = torch.get_rng_state()
    for loss in (curl_loss, divergence_loss):
        first, second, other = (loss(linear(matrix, False), points, N_DIMS, generator(s)) for s in (0, 0, 1))
        assert first.item() == second.item() != other.item()
        (slope,) = torch.autograd.grad(first, matrix)
        assert slope.abs().sum().item() > 0
    assert torch.equal(state, torch.get_rng_state())


def test_fit_loss_weighs_the_cells():
    predicted, target = torch.zeros(3, 2), torch.tensor([[1.0, 1], [2, 0], [9, 9]])
    assert float(fit_loss(predicted, target, torch.tensor([1.0, 3, 0]))) == pytest.approx((1 + 3 * 2) / 4)
    assert float(smoothness_loss(predicted, target)) == pytest.approx((1 + 1 + 4 + 81 + 81) / 6)


# -------------------------------------------------------------------------------------------------- network
def silu(a: np.ndarray) -> np.ndarray:
    return a / (1 + np.exp(-a))


def random_field(hidden: tuple[int, ...] = (7, 6), use_time: bool = True) -> VelocityField:
    rng = np.random.default_rng(3)
    sizes = [N_DIMS + use_time, *hidden, N_DIMS]
    weights = {}
    for layer, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        weights[f"{2 * layer}.weight"] = rng.normal(size=(after, before)).astype(np.float32)
        weights[f"{2 * layer}.bias"] = rng.normal(size=after).astype(np.float32)
    return VelocityField(
        weights=weights,
        centre=rng.normal(size=N_DIMS),
        x_scale=2.5,
        time_centre=0.4,
        time_scale=0.3,
        velocity_scale=1.7,
        use_time=use_time,
        history={"step": np.array([25.0])},
        best_step=25,
    )


@pytest.mark.parametrize("use_time", [True, False])
@pytest.mark.parametrize("hidden", [(), (8,), (7, 6), (4,) * 6])
def test_field_agrees_with_numpy(hidden: tuple[int, ...], use_time: bool):
    field = random_field(hidden, use_time)
    rng = np.random.default_rng(4)
    x, time = rng.normal(size=(9, N_DIMS)), rng.random(9)
    layer = (x - field.centre) / 2.5
    if use_time:
        layer = np.column_stack([layer, (time - 0.4) / 0.3])
    for i in range(len(hidden) + 1):
        layer = layer @ field.weights[f"{2 * i}.weight"].T + field.weights[f"{2 * i}.bias"]
        layer = silu(layer) if i < len(hidden) else layer
    np.testing.assert_allclose(field(x, time), 1.7 * layer, rtol=1e-4, atol=1e-4)
    assert field.n_dims == N_DIMS


def test_weights_may_come_in_any_order():
    field = random_field((5,) * 6)  # layers 0 to 12, which do not sort as text
    x = np.random.default_rng(5).normal(size=(3, N_DIMS))
    names = sorted(field.weights, reverse=True)
    again = VelocityField.from_dict({**field.to_dict(), "weights": {name: field.weights[name] for name in names}})
    np.testing.assert_array_equal(again(x, 0.5), field(x, 0.5))


def test_one_time_for_all_points_and_none_without_time():
    x = np.random.default_rng(6).normal(size=(5, N_DIMS))
    field = random_field()
    np.testing.assert_array_equal(field(x, 0.3), field(x, np.full(5, 0.3)))
    assert np.abs(field(x, 0.3) - field(x, 0.9)).max() > 0.01
    timeless = random_field(use_time=False)
    np.testing.assert_array_equal(timeless(x, 0.3), timeless(x, 0.9))


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_of_points_do_not_matter(monkeypatch, chunk: int):
    field, rng = random_field(), np.random.default_rng(7)
    x, time = rng.normal(size=(10, N_DIMS)), rng.random(10)
    expected = field(x, time)
    monkeypatch.setattr(evaluation_module, "CHUNK_POINTS", {"cpu": chunk, "other": chunk})
    monkeypatch.setattr(evaluation_module, "TASK_POINTS", max(1, 3 * chunk // 2))
    np.testing.assert_allclose(field(x, time), expected, rtol=1e-4, atol=1e-5)
    assert field(x[:0], time[:0]).shape == (0, N_DIMS)


def test_tensor_function_is_differentiable():
    field, function = random_field(), random_field().on("cpu")
    x = torch.randn(1, N_DIMS, dtype=torch.float64, generator=generator(8))
    time = torch.tensor([0.5], dtype=torch.float64)
    by_position, by_time = torch.autograd.functional.jacobian(function, (x, time))
    step = 1e-2
    for axis in range(N_DIMS):
        shift = step * np.eye(N_DIMS)[axis]
        slope = (field(x.numpy() + shift, 0.5) - field(x.numpy() - shift, 0.5)) / (2 * step)
        np.testing.assert_allclose(by_position[0, :, 0, axis], slope[0], atol=2e-2)
    slope = (field(x.numpy(), 0.5 + 1e-2) - field(x.numpy(), 0.5 - 1e-2)) / 2e-2
    np.testing.assert_allclose(by_time[0, :, 0], slope[0], atol=5e-2)


def test_field_survives_pickle_and_is_frozen():
    field = random_field()
    again = pickle.loads(pickle.dumps(field))
    x = np.random.default_rng(9).normal(size=(4, N_DIMS))
    np.testing.assert_array_equal(again(x, 0.1), field(x, 0.1))
    with pytest.raises(ValueError, match="read-only"):
        again.weights["0.weight"][0] = 0
    field(x, 0.1)
    np.testing.assert_array_equal(again.weights["0.weight"], field.weights["0.weight"])


# ------------------------------------------------------------------------------------------------- training
QUICK = {"hidden": (32, 32), "n_steps": 300, "batch_size": 128, "learning_rate": 5e-3, "lambda_smooth": 0.1}


class Cells:
    """Cells on a spiral flow in three dimensions, with velocities as measured and as they are."""

    def __init__(self, n: int = 500, noise: float = 0.5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.uniform(-1, 1, size=(n, 3))
        self.time = rng.random(n)
        self.truth = self.flow(self.x)
        self.velocity = self.truth + rng.normal(scale=noise, size=(n, 3))
        self.weight = np.ones(n)
        self.graph = sp.csr_matrix(kneighbors_graph(self.x, 8))

    @staticmethod
    def flow(x: np.ndarray) -> np.ndarray:
        return np.column_stack([-2 * x[:, 1] + 1, 2 * x[:, 0], np.sin(2 * x[:, 2]) + 1])

    def fit(self, **kwargs) -> VelocityField:
        """Fit these cells, or others; without a relaxation, where none is given."""
        inputs = {name: kwargs.pop(name, getattr(self, name)) for name in ("x", "time", "velocity", "weight", "graph")}
        inputs["relaxation"] = kwargs.pop("relaxation", None)
        options, rest = FieldOptions.split({**QUICK, **kwargs})
        return fit_field(**inputs, options=options, run=Run(**rest))


@pytest.fixture(scope="module")
def cells() -> Cells:
    return Cells()


@pytest.fixture(scope="module")
def field(cells: Cells) -> VelocityField:
    return cells.fit()


def error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(((found - truth) ** 2).sum(1).mean() / (truth**2).sum(1).mean()))


def test_recovers_a_planted_flow_from_noisy_samples(cells: Cells, field: VelocityField):
    assert error(cells.velocity, cells.truth) > 0.35
    assert error(field(cells.x, cells.time), cells.truth) < 0.2
    between = np.random.default_rng(1).uniform(-0.9, 0.9, size=(300, 3))
    assert error(field(between, 0.5), cells.flow(between)) < 0.2


def test_recovers_a_flow_that_changes_with_time(cells: Cells):
    truth = np.column_stack([np.cos(3 * cells.time), np.sin(3 * cells.time), np.zeros(500)])
    found = cells.fit(velocity=truth)(cells.x, cells.time)
    assert error(found, truth) < 0.15
    assert error(cells.fit(velocity=truth, use_time=False)(cells.x, cells.time), truth) > 0.5


def test_cells_without_a_velocity_get_one(cells: Cells):
    velocity = cells.velocity.copy()
    missing = np.random.default_rng(2).random(500) < 0.4
    velocity[missing] = np.nan
    found = cells.fit(velocity=velocity)(cells.x, cells.time)
    assert np.isfinite(found).all()
    assert error(found[missing], cells.truth[missing]) < 0.25


def test_cells_of_no_weight_have_no_say(cells: Cells):
    velocity, weight = cells.velocity.copy(), cells.weight.copy()
    velocity[::3], weight[::3] = 1e6, 0
    assert error(cells.fit(velocity=velocity, weight=weight)(cells.x, cells.time), cells.truth) < 0.25


def test_unit_of_the_weights_does_not_matter(cells: Cells):
    weight = np.random.default_rng(3).random(500)
    fields = [cells.fit(weight=factor * weight, n_steps=50) for factor in (1, 1024)]
    np.testing.assert_allclose(*(f(cells.x, cells.time) for f in fields), rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------- invariances and seeds
def test_units_of_position_time_and_velocity_do_not_matter(cells: Cells):
    plain = cells.fit(n_steps=50)
    scaled = cells.fit(x=1024 * cells.x, time=8 * cells.time, velocity=64 * cells.velocity, n_steps=50)
    expected = plain(cells.x, cells.time)
    np.testing.assert_allclose(scaled(1024 * cells.x, 8 * cells.time) / 64, expected, rtol=1e-3, atol=1e-3)


def test_moved_cells_have_the_same_field(cells: Cells):
    plain, moved = cells.fit(n_steps=50), cells.fit(x=cells.x + 100, n_steps=50)
    np.testing.assert_allclose(moved(cells.x + 100, cells.time), plain(cells.x, cells.time), rtol=1e-2, atol=1e-2)


def test_rotated_cells_have_about_the_rotated_field(cells: Cells, field: VelocityField):
    rotation = ortho_group.rvs(3, random_state=0)
    rotated = cells.fit(x=cells.x @ rotation, velocity=cells.velocity @ rotation)
    assert error(rotated(cells.x @ rotation, cells.time) @ rotation.T, field(cells.x, cells.time)) < 0.15


def test_seed_decides_bit_for_bit(cells: Cells):
    first, second, other = (cells.fit(n_steps=50, random_state=seed) for seed in (3, 3, 4))
    assert first.best_step == second.best_step
    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, second.weights[name])
    for name, column in first.history.items():
        np.testing.assert_array_equal(column, second.history[name])
    assert any((weight != other.weights[name]).any() for name, weight in first.weights.items())


def test_global_random_state_neither_matters_nor_changes(cells: Cells):
    def seed(value: int) -> None:
        torch.manual_seed(value)
        np.random.seed(value)  # noqa: NPY002
        random.seed(value)

    def state() -> tuple:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()  # noqa: NPY002

    options = {"n_steps": 30, "lambda_curl": 0.1, "lambda_divergence": 0.1}
    with torch.random.fork_rng(devices=[]):
        seed(1)
        first = cells.fit(**options)
        seed(2)
        before = state()
        second = cells.fit(**options)
        assert state() == before
    np.testing.assert_array_equal(first(cells.x, cells.time), second(cells.x, cells.time))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_global_random_state_of_the_gpu_does_not_change(cells: Cells):
    before = torch.cuda.get_rng_state()
    cells.fit(n_steps=30)
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_threads_and_gradients_are_given_back(cells: Cells):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cells.fit(n_steps=2)
        assert torch.get_num_threads() == 2
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before)


def test_inputs_stay(cells: Cells):
    before = [array.copy() for array in (cells.x, cells.time, cells.velocity, cells.weight, cells.graph.data)]
    cells.fit(n_steps=5)
    after = (cells.x, cells.time, cells.velocity, cells.weight, cells.graph.data)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


# ------------------------------------------------------------------------------------------ query and history
def test_any_query_is_finite(field: VelocityField):
    x = np.array([[0.0, 0, 0], [1e3, -1e3, 0], [1e8, 1e8, 1e8], [-1e-30, 0, 0]])
    for time in (-1.0, 0.0, 0.5, 100.0):
        assert np.isfinite(field(x, time)).all()


def test_history_tells_how_training_went(field: VelocityField):
    assert set(field.history) >= {"step", "held_out", "total", "fit", "smooth", "curl", "divergence"}
    assert len({column.shape for column in field.history.values()}) == 1
    steps, held_out = field.history["step"], field.history["held_out"]
    assert (np.diff(steps) > 0).all()
    assert steps[-1] <= QUICK["n_steps"]
    assert field.best_step == steps[np.argmin(held_out)]
    assert held_out.min() < held_out[0]
    assert field.history["fit"][-1] < field.history["fit"][0]
    np.testing.assert_allclose(
        field.history["total"], field.history["fit"] + QUICK["lambda_smooth"] * field.history["smooth"], rtol=1e-5
    )


def test_keeps_the_best_step_and_stops_early(cells: Cells, monkeypatch):
    planned, seen = iter([5.0, 3.0, 1.0, *[2.0] * 100]), []

    def evaluate(trainer) -> float:
        seen.append(trainer._weights())
        return next(planned)

    monkeypatch.setattr(training_module._Trainer, "_held_out_loss", evaluate)
    every = training_module.EVALUATE_EVERY
    result = cells.fit(n_steps=100 * every, patience=2)
    assert result.best_step == 3 * every
    assert result.history["step"].tolist() == [every * i for i in range(1, 6)]
    for name, weight in result.weights.items():
        np.testing.assert_array_equal(weight, seen[2][name])
        assert (weight != seen[-1][name]).any()


def test_noise_alone_is_not_learnt(cells: Cells):
    velocity = np.random.default_rng(4).normal(size=(500, 3))
    result = cells.fit(velocity=velocity, hidden=(64, 64), learning_rate=1e-2, n_steps=600)
    assert result.best_step < 600
    assert np.linalg.norm(result(cells.x, cells.time), axis=1).mean() < np.linalg.norm(velocity, axis=1).mean() / 2


# ------------------------------------------------------------------------------------------------- penalties
def jacobians(field: VelocityField, x: np.ndarray) -> np.ndarray:
    step = 1e-2
    columns = [field(x + step * e, 0.5) - field(x - step * e, 0.5) for e in np.eye(3)]
    return np.stack(columns, axis=2) / (2 * step)


def test_curl_penalty_leaves_no_rotation(cells: Cells, field: VelocityField):
    def curl(f: VelocityField) -> float:
        j = jacobians(f, cells.x[:100])
        return float(((j - j.transpose(0, 2, 1)) ** 2).mean())

    penalised = cells.fit(lambda_curl=10.0)
    assert curl(penalised) < curl(field) / 10
    assert penalised.history["curl"][-1] > 0
    assert (field.history["curl"] == 0).all()


def test_divergence_penalty_leaves_no_source(cells: Cells, field: VelocityField):
    def divergence(f: VelocityField) -> float:
        return float((jacobians(f, cells.x[:100]).trace(axis1=1, axis2=2) ** 2).mean())

    assert divergence(cells.fit(lambda_divergence=10.0)) < divergence(field) / 5


def test_smoothness_penalty_flattens_the_field(cells: Cells, field: VelocityField):
    def roughness(f: VelocityField) -> float:
        v = f(cells.x, cells.time)
        i, j = cells.graph.nonzero()
        return float(((v[i] - v[j]) ** 2).mean())

    assert roughness(cells.fit(lambda_smooth=100.0)) < roughness(field) / 3


# ------------------------------------------------------------------- the part in which neighbours may differ
class Sheet:
    """Cells around a line, along which they move and to which they return, and how fast they do either."""

    def __init__(self, n: int = 500, rate: float = 8.0) -> None:
        rng = np.random.default_rng(0)
        self.x = np.column_stack([rng.uniform(-1, 1, n), rng.normal(scale=0.3, size=(n, 2))])
        self.relaxation = -rate * self.x * [0, 1, 1]
        self.current = np.column_stack([np.full(n, 2.0), np.cos(2 * self.x[:, 0]), np.zeros(n)])
        self.graph = sp.csr_matrix(kneighbors_graph(self.x[:, :1], 10))  # neighbours of any distance from the line

    def fit(self, noise: float = 0.0, **kwargs) -> VelocityField:
        velocity = self.current + self.relaxation
        velocity = velocity + np.random.default_rng(1).normal(scale=noise, size=velocity.shape)
        inputs = {"x": self.x, "time": self.x[:, 0], "velocity": velocity, "weight": np.ones(len(self.x))}
        inputs = {name: kwargs.pop(name, value) for name, value in {**inputs, "relaxation": None}.items()}
        return fit_field(**inputs, graph=self.graph, options=FieldOptions(**{**QUICK, "use_time": False, **kwargs}))

    def rates(self, field: VelocityField) -> list[float]:
        """Return how fast a field lets cells go to the line, from either side."""
        return [-np.polyfit(self.x[:, k], field(self.x, 0.0)[:, k], 1)[0] for k in (1, 2)]


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return Sheet()


@pytest.mark.parametrize("lambda_smooth", [1.0, 30.0])
def test_smoothness_leaves_the_relaxation_alone(sheet: Sheet, lambda_smooth: float):
    kept, lost = (
        sheet.fit(relaxation=relaxation, lambda_smooth=lambda_smooth) for relaxation in (sheet.relaxation, None)
    )
    np.testing.assert_allclose(sheet.rates(kept), 8, rtol=0.15)
    assert max(sheet.rates(lost)) < 8 / (1 + lambda_smooth)  # flattened as all else is
    i, j = sheet.graph.nonzero()
    v = kept(sheet.x, 0.0)
    rest = v - sheet.relaxation
    assert ((rest[i] - rest[j]) ** 2).mean() < ((v[i] - v[j]) ** 2).mean() / 20


def test_smoothness_flattens_what_is_not_relaxation(sheet: Sheet):
    """Of two parts that fall from the line alike, the one that is given as relaxation stays."""
    only_one = sheet.relaxation * [0, 1, 0]
    first, second = sheet.rates(sheet.fit(relaxation=only_one, lambda_smooth=30.0))
    assert first == pytest.approx(8, rel=0.15)
    assert second < 1


def test_noise_is_smoothed_beside_a_relaxation_that_is_kept(sheet: Sheet):
    truth = sheet.current + sheet.relaxation
    options = {"noise": 3.0, "relaxation": sheet.relaxation, "hidden": (128, 128), "patience": 100}
    rough, smooth = (sheet.fit(lambda_smooth=lambda_smooth, **options)(sheet.x, 0.0) for lambda_smooth in (0.0, 1.0))
    assert error(smooth, truth) < 0.8 * error(rough, truth)


def test_no_relaxation_is_one_of_zeros_and_one_for_all_cells_is_none(cells: Cells):
    none = cells.fit(n_steps=50, lambda_smooth=1.0)
    zeros = cells.fit(n_steps=50, lambda_smooth=1.0, relaxation=np.zeros_like(cells.x))
    for name, weight in none.weights.items():
        np.testing.assert_array_equal(weight, zeros.weights[name])
    alike = cells.fit(n_steps=50, lambda_smooth=1.0, relaxation=np.tile([1.0, -2, 0.5], (500, 1)))
    np.testing.assert_allclose(alike(cells.x, 0.5), none(cells.x, 0.5), atol=1e-3)


def test_relaxation_matters_to_smoothness_only(sheet: Sheet):
    fields = [sheet.fit(relaxation=part, lambda_smooth=0.0, n_steps=50) for part in (None, 100 * sheet.relaxation)]
    for name, weight in fields[0].weights.items():
        np.testing.assert_array_equal(weight, fields[1].weights[name])
    np.testing.assert_array_equal(fields[0].history["total"], fields[1].history["total"])
    assert fields[0].history["smooth"][-1] < fields[1].history["smooth"][-1]


def test_relaxation_has_the_unit_of_the_velocity(sheet: Sheet):
    velocity = sheet.current + sheet.relaxation
    plain, scaled = (
        sheet.fit(x=64 * sheet.x, velocity=unit * velocity, relaxation=unit * sheet.relaxation, n_steps=50)
        for unit in (1, 1024)
    )
    np.testing.assert_allclose(scaled(64 * sheet.x, 0.0) / 1024, plain(64 * sheet.x, 0.0), rtol=1e-3, atol=1e-3)


def test_smoothness_by_default_compares_neighbours_less_their_relaxation(sheet: Sheet, monkeypatch):
    """The pairs that the penalty gets are the predictions less the relaxation, in units of the velocity."""
    seen = []
    monkeypatch.setattr(
        training_module,
        "smoothness_loss",
        lambda here, there: seen.append((here, there)) or smoothness_loss(here, there),
    )
    given, none = (sheet.fit(relaxation=part, n_steps=1) for part in (sheet.relaxation, None))
    drawn = [np.concatenate([part.detach().numpy() for part in pair]) for pair in seen]
    taken_off = (drawn[1] - drawn[0]) * given.velocity_scale  # both start from the same weights
    assert given.velocity_scale == none.velocity_scale
    distance = np.abs(taken_off[:, None] - sheet.relaxation).max(axis=2).min(axis=1)
    assert distance.max() < 1e-5
    assert np.abs(taken_off).max() > 1


# --------------------------------------------------------------------------------------- degenerate input
def test_too_few_velocities(cells: Cells):
    velocity = np.full_like(cells.velocity, np.nan)
    velocity[:9] = 1
    with pytest.raises(ValueError, match="Expected a velocity for at least `10` cells, found `9`"):
        cells.fit(velocity=velocity)
    velocity[:12] = 1
    assert np.isfinite(cells.fit(velocity=velocity, n_steps=5)(cells.x, cells.time)).all()


def test_zero_velocities_constant_time_and_a_single_position(cells: Cells):
    still = cells.fit(velocity=np.zeros_like(cells.velocity), n_steps=100)
    assert np.abs(still(cells.x, cells.time)).max() < 0.3
    constant = cells.fit(time=np.full(500, 0.5), n_steps=20)
    assert np.isfinite(constant(cells.x, 0.5)).all()
    one_place = cells.fit(x=np.ones_like(cells.x), n_steps=20)
    assert np.isfinite(one_place(np.ones((1, 3)), 0.5)).all()


def test_cells_without_neighbours(cells: Cells):
    graph = cells.graph.tolil()
    graph[-5:] = 0
    graph[:3] = 0
    alone = graph.tocsr()
    alone.eliminate_zeros()
    assert np.isfinite(cells.fit(graph=alone, n_steps=30)(cells.x, cells.time)).all()
    assert np.isfinite(cells.fit(graph=sp.csr_matrix((500, 500)), n_steps=30)(cells.x, cells.time)).all()


def test_neighbours_are_drawn_from_the_graph(cells: Cells):
    sampler = training_module._NeighborSampler(cells.graph, torch.device("cpu"))
    chosen = torch.arange(500).repeat(20)
    drawn = sampler.sample(chosen, generator()).numpy()
    assert cells.graph.toarray()[chosen.numpy(), drawn].all()
    assert np.unique(drawn[::500]).size > 3  # those of cell 0


def test_fewer_cells_than_a_batch_and_a_linear_network(cells: Cells):
    few = slice(0, 30)
    graph = sp.csr_matrix(kneighbors_graph(cells.x[few], 3))
    result = fit_field(
        cells.x[few],
        cells.time[few],
        cells.velocity[few],
        cells.weight[few],
        graph,
        options=FieldOptions(**{**QUICK, "hidden": ()}),
    )
    assert result(cells.x, cells.time).shape == (500, 3)
    assert set(result.weights) == {"0.weight", "0.bias"}


def test_divergence_of_the_training_is_an_error(cells: Cells):
    with pytest.raises(FloatingPointError, match="Training of the velocity field diverged: lower `learning_rate`"):
        cells.fit(learning_rate=1e30, n_steps=50)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"lambda_smooth": -1}, ValueError, r"Expected `lambda_smooth` to be in \[0, inf\)"),
        ({"lambda_curl": np.nan}, ValueError, r"Expected `lambda_curl` to be in \[0, inf\)"),
        ({"lambda_divergence": "no"}, TypeError, "Expected `lambda_divergence` to be a number"),
        ({"learning_rate": 0}, ValueError, r"Expected `learning_rate` to be in \(0, inf\)"),
        ({"held_out": 0}, ValueError, r"Expected `held_out` to be in \(0, 0.5\]"),
        ({"held_out": 0.9}, ValueError, r"Expected `held_out` to be in \(0, 0.5\]"),
        ({"n_steps": 0}, ValueError, "Expected `n_steps` to be at least `1`"),
        ({"batch_size": 12.5}, TypeError, "Expected `batch_size` to be an integer"),
        ({"patience": 0}, ValueError, "Expected `patience` to be at least `1`"),
        ({"device": "abacus"}, ValueError, "Expected `device` to be 'auto'"),
        ({"hidden": (16, 0)}, ValueError, "Expected `hidden`"),
        ({"hidden": (16, -3)}, ValueError, "Expected `hidden`"),
        ({"hidden": 16}, TypeError, "`hidden` to be a sequence of layer sizes, found `int`"),
        ({"hidden": "ab"}, TypeError, "`hidden` to be a sequence of layer sizes, found `str`"),
    ],
)
def test_bad_options(cells: Cells, option: dict, error: type, message: str):
    with pytest.raises(error, match=message):
        cells.fit(**{"n_steps": 2, **option})


def test_none_stands_for_the_default_as_in_version_0_1():
    assert FieldOptions(n_steps=None, batch_size=None, learning_rate=None) == FieldOptions()
