"""The landscape: its density against that of scipy, planted wells and their barriers, lowest passes, the kernel."""

import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.ndimage import label
from scipy.stats import gaussian_kde

from cellrank_velot import OTVelocityKernel
from cellrank_velot.cells.read import CellStates
from cellrank_velot.kernel.landscape import Landscapes
from cellrank_velot.landscape import Landscape, LandscapeOptions, PlaneCells, compute_landscape
from cellrank_velot.landscape.passes import spanning_tree, tree_path


def cloud(n_cells: int = 300, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Cells of a Gaussian whose dimensions are correlated."""
    x = np.random.default_rng(seed).normal(size=(n_cells, 2))
    return x @ np.array([[1.0, 0.8], [0.0, 0.3]]) + shift


def wells(x: np.ndarray, y: np.ndarray, tilt: float) -> np.ndarray:
    """Two wells at about -1 and 1 of the first dimension, with a barrier of about 3 at 0, and a tilt between them."""
    return 3 * (x**2 - 1) ** 2 + tilt * x + 2 * y**2


def planted(potential, diffusion: float | None = None, n: int = 241) -> Landscape:
    """The landscape of a known density, with the states left and right of 0."""
    x, y = np.linspace(-2.4, 2.4, n), np.linspace(-2, 2, n - 40)
    columns, rows = np.meshgrid(x, y)
    density = np.exp(-potential(columns, rows) / (1 if diffusion is None else diffusion**2 / 2))[None]
    return Landscape(
        x=x,
        y=y,
        times=np.array([np.nan]),
        density=density,
        floor=density.max(axis=(1, 2)) * 1e-12,
        region=(columns > 0).astype(np.int16)[None],
        states=np.array(["left", "right"]),
        bandwidth=np.eye(2)[None],
        diffusion=diffusion,
    )


def drawn_wells(n_cells: int, seed: int) -> PlaneCells:
    """Cells at rest between the wells of a barrier of 3 along the first dimension."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(-3, 3, 4001)
    chance = np.exp(-3 * (grid**2 - 1) ** 2).cumsum()
    x = np.interp(rng.uniform(size=n_cells), chance / chance[-1], grid)
    return PlaneCells(np.stack([x, rng.normal(size=n_cells)], axis=1), labels=(x > 0).astype(int))


# ------------------------------------------------------------------------------------------------------------- density
@pytest.mark.parametrize("bandwidth", [0.5, 1.0])
def test_density_is_that_of_scipy(bandwidth):
    x, weights = cloud(), np.random.default_rng(1).uniform(size=300)
    found = compute_landscape([PlaneCells(x, weights)], options=LandscapeOptions(n_grid=120, bandwidth=bandwidth))
    scott = gaussian_kde(x.T, weights=weights)
    scott.set_bandwidth(scott.factor * bandwidth)
    points = np.stack([axis.ravel() for axis in np.meshgrid(found.x, found.y)])
    expected = scott(points).reshape(120, 120)
    np.testing.assert_allclose(found.bandwidth[0], scott.covariance)
    assert np.abs(found.density[0] - expected).max() < 2e-3 * expected.max()
    seen = np.isfinite(found.potential[0])
    np.testing.assert_allclose(found.density[0][seen], expected[seen], rtol=0.02)
    # The floor is one effective cell where its kernel is highest.
    alone = 1 / (scott.neff * 2 * np.pi * np.sqrt(np.linalg.det(scott.covariance)))
    np.testing.assert_allclose(found.floor[0], alone)


def test_density_integrates_to_one():
    found = compute_landscape([PlaneCells(cloud(), time=0.0), PlaneCells(cloud(80, 1, 4.0), time=1.0)])
    area = (found.x[1] - found.x[0]) * (found.y[1] - found.y[0])
    np.testing.assert_allclose(found.density.sum(axis=(1, 2)) * area, 1, atol=5e-3)


def test_potential_is_the_logarithm_of_the_density():
    populations = [PlaneCells(cloud(), time=0.0), PlaneCells(cloud(200, 1, 2.0), time=1.0)]
    plain, scaled = (
        compute_landscape(populations),
        compute_landscape(populations, options=LandscapeOptions(diffusion=3.0)),
    )
    assert np.nanmin(plain.potential) == 0
    np.testing.assert_allclose(scaled.potential, 4.5 * plain.potential)
    np.testing.assert_allclose(scaled.ceiling, 4.5 * plain.ceiling)
    negligible = plain.density < plain.floor[:, None, None]
    np.testing.assert_array_equal(np.isnan(plain.potential), negligible)
    assert (np.nanmax(plain.potential, axis=(1, 2)) <= plain.ceiling).all()
    one, other = plain.potential[0], plain.density[0]
    seen = np.isfinite(one)
    difference = one[seen] - one[seen][0]
    np.testing.assert_allclose(difference, -np.log(other[seen] / other[seen][0]), atol=1e-10)


def test_weights_are_copies_of_cells():
    """A weight of 2 is a cell twice, but for the number of cells that the kernel depends on."""
    x, weights = cloud(150), np.tile([1.0, 2.0, 0.0], 50)
    repeated = np.repeat(x, weights.astype(int), axis=0)
    weighted = compute_landscape([PlaneCells(x, weights)])
    n, n_effective = len(repeated), weights.sum() ** 2 / (weights**2).sum()
    factor = (n / n_effective) ** (1 / 6) * np.sqrt((1 - 1 / n) / (1 - 1 / n_effective))
    copies = compute_landscape([PlaneCells(repeated)], options=LandscapeOptions(bandwidth=0.5 * factor))
    np.testing.assert_allclose(weighted.bandwidth, copies.bandwidth)
    np.testing.assert_allclose(weighted.density, copies.density, atol=1e-12)
    np.testing.assert_allclose(copies.floor / weighted.floor, n_effective / n)
    doubled = compute_landscape([PlaneCells(x, 7 * weights)])
    np.testing.assert_allclose(doubled.potential, weighted.potential)


def test_rotation_scale_and_order_do_not_matter():
    x = cloud()
    options = LandscapeOptions(n_grid=300, min_cells=0.3)
    found = compute_landscape([PlaneCells(x)], options=options)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = compute_landscape([PlaneCells(1000 * x @ turn.T - 5)], options=options)
    np.testing.assert_allclose(turned.at(1000 * x[:50] @ turn.T - 5), found.at(x[:50]), atol=0.05)
    shuffled = compute_landscape([PlaneCells(x[np.random.default_rng(2).permutation(len(x))])], options=options)
    np.testing.assert_allclose(shuffled.potential, found.potential, atol=1e-6)


def test_cells_that_are_not_independent_count_less():
    """Each cell ten times is no more than the cells themselves."""
    x = cloud()
    once = compute_landscape([PlaneCells(x)], options=LandscapeOptions(min_cells=0.3))
    often = compute_landscape(
        [PlaneCells(np.repeat(x, 10, axis=0), n_independent=300)], options=LandscapeOptions(min_cells=0.3)
    )
    np.testing.assert_allclose(often.at(x), once.at(x), atol=0.03)
    np.testing.assert_allclose(often.floor, once.floor, rtol=0.01)
    assert compute_landscape([PlaneCells(np.repeat(x, 10, axis=0))]).bandwidth[0, 0, 0] < 0.6 * once.bandwidth[0, 0, 0]
    capped = compute_landscape([PlaneCells(x, n_independent=1e6)], options=LandscapeOptions(min_cells=0.3))
    np.testing.assert_allclose(capped.potential, once.potential)
    with pytest.raises(ValueError, match="Expected `n_independent`"):
        compute_landscape([PlaneCells(x, n_independent=0)])


def test_times_are_sorted_and_share_a_grid():
    early, late = cloud(), cloud(200, 1, 10.0)
    found = compute_landscape([PlaneCells(late, time=5.0), PlaneCells(early, time=2.0)])
    np.testing.assert_array_equal(found.times, [2.0, 5.0])
    assert np.isfinite(found.at(early[:5], 2.0)).all()
    assert np.isnan(found.at(early[:5], 5.0)).all()
    mixed = found.at(np.stack([early[0], late[0]]), np.array([2.0, 5.0]))
    np.testing.assert_allclose(mixed, [found.at(early[:1], 2.0)[0], found.at(late[:1], 5.0)[0]])


def test_a_lone_cell_has_no_potential():
    x = np.concatenate([cloud(), [[40.0, 40.0]]])
    found = compute_landscape([PlaneCells(x)], options=LandscapeOptions(n_grid=300))
    assert found.density[0, np.abs(found.y - 40).argmin(), np.abs(found.x - 40).argmin()] > 0
    assert np.isnan(found.at(x[-1:] + 0.3)).all()
    assert np.isfinite(
        compute_landscape([PlaneCells(x)], options=LandscapeOptions(n_grid=300, min_cells=0.01)).at(x[-1:])
    ).all()


def test_cells_on_a_line_have_a_landscape():
    t = np.linspace(0, 1, 100)
    found = compute_landscape([PlaneCells(np.stack([t, 2 * t], axis=1))])
    assert np.isfinite(found.at(np.array([[0.5, 1.0]]))).all()
    assert np.isnan(found.at(np.array([[0.5, 1.5]]))).all()


def test_at_is_exact_on_the_grid_and_nothing_outside():
    found = compute_landscape([PlaneCells(cloud())], options=LandscapeOptions(n_grid=40))
    columns, rows = np.meshgrid(found.x, found.y)
    values = found.at(np.stack([columns.ravel(), rows.ravel()], axis=1)).reshape(40, 40)
    inside = found.density[0] > 1.001 * found.floor[0]
    np.testing.assert_allclose(values[inside], found.potential[0][inside], atol=1e-9)
    assert np.isnan(values[found.density[0] < 0.999 * found.floor[0]]).all()
    assert np.isnan(found.at(np.array([[1e3, 0.0]]))).all()


# ------------------------------------------------------------------------------------------------------------ barriers
@pytest.mark.parametrize("diffusion", [None, 0.7])
@pytest.mark.parametrize("tilt", [0.0, 0.8])
def test_barriers_of_planted_wells(tilt, diffusion):
    found = planted(lambda x, y: wells(x, y, tilt), diffusion)
    line = np.linspace(-2, 2, 40001)
    along = wells(line, 0 * line, tilt)
    left, right, middle = line < -0.5, line > 0.5, np.abs(line) < 0.5
    top = line[middle][along[middle].argmax()]
    table = found.barriers().set_index(["from", "to"])
    there, back = table.loc[("left", "right")], table.loc[("right", "left")]
    assert there["barrier"] == pytest.approx(along[middle].max() - along[left].min(), abs=0.02)
    assert back["barrier"] == pytest.approx(along[middle].max() - along[right].min(), abs=0.02)
    assert there["saddle"] == back["saddle"] == pytest.approx(along[middle].max() - along.min(), abs=0.02)
    assert there["x"] == pytest.approx(top, abs=0.03)
    assert there["y"] == pytest.approx(0, abs=0.02)
    lowest = found.minima().set_index("state")
    assert lowest.loc["left", "x"] == pytest.approx(line[left][along[left].argmin()], abs=0.03)
    assert lowest["potential"].min() == pytest.approx(0, abs=1e-12)
    assert there["depth_from"] == lowest.loc["left", "potential"]


def test_the_way_goes_around_a_hill():
    """Straight through the hill it is 3, around it 1: the lower way counts, and its saddle is off the line."""

    def potential(x, y):
        return wells(x, 0 * y, 0) * np.exp(-(y**2)) + (1 - np.exp(-(y**2))) * 1.0 + 0.05 * y**4

    table = planted(potential).barriers()
    assert (table["barrier"] < 1.6).all()
    assert (table["barrier"] > 1).all()
    assert (table["y"].abs() > 0.8).all()


def test_barriers_of_drawn_cells():
    """Those of 3, from below, and none within one cloud."""
    found = [compute_landscape([drawn_wells(10_000, seed)], states=["left", "right"]) for seed in range(3)]
    barriers = np.concatenate([one.barriers()["barrier"] for one in found])
    assert 2.5 < barriers.mean() < 3.05
    assert np.abs(np.concatenate([one.barriers()["x"] for one in found])).max() < 0.35
    blurred = compute_landscape(
        [drawn_wells(10_000, 0)], states=["left", "right"], options=LandscapeOptions(bandwidth=1.0)
    )
    assert blurred.barriers()["barrier"].mean() < barriers.mean() - 0.2
    x = cloud(2000)
    whole = compute_landscape([PlaneCells(x, labels=(x[:, 0] > 0).astype(int))], states=["left", "right"])
    assert whole.barriers()["barrier"].min() < 0.2


def test_a_way_down_has_no_barrier():
    table = planted(lambda x, y: 0.5 * (x - 1) ** 2 + y**2).barriers().set_index(["from", "to"])
    down, up = table.loc[("left", "right")], table.loc[("right", "left")]
    assert down["barrier"] == 0
    assert down["saddle"] == down["depth_from"]
    assert up["barrier"] == pytest.approx(0.5, abs=0.03)


def test_no_way_is_infinite_and_no_state_is_nan():
    apart = PlaneCells(np.concatenate([cloud(), cloud(shift=30.0)]), labels=np.repeat([0, 1], 300), time=0.0)
    alone = PlaneCells(cloud(), labels=np.zeros(300, dtype=int), time=1.0)
    found = compute_landscape([apart, alone], states=["here", "there"], options=LandscapeOptions(n_grid=200))
    table = found.barriers().set_index(["time", "from"])
    assert np.isinf(table.loc[0.0, ["saddle", "barrier"]]).all(axis=None)
    assert table.loc[0.0, ["x", "y"]].isna().all(axis=None)
    assert table.loc[0.0, "depth_from"].notna().all()
    assert table.loc[1.0, ["saddle", "barrier", "x", "y"]].isna().all(axis=None)
    assert found.minima().set_index(["time", "state"]).loc[(1.0, "there")].isna().all()


def test_region_is_that_of_most_cells():
    x = np.concatenate([cloud(), cloud(100)])
    found = compute_landscape([PlaneCells(x, labels=np.repeat([1, 0], [300, 100]))], states=["few", "many"])
    region = found.region[0][np.isfinite(found.potential[0])]
    assert (region == 1).mean() > 0.9
    nobody = compute_landscape([PlaneCells(x, labels=np.full(400, -1))], states=["few", "many"])
    assert (nobody.region == -1).all()
    assert nobody.barriers()["barrier"].isna().all()


def test_states_are_chosen():
    labels = np.arange(300) % 3
    found = compute_landscape([PlaneCells(cloud(), labels=labels)], states=list("abc"))
    assert len(found.barriers()) == 6
    assert set(found.barriers(["a", "c"])["from"]) == {"a", "c"}
    with pytest.raises(KeyError, match=r"states of the landscape \['a', 'b', 'c'\], found \['d'\]"):
        found.barriers(["a", "d"])
    with pytest.raises(ValueError, match=r"two states or more, found \['a'\]"):
        found.barriers(["a"])
    with pytest.raises(ValueError, match="landscape with states, found one without"):
        compute_landscape([PlaneCells(cloud())]).barriers()


@pytest.mark.parametrize("seed", range(4))
def test_tree_finds_the_lowest_pass(seed):
    """By an independent way: the water level at which two points come to lie in one lake."""
    rng = np.random.default_rng(seed)
    heights = rng.normal(size=(14, 17))
    heights[rng.uniform(size=heights.shape) < 0.35] = np.nan
    tree = spanning_tree(heights)
    dry = np.flatnonzero(np.isfinite(heights))
    for start, end in rng.choice(dry, size=(20, 2)):
        path = tree_path(tree, start, end)
        level = None
        for height in np.sort(heights.ravel()[dry]):
            lakes, _ = label(heights <= height, structure=np.ones((3, 3)))
            if lakes.ravel()[start] and lakes.ravel()[start] == lakes.ravel()[end]:
                level = height
                break
        assert (level is None) == (path.size == 0)
        if level is not None:
            assert heights.ravel()[path].max() == level
            steps = np.abs(np.diff(np.stack(np.unravel_index(path, heights.shape)), axis=1))
            assert steps.max(initial=0) <= 1
            assert path[0] == start
            assert path[-1] == end


def test_tree_of_nothing():
    tree = spanning_tree(np.full((3, 3), np.nan))
    assert tree.nnz == 0
    assert tree_path(tree, 0, 4).size == 0
    flat = spanning_tree(np.zeros((3, 3)))
    assert tree_path(flat, 0, 8).size >= 3


# --------------------------------------------------------------------------------------------------------------- stage
def test_stage_is_locked_and_pickles():
    found = compute_landscape(
        [PlaneCells(cloud(), labels=np.arange(300) % 2)], states=["a", "b"], options=LandscapeOptions(diffusion=2)
    )
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.potential, found.potential)
    pd.testing.assert_frame_equal(again.barriers(), found.barriers())
    assert not again.density.flags.writeable
    assert repr(found) == "Landscape(all times, 100 x 100 points, 2 states)"


