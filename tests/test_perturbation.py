"""Perturbations: displacement through loadings, planted effects and none, symmetry, chance, and what is refused."""

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import false_discovery_control

from cellrank_velot import OTVelocityKernel
from cellrank_velot.dynamics import FlowOptions, simulate_flow
from cellrank_velot.dynamics.region import Region
from cellrank_velot.perturbation import (
    Change,
    FateShift,
    FlowFates,
    PerturbedField,
    ShiftOptions,
    Variants,
    compute_fate_shift,
    compute_perturbation,
    draw_matched,
    one_by_one,
    parse_changes,
)
from cellrank_velot.perturbation.flow import whitened

QUIET = {"show_progress_bar": False}
FEW = ShiftOptions(n_particles=120)


# ---------------------------------------------------------------------------------------- a fork, whose genes are known
@dataclass(frozen=True)
class Fork:
    """A velocity that leads along the first dimension, and away from 0 along the second; time does not matter."""

    push: float = 6.0

    def on(self, device):
        def evaluate(x, _time):
            velocity = torch.zeros_like(x)
            velocity[:, 0] = 4.0
            velocity[:, 1] = self.push * torch.tanh(x[:, 1])
            return velocity

        return evaluate


@dataclass(frozen=True)
class Headed(Fork):
    """The fork with the heads that fields of experimental time have."""

    has_heads = True
    diffusion = 0.3

    def drift_on(self, device):
        return lambda x, time: self.on(device)(x, time) - x

    def growth_on(self, device):
        return lambda x, _time: x[:, 1]

    def heads_on(self, device):
        return lambda x, time: (self.on(device)(x, time), x[:, 1], -x)

    def score(self, x, time):
        return -x


@pytest.fixture(scope="module")
def genes():
    """Loadings of 42 genes in five dimensions: one towards the right, one across, and others that hardly matter."""
    rng = np.random.default_rng(3)
    loadings = 0.3 * rng.normal(size=(5, 42))
    loadings[1] *= 0.1
    loadings[:, 0] = [0, 0.5, 0, 0, 0]
    loadings[:, 1] = [0, 0, 0.5, 0, 0]
    return loadings


@pytest.fixture(scope="module")
def expression(planted):
    return np.random.default_rng(4).uniform(0.8, 1.2, (planted.x.shape[0], 42))


@pytest.fixture(scope="module")
def fates(planted):
    clusters = np.array(["stem", "left", "right"])[planted.labels]
    options = FlowOptions(n_steps=130, step_size=0.01, diffusion=0.5)
    return FlowFates(Fork(), planted.x, planted.time, clusters, ["left", "right"], options)


def shift_of(planted, genes, expression, fates, gene, change, *, n_null=0, groups=None, **options):
    perturbation = compute_perturbation(expression[:, [gene]], genes[:, [gene]], {f"gene_{gene}": change})
    null, names = None, None
    if n_null:
        others = np.setdiff1d(np.arange(42), [0, 1])
        null, drawn = draw_matched(perturbation, expression[:, others], genes[:, others], n_null=n_null)
        names = others[drawn].astype(str)
    options = ShiftOptions(**{"n_particles": 120, **options})
    where = {"groups": groups, "null": null, "null_genes": names}
    return compute_fate_shift(perturbation, fates, planted.time < 0.2, fates.lineages, options, **where)


def test_a_gene_that_pushes_to_a_fate_is_found(planted, genes, expression, fates):
    shift = shift_of(planted, genes, expression, fates, 0, 0.0, n_null=19)
    assert_array_equal(shift.lineages, ["left", "right"])
    assert shift.before[0, 1] == pytest.approx(0.5, abs=0.15)
    assert shift.delta[0, 1] < -0.3
    assert shift.high[0, 1] < -0.15
    assert shift.p_values[0, 1] == pytest.approx(1 / 20)
    assert_allclose(shift.delta.sum(axis=1), 0, atol=1e-12)
    assert shift.null_genes.shape == (19, 1)
    assert len(set(shift.null_genes.ravel())) == 19


