"""The same 100 000 cells by one thread, by two, by processes and by a dask cluster, one of whose workers is killed.

Prints seconds, seconds of processor time, and whether every number is the same; writes the table of docs/scale.md.
`--cells` takes another number of cells and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import table
from joblib import parallel_config
from scaling import cells_in, load

import cellrank_velot as cv

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
QUIET = {"show_progress_bar": False}


def steps(adata: Any, n_jobs: int | None = None) -> dict[str, np.ndarray]:
    """Return the numbers that the steps give which are shared out; windows and training are not."""
    kernel = cv.OTVelocityKernel(adata)
    kernel.compute_velocity(n_jobs=n_jobs, **QUIET).fit_field(**QUIET)
    kernel.compute_transition_matrix(n_jobs=n_jobs, **QUIET)
    transport = {name: getattr(kernel.transport, name) for name in ("velocity", "spread", "disagreement")}
    return {**transport, "field": kernel.velocity, "matrix": kernel.transition_matrix.data}


def clocked(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a result, the seconds it took, and those of all processors of this process."""
    start, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - start, time.process_time() - processor


def on_dask(adata: Any, client: Any, kill_after: float | None = None) -> dict[str, np.ndarray]:
    """Run on a cluster; kill one of its workers on the way if asked."""
    if kill_after is not None:
        victim = next(iter(client.cluster.workers.values())).pid
        timer = threading.Timer(kill_after, os.kill, (victim, 9))
        timer.start()
    with parallel_config(backend="dask"):
        found = steps(adata)
    if kill_after is not None and timer.is_alive():
        timer.cancel()
        raise RuntimeError("The run was over before a worker was killed: take more cells.")
    return found


def on_loky(adata: Any) -> dict[str, np.ndarray]:
    """Run in two processes."""
    with parallel_config(backend="loky", n_jobs=2):
        return steps(adata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=None)
    args = parser.parse_args()
    from distributed import Client, LocalCluster

    folder = Path(tempfile.gettempdir()) / "cellrank_velot_scaling"
    folder.mkdir(exist_ok=True)
    adata, _ = load(cells_in(folder, args.cells or 100_000))
    steps(cv.datasets.bifurcation(n_cells=300))  # loads the loops
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        on_dask(cv.datasets.bifurcation(n_cells=300), client)
        runs: dict[str, Callable[[], Any]] = {
            "one thread": lambda: steps(adata, 1),
            "two threads": lambda: steps(adata, 2),
            "two processes (loky)": lambda: on_loky(adata),
            "dask, two workers": lambda: on_dask(adata, client),
            "dask, one of two workers killed after 3 s": lambda: on_dask(adata, client, 3.0),
        }
        rows, first = [], None
        for name, function in runs.items():
            found, seconds, processor = clocked(function)
            first = found if first is None else first
            same = all(np.array_equal(found[key], first[key], equal_nan=True) for key in first)
            rows.append([name, f"{seconds:.1f}", f"{processor:.1f}", "yes" if same else "NO"])
            print(*rows[-1], sep=" | ", flush=True)
    columns = ["who", "seconds", "processor seconds of the calling process", "the same bit for bit"]
    if args.cells is None:
        head, _, rest = PAGE.read_text().partition("<!-- who -->")
        tail = rest.partition("<!-- end -->")[2]
        PAGE.write_text(f"{head}<!-- who -->\n\n{table(pd.DataFrame(rows, columns=columns))}\n<!-- end -->{tail}")


if __name__ == "__main__":
    main()
