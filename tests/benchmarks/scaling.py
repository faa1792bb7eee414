"""Processor seconds and memory of every step up to 30 000 cells, beside VelOT and CellRank's VelocityKernel.

Writes docs/benchmarks.md. Each program and size runs in a process of its own, with one thread, on the same cells and
the same neighbour graph, which is given; `--limit` is how long a peer may take. `--sizes` takes other sizes, such as a
million, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import table

DOCS = Path(__file__).parents[2] / "docs"
SIZES = (1_000, 3_000, 10_000, 30_000)
N_DIMS, N_NEIGHBORS = 30, 30
SYSTEMS = {"cellrank_velot": "cellrank_velot", "velot": "VelOT 1.0.0", "cellrank": "VelocityKernel"}
Results = dict[tuple[str, int], list[dict[str, Any]]]
STEPS = ("kernel", "windows", "transport", "field", "transition matrix")


# ----------------------------------------------------------------------------------------------------------- the cells
def simulate(n_cells: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return cells along a curve that branches three times, with noise of the same size in all dimensions.

    The velocity is the derivative of the curve, the time that of the cell, with an error of a hundredth of the whole.
    """
    from scipy.interpolate import make_interp_spline

    shape = np.random.default_rng(7)
    steps = shape.normal(size=(4, 8, N_DIMS)) * np.linspace(1.5, 0.3, N_DIMS)

    def path(*pieces: tuple[int, int, int]) -> Any:
        taken = np.concatenate([steps[curve][first:last] for curve, first, last in pieces])
        return make_interp_spline(np.linspace(0, 1, 9), np.vstack([np.zeros(N_DIMS), np.cumsum(taken, 0)]), k=3)

    first, second = ((0, 0, 3), (1, 3, 8)), ((0, 0, 5), (2, 5, 8))
    branches = [path((0, 0, 8)), path(*first), path(*second), path((0, 0, 3), (1, 3, 6), (3, 6, 8))]
    rng = np.random.default_rng(seed)
    at, branch = rng.random(n_cells), rng.integers(4, size=n_cells)
    x, velocity = np.empty((n_cells, N_DIMS)), np.empty((n_cells, N_DIMS))
    for number, curve in enumerate(branches):
        cells = branch == number
        x[cells], velocity[cells] = curve(at[cells]), curve(at[cells], 1)
    x += rng.normal(size=x.shape) * 0.15 * np.sqrt(np.mean(x.std(axis=0) ** 2))
    return {"x": x, "velocity": velocity, "time": at + 0.01 * rng.normal(size=n_cells), "branch": branch}


def neighbors(x: np.ndarray) -> sp.csr_matrix:
    """Return a graph of the nearest cells, in both directions, with weights that fall with the distance."""
    from pynndescent import NNDescent

    search = NNDescent(x.astype(np.float32), n_neighbors=N_NEIGHBORS, random_state=0, low_memory=True)
    near, distance = (a[:, 1:] for a in search.neighbor_graph)
    weights = np.exp(-((distance / np.maximum(distance.mean(axis=1, keepdims=True), 1e-12)) ** 2))
    starts = np.arange(0, near.size + 1, near.shape[1])
    graph = sp.csr_matrix((weights.ravel().astype(float), near.ravel(), starts), shape=(len(x),) * 2)
    return sp.csr_matrix(graph.maximum(graph.T))


def cells_in(folder: Path, n_cells: int) -> Path:
    """Return a file with cells, simulated where it is not there yet."""
    path = folder / f"cells_{n_cells}.npz"
    if not path.exists():
        cells = simulate(n_cells)
        graph = neighbors(cells["x"])
        parts = {name: getattr(graph, name) for name in ("data", "indices", "indptr")}
        np.savez(path.with_suffix(".part.npz"), **cells, **parts)
        path.with_suffix(".part.npz").rename(path)
    return path


# ----------------------------------------------------------------------------------------------------------- the clock
class Watch:
    """Seconds of each step, and the most memory that the process held in it, beyond what it held before the first."""

    def __init__(self) -> None:
        self.before, self.rows = resident(), []

    def step(self, name: str, function: Callable[[], Any]) -> Any:
        """Run a step."""
        peak, done = [resident()], threading.Event()

        def look() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], resident())

        looking = threading.Thread(target=look)
        looking.start()
        start, work = time.perf_counter(), time.process_time()
        try:
            return function()
        finally:
            seconds, processor = time.perf_counter() - start, time.process_time() - work
            done.set()
            looking.join()
            most = max(peak[0], resident()) - self.before
            self.rows.append({"step": name, "seconds": seconds, "processor": processor, "peak": most})
            print(json.dumps(self.rows[-1]), flush=True)