@pytest.mark.parametrize(
    ("population", "match"),
    [
        (PlaneCells(np.zeros((10, 3))), r"shape `\[n_cells, 2\]`, found the shape `\(10, 3\)`"),
        (PlaneCells(np.full((10, 2), np.nan), time=3.0), "finite positions .* at time 3"),
        (PlaneCells(cloud(2)), "three cells or more with a weight, found `2`"),
        (PlaneCells(cloud(9), np.eye(9)[0]), "three cells or more with a weight, found `1`"),
        (PlaneCells(cloud(9), -np.ones(9)), "finite weight, not negative"),
        (PlaneCells(cloud(9), np.ones(8)), "for each of the `9` cells"),
        (PlaneCells(cloud(9), labels=np.zeros(8, dtype=int)), "label for each of the `9` cells"),
        (PlaneCells(cloud(9), labels=np.full(9, 2)), "from `-1` to `1`, the last of the states, found from `2`"),
        (PlaneCells(np.ones((9, 2))), "spread in both dimensions"),
    ],
)
def test_populations_are_refused(population, match):
    with pytest.raises(ValueError, match=match):
        compute_landscape([population], states=["a", "b"])


def test_options_are_refused():
    one = PlaneCells(cloud(), time=1.0)
    with pytest.raises(ValueError, match="one population or more, found none"):
        compute_landscape([])
    with pytest.raises(ValueError, match=r"different times, found the times \[1.0, 1.0\]"):
        compute_landscape([one, one])
    for name, value in {"bandwidth": 0, "min_cells": 0, "diffusion": 0, "n_grid": 3, "window": 1.5}.items():
        with pytest.raises(ValueError, match=f"Expected `{name}`"):
            LandscapeOptions(**{name: value})
    both = compute_landscape([one, PlaneCells(cloud(), time=2.0)])
    with pytest.raises(ValueError, match=r"Expected `time`, one of \[1.0, 2.0\]"):
        both.at(cloud(3))
    with pytest.raises(ValueError, match=r"times of the landscape \[1.0, 2.0\], found \[1.5"):
        both.at(cloud(3), 1.5)
    with pytest.raises(ValueError, match="one for each of the `3` points"):
        both.at(cloud(3), np.ones(2))
    with pytest.raises(ValueError, match=r"shape `\[n_points, 2\]`"):
        both.at(np.zeros(2), 1.0)
    with pytest.raises(ValueError, match="is of all times"):
        compute_landscape([PlaneCells(cloud())]).at(cloud(3), 1.0)


