"""The kernel itself: reads an AnnData, calls a stage, keeps its result and clears what came after it.

It knows CellRank by public names alone; no stage knows it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from cellrank.kernels import BidirectionalKernel
from cellrank.kernels.mixins import ConnectivityMixin
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_integer
from cellrank_velot.cells.read import (
    CellStates,
    TimeKind,
    check_graph,
    find_basis,
    find_time_key,
    read_cells,
    readable,
    warn_about_graph,
)
from cellrank_velot.field import (
    FieldOptions,
    ProcessOptions,
    Steps,
    Uncertainty,
    UncertaintyOptions,
    VelocityField,
    compute_uncertainty,
    fit_field,
    fit_process,
)
from cellrank_velot.kernel._options import STEPS, names_of, options_of
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.kernel.diagnostics import Diagnostics
from cellrank_velot.kernel.dynamics import Dynamics
from cellrank_velot.kernel.landscape import Landscapes
from cellrank_velot.kernel.perturbation import Perturbations
from cellrank_velot.kernel.plots import Plots
from cellrank_velot.kernel.regulation import Regulations
from cellrank_velot.kernel.saving import Saving
from cellrank_velot.kernel.timeseries import TimeSeries
from cellrank_velot.kernel.transitions import TransitionMatrix
from cellrank_velot.storage import pack as storage
from cellrank_velot.timeseries import (
    CouplingOptions,
    SnapshotCouplings,
    SnapshotOptions,
    build_snapshots,
    couple_snapshots,
)
from cellrank_velot.transport import (
    Tail,
    TransportOptions,
    TransportVelocity,
    WindowOptions,
    Windows,
    build_windows,
    compute_velocity,
    end_cells,
)

__all__ = ["OTVelocityKernel"]

logger = logging.getLogger("cellrank_velot")


class OTVelocityKernel(
    Saving,
    TransitionMatrix,
    Diagnostics,
    Dynamics,
    Perturbations,
    TimeSeries,
    Landscapes,
    Regulations,
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
        They change the velocity: to name clusters in plots, tests and fates alone, hand them the key there, or call
        the column ``"clusters"``.
    conn_key
        Key in ``adata.obsp`` of the neighbour graph.
    check_connectivity
        Whether a graph that is not connected is an error; it is a warning otherwise.
    time_kind
        ``"pseudotime"``, or ``"experimental"`` where ``time_key`` holds real time points: cells are then transported
        from each to the next, and may grow in number and die. ``time_key`` is ``day``, ``time``, ``hours``, ``age`` or
        ``experimental_time`` where not given.

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
    >>> vk = OTVelocityKernel(adata, time_key="dpt_pseudotime", basis="X_pca")
    >>> vk.compute_transition_matrix().transition_matrix.shape
    (300, 300)

    It combines with other kernels, and goes to CellRank's estimators:

    >>> ck = cr.kernels.ConnectivityKernel(adata).compute_transition_matrix()
    >>> g = cr.estimators.GPCCA(0.8 * vk + 0.2 * ck)
    >>> _ = g.set_terminal_states(vk.suggest_terminal_states("clusters"))
    >>> _ = g.compute_fate_probabilities(use_petsc=False, solver="direct")
    >>> g.fate_probabilities.shape
    (300, 2)
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
        check_graph(self.adata, conn_key)
        self._cells = read_cells(
            self.adata,
            time_key=time_key,
            basis=basis,
            cluster_key=cluster_key,
            conn_key=conn_key,
            time_kind=time_kind,
        )
        super()._read_from_adata(conn_key=conn_key)
        if not self.connectivities.has_canonical_format:  # an edge that is there twice would be a way taken twice
            graph = self.connectivities.copy()
            graph.sum_duplicates()
            self._conn: sp.csr_matrix = graph
        self._components = warn_about_graph(self.connectivities, strict=check_connectivity)

    # ------------------------------------------------------------------------------------------------- stages
    @property
    def cells(self) -> CellStates:
        """Positions, time and clusters that the kernel has read.

        Examples
        --------
        >>> vk.cells.x.shape, vk.cells.time_range
        ((300, 20), (0.0, 1.0))
        """
        return self._cells

    @property
    def windows(self) -> Windows | None:
        """Windows of cells and their pairs; ``None`` before :meth:`compute_windows`.

        Examples
        --------
        >>> windows = vk.windows
        >>> windows.sizes.shape == (windows.n_windows,), bool((windows.dt > 0).all())
        (True, True)
        """
        return self._windows

    @property
    def transport(self) -> TransportVelocity | None:
        """Velocity of each cell from transport; ``None`` before :meth:`compute_velocity`.

        Examples
        --------
        >>> bool(vk.transport.has_estimate.all()), bool(vk.transport.converged.all())
        (True, True)
        """
        return self._transport

    @property
    def field(self) -> VelocityField | None:
        """The velocity field; ``None`` before :meth:`fit_field`.

        Examples
        --------
        >>> vk.field.n_dims, vk.field.has_heads
        (20, False)
        """
        return self._field

    @property
    def basis(self) -> str:
        """Key in ``adata.obsm`` of the positions.

        Examples
        --------
        >>> OTVelocityKernel(adata, basis="pca").basis
        'X_pca'
        """
        return str(self._init_kwargs["basis"])

    @property
    def cluster_key(self) -> str | None:
        """Key in ``adata.obs`` of the clusters that windows are made in, where one was given.

        Examples
        --------
        >>> OTVelocityKernel(adata, cluster_key="clusters").cluster_key
        'clusters'
        """
        key = self._init_kwargs["cluster_key"]
        return None if key is None else str(key)

    @property
    def uncertainty(self) -> Uncertainty | None:
        """How far the velocity of each cell may be off; ``None`` before :meth:`compute_uncertainty`.

        Examples
        --------
        >>> vk.uncertainty.std.shape, vk.uncertainty.n_members
        ((300, 20), 2)
        """
        return self._uncertainty

    @property
    def velocity_uncertainty(self) -> NDArray[np.float64]:
        """Angle in degrees within which the true direction lies in two of three cells, shape ``[n_cells]``.

        Examples
        --------
        >>> degrees = vk.velocity_uncertainty
        >>> bool((degrees >= 0).all() and (degrees <= 180).all())
        True
        """
        return self._needed("uncertainty", "compute_uncertainty").angle()

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Parameters of each step that was run, by step; ``None`` stands for what it means there.

        Examples
        --------
        >>> vk.settings["velocity"]["epsilon"], vk.settings["field"]["n_steps"]
        (0.05, 300)
        """
        return {step: dict(values) for step, values in self._settings.items()}

    @property
    def logits(self) -> sp.csr_matrix | None:
        """Similarity of velocity and displacement along each edge, shape ``[n_cells, n_cells]``.

        Examples
        --------
        >>> vk.logits.shape, float(abs(vk.logits).max()) <= 1  # cosines
        ((300, 300), True)
        """
        return self._logits

    @property
    def condition_number(self) -> float | None:
        """Estimated condition number, if :meth:`compute_transition_matrix` was asked for it.

        Examples
        --------
        >>> vk.compute_transition_matrix(compute_cond_num=True).condition_number > 1
        True
        """
        return self._condition_number

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Confidence in each cell's transport velocity, in ``[0, 1]``, shape ``[n_cells]``.

        Examples
        --------
        >>> sure = vk.confidence > 0.5
        >>> sure.shape
        (300,)
        """
        return self._needed("transport", "compute_velocity").confidence

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Cells at an end of the process, which have no later window, shape ``[n_cells]``; backward at its beginning.

        See :func:`cellrank_velot.transport.velocity.end_cells`.

        Examples
        --------
        >>> float(vk.cells.time[vk.ends].min()) > 0.5  # late cells
        True
        """
        transport = self._needed("transport", "compute_velocity")
        windows = self._needed("windows", "compute_windows")
        return end_cells(transport, windows, self.cells.time, self.connectivities, self.backward)

    @property
    def raw_velocity(self) -> NDArray[np.float64]:
        """Transport velocity in basis per time, NaN where there is none, shape ``[n_cells, n_dims]``.

        Examples
        --------
        >>> vk.raw_velocity.shape
        (300, 20)
        """
        return self._needed("transport", "compute_velocity").velocity

    @property
    def velocity(self) -> NDArray[np.float64]:
        """Velocity of the field at the cells, in basis per time, shape ``[n_cells, n_dims]``.

        Examples
        --------
        >>> metrics.cosine_to_truth(vk.velocity, adata.obsm["true_velocity_pca"]) > 0.7
        True
        """
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

        Parameters are those of :func:`cellrank_velot.transport.windows.build_windows`. With experimental time, windows
        are the time points, in batches: ``batch_size`` is that of
        :func:`cellrank_velot.timeseries.snapshots.build_snapshots`, and the other parameters but ``random_state`` are
        not used.

        Returns
        -------
        Self, with :attr:`windows`. What was computed from earlier windows is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range, there are too few cells, or both ``n_clusters`` and a ``cluster_key``.

        Examples
        --------
        >>> windows = vk.compute_windows(window_size=40, overlap=0.25).windows
        >>> windows.pairs.shape == (windows.n_pairs, 2)
        True

        Of a time series, windows are the time points, here four of 100 cells each, in halves:

        >>> sk.compute_windows(batch_size=50).windows.n_pairs
        6
        """
        settings = self._settings_for("windows", locals())
        if self.cells.is_series:
            return self._keep_windows(build_snapshots(self.cells.time, SnapshotOptions(**settings)), settings)
        if self.cells.labels is not None and n_clusters is not None:
            raise ValueError("Expected `n_clusters` or the `cluster_key` of the kernel, found both.")
        windows = build_windows(
            self.cells.x,
            self.cells.time,
            WindowOptions(**settings),
            graph=self.connectivities,
            labels=self.cells.labels,
            components=self._components,
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

        Parameters are those of :func:`cellrank_velot.transport.velocity.compute_velocity`, with experimental time those
        of :func:`cellrank_velot.timeseries.couplings.couple_snapshots`: ``epsilon``, ``tau``, ``n_passes``, ``n_draws``
        and ``random_state``, and besides ``growth_key``, a key in ``adata.obs`` of growth rates that are expected, such
        as :func:`cellrank_velot.pp.score_growth` writes, and ``mass``, the size of the population at each time point:
        ``"counts"`` where that is the number of cells, or a dictionary; ``n_jobs`` and ``memory_limit`` are not used.
        Makes windows with the default parameters where there are none.

        Returns
        -------
        Self, with :attr:`transport`. What was computed from an earlier velocity is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range.

        Examples
        --------
        >>> vk.compute_velocity(epsilon=0.02, relaxation=0).raw_velocity.shape
        (300, 20)

        Of a time series, ``mass`` says how the population grows, and so how cells do:

        >>> bool(sk.compute_velocity(mass={0: 1.0, 1: 1.4, 2: 2.0, 3: 3.0}).growth.mean() > 0)
        True
        """
        settings = self._settings_for("velocity", locals())
        run = Run(device=device, n_jobs=n_jobs, memory_limit=memory_limit, show_progress_bar=show_progress_bar)
        if self.cells.is_series:
            return self._couple_time_points(settings, run)
        options = TransportOptions(**settings)
        if self._windows is None:
            self.compute_windows()
        transport = compute_velocity(
            self.cells.x,
            self.cells.time,
            self._needed("windows", "compute_windows"),
            self.connectivities,
            options,
            run,
        )
        return self._keep_transport(transport, None, settings)

    def _couple_time_points(self, settings: dict[str, Any], run: Run) -> Self:
        given = {name: value for name, value in settings.items() if name not in ("growth_key", "mass")}
        options = CouplingOptions(**given)
        prior, mass = self._prior_growth(settings["growth_key"]), self._mass(settings["mass"])
        if self._windows is None:
            self.compute_windows()
        windows = self._needed("windows", "compute_windows")
        couplings, transport = couple_snapshots(
            self.cells.x, self.cells.time, windows, options, prior=prior, mass=mass, run=run
        )
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

        Examples
        --------
        >>> vk.fit_field(lambda_smooth=0.3, hidden=(64, 64), n_steps=100).velocity.shape
        (300, 20)
        >>> vk.field.best_step <= 100
        True
        """
        settings = self._settings_for("field", locals())
        run = Run(device=device, show_progress_bar=show_progress_bar)
        if self.cells.is_series:
            return self._fit_process(settings, run)
        n_steps = settings["n_steps"] = 300 if n_steps is None else n_steps
        batch_size = settings["batch_size"] = 256 if batch_size is None else batch_size
        learning_rate = settings["learning_rate"] = 2e-3 if learning_rate is None else learning_rate
        options = FieldOptions(**settings)
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
            options,
            run,
        )
        return self._keep_field(field, settings)

    def _fit_process(self, settings: dict[str, Any], run: Run) -> Self:
        options = ProcessOptions(**settings)
        if self._couplings is None:
            self.compute_velocity(device=run.device, show_progress_bar=run.show_progress_bar)
        field = fit_process(self._needed("couplings", "compute_velocity"), self.cells.x, options, run=run)
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

        See :func:`cellrank_velot.field.uncertainty.compute_uncertainty`. Each member goes through the steps with the
        parameters that they were run with; runs them with default parameters where they were not.

        Parameters
        ----------
        n_members
            Number of fields, even: both halves of the cells are used.
        random_state
            Seed of the halves, of the clusters and of training.
        n_jobs
            Number of jobs, see :func:`cellrank_velot.transport.velocity.compute_velocity`. The result is the same.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Self, with :attr:`uncertainty`. The transition matrix stays.

        Raises
        ------
        RuntimeError
            If the kernel has experimental time.
        ValueError
            If a parameter is out of range or there are too few cells.

        Examples
        --------
        >>> vk = vk.fit_field(n_steps=50).compute_uncertainty(n_members=2)
        >>> vk.velocity_uncertainty.shape
        (300,)
        """
        settings = _settings(locals())
        if self.cells.is_series:
            raise RuntimeError(
                "Expected pseudotime for the uncertainty from halves of the cells, found real time points."
            )
        if self._field is None:
            self.fit_field(show_progress_bar=show_progress_bar)
        kinds = {"windows": WindowOptions, "velocity": TransportOptions, "field": FieldOptions}
        steps: dict[str, Any] = {step: kind(**self._settings.get(step, {})) for step, kind in kinds.items()}
        self._uncertainty = compute_uncertainty(
            self.cells.x,
            self.cells.time,
            self.connectivities,
            self._needed("windows", "compute_windows"),
            self._needed("field", "fit_field"),
            UncertaintyOptions(n_members=n_members, random_state=random_state),
            steps=Steps(**steps),
            labels=self.cells.labels,
            components=self._components,
            run=Run(n_jobs=n_jobs, show_progress_bar=show_progress_bar),
        )
        self._settings["uncertainty"] = settings
        return self

    @all_or_nothing()
    def current_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> VelocityField:
        """Return the field without the relaxation to the data: the part that changes its sign when time is reversed.

        Fitted at the first call, with the parameters of :meth:`fit_field`, and not saved. It is needed to go back in
        time, see :func:`cellrank_velot.dynamics.compute_trajectories`.

        Parameters
        ----------
        device
            Torch device, or ``"auto"``.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The field; where there is no relaxation, that of :attr:`field` itself.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.

        Examples
        --------
        >>> current = vk.fit_field(n_steps=50).current_field()
        >>> current(vk.cells.x, vk.cells.time).shape
        (300, 20)
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
                options=FieldOptions(**{name: v for name, v in self._settings["field"].items() if v is not None}),
                run=Run(device=device, show_progress_bar=show_progress_bar),
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

        Examples
        --------
        >>> between = (vk.cells.x[:5] + vk.cells.x[5:10]) / 2
        >>> vk.query_velocity(between).shape
        (5, 20)
        >>> bool(np.allclose(vk.query_velocity(vk.cells.x, vk.cells.time), vk.velocity))
        True
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

    # --------------------------------------------------------------------------------------------- contract
    def __invert__(self) -> OTVelocityKernel:
        kernel: OTVelocityKernel = self._copy_ignore("_transition_matrix", "_computed", "_logits")
        kernel._backward = not self.backward
        kernel._init_kwargs["backward"] = kernel._backward
        kernel._clear()
        return kernel

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
