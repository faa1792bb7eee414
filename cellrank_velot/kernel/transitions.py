"""The transition matrix of the kernel: from the velocity that was asked for, with what was asked and found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from cellrank.kernels.utils import Correlation, Cosine, DotProduct, SimilarityABC
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.parallel import check_backend, joblib_backend
from cellrank_velot._utils.validation import check_flag
from cellrank_velot.cells import read_loadings, warn_about_graph
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.storage.pack import fingerprint
from cellrank_velot.transitions import (
    BackwardMode,
    Model,
    ScaleRule,
    Similarity,
    SimilarityFunction,
    TransitionOptions,
    Transitions,
    check_similarity,
    compute_transitions,
    condition_number,
    effective_neighbors,
)

__all__ = ["PARAMS", "TransitionMatrix"]

logger = logging.getLogger("cellrank_velot")

# What `params` may hold, in the order in which it is shown.
PARAMS = (
    "model",
    "similarity",
    "softmax_scale",
    "bwd_mode",
    "smooth",
    "weighted",
    "settle",
    "variance_stabilize",
    "threshold",
    "gene_subset",
    "n_samples",
    "random_state",
)
# Similarities of CellRank that are ours.
OF_CELLRANK: dict[type, str] = {Cosine: "cosine", Correlation: "correlation", DotProduct: "dot_product"}
# Cells that tell how many neighbours a row has in effect: more move a median by little.
REPORT_CELLS = 20_000


@dataclass(frozen=True, kw_only=True)
class MatrixOptions(TransitionOptions):
    """Options of the transition matrix, with those that the kernel alone knows; of genes a digest of their loadings."""

    smooth: bool = True
    settle: bool | str | None = None
    labels: str | None = None  # a digest of the clusters that ends are sought in
    gene_subset: str | None = None
    compute_cond_num: bool = False


class TransitionMatrix(BaseVelocityKernel):
    """The method of the kernel that compares its velocity with the displacement to each neighbour."""

    @all_or_nothing()
    def compute_transition_matrix(
        self,
        similarity: Similarity | SimilarityFunction | SimilarityABC = TransitionOptions.similarity,
        softmax_scale: float | ScaleRule | None = TransitionOptions.softmax_scale,
        backward_mode: BackwardMode = "transpose",
        *,
        smooth: bool = MatrixOptions.smooth,
        weighted: bool = TransitionOptions.weighted,
        settle: bool | str | None = MatrixOptions.settle,
        variance_stabilize: bool = TransitionOptions.variance_stabilize,
        threshold: float | None = TransitionOptions.threshold,
        gene_subset: Sequence[str] | str | None = None,
        model: Model = TransitionOptions.model,
        n_samples: int = TransitionOptions.n_samples,
        random_state: int = TransitionOptions.random_state,
        seed: int | None = None,
        check_connectivity: bool = False,
        compute_cond_num: bool = MatrixOptions.compute_cond_num,
        device: str = "auto",
        n_jobs: int | None = None,
        backend: str | None = None,
        memory_limit: float | str | None = None,
        show_progress_bar: bool = True,
    ) -> Self:
        r"""Compute the transition matrix: compare each cell's velocity with the displacement to each of its neighbours.

        With the similarity :math:`\pi_{ij}` of the velocity of cell i and the displacement to its neighbour j,
        :math:`T_{ij} = w_{ij} \exp(\pi_{ij} / \sigma^2) / \sum_k w_{ik} \exp(\pi_{ik} / \sigma^2)`
        :cite:`bergen:20,lange:22`, where :math:`w_{ij}` is the weight of the edge in the neighbour graph. A cell
        without a velocity follows these weights. Cells at an end of the process stay there. Runs the steps before with
        default parameters where they were not run.

        Parameters
        ----------
        similarity
            ``"cosine"``; ``"correlation"``, the cosine after each vector is centred, for at least 2 dimensions;
            ``"dot_product"``; or a function of velocities and displacements, both of shape ``[n_edges, n_dims]``, that
            returns one finite number per edge, shape ``[n_edges]``; or one of CellRank's, such as
            ``cellrank.kernels.utils.Cosine()``, of which the logits are taken.
        softmax_scale
            :math:`1 / \sigma^2`, above 0, or a rule. Where not given, it is 2 for cosines and correlations with the
            weights of the graph: a neighbour straight ahead then has :math:`e^4 = 55` times the chance of one straight
            behind. Without the weights, or for another similarity, it is ``"median"``: one over the median of
            :math:`|\pi_{ij}|`, as in CellRank. ``"auto"`` leaves half of the neighbours effective in the median cell:
            :math:`(e^{H_i} - 1) / (k_i - 1) = 1/2` with the entropy :math:`H_i` of the row and its :math:`k_i`
            neighbours. It steps forward more often, and makes GPCCA fail more often.
        backward_mode
            How the backward process is made: ``"transpose"`` compares the velocity of the neighbour with the
            displacement from there, ``"negate"`` turns the velocities around. Time is not recomputed. No effect on a
            forward kernel.
        smooth
            Whether to use the velocity of the field; that of transport otherwise.
        weighted
            Whether the weights of the neighbour graph count, so that a distant neighbour is stepped to less often.
            Without them mature cells leave their end over a few weak edges. CellRank's VelocityKernel has none.
        settle
            Whether cells at an end of the process mostly step to other cells of the same end: nine of ten of their
            steps do, by the weights of the graph. The data say where such cells came from, not where they go. The ends
            are those of :meth:`suggest_terminal_states`, from the shape of the data and the clusters of the kernel, if
            it has any; a key in ``adata.obs`` takes the clusters there. Where not given, a forward kernel with a
            pseudotime does. A backward kernel and one of real time points do where it is ``True``, at the cells of
            :attr:`ends`. Fate probabilities may need ``solver="direct"``, because CellRank refuses the negative
            rounding errors of its iterative solver.
        variance_stabilize
            Whether to replace each component :math:`a` of both vectors by :math:`\mathrm{sign}(a) \sqrt{|a|}`.
        threshold
            Probabilities below it are dropped, in ``[0, 1)``; each cell keeps its largest. Nothing is dropped where not
            given.
        gene_subset
            Names of genes, or a boolean column of ``adata.var``: vectors are compared among these genes, through the
            PCA loadings. In the basis where not given.
        model
            ``"deterministic"``, or ``"monte_carlo"`` for the mean of :math:`T_{ij}` over velocities drawn around the
            given one, with normal errors: an uncertain velocity makes a row flatter. The errors are those of
            :meth:`compute_uncertainty`, or with ``smooth=False`` the variance from the couplings. The softmax scale is
            that of the given velocities.
        n_samples
            Number of velocities drawn per cell by ``"monte_carlo"``, best an even number: they come in mirrored pairs.
            A function as similarity, or ``"transpose"``, takes as long as so many deterministic matrices.
        random_state
            Seed of the samples.
        seed
            The same, by the name that CellRank gives it; it takes the place of ``random_state``.
        check_connectivity
            Whether a neighbour graph that is not connected is an error.
        compute_cond_num
            Whether to estimate :attr:`condition_number`: up to 20 000 cells in the 1-norm from a sparse factorisation
            :cite:`higham:00`, above a lower bound.
        device
            Torch device, such as ``"cpu"`` or ``"cuda"``. ``"auto"`` takes a GPU where there is one.
        n_jobs
            Number of jobs on the CPU. ``None`` takes that of joblib's ``parallel_config``, which also chooses between
            threads, processes and a cluster; without one, there are as many jobs as torch has threads. The result is
            the same.
        backend
            Backend of joblib that does the jobs, such as ``"threading"`` or ``"loky"``. That of ``parallel_config``
            where not given. The result is the same.
        memory_limit
            Bytes, or a text such as ``"4 GB"``, that the matrix may take besides what the process holds, the result
            included; and as much for transport, where that is missing.
        show_progress_bar
            Whether to show progress bars, those of missing steps included.

        Returns
        -------
        Self, with :attr:`transition_matrix`, :attr:`logits` and :attr:`params`.

        Raises
        ------
        KeyError
            If ``gene_subset`` is not in ``adata.var``, or the loadings are missing.
        MemoryError
            If ``memory_limit`` is too low for so many edges.
        RuntimeError
            If samples of the field are asked for with real time points, which have no uncertainty.
        TypeError
            If an option is of the wrong type.
        ValueError
            If an option is unknown or out of range, or the graph is not connected and ``check_connectivity`` is set.

        Examples
        --------
        >>> vk.compute_transition_matrix("correlation", softmax_scale=4, threshold=0.01).params
        {'model': 'deterministic', 'similarity': 'correlation', 'softmax_scale': 4.0, 'threshold': 0.01}
        >>> bool(np.allclose(vk.transition_matrix.sum(axis=1), 1))
        True
        """
        similarity, backward_mode, model = _ours(similarity), _plain(backward_mode), _plain(model)
        loadings = None if gene_subset is None else read_loadings(self._adata_of_pca, self.basis, gene_subset)
        options = MatrixOptions(
            similarity=similarity,
            softmax_scale=softmax_scale,
            backward_mode=backward_mode,
            smooth=smooth,
            weighted=weighted,
            settle=settle,
            variance_stabilize=variance_stabilize,
            threshold=threshold,
            gene_subset=None if loadings is None else fingerprint({"loadings": loadings}),
            model=model,
            n_samples=n_samples,
            random_state=random_state if seed is None else seed,
            compute_cond_num=compute_cond_num,
        )
        if not self.backward:
            options = replace(options, backward_mode=None)
        settle = self._settles(settle)
        labels = fingerprint({"labels": self._clusters_of(settle).astype(str)}) if isinstance(settle, str) else None
        options = replace(options, softmax_scale=options.rule, settle=settle, labels=labels)
        if model == "deterministic":  # which draws nothing
            options = replace(options, n_samples=TransitionOptions.n_samples, random_state=0)
        check_similarity(similarity, self.cells.n_dims)
        if model == "monte_carlo" and smooth and self.cells.is_series:
            raise RuntimeError(
                "Expected a pseudotime for `model='monte_carlo'` with the field, found real time points, which have no "
                "`compute_uncertainty`. Pass `smooth=False` to take the variance from the couplings."
            )
        if check_connectivity and self._components is not None:
            warn_about_graph(self.connectivities, strict=True)
        check_backend(backend)
        if options == self._request and self._transition_matrix is self._computed:
            logger.debug("Using cached transition matrix")
            return self
        run = Run(device=device, n_jobs=n_jobs, memory_limit=memory_limit, show_progress_bar=show_progress_bar)
        with joblib_backend(backend):
            velocity = self._velocity_for_transitions(smooth, run)
            result = compute_transitions(
                self.cells.x,
                velocity,
                self.connectivities,
                options,
                ends=self._end_of_cells(options.settle, smooth) if options.settle else None,
                loadings=loadings,
                velocity_std=self._std_for_transitions(smooth, run) if model == "monte_carlo" else None,
                run=run,
            )
        cond = condition_number(result.matrix) if compute_cond_num else None
        self.transition_matrix = result.matrix
        self._computed = self._transition_matrix  # the user may put another one in its place
        self._logits, self._condition_number = result.logits, cond
        # Nothing tells whether two functions compute the same, and not every one can be pickled.
        self._request = None if callable(similarity) else options
        n_genes = None if loadings is None else loadings.shape[1]
        usual = replace(options, settle=None) if settle == self._settles(None) else options
        self._params = _shown(usual, result.softmax_scale, n_genes)
        _report(result, self.connectivities)
        return self

    def _settles(self, settle: bool | str | None) -> bool | str:
        """Return whether cells settle at ends, or the key of the clusters in which these are sought."""
        by_shape = not self.backward and not self.cells.is_series
        if isinstance(settle, str) and not by_shape:
            raise ValueError(
                "Expected `settle` to be `True` or `False` for a backward kernel or real time points, whose ends are "
                f"found without clusters, found {settle!r}."
            )
        if isinstance(settle, str):
            return settle
        if settle is None or check_flag("settle", settle):
            return by_shape and (self.cluster_key or True) if settle is None or by_shape else True
        return False

    def _end_of_cells(self, settle: bool | str, smooth: bool) -> NDArray[Any]:
        """Return the number of the end that each cell lies in, or whether it lies in any."""
        if self.backward or self.cells.is_series:
            return self.ends
        return self._find_ends(settle if isinstance(settle, str) else None, smooth).label

    def _velocity_for_transitions(self, smooth: bool, run: Run) -> NDArray[np.float64]:
        """Return the velocity to use, after the steps that are missing for it."""
        if self.transport is None and not (smooth and self.field is not None):
            self._compute_velocity(run)
        if not smooth:
            return self.raw_velocity
        if self.field is None:
            self.fit_field(device=run.device, show_progress_bar=run.show_progress_bar)
        field: Any = self._needed("field", "fit_field")
        return np.asarray(field(self.cells.x, self.cells.time, device=run.device, n_jobs=run.n_jobs))

    def _std_for_transitions(self, smooth: bool, run: Run) -> NDArray[np.float64]:
        """Return the error of the velocity to use, after the step that is missing for it."""
        if not smooth:
            std = np.sqrt(self._needed("transport", "compute_velocity").variance)
            without = np.isnan(std).all(axis=1)  # regression has an estimate, and no variance, where transport has none
            if without.any() and not without.all():
                std[without] = np.median(std[~without], axis=0)
            return std
        if self._uncertainty is None:
            kernel: Any = self  # of a pseudotime
            kernel.compute_uncertainty(show_progress_bar=run.show_progress_bar)
        return np.asarray(self._needed("uncertainty", "compute_uncertainty").std)


@dataclass(frozen=True)
class _Scheme:
    """A similarity scheme of CellRank as a function of velocities and displacements along edges."""

    scheme: SimilarityABC

    def __call__(self, velocity: NDArray[np.float64], displacement: NDArray[np.float64]) -> NDArray[np.float64]:
        # It may write to what it is given.
        logits: NDArray[np.float64] = self.scheme(velocity.copy(), displacement.copy(), 1.0)[1]
        return logits

    @property
    def __name__(self) -> str:
        return str(self.scheme)


def _ours(similarity: Any) -> Any:
    """Return a similarity of CellRank by our name, or as a function; others as they are."""
    if not isinstance(similarity, SimilarityABC):
        return _plain(similarity)
    return OF_CELLRANK.get(type(similarity)) or _Scheme(similarity)


def _plain(value: Any) -> Any:
    """Return the text of a name that CellRank has as an enumeration."""
    return value.value if isinstance(value, Enum) else value


def _shown(options: MatrixOptions, softmax_scale: float, n_genes: int | None) -> dict[str, Any]:
    """Return what was asked and found as short plain values, which `repr` shows and h5ad holds."""
    similarity = options.similarity
    shown: dict[str, Any] = {
        "model": options.model,
        "similarity": getattr(similarity, "__name__", "callable") if callable(similarity) else similarity,
        "softmax_scale": float(softmax_scale),
    }
    if options.backward_mode is not None:
        shown["bwd_mode"] = options.backward_mode
    values = {**options.to_dict(), "gene_subset": n_genes}
    unusual = {field.name for field in fields(options) if values[field.name] != field.default}
    if options.model == "monte_carlo":
        unusual |= {"n_samples", "random_state"}
    shown.update({name: values[name] for name in PARAMS[4:] if name in unusual})
    return shown


def _report(result: Transitions, graph: sp.csr_matrix) -> None:
    logger.info("Using `softmax_scale=%.4f`", result.softmax_scale)
    if result.n_fallback:
        logger.warning("%d cells have no velocity: their transitions follow the neighbour graph", result.n_fallback)
    if result.n_isolated:
        logger.warning("%d cells have no neighbour: they stay where they are", result.n_isolated)
    matrix = result.matrix
    some = slice(None, None, -(-matrix.shape[0] // REPORT_CELLS))
    neighbors = float(np.median(effective_neighbors(matrix[some])))
    degree = float(np.median(np.diff(graph.indptr)[some]))
    if neighbors > 0.98 * degree > 2:
        logger.warning(
            "Rows are nearly uniform: %.1f effective neighbours of %g. Raise `softmax_scale`", neighbors, degree
        )
    if neighbors < 1.5 < degree:
        logger.warning(
            "Rows are nearly one-hot: %.2f effective neighbours of %g. Lower `softmax_scale`", neighbors, degree
        )
