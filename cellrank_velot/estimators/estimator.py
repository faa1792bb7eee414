"""CellRank's GPCCA at any size. This file alone knows private names of CellRank; ``_HOST_NAMES`` lists them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, Self

import cellrank
import numpy as np
import pandas as pd
import scipy.sparse as sp
from cellrank.estimators import GPCCA as CellRankGPCCA
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice
from cellrank_velot.estimators.drivers import correlate, driver_table
from cellrank_velot.estimators.memberships import CoarseGraining
from cellrank_velot.estimators.schur import ENOUGH, TOLERANCE, Which, eigengap, partial_schur, splits_pair
from cellrank_velot.fates.absorption import Solution, Transient, reaching

__all__ = ["GPCCA"]

logger = logging.getLogger("cellrank_velot")

Method = Literal["auto", "sparse", "krylov", "brandts"]

# Up to as many cells, CellRank's dense decomposition takes less than a second.
FEW_CELLS = 500
# Fates with a larger error are said to be inaccurate.
ACCURATE = 1e-8
# A lineage that a cell reaches with a smaller chance, relative to the largest, is of no account to absorption times.
RARE = 1e-14
_HOST_NAMES = (
    "_compute_fate_probabilities",
    "_create_params",
    "_rec_trans_states",
    "_write_absorption_times",
    "_write_lineage_drivers",
    "_write_schur_decomposition",
)
_HOST_ATTRIBUTES = ("_eigendecomposition", "_gpcca", "_invalid_n_states", "_shadow_adata")


class GPCCA(CellRankGPCCA):
    """CellRank's :class:`~cellrank.estimators.GPCCA` for any kernel, without dense matrices.

    All methods, results and keys in AnnData are those of CellRank. What it computes without a dense matrix and without
    PETSc: Schur vectors, macrostates, fate probabilities, absorption times and driver genes.

    Parameters
    ----------
    object
        A kernel with a transition matrix, or whatever else :class:`cellrank.estimators.GPCCA` takes.
    kwargs
        Passed on to :class:`cellrank.estimators.GPCCA`.

    Raises
    ------
    RuntimeError
        If this version of CellRank lacks what the class builds on.

    Examples
    --------
    >>> from cellrank_velot import estimators
    >>> g = estimators.GPCCA(vk).compute_macrostates(3, cluster_key="clusters")
    >>> g = g.set_terminal_states(vk.suggest_terminal_states("clusters"))
    >>> g.compute_fate_probabilities()
    >>> drivers = g.compute_lineage_drivers()
    """

    def __init__(self, object: Any, **kwargs: Any) -> None:  # CellRank's name
        _check_host(CellRankGPCCA, _HOST_NAMES)
        adata = getattr(object, "adata", object)
        # CellRank asks for the type of `X` even where there are no genes.
        without_x = getattr(adata, "X", np.empty(0)) is None
        if without_x:
            adata.X = sp.csr_matrix(adata.shape, dtype=np.float32)
        try:
            super().__init__(object, **kwargs)
        finally:
            if without_x:
                adata.X = None
        _check_host(self, _HOST_ATTRIBUTES)

    # ------------------------------------------------------------------------------------------------- macrostates
    def compute_schur(
        self,
        n_components: int = 20,
        initial_distribution: NDArray[np.float64] | None = None,
        method: Method = "auto",
        which: Which = "LR",
        alpha: float = 1.0,
        verbose: bool | None = None,
        tolerance: float = TOLERANCE,
    ) -> Self:
        """Compute the leading part of the sorted real Schur decomposition.

        ``"sparse"`` is a block Krylov-Schur method: it needs products with the transition matrix only. The constant
        vector is kept apart from the start, a pair of complex eigenvalues is never split, and the residual is
        computed from the matrix at the end. A chain that mixes slowly takes more products.

        Parameters
        ----------
        n_components
            Number of Schur vectors; one more where the last would be half of a complex pair.
        initial_distribution
            Distribution of cells at the start; even where it is ``None``.
        method
            ``"sparse"``, or CellRank's own: ``"krylov"``, which needs PETSc, or ``"brandts"``, which is dense.
            ``"auto"`` takes the dense one up to 500 cells where it works, and ``"sparse"`` otherwise.
        which
            Whether eigenvalues are sorted by their real part, ``"LR"``, or their magnitude, ``"LM"``.
        alpha
            How much an eigenvalue below one counts against a gap after it.
        verbose
            Passed on to CellRank's own methods.
        tolerance
            Largest residual of a vector of length one.

        Returns
        -------
        The estimator, with ``schur_vectors``, ``schur_matrix`` and ``eigendecomposition``.

        Raises
        ------
        ValueError
            If an option is unknown, or the distribution does not fit.
        RuntimeError
            If the vectors have not converged.
        """
        check_choice("method", method, Method)
        check_choice("which", which, Which)
        own = {"initial_distribution": initial_distribution, "which": which, "alpha": alpha}
        if method in ("krylov", "brandts"):
            super().compute_schur(n_components, method=method, verbose=verbose, **own)
            return self
        n_cells = self.adata.n_obs
        if method == "auto" and max(20, n_components) < n_cells <= FEW_CELLS:
            try:
                super().compute_schur(n_components, method="brandts", verbose=bool(verbose), **own)
            except ValueError as error:  # such as a chain in pieces
                logger.debug("CellRank's dense decomposition failed: %s", error)
            else:
                return self
        matrix = _sparse(self.transition_matrix)
        weights = _distribution(initial_distribution, n_cells)
        found = partial_schur(matrix, max(2, n_components), weights, which, tolerance)
        logger.info(
            "Schur decomposition: %d vectors, residual %.1e, %d products",
            found.n_components,
            found.residual,
            found.n_products,
        )
        if not found.residual <= ENOUGH:
            raise RuntimeError(
                f"{found.n_components} Schur vectors have not converged after {found.n_products:,} products: their "
                f"residual is {found.residual:.1e}. Expected fewer `n_components`."
            )
        if found.residual > 10 * tolerance:
            logger.warning("Schur vectors have a residual of %.1e, more than %.1e", found.residual, tolerance)
        self._gpcca = CoarseGraining(matrix, weights, which, found)
        values = found.eigenvalues
        self._invalid_n_states = np.array([n for n in range(2, len(values)) if splits_pair(values, n)])
        self._write_schur_decomposition(
            {
                "D": values,
                "eigengap": eigengap(values, alpha),
                "params": {"which": which, "k": len(values), "alpha": alpha},
            },
            vectors=self._gpcca._p_X,
            matrix=self._gpcca._p_R,
            params=self._create_params(),
        )
        return self

    # ------------------------------------------------------------------------------------------------------- fates
    def compute_fate_probabilities(
        self, keys: Sequence[str] | None = None, solver: str = "auto", **kwargs: Any
    ) -> None:
        """Compute the probability of each cell to end in each terminal state.

        Linear systems are solved for all lineages at once by GMRES with algebraic multigrid. Rows sum to one, and
        none is negative. A group of cells that the chain all but never leaves is solved for like all others.

        Parameters
        ----------
        keys
            Terminal states to take; all where it is ``None``. Several are joined as ``"Alpha, Beta"``.
        solver
            ``"auto"``, or one of CellRank's: ``"direct"``, ``"gmres"`` and others.
        kwargs
            Passed on to :meth:`cellrank.estimators.GPCCA.compute_fate_probabilities`; with ``"auto"`` only ``tol``
            and ``check_sum_tol`` matter.

        Raises
        ------
        RuntimeError
            If there are no terminal states.
        ValueError
            If from some cells no terminal state can be reached.
        """
        super().compute_fate_probabilities(keys, solver=solver, **kwargs)

    def _compute_fate_probabilities(self, q: Any, s: Any, *args: Any, **kwargs: Any) -> NDArray[np.float64]:
        """Solve for what CellRank has prepared: steps ``q`` between cells, and ``s`` to each lineage."""
        if kwargs.get("solver") != "auto":
            return super()._compute_fate_probabilities(q, s, *args, **kwargs)
        cells, states = kwargs["trans_indices"], kwargs["term_states"]
        steps = np.asarray(s)
        found = _solve(q, steps, steps, kwargs.get("tol", 1.0), self.adata.obs_names[cells])
        names = states.cat.categories
        fates = np.zeros((self.adata.n_obs, len(names)))
        for k, name in enumerate(names):
            fates[np.flatnonzero(states == name), k] = 1
        inside = np.maximum(found.x, 0)
        fates[cells] = inside / inside.sum(axis=1, keepdims=True)
        return fates

    def compute_absorption_times(
        self,
        keys: Sequence[str] | None = None,
        calculate_variance: bool = False,
        solver: str = "auto",
        **kwargs: Any,
    ) -> None:
        """Compute the mean number of steps until a cell ends in each terminal state, among those that end there.

        Parameters
        ----------
        keys
            Terminal states to take; all where it is ``None``.
        calculate_variance
            Whether to compute the variance of the number of steps, too.
        solver
            ``"auto"``, or one of CellRank's.
        kwargs
            Passed on to :meth:`cellrank.estimators.GPCCA.compute_absorption_times`; with ``"auto"`` only ``tol``
            matters.

        Raises
        ------
        RuntimeError
            If there are no terminal states.
        ValueError
            If from some cells no terminal state can be reached.
        """
        if solver != "auto":
            super().compute_absorption_times(keys, calculate_variance, solver=solver, **kwargs)
            return
        data = self._rec_trans_states(keys, ctx="time_to_absorption")
        cells = data.trans_indices
        steps = np.asarray(data.s)
        names = self.adata.obs_names[cells]
        single = steps.shape[1] == 1
        chain = _transient(data.q, steps, names)

        def solve(b: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.maximum(_checked(chain.solve(b, smallest=RARE), names).x, 0)

        chances = np.ones_like(steps) if single else solve(steps)
        times = solve(chances)
        mean = _divided(times, chances)
        table = {}
        if calculate_variance:
            variance = np.maximum(2 * _divided(solve(times), chances) - mean - mean**2, 0)
        for k, (name, ends) in enumerate(data.name_to_ixs.items()):
            table[f"{name}_mean"] = self._spread(mean[:, k], cells, ends, 0.0 if single else np.inf)
            if calculate_variance:
                table[f"{name}_var"] = self._spread(variance[:, k], cells, ends, 0.0 if single else np.nan)
        self._write_absorption_times(
            pd.DataFrame(table, index=self.adata.obs_names), params=self._create_params(remove=["kwargs"])
        )

    def _spread(
        self, values: NDArray[np.float64], cells: NDArray[Any], ends: NDArray[Any], elsewhere: float
    ) -> NDArray[np.float64]:
        """Return values for all cells: zero at the ends of a lineage."""
        result = np.full(self.adata.n_obs, elsewhere)
        result[ends], result[cells] = 0, values
        return result

    # ------------------------------------------------------------------------------------------------------- genes
    def compute_lineage_drivers(
        self,
        lineages: str | Sequence[str] | None = None,
        method: Literal["fisher", "perm_test"] = "fisher",
        cluster_key: str | None = None,
        clusters: str | Sequence[str] | None = None,
        layer: str | None = None,
        use_raw: bool = False,
        confidence_level: float = 0.95,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Compute the correlation of genes with the fate probabilities.

        Fisher's test reads the expression in blocks of cells: sparse, dense or on disk, it is not copied.

        Parameters
        ----------
        lineages
            Lineages to take; all where it is ``None``.
        method
            ``"fisher"``, or ``"perm_test"``, which is CellRank's.
        cluster_key
            Column of ``obs`` with clusters.
        clusters
            Clusters to take; all cells where it is ``None``.
        layer
            Layer with the expression; ``X`` where it is ``None``.
        use_raw
            Whether to take the expression from ``adata.raw``.
        confidence_level
            That of the interval around each correlation.
        kwargs
            Passed on to :meth:`cellrank.estimators.GPCCA.compute_lineage_drivers`, which is then called.

        Returns
        -------
        One row for each gene, and for each lineage its correlation, p- and q-value and interval.

        Raises
        ------
        RuntimeError
            If there are no fate probabilities, or no genes.
        ValueError
            If there is one lineage only.
        KeyError
            If a lineage, a cluster or a layer is missing.
        """
        fates = self.fate_probabilities
        if fates is None:
            raise RuntimeError(
                "Expected fate probabilities, found none. Compute them first: `.compute_fate_probabilities()`."
            )
        names = [str(name) for name in fates.names]
        if len(names) < 2 and "stationary_dist" not in (self.eigendecomposition or {}):
            raise ValueError(
                f"Expected at least two lineages, found {names}: all cells go there, and no gene drives a choice. "
                "Name more terminal states by `.set_terminal_states()`; `vk.suggest_terminal_states()` finds some."
            )
        if self.adata.n_vars == 0 or (self.adata.X is None and layer in (None, "X") and not use_raw):
            raise RuntimeError(
                f"Expected expression in `adata.{'X' if layer in (None, 'X') else 'layers'}`, found no genes."
            )
        if method != "fisher" or kwargs or len(names) < 2:
            return super().compute_lineage_drivers(
                lineages, method, cluster_key, clusters, layer, use_raw, confidence_level, **kwargs
            )
        chosen = names if lineages is None else [lineages] if isinstance(lineages, str) else list(lineages)
        if not chosen:
            raise ValueError("Expected the names of lineages, found none.")
        for name in chosen:
            if name not in names:
                raise KeyError(f"Expected one of the lineages {names}, found `{name}`.")
        rows = None if clusters is None else _cells_of(self.adata, cluster_key, clusters)
        use_raw = use_raw and layer in (None, "X") and self.adata.raw is not None
        if layer not in (None, "X") and layer not in self.adata.layers:
            raise KeyError(f"Expected one of the layers {list(self.adata.layers)}, found `{layer}`.")
        x = self.adata.raw.X if use_raw else self.adata.X if layer in (None, "X") else self.adata.layers[layer]
        genes = self.adata.raw.var_names if use_raw else self.adata.var_names
        y = np.asarray(fates[chosen].X, dtype=np.float64)
        y = y if rows is None else y[rows]
        drivers = driver_table(correlate(x, y, rows), y.shape[0], genes, chosen, confidence_level)
        params = self._create_params(remove=["kwargs"])
        self._write_lineage_drivers(drivers.loc[genes], use_raw=use_raw, params=params)
        return drivers


