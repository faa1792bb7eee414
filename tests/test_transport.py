"""Batched entropic transport against POT, exact transport, a closed form and its own optimality conditions."""

import numpy as np
import ot
import pytest
import torch

from cellrank_velot.transport import sinkhorn as transport
from cellrank_velot.transport.sinkhorn import sinkhorn

SIZES = [(12, 9), (20, 20), (5, 17), (1, 6), (8, 1), (2, 2)]


def problems(seed: int = 0, *, uniform: bool = True, sizes=SIZES):
    """Return costs in [0, 1] and marginals of problems of different sizes."""
    rng = np.random.default_rng(seed)
    result = []
    for n, m in sizes:
        cost = ot.dist(rng.normal(size=(n, 3)), rng.normal(size=(m, 3)))
        a, b = (np.full(k, 1 / k) if uniform else rng.dirichlet(np.ones(k)) for k in (n, m))
        result.append((cost / cost.max(), a, b))
    return result


def padded(batch):
    """Join problems into one batch; what is padded has no weight and a cost that must not matter."""
    n, m = (max(cost.shape[axis] for cost, _, _ in batch) for axis in (0, 1))
    cost, a, b = torch.full((len(batch), n, m), 0.3).double(), torch.zeros(len(batch), n), torch.zeros(len(batch), m)
    a, b = a.double(), b.double()
    for i, (c, p, q) in enumerate(batch):
        cost[i, : p.size, : q.size] = torch.from_numpy(c)
        a[i, : p.size], b[i, : q.size] = torch.from_numpy(p), torch.from_numpy(q)
    return cost, a, b


def solve(batch, epsilon, **kwargs):
    return sinkhorn(*padded(batch), epsilon, **{"tol": 1e-12, "max_iter": 20_000, **kwargs})


# --------------------------------------------------------------------------------------- independent solvers
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.5])
def test_padded_batch_agrees_with_pot(epsilon: float, uniform: bool):
    batch = problems(uniform=uniform)
    result = solve(batch, epsilon)
    assert result.converged.all()
    for plan, (cost, a, b) in zip(result.plan.numpy(), batch, strict=True):
        expected = ot.sinkhorn(a, b, cost, epsilon, stopThr=1e-13, numItermax=100_000)
        np.testing.assert_allclose(plan[: a.size, : b.size], expected, atol=1e-6 / a.size, rtol=1e-6)
        assert plan[a.size :].sum() == plan[:, b.size :].sum() == 0


@pytest.mark.parametrize("epsilon", [2e-3, 1e-2])
def test_small_epsilon_agrees_with_pot_in_the_log_domain(epsilon: float):
    # Where equal weights make the exact plan an assignment, no Sinkhorn converges in time: POT does not, either.
    batch = problems(1, uniform=False)
    result = solve(batch, epsilon)
    assert result.converged.all()
    for plan, (cost, a, b) in zip(result.plan.numpy(), batch, strict=True):
        with np.errstate(divide="ignore"):
            expected = ot.bregman.sinkhorn_log(a, b, cost, epsilon, stopThr=1e-12, numItermax=100_000)
        np.testing.assert_allclose(plan[: a.size, : b.size], expected, atol=1e-6)


def test_unconverged_plan_agrees_with_pot_step_by_step():
    (cost, a, b), *_ = problems()
    result = solve([(cost, a, b)], 0.05, tol=1e-300, max_iter=31)
    # POT updates in the same order, but starts from the other marginal.
    u, v, kernel = np.ones(a.size), np.ones(b.size), np.exp(-cost / 0.05)
    for _ in range(31):
        v = b / (kernel.T @ u)
        u = a / (kernel @ v)
    np.testing.assert_allclose(result.plan[0].numpy(), u[:, None] * kernel * v, rtol=1e-9)
    assert result.n_iter.tolist() == [31]


@pytest.mark.parametrize("epsilon", [1e-3, 5e-3, 2e-2])
def test_cost_tends_to_that_of_exact_transport(epsilon: float):
    batch = problems(2, uniform=False, sizes=[(15, 15), (10, 18)])
    result = solve(batch, epsilon, tol=1e-9)
    assert result.converged.all()
    for plan, (cost, a, b) in zip(result.plan.numpy(), batch, strict=True):
        exact = ot.emd2(a, b, cost)
        found = (plan[: a.size, : b.size] * cost).sum()
        # The entropic plan costs at most its entropy, times epsilon, more.
        assert exact - 1e-8 <= found <= exact + epsilon * np.log(a.size * b.size)


