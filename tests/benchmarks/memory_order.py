"""From the graph to the matrix with the cells as they come, and in an order in which neighbours lie close in memory.

Prints processor seconds of both, run in turn on the same simulated cells in random order, and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from common import quiet
from scaling import cells_in, load

import cellrank_velot as cv
from cellrank_velot.graph import order


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fates_scaling")
    options = parser.parse_args()
    quiet()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = cells_in(options.folder, options.cells)
    cv.OTVelocityKernel(cv.datasets.bifurcation(n_cells=600)).compute_transition_matrix(show_progress_bar=False)
    seconds = {}
    for name, worth_from in (("as they come", options.cells + 1), ("in order", 0)):
        order.WORTH_FROM = worth_from
        adata, _ = load(path)
        adata.obsm.pop("velocity")
        start = time.process_time()
        cv.OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False)
        seconds[name] = time.process_time() - start
        print(f"{options.cells:,} cells {name}: {seconds[name]:.1f} processor seconds", flush=True)
    print(f"ratio: {seconds['in order'] / seconds['as they come']:.2f}")


if __name__ == "__main__":
    main()
