"""Windows against hand-computed cases, an independent implementation by loops, and their invariances."""

import warnings

import numpy as np
import pytest
from scipy.stats import ortho_group

from cellrank_velot.transport import windows as windows_module
from cellrank_velot.transport.windows import WindowOptions, Windows, build_windows, cluster_cells

# The scheme of the reference, VelOT 1.0.0: disjoint clusters, consecutive windows paired.
REFERENCE = {"time_lag": None, "overlap_clusters": 1}


def cut(n: int, size: int, tail: str = "force", overlap: float = 0.5, **kwargs) -> list[tuple[int, int]]:
    """Return the first and last cell of each window of one cluster of n cells, ordered by time."""
    result = build_windows(
        np.zeros((n, 1)),
        np.arange(n) / n,
        WindowOptions(window_size=size, overlap=overlap, tail=tail, **{"min_window_size": 2, **REFERENCE, **kwargs}),
        labels=np.zeros(n, dtype=np.int64),
    )
    for window in range(result.n_windows):
        cells = result.cells(window)
        np.testing.assert_array_equal(cells, np.arange(cells[0], cells[-1] + 1))
    np.testing.assert_array_equal(result.pairs, np.column_stack([np.arange(result.n_windows - 1)] * 2) + [0, 1])
    return [(int(result.cells(i)[0]), int(result.cells(i)[-1])) for i in range(result.n_windows)]


# ------------------------------------------------------------------------------------------ cases by hand
def test_windows_that_fill_the_cluster_have_no_tail():
    expected = [(0, 3), (2, 5), (4, 7), (6, 9)]
    for tail in ("force", "drop", "split"):
        assert cut(10, 4, tail) == expected


def test_force_ends_with_the_last_cell():
    assert cut(11, 4, "force") == [(0, 3), (2, 5), (4, 7), (6, 9), (7, 10)]
    assert cut(13, 5, "force", overlap=0) == [(0, 4), (5, 9), (8, 12)]


@pytest.mark.parametrize(("threshold", "last"), [(0, [(7, 10)]), (3, [(7, 10)]), (4, [])])
def test_drop_keeps_a_tail_of_enough_cells(threshold: int, last: list):
    # After the window that starts at 6 the next would start at 8: cells 8, 9 and 10 are the tail.
    assert cut(11, 4, "drop", tail_threshold=threshold) == [(0, 3), (2, 5), (4, 7), (6, 9), *last]


def test_split_shares_the_tail_between_two_windows():
    # The tail are cells 10 to 13: half of it ends one window at cell 11, the other half one at cell 13.
    assert cut(14, 5, "split", overlap=0) == [(0, 4), (5, 9), (7, 11), (9, 13)]
    assert cut(11, 5, "split", overlap=0) == [(0, 4), (5, 9), (6, 10)]  # one cell cannot be shared


def test_a_small_cluster_takes_half_of_its_cells():
    assert cut(10, 10) == [(0, 4), (2, 6), (4, 8), (5, 9)]


def test_window_size_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="Expected `window_size` to be at least `4`, found `2`"):
        cut(9, 2, min_window_size=4)
    with pytest.raises(ValueError, match="`window_size` of at most the number of cells, `10`, found `100`"):
        cut(10, 100)


def test_no_window_has_cells_of_two_components(planted):
    components = np.arange(planted.time.size) % 2
    result = build_windows(
        planted.x, planted.time, WindowOptions(min_window_size=5, random_state=0), components=components
    )
    assert {len(set(components[result.cells(i)])) for i in range(result.n_windows)} == {1}


