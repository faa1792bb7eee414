"""Analysis of the main job: macrostates, terminal states, fate probabilities and driver genes by CellRank.

Knows CellRank by public names. What the data do not allow is left out with a warning, so that the rest is not lost.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from cellrank.estimators import GPCCA
from cellrank.kernels import ConnectivityKernel
from threadpoolctl import threadpool_limits

from cellrank_velot._utils.memory import physical_memory
from cellrank_velot.job.options import JobOptions, JobResult
from cellrank_velot.kernel import OTVelocityKernel
from cellrank_velot.plotting.fates import fate_probabilities

__all__ = ["analyse"]

logger = logging.getLogger("cellrank_velot")

N_SCHUR = 20
MAX_STATES = 10
STABLE = 0.96  # CellRank's own threshold for a terminal state
LESS_STABLE = 0.9  # enough where the state is late and the choice is between one terminal state and several
LATE = 0.5  # share of cells that are earlier than the typical cell of a terminal state
STATE_CELLS = 30  # CellRank's own number of cells that stand for a state
# Above it, the dense decomposition that CellRank falls back to takes minutes and gigabytes.
MANY_CELLS = 5_000
# Above this share of the memory that the machine has it is not tried.
SHARE_OF_MEMORY = 0.7


def analyse(kernel: OTVelocityKernel, options: JobOptions) -> JobResult:
    """Find macrostates, terminal states, fate probabilities and driver genes.

    A step that the data do not allow is left out with a warning, and the rest of the result is returned.

    Parameters
    ----------
    kernel
        The velocity kernel with its transition matrix.
    options
        Options as :func:`prepare_inputs` returns them.

    Returns
    -------
    What was found; also written to the AnnData of the kernel, as CellRank writes it.

    Raises
    ------
    RuntimeError
        If there are neither macrostates nor terminal states given.

    Examples
    --------
    >>> from cellrank_velot.job import JobOptions, analyse, prepare_inputs
    >>> options = prepare_inputs(adata, JobOptions(terminal_states=("Fate A", "Fate B")))
    >>> result = analyse(vk, options)
    >>> list(result.fates.columns), len(result.drivers)
    (['Fate A', 'Fate B'], 100)
    """
    # On a busy machine two threads have taken much longer than one for the dense linear algebra of a few thousand
    # cells; and one gives the same digits everywhere.
    with threadpool_limits(1 if kernel.adata.n_obs <= MANY_CELLS else None, user_api="blas"):
        estimator = _estimator(_with_neighbors(kernel, options.weight))
        decomposed = _decompose(estimator, options)
        has_macrostates = decomposed and _choose_macrostates(estimator, kernel, options)
        if options.terminal_states:
            _terminal_from_clusters(estimator, kernel, options)
        elif has_macrostates:
            _terminal_from_macrostates(estimator, kernel)
        elif decomposed or not _terminal_from_sinks(estimator, kernel, options):
            raise RuntimeError(
                "No macrostates were found. Name the clusters where the process ends: `--terminal-states`."
            )
        result = JobResult(options=options, kernel=kernel, estimator=estimator, has_macrostates=has_macrostates)
        if not _fate_probabilities(estimator):
            return result
        fates = fate_probabilities(estimator)
        return replace(result, fates=fates, drivers=_drivers(estimator, fates))


def _with_neighbors(kernel: OTVelocityKernel, weight: float) -> Any:
    """Return the kernel combined with the neighbour graph, or alone where some cells have no neighbours."""
    isolated = np.diff(sp.csr_matrix(kernel.connectivities).indptr) == 0
    if isolated.any():
        logger.warning("%d cells have no neighbours: the velocity is used alone, without the graph", isolated.sum())
    if weight == 1 or isolated.any():
        return kernel
    neighbors = ConnectivityKernel(kernel.adata).compute_transition_matrix()
    return weight * kernel + (1 - weight) * neighbors


def _estimator(kernel: Any) -> GPCCA:
    """Return CellRank's estimator, which asks for the type of ``X`` even where there are no genes."""
    adata = kernel.adata
    if adata.X is not None:
        return GPCCA(kernel)
    adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
    try:
        return GPCCA(kernel)
    finally:
        adata.X = None


