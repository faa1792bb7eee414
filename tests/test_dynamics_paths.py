"""Trajectories as a value: what is refused, chosen, tabled, counted and stored, and how much of a path is kept."""

import copy
import pickle
import tracemalloc
from dataclasses import FrozenInstanceError, fields, replace
from statistics import NormalDist

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from cellrank_velot.dynamics import NO_FATE, Status, Trajectories
from cellrank_velot.dynamics.motion import Motion, move
from cellrank_velot.dynamics.options import MotionOptions
from cellrank_velot.dynamics.region import NearestCells, Region
from cellrank_velot.dynamics.solvers import OdeStep
from cellrank_velot.storage import pack as storage

LENGTHS = (4, 1, 3, 6, 2)
CLUSTERS = ("left", "right", "stem")


def trajectories(lengths=LENGTHS, *, end_cluster=None, seed: int = 0) -> Trajectories:
    """Return random walks in three dimensions."""
    rng = np.random.default_rng(seed)
    n, n_points = len(lengths), sum(lengths)
    return Trajectories(
        ids=np.arange(n) * 10,
        x=rng.normal(size=(n_points, 3)),
        time=rng.random(n_points),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        status=(np.arange(n) % len(Status)).astype(np.int8),
        direction=np.where(np.arange(n) % 2, -1, 1).astype(np.int8),
        start_ix=rng.integers(50, size=n),
        clusters=np.array(CLUSTERS),
        start_cluster=np.full(n, 2),
        end_cluster=np.resize([0, 1, -1], n) if end_cluster is None else np.asarray(end_cluster),
        n_tried=n + 2,
    )


@pytest.fixture
def paths() -> Trajectories:
    return trajectories()


@pytest.fixture
def nothing(paths: Trajectories) -> Trajectories:
    return paths.select([])


def assert_same(first: Trajectories, second: Trajectories) -> None:
    """Compare bit for bit and type for type."""
    assert first.to_dict().keys() == second.to_dict().keys()
    for name, value in first.to_dict().items():
        other = getattr(second, name)
        assert type(value) is type(other), name
        np.testing.assert_array_equal(value, other, err_msg=name, strict=True)


# ---------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"status": np.zeros(4, np.int8)}, "one entry for each of the `5` trajectories"),
        ({"direction": np.ones(6, np.int8)}, "one entry for each of the `5` trajectories"),
        ({"start_ix": np.zeros(0, np.int64)}, "one entry for each of the `5` trajectories"),
        ({"start_cluster": np.zeros((5, 1), np.int64)}, "one entry for each of the `5` trajectories"),
        ({"end_cluster": np.zeros(1, np.int64)}, "one entry for each of the `5` trajectories"),
        ({"x": np.zeros(16)}, r"time for each point, found the shapes `\(16,\)`, `\(16,\)`"),
        ({"time": np.zeros(15)}, r"time for each point, found the shapes `\(15,\)`, `\(16, 3\)`"),
        ({"offsets": np.array([0, 4, 5, 8, 14])}, "`offsets` of `5` paths over `16` points"),
        ({"offsets": np.array([1, 4, 5, 8, 14, 16])}, "`offsets` of `5` paths over `16` points"),
        ({"offsets": np.array([0, 4, 5, 8, 14, 17])}, "`offsets` of `5` paths over `16` points"),
        ({"offsets": np.array([0, 4, 4, 8, 14, 16])}, "`offsets` that rise, with a point at least in each path"),
        ({"offsets": np.array([0, 4, 14, 8, 15, 16])}, "`offsets` that rise, with a point at least in each path"),
    ],
)
def test_parts_that_do_not_fit_are_refused(paths: Trajectories, change: dict, match: str):
    with pytest.raises(ValueError, match=match):
        replace(paths, **change)


def test_nothing_in_it_can_change(paths: Trajectories):
    with pytest.raises(FrozenInstanceError, match="cannot assign"):
        paths.n_tried = 3
    for field in fields(paths):
        value = getattr(paths, field.name)
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                value[...] = value


def test_arrays_of_the_caller_stay_the_callers(paths: Trajectories):
    mine = paths.x.copy()
    taken = replace(paths, x=mine)
    mine[:] = np.nan
    np.testing.assert_array_equal(taken.x, paths.x)
    mine[0] = 0.0


@pytest.mark.parametrize("again", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy, copy.copy])
def test_copies_are_the_same_and_still_locked(paths: Trajectories, nothing: Trajectories, again):
    for one in (paths, nothing):
        assert_same(again(one), one)
        assert not again(one).x.flags.writeable