def _check_host(host: Any, names: Sequence[str]) -> None:
    missing = [name for name in names if not hasattr(host, name)]
    if missing:
        raise RuntimeError(
            f"CellRank {cellrank.__version__} lacks {missing}, which `cellrank_velot.estimators.GPCCA` builds on: it "
            "knows CellRank 2.0.7 to 2.3. Use `cellrank.estimators.GPCCA`, or another version of CellRank."
        )


def _sparse(matrix: Any) -> sp.csr_matrix:
    result = sp.csr_matrix(matrix, dtype=np.float64)
    if max(result.nnz, *result.shape) < np.iinfo(np.int32).max and result.indices.dtype != np.int32:
        result.indices, result.indptr = result.indices.astype(np.int32), result.indptr.astype(np.int32)
    return result


def _distribution(given: Any, n_cells: int) -> NDArray[np.float64] | None:
    """Return a distribution over cells that sums to one, or ``None`` for the even one."""
    if given is None:
        return None
    weights = np.asarray(given, dtype=np.float64).ravel()
    if weights.size != n_cells:
        raise ValueError(f"Expected `initial_distribution` for {n_cells} cells, found {weights.size} values.")
    if not (np.isfinite(weights).all() and weights.min() > 0):
        raise ValueError("Expected `initial_distribution` to be positive, found zeros, negative or missing values.")
    return weights / weights.sum()


