"""CellRank's GPCCA estimator, step by step, with the choices made from the data.

In goes a kernel with a transition matrix, and the time of the cells. Macrostates are chosen by eigengap and stability,
terminal states are the stable late ones, named clusters or sinks, and fate probabilities fall back to another solver.
Results are written to the AnnData as CellRank writes them. A step that the data do not allow says so in the log.
"""

from cellrank_velot.estimators.gpcca import (
    StateOptions,
    choose_macrostates,
    combine,
    compute_drivers,
    compute_fates,
    compute_schur,
    few_threads,
    make_estimator,
    terminal_from_clusters,
    terminal_from_macrostates,
    terminal_from_sinks,
)

__all__ = [
    "StateOptions",
    "choose_macrostates",
    "combine",
    "compute_drivers",
    "compute_fates",
    "compute_schur",
    "few_threads",
    "make_estimator",
    "terminal_from_clusters",
    "terminal_from_macrostates",
    "terminal_from_sinks",
]