# ------------------------------------------------------------------------------------------ paths and selections
def test_paths_are_the_pieces_of_the_points(paths: Trajectories):
    assert len(paths) == len(LENGTHS)
    assert paths.n_dims == 3
    np.testing.assert_array_equal(paths.lengths, LENGTHS)
    assert [p.shape for p in paths.paths] == [(n, 3) for n in LENGTHS]
    np.testing.assert_array_equal(np.concatenate(paths.paths), paths.x)
    np.testing.assert_array_equal(np.concatenate(paths.times), paths.time)
    np.testing.assert_array_equal(paths.starts, [p[0] for p in paths.paths])
    np.testing.assert_array_equal(paths.ends, [p[-1] for p in paths.paths])


def test_statuses_are_words(paths: Trajectories):
    words = ["arrived", "stalled at a sink", "left the data", "ran out of steps", "came to the end of time"]
    assert paths.statuses == words
    assert [status.message for status in Status] == words


def test_no_trajectories_have_no_paths(nothing: Trajectories):
    assert len(nothing) == 0
    assert nothing.paths == []
    assert nothing.times == []
    assert nothing.statuses == []
    assert nothing.starts.shape == nothing.ends.shape == (0, 3)
    assert nothing.n_tried == 7


@pytest.mark.parametrize(
    ("ids", "at"),
    [
        ([20, 0], [2, 0]),
        (np.array([40]), [4]),
        (30, [3]),
        (np.array([False, True, True, False, True]), [1, 2, 4]),
        ([True] * 5, [0, 1, 2, 3, 4]),
        ([], []),
        (np.zeros(5, bool), []),
    ],
)
def test_select_takes_whole_trajectories(paths: Trajectories, ids, at: list[int]):
    some = paths.select(ids)
    for name in ("ids", "status", "direction", "start_ix", "start_cluster", "end_cluster"):
        np.testing.assert_array_equal(getattr(some, name), getattr(paths, name)[at], strict=True)
    assert len(some.paths) == len(at)
    for path, time, i in zip(some.paths, some.times, at, strict=True):
        np.testing.assert_array_equal(path, paths.paths[i])
        np.testing.assert_array_equal(time, paths.times[i])
    assert some.n_tried == paths.n_tried
    assert some.x.shape[1] == 3


def test_a_selection_keeps_its_numbers(paths: Trajectories):
    some = paths.select([40, 10, 20])
    assert_same(some.select([20, 40]), paths.select([20, 40]))
    with pytest.raises(KeyError, match=r"`trajectories\[0\]`"):
        some.select([0])


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([1], r"Expected `trajectories\[1\]`, found the keys \['0', '10', '20', '30', '40'\]"),
        ([-10], r"Expected `trajectories\[-10\]`"),
        (np.ones(4, bool), r"mask of `5` trajectories, found the shape `\(4,\)`"),
        (np.ones((5, 1), bool), r"mask of `5` trajectories, found the shape `\(5, 1\)`"),
    ],
)
def test_select_refuses_what_is_not_there(paths: Trajectories, ids, match: str):
    with pytest.raises(KeyError, match=match):
        paths.select(ids)


# ----------------------------------------------------------------------------------------------------- the tables
def test_frame_agrees_with_a_loop(paths: Trajectories):
    frame = paths.to_frame()
    assert list(frame.index) == [0, 10, 20, 30, 40]
    assert frame.index.name == "id"
    for i, (row, path, time) in enumerate(zip(frame.itertuples(), paths.paths, paths.times, strict=True)):
        length = sum(float(np.linalg.norm(b - a)) for a, b in zip(path[:-1], path[1:], strict=True))
        assert row.length == pytest.approx(length, abs=1e-12)
        assert row.n_points == len(path)
        assert (row.start_time, row.end_time) == (time[0], time[-1])
        assert row.direction == ("forward" if paths.direction[i] > 0 else "backward")
        assert row.status == paths.statuses[i]
        assert row.start_ix == paths.start_ix[i]
        assert row.start_cluster == "stem"
    assert frame["length"].iloc[1] == 0  # a path of one point
    assert frame["end_cluster"].tolist()[:2] == ["left", "right"]
    assert frame["end_cluster"].isna().tolist() == [False, False, True, False, False]
    assert list(frame["end_cluster"].cat.categories) == list(CLUSTERS)
    assert list(frame["status"].cat.categories) == [status.message for status in Status]


def test_points_frame_agrees_with_the_paths(paths: Trajectories):
    frame = paths.points_to_frame()
    assert list(frame.columns) == ["id", "point", "time", "dim_1", "dim_2", "dim_3"]
    assert len(frame) == paths.x.shape[0]
    for number, path, time in zip(paths.ids, paths.paths, paths.times, strict=True):
        part = frame[frame["id"] == number]
        np.testing.assert_array_equal(part["point"], np.arange(len(path)))
        np.testing.assert_array_equal(part["time"], time)
        np.testing.assert_array_equal(part[["dim_1", "dim_2", "dim_3"]], path)