def _transient(q: Any, steps: NDArray[np.float64], names: pd.Index) -> Transient:
    """Return the chain up to its ends, from all cells of which these can be reached."""
    chain = _sparse(q)
    leave = steps.sum(axis=1)
    reached = reaching(chain, np.flatnonzero(leave > 0))
    if not reached.all():
        lost = names[~reached]
        raise ValueError(
            f"From {lost.size:,} of {reached.size:,} cells no terminal state can be reached, such as {list(lost[:3])}. "
            "Name a terminal state among them by `.set_terminal_states()`, or combine the kernel with a "
            "`ConnectivityKernel`."
        )
    return Transient(chain, leave)


def _solve(q: Any, steps: NDArray[np.float64], b: NDArray[np.float64], tol: float, names: pd.Index) -> Solution:
    return _checked(_transient(q, steps, names).solve(b, min(tol, 1e-10)), names)


def _checked(found: Solution, names: pd.Index) -> Solution:
    """Say where a solution is less accurate than asked for."""
    logger.debug("Multigrid: %d steps for %d cells, error %.1e", found.n_steps, names.size, found.error)
    if not found.error <= ACCURATE:
        logger.warning(
            "Fate probabilities have an error of up to %.1e after %d steps: some cells hardly ever reach a terminal "
            "state. Name a terminal state among them, or combine the kernel with a `ConnectivityKernel`",
            found.error,
            found.n_steps,
        )
    return found


def _divided(times: NDArray[np.float64], chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return times among those that end in a lineage; infinite where none does."""
    return np.divide(times, chances, out=np.full_like(times, np.inf), where=chances > 0)


def _cells_of(adata: Any, cluster_key: str | None, clusters: str | Sequence[str]) -> NDArray[np.int64]:
    if cluster_key not in adata.obs:
        raise KeyError(
            f"Expected `cluster_key` among the columns {list(adata.obs)} of `adata.obs`, found `{cluster_key}`."
        )
    wanted = [clusters] if isinstance(clusters, str) else list(clusters)
    known = list(adata.obs[cluster_key].unique())
    for name in wanted:
        if name not in known:
            raise KeyError(f"Expected one of the clusters {known}, found `{name}`.")
    return np.flatnonzero(adata.obs[cluster_key].isin(wanted).to_numpy())
