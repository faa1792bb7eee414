"""Work in threads, processes and on a dask cluster: the same result bit for bit, whoever does it and whoever dies."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from joblib import parallel_config
from threadpoolctl import threadpool_info

import cellrank_velot as cv
from cellrank_velot._utils import parallel as parallel_module
from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.parallel import blocks, count_jobs, run
from cellrank_velot.field import FieldOptions
from cellrank_velot.field import evaluation as evaluation_module
from cellrank_velot.field.uncertainty import Steps, UncertaintyOptions, compute_uncertainty
from cellrank_velot.graph import rows as edge_rows
from cellrank_velot.transport import sums as pairs_module
from cellrank_velot.transport.velocity import compute_velocity
from cellrank_velot.transport.windows import WindowOptions, build_windows

pytestmark = pytest.mark.process

PER_CELL = ("velocity", "relaxation", "spread", "n_effective", "disagreement", "support", "n_forward", "n_backward")


@pytest.fixture(scope="module")
def cluster():
    """Return a client of two workers, each of which takes seconds to load what it needs."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def client(cluster):
    """Return it with both workers, whichever the test before has killed."""
    cluster.wait_for_workers(2, timeout=60)
    return cluster


@pytest.fixture(scope="module")
def adata():
    return cv.datasets.bifurcation(n_cells=500, n_genes=40)


@pytest.fixture
def in_small_parts(monkeypatch):
    """Make so many tasks of few cells that every worker has some."""
    monkeypatch.setattr(pairs_module, "TASK_ELEMENTS", 8000)
    monkeypatch.setattr(edge_rows, "BLOCK_EDGES", 1000)
    monkeypatch.setattr(evaluation_module, "TASK_POINTS", 64)


def kernel_of(adata) -> cv.OTVelocityKernel:
    kernel = cv.OTVelocityKernel(adata, cluster_key="clusters").compute_windows(min_window_size=10)
    quiet = {"show_progress_bar": False}
    return kernel.compute_velocity(**quiet).fit_field(n_steps=30, **quiet).compute_transition_matrix(**quiet)


def assert_equal(found: cv.OTVelocityKernel, expected: cv.OTVelocityKernel) -> None:
    for name in PER_CELL:
        np.testing.assert_array_equal(getattr(found.transport, name), getattr(expected.transport, name), err_msg=name)
    np.testing.assert_array_equal(found.velocity, expected.velocity)
    np.testing.assert_array_equal(found.transition_matrix.data, expected.transition_matrix.data)
    np.testing.assert_array_equal(found.logits.data, expected.logits.data)


# --------------------------------------------------------------------------------------------------- who does the work
@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_every_backend_gives_the_same(adata, in_small_parts, backend: str):
    with parallel_config(backend="sequential"):
        expected = kernel_of(adata)
    with parallel_config(backend=backend, n_jobs=2):
        assert_equal(kernel_of(adata), expected)


def test_dask_gives_the_same(adata, client, in_small_parts):
    with parallel_config(backend="sequential"):
        expected = kernel_of(adata)
    with parallel_config(backend="dask"):
        assert_equal(kernel_of(adata), expected)


def test_members_and_grid_points_go_to_dask(adata, client):
    x, at = np.asarray(adata.obsm["X_pca"], dtype=float), adata.obs["dpt_pseudotime"].to_numpy()
    graph = adata.obsp["connectivities"].tocsr()
    windows = build_windows(x, at)
    field = kernel_of(adata).field
    steps, options = Steps(field=FieldOptions(n_steps=20)), UncertaintyOptions(n_members=2)
    grid = {"epsilon": [0.02, 0.1], "n_steps": [10]}

    def everything():
        members = compute_uncertainty(x, at, graph, windows, field, options, steps=steps)
        table = cv.gridsearch(adata, grid, n_jobs=None, show_progress_bar=False).drop(columns="seconds")
        return members, table

    with parallel_config(backend="sequential"):
        expected = everything()
    with parallel_config(backend="dask"):
        found = everything()
    np.testing.assert_array_equal(found[0].std, expected[0].std)
    assert found[1].equals(expected[1])
    assert found[1]["error"].isna().all()


