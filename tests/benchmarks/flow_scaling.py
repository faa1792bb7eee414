"""Seconds of a flow and of trajectories of 10 000 particles, by the number of cells around them.

``python tests/benchmarks/flow_scaling.py``. Cells of all sizes are drawn from the same curves, the field is that of the
first 3000. Nobody ends early: each particle moves as often as every other one. ``--profile`` names the slowest calls.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np
from scaling import cells_in, load, simulate

import cellrank_velot as cv
from cellrank_velot.dynamics import FlowOptions, TrajectoryOptions, compute_trajectories, simulate_flow


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3_000, 10_000, 100_000])
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fates_scaling")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    adata, _ = load(cells_in(options.folder, 3_000))
    adata.obsm.pop("velocity")
    field = cv.OTVelocityKernel(adata).fit_field(show_progress_bar=False).field
    usual = {"n_steps": options.steps, "max_distance": 1e9, "min_speed": 0.0, "save_every": 10}
    flow = FlowOptions(n_particles=options.particles, **usual)
    paths = TrajectoryOptions(n_trajectories=options.particles, **usual)
    for n_cells in options.sizes:
        cells = simulate(n_cells)
        x, times = cells["x"], np.clip(cells["time"], 0, 1)
        starts = np.arange(n_cells)  # trajectories begin at different cells: there are as many as cells at most
        for name, compute, chosen in (("flow", simulate_flow, flow), ("trajectories", compute_trajectories, paths)):
            profile = cProfile.Profile()
            if options.profile:
                profile.enable()
            start = time.perf_counter()
            found = compute(field, x, times, starts, chosen)
            print(f"{n_cells:,} cells, {name} of {len(found):,}: {time.perf_counter() - start:.1f} s", flush=True)
            profile.disable()
            if options.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