@pytest.mark.parametrize(("n_labels", "overlap"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (9, 3)])
def test_neighborhoods_overlap_in_less_than_all_clusters(n_labels: int, overlap: int):
    x = np.random.default_rng(0).normal(size=(n_labels * 60, 2))
    labels, time = np.repeat(np.arange(n_labels), 60), x[:, 0]
    found, expected = (
        build_windows(x, time, WindowOptions(overlap_clusters=k), labels=labels) for k in (None, overlap)
    )
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize(
    ("overlap", "starts"),
    [(0, [0, 10]), (0.25, [0, 7, 10]), (0.5, [0, 5, 10]), (0.8, [0, 2, 4, 6, 8, 10]), (0.9, list(range(11)))],
)
def test_overlap_is_the_share_of_common_cells(overlap: float, starts: list[int]):
    assert [first for first, _ in cut(20, 10, overlap=overlap)] == starts


def test_default_size_is_a_quarter_of_the_mean_cluster():
    labels = np.repeat([0, 1], [60, 100])
    result = build_windows(
        np.zeros((160, 1)), np.arange(160.0), WindowOptions(min_window_size=5, **REFERENCE), labels=labels
    )
    np.testing.assert_array_equal(result.sizes, 160 // 2 // 4)


# ----------------------------------------------------------------------------------- an independent solver
def by_loops(time, labels, size, overlap, min_size, tail, threshold):
    """Cut windows cell by cell, as the reference describes it; return pairs of tuples of cells."""
    pairs, skipped = [], 0
    for label in sorted(set(labels)):
        cells = sorted((cell for cell in range(len(labels)) if labels[cell] == label), key=lambda cell: time[cell])
        if len(cells) < 2 * min_size:
            skipped += 1
            continue
        width = max(min(size, len(cells) // 2), min_size)
        step = max(1, int(width * (1 - overlap)))
        windows, start = [], 0
        while start + width <= len(cells):
            windows.append(tuple(cells[start : start + width]))
            start += step
        tail_cells = cells[start:]
        if windows[-1][-1] != cells[-1]:
            if tail == "split" and len(tail_cells) >= 2:
                end = len(cells) - len(tail_cells) // 2
                windows += [tuple(cells[max(0, end - width) : end]), tuple(cells[-width:])]
            elif tail != "drop" or len(tail_cells) >= threshold:
                windows.append(tuple(cells[-width:]))
        windows = [window for i, window in enumerate(windows) if window not in windows[:i]]
        windows.sort(key=lambda window: cells.index(window[0]))
        pairs += list(zip(windows[:-1], windows[1:], strict=True))
    return pairs, skipped


@pytest.mark.parametrize("tail", ["force", "drop", "split"])
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_loops(tail: str, seed: int):
    rng = np.random.default_rng(seed)
    n, overlap = 150, float(rng.choice([0.0, 0.25, 0.5, 0.75]))
    size, min_size, threshold = int(rng.integers(4, 30)), int(rng.integers(2, 12)), int(rng.integers(0, 12))
    labels = rng.choice(5, n, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    time = np.round(rng.random(n), 2)  # with ties
    expected, skipped = by_loops(time, labels, size, overlap, min_size, tail, threshold)
    result = build_windows(
        rng.normal(size=(n, 2)),
        time,
        WindowOptions(
            window_size=size,
            overlap=overlap,
            min_window_size=min_size,
            tail=tail,
            tail_threshold=threshold,
            **REFERENCE,
        ),
        labels=labels,
    )
    found = [(tuple(result.cells(source)), tuple(result.cells(target))) for source, target in result.pairs]
    assert found == expected
    assert result.n_skipped == skipped
    for (source, target), dt in zip(found, result.dt, strict=True):
        assert dt == pytest.approx(np.mean(time[list(target)]) - np.mean(time[list(source)]), abs=1e-14)


# -------------------------------------------------------------------------------------------- later windows
def later_by_loops(time, size, step, lag):
    """Pair each window of ordered times with the window, starting anywhere, whose mean is nearest to a lag later."""
    starts = sorted({*range(0, len(time) - size + 1, step), len(time) - size})
    means = [np.mean(time[start : start + size]) for start in range(len(time) - size + 1)]
    pairs = []
    for start in starts:
        gaps = [abs(mean - means[start] - lag) for mean in means]
        target = int(np.argmin(gaps))
        if target > start and means[target] - means[start] >= lag / 2:
            pairs.append((start, target))
    return pairs


@pytest.mark.parametrize("lag", [0.01, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_target_is_the_window_nearest_to_a_lag_later(lag: float, seed: int):
    time = np.sort(np.random.default_rng(seed).beta(0.7, 1.5, 120))
    result = build_windows(
        np.zeros((120, 1)),
        time,
        WindowOptions(window_size=12, min_window_size=5, time_lag=lag),
        labels=np.zeros(120, dtype=int),
    )
    found = [(int(result.cells(source)[0]), int(result.cells(target)[0])) for source, target in result.pairs]
    assert found == later_by_loops(time, 12, 6, lag)
    assert (result.dt >= lag / 2 - 1e-12).all()
    assert len({tuple(result.cells(i)) for i in range(result.n_windows)}) == result.n_windows
    np.testing.assert_array_equal(np.unique(result.pairs), np.arange(result.n_windows))  # none is built in vain


def test_ties_have_no_later_window_among_themselves():
    time = np.repeat([0.0, 0.5, 1.0], 20)
    result = build_windows(
        np.zeros((60, 1)),
        time,
        WindowOptions(window_size=10, min_window_size=5, time_lag=0.1),
        labels=np.zeros(60, dtype=int),
    )
    assert (result.dt >= 0.05).all()


def test_lag_beyond_all_times_is_an_error():
    with pytest.raises(
        ValueError, match=r"Found no pair of windows: 0 of 1 clusters.*no two windows `time_lag=3` apart"
    ):
        build_windows(np.zeros((60, 1)), np.arange(60) / 60, WindowOptions(time_lag=3), labels=np.zeros(60, dtype=int))


# ------------------------------------------------------------------------------------------ the automatic lag
SHORTEST, LONGEST = 0.06, 0.12  # what the docstring promises, as shares of the whole time


def narrow(time: np.ndarray, labels: np.ndarray | None = None, **kwargs) -> Windows:
    """Cut one cluster into windows that are narrow, unless they are asked for otherwise."""
    labels = np.zeros(time.size, dtype=int) if labels is None else labels
    options = WindowOptions(**{"window_size": 20, "min_window_size": 5, **kwargs})
    return build_windows(np.zeros((time.size, 1)), time, options, labels=labels)


@pytest.mark.parametrize("n_in_window", [20, 121, 200, 400])
def test_lag_is_what_a_window_spans_between_two_bounds(n_in_window: int):
    result = narrow(np.linspace(0, 1, 2000), window_size=n_in_window)
    assert result.time_lag == pytest.approx(np.clip((n_in_window - 1) / 1999, SHORTEST, LONGEST))
    assert np.median(result.dt) == pytest.approx(result.time_lag, rel=0.02)


def test_lag_is_the_median_over_the_windows_of_all_clusters():
    """Of windows that span 20, 30 and 50 steps of time, most are in the second cluster."""
    time = np.concatenate([np.arange(40) * 20 / 9, 100 + np.arange(200) * 30 / 9, np.arange(40) * 50 / 9])
    labels = np.repeat([0, 1, 2], [40, 200, 40])
    span, given = time.max() - time.min(), {"window_size": 10, "min_window_size": 5, "overlap_clusters": 1}
    result = narrow(time, labels, **given)
    ends = [time[[result.cells(i)[0], result.cells(i)[-1]]] for i in range(result.n_windows)]
    assert np.median([last - first for first, last in ends]) == pytest.approx(30)
    assert result.time_lag == pytest.approx(np.clip(30, SHORTEST * span, LONGEST * span))
    again = narrow(time, labels, **given, time_lag=result.time_lag)
    np.testing.assert_array_equal(again.indices, result.indices)
    np.testing.assert_array_equal(again.pairs, result.pairs)


@pytest.mark.parametrize("n_in_window", [20, 160])
@pytest.mark.parametrize(("unit", "start"), [(24.0, 0.0), (1e-3, 0.0), (2.0, -7.0)])
def test_lag_is_in_the_unit_of_time_from_wherever_it_starts(unit: float, start: float, n_in_window: int):
    time = np.random.default_rng(0).permutation(np.linspace(0, 1, 2000))
    plain, again = (narrow(t, window_size=n_in_window) for t in (time, unit * time + start))
    assert again.time_lag == pytest.approx(unit * plain.time_lag)
    np.testing.assert_array_equal(again.indices, plain.indices)
    np.testing.assert_array_equal(again.pairs, plain.pairs)
    np.testing.assert_allclose(again.dt, unit * plain.dt)


def test_lag_that_is_given_is_kept_and_none_is_none():
    time = np.linspace(0, 1, 2000)
    assert narrow(time, time_lag=0.07).time_lag == 0.07
    assert np.isnan(narrow(time, time_lag=None).time_lag)


def test_automatic_lag_of_one_time_or_of_two_far_apart():
    warnings.simplefilter("error")  # no median of nothing
    with pytest.raises(ValueError, match=r"no two windows `time_lag=0.0` apart"):
        narrow(np.full(200, 3.0))
    result = narrow(np.repeat([0.0, 1.0], 100))
    assert 0 < result.time_lag <= LONGEST
    assert (result.dt > 0).all()


def test_automatic_lag_of_clusters_that_are_all_too_small_is_an_error():
    with pytest.raises(ValueError, match="2 of 2 clusters have fewer than two windows of `min_window_size=20` cells"):
        narrow(np.linspace(0, 1, 60), np.repeat([0, 1], 30), overlap_clusters=1, min_window_size=20)


# ------------------------------------------------------------------------------------- overlapping clusters
def groups_of(result: Windows) -> list[set[int]]:
    """Return the cells of each chain of consecutive windows."""
    groups: list[set[int]] = []
    last = None
    for source, target in result.pairs:
        if source != last:
            groups.append(set())
        groups[-1] |= {*result.cells(source).tolist(), *result.cells(target).tolist()}
        last = target
    return groups


@pytest.mark.parametrize("n_nearest", [1, 2, 3, 9])
def test_each_cell_belongs_to_its_own_and_the_nearest_clusters(planted, n_nearest: int):
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=240)  # clusters without any shape: a cell may be far from its own centre
    centres = np.array([planted.x[labels == label].mean(0) for label in range(5)])
    expected: list[set[int]] = [set() for _ in range(5)]
    for cell in range(240):
        distances = np.linalg.norm(planted.x[cell] - centres, axis=1)
        distances[labels[cell]] = -1
        for label in np.argsort(distances)[:n_nearest]:
            expected[label].add(cell)
    result = build_windows(
        planted.x,
        planted.time,
        WindowOptions(window_size=10, min_window_size=5, **{**REFERENCE, "overlap_clusters": n_nearest}),
        labels=labels,
    )
    assert groups_of(result) == expected
    np.testing.assert_array_equal(result.cluster, labels)


def test_two_clusters_that_overlap_are_all_cells_each(planted):
    labels = (planted.labels > 0).astype(int)
    result = build_windows(
        planted.x,
        planted.time,
        WindowOptions(min_window_size=10, **{**REFERENCE, "overlap_clusters": 2}),
        labels=labels,
    )
    assert groups_of(result) == [set(range(240))] * 2


@pytest.mark.parametrize("n_cells", [1, 77, 240])
def test_cells_at_a_time_do_not_matter(planted, monkeypatch, n_cells: int):
    labels, options = np.arange(240) % 6, WindowOptions(min_window_size=10)
    expected = build_windows(planted.x, planted.time, options, labels=labels)
    sizes, cdist = [], windows_module.cdist
    monkeypatch.setattr(windows_module, "cdist", lambda x, *args: sizes.append(len(x)) or cdist(x, *args))
    monkeypatch.setattr(windows_module, "CHUNK_CELLS", n_cells)
    found = build_windows(planted.x, planted.time, options, labels=labels)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.pairs, expected.pairs)
    assert (sum(sizes), max(sizes)) == (240, n_cells)


def test_label_of_no_cell_is_no_cluster(planted):
    x = planted.x - planted.x.mean(0)  # an empty cluster must not draw cells to the origin
    gaps = np.array([0, 4, 7])[planted.labels]
    options = {"window_size": 10, "min_window_size": 5, "overlap_clusters": 2}
    expected = build_windows(x, planted.time, WindowOptions(**options), labels=planted.labels)
    found = build_windows(x, planted.time, WindowOptions(**options), labels=gaps)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.pairs, expected.pairs)


def test_rotated_cells_have_the_same_windows(planted):
    rotation = ortho_group.rvs(planted.x.shape[1], random_state=0)
    plain, rotated = (
        build_windows(x, planted.time, WindowOptions(min_window_size=5), labels=planted.labels)
        for x in (planted.x, 3 * planted.x @ rotation + 5)
    )
    np.testing.assert_array_equal(plain.indices, rotated.indices)


# --------------------------------------------------------------------------------------------- invariances
@pytest.fixture
def built(planted) -> Windows:
    return build_windows(planted.x, planted.time, WindowOptions(min_window_size=10, **REFERENCE), labels=planted.labels)


def test_pairs_go_forward_in_time_within_a_cluster(built: Windows, planted):
    assert (built.dt > 0).all()
    for source, target in built.pairs:
        here, there = built.cells(source), built.cells(target)
        assert np.unique(planted.labels[np.concatenate([here, there])]).size == 1
        assert planted.time[here].mean() < planted.time[there].mean()
        assert not np.array_equal(here, there)
    np.testing.assert_array_equal(built.cluster, planted.labels)


def test_every_cell_of_a_cluster_is_in_a_window(built: Windows, planted):
    np.testing.assert_array_equal(np.unique(built.indices), np.arange(planted.time.size))


def test_permutation_of_the_cells_permutes_the_windows(built: Windows, planted):
    order = np.random.default_rng(3).permutation(planted.time.size)
    again = build_windows(
        planted.x[order],
        planted.time[order],
        WindowOptions(min_window_size=10, **REFERENCE),
        labels=planted.labels[order],
    )
    np.testing.assert_array_equal(order[again.indices], built.indices)
    np.testing.assert_array_equal(again.offsets, built.offsets)
    np.testing.assert_allclose(again.dt, built.dt, atol=1e-14)


def test_only_the_order_of_time_matters(built: Windows, planted):
    again = build_windows(
        planted.x, np.exp(5 * planted.time), WindowOptions(min_window_size=10, **REFERENCE), labels=planted.labels
    )
    np.testing.assert_array_equal(again.indices, built.indices)


def test_unit_of_time_scales_dt(built: Windows, planted):
    again = build_windows(
        planted.x, 24 * planted.time, WindowOptions(min_window_size=10, **REFERENCE), labels=planted.labels
    )
    np.testing.assert_allclose(again.dt, 24 * built.dt)


def test_ties_keep_the_order_of_the_cells():
    time = np.repeat([0.0, 1.0], 10)
    result = build_windows(
        np.zeros((20, 1)),
        time,
        WindowOptions(window_size=10, overlap=0, min_window_size=5, **REFERENCE),
        labels=np.zeros(20, dtype=int),
    )
    np.testing.assert_array_equal(result.indices, np.arange(20))
    np.testing.assert_array_equal(result.dt, [1.0])


# --------------------------------------------------------------------------------------- degenerate input
@pytest.mark.parametrize("tail", ["force", "drop", "split"])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.95])
def test_no_window_repeats_and_none_is_paired_with_itself(tail: str, overlap: float):
    for n in range(4, 40):
        for size in (s for s in (2, 5, 8) if s <= n):
            found = cut(n, size, tail, overlap)
            assert len(set(found)) == len(found)
            assert found == sorted(found)


def test_small_clusters_are_skipped_and_counted(caplog):
    labels = np.repeat([0, 1, 2], [39, 40, 3])
    result = build_windows(
        np.zeros((82, 1)), np.arange(82.0), WindowOptions(min_window_size=20, **REFERENCE), labels=labels
    )
    assert result.n_skipped == 2
    expected = "Made no windows in 2 of 3 spatial clusters with fewer than 40 cells; 42 of 82 cells are in no window"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", expected)]
    np.testing.assert_array_equal(np.unique(labels[result.indices]), [1])


def test_few_cells_without_a_window_are_no_warning(caplog):
    labels = np.repeat([0, 1], [3, 100])
    with caplog.at_level("INFO", "cellrank_velot"):
        build_windows(
            np.zeros((103, 1)), np.arange(103.0), WindowOptions(min_window_size=20, **REFERENCE), labels=labels
        )
    assert [record.levelname for record in caplog.records if "no windows" in record.message] == ["INFO"]


def test_labels_may_leave_out_codes():
    result = build_windows(
        np.zeros((40, 1)), np.arange(40.0), WindowOptions(min_window_size=5, **REFERENCE), labels=np.repeat([2, 5], 20)
    )
    assert np.unique(result.cluster[result.indices]).tolist() == [2, 5]
    assert (result.dt > 0).all()


def test_constant_time_gives_pairs_without_a_difference():
    result = build_windows(
        np.zeros((40, 1)), np.ones(40), WindowOptions(min_window_size=5, **REFERENCE), labels=np.zeros(40, dtype=int)
    )
    np.testing.assert_array_equal(result.dt, 0)


@pytest.mark.parametrize("n_cells", [1, 39])
def test_fewer_cells_than_two_windows(n_cells: int):
    with pytest.raises(ValueError, match=rf"two windows of `min_window_size=20` cells, found `{n_cells}` cells"):
        build_windows(np.zeros((n_cells, 2)), np.arange(float(n_cells)))


def test_no_cluster_of_two_windows():
    with pytest.raises(ValueError, match=r"2 of 2 clusters have fewer than two windows of `min_window_size=20`.*Lower"):
        build_windows(
            np.zeros((60, 1)),
            np.arange(60.0),
            WindowOptions(min_window_size=20, **REFERENCE),
            labels=np.repeat([0, 1], 30),
        )


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"overlap": 1.0}, ValueError, r"Expected `overlap` to be in \[0, 1\), found `1.0`"),
        ({"overlap": -0.1}, ValueError, r"Expected `overlap` to be in \[0, 1\)"),
        ({"overlap": "half"}, TypeError, "Expected `overlap` to be a number, found `str`"),
        ({"min_window_size": 1}, ValueError, "Expected `min_window_size` to be at least `2`, found `1`"),
        ({"min_window_size": 2.5}, TypeError, "Expected `min_window_size` to be an integer"),
        ({"tail": "keep"}, ValueError, r"`tail` to be one of \['force', 'drop', 'split'\], found `'keep'`"),
        ({"tail_threshold": -1}, ValueError, "Expected `tail_threshold` to be at least `0`"),
        ({"window_size": -5}, ValueError, "Expected `window_size` to be at least"),
        ({"window_size": 0}, ValueError, "Expected `window_size` to be at least"),
        ({"window_size": 8.0}, TypeError, "Expected `window_size` to be an integer"),
        ({"time_lag": 0}, ValueError, r"Expected `time_lag` to be in \(0, inf\), found `0`"),
        ({"time_lag": np.nan}, ValueError, r"Expected `time_lag` to be in \(0, inf\), found `nan`"),
        ({"time_lag": "long"}, ValueError, r"Expected `time_lag` to be one of \['auto'\], found `'long'`"),
        ({"time_lag": [0.1]}, TypeError, "Expected `time_lag` to be a number, found `list`"),
        ({"overlap_clusters": 0}, ValueError, "Expected `overlap_clusters` to be at least `1`, found `0`"),
        ({"n_clusters": 0}, ValueError, "Expected `n_clusters` to be at least `1`, found `0`"),
        ({"n_clusters": 101}, ValueError, "Expected `n_clusters` of at most the number of cells, `100`, found `101`"),
    ],
)
def test_bad_options(option: dict, error: type, message: str):
    x = np.random.default_rng(0).normal(size=(100, 2))
    with pytest.raises(error, match=message):
        build_windows(x, np.arange(100.0), WindowOptions(**option))


