"""Loops along the edges of a million cells in double and in single precision; writes a table of docs/scale.md.

`--cells` takes another number of cells and writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import table
from scaling import cells_in, load

from cellrank_velot.graph.compiled import edge_similarities, neighbor_means

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def fastest(function: Callable[[], Any], n: int = 3) -> tuple[float, Any]:
    """Return the least seconds of some runs, after one that compiles, and the result."""
    result, seconds = function(), []
    for _ in range(n):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=None)
    args = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "cellrank_velot_scaling"
    folder.mkdir(exist_ok=True)
    adata, velocity = load(cells_in(folder, args.cells or 1_000_000))
    graph, n_cells = adata.obsp["connectivities"].tocsr(), adata.n_obs
    edges, rows = (graph.indptr, graph.indices), np.arange(n_cells)
    found: dict[str, dict[str, tuple[float, Any]]] = {"mean of the neighbours": {}, "cosine along the edges": {}}
    for name, dtype in (("double", np.float64), ("single", np.float32)):
        x, v, weights = (values.astype(dtype) for values in (adata.obsm["X_pca"], velocity, graph.data))
        of_means = fastest(lambda x=x, weights=weights: neighbor_means(x, *edges, weights, 0.0, rows))
        of_cosines = fastest(lambda x=x, v=v: edge_similarities(x, v, *edges, False, True, 0, n_cells))
        found["mean of the neighbours"][name], found["cosine along the edges"][name] = of_means, of_cosines
    results = pd.DataFrame(
        {
            "loop": step,
            "double precision, s": f"{by_name['double'][0]:.1f}",
            "single precision, s": f"{by_name['single'][0]:.1f}",
            "largest difference": f"{np.abs(by_name['double'][1] - by_name['single'][1]).max():.0e}",
        }
        for step, by_name in found.items()
    )
    print(results.to_string())
    if args.cells is None:
        head, _, rest = PAGE.read_text().partition("<!-- precision -->")
        tail = rest.partition("<!-- end of precision -->")[2]
        PAGE.write_text(f"{head}<!-- precision -->\n\n{table(results)}\n<!-- end of precision -->{tail}")


if __name__ == "__main__":
    main()
