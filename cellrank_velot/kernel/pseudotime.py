"""The kernel for a pseudotime: windows of time, transport between them, a field, and its uncertainty."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot.cells import TimeKind, read_clusters, rows_of_states
from cellrank_velot.fates import IntervalOptions, fate_intervals
from cellrank_velot.field import FieldOptions, fit_field
from cellrank_velot.field.uncertainty import Steps, UncertaintyOptions, compute_uncertainty, half_velocities
from cellrank_velot.graph import smooth_cells
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.clones import Clones
from cellrank_velot.kernel.diagnostics import DirectionTests, States
from cellrank_velot.kernel.dynamics import Dynamics
from cellrank_velot.kernel.landscape import Landscapes
from cellrank_velot.kernel.plots import Plots
from cellrank_velot.kernel.regulation import Regulations
from cellrank_velot.kernel.resting import Resting
from cellrank_velot.kernel.saving import Saving
from cellrank_velot.kernel.screening import Screens
from cellrank_velot.kernel.time_points import OTTimeSeriesKernel
from cellrank_velot.kernel.transitions import TransitionMatrix
from cellrank_velot.kernel.trends import Trends
from cellrank_velot.storage.saved import STEPS
from cellrank_velot.transitions import compute_transitions
from cellrank_velot.transport import TransportOptions, WindowOptions, build_windows, estimate_velocity
from cellrank_velot.transport.windows import Tail

__all__ = ["OTVelocityKernel"]

logger = logging.getLogger("cellrank_velot")


class OTVelocityKernel(
    Saving,
    TransitionMatrix,
    DirectionTests,
    States,
    Dynamics,
    Screens,
    Landscapes,
    Regulations,
    Resting,
    Trends,
    Clones,
    Plots,
):
    """Kernel which computes a transition matrix based on optimal-transport velocity.

    Cells are smoothed over their graph and grouped into windows of time. Each window is transported to a later one, and
    position is regressed on time around each cell. A velocity field is fitted to the mean of both, and compared with
    the displacement to each neighbour. No spliced and unspliced counts are needed. The direction comes from the time
    given: the kernel cannot find it.

    Real time points, such as days, have a kernel of their own, :class:`~cellrank_velot.OTTimeSeriesKernel`, which this
    one returns for ``time_kind="experimental"``.

    Parameters
    ----------
    adata
        Annotated data with a time in ``obs``, positions in ``obsm`` and a neighbour graph in ``obsp``. A backed one, or
        positions as a dask array, are read in blocks; of a lazy one :attr:`adata` is a copy with ``obs`` and the graph
        in memory.
    backward
        Direction of the process.
    time_key
        Key in ``adata.obs`` of a pseudotime, which is scaled to 0 to 1. The first of ``pseudotime``,
        ``consensus_pseudotime``, ``geodesic_pseudotime``, ``dpt_pseudotime``, ``palantir_pseudotime``,
        ``latent_time``, ``velocity_pseudotime`` and ``ct_pseudotime`` where not given.
    basis
        Key in ``adata.obsm`` of the positions, with or without ``X_``: a PCA, a batch-corrected or latent embedding.
    cluster_key
        Key in ``adata.obs`` of clusters that windows are made in, instead of KMeans in the basis. They overlap all the
        same, unless :meth:`compute_windows` is told ``overlap_clusters=1``. They change the velocity: to name clusters
        in plots, tests and fates alone, hand them the key there, or call the column ``"clusters"``.
    conn_key
        Key in ``adata.obsp`` of the neighbour graph, or ``key_added`` of :func:`scanpy.pp.neighbors`. ``None`` is the
        usual one.
    check_connectivity
        Whether a graph that is not connected is an error; it is a warning otherwise.
    time_kind
        ``"pseudotime"``, or ``"experimental"`` where ``time_key`` holds real time points: the kernel is then an
        :class:`~cellrank_velot.OTTimeSeriesKernel`.

    Raises
    ------
    KeyError
        If time, basis, clusters or neighbours are missing.
    TypeError
        If one is not numeric.
    ValueError
        If one has NaN or infinite values, the time is constant, or ``check_connectivity`` finds the graph in pieces.

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

    _options_of_steps = STEPS["pseudotime"]
    _time = "pseudotime"
    _instead = "`OTVelocityKernel(adata, time_key=..., time_kind='experimental')` is for time points"

    def __new__(
        cls,
        adata: AnnData | None = None,
        backward: bool = False,
        time_key: str | None = None,
        basis: str = "X_pca",
        cluster_key: str | None = None,
        conn_key: str | None = "connectivities",
        check_connectivity: bool = False,
        time_kind: TimeKind = "pseudotime",
    ) -> Any:
        """Return the kernel for real time points where that is asked for."""
        if time_kind == "experimental":
            given: Any = adata
            return OTTimeSeriesKernel(given, backward, time_key, basis, cluster_key, conn_key, check_connectivity)
        return super().__new__(cls)

    @property
    def pseudotime(self) -> NDArray[np.float64]:
        """Time of each cell as the process goes, from 0 to 1, shape ``[n_cells]``: of a backward kernel, the reverse.

        Examples
        --------
        >>> bool(np.allclose((~vk).pseudotime, 1 - vk.pseudotime))
        True
        """
        time = self.cells.time
        return time.max() - time if self.backward else time.copy()

    @property
    def velocity_uncertainty(self) -> NDArray[np.float64]:
        """Angle in degrees within which the true direction lies in at least two of three cells, shape ``[n_cells]``.

        Examples
        --------
        >>> degrees = vk.velocity_uncertainty
        >>> bool((degrees >= 0).all() and (degrees <= 180).all())
        True
        """
        return self._needed("uncertainty", "compute_uncertainty").angle()

    @all_or_nothing()
    def compute_windows(
        self,
        n_clusters: int | None = WindowOptions.n_clusters,
        window_size: int | None = WindowOptions.window_size,
        overlap: float = WindowOptions.overlap,
        *,
        min_window_size: int = WindowOptions.min_window_size,
        time_lag: float | Literal["auto"] | None = WindowOptions.time_lag,
        overlap_clusters: int | None = WindowOptions.overlap_clusters,
        tail: Tail = WindowOptions.tail,
        tail_threshold: int = WindowOptions.tail_threshold,
        n_smooth: int = WindowOptions.n_smooth,
        random_state: int = WindowOptions.random_state,
    ) -> Self:
        """Cut each neighbourhood of cells into overlapping windows of time, and pair each window with a later one.

        A neighbourhood is a spatial cluster together with the nearest cells of other clusters, so that flow crosses
        borders. Windows, transport and regression see positions that are smoothed over the graph, and a graph that is
        made of them. ``time_lag=None, overlap_clusters=1, n_smooth=0`` is the scheme of VelOT.

        Parameters
        ----------
        n_clusters
            Number of KMeans clusters in the basis. Where not given, one per 40 cells, but 5 to 14, and above 1400 cells
            one per 100 cells, up to 30. Not together with the kernel's ``cluster_key``.
        window_size
            Number of cells of a window. Where not given, a quarter of the mean neighbourhood, at most 60. A
            neighbourhood with less than two such windows takes half of its cells.
        overlap
            Share of a window that the next window has, too, in ``[0, 1)``.
        min_window_size
            Smallest number of cells of a window, at least 2. A neighbourhood with less than twice as many cells has no
            windows; ``vk.windows.n_skipped`` counts such neighbourhoods.
        time_lag
            Time from a window to its target, in units of the time. ``"auto"`` is 0.06 of the whole time, or the median
            time that a window spans where that is longer, and at most 0.12. A neighbourhood that spans less than half
            of the lag has no pairs. ``None`` pairs consecutive windows.
        overlap_clusters
            Number of clusters that each cell belongs to: its own, and those with the nearest centres. Where not given,
            3, but at most half of the clusters.
        tail
            What happens to the last cells of a neighbourhood where they do not fill a window. ``"force"`` adds a full
            window that ends with them. ``"drop"`` adds it for at least ``tail_threshold`` cells. ``"split"`` adds two
            windows, of which the first ends half-way through them.
        tail_threshold
            Number of cells that are worth a window of their own under ``"drop"``, counted from where the next window
            would start, as VelOT does.
        n_smooth
            Number of times that each cell is moved half of the way to the mean of its neighbours, before anything else.
            The time is smoothed, too. It takes the noise of counts off, which points in every direction. Positions in
            the basis, and with them the displacements that transitions are made of, stay as they are. ``0`` leaves all
            as it is.
        random_state
            Seed of KMeans.

        Returns
        -------
        Self, with :attr:`windows`. What was computed from earlier windows is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range, there are fewer cells than two windows, no two windows are far enough apart,
            or both ``n_clusters`` and a ``cluster_key`` are given.

        Examples
        --------
        >>> windows = vk.compute_windows(window_size=40, overlap=0.25).windows
        >>> windows.pairs.shape == (windows.n_pairs, 2)
        True
        """
        options = WindowOptions(
            n_clusters=n_clusters,
            window_size=window_size,
            overlap=overlap,
            min_window_size=min_window_size,
            time_lag=time_lag,
            overlap_clusters=overlap_clusters,
            tail=tail,
            tail_threshold=tail_threshold,
            n_smooth=n_smooth,
            random_state=random_state,
        )
        labels = self.cells.labels
        if labels is not None and n_clusters is not None:
            raise ValueError("Expected `n_clusters` or the `cluster_key` of the kernel, found both.")
        cells = smooth_cells(self.cells.x, self.cells.time, self.connectivities, options.n_smooth)
        windows = build_windows(cells.x, cells.time, options, labels=labels, components=self._components)
        logger.info("Built %d pairs of %d windows", windows.n_pairs, windows.n_windows)
        self._smoothing = self._cells, options.n_smooth, cells
        return self._keep("windows", options, windows=windows)

    @all_or_nothing()
    def compute_velocity(
        self,
        epsilon: float = TransportOptions.epsilon,
        lambda_time: float = TransportOptions.lambda_time,
        lambda_knn: float = TransportOptions.lambda_knn,
        *,
        reach: float | None = TransportOptions.reach,
        relaxation: float = TransportOptions.relaxation,
        regression: bool = TransportOptions.regression,
        tol: float = TransportOptions.tol,
        max_iter: int = TransportOptions.max_iter,
        device: str = "auto",
        n_jobs: int | None = None,
        memory_limit: float | str | None = None,
        show_progress_bar: bool = True,
    ) -> Self:
        r"""Transport each window to its target by entropic optimal transport, and average each cell's displacements.

        The coupling of a pair of windows says where the mass of a cell goes, :math:`v^+` is the mean velocity to there,
        and :math:`v^-` the mean velocity from where it comes. Their mean is free of the cell's own noise. Half their
        difference returns the cell to its neighbours' mean :cite:`nelson:66`; a share F of it is kept: :math:`v = (v^+
        + v^-) / 2 + F (v^+ - v^-) / 2`. By default the velocity is the mean of that and of a regression of position on
        time, see ``regression``. Makes windows with default parameters where there are none.

        Parameters
        ----------
        epsilon
            Entropic regularisation, as a share of the largest squared distance of a pair of windows, above 0. Larger
            values spread a cell over more targets :cite:`cuturi:13`.
        lambda_time
            Cost of going to an earlier cell, in units of that largest squared distance, at least 0.
        lambda_knn
            Cost of going to a cell that is no neighbour in the graph, in the same units, at least 0. Above 0, a cell
            that has no neighbour in the other window takes nothing from that pair.
        reach
            Squared displacement up to which a displacement counts in full, in units of the median squared displacement,
            above 0. Beyond, its weight falls exponentially. All mass of a window has to go to its target: where a
            branch ends in between, it goes to another branch, and the displacement is unusually long. ``None`` counts
            all alike, as VelOT does.
        relaxation
            The share F, in ``[0, 1]``: ``1`` is the forward velocity, which VelOT reports, ``0`` the mean of forward
            and backward. Noise of measurement makes such a return, too, and on counts most of it is noise. Where only
            one direction has support, the difference is estimated from the cell's residual from its neighbours' mean.
        regression
            Whether to take the mean with a second estimate, the slope of position over time among the cells around,
            :math:`\mathrm{cov}(x, t) / \mathrm{var}(t)`. It has less noise than transport, but where streams of
            different times meet it takes the way from one to the other for motion. So transport has the weight
            :math:`1 - \cos` of the angle between both, and at least 0.1. ``False`` takes transport alone, as VelOT
            does.
        tol
            Tolerance of the solver: Euclidean norm by which the column sums of a coupling, which sum to one, may be
            off.
        max_iter
            Largest number of iterations of each coupling. Couplings that did not converge are reported, and are
            ``False`` in :attr:`transport` ``.converged``.
        device
            Torch device, such as ``"cpu"`` or ``"cuda"``. ``"auto"`` takes a GPU where there is one.
        n_jobs
            Number of jobs on the CPU. ``None`` takes that of joblib's ``parallel_config``, which also chooses between
            threads, processes and a cluster; without one, there are as many jobs as torch has threads. The result is
            the same.
        memory_limit
            Bytes, or a text such as ``"4 GB"``, that this step may take besides what the process holds, the result
            included. It lowers the number of jobs.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Self, with :attr:`transport`. What was computed from an earlier velocity is cleared.

        Raises
        ------
        MemoryError
            If ``memory_limit`` is too low for so many cells.
        TypeError
            If a parameter is of the wrong type.
        ValueError
            If a parameter is out of range.

        Examples
        --------
        >>> vk.compute_velocity(epsilon=0.02, relaxation=0).raw_velocity.shape
        (300, 20)
        """
        options = TransportOptions(
            epsilon=epsilon,
            lambda_time=lambda_time,
            lambda_knn=lambda_knn,
            reach=reach,
            relaxation=relaxation,
            regression=regression,
            tol=tol,
            max_iter=max_iter,
        )
        run = Run(device=device, n_jobs=n_jobs, memory_limit=memory_limit, show_progress_bar=show_progress_bar)
        windows = (self if self.windows is not None else self.compute_windows()).windows
        assert windows is not None
        transport = estimate_velocity(self.smoothed, windows, options, run)
        return self._keep("velocity", options, transport=transport)

    @all_or_nothing()
    def fit_field(
        self,
        hidden: Sequence[int] = FieldOptions.hidden,
        *,
        use_time: bool = FieldOptions.use_time,
        lambda_smooth: float = FieldOptions.lambda_smooth,
        lambda_curl: float = FieldOptions.lambda_curl,
        lambda_divergence: float = FieldOptions.lambda_divergence,
        n_steps: int = FieldOptions.n_steps,
        batch_size: int = FieldOptions.batch_size,
        learning_rate: float = FieldOptions.learning_rate,
        held_out: float = FieldOptions.held_out,
        patience: int = FieldOptions.patience,
        random_state: int = FieldOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> Self:
        r"""Fit a smooth velocity field: a network of position and time, which has a velocity for any position.

        The loss is the squared error plus the penalties, all in standardised units. A cell counts by how much time
        varies around it, ``transport.fit_weight``; without regression, by its :attr:`confidence`.
        Neighbours may differ in how they return to their mean, each from its own side; that part of the velocity is
        taken off before neighbours are compared. Runs the steps before with default parameters where they were not run.

        Parameters
        ----------
        hidden
            Sizes of the hidden layers of the network.
        use_time
            Whether time is an input next to the position.
        lambda_smooth
            Weight of the mean squared difference between the velocities of neighbours, at least 0.
        lambda_curl
            Weight of the squared curl, :math:`\|J - J^\top\|_F^2 / 2 d` with the Jacobian J in d dimensions, at least
            0; estimated along random directions :cite:`hutchinson:89`.
        lambda_divergence
            Weight of the squared divergence, :math:`(\mathrm{tr} J)^2 / d`, at least 0; estimated likewise.
        n_steps
            Largest number of training steps.
        batch_size
            Number of cells of a step.
        learning_rate
            First step size of Adam, above 0. It falls to zero along a cosine.
        held_out
            Share of the cells that are not trained on, in ``(0, 0.5]``, at most 10 000 cells. The step with the
            smallest error on them is kept.
        patience
            Number of evaluations, one per 25 steps, without a smaller error, after which training stops.
        random_state
            Seed of initial weights, batches and held-out cells.
        device
            Torch device, such as ``"cpu"`` or ``"cuda"``. ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Self, with :attr:`field`. A transition matrix from an earlier field is cleared.

        Raises
        ------
        FloatingPointError
            If training diverges.
        TypeError
            If a parameter is of the wrong type.
        ValueError
            If a parameter is out of range, or fewer than ten cells have a velocity.

        Examples
        --------
        >>> vk.fit_field(lambda_smooth=0.3, hidden=(64, 64), n_steps=100).velocity.shape
        (300, 20)
        >>> vk.field.best_step <= 100
        True
        """
        options = FieldOptions(
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
        )
        run = Run(device=device, show_progress_bar=show_progress_bar)
        if self.transport is None:
            self.compute_velocity(device=device, show_progress_bar=show_progress_bar)
        found = self._needed("transport", "compute_velocity")
        field = fit_field(
            self.cells.x,
            self.cells.time,
            found.velocity,
            found.fit_weight,
            self.smoothed.graph,
            found.relaxation,
            options,
            run,
            smoothed=self.smoothed,
        )
        return self._keep("field", options, field=field)

    @all_or_nothing()
    def compute_uncertainty(
        self,
        n_members: int = UncertaintyOptions.n_members,
        *,
        random_state: int = UncertaintyOptions.random_state,
        n_jobs: int | None = None,
        show_progress_bar: bool = True,
    ) -> Self:
        """Estimate how far the direction of each velocity may be off, from fields of halves of the cells.

        The cells are halved at random, and each half goes through windows, transport and training by itself, with the
        parameters that the kernel used, as many clusters, and windows of half the size. The spread of the fields of
        halves is the sampling variance of the field of all cells :cite:`mccarthy:69`. The true error is larger, because
        all fields share what noise does to the graph and to the time. So the angles are widened by as much as the worst
        of some twenty families of simulated counts needs: they are bounds. Runs the steps before with default
        parameters where they were not run.

        Parameters
        ----------
        n_members
            Number of fields, even and at least 2: both halves of the cells are used.
        random_state
            Seed of the halves, of the clusters and of training.
        n_jobs
            Number of jobs. ``None`` takes that of joblib's ``parallel_config``, which also chooses between threads,
            processes and a cluster; without one, there are as many jobs as torch has threads. The result is the same.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Self, with :attr:`uncertainty`. The transition matrix stays, unless it was made with ``model="monte_carlo"``.

        Raises
        ------
        RuntimeError
            If the kernel has real time points.
        ValueError
            If a parameter is out of range, or half the cells are too few for windows.

        Examples
        --------
        >>> vk = vk.fit_field(n_steps=50).compute_uncertainty(n_members=2)
        >>> vk.velocity_uncertainty.shape
        (300,)
        """
        options = UncertaintyOptions(n_members=n_members, random_state=random_state)
        run = Run(n_jobs=n_jobs, show_progress_bar=show_progress_bar)
        if self.field is None:
            self.fit_field(show_progress_bar=show_progress_bar)
        uncertainty = compute_uncertainty(
            self.cells.x,
            self.cells.time,
            self.connectivities,
            self._needed("windows", "compute_windows"),
            self._needed("field", "fit_field"),
            options,
            steps=self._steps(),
            labels=self.cells.labels,
            components=self._components,
            run=run,
        )
        return self._keep("uncertainty", options, uncertainty=uncertainty)

    @all_or_nothing()
    def fate_intervals(
        self,
        states: Mapping[str, Sequence[str]],
        cluster_key: str | None = None,
        *,
        weight: float = IntervalOptions.weight,
        level: float = IntervalOptions.level,
        n_members: int = 6,
        random_state: int = IntervalOptions.random_state,
        n_jobs: int | None = None,
        show_progress_bar: bool = True,
    ) -> pd.DataFrame:
        r"""Compute the mean fates of each cluster, and an interval for each.

        Fates come from the transition matrix, mixed with the neighbour graph as in ``0.8 * vk + 0.2 * ck``. Fields of
        random halves of the cells, and halves of the cells of each state, say how much depends on which cells were
        sampled. What all halves share, as the graph and the time, is more than that, and cannot be seen: it is taken
        from simulated counts. So with :math:`y = \arcsin \sqrt p` the interval is
        :math:`y \pm z \sqrt{(1.5 s)^2 + 0.15^2}`, where :math:`s` is the spread of the halves and :math:`z` the
        quantile of the level. At a level of 95 % it is about 0.28 to either side of one half.

        Parameters
        ----------
        states
            Names of the cells of each terminal state, as of :meth:`suggest_terminal_states`.
        cluster_key
            Key in ``adata.obs`` of the groups of cells. All cells are one group where not given.
        weight
            Share of the kernel, in ``(0, 1]``; the rest is of the neighbour graph.
        level
            Share of the intervals that contain the truth, in ``(0, 1)``.
        n_members
            Number of fields, even and at least 2: both halves of the cells are used.
        random_state
            Seed of the halves and of training.
        n_jobs
            Number of jobs. ``None`` takes that of joblib's ``parallel_config``, and as many as torch has threads
            without one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        One row for each group and fate, with ``probability``, ``low``, ``high`` and the number of ``cells``. Cells that
        stand for a state are not counted in their group.

        Raises
        ------
        KeyError
            If the clusters are missing, or cells of a state are not those of the data.
        RuntimeError
            Before :meth:`compute_transition_matrix`, or for a backward kernel.
        ValueError
            If a parameter is out of range, there is no state or one without cells, or half the cells are too few.

        Examples
        --------
        >>> table = vk.fate_intervals(
        ...     vk.suggest_terminal_states("clusters"), "clusters", n_members=2
        ... )
        >>> table.loc[("Progenitor", "Fate A")].index.tolist()
        ['probability', 'low', 'high', 'cells']
        >>> bool(
        ...     (table["low"] <= table["probability"]).all()
        ...     and (table["probability"] <= table["high"]).all()
        ... )
        True
        """
        options = IntervalOptions(weight=weight, level=level, random_state=random_state)
        halves = UncertaintyOptions(n_members=n_members, random_state=random_state)
        if self.backward:
            raise RuntimeError("Expected a forward kernel for fates, found a backward one.")
        rows = rows_of_states(self.adata, states)
        labels = np.full(self.adata.n_obs, "all")
        if cluster_key is not None:
            labels = read_clusters(self.adata, cluster_key).astype(str).to_numpy()
        matrix = self._needed("transition_matrix", "compute_transition_matrix")
        asked: Any = self._request
        if asked is None or asked.gene_subset is not None or self._transition_matrix is not self._computed:
            raise RuntimeError(
                "Expected the transition matrix of `compute_transition_matrix`, without `gene_subset` and with a "
                "similarity by name, found another one, which cannot be made again for halves of the cells."
            )
        asked = replace(asked, model="deterministic")
        ends = self._end_of_cells(asked.settle, asked.smooth) if asked.settle else None
        if self.field is None:
            self.fit_field(show_progress_bar=show_progress_bar)
        velocities = half_velocities(
            self.cells.x,
            self.cells.time,
            self.connectivities,
            self._needed("windows", "compute_windows"),
            halves,
            steps=self._steps(),
            labels=self.cells.labels,
            components=self._components,
            run=Run(n_jobs=n_jobs, show_progress_bar=show_progress_bar),
        )
        walk = compute_transitions(self.cells.x, np.zeros_like(self.cells.x), self.connectivities).matrix
        with closing(velocities):
            members = (
                compute_transitions(self.cells.x, velocity, self.connectivities, asked, ends=ends).matrix
                for velocity in velocities
            )
            mixed = (weight * member + (1 - weight) * walk for member in members)
            return fate_intervals(weight * matrix + (1 - weight) * walk, mixed, rows, labels, options)

    def _steps(self) -> Steps:
        """Return the options of the steps to the field, as they were run."""
        known: Any = {name: self._options[name] for name in ("windows", "velocity", "field") if name in self._options}
        return Steps(**known)

    def _compute_velocity(self, run: Run) -> Self:
        return self.compute_velocity(**run.to_dict())


# Each knows the other, to say of a method or an option where it is.
OTVelocityKernel._other, OTTimeSeriesKernel._other = OTTimeSeriesKernel, OTVelocityKernel