def _decompose(estimator: GPCCA, options: JobOptions) -> bool:
    """Compute the Schur decomposition that macrostates need, and say whether it was.

    Without SLEPc it is dense. It is left out where that takes long and the terminal states are known, and where there
    is no memory for it: the process would be killed, and all that it had found would be lost.
    """
    n_cells = estimator.adata.n_obs
    method = "krylov" if find_spec("slepc4py") and find_spec("petsc4py") else "brandts"
    if method == "brandts" and n_cells > MANY_CELLS:
        n_bytes = 3 * 8 * n_cells**2
        cost = f"slepc4py and petsc4py are not installed, and without them {n_cells:,} cells take "
        cost += f"{n_bytes / 1e9:.1f} GB and long"
        if options.terminal_states or n_bytes > SHARE_OF_MEMORY * physical_memory():
            logger.warning("No macrostates: %s", cost)
            return False
        logger.warning("Finding macrostates will take a while: %s. `--terminal-states` does without", cost)
    estimator.compute_schur(n_components=min(N_SCHUR, n_cells - 1), method=method, verbose=False)
    return True


def _choose_macrostates(estimator: GPCCA, kernel: OTVelocityKernel, options: JobOptions) -> bool:
    """Compute macrostates and say whether any were found.

    The number asked for, or fewer where CellRank cannot tell so many apart. With none asked for, numbers are tried by
    eigengap, and the first with two stable terminal states is taken, else the first with two that are nearly stable:
    the largest gap often tells no more than that cells differentiate. The best gap of all is the last resort.
    """
    if options.n_states is not None:
        candidates = list(range(min(options.n_states, kernel.adata.n_obs - 1), 1, -1))
    else:
        candidates = _by_eigengap(estimator.eigendecomposition["D"])
    nearly: list[int] = []
    possible: list[int] = []
    for n_states in candidates:
        if not _try_macrostates(estimator, n_states, options.cluster_key):
            continue
        possible.append(n_states)
        if options.n_states is not None or _n_terminal(estimator, kernel, STABLE) > 1:
            break
        if _n_terminal(estimator, kernel, LESS_STABLE) > 1:
            nearly.append(n_states)
    else:
        if not possible:
            logger.warning("CellRank tells no macrostates apart")
            return False
        _try_macrostates(estimator, (nearly or possible)[0], options.cluster_key)
    names = [str(name) for name in estimator.macrostates.cat.categories]
    if options.n_states is not None and len(names) != options.n_states:
        logger.warning("%d macrostates cannot be told apart: using %d", options.n_states, len(names))
    logger.info("Found %d macrostates: %s", len(names), ", ".join(names))
    return True


def _by_eigengap(eigenvalues: Any) -> list[int]:
    """Return numbers of states from 2 on, the one after which the eigenvalues fall most first.

    As CellRank does, a gap counts for less the further the eigenvalue is from one; but a single state is no answer. No
    number comes between two complex eigenvalues that belong together.
    """
    eigenvalues = np.asarray(eigenvalues)
    n_states = np.arange(2, min(MAX_STATES, len(eigenvalues) - 1) + 1)
    last, following = eigenvalues[n_states - 1], eigenvalues[n_states]
    score = (last - following).real - (1 - last.real)
    splits = (last.imag != 0) & np.isclose(last, following.conj())
    return [int(n) for n in n_states[np.argsort(-score, kind="stable")] if not splits[n - 2]]