# ---------------------------------------------------------------------------------------------- clustering
def blobs(n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=n)
    return np.array([[0.0, 0], [10, 0], [0, 10]])[labels] + rng.normal(size=(n, 2)), labels


@pytest.mark.parametrize("sampled", [False, True])
def test_clusters_of_separate_blobs_are_found(sampled: bool, monkeypatch):
    if sampled:
        monkeypatch.setattr(windows_module, "CLUSTER_CELLS", 100)
    x, truth = blobs()
    labels = cluster_cells(x, 3)
    assert labels.dtype == np.int64
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (truth, labels), 1)
    assert (np.sort(table, axis=1)[:, :2] == 0).all()
    np.testing.assert_array_equal(cluster_cells(x, 3, random_state=7), cluster_cells(x, 3, random_state=7))


@pytest.mark.parametrize(
    ("n_cells", "expected"),
    [(3, 3), (60, 5), (239, 5), (240, 6), (559, 13), (560, 14), (1499, 14), (1500, 15), (2999, 29), (4000, 30)],
)
def test_default_number_of_clusters(n_cells: int, expected: int):
    x = np.arange(n_cells)[:, None] % 60.0  # few distinct points: quickly done
    assert np.unique(cluster_cells(x)).size == expected


def test_seed_decides_and_global_state_does_not(planted):
    options = {"n_clusters": 4, "min_window_size": 5}
    np.random.seed(1)  # noqa: NPY002
    first = build_windows(planted.x, planted.time, WindowOptions(**options, random_state=3))
    np.random.seed(2)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    second = build_windows(planted.x, planted.time, WindowOptions(**options, random_state=3))
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.cluster, second.cluster)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(first.cluster, cluster_cells(planted.x, 4, random_state=3))
    assert (first.cluster != cluster_cells(planted.x, 4, random_state=0)).any()


