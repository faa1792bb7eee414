"""Steps over the GPCCA estimator: Schur vectors, macrostates, terminal states, fates and driver genes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from cellrank.kernels import ConnectivityKernel
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_integer, check_number
from cellrank_velot.cells import read_clusters
from cellrank_velot.estimators import GPCCA
from cellrank_velot.plotting.fates import fate_probabilities

__all__ = [
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

logger = logging.getLogger("cellrank_velot")

# They warn by a module that they do not import where Python was told what to do with warnings, as by `python -W`.
PYGPCCA = ("pygpcca._gpcca", "pygpcca._sorted_schur")
N_SCHUR = 20
FEWEST_CELLS = 3  # that stand for a state
MAX_STATES = 10
# Above it, linear algebra may use all threads.
MANY_CELLS = 5_000


@dataclass(frozen=True, kw_only=True)
class StateOptions(Options):
    """How macrostates and terminal states are chosen."""

    n_states: int | None = None  # number of macrostates; by eigengap and stability where None
    cluster_key: str | None = None  # column of `obs` with the clusters that name the states
    terminal_states: tuple[str, ...] = ()  # clusters where the process ends; found where empty
    stable: float = 0.96  # stability from which on a late state is terminal: CellRank's own threshold
    less_stable: float = 0.9  # enough where the choice is between one terminal state and several
    late: float = 0.5  # share of all cells that are earlier than the typical cell of a terminal state
    n_cells: int = 30  # cells that stand for a state: CellRank's own number

    def __post_init__(self) -> None:
        if self.n_states is not None:
            check_integer("n_states", self.n_states, low=2)
        for name in ("stable", "less_stable", "late"):
            check_number(name, getattr(self, name), low=0, high=1)
        check_integer("n_cells", self.n_cells, low=1)

    def cells_of(self, n_cells: int, n_states: int) -> int:
        """Return how many cells stand for each of so many states: at most half of all cells."""
        return int(np.clip(n_cells // (2 * n_states), FEWEST_CELLS, self.n_cells))


def few_threads(n_cells: int) -> AbstractContextManager[Any]:
    """Let dense linear algebra use one thread where there are few cells.

    On a busy machine, two threads have taken much longer than one; and one gives the same digits everywhere.
    """
    return threadpool_limits(1 if n_cells <= MANY_CELLS else None, user_api="blas")


def combine(kernel: Any, weight: float) -> Any:
    """Return the kernel combined with the neighbour graph, or alone where some cells have no neighbours."""
    isolated = np.diff(sp.csr_matrix(kernel.connectivities).indptr) == 0
    if isolated.any():
        logger.warning("%d cells have no neighbours: the velocity is used alone, without the graph", isolated.sum())
    if weight == 1 or isolated.any():
        return kernel
    neighbors = ConnectivityKernel(kernel.adata).compute_transition_matrix()
    return weight * kernel + (1 - weight) * neighbors


def compute_schur(estimator: GPCCA) -> bool:
    """Compute the Schur decomposition that macrostates need, and return whether it was computed."""
    for module in PYGPCCA:
        vars(import_module(module)).setdefault("warnings", warnings)
    try:
        estimator.compute_schur(n_components=min(N_SCHUR, estimator.adata.n_obs - 1))
    except RuntimeError as error:  # the chain mixes too slowly
        logger.warning("No macrostates: %s", error)
        return False
    return True


# ---------------------------------------------------------------------------------------------------- macrostates
def choose_macrostates(estimator: GPCCA, time: NDArray[np.float64], options: StateOptions) -> bool:
    """Compute macrostates, and return whether any were found.

    The number asked for, or fewer where CellRank cannot tell so many apart. Without a number, numbers are tried in the
    order of their eigengap. The first with two stable terminal states is taken, else the first with two that are
    nearly stable: the largest gap often says no more than that cells differentiate. The largest gap is the last resort.
    """
    if options.n_states is not None:
        most = min(N_SCHUR, estimator.adata.n_obs // FEWEST_CELLS)  # as many Schur vectors, or cells, there are
        candidates = list(range(max(min(options.n_states, most), 2), 1, -1))
    else:
        candidates = _by_eigengap(estimator.eigendecomposition["D"])
    nearly: list[int] = []
    possible: list[int] = []
    for n_states in candidates:
        if not _try_macrostates(estimator, n_states, options):
            continue
        possible.append(n_states)
        if options.n_states is not None or _n_terminal(estimator, time, options.stable, options.late) > 1:
            break
        if _n_terminal(estimator, time, options.less_stable, options.late) > 1:
            nearly.append(n_states)
    else:
        if not possible:
            logger.warning("CellRank tells no macrostates apart")
            return False
        _try_macrostates(estimator, (nearly or possible)[0], options)
    names = [str(name) for name in estimator.macrostates.cat.categories]
    if options.n_states is not None and len(names) != options.n_states:
        logger.warning("%d macrostates cannot be told apart: using %d", options.n_states, len(names))
    logger.info("Found %d macrostates: %s", len(names), ", ".join(names))
    return True


def _by_eigengap(eigenvalues: Any) -> list[int]:
    """Return numbers of states from 2 on, the one after which the eigenvalues fall most first.

    As in CellRank, a gap counts for less the further the eigenvalue is from one. No number comes between two complex
    eigenvalues that belong together.
    """
    eigenvalues = np.asarray(eigenvalues)
    n_states = np.arange(2, min(MAX_STATES, len(eigenvalues) - 1) + 1)
    last, following = eigenvalues[n_states - 1], eigenvalues[n_states]
    score = (last - following).real - (1 - last.real)
    splits = (last.imag != 0) & np.isclose(last, following.conj())
    return [int(n) for n in n_states[np.argsort(-score, kind="stable")] if not splits[n - 2]]


def _try_macrostates(estimator: GPCCA, n_states: int, options: StateOptions) -> bool:
    n_cells = options.cells_of(estimator.adata.n_obs, n_states)
    try:
        estimator.compute_macrostates(n_states=n_states, n_cells=n_cells, cluster_key=options.cluster_key)
    except (ValueError, RuntimeError, IndexError) as error:
        logger.debug("No %d macrostates: %s", n_states, error)
        return False
    return True


def _describe_states(estimator: GPCCA, time: NDArray[np.float64]) -> pd.DataFrame:
    """Return the stability of each macrostate, and the mean share of cells that are earlier than its cells."""
    states = estimator.macrostates
    rank = pd.Series(time, index=states.index).rank(pct=True)
    table = pd.DataFrame({"stability": np.diag(estimator.coarse_T)}, index=estimator.coarse_T.index.astype(str))
    table["time"] = rank.groupby(states.astype(str).where(states.notna()).to_numpy()).mean().reindex(table.index)
    return table


def _n_terminal(estimator: GPCCA, time: NDArray[np.float64], stable: float, late: float) -> int:
    table = _describe_states(estimator, time)
    if not table["stability"].between(-0.05, 1.05).all():
        return 0  # no probabilities: the coarse matrix is the inverse of one that is nearly singular
    return int(((table["stability"] >= stable) & (table["time"] >= late)).sum())


# ------------------------------------------------------------------------------------------------ terminal states
def terminal_from_macrostates(estimator: GPCCA, time: NDArray[np.float64], options: StateOptions) -> None:
    """Take the macrostates that are stable and late; where they are too few, those less stable, or the latest."""
    table = _describe_states(estimator, time)
    late = table["time"] >= options.late
    stable, less_stable = (late & (table["stability"] >= at) for at in (options.stable, options.less_stable))
    early = table.index[(table["stability"] >= options.stable) & ~late]
    if len(early):
        logger.info("Stable but early, hence not terminal: %s", ", ".join(early))
    names = list(table.index[stable])
    if len(names) < 2 and less_stable.sum() > len(names):
        names = list(table.index[less_stable])
        logger.warning(
            "Fewer than two late states are stable (%.2f): took those above %.2f", options.stable, options.less_stable
        )
    if not names:
        names = list(table.index[late]) if late.any() else [str(table["time"].idxmax())]
        logger.warning("No late macrostate is stable: taking the late ones as terminal. Consider `--terminal-states`")
    estimator.set_terminal_states(names, n_cells=options.cells_of(estimator.adata.n_obs, len(table)))
    logger.info("Terminal states: %s", ", ".join(f"{name} (stability {table.stability[name]:.2f})" for name in names))


def terminal_from_clusters(estimator: GPCCA, time: NDArray[np.float64], options: StateOptions) -> None:
    """Take the latest cells of each cluster named, at most half of it: the other cells shall have a fate to tell."""
    labels = read_clusters(estimator.adata, str(options.cluster_key)).astype(str).to_numpy()
    cells: dict[str, Sequence[str]] = {}
    for name in options.terminal_states:
        inside = np.flatnonzero(labels == name)
        size = min(options.n_cells, -(-inside.size // 2))
        latest = inside[np.argsort(-time[inside], kind="stable")][:size]
        cells[name] = [str(cell) for cell in estimator.adata.obs_names[latest]]
    estimator.set_terminal_states(cells, cluster_key=options.cluster_key)
    logger.info("Terminal states as asked for: the latest cells of %s", ", ".join(cells))


# ------------------------------------------------------------------------------------------------ fates and genes
def compute_fates(estimator: GPCCA) -> pd.DataFrame | None:
    """Return the fate probabilities, cells x lineages, or ``None`` where a cell reaches no terminal state."""
    try:
        estimator.compute_fate_probabilities()
    except (ValueError, RuntimeError) as error:
        logger.debug("No fate probabilities: %s", error)
    else:
        return fate_probabilities(estimator)
    logger.warning(
        "No fate probabilities: from some cells no terminal state can be reached. Name more of them "
        "(`--terminal-states`) or give the velocity less weight (`--weight`)"
    )
    return None


def compute_drivers(estimator: GPCCA, fates: pd.DataFrame) -> pd.DataFrame | None:
    """Return the correlation of genes with lineages, or ``None`` without genes or without a choice of fates."""
    adata = estimator.adata
    if adata.X is None or adata.n_vars == 0:
        logger.info("No genes, hence no driver genes")
        return None
    if fates.shape[1] < 2:
        logger.warning("There is one terminal state only: every cell goes there, and no gene drives a choice")
        return None
    drivers: pd.DataFrame = estimator.compute_lineage_drivers()
    for lineage in fates.columns:
        best = drivers[f"{lineage}_corr"].nlargest(5)
        logger.info("Genes that go with %s: %s", lineage, ", ".join(map(str, best.index)))
    return drivers