def resident() -> float:
    """Return the memory that this process holds, in GiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**30


def cosine(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean cosine with the truth, over the cells that have a velocity."""
    norm = np.linalg.norm(found, axis=1) * np.linalg.norm(truth, axis=1)
    return float(np.nanmean(np.einsum("ij,ij->i", found, truth) / np.where(norm > 0, norm, np.nan)))


# -------------------------------------------------------------------------------------------------------- the programs
def load(path: Path) -> tuple[Any, np.ndarray]:
    """Return the cells as AnnData, and their true velocity."""
    import anndata as ad

    found = np.load(path)
    n_cells = found["time"].size
    names = pd.Index(np.arange(n_cells).astype(str))
    adata = ad.AnnData(obs=pd.DataFrame({"pseudotime": found["time"]}, index=names))
    adata.obsm["X_pca"] = found["x"]
    adata.obsm["velocity"] = found["velocity"]
    graph = sp.csr_matrix((found["data"], found["indices"], found["indptr"]), shape=(n_cells, n_cells))
    adata.obsp["connectivities"] = adata.obsp["distances"] = graph
    params = {"use_rep": "X_pca", "n_neighbors": N_NEIGHBORS, "method": "umap"}
    adata.uns["neighbors"] = {
        "connectivities_key": "connectivities", "distances_key": "distances", "params": params
    }  # fmt: skip
    return adata, found["velocity"]


def run_ours(path: Path, device: str) -> None:
    """Run our kernel, step by step."""
    import cellrank_velot as cv

    warm_up(cv, device)
    adata, truth = load(path)
    watch, quiet = Watch(), {"show_progress_bar": False}
    kernel = watch.step("kernel", lambda: cv.OTVelocityKernel(adata))
    watch.step("windows", kernel.compute_windows)
    watch.step("transport", lambda: kernel.compute_velocity(device=device, **quiet))
    watch.step("field", lambda: kernel.fit_field(device=device, **quiet))
    watch.step("transition matrix", lambda: kernel.compute_transition_matrix(device=device, **quiet))
    edges = int(kernel.transition_matrix.nnz)
    print(json.dumps({"cosine": cosine(kernel.velocity, truth), "edges": edges, "pairs": kernel.windows.n_pairs}))


def warm_up(cv: Any, device: str) -> None:
    """Load what is loaded once for a process, compiled loops and libraries, on a few cells."""
    adata = cv.datasets.bifurcation(n_cells=300)
    cv.OTVelocityKernel(adata).compute_transition_matrix(device=device, show_progress_bar=False)


def few_cells() -> Any:
    """Return a few cells as AnnData, to load with what is loaded once."""
    with tempfile.TemporaryDirectory() as folder:
        return load(cells_in(Path(folder), 300))[0]


def run_velot(path: Path, device: str) -> None:
    """Run VelOT at its defaults, step by step."""
    import velot

    velot.tl.velocity(few_cells(), project_umap=False, verbose=False, n_epochs=1)
    adata, truth = load(path)
    watch = Watch()
    watch.step("windows", lambda: velot.tl.build_windows(adata))
    watch.step("transport", lambda: velot.tl.compute_ot_velocity(adata))
    options = {"velocity_key": "velot_velocity_raw_pca", "lambda_curl": 0.0, "verbose": False}  # as `tl.velocity` does
    watch.step("field", lambda: velot.tl.smooth_velocity(adata, **options))
    print(json.dumps({"cosine": cosine(np.asarray(adata.obsm["velot_velocity_pca"], dtype=float), truth)}))


def run_cellrank(path: Path, device: str) -> None:
    """Run CellRank's kernel on the true velocities."""
    import cellrank as cr

    few = cr.kernels.VelocityKernel(few_cells(), attr="obsm", xkey="X_pca", vkey="velocity")
    few.compute_transition_matrix(show_progress_bar=False)
    adata, _ = load(path)
    watch = Watch()
    kernel = watch.step("kernel", lambda: cr.kernels.VelocityKernel(adata, attr="obsm", xkey="X_pca", vkey="velocity"))
    watch.step("transition matrix", lambda: kernel.compute_transition_matrix(show_progress_bar=False))


RUNS = {"cellrank_velot": run_ours, "velot": run_velot, "cellrank": run_cellrank}


