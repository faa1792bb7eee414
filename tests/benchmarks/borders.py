"""The score across borders on real cells, of every method: the part of docs/accuracy.md that has no known velocity.

`python tests/benchmarks/borders.py` prints that part alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from common import DATA, PANCREAS_EDGES, pancreas, quiet, table
from methods import METHODS, reversed_time

import cellrank_velot as cv
from cellrank_velot import metrics
from cellrank_velot.cells import find_time_key

__all__ = ["across_borders", "report", "sets"]

ABOUT = (
    "**Across borders, on real cells.** Each set is prepared by `pp.prepare` from its known root. The figure is "
    "`metrics.cross_boundary_direction`, mean over the borders of the known tree: half the difference of the cosine "
    "across a border with the time and with the time reversed. In brackets is the plain cosine, which pays for noise: "
    "*no time*, the way to the mean of the neighbours, knows no direction at all."
)
Edges = list[tuple[str, str]]


def across_borders() -> Iterator[dict[str, object]]:
    """Yield the scores of each method on each set, mean over the borders of its known tree."""
    for name, adata, edges in sets():
        x, graph = adata.obsm["X_pca"].astype(float), sp.csr_matrix(adata.obsp["connectivities"], dtype=float)
        time = adata.obs[find_time_key(adata)].to_numpy(dtype=float)
        for method, velocity in METHODS.items():
            both = (velocity(x, graph, t, adata) for t in (time, reversed_time(time)))
            scores = metrics.cross_boundary_direction(x, *both, graph, adata.obs["clusters"], edges)
            yield {"data": name, "cells": adata.n_obs, "method": method, **scores.mean()}


def report(found: pd.DataFrame) -> str:
    """Return the text with its table: each score, and in brackets the plain cosine across borders."""
    columns = ["direction", "forward"]
    overall = found.groupby("method", as_index=False)[columns].mean().assign(data="mean", cells="")
    rows = [
        {"data": data, "cells": cells}
        | {row.method: f"{row.direction:.2f} ({row.forward:.2f})" for row in group.itertuples()}
        for (data, cells), group in pd.concat([found, overall]).groupby(["data", "cells"], sort=False)
    ]
    return f"{ABOUT}\n\n{table(pd.DataFrame(rows)[['data', 'cells', *METHODS]])}"


def sets() -> Iterator[tuple[str, ad.AnnData, Edges]]:
    """Yield real cells whose tree is known, prepared from its root."""
    yield "pancreas_739", pancreas(), PANCREAS_EDGES
    for path in sorted((DATA / "fates").glob("*.h5ad")):
        adata = ad.read_h5ad(path)
        if adata.uns["x_is"] == "counts":  # FPKM, which are no whole numbers
            adata.X = np.log1p(adata.X)
        cv.pp.prepare(adata, root_cluster=adata.uns["root_cluster"])
        yield path.stem, adata, [tuple(edge.split("->")) for edge in adata.uns["edges"]]


if __name__ == "__main__":
    quiet()
    warnings.simplefilter("ignore")
    print(report(pd.DataFrame(across_borders())))