def test_a_gene_across_the_fates_has_no_effect(planted, genes, expression, fates):
    shift = shift_of(planted, genes, expression, fates, 1, 0.0, n_null=19)
    assert abs(shift.delta[0, 1]) < 0.1
    assert shift.low[0, 1] < 0 < shift.high[0, 1]
    assert shift.p_values[0, 1] > 0.2


def test_more_of_a_gene_is_the_opposite_of_less(planted, genes, expression, fates):
    less = shift_of(planted, genes, expression, fates, 0, ("scale", 0.85)).delta[0, 1]
    more = shift_of(planted, genes, expression, fates, 0, ("scale", 1.15)).delta[0, 1]
    assert less < -0.1 < 0.1 < more
    assert less == pytest.approx(-more, abs=0.1)


def test_a_pulse_does_less_than_a_lasting_change(planted, genes, expression, fates):
    perturbation = compute_perturbation(expression[:, [0]], genes[:, [0]], {"a": 0.0})
    starts = planted.time < 0.2
    clamp, pulse = (
        compute_fate_shift(replace(perturbation, effect=effect), fates, starts, fates.lineages, FEW)
        for effect in ("clamp", "pulse")
    )
    assert clamp.delta[0, 1] < pulse.delta[0, 1] < -0.05


def test_only_perturbed_cells_are_displaced(planted, genes, expression, fates):
    late = planted.time > 0.9
    perturbation = compute_perturbation(expression[:, [0]], genes[:, [0]], {"a": 0.0}, cells=late)
    assert not perturbation.dx[~late].any()
    shift = compute_fate_shift(perturbation, fates, planted.time < 0.2, fates.lineages, ShiftOptions(n_particles=60))
    assert shift.changed[0] < 0.05  # fates are decided before


def test_the_same_seed_gives_the_same_and_another_not(planted, genes, expression, fates):
    one, same, other = (
        shift_of(planted, genes, expression, fates, 0, 0.5, random_state=seed, n_null=3, n_particles=30).to_frame()
        for seed in (1, 1, 2)
    )
    assert one.equals(same)
    assert not one.equals(other)


def test_groups_are_counted_apart(planted, genes, expression, fates):
    side = np.where(planted.x[:, 1] < 0, "below", "above")
    shift = shift_of(planted, genes, expression, fates, 0, 0.0, groups=side, n_particles=60)
    assert_array_equal(shift.groups, ["above", "below"])
    assert shift.before[0, 1] > shift.before[1, 1]
    table = shift.to_frame()
    assert list(table["group"]) == ["above", "above", "below", "below"]
    assert_allclose(table["delta"], table["after"] - table["before"])


# ----------------------------------------------------------------------------------------------------- displacement
def test_displacement_is_the_change_through_the_loadings():
    rng = np.random.default_rng(0)
    values, loadings = rng.uniform(size=(7, 3)), rng.normal(size=(4, 3))
    changes = {"a": 2.0, "b": ("scale", 3.0), "c": ("add", -0.5)}
    changed = np.stack([np.full(7, 2.0), 3 * values[:, 1], np.maximum(values[:, 2] - 0.5, 0)], axis=1)
    perturbation = compute_perturbation(values, loadings, changes, scale=np.array([1.0, 2.0, 4.0]))
    assert_allclose(perturbation.dx, ((changed - values) / [1, 2, 4]) @ loadings.T)
    assert perturbation.name == "a = 2, b × 3, c -0.5"
    assert "clamp" in repr(perturbation)
    again = pickle.loads(pickle.dumps(perturbation))
    assert_array_equal(again.dx, perturbation.dx)


