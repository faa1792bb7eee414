"""Optimal-transport velocity for CellRank: a direction for single cells without splicing.

Examples start from here:

>>> import cellrank as cr
>>> import numpy as np
>>> import pandas as pd
>>> from cellrank_velot import OTVelocityKernel, clones, compare_conditions, datasets
>>> from cellrank_velot import direction, dynamics, metrics, pl, pp
>>> adata = datasets.bifurcation(n_cells=300)
>>> vk = OTVelocityKernel(adata).compute_transition_matrix()
>>> vk = vk.compute_uncertainty(n_members=2)
>>> series = datasets.birth_death(n_cells=100)
>>> sk = OTVelocityKernel(series, time_kind="experimental").fit_field(n_steps=300)
>>> sk = sk.compute_transition_matrix()
>>> barcoded = datasets.barcoded_lineages(n_cells=400)
"""

import sys
from importlib.metadata import PackageNotFoundError, version

from cellrank_velot import clones, datasets, direction, dynamics, estimators, metrics
from cellrank_velot import plotting as pl
from cellrank_velot import preprocessing as pp
from cellrank_velot.kernel import OTTimeSeriesKernel, OTVelocityKernel, compare_conditions
from cellrank_velot.search import gridsearch
from cellrank_velot.storage import read_trajectories, write_h5ad, write_zarr

__all__ = [
    "OTTimeSeriesKernel",
    "OTVelocityKernel",
    "__version__",
    "clones",
    "compare_conditions",
    "datasets",
    "direction",
    "dynamics",
    "estimators",
    "gridsearch",
    "metrics",
    "pl",
    "pp",
    "read_trajectories",
    "write_h5ad",
    "write_zarr",
]

# So that `from cellrank_velot.pl import velocity_stream` works, as it does with scanpy.
sys.modules |= {f"{__name__}.pl": pl, f"{__name__}.pp": pp}

try:
    __version__ = version("cellrank_velot")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"