def measure(system: str, path: Path, limit: float, device: str) -> list[dict[str, Any]]:
    """Run a program in a process of its own; what it did until the limit comes back."""
    command = [sys.executable, __file__, "--run", system, "--cells", str(path), "--device", device]
    try:
        one = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=one)
        out, end = done.stdout, "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    except subprocess.TimeoutExpired as late:
        out, end = (late.stdout or b"").decode(), f"more than {limit:g} s"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [*rows, {"end": end}]


# ------------------------------------------------------------------------------------------------------------ the page
def totals(results: Results) -> pd.DataFrame:
    """Return processor seconds and peak memory of each program that came to its end, and its cosine."""
    rows = []
    for (system, n_cells), found in results.items():
        steps = [row for row in found if "step" in row]
        end = next(row["end"] for row in found if "end" in row)
        row = {"system": system, "cells": n_cells, "end": end}
        if not end:
            row |= {"seconds": sum(s["processor"] for s in steps), "peak": max(s["peak"] for s in steps)}
            row["cosine"] = next((r["cosine"] for r in found if "cosine" in r), np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def number(value: float, digits: int = 3) -> str:
    """Return a number in few digits, or nothing."""
    return "" if not np.isfinite(value) else f"{value:.{digits}g}" if value < 100 else f"{value:.0f}"


def steps_table(results: Results) -> pd.DataFrame:
    """Return processor seconds of each of our steps, by number of cells."""
    rows = []
    for (system, n_cells), found in results.items():
        steps = [row for row in found if "step" in row]
        if system == "cellrank_velot":
            by_step = {row["step"]: number(row["processor"]) for row in steps}
            ends = {"all": number(sum(row["processor"] for row in steps))}
            rows.append({"cells": f"{n_cells:,}", **{step: by_step.get(step, "") for step in STEPS}, **ends})
    return pd.DataFrame(rows)


def peers_table(total: pd.DataFrame) -> pd.DataFrame:
    """Return processor seconds and memory of each program, and cosines to the truth."""
    rows = []
    for n_cells, part in total.groupby("cells"):
        by_system = part.set_index("system")
        row: dict[str, Any] = {"cells": f"{n_cells:,}"}
        for system, name in SYSTEMS.items():
            if system not in by_system.index:
                row |= {f"{name}, s": "not tried", f"{name}, GiB": ""}
                continue
            found = by_system.loc[system]
            row[f"{name}, s"] = str(found["end"]) or number(found["seconds"])
            row[f"{name}, GiB"] = number(found.get("peak", np.nan), 2)
        row["cosine, ours"] = number(by_system["cosine"].get("cellrank_velot", np.nan))
        row["cosine, VelOT"] = number(by_system["cosine"].get("velot", np.nan))
        rows.append(row)
    return pd.DataFrame(rows)


def page(results: Results, limit: float) -> str:
    """Return the generated part of docs/benchmarks.md."""
    return (
        f"Processor seconds of one thread ({platform.processor() or platform.machine()}). Cells of {N_DIMS} dimensions "
        f"on a curve that branches three times, {N_NEIGHBORS} neighbours, the graph given. Each program and size ran "
        "once, in a process of its own, with compiled loops already loaded. Our seconds are from the AnnData to the "
        "transition matrix in the kernel. CellRank's are for the transition matrix alone, from the true velocities. "
        f"The other packages had {limit:g} s by the clock for each size.\n\n{table(peers_table(totals(results)))}\n"
        f"## Steps\n\nProcessor seconds of our steps.\n\n{table(steps_table(results))}"
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=None)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--limit", type=float, default=300.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "cellrank_velot_scaling")
    parser.add_argument("--run", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    parser.add_argument("--cells", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        RUNS[args.run](args.cells, args.device)
        return
    args.cache.mkdir(exist_ok=True)
    results: Results = {}
    late: set[str] = set()
    for n_cells in args.sizes or SIZES:
        path = cells_in(args.cache, n_cells)
        for system in args.systems:
            if system in late:
                continue
            found = measure(system, path, args.limit if system != "cellrank_velot" else 3600, args.device)
            results[system, n_cells] = found
            end = found[-1]["end"]
            if end.startswith("more than"):
                late.add(system)
            seconds = {row["step"]: round(row["processor"], 2) for row in found if "step" in row}
            print(n_cells, system, seconds, f"{sum(seconds.values()):.1f} s", end, flush=True)
    print(peers_table(totals(results)).to_string())
    if args.sizes is None and set(args.systems) == set(SYSTEMS):
        target = DOCS / "benchmarks.md"
        head = target.read_text().partition("<!-- figures -->")[0] if target.exists() else "# Benchmarks\n\n"
        target.write_text(f"{head}<!-- figures -->\n\n{page(results, args.limit)}")


if __name__ == "__main__":
    main()