def test_a_pca_of_changed_genes_moves_by_the_displacement():
    """The loadings of a centred PCA carry a change as the PCA itself does."""
    rng = np.random.default_rng(1)
    values = rng.gamma(2.0, size=(50, 6))
    _, _, rows = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    loadings = rows[:3]
    changed = values.copy()
    changed[:, 2] = 0
    before, after = ((part - values.mean(axis=0)) @ loadings.T for part in (values, changed))
    assert_allclose(compute_perturbation(values[:, [2]], loadings[:, [2]], {"g": 0.0}).dx, after - before)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({}, ValueError, "at least one gene"),
        ("Pax4", TypeError, "as `{gene: value}`"),
        ({"a": -1.0}, ValueError, r"in \[0, inf\)"),
        ({"a": "up"}, TypeError, "to be a number, found `str`"),
        ({"a": True}, TypeError, "to be a number, found `bool`"),
        ({"a": ("double", 2.0)}, ValueError, "one of"),
        ({"a": ("scale", 1.0)}, ValueError, "leaves it as it is"),
        ({"a": ("add", 0)}, ValueError, "leaves it as it is"),
        ({"a": ("scale", -1.0)}, ValueError, r"in \[0, inf\)"),
        ({"a": ("scale",)}, ValueError, "'scale', factor"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        parse_changes(changes)


def test_changes_are_parsed_in_order():
    assert parse_changes({"b": 0, "a": ("add", -1)}) == {"b": Change("set", 0.0), "a": Change("add", -1.0)}


@pytest.mark.parametrize(
    ("values", "loadings", "match"),
    [
        ([[0.0], [0.0]], [[1.0]], "detected in `0`"),
        ([[1.0], [2.0]], [[0.0]], "weight in the PCA, found none"),
        ([[1.0], [-2.0]], [[1.0]], "not negative, found `1`"),
        ([[1.0], [np.nan]], [[1.0]], "finite expression"),
        ([[1.0, 1.0]], [[1.0]], "of `1` genes, found `2` and `1`"),
    ],
)
def test_genes_that_cannot_be_seen_are_refused(values, loadings, match):
    with pytest.raises(ValueError, match=match):
        compute_perturbation(np.array(values), np.array(loadings), {"a": 0.0})


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="with some to perturb"):
        compute_perturbation(np.ones((2, 1)), np.ones((1, 1)), {"a": 0.0}, cells=np.zeros(2, dtype=bool))


# ---------------------------------------------------------------------------------------------------------- other genes
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("change", [0.0, 3.0, ("scale", 2.0), ("add", 1.0), ("add", -0.5)])
def test_other_genes_go_as_far(change, sparse):
    rng = np.random.default_rng(0)
    values, loadings = rng.poisson(1.0, (80, 60)).astype(float), rng.normal(size=(4, 60))
    perturbation = compute_perturbation(values[:, [0, 1]], loadings[:, [0, 1]], {"a": change, "b": 0.0})
    rest = sp.csr_matrix(values[:, 2:]) if sparse else values[:, 2:]
    null, drawn = draw_matched(perturbation, rest, loadings[:, 2:], n_null=15, random_state=5)
    assert drawn.shape == (15, 2)
    assert np.unique(drawn).size == 30
    for i in range(2):
        expected = np.abs(perturbation.amounts[:, i]).mean() * np.linalg.norm(loadings[:, i])
        found = np.abs(null.amounts[:, :, i]).mean(axis=1) * np.linalg.norm(null.directions[:, i], axis=1)
        assert_allclose(found, expected)
    assert_allclose(null.directions, loadings.T[2:][drawn])


def test_other_genes_are_those_of_like_length():
    """Of genes of lengths 1 to 200, those around 100 are drawn, in the units of the PCA."""
    lengths = np.arange(1.0, 201.0)
    loadings = np.stack([2 * lengths, np.zeros(200)])
    perturbation = compute_perturbation(np.ones((3, 1)), np.array([[0.0], [100.0]]), {"a": 0.0})
    scale = np.full(200, 2.0)
    _, drawn = draw_matched(perturbation, np.ones((3, 200)), loadings, n_null=10, scale=scale)
    assert np.abs(lengths[drawn] - 100).max() < 20


def test_too_few_other_genes_are_refused():
    perturbation = compute_perturbation(np.ones((3, 1)), np.ones((2, 1)), {"a": 0.0})
    values = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="at least `n_null=2` other genes .* found `1`"):
        draw_matched(perturbation, values, np.ones((2, 2)), n_null=2)


