"""Seconds and memory from the graph to driver genes, with our estimator and with CellRank's, up to a million cells.

Writes the table of docs/fates_at_scale.md. Each program and size runs in a process of its own, on the same cells,
neighbour graph, terminal states and genes; the seconds of our kernel are given once. Seconds of the processor are those
of all threads: they tell less of what else the machine does. `--limit` is how long CellRank may take. `--sizes` takes
other sizes and writes nothing. Cells and graphs are kept in `--folder`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import table
from scaling import Watch, cells_in, load

PAGE = Path(__file__).parents[2] / "docs" / "fates_at_scale.md"
SIZES = (3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
STEPS = ("kernel", "fates", "drivers", "Schur", "macrostates")
N_GENES, N_STATES, N_CELLS_OF_STATE = 2_000, 4, 30
DENSE_SHARE = 0.6  # of the memory of the machine, which CellRank's dense matrices may take


def expression(n_cells: int) -> sp.csr_matrix:
    """Return counts in which a twentieth of the entries are not zero."""
    rng = np.random.default_rng(0)
    each = N_GENES // 20
    genes = (
        rng.integers(N_GENES, size=(n_cells, 1)) + np.cumsum(rng.integers(1, 20, (n_cells, each)), axis=1)
    ) % N_GENES
    data = rng.exponential(size=genes.size).astype(np.float32)
    return sp.csr_matrix((data, genes.ravel().astype(np.int32), np.arange(0, genes.size + 1, each)), (n_cells, N_GENES))


def terminal_states(adata: Any, branch: np.ndarray) -> dict[str, list[str]]:
    """Return ten groups of cells: in each branch, at its end and before it."""
    time = adata.obs["pseudotime"].to_numpy()
    states = {}
    for at, quantile in enumerate((1.0, 0.9, 0.8)):
        for name in range(4 if at < 2 else 2):
            cells = np.flatnonzero(branch == name)
            last = int(quantile * cells.size)
            chosen = cells[np.argsort(time[cells])][last - N_CELLS_OF_STATE : last]
            states[f"{name} at {quantile}"] = list(adata.obs_names[chosen])
    return states


def run(system: str, path: Path) -> None:
    """Run one program, step by step."""
    import cellrank as cr

    import cellrank_velot as cv
    from cellrank_velot import estimators

    host = system == "cellrank"
    kind = cr.estimators.GPCCA if host else estimators.GPCCA
    warm_up(cv, kind)
    adata, _ = load(path)
    adata.obsm.pop("velocity")
    watch, quiet = Watch(), {"show_progress_bar": False}

    def make_kernel() -> Any:
        vk = cv.OTVelocityKernel(adata).compute_transition_matrix(**quiet)
        return 0.8 * vk + 0.2 * cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()

    kernel = watch.step("kernel", make_kernel)
    genes = expression(adata.n_obs)
    full = type(adata)(genes, obs=adata.obs, obsm=dict(adata.obsm), obsp=dict(adata.obsp), uns=adata.uns)
    g = kind(cr.kernels.PrecomputedKernel(kernel.transition_matrix, full))
    watch.before = Watch().before
    g.set_terminal_states(terminal_states(adata, np.load(path)["branch"]))
    options = {"use_petsc": False, "show_progress_bar": False} if host else {}
    try:
        watch.step("fates", lambda: g.compute_fate_probabilities(**options))
        rows = float(np.abs(np.asarray(g.fate_probabilities.X).sum(axis=1) - 1).max())
        print(json.dumps({"rows off by": rows}), flush=True)
        watch.step("drivers", g.compute_lineage_drivers)
    except (ValueError, RuntimeError) as error:
        print(json.dumps({"failed": str(error)[:100]}), flush=True)
    if host and 3 * 8 * adata.n_obs**2 > DENSE_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        print(json.dumps({"failed": f"dense matrices of {3 * 8 * adata.n_obs**2 / 2**30:.0f} GiB"}), flush=True)
        return
    watch.step("Schur", lambda: g.compute_schur(20, verbose=False))
    watch.step("macrostates", lambda: g.compute_macrostates(N_STATES))


def warm_up(cv: Any, kind: Any) -> None:
    """Load what is loaded once for a process."""
    import cellrank as cr

    adata = cv.datasets.bifurcation(n_cells=600)
    vk = cv.OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False)
    g = kind(0.8 * vk + 0.2 * cr.kernels.ConnectivityKernel(adata).compute_transition_matrix())
    g.set_terminal_states({"a": list(adata.obs_names[:5]), "b": list(adata.obs_names[5:10])})
    g.compute_fate_probabilities()
    g.compute_macrostates(3)


def measure(system: str, path: Path, limit: float | None) -> dict[str, Any]:
    """Run a program in a process of its own, and return what it did until the limit."""
    command = [sys.executable, __file__, "--run", system, "--cells", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        out, end = done.stdout, "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    except subprocess.TimeoutExpired as late:
        out, end = (late.stdout or b"").decode(), f"stopped after {limit:g} s"
    found: dict[str, Any] = {"end": end}
    for line in out.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            if "step" in row:
                found[row["step"]] = row["seconds"]
                found["processor"] = found.get("processor", 0) + row["processor"]
                found["peak"] = max(found.get("peak", 0), row["peak"])
            else:
                found["end"] = "; ".join(filter(None, [found["end"], row.get("failed", "")]))
                found |= {name: value for name, value in row.items() if name != "failed"}
    return found


def text(value: float | None) -> str:
    """Return seconds in few digits, or a dash."""
    return "-" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def rows_of(results: dict[tuple[str, int], dict[str, Any]]) -> pd.DataFrame:
    """Return the table of the page."""
    rows = []
    for (system, n_cells), found in results.items():
        row = {"cells": f"{n_cells:,}", "estimator": "CellRank" if system == "cellrank" else "ours"}
        row |= {step: text(found.get(step)) if system == "ours" or step != "kernel" else "" for step in STEPS}
        row["all"] = text(sum(found[step] for step in STEPS)) if system == "ours" and not found["end"] else ""
        row["processor"] = text(found.get("processor"))
        row["peak, GiB"] = text(found.get("peak"))
        row["rows off by"] = f"{found['rows off by']:.0e}" if "rows off by" in found else "-"
        row["ended by"] = found["end"]
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--systems", nargs="+", default=["ours", "cellrank"])
    parser.add_argument("--limit", type=float, default=240)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fates_scaling")
    parser.add_argument("--run", choices=["ours", "cellrank"])
    parser.add_argument("--cells", type=Path)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.cells)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for n_cells in options.sizes or SIZES:
        path = cells_in(options.folder, n_cells)
        for system in options.systems:
            results[system, n_cells] = measure(system, path, options.limit if system == "cellrank" else None)
            print(system, n_cells, results[system, n_cells], flush=True)
    page = table(rows_of(results))
    print(page)
    if options.sizes is None:
        before, rest = PAGE.read_text(encoding="utf-8").split("<!-- scaling -->\n")
        after = rest.split("<!-- end of scaling -->")[1]
        PAGE.write_text(f"{before}<!-- scaling -->\n\n{page}\n<!-- end of scaling -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