# -------------------------------------------------------------------------------------------------------------- kernel
def methods_of(*mixins: type):
    """Let a class of the tests have the methods of parts of the kernel, without the kernel."""

    def decorate(cls: type) -> type:
        for mixin in mixins:
            for name, value in vars(mixin).items():
                if callable(value) and name not in vars(cls):
                    setattr(cls, name, value)
        cls._refuse_options = lambda *_: None
        return cls

    return decorate


@methods_of(Landscapes)
class Series:
    """A time series of a cloud that moves by 3 in each unit of time, with what its landscape needs."""

    basis, cluster_key, field = "X_pca", None, None

    def __init__(self, n_cells: int = 300) -> None:
        rng = np.random.default_rng(0)
        time = np.repeat([0.0, 1.0, 3.0], n_cells // 3)
        x = rng.normal(size=(n_cells, 4)) + np.stack([3 * time, 0 * time, 0 * time, time], axis=1)
        self.adata = AnnData(np.ones((n_cells, 1), dtype=np.float32))
        self.adata.obsm["X_pca"], self.adata.obsm["X_umap"] = x, x[:, :2] ** 3
        self.adata.obs["clusters"] = pd.Categorical(np.where(x[:, 0] < 4, "early", "late"))
        self.cells = CellStates(x, time, None, "experimental")


class Moving(Series):
    """One that also knows the population between time points."""

    def interpolate(self, time: float) -> SimpleNamespace:
        x = self.cells.x[:100] + np.array([3 * time, 0, 0, time])
        return SimpleNamespace(x=x, weights=np.full(100, 0.01))


def test_kernel_of_pseudotime(adata):
    kernel = OTVelocityKernel(adata)
    whole = kernel.compute_landscape()
    assert np.isnan(whole.times).all()
    assert whole.diffusion is None
    assert whole.basis == "X_pca"
    expected = compute_landscape([PlaneCells(adata.obsm["X_pca"][:, :2])])
    np.testing.assert_allclose(whole.potential, expected.potential)
    assert list(whole.states) == ["left", "right", "stem"]
    near = kernel.compute_landscape([0.2, 0.8], "umap", window=0.15, diffusion=2.0, dims=(1, 0))
    assert (near.basis, near.dims, near.diffusion, near.window) == ("X_umap", (1, 0), 2.0, 0.15)
    inside = np.abs(kernel.cells.time - 0.2) <= 0.15
    alone = compute_landscape([PlaneCells(adata.obsm["X_umap"][inside][:, [1, 0]])])
    np.testing.assert_allclose(near.bandwidth[0], alone.bandwidth[0])
    assert near.minima().set_index(["time", "state"]).loc[(0.2, "left")].isna().all()


def test_kernel_of_a_time_series():
    series = Series()
    found = series.compute_landscape()
    np.testing.assert_array_equal(found.times, [0, 1, 3])
    centres = [found.x @ density.sum(axis=0) / density.sum() for density in found.density]
    np.testing.assert_allclose(centres, [0, 3, 9], atol=0.4)
    np.testing.assert_array_equal(series.compute_landscape(1.0).times, [1.0])
    assert series.compute_landscape(basis="umap").n_times == 3
    with pytest.raises(ValueError, match=r"the basis of the kernel 'X_pca' only, not in 'X_umap'"):
        Moving().compute_landscape([2.0], "umap")
    with pytest.raises(ValueError, match=r"Expected `times` to be in \[0, 3\]"):
        series.compute_landscape([4.0])


def test_kernel_interpolates_between_time_points():
    moving = Moving()
    moving.field = SimpleNamespace(diffusion=2.0)
    found = moving.compute_landscape([1.0, 2.0], dims=(0, 3))
    assert found.diffusion == 2.0
    centre = found.x @ found.density[1].sum(axis=0) / found.density[1].sum()
    assert centre == pytest.approx(6, abs=0.4)
    # Nearest cells of the times around are those of the cluster of late ones.
    assert {found.states[code] for code in np.unique(found.region[1]) if code >= 0} >= {"late"}
    np.testing.assert_allclose(moving.compute_landscape(diffusion=1.0).scale, 0.5)


def test_kernel_refuses(adata):
    kernel = OTVelocityKernel(adata)
    with pytest.raises(ValueError, match="at least `20` cells within a `window` of 0.01 around the time 0.5"):
        kernel.compute_landscape([0.5], window=0.01)
    with pytest.raises(ValueError, match=r"Expected `dims` to be two of the `2` columns of 'X_umap', found `\(0, 2\)`"):
        kernel.compute_landscape(basis="umap", dims=(0, 2))
    with pytest.raises(KeyError, match="nowhere"):
        kernel.compute_landscape(basis="nowhere")
    with pytest.raises(KeyError, match="obs.*missing"):
        kernel.compute_landscape(cluster_key="missing")
    with pytest.raises(ValueError, match="Expected `window`"):
        kernel.compute_landscape([0.5], window=0)


def test_cells_without_a_cluster_are_of_no_state(adata):
    adata.obs["kind"] = adata.obs["clusters"].cat.remove_categories(["stem"])
    found = OTVelocityKernel(adata).compute_landscape(cluster_key="kind")
    assert list(found.states) == ["left", "right"]
    no_states = OTVelocityKernel(adata, cluster_key=None)
    del adata.obs["clusters"]
    assert no_states.compute_landscape().states.size == 0