# ---------------------------------------------------------------------------------------------------------------- field
def test_the_perturbed_field_is_the_field_elsewhere(planted):
    amounts, directions = np.ones((planted.x.shape[0], 1)), np.array([[0.0, 0.7, 0.0, 0.0, 0.0]])
    field = PerturbedField(Fork(), planted.x, amounts, directions)
    x = planted.x[:9]
    assert_allclose(field(x, 0.0)[:, 1], 6 * np.tanh(x[:, 1] + 0.7), rtol=1e-4)
    pushed = replace(field, push=2.0)
    assert_allclose(pushed(x, 0.0) - field(x, 0.0), 2.0 * field.displacement(x), rtol=1e-4)
    assert_allclose(field.displacement(x), np.tile(directions, (9, 1)), rtol=1e-4)
    assert field.n_dims == 5
    assert not field.has_heads
    assert field.diffusion == 0.0


def test_heads_are_perturbed_as_far_as_they_tell_what_cells_do(planted):
    amounts, directions = np.ones((planted.x.shape[0], 1)), np.array([[0.0, 0.7, 0.0, 0.0, 0.0]])
    field = PerturbedField(Headed(), planted.x, amounts, directions)
    x = planted.x[:9]
    assert field.has_heads
    assert field.diffusion == 0.3
    assert_allclose(field.growth(x, 0.0), x[:, 1] + 0.7, rtol=1e-4)
    assert_allclose(field.drift(x, 0.0), field(x, 0.0) - x, rtol=1e-5, atol=1e-6)
    assert_allclose(field.score(x, 0.0), -x)
    together = field.heads_on("cpu")(torch.tensor(x), torch.zeros(9))
    for found, alone in zip(together, (field(x, 0.0), field.growth(x, 0.0), -x), strict=True):
        assert_allclose(found, alone, rtol=1e-4, atol=1e-6)


def test_displacement_is_the_mean_of_the_cells_around(planted):
    """In one half of the cells only: none far on the other side, all far on this one."""
    amounts = (planted.x[:, 0] > 2).astype(float)[:, None]
    field = PerturbedField(Fork(), planted.x, amounts, np.eye(5)[:1])
    far = np.abs(planted.x[:, 0] - 2) > 1
    assert_allclose(field.displacement(planted.x[far])[:, 0], amounts[far, 0], rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------------- flow
def test_no_perturbation_changes_nothing(planted, fates):
    variants = Variants(np.zeros((3, planted.x.shape[0], 1)), np.ones((3, 1, 5)), "clamp")
    codes, weights = fates(variants, np.arange(40), 0)
    assert weights is None
    assert_array_equal(codes[0], codes[1])
    assert_array_equal(codes[0], codes[2])


def test_batches_do_not_matter(planted, genes, expression, fates, monkeypatch):
    perturbation = compute_perturbation(expression[:, [0]], genes[:, [0]], {"a": 0.0})
    amounts = np.stack([perturbation.amounts * factor for factor in (0.0, 0.2, 1.0)])
    variants = Variants(amounts, np.stack([perturbation.directions] * 3), "clamp")
    together, _ = fates(variants, np.arange(30), 0)
    monkeypatch.setattr("cellrank_velot.perturbation.flow.MAX_PARTICLES", 30)
    alone, _ = fates(variants, np.arange(30), 0)
    assert (together == alone).mean() > 0.95  # sums over other batches differ by rounding


def test_small_perturbations_change_few_fates(planted, genes, expression, fates):
    """Particles of the same noise keep together: of independent ones, half would change."""
    shift = shift_of(planted, genes, expression, fates, 0, ("scale", 0.98))
    assert shift.changed[0] < 0.15


def test_noise_has_the_covariance_of_the_cells():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) * [3, 2, 1, 1, 1, 0.5]
    region = Region.of(x)
    point = torch.tensor(np.repeat(x[:1], 4000, axis=0))
    around = region.around(point, region.nearest(point))
    deviation = around.weight.sqrt().unsqueeze(2) * (around.cells - around.mean.unsqueeze(1))
    normal = torch.tensor(rng.normal(size=(4000, 6)), dtype=torch.float32)
    moved = torch.bmm(deviation.transpose(1, 2), whitened(deviation, normal).unsqueeze(2)).squeeze(2).double()
    expected = (deviation[0].T @ deviation[0]).double()
    difference = torch.linalg.matrix_norm(moved.T @ moved / 4000 - expected) / torch.linalg.matrix_norm(expected)
    assert difference < 0.1
    assert not whitened(torch.zeros(2, 5, 3), torch.ones(2, 3)).any()


