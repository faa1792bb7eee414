"""The kernel for real time points: each snapshot is transported to the next, and cells may grow in number and die."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.cells import find_clone_key, read_clones
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.clones import Clones
from cellrank_velot.kernel.diagnostics import States
from cellrank_velot.kernel.dynamics import Dynamics
from cellrank_velot.kernel.landscape import Landscapes
from cellrank_velot.kernel.plots import SeriesPlots
from cellrank_velot.kernel.populations import Populations
from cellrank_velot.kernel.regulation import Regulations
from cellrank_velot.kernel.resting import Resting
from cellrank_velot.kernel.saving import Saving
from cellrank_velot.kernel.screening import Screens
from cellrank_velot.kernel.transitions import TransitionMatrix
from cellrank_velot.kernel.trends import Trends
from cellrank_velot.storage.saved import STEPS
from cellrank_velot.timeseries import (
    CouplingOptions,
    PopulationOptions,
    SnapshotOptions,
    build_snapshots,
    choose_epsilon,
    couple_snapshots,
)

__all__ = ["OTTimeSeriesKernel"]

logger = logging.getLogger("cellrank_velot")

Mass = Mapping[float, float] | Sequence[float] | Literal["counts"]


class OTTimeSeriesKernel(
    Saving,
    TransitionMatrix,
    Populations,
    States,
    Dynamics,
    Screens,
    Landscapes,
    Regulations,
    Resting,
    Trends,
    Clones,
    SeriesPlots,
):
    """Kernel for real time points, such as days: cells are transported from each to the next, and may grow and die.

    ``OTVelocityKernel(adata, time_kind="experimental")`` returns it, too.

    Parameters
    ----------
    adata
        Annotated data with time points in ``obs``, positions in ``obsm`` and a neighbour graph in ``obsp``. A backed
        one, or positions as a dask array, are read in blocks; of a lazy one :attr:`adata` is a copy with ``obs`` and
        the graph in memory.
    backward
        Direction of the process.
    time_key
        Key in ``adata.obs`` of the time points, in the units that velocities and growth rates are to have. The first of
        ``day``, ``time``, ``hours``, ``age`` and ``experimental_time`` where not given.
    basis
        Key in ``adata.obsm`` of the positions, with or without ``X_``: a PCA, a batch-corrected or latent embedding.
    cluster_key
        Key in ``adata.obs`` of clusters, which name the fates.
    conn_key
        Key in ``adata.obsp`` of the neighbour graph, or ``key_added`` of :func:`scanpy.pp.neighbors`. ``None`` is the
        usual one.
    check_connectivity
        Whether a graph that is not connected is an error; it is a warning otherwise.
    time_kind
        ``"experimental"``: what tells this kernel apart in a file.

    Raises
    ------
    KeyError
        If time, basis, clusters or neighbours are missing.
    TypeError
        If one is not numeric.
    ValueError
        If one has NaN or infinite values, there is one time point only, or time changes from cell to cell.

    Examples
    --------
    >>> from cellrank_velot import OTTimeSeriesKernel
    >>> sk = OTTimeSeriesKernel(series, time_key="day")
    >>> sk = sk.compute_velocity().fit_field(n_steps=100).compute_transition_matrix()
    >>> sk.transition_matrix.shape, sk.growth.shape
    ((400, 400), (400,))
    """

    _options_of_steps = STEPS["experimental"]
    _time = "snapshots at real time points"
    _instead = "`OTVelocityKernel(adata, time_key=...)` is for a pseudotime"

    def __init__(
        self,
        adata: AnnData,
        backward: bool = False,
        time_key: str | None = None,
        basis: str = "X_pca",
        cluster_key: str | None = None,
        conn_key: str | None = "connectivities",
        check_connectivity: bool = False,
        time_kind: Literal["experimental"] = "experimental",
    ) -> None:
        check_choice("time_kind", time_kind, ["experimental"])
        super().__init__(adata, backward, time_key, basis, cluster_key, conn_key, check_connectivity, time_kind)

    @all_or_nothing()
    def compute_windows(
        self,
        batch_size: int = SnapshotOptions.batch_size,
        *,
        random_state: int = SnapshotOptions.random_state,
    ) -> Self:
        """Pair each time point with the next one, in random batches where there are many cells.

        The windows are the batches. A cell is in one batch of sources, unless it is of the last time point, and in one
        batch of targets, unless it is of the first.

        Parameters
        ----------
        batch_size
            Largest number of cells that are transported together, at least 2. A larger time point is cut into batches
            of about equal size, and its partner into as many. The cost of transport grows with the square of this
            number, while the error of a coupling falls with its root.
        random_state
            Seed of the batches.

        Returns
        -------
        Self, with :attr:`windows`. What was computed from earlier windows is cleared.

        Raises
        ------
        ValueError
            If a parameter is out of range.

        Examples
        --------
        Four time points of 100 cells each, in halves:

        >>> sk.compute_windows(batch_size=50).windows.n_pairs
        6
        """
        options = SnapshotOptions(batch_size=batch_size, random_state=random_state)
        windows = build_snapshots(self.cells.time, options)
        logger.info("Built %d pairs of %d windows", windows.n_pairs, windows.n_windows)
        return self._keep("windows", options, windows=windows)

    @all_or_nothing()
    def compute_velocity(
        self,
        epsilon: float | Literal["clones"] = CouplingOptions.epsilon,
        *,
        clone_key: str | None = None,
        tau: float | Sequence[float] = CouplingOptions.tau,
        growth_key: str | None = None,
        mass: Mass | None = None,
        n_passes: int = CouplingOptions.n_passes,
        n_draws: int = CouplingOptions.n_draws,
        tol: float = CouplingOptions.tol,
        max_iter: int = CouplingOptions.max_iter,
        random_state: int = CouplingOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> Self:
        r"""Transport each time point to the next by unbalanced optimal transport; cells may grow in number and die.

        With ``tau`` below one, the transport :cite:`chizat:18` need not keep the mass of each cell. Where it keeps
        less, cells die or divide less often. This growth is averaged over the nearest cells, because a single cell that
        lies apart would else seem to die, and the transport is solved once more with the grown masses. Pairs of cells
        are then drawn from the couplings. Makes windows with default parameters where there are none.

        Parameters
        ----------
        epsilon
            Entropic regularisation, as a share of the mean squared distance between the cells of two time points, above
            0: how much cells of one place differ in their ways. ``"clones"`` takes the one, from 0.0125 to 0.8, whose
            couplings give the places of sisters at the next time point the highest likelihood.
        clone_key
            With ``"clones"``, the key in ``adata.obs`` of a column with gaps, or in ``adata.obsm`` of a matrix of cells
            by barcodes, with or without ``X_``; ``"X_clone"``, ``"clone_id"`` or the like where not given.
        tau
            How strictly the masses of the cells are kept, in ``(0, 1]``; two values are for source and target. 1 keeps
            them exactly, and there is no growth. Leaving them costs :math:`\epsilon \tau / (1 - \tau)`: with 0.9, cells
            grow or die where they would have to move by much more than half of the mean squared distance.
        growth_key
            Key in ``adata.obs`` of the growth rate of each cell that is expected, per unit of time, such as
            :func:`cellrank_velot.pp.score_growth` writes. No growth is expected where not given.
        mass
            Size of the population at each time point: a dictionary from time point to mass, the masses alone in the
            order of the time points, or ``"counts"`` where that
            is the number of cells. The same at each time point where not given, because numbers of cells say how many
            were sampled.
        n_passes
            Number of times that the transport is solved before growth is read from it, at least 1. From the second pass
            on, the cost of moving a cell is what it moves beyond the mean motion of the nearest cells, so that a
            population may move far without seeming to die. More passes take differences of growth for motion, one pass
            takes motion for growth: for groups that are far apart and do not move, 1 finds the growth best. No effect
            where ``tau`` is 1. :meth:`interpolate` has a number of its own.
        n_draws
            Number of pairs drawn for each cell, both forward and backward, from 1 to 1000.
        tol
            Tolerance of the solver: Euclidean norm by which the column sums of a coupling may be off.
        max_iter
            Largest number of iterations of each coupling. Couplings that did not converge are reported.
        random_state
            Seed of the draws.
        device
            Torch device, such as ``"cpu"`` or ``"cuda"``. ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Self, with :attr:`transport`, :attr:`couplings` and :attr:`growth`. What was computed from earlier couplings is
        cleared.

        Raises
        ------
        KeyError
            If ``growth_key`` is not in ``adata.obs``, or there are no clones.
        TypeError
            If a parameter is of the wrong type.
        ValueError
            If a parameter is out of range, ``mass`` is not positive or not given for each time point, or there are too
            few clones with cells at two consecutive time points.

        Examples
        --------
        ``mass`` says how the population grows, and so how cells do:

        >>> bool(sk.compute_velocity(mass={0: 1.0, 1: 1.4, 2: 2.0, 3: 3.0}).growth.mean() > 0)
        True

        Barcodes say how much cells of one place differ in their ways:

        >>> bk = OTVelocityKernel(barcoded, time_key="day", time_kind="experimental")
        >>> bk = bk.compute_velocity(epsilon="clones", clone_key="X_clone")
        >>> 0.05 < bk.settings["velocity"]["epsilon"] < 0.5
        True
        """
        codes = self._clones(epsilon, clone_key)
        options = PopulationOptions(
            epsilon=CouplingOptions.epsilon if isinstance(epsilon, str) else epsilon,
            clone_key=None if codes is None else find_clone_key(self.adata, clone_key),
            tau=tau,
            n_passes=n_passes,
            n_draws=n_draws,
            tol=tol,
            max_iter=max_iter,
            random_state=random_state,
            growth_key=growth_key,
            mass=mass if mass is None or isinstance(mass, str) else "given",
        )
        run = Run(device=device, show_progress_bar=show_progress_bar)
        prior, masses = self._prior_growth(growth_key), self._mass(mass)
        windows = (self if self.windows is not None else self.compute_windows()).windows
        assert windows is not None
        if codes is not None:
            choice = choose_epsilon(self.cells.x, self.cells.time, codes, options, prior=prior, run=run)
            options = replace(options, epsilon=choice.best)
            logger.info("Chose `epsilon=%.3g` by %d clones", choice.best, choice.n_clones)
        couplings, transport = couple_snapshots(
            self.cells.x, self.cells.time, windows, options, prior=prior, mass=masses, run=run
        )
        self._prior = prior
        return self._keep("velocity", options, transport=transport, couplings=couplings)

    @all_or_nothing()
    def fit_field(
        self,
        hidden: Sequence[int] = ProcessOptions.hidden,
        *,
        diffusion: float | Literal["auto"] = ProcessOptions.diffusion,
        n_steps: int = ProcessOptions.n_steps,
        batch_size: int = ProcessOptions.batch_size,
        learning_rate: float = ProcessOptions.learning_rate,
        random_state: int = ProcessOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> Self:
        r"""Fit velocity, growth and score of the process whose time points are the data.

        A coupled pair of cells moves along a Brownian bridge: around its path :math:`\mu(t)` it has the variance
        :math:`h^2 + \sigma_0^2 (t - t_0) (t_1 - t) / (t_1 - t_0)`, and its mass grows at a constant rate. Here
        :math:`\sigma_0` is half of the noise of the couplings. Of a time point, :math:`h` is half of the median
        distance to the nearest cell over the root of the number of dimensions. Averaged over all pairs, their velocity,
        growth and score (the gradient of the log density) are those of the population, with the right positions and
        masses at every time point. The network is fitted to random points of the bridges :cite:`tong:24`, weighted by
        mass, and nothing is simulated. Far from all bridges, no head exceeds what the training saw. Runs the steps
        before with default parameters where they were not run.

        Parameters
        ----------
        hidden
            Sizes of the hidden layers of the network.
        diffusion
            Diffusion :math:`\sigma` of single cells, in basis units per root of time, above 0: how much cells of one
            place differ in their ways. The population would move alike with any if the field had no error. ``"auto"``
            takes the one whose Schroedinger bridge has the ``epsilon`` of the couplings.
        n_steps
            Number of training steps.
        batch_size
            Number of points of a step.
        learning_rate
            First step size of Adam, above 0. It falls to zero along a cosine.
        random_state
            Seed of initial weights and points.
        device
            Torch device, such as ``"cpu"`` or ``"cuda"``. ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Self, with :attr:`field`, which has growth and score besides the velocity. A transition matrix from an earlier
        field is cleared.

        Raises
        ------
        FloatingPointError
            If training diverges.
        TypeError
            If a parameter is of the wrong type.
        ValueError
            If a parameter is out of range.

        Examples
        --------
        >>> sk = sk.fit_field(n_steps=100)
        >>> sk.velocity.shape, sk.field.has_heads
        ((400, 10), True)
        """
        options = ProcessOptions(
            hidden=hidden,
            diffusion=diffusion,
            n_steps=n_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            random_state=random_state,
        )
        run = Run(device=device, show_progress_bar=show_progress_bar)
        if self.couplings is None:
            self.compute_velocity(device=device, show_progress_bar=show_progress_bar)
        couplings = self._needed("couplings", "compute_velocity")
        return self._keep("field", options, field=fit_process(couplings, self.cells.x, options, run=run))

    def _compute_velocity(self, run: Run) -> Self:
        return self.compute_velocity(device=run.device, show_progress_bar=run.show_progress_bar)

    def _clones(self, epsilon: Any, clone_key: str | None) -> NDArray[np.int64] | None:
        """Return the clone of each cell where the regularisation is to be chosen by them."""
        if isinstance(epsilon, str):
            check_choice("epsilon", epsilon, ["clones"])
            return read_clones(self.adata, clone_key)[0]
        if clone_key is not None:
            raise ValueError(f"Expected `clone_key` with `epsilon='clones'` only, found it with `epsilon={epsilon!r}`.")
        return None

    def _arguments(self, step: str) -> dict[str, Any]:
        arguments = super()._arguments(step)
        arguments.pop("clone_key", None)  # what was chosen by clones is `epsilon`
        if arguments.get("mass") == "given":
            couplings = self._needed("couplings", "compute_velocity")
            arguments["mass"] = dict(zip(couplings.times.tolist(), couplings.mass.tolist(), strict=True))
        return arguments

    def _mass(self, mass: Mass | None) -> NDArray[np.float64] | None:
        """Return the mass of each time point, relative to the first."""
        if mass is None:
            return None
        points = -self.cells.time_points if self._reversed else self.cells.time_points
        if isinstance(mass, str):
            check_choice("mass", mass, ["counts"])
            values = np.unique(self.cells.time, return_counts=True)[1].astype(np.float64)
        else:
            try:
                given = (
                    dict(mass) if isinstance(mass, Mapping) else dict(zip(sorted(points.tolist()), mass, strict=True))
                )
                by_point = {float(key): float(value) for key, value in given.items()}
            except (TypeError, ValueError):
                by_point = {}
            if set(by_point) != set(points.tolist()):
                raise ValueError(
                    f"Expected `mass` as 'counts', or one for each time point of {points.tolist()} as a dictionary or "
                    f"in their order, found `{mass!r}`."
                )
            # Keys may have come as texts, whose order is another.
            values = np.array([by_point[point] for point in points.tolist()])
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"Expected positive `mass`, found {values.tolist()}.")
        return np.asarray(values / values[0])
