"""Snapshots: who is transported with whom, in batches of bounded size, and which times are refused."""

import logging

import numpy as np
import pytest

from cellrank_velot.cells.time_points import check_snapshots, next_time
from cellrank_velot.timeseries.snapshots import SnapshotOptions, build_snapshots


def times(*sizes: int, points=None, seed: int = 0) -> np.ndarray:
    """Return the time of each cell, mixed, of snapshots of these sizes."""
    points = np.arange(len(sizes), dtype=float) if points is None else np.asarray(points, dtype=float)
    return np.random.default_rng(seed).permutation(np.repeat(points, sizes))


def sides(windows) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each cell is a source, and how often a target."""
    counts = []
    for column in windows.pairs.T:
        cells = np.concatenate([windows.cells(window) for window in column])
        counts.append(np.bincount(cells, minlength=windows.n_cells))
    return counts[0], counts[1]


# --------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize("batch_size", [2, 7, 50, 10_000])
@pytest.mark.parametrize("sizes", [(100, 100, 100), (30, 200, 90, 31), (60, 61)])
def test_each_cell_is_a_source_and_a_target_once(sizes: tuple[int, ...], batch_size: int):
    time = times(*sizes)
    source, target = sides(build_snapshots(time, SnapshotOptions(batch_size=batch_size)))
    np.testing.assert_array_equal(source, time < time.max())
    np.testing.assert_array_equal(target, time > time.min())


@pytest.mark.parametrize("sizes", [(100, 100, 100), (90, 200, 90, 70)])
@pytest.mark.parametrize("batch_size", [3, 10, 64, 99])
def test_no_batch_is_larger_than_asked_and_they_are_alike(batch_size: int, sizes: tuple[int, ...]):
    time = times(*sizes)
    windows = build_snapshots(time, SnapshotOptions(batch_size=batch_size))
    n_cells = np.diff(windows.offsets)
    assert n_cells.max() <= batch_size
    interval = windows.cluster[windows.indices[windows.offsets[windows.pairs[:, 0]]]]
    for k in range(len(sizes) - 1):
        for column, size in ((0, sizes[k]), (1, sizes[k + 1])):
            own = n_cells[windows.pairs[interval == k, column]]
            assert own.sum() == size
            assert np.ptp(own) <= 1, "batches of one snapshot differ by a cell at most"


def test_a_pair_leads_from_a_time_point_to_the_next():
    points = [-2.5, 0.0, 0.5, 48.0]
    time = times(40, 30, 20, 50, points=points)
    windows = build_snapshots(time, SnapshotOptions(batch_size=16))
    for (source, target), dt in zip(windows.pairs, windows.dt, strict=True):
        here, there = time[windows.cells(source)], time[windows.cells(target)]
        assert np.unique(here).size == np.unique(there).size == 1
        assert points.index(there[0]) == points.index(here[0]) + 1
        assert dt == there[0] - here[0], "time is real"
    np.testing.assert_array_equal(np.array(points)[windows.cluster], time)
    assert windows.n_skipped == 0


def test_small_snapshots_are_one_batch_whole():
    time = times(25, 40, 30)
    windows = build_snapshots(time)
    assert windows.n_pairs == 2
    for (source, target), k in zip(windows.pairs, (0, 1), strict=True):
        np.testing.assert_array_equal(windows.cells(source), np.flatnonzero(time == k))
        np.testing.assert_array_equal(windows.cells(target), np.flatnonzero(time == k + 1))


def test_batches_are_drawn_at_random_by_seed():
    time = times(200, 200)
    first, again, other = (
        build_snapshots(time, SnapshotOptions(batch_size=50, random_state=seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, other.indices)
    # A batch stands for its snapshot: cells near each other in the file are not together.
    cells = first.cells(0)
    assert np.ptp(cells) > 200


def test_a_tiny_snapshot_beside_a_large_one_leaves_no_batch_empty():
    windows = build_snapshots(times(5, 300), SnapshotOptions(batch_size=20))
    assert np.diff(windows.offsets).min() == 1
    source, target = sides(windows)
    assert (source + target == 1).all()


# -------------------------------------------------------------------------------------------------- time points
def test_time_points_ascend():
    np.testing.assert_array_equal(check_snapshots(times(30, 30, 30, points=[7, -1, 3])), [-1, 3, 7])


def test_one_time_point_is_refused():
    with pytest.raises(ValueError, match=r"at least two time points in `obs`, found `1`: \[2.0\]"):
        check_snapshots(np.full(50, 2.0), "obs")
    with pytest.raises(ValueError, match="at least two time points"):
        build_snapshots(np.full(50, 2.0))


def test_pseudotime_is_refused():
    time = np.random.default_rng(0).random(300)
    for check in (check_snapshots, build_snapshots):
        with pytest.raises(ValueError, match="found `300` time points of `300` cells. A pseudotime needs `time_kind"):
            check(time)


def test_few_cells_work_and_are_said(caplog):
    with caplog.at_level(logging.WARNING, "cellrank_velot"):
        windows = build_snapshots(times(40, 5, 19, 20))
    assert "1 (5), 2 (19)" in caplog.text
    assert "3 (20)" not in caplog.text
    assert windows.n_pairs == 3
    caplog.clear()
    with caplog.at_level(logging.WARNING, "cellrank_velot"):
        build_snapshots(times(40, 20))
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"batch_size": 1}, ValueError, "`batch_size` to be at least `2`, found `1`"),
        ({"batch_size": 10.0}, TypeError, "`batch_size` to be an integer"),
        ({"random_state": -1}, ValueError, "`random_state` to be at least `0`"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        build_snapshots(times(30, 30), SnapshotOptions(**options))


# ---------------------------------------------------------------------------------------------------- intervals
def test_interval_of_a_time():
    points = np.array([0.0, 1.0, 4.0, 4.5])
    found = {time: next_time(points, time) for time in (0.0, 0.99, 1.0, 3.9, 4.0, 4.4, 4.5)}
    assert found == {0.0: 0, 0.99: 0, 1.0: 1, 3.9: 1, 4.0: 2, 4.4: 2, 4.5: 2}


@pytest.mark.parametrize("time", [-0.01, 4.51, np.nan, np.inf])
def test_time_outside_is_refused(time: float):
    with pytest.raises(ValueError, match="Expected a time from `0` to `4.5`"):
        next_time(np.array([0.0, 4.5]), time)