def test_unperturbed_fates_are_those_of_the_flow(planted, fates):
    clusters = np.array(["stem", "left", "right"])[planted.labels]
    starts = np.flatnonzero((planted.time < 0.2) & (planted.x[:, 1] > 0))
    variants = Variants(np.zeros((1, planted.x.shape[0], 1)), np.ones((1, 1, 5)), "clamp")
    codes, _ = fates(variants, np.resize(starts, 400), 0)
    flow = simulate_flow(
        Fork(),
        planted.x,
        planted.time,
        starts,
        replace(fates.options, n_particles=400),
        clusters=clusters,
        terminal_clusters=["left", "right"],
    )
    share = (codes[0] == 1).sum() / (codes[0] >= 0).sum()
    assert share == pytest.approx(flow.fates().loc["right", "probability"], abs=0.1)


def test_without_noise_it_is_an_ordinary_equation(planted, genes, expression, fates):
    still = replace(fates, options=replace(fates.options, diffusion=0.0))
    shift = shift_of(planted, genes, expression, still, 0, ("scale", 0.8))
    assert shift.delta[0, 1] < -0.05


def test_one_by_one_passes_on_what_is_perturbed(planted):
    amounts = np.stack([np.zeros((planted.x.shape[0], 1)), np.ones((planted.x.shape[0], 1))])
    directions = np.tile(np.eye(5)[1], (2, 1, 1)) * 0.7
    calls = []

    def run(field, positions, start_ix, seed):
        calls.append((field, positions, seed))
        return np.sign(field(positions, 0.0)[:, 1]).astype(int) if isinstance(field, PerturbedField) else start_ix, None

    base = Fork()
    for effect in ("clamp", "pulse"):
        calls.clear()
        codes, weights = one_by_one(run, base, planted.x)(Variants(amounts, directions, effect), np.arange(6), 11)
        assert codes.shape == (2, 6)
        assert weights is None
        moved = calls[1][1] - planted.x[:6]
        assert calls[0][0] is base
        assert {seed for *_, seed in calls} == {11}
        assert isinstance(calls[1][0], PerturbedField) == (effect == "clamp")
        assert_allclose(moved, 0.0 if effect == "clamp" else np.tile(directions[1], (6, 1)), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- shift
def shift_from(codes, weights=None) -> FateShift:
    """Shift of three cells' particles whose fates are given, by perturbation."""
    perturbation = compute_perturbation(np.ones((3, 1)), np.ones((2, 1)), {"a": 0.0})
    codes = np.asarray(codes)
    n_null = codes.shape[0] - 2
    null = Variants(np.ones((n_null, 3, 1)), np.ones((n_null, 1, 2)), "clamp") if n_null else None

    def fates(variants, start_ix, _seed):
        assert len(variants) == codes.shape[0]
        assert start_ix.size == codes.shape[1]
        return codes, weights

    starts = np.ones(3, dtype=bool)
    return compute_fate_shift(
        perturbation, fates, starts, ["A", "B"], ShiftOptions(n_particles=codes.shape[1]), null=null
    )


def test_shares_are_of_those_with_a_fate():
    shift = shift_from([[0, 0, 1, -1], [0, 1, 1, 1]])
    assert_allclose(shift.before, [[2 / 3, 1 / 3]])
    assert_allclose(shift.after, [[1 / 4, 3 / 4]])
    assert_allclose(shift.no_fate, [[0.25, 0.0]])
    assert shift.changed == pytest.approx(0.5)
    assert np.isnan(shift.p_values).all()
    assert np.isnan(shift.p_adjusted).all()


def test_weights_count():
    shift = shift_from([[0, 1], [0, 1]], np.array([[1.0, 1.0], [3.0, 1.0]]))
    assert_allclose(shift.delta, [[0.25, -0.25]])


def test_intervals_hold():
    """Of 95 % intervals of paired shares, nineteen of twenty hold the truth, also where few particles change."""
    rng = np.random.default_rng(0)
    for moves, back in ((0.2, 0.1), (0.02, 0.0)):
        hits = 0
        for _ in range(300):
            before = rng.integers(0, 2, 200)
            flips = rng.uniform(size=200) < np.where(before == 0, moves, back)
            shift = shift_from([before, np.where(flips, 1 - before, before)])
            hits += shift.low[0, 1] <= (moves - back) / 2 <= shift.high[0, 1]
        assert hits >= 0.91 * 300


def test_no_change_is_no_certainty():
    few, many = (shift_from(np.zeros((2, n), dtype=int)) for n in (20, 2000))
    assert few.low[0, 0] < -0.05
    assert few.high[0, 0] > 0.05
    assert many.high[0, 0] < 0.01


def test_p_values_count_both_sides():
    base, moved, back = [0] * 8, [1, 1, 1, 0, 0, 0, 0, 0], [1] * 4 + [0] * 4
    shift = shift_from([base, moved, base, base, back, moved])
    assert_allclose(shift.p_values, [[3 / 5, 3 / 5]])
    assert_allclose(shift.p_adjusted.ravel(), false_discovery_control(shift.p_values.ravel()))
    low, high = shift.null_interval(0.99)
    assert (low <= high).all()
    assert "p = 0.6" in repr(shift)
    assert_array_equal(shift.to_frame()["n_null"], [4, 4])


def test_other_genes_that_lose_all_particles_count_as_far():
    base, moved, lost = [0] * 8, [1, 1, 1, 0, 0, 0, 0, 0], [-1] * 8
    shift = shift_from([base, moved, base, lost])
    assert_allclose(shift.p_values, [[2 / 3, 2 / 3]])
    low, high = shift.null_interval()
    assert_allclose([low, high], 0)


def test_particles_without_any_fate_have_no_share():
    shift = shift_from(np.full((3, 5), -1))
    assert np.isnan(shift.delta).all()
    assert np.isnan(shift.p_values).all()
    assert np.isnan(shift.null_interval()).all()
    assert "no particle" in repr(shift)


def test_shift_refuses_what_makes_no_sense(genes, expression, fates):
    for options, match in (
        ({"level": 1.0}, "`level` to be in"),
        ({"n_particles": 0}, "`n_particles` to be at least `1`"),
        ({"n_null": -1}, "`n_null` to be at least `0`"),
        ({"random_state": -1}, "`random_state` to be at least `0`"),
    ):
        with pytest.raises(ValueError, match=match):
            ShiftOptions(**options)
    perturbation = compute_perturbation(expression[:, [0]], genes[:, [0]], {"a": 0.0})
    with pytest.raises(ValueError, match="cells to start from, found none"):
        compute_fate_shift(perturbation, fates, np.zeros(240, dtype=bool), fates.lineages)


# --------------------------------------------------------------------------------------------------------------- kernel
FAST = {"n_particles": 20, "n_steps": 40, "step_size": 0.02, "show_progress_bar": False}


@pytest.fixture
def small(computed):
    """A kernel of twenty genes, of which one is no variable gene and one is in no cell."""
    adata = computed.adata
    adata.varm["PCs"][19] = 0
    adata.X[:, 18] = 0
    return computed


def test_kernel_reads_expression_and_loadings(computed, caplog):
    adata = computed.adata
    perturbation = computed.perturb({"gene_3": 0.0, "gene_1": ("scale", 1.01)}, {"clusters": "stem"})
    stem = (adata.obs["clusters"] == "stem").to_numpy()
    values, weights = np.asarray(adata.X, dtype=float), adata.varm["PCs"]
    expected = np.outer(-values[:, 3], weights[3]) + 0.01 * np.outer(values[:, 1], weights[1])
    assert_allclose(perturbation.dx[stem], expected[stem], rtol=1e-4, atol=1e-6)
    assert not perturbation.dx[~stem].any()
    assert "where there are no data" in caplog.text  # no gene is 0 in any of these cells
    assert "not computed from these values" not in caplog.text


def test_kernel_reads_sparse_layers_and_scales(computed, caplog):
    adata = computed.adata
    dense = np.asarray(adata.X, dtype=float)
    adata.layers["raw"] = sp.csr_matrix(dense * np.arange(1, 21))
    adata.var["std"] = np.arange(1.0, 21.0)
    scaled = computed.perturb({"gene_3": 0.0}, layer="raw", gene_scale="std")
    assert_allclose(scaled.dx, computed.perturb({"gene_3": 0.0}).dx, rtol=1e-4, atol=1e-6)
    assert "not computed from these values" not in caplog.text
    computed.perturb({"gene_3": 0.0}, layer="raw")
    assert "not computed from these values" in caplog.text


def test_kernel_refuses_genes_it_cannot_perturb(small):
    with pytest.raises(KeyError, match="found 'gene_33'. Close to it are .*'gene_3'"):
        small.perturb({"gene_33": 0.0})
    with pytest.raises(KeyError, match="None is close"):
        small.perturb({"zzz": 0.0})
    with pytest.raises(ValueError, match="'gene_19' to have a weight in the PCA"):
        small.perturb({"gene_19": 0.0})
    with pytest.raises(ValueError, match="detected in `0`"):
        small.perturb({"gene_18": 0.0})
    with pytest.raises(KeyError, match="layers"):
        small.perturb({"gene_3": 0.0}, layer="counts")
    with pytest.raises(KeyError, match=r"adata\.var\['std'\]"):
        small.perturb({"gene_3": 0.0}, gene_scale="std")
    with pytest.raises(ValueError, match="`effect` to be one of"):
        small.perturb({"gene_3": 0.0}, effect="hold")
    del small.adata.varm["PCs"]
    with pytest.raises(KeyError, match="PCs"):
        small.perturb({"gene_3": 0.0})


def test_kernel_compares_fates(computed):
    shift = computed.fate_shift(
        {"gene_3": ("scale", 0.9)}, source_cluster="stem", terminal_clusters=["left", "right"], n_null=3, **FAST
    )
    table = shift.to_frame()
    assert list(table["lineage"]) == ["left", "right"]
    assert (table["n_null"] == 3).all()
    assert not np.isin("gene_3", shift.null_genes)
    by_stage = computed.fate_shift(
        {"gene_3": ("scale", 0.9)},
        source_cluster="stem",
        terminal_clusters=["left", "right"],
        group_key="stage",
        n_null=0,
        null_genes=["gene_1"],
        **FAST,
    )
    assert set(by_stage.groups) <= {"0", "1", "2", "3"}
    assert by_stage.n_null == 0


def test_other_clusters_are_no_fate_in_real_time(adata):
    kernel = OTVelocityKernel(adata, time_key="stage", time_kind="experimental", cluster_key="clusters")
    kernel.compute_velocity(show_progress_bar=False).fit_field(hidden=(16, 16), n_steps=60, show_progress_bar=False)
    options = {"source_cluster": "stem", "n_null": 0, "n_particles": 60, "show_progress_bar": False}
    both = kernel.fate_shift({"gene_3": ("scale", 0.9)}, terminal_clusters=["left", "right"], **options)
    left = kernel.fate_shift({"gene_3": ("scale", 0.9)}, terminal_clusters="left", **options)
    assert both.before.sum() == pytest.approx(1)
    assert 0.1 < both.before[0, 0] < 0.9
    # Those that come to the right are then without a fate, and shares are of the others.
    assert left.before.tolist() == [[1.0]]
    assert left.no_fate[0, 0] == pytest.approx(1 - both.before[0, 0] * (1 - both.no_fate[0, 0]), abs=1e-9)


def test_kernel_draws_other_genes_from_those_given(small):
    options = {"source_cluster": "stem", "n_null": 2, **FAST}
    shift = small.fate_shift({"gene_3": ("scale", 0.9)}, null_genes=["gene_1", "gene_2"], **options)
    assert set(shift.null_genes.ravel()) == {"gene_1", "gene_2"}
    with pytest.raises(ValueError, match="Lower `n_null`"):
        small.fate_shift({"gene_3": 0.0}, null_genes=["gene_1", "gene_18", "gene_19"], **options)


def test_perturbed_kernel_has_the_perturbed_velocity(computed):
    before = computed.transition_matrix.copy()
    perturbation = computed.perturb({"gene_3": ("scale", 0.95)})
    perturbed = computed.perturbed_kernel(perturbation)
    x, time = computed.cells.x, computed.cells.time
    shift = PerturbedField.of(computed.field, x, perturbation).displacement(x)
    assert_allclose(perturbed.velocity, computed.field(x + shift, time), rtol=1e-4, atol=1e-5)
    assert (computed.transition_matrix != before).nnz == 0
    assert abs(perturbed.transition_matrix - before).max() > 1e-4
    assert perturbed.params["softmax_scale"] == computed.params["softmax_scale"]
    assert_allclose(perturbed.transition_matrix.sum(axis=1), 1)
    tiny = computed.perturbed_kernel({"gene_3": ("scale", 1 + 1e-9)})
    assert_allclose(tiny.transition_matrix.toarray(), before.toarray(), atol=1e-5)


def test_a_push_draws_cells_to_the_changed_state(computed):
    perturbation = computed.perturb({"gene_3": ("scale", 0.95)})
    perturbed = computed.perturbed_kernel(perturbation, push=1e6)
    shift = PerturbedField.of(computed.field, computed.cells.x, perturbation).displacement(computed.cells.x)
    cosine = (perturbed.velocity * shift).sum(axis=1)
    cosine /= np.linalg.norm(perturbed.velocity, axis=1) * np.linalg.norm(shift, axis=1)
    assert cosine.min() > 0.99


def test_perturbed_kernel_lives_with_cellrank(computed):
    import cellrank as cr

    perturbed = computed.perturbed_kernel({"gene_3": ("scale", 0.95)})
    combined = 0.8 * perturbed + 0.2 * cr.kernels.ConnectivityKernel(computed.adata).compute_transition_matrix()
    assert_allclose(combined.transition_matrix.sum(axis=1), 1)
    estimator = cr.estimators.GPCCA(combined)
    names = np.asarray(computed.adata.obs_names)
    states = {side: list(names[(computed.adata.obs["clusters"] == side).to_numpy()][:15]) for side in ("left", "right")}
    estimator.set_terminal_states(states)
    estimator.compute_fate_probabilities(use_petsc=False, solver="direct", show_progress_bar=False)
    assert_allclose(np.asarray(estimator.fate_probabilities.X).sum(axis=1), 1, atol=1e-6)
    again = perturbed.copy(deep=True)
    assert_array_equal(again.velocity, perturbed.velocity)
    assert isinstance(again.field, PerturbedField)


def test_perturbed_kernel_is_saved_and_read(computed, tmp_path):
    import anndata

    perturbed = computed.perturbed_kernel({"gene_3": ("scale", 0.95)})
    perturbed.write_to_adata("T_perturbed")
    perturbed.adata.write_h5ad(tmp_path / "perturbed.h5ad")
    again = type(computed).from_adata(anndata.read_h5ad(tmp_path / "perturbed.h5ad"), "T_perturbed")
    assert isinstance(again.field, PerturbedField)
    assert_array_equal(again.velocity, perturbed.velocity)


def test_perturbed_kernel_refuses_what_it_cannot_do(computed):
    pulse = computed.perturb({"gene_3": ("scale", 0.95)}, effect="pulse")
    with pytest.raises(ValueError, match="found `'pulse'`"):
        computed.perturbed_kernel(pulse)
    other = replace(pulse, effect="clamp", directions=np.ones((1, 4)))
    with pytest.raises(ValueError, match="in `5` dimensions, found one of `240` in `4`"):
        computed.perturbed_kernel(other)
    computed.compute_transition_matrix(smooth=False)
    with pytest.raises(ValueError, match="`smooth=True`"):
        computed.perturbed_kernel({"gene_3": 0.0})
    computed.compute_transition_matrix(gene_subset="highly_variable")
    with pytest.raises(ValueError, match="`gene_subset` again"):
        computed.perturbed_kernel({"gene_3": 0.0})
    computed.compute_transition_matrix(similarity=lambda v, d: (v * d).sum(axis=1))
    with pytest.raises(ValueError, match="`similarity` again"):
        computed.perturbed_kernel({"gene_3": 0.0})