def test_basis_reaches_a_cluster_once(adata, client, in_small_parts, monkeypatch):
    x, at = np.asarray(adata.obsm["X_pca"], dtype=float), adata.obs["dpt_pseudotime"].to_numpy()
    graph = adata.obsp["connectivities"].tocsr()
    windows = build_windows(x, at)
    sent, scatter = [], type(client).scatter

    def counting(self, data, *args, **kwargs):
        sent.extend(data if isinstance(data, list | tuple) else [data])
        return scatter(self, data, *args, **kwargs)

    monkeypatch.setattr(type(client), "scatter", counting)
    with parallel_config(backend="dask"):
        compute_velocity(x, at, windows, graph)
    assert len(pairs_module._tasks(windows, np.arange(windows.n_pairs))) > 5
    bases = [value for value in sent if getattr(value, "shape", None) == x.shape]
    assert len(bases) == 1


# -------------------------------------------------------------------------------------------------- who dies meanwhile
def test_worker_that_dies_in_its_task_loses_nothing(client, tmp_path: Path):
    base, marker = np.arange(1000.0), tmp_path / "died"

    def fragile(values, number, died):
        import os
        from pathlib import Path

        if number == 3 and not Path(died).exists():
            Path(died).touch()
            os._exit(1)
        return values[number] ** 2

    with parallel_config(backend="dask"):
        found = list(run(fragile, [(number, str(marker)) for number in range(12)], (base,)))
    assert marker.exists()
    assert found == [number**2 for number in range(12)]


class Forgetful:
    """Does what a dask client does, and forgets a task or its data, as dask does now and then when a worker dies."""

    submit_kwargs: ClassVar = {}

    def __init__(self, n_times: int, loses: str) -> None:
        self.client, self.left, self.loses = self, n_times, loses
        self.cancelled = 0

    def scatter(self, values, **_):
        if self.loses == "data" and self.left:
            self.left -= 1
            raise KeyError("tcp://worker")
        return values

    def ncores(self):
        return {"tcp://worker": 1}

    def submit(self, call, function=None, *args, **_):
        future = Future()
        if not args:  # a copy of the data
            future.set_result(None)
        elif self.loses == "task" and self.left and args[-2] == 2:
            self.left -= 1
            future.set_exception(CancelledError())
        else:
            future.set_result(call(function, *args))
        return future

    def cancel(self, futures):
        self.cancelled += len(futures)


def scaled_power(base, factor, number, exponent):
    return base[0] * factor * number**exponent


def test_tasks_that_share_no_data_send_none(client, monkeypatch):
    monkeypatch.setattr(type(client), "scatter", pytest.fail)
    with parallel_config(backend="dask"):
        assert list(run(pow, [(number, 2) for number in range(5)], (3,))) == [3**number % 2 for number in range(5)]


@pytest.mark.parametrize("loses", ["task", "data"])
@pytest.mark.parametrize("n_times", [1, 2, 3])
def test_what_a_cluster_loses_is_given_out_again(n_times: int, loses: str, monkeypatch):
    cluster = Forgetful(n_times, loses)
    monkeypatch.setattr(parallel_module, "get_active_backend", lambda prefer=None: (cluster, None))
    monkeypatch.setattr(parallel_module, "RETRY_AFTER", 0.0)
    tasks = run(scaled_power, [(number, 2) for number in range(9)], (np.ones(3), 1), n_jobs=2, at_a_time=4)
    if n_times < 3:
        assert list(tasks) == [number**2 for number in range(9)]
    else:
        with pytest.raises(CancelledError):
            list(tasks)
    # Those that were ahead of the one that was lost.
    assert cluster.cancelled == (n_times * 4 if loses == "task" else 0)


