"""Work over all cells, cut into slices that threads share out.

Slices depend on the number of cells alone, and their results come back in order: so sums are the same, bit for bit,
however many threads there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

from joblib import cpu_count, effective_n_jobs
from joblib.parallel import get_active_backend
from threadpoolctl import threadpool_limits

__all__ = ["SIZE", "Slices", "count_threads"]

Result = TypeVar("Result")

SIZE = 4096  # cells of a slice: 80 vectors of them stay in the cache of the processor


def count_threads() -> int:
    """Return as many threads as there are cores, or as ``OMP_NUM_THREADS`` or joblib's ``parallel_config`` allow."""
    if get_active_backend()[1] is not None:
        return int(effective_n_jobs(None))
    return min(cpu_count(), int(os.environ.get("OMP_NUM_THREADS", "0").split(",")[0]) or cpu_count())


class Slices:
    """Slices of the cells; within ``with`` there are threads for them, and BLAS takes one thread for each."""

    def __init__(self, n_cells: int, size: int = SIZE) -> None:
        self.parts = [slice(first, min(first + size, n_cells)) for first in range(0, n_cells, size)]
        self._n_threads = min(count_threads(), len(self.parts) // 2)
        self._pool: ThreadPoolExecutor | None = None
        self._undo = ExitStack()

    def __enter__(self) -> Slices:
        # On a busy machine two threads of BLAS take ten times as long as one.
        self._undo.enter_context(threadpool_limits(limits=1, user_api="blas"))
        if self._n_threads > 1:
            self._pool = self._undo.enter_context(ThreadPoolExecutor(self._n_threads))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool = None
        self._undo.close()

    def map(self, function: Callable[[slice], Result]) -> list[Result]:
        """Return what a function gives for each slice."""
        if self._pool is None:
            return [function(part) for part in self.parts]
        n = self._n_threads
        jobs = [self._pool.submit(lambda at: [function(part) for part in self.parts[at::n]], i) for i in range(n)]
        found = [job.result() for job in jobs]
        return [found[i % n][i // n] for i in range(len(self.parts))]