def _try_macrostates(estimator: GPCCA, n_states: int, cluster_key: str | None) -> bool:
    n_cells = int(np.clip(estimator.adata.n_obs // (2 * n_states), 3, STATE_CELLS))
    try:
        estimator.compute_macrostates(n_states=n_states, n_cells=n_cells, cluster_key=cluster_key)
    # pygpcca 1.0.4 warns of a chain in pieces by a module that it did not import: a NameError.
    except (ValueError, RuntimeError, IndexError, NameError) as error:
        logger.debug("No %d macrostates: %s", n_states, error)
        return False
    return True


def _describe_states(estimator: GPCCA, kernel: OTVelocityKernel) -> pd.DataFrame:
    """Return the stability of each macrostate, and the mean share of cells that are earlier than its cells."""
    states = estimator.macrostates
    rank = pd.Series(kernel.cells.time, index=states.index).rank(pct=True)
    table = pd.DataFrame({"stability": np.diag(estimator.coarse_T)}, index=estimator.coarse_T.index.astype(str))
    table["time"] = rank.groupby(states.astype(str).where(states.notna()).to_numpy()).mean().reindex(table.index)
    return table


def _n_terminal(estimator: GPCCA, kernel: OTVelocityKernel, threshold: float) -> int:
    table = _describe_states(estimator, kernel)
    if not table["stability"].between(-0.05, 1.05).all():
        return 0  # no probabilities: the coarse matrix is the inverse of one that is nearly singular
    return int(((table["stability"] >= threshold) & (table["time"] >= LATE)).sum())


def _terminal_from_macrostates(estimator: GPCCA, kernel: OTVelocityKernel) -> None:
    """Take the macrostates that are stable and late; where they are too few, those less stable, or the latest."""
    table = _describe_states(estimator, kernel)
    late = table["time"] >= LATE
    early = table.index[(table["stability"] >= STABLE) & ~late]
    if len(early):
        logger.info("Stable but early, hence not terminal: %s", ", ".join(early))
    names = list(table.index[late & (table["stability"] >= STABLE)])
    if len(names) < 2 and (late & (table["stability"] >= LESS_STABLE)).sum() > len(names):
        names = list(table.index[late & (table["stability"] >= LESS_STABLE)])
        logger.warning("Fewer than two late states are stable (%.2f): took those above %.2f", STABLE, LESS_STABLE)
    if not names:
        names = list(table.index[late]) if late.any() else [str(table["time"].idxmax())]
        logger.warning(
            "No late macrostate is stable: taking the late ones as terminal. Consider `--terminal-states`",
        )
    size = int(np.clip(estimator.adata.n_obs // (2 * len(table)), 3, STATE_CELLS))
    estimator.set_terminal_states(names, n_cells=size)
    logger.info("Terminal states: %s", ", ".join(f"{name} (stability {table.stability[name]:.2f})" for name in names))


def _terminal_from_clusters(estimator: GPCCA, kernel: OTVelocityKernel, options: JobOptions) -> None:
    """Take the latest cells of each cluster named, at most half of it: its other cells shall have a fate to tell."""
    labels = kernel.adata.obs[options.cluster_key].astype(str).to_numpy()
    cells: dict[str, Sequence[str]] = {}
    for name in options.terminal_states:
        inside = np.flatnonzero(labels == name)
        size = min(STATE_CELLS, -(-inside.size // 2))
        latest = inside[np.argsort(-kernel.cells.time[inside], kind="stable")][:size]
        cells[name] = [str(cell) for cell in kernel.adata.obs_names[latest]]
    estimator.set_terminal_states(cells, cluster_key=options.cluster_key)
    logger.info("Terminal states as asked for: the latest cells of %s", ", ".join(cells))


def _terminal_from_sinks(estimator: GPCCA, kernel: OTVelocityKernel, options: JobOptions) -> bool:
    """Take the sinks of the flow, which need no macrostates, and say whether there are any."""
    states = kernel.suggest_terminal_states(options.cluster_key)
    if not states:
        return False
    estimator.set_terminal_states(states, cluster_key=options.cluster_key)
    logger.warning("Terminal states are the sinks of the flow: %s. `--terminal-states` takes others", ", ".join(states))
    return True


def _fate_probabilities(estimator: GPCCA) -> bool:
    """Compute fate probabilities without PETSc; a solver that does not converge is followed by a direct one."""
    for solver in ("gmres", "direct"):
        try:
            estimator.compute_fate_probabilities(solver=solver, use_petsc=False, show_progress_bar=False)
        except (ValueError, RuntimeError) as error:
            logger.debug("Fate probabilities by %s: %s", solver, error)
        else:
            return True
    logger.warning(
        "No fate probabilities: from some cells no terminal state can be reached. Name more of them "
        "(`--terminal-states`) or give the velocity less weight (`--weight`)"
    )
    return False


def _drivers(estimator: GPCCA, fates: pd.DataFrame) -> pd.DataFrame | None:
    """Correlate genes with lineages, where there are genes and a choice."""
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
