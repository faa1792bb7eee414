"""What the benchmarks share: the data and a fair clock."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import cellrank_velot as cv

DATA = Path(os.environ.get("CELLRANK_VELOT_DATA", Path(__file__).parents[3] / "shared" / "data"))
PANCREAS_EDGES = [
    ("Ductal", "Ngn3 low EP"),
    ("Ngn3 low EP", "Ngn3 high EP"),
    ("Ngn3 high EP", "Pre-endocrine"),
    *(("Pre-endocrine", fate) for fate in ("Alpha", "Beta", "Delta", "Epsilon")),
]


def quiet() -> None:
    """Keep warnings about convergence out of the tables."""
    logging.getLogger("cellrank_velot").setLevel(logging.ERROR)


def pancreas() -> ad.AnnData:
    """Return the pancreas, prepared with the root among the ductal cells."""
    adata = ad.read_h5ad(DATA / "pancreas_739.h5ad")
    cv.pp.prepare(adata, root_cluster="Ductal")
    adata.obs["pseudotime"] = adata.obs["dpt_pseudotime"]
    return adata


def bifurcation() -> ad.AnnData:
    """Return the shared bifurcation."""
    return ad.read_h5ad(DATA / "bifurcation_known_velocity.h5ad")


def table(frame: pd.DataFrame) -> str:
    """Return a frame as a Markdown table."""
    head = "| " + " | ".join(map(str, frame.columns)) + " |\n|" + "---|" * frame.shape[1] + "\n"
    return head + "".join("| " + " | ".join(map(str, row)) + " |\n" for row in frame.itertuples(index=False))


def alternate(a: Callable[[], Any], b: Callable[[], Any], n: int = 5) -> tuple[float, float, float]:
    """Return median seconds of both and the median ratio b / a, run in turn after one warm-up of each."""
    seconds = np.empty((n, 2))
    a(), b()
    for row in seconds:
        for column, function in enumerate((a, b)):
            start = time.perf_counter()
            function()
            row[column] = time.perf_counter() - start
    return *np.median(seconds, axis=0), float(np.median(seconds[:, 1] / seconds[:, 0]))
