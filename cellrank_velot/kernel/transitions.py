"""The transition matrix of the kernel: from the velocity that was asked for, with what was asked and found.

Thin calls of :mod:`cellrank_velot.transitions.matrix`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.cells.read import read_loadings, warn_about_graph
from cellrank_velot.field import VelocityField
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.storage import pack as storage
from cellrank_velot.transitions import (
    BackwardMode,
    Model,
    ScaleRule,
    Similarity,
    SimilarityFunction,
    TransitionOptions,
    check_similarity,
    compute_transitions,
    condition_number,
    effective_neighbors,
)

__all__ = ["PARAMS", "TransitionMatrix"]

logger = logging.getLogger("cellrank_velot")

# Options of the transition matrix that are shown where they are not these.
DEFAULTS: dict[str, Any] = {
    "smooth": True,
    "settle": False,
    "variance_stabilize": False,
    "threshold": None,
    "gene_subset": None,
    "model": "deterministic",
    "n_samples": None,
    "random_state": None,
}
# What `params` may hold, in the order in which it is shown.
PARAMS = ("similarity", "softmax_scale", "bwd_mode", *DEFAULTS)
# Cells that tell how many neighbours a row has in effect: more move a median by little.
REPORT_CELLS = 20_000


class TransitionMatrix(Parts):
    """The method of the kernel that compares its velocity with the way to each neighbour."""

    @all_or_nothing()
    def compute_transition_matrix(
        self,
        similarity: Similarity | SimilarityFunction = "cosine",
        softmax_scale: float | ScaleRule | None = None,
        backward_mode: BackwardMode = "transpose",
        *,
        smooth: bool = True,
        settle: bool = False,
        variance_stabilize: bool = False,
        threshold: float | None = None,
        gene_subset: Sequence[str] | str | None = None,
        model: Model = "deterministic",
        n_samples: int = 64,
        random_state: int = 0,
        check_connectivity: bool = False,
        compute_cond_num: bool = False,
        device: str = "auto",
        n_jobs: int | None = None,
        memory_limit: float | str | None = None,
        show_progress_bar: bool = True,
    ) -> Self:
        """Compute the transition matrix; runs the missing steps with default parameters.

        Parameters
        ----------
        similarity
            ``"cosine"``, ``"correlation"`` or ``"dot_product"``, or a function of velocities and displacements, both
            of shape ``[n_edges, n_dims]``, that returns one similarity per edge.
        softmax_scale
            Sharpness of the softmax, or a rule: ``"median"``, taken where not given, is one over the median absolute
            similarity, as in CellRank; ``"auto"`` leaves half of the neighbours effective in the median cell, which
            steps forward more often and makes GPCCA fail more often.
        backward_mode
            How the backward process is made: ``"transpose"`` compares displacements with the velocity of the
            neighbour they come from, ``"negate"`` turns the velocities around. Time is not recomputed.
        smooth
            Whether to use the velocity field; the transport velocity otherwise.
        settle
            Whether cells at an end, see :attr:`ends`, mostly keep among each other: nine of ten of their steps lead to
            neighbours at an end. Where they go cannot be known, only where they came from. Backward likewise, with the
            cells at the beginning. Terminal states are then found as macrostates more often; fate probabilities may
            need ``solver="direct"``, as CellRank refuses the negative rounding errors of its iterative solver.
        variance_stabilize
            Whether to compare the signed square roots of the components.
        threshold
            Drop probabilities below it; each cell keeps its largest. Nothing is dropped where not given.
        gene_subset
            Names of genes, or a boolean column of ``adata.var``, to compare in, through the PCA loadings; in the basis
            where not given.
        model
            ``"deterministic"``, or ``"monte_carlo"`` for the mean over velocities drawn within their error, which makes
            the rows of uncertain cells flatter. The error is that of :meth:`compute_uncertainty`, or with
            ``smooth=False`` the variance from the couplings.
        n_samples
            Velocities drawn per cell by ``"monte_carlo"``, best an even number.
        random_state
            Seed of the samples.
        check_connectivity
            Whether to refuse a neighbour graph that is not connected.
        compute_cond_num
            Whether to estimate :attr:`condition_number`.
        device
            Torch device, or ``"auto"``.
        n_jobs
            Number of jobs on the CPU. ``None`` takes that of joblib's ``parallel_config``, which also chooses between
            threads, processes and a cluster, and outside of one as many threads as torch uses. The result is the same.
        memory_limit
            Bytes, or ``"4 GB"``, that this process may take for the matrix besides what it holds, the result included,
            and as much for transport, where that is missing.
        show_progress_bar
            Whether to show progress bars, those of missing steps included.

        Returns
        -------
        Self, with :attr:`transition_matrix`, :attr:`logits` and :attr:`params`.

        Raises
        ------
        KeyError
            If ``gene_subset`` is not in ``adata.var`` or the loadings are missing.
        ValueError
            If an option is unknown or out of range, or the graph is not connected and that was asked.

        Examples
        --------
        >>> vk.compute_transition_matrix("correlation", softmax_scale=4, threshold=0.01).params
        {'similarity': 'correlation', 'softmax_scale': 4.0, 'threshold': 0.01}
        >>> bool(np.allclose(vk.transition_matrix.sum(axis=1), 1))
        True
        """
        check_similarity(similarity, self.cells.n_dims)
        check_choice("backward_mode", backward_mode, BackwardMode)
        run = Run(device=device, n_jobs=n_jobs, memory_limit=memory_limit, show_progress_bar=show_progress_bar)
        options = TransitionOptions(
            similarity=similarity,
            softmax_scale=softmax_scale,
            backward_mode=backward_mode if self.backward else None,
            variance_stabilize=variance_stabilize,
            threshold=threshold,
            model=model,
            n_samples=n_samples,
            random_state=random_state,
        )
        loadings = None if gene_subset is None else read_loadings(self.adata, self._init_kwargs["basis"], gene_subset)
        if check_connectivity and self._components is not None:
            warn_about_graph(self.connectivities, strict=True)
        request: dict[str, Any] = {
            "similarity": similarity,
            "softmax_scale": softmax_scale or "median",
            "backward_mode": backward_mode if self.backward else None,
            "smooth": smooth,
            "settle": settle,
            "variance_stabilize": variance_stabilize,
            "threshold": threshold,
            "gene_subset": None if loadings is None else storage.fingerprint({"loadings": loadings}),
            "compute_cond_num": compute_cond_num,
            "model": model,
            "n_samples": n_samples if model == "monte_carlo" else None,
            "random_state": random_state if model == "monte_carlo" else None,
        }
        request = storage.plain(request)
        if request == self._request and self._transition_matrix is self._computed:
            logger.debug("Using cached transition matrix")
            return self
        velocity = self._velocity_for_transitions(smooth, device, n_jobs, memory_limit, show_progress_bar)
        std = self._std_for_transitions(smooth, show_progress_bar) if model == "monte_carlo" else None
        result = compute_transitions(
            self.cells.x,
            velocity,
            self.connectivities,
            options,
            ends=self.ends if settle else None,
            loadings=loadings,
            velocity_std=std,
            run=run,
        )
        cond = condition_number(result.matrix) if compute_cond_num else None
        self.transition_matrix = result.matrix
        self._computed = self._transition_matrix  # the user may put another one in its place
        self._logits, self._condition_number = result.logits, cond
        # Nothing tells whether two functions compute the same, and not every one can be pickled.
        self._request = None if callable(similarity) else request
        if loadings is not None:
            request = {**request, "gene_subset": loadings.shape[1]}
        self._params = self._describe(request, result.softmax_scale)
        _report(result.matrix, result.n_fallback, result.n_isolated, self.connectivities, result.softmax_scale)
        return self

    def _velocity_for_transitions(
        self, smooth: bool, device: str, n_jobs: int | None, memory_limit: float | str | None, show_progress_bar: bool
    ) -> NDArray[np.float64]:
        """Return the velocity to use, after the steps that are missing for it."""
        if self.transport is None and not (smooth and self.field is not None):
            self.compute_velocity(
                device=device, n_jobs=n_jobs, memory_limit=memory_limit, show_progress_bar=show_progress_bar
            )
        if not smooth:
            return self.raw_velocity
        if self.field is None:
            self.fit_field(device=device, show_progress_bar=show_progress_bar)
        field: VelocityField = self._needed("field", "fit_field")
        return field(self.cells.x, self.cells.time, device=device, n_jobs=n_jobs)

    def _std_for_transitions(self, smooth: bool, show_progress_bar: bool) -> NDArray[np.float64]:
        """Return the error of the velocity to use, after the step that is missing for it."""
        if not smooth:
            return np.sqrt(self._needed("transport", "compute_velocity").variance)
        if self.uncertainty is None:
            self.compute_uncertainty(show_progress_bar=show_progress_bar)
        return np.asarray(self._needed("uncertainty", "compute_uncertainty").std)

    def _describe(self, request: dict[str, Any], softmax_scale: float) -> dict[str, Any]:
        """Return what was asked and found as short plain values, which `repr` shows and h5ad holds."""
        similarity = request["similarity"]
        params: dict[str, Any] = {
            "similarity": getattr(similarity, "__name__", "callable") if callable(similarity) else similarity,
            "softmax_scale": float(softmax_scale),
        }
        if request["backward_mode"] is not None:
            params["bwd_mode"] = request["backward_mode"]
        params.update({name: request[name] for name, usual in DEFAULTS.items() if request[name] != usual})
        return params


def _report(matrix: sp.csr_matrix, n_fallback: int, n_isolated: int, graph: sp.csr_matrix, scale: float) -> None:
    logger.info("Using `softmax_scale=%.4f`", scale)
    if n_fallback:
        logger.warning("%d cells have no velocity: their transitions follow the neighbour graph", n_fallback)
    if n_isolated:
        logger.warning("%d cells have no neighbour: they stay where they are", n_isolated)
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