def test_worker_killed_during_transport_loses_nothing(adata, client, in_small_parts, monkeypatch):
    x, at = np.asarray(adata.obsm["X_pca"], dtype=float), adata.obs["dpt_pseudotime"].to_numpy()
    graph = adata.obsp["connectivities"].tocsr()
    monkeypatch.setattr(pairs_module, "TASK_ELEMENTS", 1)
    monkeypatch.setattr(parallel_module, "RETRY_AFTER", 0.5)
    windows = build_windows(x, at, WindowOptions(overlap=0.9))
    expected = compute_velocity(x, at, windows, graph, run=Run(n_jobs=1))
    task = pairs_module._sum_task

    def slowly(*args):
        import time

        time.sleep(0.015)
        return task(*args)

    monkeypatch.setattr(pairs_module, "_sum_task", slowly)
    workers = [worker.pid for worker in client.cluster.workers.values()]
    killed = []

    def kill() -> None:
        time.sleep(0.2)
        os.kill(workers[0], 9)
        killed.append(workers[0])

    killer = threading.Thread(target=kill)
    with parallel_config(backend="dask"):
        killer.start()
        found = compute_velocity(x, at, windows, graph)
    assert killed  # before the end
    killer.join()
    for name in PER_CELL:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


# ------------------------------------------------------------------------------------------------------------- threads
def test_many_threads_at_once_leave_everything_as_it_was():
    before, blas = torch.get_num_threads(), [info["num_threads"] for info in threadpool_info()]
    first_out, second_in = threading.Event(), threading.Event()

    def early() -> None:
        with single_thread():
            second_in.wait(5)
        first_out.set()

    def late() -> None:
        with single_thread():
            second_in.set()
            first_out.wait(5)
            inside.append(torch.get_num_threads())

    inside: list[int] = []
    threads = [threading.Thread(target=target) for target in (early, late)]
    for thread in threads:
        thread.start()
        time.sleep(0.015)
    for thread in threads:
        thread.join()
    assert inside == [1]
    assert torch.get_num_threads() == before
    assert [info["num_threads"] for info in threadpool_info()] == blas


def test_work_that_is_given_up_leaves_everything_as_it_was():
    before = torch.get_num_threads()
    work = run(threads_seen, [(number,) for number in range(50)], n_jobs=2)
    assert next(work) == (1, 1)
    work.close()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("at_a_time", [1, 3, 100])
def test_tasks_given_out_a_few_at_a_time_keep_their_order(at_a_time: int):
    found = run(divmod, [(number, 3) for number in range(20)], n_jobs=2, at_a_time=at_a_time)
    assert list(found) == [divmod(number, 3) for number in range(20)]


def threads_seen(_number: int) -> tuple[int, int]:
    return torch.get_num_threads(), count_jobs(None)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_jobs_do_not_ask_for_more_threads(n_jobs: int):
    before = torch.get_num_threads()
    assert set(run(threads_seen, [(number,) for number in range(6)], n_jobs=n_jobs)) == {(1, 1)}
    assert torch.get_num_threads() == before


def test_number_of_threads_comes_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"), single_thread():
        raise RuntimeError("no")
    assert torch.get_num_threads() == before


def test_default_number_of_jobs():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert count_jobs(None) == 3
        assert count_jobs(2) == 2
        with parallel_config(backend="loky", n_jobs=2):
            assert count_jobs(None) == 2
        with parallel_config(n_jobs=1):
            assert count_jobs(None) == 1
        with parallel_config(backend="sequential"):
            assert count_jobs(None) == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_blocks_cover_everything(size: int):
    parts = blocks(10, size)
    assert np.concatenate([np.arange(*part) for part in parts]).tolist() == list(range(10))
    assert max(stop - start for start, stop in parts) <= size
    assert blocks(0, size) == []