# ------------------------------------------------------------------------------------------------ the stage
def test_from_pairs_keeps_cells_and_measures_time():
    time = np.array([0.0, 1, 2, 3, 4])
    result = Windows.from_pairs([([0, 1], [2, 3]), ([3], [4, 2, 1])], time)
    assert (result.n_pairs, result.n_windows, result.n_cells) == (2, 4, 5)
    np.testing.assert_array_equal(result.cells(3), [4, 2, 1])
    np.testing.assert_array_equal(result.sizes, [2, 2, 1, 3])
    np.testing.assert_allclose(result.dt, [2.0, 7 / 3 - 3])
    assert np.isnan(result.time_lag)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": np.zeros(4, dtype=int)}, r"Expected `pairs` of shape `\[n_pairs, 2\]`, found `\(4,\)`"),
        ({"dt": np.zeros(9)}, r"Expected `dt` of shape `\(\d+,\)`, found `\(9,\)`"),
        ({"indices": np.array([0, 240])}, "Expected `indices` below `240`, found `240`"),
        ({"indices": np.array([-1, 0])}, "Expected `indices`"),
    ],
)
def test_stage_refuses_what_does_not_fit(built: Windows, change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Windows.from_dict({**built.to_dict(), **change})


@pytest.mark.parametrize(
    "change", [{"pairs": np.array([[0, 99]])}, {"offsets": np.array([0, 5, 10_000])}], ids=["pairs", "offsets"]
)
def test_stage_refuses_pointers_to_nowhere(built: Windows, change: dict):
    values = {**built.to_dict(), "pairs": built.pairs[:1], "dt": built.dt[:1], **change}
    with pytest.raises(ValueError, match="Expected"):
        Windows.from_dict(values)
