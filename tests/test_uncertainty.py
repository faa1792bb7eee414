"""Uncertainty of the velocity: coverage on simulated cells, what it follows, seeds, errors, and the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from joblib import parallel_config

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot.field import FieldOptions, Steps, Uncertainty, UncertaintyOptions, compute_uncertainty
from cellrank_velot.storage.pack import pack, unpack
from cellrank_velot.transport import TransportOptions, WindowOptions

QUIET = {"show_progress_bar": False}


@pytest.fixture(scope="module")
def kernel() -> OTVelocityKernel:
    """Return a kernel with its uncertainty, on a set that the calibration has not seen."""
    adata = datasets.bifurcation(n_cells=600, random_state=61)
    return OTVelocityKernel(adata, time_key="dpt_pseudotime").compute_uncertainty(**QUIET)


def deviation(kernel: OTVelocityKernel) -> tuple[np.ndarray, np.ndarray]:
    """Return the angle in degrees to the true velocity, and which cells are among the 80 % fastest."""
    truth = kernel.adata.obsm["true_velocity_pca"]
    speed = np.linalg.norm(truth, axis=1)
    cosine = np.sum(truth * kernel.velocity, axis=1) / (speed * np.linalg.norm(kernel.velocity, axis=1))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))), speed > np.quantile(speed, 0.2)


def test_the_true_direction_lies_within_the_angle(kernel: OTVelocityKernel):
    angle, fast = deviation(kernel)
    for level in (0.8, 0.9, 0.95):
        held = np.mean(angle[fast] <= kernel.uncertainty.angle(level)[fast])
        assert held > level - 0.05, level  # a set of this size is one that it is rather too careful on
    assert np.median(kernel.velocity_uncertainty) < 45  # it says something


def test_uncertain_cells_are_further_off(kernel: OTVelocityKernel):
    angle, fast = deviation(kernel)
    order = np.argsort(kernel.uncertainty.spread[fast])
    third = order.size // 3
    assert np.median(angle[fast][order[-third:]]) > 1.5 * np.median(angle[fast][order[:third]])


def test_angles_grow_with_the_level_and_end_at_the_opposite(kernel: OTVelocityKernel):
    angles = [kernel.uncertainty.angle(level) for level in (0.1, 0.5, 0.9, 1 - 1e-12)]
    assert (np.diff(angles, axis=0) >= 0).all()
    assert max(a.max() for a in angles) <= 180
    np.testing.assert_array_equal(kernel.uncertainty.angle(), kernel.velocity_uncertainty)
    with pytest.raises(ValueError, match=r"Expected `level` to be in \(0, 1\), found `1`"):
        kernel.uncertainty.angle(1)


def test_beyond_1000_cells_the_angle_does_not_shrink_as_the_spread_does():
    """Halves of many cells agree more, and err together as before."""
    found = {n: Uncertainty(np.full(n, 0.01), np.zeros((n, 2)), 4) for n in (300, 1000, 4000)}
    angles = {n: of.angle(0.5)[0] for n, of in found.items()}
    assert angles[300] == angles[1000]
    chords = {n: np.sin(np.radians(angle) / 2) ** 2 for n, angle in angles.items()}
    assert chords[4000] / chords[1000] == pytest.approx(4**0.5)


def test_standard_deviation_has_the_size_of_the_expected_deviation(kernel: OTVelocityKernel):
    uncertainty, speed = kernel.uncertainty, np.linalg.norm(kernel.velocity, axis=1)
    size = np.sqrt(np.sum(uncertainty.std**2, axis=1)) / speed
    np.testing.assert_allclose(size**2 / uncertainty.spread, (size**2 / uncertainty.spread)[0])
    assert uncertainty.std.shape == kernel.cells.x.shape
    assert (uncertainty.std >= 0).all()


def test_more_noise_makes_more_uncertain(kernel: OTVelocityKernel):
    adata = datasets.bifurcation(n_cells=600, noise=3.0, random_state=61)
    noisy = OTVelocityKernel(adata, time_key="dpt_pseudotime").compute_uncertainty(2, **QUIET)
    assert np.median(noisy.velocity_uncertainty) > 1.2 * np.median(kernel.velocity_uncertainty)


def test_same_seed_same_bits_whatever_the_jobs():
    adata = datasets.bifurcation(n_cells=300, random_state=0)
    kernel = OTVelocityKernel(adata, time_key="true_time").fit_field(hidden=(8,), n_steps=20, **QUIET)
    with parallel_config(backend="threading"):
        both = [kernel.copy().compute_uncertainty(2, n_jobs=n, **QUIET).uncertainty for n in (1, 2)]
    other = kernel.copy().compute_uncertainty(2, random_state=1, **QUIET).uncertainty
    np.testing.assert_array_equal(both[0].spread, both[1].spread)
    np.testing.assert_array_equal(both[0].std, both[1].std)
    assert not np.array_equal(other.spread, both[0].spread)


def test_members_take_the_parameters_of_the_kernel():
    adata = datasets.bifurcation(n_cells=300, random_state=0)
    kernel = OTVelocityKernel(adata, time_key="true_time")
    kernel.compute_windows(time_lag=None, window_size=30, overlap_clusters=1, n_clusters=2)
    kernel.compute_velocity(reach=None, relaxation=1.0, **QUIET).fit_field(hidden=(8,), n_steps=20, **QUIET)
    cells = kernel.cells
    found = compute_uncertainty(
        cells.x,
        cells.time,
        kernel.connectivities,
        kernel.windows,
        kernel.field,
        UncertaintyOptions(n_members=2),
        steps=Steps(
            windows=WindowOptions(overlap_clusters=1, window_size=30),
            velocity=TransportOptions(reach=None, relaxation=1.0),
            field=FieldOptions(hidden=(8,), n_steps=20),
        ),
    )
    np.testing.assert_array_equal(kernel.compute_uncertainty(2, **QUIET).uncertainty.spread, found.spread)


def test_new_steps_forget_it_and_the_file_keeps_it(kernel: OTVelocityKernel):
    later = kernel.copy()
    later.fit_field(n_steps=20, **QUIET)
    assert later.uncertainty is None
    assert "uncertainty" not in later.settings
    with pytest.raises(RuntimeError, match="Compute the uncertainty first, as `.compute_uncertainty"):
        _ = later.velocity_uncertainty
    stored = unpack(pack({"uncertainty": kernel.uncertainty}))["uncertainty"]
    assert isinstance(stored, Uncertainty)
    np.testing.assert_array_equal(stored.angle(0.9), kernel.uncertainty.angle(0.9))


def test_computing_it_leaves_the_transition_matrix():
    adata = datasets.bifurcation(n_cells=300, random_state=0)
    other = OTVelocityKernel(adata, time_key="true_time").fit_field(hidden=(8,), n_steps=20, **QUIET)
    before = other.compute_transition_matrix().transition_matrix
    assert other.compute_uncertainty(2, **QUIET).transition_matrix is before


def test_monte_carlo_makes_uncertain_rows_flatter(kernel: OTVelocityKernel):
    other = kernel.copy()
    certain = other.compute_transition_matrix().transition_matrix.copy()
    sampled = other.compute_transition_matrix(model="monte_carlo").transition_matrix
    assert {"model", "n_samples"} <= set(other.params)
    np.testing.assert_allclose(sampled.sum(axis=1), 1)

    def sharpness(matrix: sp.csr_matrix) -> np.ndarray:
        return np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel()

    flatter = sharpness(sampled) / sharpness(certain)
    order = np.argsort(kernel.uncertainty.spread)
    assert flatter[order[-100:]].mean() < flatter[order[:100]].mean() < 1.01


def test_monte_carlo_of_the_transport_velocity_takes_the_variance_of_the_couplings(kernel: OTVelocityKernel):
    other = kernel.copy()
    plain = other.compute_transition_matrix(smooth=False).transition_matrix.copy()
    sampled = other.compute_transition_matrix(smooth=False, model="monte_carlo").transition_matrix
    assert abs(plain - sampled).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_members": 3}, ValueError, "Expected an even `n_members`, as cells are halved, found `3`"),
        ({"n_members": 0}, ValueError, "Expected `n_members` to be at least `2`, found `0`"),
        ({"random_state": "a"}, TypeError, "Expected `random_state` to be an integer"),
    ],
)
def test_refuses(kernel: OTVelocityKernel, options: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        kernel.compute_uncertainty(**options, **QUIET)


def test_ends_are_late_cells_of_both_fates_and_beginnings_early_ones(kernel: OTVelocityKernel):
    time, clusters = kernel.adata.obs["true_time"].to_numpy(), kernel.adata.obs["clusters"].to_numpy()
    ends, beginnings = kernel.ends, (~kernel).ends
    assert set(clusters[ends]) == {"Fate A", "Fate B"}
    assert 0 < ends.mean() < 0.6
    assert np.median(time[ends]) > np.quantile(time, 0.7)
    assert set(clusters[beginnings]) <= {"Progenitor"}
