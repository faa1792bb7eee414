"""Macrostates, fates and driver genes at any size, and the choices made from the data.

In goes a kernel with a transition matrix. :class:`GPCCA` is CellRank's estimator without dense matrices. The steps of
the command line use it: macrostates are chosen by eigengap and stability, terminal states are the stable late ones
or named clusters. Results are written to the AnnData as CellRank writes them.
"""

from cellrank_velot.estimators.estimator import GPCCA
from cellrank_velot.estimators.steps import (
    StateOptions,
    choose_macrostates,
    combine,
    compute_drivers,
    compute_fates,
    compute_schur,
    few_threads,
    terminal_from_clusters,
    terminal_from_macrostates,
)

__all__ = [
    "GPCCA",
    "StateOptions",
    "choose_macrostates",
    "combine",
    "compute_drivers",
    "compute_fates",
    "compute_schur",
    "few_threads",
    "terminal_from_clusters",
    "terminal_from_macrostates",
]
