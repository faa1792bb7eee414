"""The kernel itself: reads an AnnData, calls a stage, keeps its result and clears what came after it.

It knows CellRank by public names alone; no stage knows it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from cellrank.kernels import BidirectionalKernel
from cellrank.kernels.mixins import ConnectivityMixin
from numpy.typing import NDArray

from cellrank_velot import storage
from cellrank_velot._device import resolve_device
from cellrank_velot._validation import check_choice, check_integer, check_known
from cellrank_velot.cells import (
    CellStates,
    TimeKind,
    find_basis,
    find_time_key,
    read_cells,
    read_loadings,
    readable,
    warn_about_graph,
)
from cellrank_velot.couplings import SnapshotCouplings, check_coupling_options
from cellrank_velot.field import VelocityField, check_field_options, check_matching_options, fit_field
from cellrank_velot.kernel._options import names_of, options_of
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.kernel.diagnostics import Diagnostics
from cellrank_velot.kernel.dynamics import Dynamics
from cellrank_velot.kernel.landscape import Landscapes
from cellrank_velot.kernel.perturbation import Perturbations
from cellrank_velot.kernel.plots import Plots
from cellrank_velot.kernel.regulation import Regulation
from cellrank_velot.kernel.timeseries import TimeSeries
from cellrank_velot.snapshots import build_snapshots
from cellrank_velot.transitions import (
    BackwardMode,
    Model,
    ScaleRule,
    Similarity,
    SimilarityFunction,
    check_similarity,
    check_transition_options,
    compute_transitions,
    condition_number,
    effective_neighbors,
)
from cellrank_velot.uncertainty import Uncertainty, compute_uncertainty
from cellrank_velot.velocity import TransportVelocity, check_velocity_options, compute_velocity, end_cells
from cellrank_velot.windows import Tail, Windows, build_windows

__all__ = ["OTVelocityKernel"]

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
# Methods whose parameters `settings` keeps.
STEPS = {
    "windows": "compute_windows",
    "velocity": "compute_velocity",
    "field": "fit_field",
    "uncertainty": "compute_uncertainty",
}
# Cells that tell how many neighbours a row has in effect: more move a median by little.
REPORT_CELLS = 20_000
# What `params` may hold, in the order in which it is shown.
PARAMS = ("similarity", "softmax_scale", "bwd_mode", *DEFAULTS)


class OTVelocityKernel(
    Diagnostics,
    Dynamics,
    Perturbations,
    TimeSeries,
    Landscapes,
    Regulation,
    Plots,
    ConnectivityMixin,
    BidirectionalKernel,
):
    """Kernel which computes a transition matrix based on optimal-transport velocity.

    Cells are grouped into windows of time, each window is transported to a later one, the displacements are smoothed
    into a velocity field, and the field is compared with the displacement to each neighbour. No spliced and unspliced
    counts are needed. The direction comes from the time given: the kernel cannot find it.

    Parameters
    ----------
    adata
        Annotated data with a time in ``obs``, positions in ``obsm`` and a neighbour graph in ``obsp``. A backed one, or
        positions as a dask array, are read in blocks; of a lazy one :attr:`adata` is a copy with ``obs`` and the graph
        in memory.
    backward
        Direction of the process.
    time_key
        Key in ``adata.obs`` of a pseudotime. The first of ``pseudotime``, ``dpt_pseudotime``,
        ``palantir_pseudotime``, ``latent_time``, ``velocity_pseudotime`` and ``ct_pseudotime`` where not given.
    basis
        Key in ``adata.obsm`` of the positions, with or without ``X_``: a PCA, a batch-corrected or latent embedding.
    cluster_key
        Key in ``adata.obs`` of clusters that windows are made in, instead of KMeans in the basis. They overlap all the
        same, unless :meth:`compute_windows` is told ``overlap_clusters=1``.
    conn_key
        Key in ``adata.obsp`` of the neighbour graph.
    check_connectivity
        Whether a graph that is not connected is an error; it is a warning otherwise.
    time_kind
        ``"pseudotime"``, or ``"experimental"`` where ``time_key`` holds real time points: cells are then transported
        from each to the next, and may grow in number and die. ``time_key`` is ``day``, ``time``, ``hours`` or ``age``
        where not given.

    Raises
    ------
    KeyError
        If time, basis, clusters or neighbours are missing.
    TypeError
        If one is not numeric.
    ValueError
        If one has NaN or infinite values, the time is constant, or ``check_connectivity`` finds the graph in pieces,
        or experimental time changes from cell to cell.

    Examples
    --------
    >>> import cellrank_velot
    >>> adata = cellrank_velot.datasets.bifurcation(n_cells=300)
    >>> vk = cellrank_velot.OTVelocityKernel(adata).compute_transition_matrix(show_progress_bar=False)
    >>> vk.transition_matrix.shape
    (300, 300)
    """

    def __init__(
        self,
        adata: AnnData,
        backward: bool = False,
        time_key: str | None = None,
        basis: str = "X_pca",
        cluster_key: str | None = None,
        conn_key: str = "connectivities",
        check_connectivity: bool = False,
        time_kind: TimeKind = "pseudotime",
    ) -> None:
        if not isinstance(adata, AnnData):
            raise TypeError(f"Expected `adata` to be an `AnnData`, found `{type(adata).__name__}`.")
        adata = readable(adata, conn_key)
        self._windows: Windows | None = None
        self._transport: TransportVelocity | None = None
        self._couplings: SnapshotCouplings | None = None
        self._field: VelocityField | None = None
        self._current: VelocityField | None = None
        self._uncertainty: Uncertainty | None = None
        self._logits: sp.csr_matrix | None = None
        self._condition_number: float | None = None
        self._request: dict[str, Any] | None = None
        self._computed: sp.csr_matrix | None = None
        self._settings: dict[str, dict[str, Any]] = {}
        # The keys found are what is stored: a column added later must not change what a saved kernel reads.
        super().__init__(
            adata,
            backward=backward,
            time_key=find_time_key(adata, time_key, time_kind),
            basis=find_basis(adata, basis),
            cluster_key=cluster_key,
            conn_key=conn_key,
            check_connectivity=check_connectivity,
            time_kind=time_kind,
        )

    def _read_from_adata(
        self,
        time_key: str,
        basis: str,
        cluster_key: str | None = None,
        conn_key: str = "connectivities",
        check_connectivity: bool = False,
        time_kind: TimeKind = "pseudotime",
    ) -> None:
        check_known("adata.obsp", conn_key, self.adata.obsp.keys(), "Compute it with `scanpy.pp.neighbors(adata)`.")
        self._cells = read_cells(
            self.adata,
            time_key=time_key,
            basis=basis,
            cluster_key=cluster_key,
            conn_key=conn_key,
            time_kind=time_kind,
        )
        super()._read_from_adata(conn_key=conn_key)
        self._components = warn_about_graph(self.connectivities, strict=check_connectivity)

    # ------------------------------------------------------------------------------------------------- stages
    @property
    def cells(self) -> CellStates:
        """Positions, time and clusters that the kernel has read."""
        return self._cells

    @property
    def windows(self) -> Windows | None:
        """Windows of cells and their pairs; ``None`` before :meth:`compute_windows`."""
        return self._windows

    @property
    def transport(self) -> TransportVelocity | None:
        """Velocity of each cell from transport; ``None`` before :meth:`compute_velocity`."""
        return self._transport

    @property
    def field(self) -> VelocityField | None:
        """The velocity field; ``None`` before :meth:`fit_field`."""
        return self._field

    @property
    def basis(self) -> str:
        """Key in ``adata.obsm`` of the positions."""
        return str(self._init_kwargs["basis"])

    @property
    def cluster_key(self) -> str | None:
        """Key in ``adata.obs`` of the clusters that windows are made in, where one was given."""
        key = self._init_kwargs["cluster_key"]
        return None if key is None else str(key)

    @property
    def uncertainty(self) -> Uncertainty | None:
        """How far the velocity of each cell may be off; ``None`` before :meth:`compute_uncertainty`."""
        return self._uncertainty

    @property
    def velocity_uncertainty(self) -> NDArray[np.float64]:
        """Angle in degrees within which the true direction lies in two of three cells, shape ``[n_cells]``."""
        return self._needed("uncertainty", "compute_uncertainty").angle()

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Parameters of each step that was run, by step; ``None`` stands for what it means there."""
        return {step: dict(values) for step, values in self._settings.items()}

    @property
    def logits(self) -> sp.csr_matrix | None:
        """Similarity of velocity and displacement along each edge, shape ``[n_cells, n_cells]``."""
        return self._logits

    @property
    def condition_number(self) -> float | None:
        """Estimated condition number, if :meth:`compute_transition_matrix` was asked for it."""
        return self._condition_number

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Confidence in each cell's transport velocity, in ``[0, 1]``, shape ``[n_cells]``."""
        return self._needed("transport", "compute_velocity").confidence

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Cells at an end of the process, which have no later window, shape ``[n_cells]``; backward at its beginning.

        See :func:`cellrank_velot.velocity.end_cells`.
        """
        transport = self._needed("transport", "compute_velocity")
        windows = self._needed("windows", "compute_windows")
        return end_cells(transport, windows, self.cells.time, self.connectivities, self.backward)

    @property
    def raw_velocity(self) -> NDArray[np.float64]:
        """Transport velocity in basis per time, NaN where there is none, shape ``[n_cells, n_dims]``."""
        return self._needed("transport", "compute_velocity").velocity

    @property
    def velocity(self) -> NDArray[np.float64]:
        """Velocity of the field at the cells, in basis per time, shape ``[n_cells, n_dims]``."""
        return self._needed("field", "fit_field")(self.cells.x, self.cells.time)

    @all_or_nothing()
    def compute_windows(
        self,
        n_clusters: int | None = None,
        window_size: int | None = None,
        overlap: float = 0.5,
        *,
        min_window_size: int = 20,
        time_lag: float | Literal["auto"] | None = "auto",
        overlap_clusters: int | None = None,
        tail: Tail = "force",
        tail_threshold: int = 10,
        batch_size: int | None = None,
        random_state: int = 0,
    ) -> Self:
        """Group the cells into windows of time within spatial clusters, and pair the windows.

        Parameters are those of :func:`cellrank_velot.windows.build_windows`. With experimental time, windows are the
        time points, in batches: ``batch_size`` is that of :func:`cellrank_velot.snapshots.build_snapshots`, and the
        other parameters but ``random_state`` are not used.

        Returns
        -------
        Self, with :attr:`windows`. What was computed from earlier windows is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range, there are too few cells, or both ``n_clusters`` and a ``cluster_key``.
        """
        settings = self._settings_for("windows", locals())
        if self.cells.is_series:
            return self._keep_windows(build_snapshots(self.cells.time, **settings), settings)
        if self.cells.labels is not None and n_clusters is not None:
            raise ValueError("Expected `n_clusters` or the `cluster_key` of the kernel, found both.")
        windows = build_windows(
            self.cells.x,
            self.cells.time,
            graph=self.connectivities,
            labels=self.cells.labels,
            n_clusters=n_clusters,
            window_size=window_size,
            overlap=overlap,
            min_window_size=min_window_size,
            time_lag=time_lag,
            overlap_clusters=overlap_clusters,
            components=self._components,
            tail=tail,
            tail_threshold=tail_threshold,
            random_state=random_state,
        )
        return self._keep_windows(windows, settings)

    def _keep_windows(self, windows: Windows, settings: dict[str, Any]) -> Self:
        self._clear("_windows", "_transport", "_couplings", "_field", "_uncertainty")
        self._windows = windows
        self._settings = {"windows": settings}
        logger.info("Built %d pairs of %d windows", windows.n_pairs, windows.n_windows)
        return self

    @all_or_nothing()
    def compute_velocity(
        self,
        epsilon: float = 0.05,
        lambda_time: float = 1.0,
        lambda_knn: float = 0.0,
        *,
        reach: float | None = 2.0,
        relaxation: float | Literal["auto"] = "auto",
        tau: float | Sequence[float] | None = None,
        growth_key: str | None = None,
        mass: Mapping[float, float] | Literal["counts"] | None = None,
        n_passes: int | None = None,
        n_draws: int | None = None,
        tol: float = 1e-6,
        max_iter: int = 500,
        random_state: int = 0,
        device: str = "auto",
        n_jobs: int | None = None,
        memory_limit: float | str | None = None,
        show_progress_bar: bool = True,
    ) -> Self:
        """Compute the velocity of each cell by optimal transport between its windows.

        Parameters are those of :func:`cellrank_velot.velocity.compute_velocity`, with experimental time those of
        :func:`cellrank_velot.couplings.couple_snapshots`: ``epsilon``, ``tau``, ``n_passes``, ``n_draws`` and
        ``random_state``, and besides ``growth_key``, a key in ``adata.obs`` of growth rates that are expected, such as
        :func:`cellrank_velot.pp.score_growth` writes, and ``mass``, the size of the population at each time point:
        ``"counts"`` where that is the number of cells, or a dictionary; ``n_jobs`` and ``memory_limit`` are not used.
        Makes windows with the default parameters where there are none.

        Returns
        -------
        Self, with :attr:`transport`. What was computed from an earlier velocity is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range.
        """
        settings = self._settings_for("velocity", locals())
        resolve_device(device)
        if self.cells.is_series:
            return self._couple_time_points(settings, device, show_progress_bar)
        check_velocity_options(epsilon, lambda_time, lambda_knn, reach, relaxation, tol, max_iter)
        if self._windows is None:
            self.compute_windows()
        transport = compute_velocity(
            self.cells.x,
            self.cells.time,
            self._needed("windows", "compute_windows"),
            self.connectivities,
            epsilon=epsilon,
            lambda_time=lambda_time,
            lambda_knn=lambda_knn,
            reach=reach,
            relaxation=relaxation,
            tol=tol,
            max_iter=max_iter,
            device=device,
            n_jobs=n_jobs,
            memory_limit=memory_limit,
            show_progress_bar=show_progress_bar,
        )
        return self._keep_transport(transport, None, settings)

    def _couple_time_points(self, settings: dict[str, Any], device: str, show_progress_bar: bool) -> Self:
        options = {name: value for name, value in settings.items() if name not in ("growth_key", "mass")}
        check_coupling_options(**{name: value for name, value in options.items() if name != "random_state"})
        check_integer("random_state", options["random_state"])
        prior, mass = self._prior_growth(settings["growth_key"]), self._mass(settings["mass"])
        if self._windows is None:
            self.compute_windows()
        couplings, transport = self._couple(prior, mass, device=device, show_progress_bar=show_progress_bar, **options)
        if isinstance(settings["mass"], Mapping):
            settings["mass"] = "given"
        if not isinstance(settings["tau"], float | int):
            settings["tau"] = np.asarray(settings["tau"], dtype=np.float64)
        return self._keep_transport(transport, couplings, settings)

    def _keep_transport(
        self, transport: TransportVelocity, couplings: SnapshotCouplings | None, settings: dict[str, Any]
    ) -> Self:
        self._clear("_transport", "_couplings", "_field", "_uncertainty")
        self._transport, self._couplings = transport, couplings
        self._settings["velocity"] = settings
        self._settings = {step: self._settings[step] for step in ("windows", "velocity") if step in self._settings}
        return self

    @all_or_nothing()
    def fit_field(
        self,
        hidden: Sequence[int] = (128, 128),
        *,
        use_time: bool = True,
        lambda_smooth: float = 1.0,
        lambda_curl: float = 0.0,
        lambda_divergence: float = 0.0,
        n_steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        held_out: float = 0.1,
        patience: int = 10,
        diffusion: float | Literal["auto"] | None = None,
        random_state: int = 0,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> Self:
        """Fit a smooth velocity field, which has a velocity for every cell and everywhere between.

        Parameters are those of :func:`cellrank_velot.field.fit_field`. Runs the steps before with default parameters
        where they were not run. With experimental time, the field has growth and score besides, and parameters are
        those of :func:`cellrank_velot.field.fit_process`: ``hidden``, ``diffusion`` (``"auto"`` where not given),
        ``n_steps``, ``batch_size``, ``learning_rate`` and ``random_state``.

        Returns
        -------
        Self, with :attr:`field`. A transition matrix from an earlier field is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range.
        """
        settings = self._settings_for("field", locals())
        resolve_device(device)
        if self.cells.is_series:
            return self._fit_process(settings, device, show_progress_bar)
        n_steps = settings["n_steps"] = 300 if n_steps is None else n_steps
        batch_size = settings["batch_size"] = 256 if batch_size is None else batch_size
        learning_rate = settings["learning_rate"] = 2e-3 if learning_rate is None else learning_rate
        lambdas = (lambda_smooth, lambda_curl, lambda_divergence)
        check_field_options(hidden, lambdas, n_steps, batch_size, learning_rate, held_out, patience)
        if self._transport is None:
            self.compute_velocity(device=device, show_progress_bar=show_progress_bar)
        transport = self._needed("transport", "compute_velocity")
        field = fit_field(
            self.cells.x,
            self.cells.time,
            transport.velocity,
            transport.confidence,
            self.connectivities,
            transport.relaxation,
            hidden=hidden,
            use_time=use_time,
            lambda_smooth=lambda_smooth,
            lambda_curl=lambda_curl,
            lambda_divergence=lambda_divergence,
            n_steps=n_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            held_out=held_out,
            patience=patience,
            random_state=random_state,
            device=device,
            show_progress_bar=show_progress_bar,
        )
        return self._keep_field(field, settings)

    def _fit_process(self, settings: dict[str, Any], device: str, show_progress_bar: bool) -> Self:
        check_matching_options(**settings)
        if self._couplings is None:
            self.compute_velocity(device=device, show_progress_bar=show_progress_bar)
        field = self._match(**settings, device=device, show_progress_bar=show_progress_bar)
        return self._keep_field(field, settings)

    def _keep_field(self, field: VelocityField, settings: dict[str, Any]) -> Self:
        if self._params.get("smooth") is False:
            # The matrix was made with the velocity of transport, which stays.
            self._current = self._uncertainty = None
        else:
            self._clear("_field", "_uncertainty")
        self._field = field
        self._settings["field"] = {**settings, "hidden": np.asarray(settings["hidden"], dtype=np.int64)}
        self._settings.pop("uncertainty", None)
        return self

    @all_or_nothing()
    def compute_uncertainty(
        self, n_members: int = 4, *, random_state: int = 0, n_jobs: int | None = None, show_progress_bar: bool = True
    ) -> Self:
        """Estimate how far the velocity of each cell may be off, from fields that are fitted to halves of the cells.

        Parameters are those of :func:`cellrank_velot.uncertainty.compute_uncertainty`. Each member goes through the
        steps with the parameters that they were run with; runs them with default parameters where they were not.

        Returns
        -------
        Self, with :attr:`uncertainty`. The transition matrix stays.

        Raises
        ------
        ValueError
            If a parameter is out of range or there are too few cells.
        """
        settings = _settings(locals())
        if self.cells.is_series:
            raise RuntimeError(
                "Expected pseudotime for the uncertainty from halves of the cells, found real time points."
            )
        if self._field is None:
            self.fit_field(show_progress_bar=show_progress_bar)
        options = {
            step: {name: value for name, value in self._settings.get(step, {}).items() if name != "random_state"}
            for step in ("windows", "velocity", "field")
        }
        self._uncertainty = compute_uncertainty(
            self.cells.x,
            self.cells.time,
            self.connectivities,
            self._needed("windows", "compute_windows"),
            self._needed("field", "fit_field"),
            labels=self.cells.labels,
            components=self._components,
            options=options,
            n_members=n_members,
            random_state=random_state,
            n_jobs=n_jobs,
            show_progress_bar=show_progress_bar,
        )
        self._settings["uncertainty"] = settings
        return self

    @all_or_nothing()
    def current_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> VelocityField:
        """Return the field without the relaxation to the data: the part that changes its sign when time is reversed.

        Fitted at the first call, with the parameters of :meth:`fit_field`, and not saved. It is needed to go back in
        time, see :func:`cellrank_velot.dynamics.compute_trajectories`.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.
        """
        field, transport = self._needed("field", "fit_field"), self._needed("transport", "compute_velocity")
        if not transport.relaxation.any():
            return field
        if "field" not in self._settings:
            raise RuntimeError("The parameters of the field were not saved: call `.fit_field()` again.")
        if self._current is None:
            self._current = fit_field(
                self.cells.x,
                self.cells.time,
                transport.velocity - transport.relaxation,
                transport.confidence,
                self.connectivities,
                device=device,
                show_progress_bar=show_progress_bar,
                **{name: value for name, value in self._settings["field"].items() if value is not None},
            )
        return self._current

    def query_velocity(
        self, positions: NDArray[np.float64], time: NDArray[np.float64] | float | None = None, *, n_neighbors: int = 15
    ) -> NDArray[np.float64]:
        """Ask the field for the velocity at any position.

        Parameters
        ----------
        positions
            Positions in the basis, shape ``[n_points, n_dims]``.
        time
            Time of each position, pseudotime in ``[0, 1]``, shape ``[n_points]``, or one for all; where not given,
            the mean time of the nearest cells.
        n_neighbors
            Number of nearest cells that tell the time.

        Returns
        -------
        Velocities of shape ``[n_points, n_dims]``, in basis per unit of time.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.
        ValueError
            If a shape does not fit or a value is not finite.
        """
        field = self._needed("field", "fit_field")
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 2 or positions.shape[1] != field.n_dims:
            raise ValueError(f"Expected `positions` of shape `[n_points, {field.n_dims}]`, found `{positions.shape}`.")
        check_integer("n_neighbors", n_neighbors, low=1)
        if not np.isfinite(positions).all():
            raise ValueError("Expected finite `positions` and `time`, found NaN or infinite values.")
        time = np.asarray(self.cells.time_at(positions, n_neighbors) if time is None else time, dtype=np.float64)
        if time.shape not in ((), (positions.shape[0],)):
            raise ValueError(f"Expected `time` of shape `[{positions.shape[0]}]`, found `{time.shape}`.")
        if not np.isfinite(time).all():
            raise ValueError("Expected finite `positions` and `time`, found NaN or infinite values.")
        return field(positions, time)

    # -------------------------------------------------------------------------------------- transition matrix
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
            Drop probabilities below it; each cell keeps its largest.
        gene_subset
            Names of genes, or a boolean column of ``adata.var``, to compare in, through the PCA loadings.
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
        """
        check_similarity(similarity, self.cells.n_dims)
        check_choice("backward_mode", backward_mode, BackwardMode)
        check_transition_options(softmax_scale, backward_mode, threshold, model, n_samples, random_state)
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
            similarity=similarity,
            softmax_scale=softmax_scale,
            variance_stabilize=variance_stabilize,
            backward_mode=backward_mode if self.backward else None,
            threshold=threshold,
            ends=self.ends if settle else None,
            loadings=loadings,
            model=model,
            velocity_std=std,
            n_samples=n_samples,
            random_state=random_state,
            device=resolve_device(device),
            n_jobs=n_jobs,
            memory_limit=memory_limit,
            show_progress_bar=show_progress_bar,
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
        if self._transport is None and not (smooth and self._field is not None):
            self.compute_velocity(
                device=device, n_jobs=n_jobs, memory_limit=memory_limit, show_progress_bar=show_progress_bar
            )
        if not smooth:
            return self.raw_velocity
        if self._field is None:
            self.fit_field(device=device, show_progress_bar=show_progress_bar)
        field: VelocityField = self._needed("field", "fit_field")
        return field(self.cells.x, self.cells.time, device=device, n_jobs=n_jobs)

    def _std_for_transitions(self, smooth: bool, show_progress_bar: bool) -> NDArray[np.float64]:
        """Return the error of the velocity to use, after the step that is missing for it."""
        if not smooth:
            return np.sqrt(self._needed("transport", "compute_velocity").variance)
        if self._uncertainty is None:
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

    # --------------------------------------------------------------------------------------------- contract
    def __invert__(self) -> OTVelocityKernel:
        kernel: OTVelocityKernel = self._copy_ignore("_transition_matrix", "_computed", "_logits")
        kernel._backward = not self.backward
        kernel._init_kwargs["backward"] = kernel._backward
        kernel._clear()
        return kernel

    @all_or_nothing(writes=True)
    def write_to_adata(self, key: str | None = None, copy: bool = False) -> None:
        """Write transition matrix, parameters, windows, velocities and field to :attr:`adata`.

        Parameters
        ----------
        key
            Key of the transition matrix in ``adata.obsp``; ``T_fwd`` or ``T_bwd`` where not given.
        copy
            Whether to copy the transition matrix.

        Returns
        -------
        Nothing. Writes, beside the host's ``obsp[key]`` and ``uns["{key}_params"]``,

        - ``obsm["velot_velocity"]`` and ``obsm["velot_velocity_raw"]``: velocity of the field and of transport,
        - ``obs["velot_confidence"]``, ``obs["velot_cluster"]`` and, where computed, ``obs["velot_uncertainty"]``,
        - with experimental time ``obs["velot_growth"]``,
        - ``uns["velot"][key]``: windows, velocity, field and uncertainty as arrays.
        """
        super().write_to_adata(key=key, copy=copy)
        key = key or ("T_bwd" if self.backward else "T_fwd")
        packed = storage.pack({name: getattr(self, name) for name in storage.STAGES})
        packed["n_cells"] = self.cells.n_cells
        packed["fingerprint"] = _fingerprint(self.transition_matrix, self.cells)
        # A file holds no `None`: what is missing there is read as one.
        packed["settings"] = {
            step: {name: value for name, value in values.items() if value is not None}
            for step, values in self.settings.items()
        }
        self.adata.uns["velot"] = {**self.adata.uns.get("velot", {}), key: storage.sealed(packed)}
        if self._windows is not None:
            cluster_key = self._init_kwargs["cluster_key"]
            clusters = self._windows.cluster if cluster_key is None else self.adata.obs[cluster_key].to_numpy()
            self.adata.obs["velot_cluster"] = pd.Categorical(clusters)
        for slot, name in (
            ("obsm", "velot_velocity"),
            ("obsm", "velot_velocity_raw"),
            ("obs", "velot_confidence"),
            ("obs", "velot_uncertainty"),
            ("obs", "velot_growth"),
        ):
            if name in getattr(self.adata, slot):  # of a kernel written before
                del getattr(self.adata, slot)[name]
        if self._transport is not None:
            self.adata.obsm["velot_velocity_raw"] = self._transport.velocity.copy()
            self.adata.obs["velot_confidence"] = self._transport.confidence
            if self._transport.growth is not None:
                self.adata.obs["velot_growth"] = self.growth
        if self._field is not None:
            self.adata.obsm["velot_velocity"] = self.velocity
        if self._uncertainty is not None:
            self.adata.obs["velot_uncertainty"] = self.velocity_uncertainty

    @classmethod
    def from_adata(cls, adata: AnnData, key: str, copy: bool = False) -> Self:
        """Read a kernel saved by :meth:`write_to_adata`, with its windows, velocities, field and settings.

        Logits and condition number are not saved: :meth:`compute_transition_matrix` gives them again.

        Parameters
        ----------
        adata
            Annotated data.
        key
            Key of the transition matrix in ``adata.obsp``.
        copy
            Whether to copy the transition matrix.

        Raises
        ------
        KeyError
            If nothing was saved under that key.
        ValueError
            If what was saved is damaged, of another version, or of other cells.
        """
        check_known("adata.obsp", key, adata.obsp.keys())
        where, written = f"adata.uns['velot'][{key!r}]", adata.uns.get("velot", {})
        if not isinstance(written, Mapping) or written.get(key) is None:
            raise KeyError(f"Expected `{where}`, found none: it was not written by this kernel.")
        packed = written[key]
        storage.check_entry(packed, where)
        n_cells = storage.plain(packed.get("n_cells"))
        if not isinstance(n_cells, int) or n_cells != adata.n_obs:
            raise ValueError(
                f"Expected the `{n_cells}` cells that the kernel was saved with, found `{adata.n_obs}`, by "
                f"`{where}['n_cells']`."
            )
        params = _checked_params(adata, key, list(inspect.signature(cls).parameters))
        try:
            kernel: Self = super().from_adata(adata, key=key, copy=copy)
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(
                f"`adata.obsp[{key!r}]` and `adata.uns['{key}_params']['init']` do not give a kernel of these data: "
                f"{error.args[0] if error.args else error}"
            ) from error
        kernel._init_kwargs = storage.plain(kernel._init_kwargs)
        if not storage.same_digest(packed.get("fingerprint"), _fingerprint(adata.obsp[key], kernel.cells)):
            raise ValueError(
                f"Expected the matrix that was saved in `adata.obsp[{key!r}]`, and the basis and time of "
                f"`adata.uns['{key}_params']['init']` that it was computed from, by `{where}['fingerprint']`, found "
                "others, or cells in another order. Compute the kernel again."
            )
        stages = storage.unpack(packed, where, {"n_cells": adata.n_obs, "n_dims": kernel.cells.n_dims})
        couplings: Any = stages.get("couplings")
        if couplings is not None and not np.array_equal(couplings.times, kernel.cells.time_points):
            expected = f"to be the time points `{kernel.cells.time_points}`, found `{couplings.times}`"
            storage.damaged(f"{where}['couplings']['times']", expected)
        kernel._settings = kernel._read_settings(packed.get("settings", {}), f"{where}['settings']")
        kernel._params = {name: params[name] for name in PARAMS if name in params}  # a file sorts them by name
        for name, stage in stages.items():
            setattr(kernel, f"_{name}", stage)
        return kernel

    def _read_settings(self, stored: Any, where: str) -> dict[str, dict[str, Any]]:
        """Return the settings of a file, of known steps and options, with nothing but plain values and arrays."""
        if not isinstance(stored, Mapping) or not set(stored) <= set(STEPS):
            found = sorted(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
            storage.damaged(where, f"with steps of {sorted(STEPS)}, found `{found}`")
        settings = {}
        for step, values in stored.items():
            names = self._names_of(step)
            if not isinstance(values, Mapping) or not set(values) <= set(names):
                found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
                storage.damaged(f"{where}[{step!r}]", f"with parameters of {names}, found `{found}`")
            for name, value in values.items():
                storage.check_plain(f"{where}[{step!r}][{name!r}]", value)
            settings[step] = dict.fromkeys(names) | storage.plain(dict(values))
        return settings

    def _settings_for(self, step: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return options_of(step, _settings(arguments), series=self.cells.is_series)

    def _names_of(self, step: str) -> list[str]:
        """Return the names of the options of a step that its kind of time has."""
        names = _settings(dict(inspect.signature(getattr(type(self), STEPS[step])).parameters))
        return names_of(step, list(names), series=self.cells.is_series)

    def _clear(self, *stages: str) -> None:
        """Forget these stages and the transition matrix."""
        for name in stages:
            setattr(self, name, None)
        if "_field" in stages:
            self._current = None
        self._transition_matrix = None
        self._computed = None
        self._logits = None
        self._condition_number = None
        self._request = None
        self._params = {}

    def _needed(self, stage: str, method: str) -> Any:
        value = getattr(self, f"_{stage}")
        if value is None:
            raise RuntimeError(f"Compute the {stage.replace('_', ' ')} first, as `.{method}()`.")
        return value


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a method was asked for, without what does not change its result."""
    unsaid = ("self", "device", "show_progress_bar", "n_jobs", "memory_limit")
    return {name: storage.plain(value) for name, value in arguments.items() if name not in unsaid}


def _checked_params(adata: AnnData, key: str, arguments: list[str]) -> dict[str, Any]:
    """Return the parameters that the host has saved, after a look at what it passes on to the constructor.

    Raises
    ------
    KeyError, ValueError
        If they are missing or damaged.
    """
    where = f"adata.uns['{key}_params']"
    check_known("adata.uns", f"{key}_params", adata.uns.keys())
    saved = adata.uns[f"{key}_params"]
    for name in ("init", "params"):
        if not isinstance(saved, Mapping) or not isinstance(saved.get(name), Mapping):
            storage.damaged(f"{where}[{name!r}]", "to be a dictionary, found none")
        for entry, value in saved[name].items():
            storage.check_plain(f"{where}[{name!r}][{entry!r}]", value)
    if not set(saved["init"]) <= set(arguments):
        storage.damaged(f"{where}['init']", f"with arguments of {arguments}, found {sorted(map(str, saved['init']))}")
    matrix = sp.csr_matrix(adata.obsp[key])
    if matrix.dtype.kind != "f" or not (np.isfinite(matrix.data) & (matrix.data >= 0)).all():
        storage.damaged(f"adata.obsp[{key!r}]", f"to be finite and not negative, found `{matrix.dtype}`")
    params: dict[str, Any] = storage.plain(dict(saved["params"]))
    return params


def _fingerprint(matrix: sp.spmatrix, cells: CellStates) -> str:
    """Return a digest of a transition matrix and the cells that it was computed from."""
    matrix = sp.csr_matrix(matrix)
    entries = {name: getattr(matrix, name).astype(np.int64) for name in ("indices", "indptr")}
    return storage.fingerprint({"data": matrix.data, **entries, "x": cells.x, "time": cells.time})


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