def test_closed_form_of_two_cells():
    epsilon, c = 0.3, 0.7
    result = solve([(np.array([[0.0, c], [c, 0.0]]), np.full(2, 0.5), np.full(2, 0.5))], epsilon)
    stay = 0.5 / (1 + np.exp(-c / epsilon))
    np.testing.assert_allclose(result.plan[0], [[stay, 0.5 - stay], [0.5 - stay, stay]], rtol=1e-12)


@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 2.0])
def test_optimality_log_plan_is_cost_plus_potentials(epsilon: float):
    batch = problems(3, sizes=[(9, 7)])
    plan, cost = solve(batch, epsilon, max_iter=500).plan[0], torch.from_numpy(batch[0][0])
    rest = plan.log() + cost / epsilon
    rest = rest[torch.isfinite(plan.log()).all(1)]
    mixed = rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean()
    np.testing.assert_allclose(mixed.numpy(), 0, atol=1e-9 / epsilon)


# ------------------------------------------------------------------------------------------------ marginals
@pytest.mark.parametrize("epsilon", [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])
def test_no_epsilon_loses_mass(epsilon: float):
    batch = problems(4, uniform=False)
    cost, a, b = padded(batch)
    result = sinkhorn(cost, a, b, epsilon, tol=1e-6, max_iter=300)
    assert torch.isfinite(result.plan).all()
    assert (result.plan >= 0).all()
    np.testing.assert_allclose(result.plan.sum(2), a, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(result.plan.sum((1, 2)), 1, rtol=1e-11)
    np.testing.assert_allclose((result.plan.sum(1) - b).norm(dim=1), result.marginal_error, atol=1e-11)
    assert (result.marginal_error[result.converged] <= 1e-6).all()
    assert result.converged.all() or epsilon < 0.05


def test_large_epsilon_gives_the_independent_coupling():
    cost, a, b = padded(problems(5, uniform=False))
    result = sinkhorn(cost, a, b, 1e6)
    np.testing.assert_allclose(result.plan, a[:, :, None] * b[:, None], atol=1e-6)
    assert result.converged.all()


def test_constant_cost_is_solved_at_once():
    cost, a, b = padded(problems(5, uniform=False))
    result = sinkhorn(torch.full_like(cost, 3.0), a, b, 0.05)
    np.testing.assert_allclose(result.plan, a[:, :, None] * b[:, None], atol=1e-15)
    assert result.n_iter.tolist() == [1] * len(SIZES)


# --------------------------------------------------------------------------------- hard and unsolved problems
def test_wide_spread_of_costs_goes_by_log_sum_exp(monkeypatch):
    steps = []
    by_log = transport._log_steps
    monkeypatch.setattr(transport, "_log_steps", lambda *args: steps.append(len(args[0])) or by_log(*args))
    rng = np.random.default_rng(6)
    easy, hard = problems(6, uniform=False, sizes=[(10, 10), (10, 10)])
    ranks = rng.normal(scale=300, size=10)[:, None] * rng.normal(size=10)  # only sorting solves it
    hard = (ranks - ranks.min(), *hard[1:])
    assert np.exp(-hard[0]).min() == 0
    result = solve([easy, hard], 1.0, tol=1e-10)
    assert len(steps) > 1, "the first step is always one by log-sum-exp"
    assert set(steps) == {1}, "the easy problem needs none"
    assert result.converged.all()
    for plan, (cost, a, b) in zip(result.plan.numpy(), (easy, hard), strict=True):
        with np.errstate(divide="ignore"):
            expected = ot.bregman.sinkhorn_log(a, b, cost, 1.0, stopThr=1e-11, numItermax=100_000)
        np.testing.assert_allclose(plan, expected, atol=1e-6)


def test_easy_problems_never_need_log_sum_exp(monkeypatch):
    steps = []
    by_log = transport._log_steps
    monkeypatch.setattr(transport, "_log_steps", lambda *args, **kw: steps.append(kw) or by_log(*args, **kw))
    assert solve(problems(7), 0.05).converged.all()
    assert not steps


def test_usual_tolerance_and_bound():
    easy, hard = problems(8, uniform=False, sizes=[(20, 20), (20, 20)])
    result = sinkhorn(*padded([easy]), 0.1)
    assert result.converged.all()
    assert 1e-9 < result.marginal_error.item() <= 1e-6
    result = sinkhorn(*padded([hard]), 1e-5)
    assert not result.converged.any()
    assert result.n_iter.item() == 500


@pytest.mark.parametrize("max_iter", [1, 2, 10, 11, 25])
def test_too_few_iterations_are_reported(max_iter: int):
    result = solve(problems(8, sizes=[(20, 20), (2, 2)]), 1e-3, tol=1e-9, max_iter=max_iter)
    assert not result.converged[0]
    assert result.marginal_error[0] > 1e-9
    assert result.n_iter[0] == max_iter
    assert torch.isfinite(result.plan).all()


def test_each_problem_stops_when_it_has_converged():
    batch = problems(9, sizes=[(15, 15), (15, 15)])
    batch[1] = (np.zeros_like(batch[1][0]), *batch[1][1:])
    result = solve(batch, 0.01, tol=1e-8)
    assert result.converged.all()
    assert result.n_iter[1] == 1
    assert result.n_iter[0] > 10


# ---------------------------------------------------------------------------------------------- invariances
def test_batch_equals_its_problems_one_by_one():
    batch = problems(10, uniform=False)
    together = solve(batch, 0.02)
    for plan, problem in zip(together.plan.numpy(), batch, strict=True):
        alone = solve([problem], 0.02).plan[0].numpy()
        np.testing.assert_allclose(plan[: alone.shape[0], : alone.shape[1]], alone, atol=1e-10)


def test_permuted_cells_get_the_permuted_plan():
    batch = problems(11, uniform=False, sizes=[(12, 9), (12, 9)])
    cost, a, b = padded(batch)
    rng = np.random.default_rng(0)
    rows, columns = torch.from_numpy(rng.permutation(12)), torch.from_numpy(rng.permutation(9))
    plan = sinkhorn(cost, a, b, 0.05, tol=1e-12, max_iter=5000).plan
    again = sinkhorn(cost[:, rows][:, :, columns], a[:, rows], b[:, columns], 0.05, tol=1e-12, max_iter=5000).plan
    np.testing.assert_allclose(again, plan[:, rows][:, :, columns], atol=1e-12)


def test_weight_of_zero_is_padding_wherever_it_is():
    cost, a, b = padded(problems(12, sizes=[(7, 8)]))
    keep_a, keep_b = torch.arange(7) % 3 != 1, torch.arange(8) % 4 != 2
    holes_a, holes_b = (torch.where(keep, 1.0, 0.0).double()[None] / keep.sum() for keep in (keep_a, keep_b))
    with_holes = sinkhorn(cost, holes_a, holes_b, 0.05, tol=1e-12, max_iter=5000).plan[0]
    without = sinkhorn(
        cost[:, keep_a][:, :, keep_b], holes_a[:, keep_a], holes_b[:, keep_b], 0.05, tol=1e-12, max_iter=5000
    ).plan[0]
    np.testing.assert_allclose(with_holes[keep_a][:, keep_b], without, atol=1e-12)
    assert with_holes[~keep_a].sum() == with_holes[:, ~keep_b].sum() == 0


def test_costs_of_leaving_and_arriving_do_not_matter():
    cost, a, b = padded(problems(13, sizes=[(12, 9), (5, 6)]))
    rng = np.random.default_rng(0)
    shifted = cost + torch.from_numpy(5 * rng.random((2, 12, 1)) + 5 * rng.random((2, 1, 9)))
    plans = [sinkhorn(c, a, b, 0.1, tol=1e-12, max_iter=5000).plan for c in (cost, shifted)]
    np.testing.assert_allclose(plans[0], plans[1], atol=1e-10)


def test_inputs_stay_and_repeats_are_bit_equal():
    inputs = padded(problems(14))
    before = [tensor.clone() for tensor in inputs]
    first, second = sinkhorn(*inputs, 0.01), sinkhorn(*inputs, 0.01)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    assert torch.equal(first.plan, second.plan)


def test_empty_batch():
    result = sinkhorn(torch.zeros(0, 3, 4).double(), torch.zeros(0, 3).double(), torch.zeros(0, 4).double(), 0.05)
    assert result.plan.shape == (0, 3, 4)
    assert result.converged.shape == (0,)


# ----------------------------------------------------------------------------------------------- unbalanced
TAUS = [(0.9, 0.9), (0.5, 0.8), (0.999, 0.7)]


def clouds(seed: int = 0, n: int = 40, m: int = 30, far: tuple[float, float] = (0.0, 0.0)):
    """Return costs of mean one between two clouds, the first cells of which may be far out, and random weights."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 1
    scale = ot.dist(x, y).mean()
    x[0] += far[0]
    y[0] -= far[1]
    return ot.dist(x, y) / scale, rng.dirichlet(np.full(n, 5.0)), rng.dirichlet(np.full(m, 5.0))


def residual(plan: np.ndarray, problem, epsilon: float, tau: tuple[float, float]) -> float:
    """Return how far a plan is from the fixed point of the relaxed problem, in potentials over epsilon.

    Where the plan is ``a b exp(f + g - C / epsilon)``, the potentials are ``-tau / (1 - tau)`` times the logarithm of
    what the marginals have over what they should have :cite:`chizat:18`.
    """
    cost, a, b = problem
    seen = plan > 1e-250
    with np.errstate(divide="ignore"):
        f, g = (-t / (1 - t) * np.log(plan.sum(1 - k) / (a, b)[k]) for k, t in enumerate(tau))
        found = np.log(plan) + cost / epsilon - np.log(a)[:, None] - np.log(b)
    return np.abs(found - f[:, None] - g)[seen].max()


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("epsilon", [0.1, 0.02, 0.002])
def test_relaxed_plan_solves_its_fixed_point_equations(epsilon: float, tau: tuple[float, float]):
    batch = [clouds(0), clouds(1, 25, 33)]
    result = solve(batch, epsilon, tau=tau)
    assert result.converged.all()
    for plan, problem in zip(result.plan.numpy(), batch, strict=True):
        own = plan[: problem[1].size, : problem[2].size]
        assert residual(own, problem, epsilon, tau) < 1e-6 / (1 - max(tau))
        assert plan[own.shape[0] :].sum() == plan[:, own.shape[1] :].sum() == 0
        assert 0 < own.sum() < 1


@pytest.mark.parametrize("tau", TAUS)
def test_relaxed_plan_agrees_with_pot(tau: tuple[float, float]):
    epsilon, (cost, a, b) = 0.1, clouds(2)
    strength = tuple(epsilon * t / (1 - t) for t in tau)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, epsilon, strength, reg_type="kl", numItermax=100_000, stopThr=1e-14
    )
    np.testing.assert_allclose(solve([(cost, a, b)], epsilon, tau=tau).plan[0], expected, rtol=1e-6, atol=1e-12)


def test_relaxed_plan_has_the_least_objective():
    epsilon, tau, (cost, a, b) = 0.1, (0.8, 0.9), clouds(3, 8, 6)

    def divergence(p, q):
        return (p * np.log(p / q) - p + q).sum()

    def objective(plan):
        strength = [epsilon * t / (1 - t) for t in tau]
        rows, columns = divergence(plan.sum(1), a), divergence(plan.sum(0), b)
        mixed = divergence(plan, a[:, None] * b)
        return (plan * cost).sum() + epsilon * mixed + strength[0] * rows + strength[1] * columns

    plan = solve([(cost, a, b)], epsilon, tau=tau).plan[0].numpy()
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            assert objective(plan * np.exp(size * rng.normal(size=plan.shape))) > objective(plan)
    for factor in (0.999, 1.001):
        assert objective(plan * factor) > objective(plan)


def test_nearly_strict_weights_give_the_balanced_plan():
    batch = [clouds(4)]
    balanced = solve(batch, 0.05).plan
    off = [float((solve(batch, 0.05, tau=(t, t)).plan - balanced).abs().sum()) for t in (0.999, 0.9999, 0.99999)]
    # What is off is of the first order in what the weights may leave.
    np.testing.assert_allclose([off[0] / off[1], off[1] / off[2]], 10, rtol=0.05)
    assert off[2] < 1e-3


@pytest.mark.parametrize("tau", [(1.0, 0.9), (0.9, 1.0)])
def test_semi_relaxed_plan_keeps_the_strict_weights(tau: tuple[float, float]):
    epsilon, (cost, a, b) = 0.05, clouds(5)
    result = solve([(cost, a, b)], epsilon, tau=tau)
    plan = result.plan[0].numpy()
    strict, kept = (a, plan.sum(1)) if tau[0] == 1 else (b, plan.sum(0))
    np.testing.assert_allclose(kept, strict, atol=1e-11)
    relaxed, sums, t = (b, plan.sum(0), 0.9) if tau[0] == 1 else (a, plan.sum(1), 0.9)
    assert np.abs(sums - relaxed).max() > 0.01
    # On the relaxed side the fixed-point equation holds, whatever the potential of the other one is.
    found = np.log(plan) + cost / epsilon - np.log(a)[:, None] - np.log(b)
    rest = found - (-t / (1 - t) * np.log(sums / relaxed))[(None, slice(None)) if tau[0] == 1 else (slice(None), None)]
    assert np.ptp(rest, axis=1 if tau[0] == 1 else 0).max() < 1e-5


@pytest.mark.parametrize("far", [(100.0, 0.0), (0.0, 100.0), (100.0, 100.0), (1e4, 0.0), (0.0, 1e4)])
@pytest.mark.parametrize("tau", [(0.9, 0.9), (0.5, 0.8), (1.0, 0.9), (0.9, 1.0), (1e-3, 1e-3)])
@pytest.mark.parametrize("epsilon", [0.1, 0.02, 0.002])
def test_a_cell_far_out_spoils_nothing(epsilon: float, tau: tuple[float, float], far: tuple[float, float]):
    problem = clouds(6, far=far)
    result = solve([problem], epsilon, tau=tau, tol=1e-10, max_iter=1000)
    plan = result.plan[0].numpy()
    assert result.converged.all()
    assert np.isfinite(plan).all()
    assert (plan >= 0).all()
    assert plan.sum() <= 1 + 1e-7
    if max(tau) < 1:
        assert residual(plan, problem, epsilon, tau) < 1e-4
        # What is left of the plan is that of the other cells: who is far out neither takes from nor gives to them.
        rows, columns = (slice(int(out > 0), None) for out in far)
        cost, a, b = problem
        alone = solve([(cost[rows, columns], a[rows], b[columns])], epsilon, tau=tau, tol=1e-10, max_iter=1000)
        np.testing.assert_allclose(plan[rows, columns], alone.plan[0], atol=1e-7)


def test_padding_does_not_change_a_relaxed_plan():
    small, large = clouds(7, 10, 8), clouds(8, 50, 60)
    together = solve([small, large], 0.05, tau=(0.9, 0.95)).plan[0, :10, :8]
    np.testing.assert_allclose(together, solve([small], 0.05, tau=(0.9, 0.95)).plan[0], atol=1e-11)


@pytest.mark.parametrize("tau", [0.99, 0.999, 0.9999, 1 - 1e-6])
def test_mass_settles_at_once(tau: float):
    result = solve([clouds(9)], 0.1, tau=(tau, tau), tol=1e-8)
    assert result.converged.all()
    assert result.n_iter.item() <= 71, "without translation it takes thousands"


@pytest.mark.parametrize("far", [(100.0, 0.0), (0.0, 100.0)])
def test_mass_settles_as_fast_beside_a_cell_far_out(far: tuple[float, float]):
    near, with_far = (
        solve([clouds(6, far=by)], 0.02, tau=(0.99, 0.99), tol=1e-8).n_iter.item() for by in ((0, 0), far)
    )
    assert with_far < 2 * near, "steps by log-sum-exp are translated, too"


def test_relaxed_weights_that_are_far_apart_let_mass_go():
    cost, a, b = clouds(10)
    plans = [solve([(cost + by, a, b)], 0.1, tau=(0.8, 0.8)).plan[0] for by in (0.0, 1.0)]
    # A cost that all pairs have in common scales the plan: `epsilon` and both strengths share it.
    factor = np.exp(-1.0 / (0.1 + 2 * 0.4))
    np.testing.assert_allclose(plans[1], plans[0] * factor, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("max_iter", [1, 5, 12])
def test_too_few_relaxed_iterations_are_reported(max_iter: int):
    result = solve([clouds(11)], 0.002, tau=(0.95, 0.95), tol=1e-12, max_iter=max_iter)
    assert not result.converged.any()
    assert 1e-12 < result.marginal_error.item() < 1
    assert result.n_iter.item() == max_iter
