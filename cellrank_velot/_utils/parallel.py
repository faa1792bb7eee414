"""Work in parts: in threads of this process, or wherever joblib's ``parallel_config`` sends it.

The parts are the same whoever does them, and come back in their order, so that the result is the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from joblib.parallel import BACKENDS, EXTERNAL_BACKENDS, ThreadingBackend, get_active_backend
from tqdm.auto import tqdm

from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.validation import check_choice, check_integer

__all__ = ["Jobs", "blocks", "check_backend", "count_jobs", "joblib_backend", "run"]

# What goes with each task: it is smaller than a reference to it.
PLAIN = (bool, int, float, str, bytes, type(None))  # and the device
# Seconds until data and tasks are sent again to a cluster that has lost a worker meanwhile, and how often they are.
RETRY_AFTER = 2.0
LAST_TIME = (False, False, True)


class Jobs(Parallel):
    """Jobs of joblib that move a progress bar on, with any backend: not every one can return results one by one."""

    def __init__(self, n_jobs: int | None, bar: Any, **options: Any) -> None:
        super().__init__(n_jobs=n_jobs, **options)
        self._bar, self._shown = bar, 0

    def __call__(self, iterable: Iterable[Any]) -> Any:
        self._shown = 0
        return super().__call__(iterable)

    def print_progress(self) -> None:
        """Joblib calls this when tasks are done."""
        self._bar.update(self.n_completed_tasks - self._shown)
        self._shown = self.n_completed_tasks


def run(
    function: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    shared: tuple[Any, ...] = (),
    *,
    n_jobs: int | None = None,
    desc: str = "",
    show_progress_bar: bool = False,
    delay: float = 0.0,
    at_a_time: int | None = None,
) -> Generator[Any, None, None]:
    """Call ``function(*shared, *task)`` for each task, and yield the results in the order of the tasks.

    The function must be one of a module, which can be pickled. Of ``shared``, arrays reach another machine once, not
    with each task. ``n_jobs=None`` takes the number of joblib's ``parallel_config``, and outside of it as many threads
    as torch uses. The progress bar appears after ``delay`` seconds. No more than ``at_a_time`` tasks are given out
    before the first of them has come back.
    """
    jobs = min(count_jobs(n_jobs), len(tasks))
    with (
        tqdm(total=len(tasks), desc=desc, unit="batch", delay=delay, disable=not show_progress_bar) as bar,
        single_thread(),
    ):
        if jobs <= 1:
            for task in tasks:
                yield function(*shared, *task)
                bar.update()
            return
        backend, _ = get_active_backend(prefer="threads")
        if hasattr(backend, "client"):
            for result in _on_cluster(backend, function, tasks, shared, at_a_time or len(tasks)):
                yield result
                bar.update()
            return
        streams = getattr(backend, "supports_return_generator", False)
        options = {"prefer": "threads", "return_as": "generator" if streams else "list"}
        with Jobs(jobs, bar, **options) as parallel:
            for start, stop in blocks(len(tasks), at_a_time or len(tasks)):
                yield from parallel(delayed(_call)(function, *shared, *task) for task in tasks[start:stop])


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Return where each of successive parts of at most ``size`` begins and ends."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def check_backend(name: str | None) -> str | None:
    """Return the name of a backend of joblib; ``None`` leaves the choice to ``parallel_config``."""
    return name if name is None else check_choice("backend", name, sorted({*BACKENDS, *EXTERNAL_BACKENDS}))


def joblib_backend(name: str | None) -> AbstractContextManager[Any]:
    """Send work to a backend of joblib, where one is named."""
    chosen: AbstractContextManager[Any] = nullcontext() if name is None else parallel_config(backend=name)
    return chosen


def count_jobs(n_jobs: int | None) -> int:
    """Return how many jobs are meant, see :func:`run`."""
    if n_jobs is not None:
        if check_integer("n_jobs", n_jobs, low=-(2**31)) == 0:
            raise ValueError("Expected `n_jobs` to be a number of jobs, or -1 for all cores, found `0`.")
        return effective_n_jobs(n_jobs)
    backend, _ = get_active_backend(prefer="threads")
    _, configured = get_active_backend()
    if configured is None and isinstance(backend, ThreadingBackend):  # nobody has said anything of processes
        return torch.get_num_threads()
    return effective_n_jobs(None)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Do one task, by itself: what it calls must not ask for more workers."""
    with parallel_config(backend="sequential"), single_thread():
        return function(*arguments)


def _on_cluster(
    backend: Any, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], shared: tuple[Any, ...], n_ahead: int
) -> Generator[Any, None, None]:
    """Do tasks on a dask cluster, and again those that it forgets when a worker dies.

    By dask's client, not by joblib's backend: that one sends data in a way that never comes back when a worker dies
    then.
    """
    client, done = backend.client, 0
    for last_time in LAST_TIME:
        futures: deque[Any] = deque()
        try:
            arguments = _sent(client, shared)
            left = iter(tasks[done:])
            while True:
                for task in islice(left, n_ahead - len(futures)):
                    submitted = client.submit(_call, function, *arguments, *task, pure=False, **backend.submit_kwargs)
                    futures.append(submitted)
                if not futures:
                    return
                result = futures[0].result()
                futures.popleft()
                done += 1
                yield result
        except CancelledError:
            if last_time:
                raise
            time.sleep(RETRY_AFTER)
        finally:
            if futures:
                client.cancel(list(futures))


def _sent(client: Any, shared: tuple[Any, ...]) -> list[Any]:
    """Send what all tasks need to all workers of a cluster, once, so that a worker that dies takes no data with it.

    First to one worker, then to each other by a task that needs the data and does nothing. Dask's own broadcast never
    ends where one of the workers that it counted at its start is gone.
    """
    large = [value for value in shared if not _is_plain(value)]
    if not large:
        return list(shared)
    try:
        sent = client.scatter(large, hash=False)
        for copy in [
            client.submit(_nothing, *sent, workers=[worker], allow_other_workers=True, pure=False)
            for worker in client.ncores()
        ]:
            copy.result()
    except (KeyError, OSError) as error:  # a worker has just died, which the scheduler is about to learn
        raise CancelledError from error
    there = iter(sent)
    return [value if _is_plain(value) else next(there) for value in shared]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (*PLAIN, torch.device))


def _nothing(*_values: Any) -> None:
    """Need some values where one is."""