def test_tables_of_nothing_have_their_columns(paths: Trajectories, nothing: Trajectories):
    assert list(nothing.to_frame().columns) == list(paths.to_frame().columns)
    assert list(nothing.points_to_frame().columns) == list(paths.points_to_frame().columns)
    assert len(nothing.to_frame()) == len(nothing.points_to_frame()) == 0
    assert list(nothing.fates().index) == [NO_FATE]
    fates = nothing.fates(["left", "right"])
    assert fates["n_particles"].tolist() == [0, 0, 0]
    assert fates["probability"].isna().all()


# ------------------------------------------------------------------------------------------------------ the fates
def wilson(count: int, total: int, level: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = count / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return middle - half, middle + half


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_fates_are_counts_with_wilsons_interval(level: float):
    came = [0] * 17 + [1] * 6 + [2] * 4 + [-1] * 3
    fates = trajectories([2] * 30, end_cluster=came).fates(["right", "left"], level=level)
    assert list(fates.index) == ["right", "left", NO_FATE]
    assert fates["n_particles"].tolist() == [6, 17, 7]
    assert pd.api.types.is_integer_dtype(fates["n_particles"])
    np.testing.assert_allclose(fates["share"], [6 / 30, 17 / 30, 7 / 30])
    np.testing.assert_allclose(fates["probability"][:2], [6 / 23, 17 / 23])
    for name, count in (("right", 6), ("left", 17)):
        np.testing.assert_allclose(fates.loc[name, ["low", "high"]].astype(float), wilson(count, 23, level))
    assert fates["n_particles"].sum() == 30
    assert fates["share"].sum() == pytest.approx(1)
    assert fates["probability"].sum() == pytest.approx(1)
    assert fates.loc[NO_FATE, ["probability", "low", "high"]].isna().all()


def test_all_clusters_that_were_come_to_are_fates_where_none_are_given():
    fates = trajectories([1] * 6, end_cluster=[2, 2, 0, -1, 2, 0]).fates()
    assert list(fates.index) == ["left", "stem", NO_FATE]
    assert fates["n_particles"].tolist() == [2, 3, 1]


def test_a_fate_that_nobody_came_to_has_an_interval_above_zero():
    fates = trajectories([1] * 8, end_cluster=[0] * 8).fates(["left", "right"])
    assert fates.loc["left", "high"] == pytest.approx(1)
    assert fates.loc["right", "low"] == pytest.approx(0, abs=1e-12)
    assert fates.loc["right", "high"] == pytest.approx(1 - fates.loc["left", "low"])
    assert 0.2 < fates.loc["right", "high"] < 0.5


def test_a_wider_level_gives_a_wider_interval():
    paths = trajectories([1] * 40, end_cluster=np.arange(40) % 2)
    width = [
        (fates["high"] - fates["low"]).iloc[0] for fates in (paths.fates(level=level) for level in (0.5, 0.9, 0.99))
    ]
    assert width[0] < width[1] < width[2]


def test_fates_refuse_what_they_do_not_know(paths: Trajectories):
    with pytest.raises(KeyError, match=r"`clusters\['top'\]`, found the keys \['left', 'right', 'stem'\]"):
        paths.fates(["left", "top"])
    for level in (0, 1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"`level` to be in \(0, 1\)"):
            paths.fates(level=level)


# ---------------------------------------------------------------------------------------------------- the storage
KEY = "velot_trajectories"


@pytest.fixture
def cells() -> AnnData:
    return AnnData(np.zeros((50, 2), dtype=np.float32))


@pytest.fixture
def stored(cells: AnnData, paths: Trajectories) -> AnnData:
    storage.write_trajectories(cells, KEY, paths)
    return cells


def without_clusters() -> Trajectories:
    return replace(
        trajectories(), clusters=np.empty(0, np.str_), start_cluster=np.full(5, -1), end_cluster=np.full(5, -1)
    )


@pytest.mark.parametrize(
    "some",
    [trajectories(), trajectories().select([]), trajectories().select([10]), without_clusters()],
    ids=["several", "none", "one of one point", "without clusters"],
)
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_every_bit_survives_h5ad(cells: AnnData, tmp_path, some: Trajectories, compression):
    storage.write_trajectories(cells, KEY, some)
    assert_same(storage.read_trajectories(cells, KEY), some)
    cells.write_h5ad(tmp_path / "cells.h5ad", compression=compression)
    again = storage.read_trajectories(anndata.read_h5ad(tmp_path / "cells.h5ad"), KEY)
    assert_same(again, some)
    pd.testing.assert_frame_equal(again.to_frame(), some.to_frame())
    pd.testing.assert_frame_equal(again.fates(), some.fates())


def test_stored_arrays_are_the_receivers_own(stored: AnnData, paths: Trajectories):
    stored.uns[KEY]["x"][:] = 0.0
    assert np.abs(paths.x).sum() > 0
    again = storage.read_trajectories(stored, KEY)
    stored.uns[KEY]["x"][:] = 1.0
    assert not again.x.any()


def test_reading_leaves_what_is_stored_as_it_is(stored: AnnData):
    before = set(stored.uns[KEY])
    storage.read_trajectories(stored, KEY)
    assert (
        set(stored.uns[KEY])
        == before
        == {"format_version", "version", "cells", *(f.name for f in fields(Trajectories))}
    )


def test_a_missing_key_names_those_that_are_there(stored: AnnData):
    with pytest.raises(KeyError, match=rf"`adata.uns\['flow'\]`, found the keys \['{KEY}'\].*compute_trajectories"):
        storage.read_trajectories(stored, "flow")


@pytest.mark.parametrize("version", [0, 2, None])
def test_another_version_is_refused(stored: AnnData, version):
    stored.uns[KEY]["format_version"] = version
    with pytest.raises(ValueError, match=f"format `1`, found `{version}`: it was written by another version"):
        storage.read_trajectories(stored, KEY)


def test_other_cells_are_refused(stored: AnnData):
    with pytest.raises(ValueError, match=r"these `20` cells in `adata.uns\['velot_trajectories'\]`, found others"):
        storage.read_trajectories(stored[:20].copy(), KEY)
    del stored.uns[KEY]["cells"]
    with pytest.raises(ValueError, match="these `50` cells"):
        storage.read_trajectories(stored, KEY)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: entry.pop("offsets"),
        lambda entry: entry.update(surplus=1),
        lambda entry: entry.update(x=entry["x"][:-1]),
        lambda entry: entry.update(x=None),
        lambda entry: entry.update(status="arrived"),
        lambda entry: entry.update(offsets=entry["offsets"][::-1].copy()),
    ],
    ids=["field missing", "unknown field", "too few points", "no points", "a word", "offsets backward"],
)
def test_damaged_entries_are_refused(stored: AnnData, damage):
    damage(stored.uns[KEY])
    with pytest.raises(ValueError, match=r"trajectories in `adata.uns\['velot_trajectories'\]` are damaged"):
        storage.read_trajectories(stored, KEY)


# ----------------------------------------------------------------------------------------------------- the memory
def drifting(n_particles: int, n_steps: int, save_every: int) -> Trajectories:
    """Let particles drift slowly through a large region, all to the last step."""
    x = np.random.default_rng(0).normal(size=(400, 8))
    step = OdeStep(lambda x, _time, _ids: torch.full_like(x, 0.1), "euler")
    options = MotionOptions(
        n_steps=n_steps, step_size=1e-3, max_distance=100.0, save_every=save_every, time_from="start"
    )
    start_ix = np.arange(n_particles) % 400
    motion = Motion(NearestCells(Region.of(x), 0.1), options)
    return move(motion, step, x[start_ix], np.zeros(n_particles), start_ix)


@pytest.mark.parametrize(("n_steps", "save_every", "n_points"), [(30, 1, 31), (30, 10, 4), (30, 7, 6), (30, 31, 2)])
def test_points_kept_are_those_asked_for(n_steps: int, save_every: int, n_points: int):
    paths = drifting(3, n_steps, save_every)
    assert set(paths.lengths) == {n_points}
    assert (paths.status == Status.OUT_OF_STEPS).all()
    np.testing.assert_allclose(paths.ends - paths.starts, 0.1 * 1e-3 * n_steps, rtol=1e-9)


def test_save_every_bounds_the_peak():
    def peak(save_every: int) -> int:
        tracemalloc.start()
        paths = drifting(2000, 60, save_every)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert paths.x.shape[0] == 2000 * (60 // save_every + 1)
        return size

    every, some = peak(1), peak(20)
    assert every > 2000 * 61 * 8 * 8
    assert some < 0.15 * every


def test_repr_is_short_and_says_how_they_ended():
    found = Trajectories(
        ids=np.arange(3),
        x=np.zeros((4, 2)),
        time=np.zeros(4),
        offsets=np.array([0, 1, 3, 4]),
        status=np.array([0, 0, 2], dtype=np.int8),
        direction=np.ones(3, dtype=np.int8),
        start_ix=np.arange(3),
        clusters=np.array(["a", "b"]),
        start_cluster=np.array([0, 0, 0]),
        end_cluster=np.array([1, 1, -1]),
        n_tried=3,
    )
    assert repr(found) == "Trajectories[n=3; arrived: 2, left the data: 1; b: 2; without a fate: 1]"
    assert repr(found.select([])) == "Trajectories[n=0]"
