"""What both kernels are: they read an AnnData, keep the result of each step, and clear what came after it.

CellRank is known here by its public names alone.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from cellrank.kernels import BidirectionalKernel
from cellrank.kernels.mixins import ConnectivityMixin
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options, Run
from cellrank_velot._utils.shown import as_table, extent
from cellrank_velot.cells import (
    CellStates,
    TimeKind,
    check_graph,
    find_basis,
    find_graph,
    find_time_key,
    read_basis,
    read_cells,
    read_clusters,
    read_roots,
    readable,
    warn_about_graph,
)
from cellrank_velot.direction.cycle import find_loop
from cellrank_velot.fates import EndOptions, Ends, find_ends
from cellrank_velot.field import VelocityField
from cellrank_velot.field.uncertainty import Uncertainty
from cellrank_velot.graph import SmoothedCells, smooth_cells
from cellrank_velot.timeseries import SnapshotCouplings
from cellrank_velot.transport import TransportVelocity, Windows, end_cells

__all__ = ["BaseVelocityKernel"]

logger = logging.getLogger("cellrank_velot")

# The steps in their order, by the stage that each gives. A new result makes those after it out of date.
STAGES = ("windows", "transport", "field", "uncertainty")
METHODS = ("compute_windows", "compute_velocity", "fit_field", "compute_uncertainty")
# Weights of a graph count relative to each other: all are scaled where the largest is beyond this, or its inverse.
MOST_WEIGHT = 1e100


class WrongTimeError(AttributeError, RuntimeError):
    """A method that this kind of time does not have."""


class BaseVelocityKernel(ConnectivityMixin, BidirectionalKernel):
    """Base of the kernels for a pseudotime and for real time points."""

    # Options of each step, what this kind of time is called, how to get the other one, and its kernel.
    _options_of_steps: ClassVar[dict[str, type[Options]]]
    _time: ClassVar[str]
    _instead: ClassVar[str]
    _other: ClassVar[type[BaseVelocityKernel]]
    # Whether its time runs the other way than that of the AnnData.
    _reversed: bool = False
    # What was read when it was made: the AnnData may change later.
    _names: pd.Index | None = None
    _known_clusters: NDArray[Any] | None = None
    _roots: NDArray[np.int64] | None = None

    def __init__(
        self,
        adata: AnnData,
        backward: bool = False,
        time_key: str | None = None,
        basis: str = "X_pca",
        cluster_key: str | None = None,
        conn_key: str | None = "connectivities",
        check_connectivity: bool = False,
        time_kind: TimeKind = "pseudotime",
    ) -> None:
        if not isinstance(adata, AnnData):
            raise TypeError(f"Expected `adata` to be an `AnnData`, found `{type(adata).__name__}`.")
        conn_key = find_graph(adata, conn_key)
        adata = readable(adata, conn_key)
        self._windows: Windows | None = None
        self._transport: TransportVelocity | None = None
        self._couplings: SnapshotCouplings | None = None
        # The growth that the couplings expected, and couplings that differ from them by their number of passes.
        self._prior: NDArray[np.float64] | None = None
        self._paths: tuple[int, SnapshotCouplings] | None = None
        self._field: VelocityField | None = None
        self._current: VelocityField | None = None
        self._uncertainty: Uncertainty | None = None
        # What they were made of, and the smoothed cells: cheap to make again, so they are not stored.
        self._smoothing: tuple[CellStates, int, SmoothedCells] | None = None
        # The ends, the field or the transport that they were found with, and what else they depend on.
        self._ends: tuple[Any, tuple[Any, ...], Ends] | None = None
        self._logits: sp.csr_matrix | None = None
        self._condition_number: float | None = None
        # What the matrix was asked for, and the matrix itself: a user may put another one in its place.
        self._request: Options | None = None
        self._computed: sp.csr_matrix | None = None
        self._options: dict[str, Options] = {}
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
        self._names, self._roots = self.adata.obs_names, read_roots(self.adata, time_key)
        self._known_clusters = None if cluster_key is None else np.asarray(read_clusters(self.adata, cluster_key))
        super()._read_from_adata(conn_key=conn_key)
        if not self.connectivities.has_canonical_format:  # an edge that is there twice would count twice
            graph = self.connectivities.copy()
            graph.sum_duplicates()
            self._conn: sp.csr_matrix = graph
        largest = float(self.connectivities.data.max(initial=0.0))
        if largest and not 1 / MOST_WEIGHT < largest < MOST_WEIGHT:  # products with positions would overflow, or vanish
            self._conn = sp.csr_matrix(self.connectivities * 2.0 ** -np.frexp(largest)[1])  # which rounds nothing
        self._components = warn_about_graph(self.connectivities, strict=check_connectivity)
        if time_kind == "pseudotime":
            loop = find_loop(self._cells.x, self._cells.time, self.connectivities)
            if loop:
                logger.warning("Along `adata.obs[%r]`, %s", time_key, loop)

    # ---------------------------------------------------------------------------------- an AnnData that has changed
    @property
    def adata(self) -> AnnData:
        """Annotated data, of the cells that the kernel was made of.

        Raises
        ------
        RuntimeError
            If cells were taken away or put in another order since.

        Examples
        --------
        >>> vk.adata is adata
        True
        """
        adata: AnnData = self._adata
        names = self._names
        if adata is None or names is None or adata.obs_names is names:
            return adata
        same = adata.n_obs == len(names) and (adata.obs_names.equals(names) or self._has_same_positions(adata))
        if not same:
            raise RuntimeError(
                f"The kernel was made of {len(names)} cells, and its AnnData has changed since: cells were taken away, "
                f"or put in another order; there are {adata.n_obs} now. Make a new kernel."
            )
        self._names = adata.obs_names
        return adata

    @adata.setter
    def adata(self, adata: AnnData | None) -> None:
        BidirectionalKernel.adata.fset(self, adata)

    def _has_same_positions(self, adata: AnnData) -> bool:
        """Return whether the basis is still what was read."""
        try:
            return np.array_equal(read_basis(adata, self.basis), self.cells.x)
        except (KeyError, TypeError, ValueError):
            return False

    @property
    def _adata_of_pca(self) -> AnnData:
        """The AnnData, whose loadings are those of the positions that were read."""
        if not self._has_same_positions(self.adata):
            raise RuntimeError(
                f"`adata.obsm[{self.basis!r}]` has changed since the kernel was made, and its genes' loadings with it. "
                "Make a new kernel."
            )
        return self.adata

    def _clusters_of(self, cluster_key: str) -> NDArray[np.str_]:
        """Return the cluster of each cell as text; of the key that the kernel was made with, as they were then."""
        now = read_clusters(self.adata, cluster_key).astype(str).to_numpy()
        if cluster_key != self.cluster_key or self._known_clusters is None:
            return now
        known = self._known_clusters.astype(str)
        if not np.array_equal(known, now):
            logger.warning(
                "`adata.obs[%r]` has changed since the kernel was made, which keeps to what it has read. Make a new "
                "kernel for the clusters that are there now",
                cluster_key,
            )
        return known

    # ------------------------------------------------------------------------------------------------ the steps
    @abstractmethod
    def compute_windows(self) -> Self:
        """Group the cells, and pair each group with a later one."""

    @abstractmethod
    def compute_velocity(self, *, device: str = "auto", show_progress_bar: bool = True) -> Self:
        """Compute the velocity of each cell by optimal transport.

        Parameters
        ----------
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.
        """

    @abstractmethod
    def fit_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> Self:
        """Fit a smooth velocity field.

        Parameters
        ----------
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.
        """

    @abstractmethod
    def _compute_velocity(self, run: Run) -> Self:
        """Compute the velocity with default options."""

    def _keep(self, step: str, options: Options, **stages: Any) -> Self:
        """Keep what a step gave and its options, and forget what came from an earlier result."""
        steps = list(self._options_of_steps)
        later = steps[steps.index(step) :]
        self._options = {name: given for name, given in self._options.items() if name not in later}
        self._options[step] = options
        place = min(STAGES.index(name) for name in stages if name in STAGES)
        for name in STAGES[place:]:
            setattr(self, f"_{name}", None)
        if place <= STAGES.index("transport"):
            self._couplings = self._paths = None
        if step == "uncertainty" and self._params.get("model") == "monte_carlo" and self._made_by_field:
            self._forget_matrix()
        if place <= STAGES.index("field"):
            self._current = None
            # A matrix that was made with the transport velocity does not depend on the field.
            if step != "field" or self._made_by_field:
                self._forget_matrix()
        for name, stage in stages.items():
            setattr(self, f"_{name}", stage)
        return self

    @property
    def _made_by_field(self) -> bool:
        """Whether the matrix was made with the velocity of the field, and not with that of transport."""
        return self._params.get("smooth") is not False

    def _forget_matrix(self) -> None:
        self._transition_matrix = self._computed = self._logits = None
        self._condition_number = self._request = None
        self._params: dict[str, Any] = {}

    def _needed(self, stage: str, method: str) -> Any:
        """Return what a step gave, or say which call to make."""
        value = getattr(self, f"_{stage}")
        if value is None:
            raise RuntimeError(f"Compute the {stage.replace('_', ' ')} first, as `.{method}()`.")
        return value

    # -------------------------------------------------------------------------------------------- their results
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
        """Transport velocity of each cell; ``None`` before :meth:`compute_velocity`.

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
    def couplings(self) -> SnapshotCouplings | None:
        """Pairs of cells of consecutive time points; ``None`` before :meth:`compute_velocity`, and of a pseudotime.

        Examples
        --------
        >>> sk.couplings.n_intervals, sk.couplings.times.tolist()
        (3, [0.0, 1.0, 2.0, 3.0])
        """
        return self._couplings

    @property
    def uncertainty(self) -> Uncertainty | None:
        """How far the velocity of each cell may be off; ``None`` before ``compute_uncertainty``.

        Examples
        --------
        >>> vk.uncertainty.std.shape, vk.uncertainty.n_members
        ((300, 20), 2)
        """
        return self._uncertainty

    @property
    def smoothed(self) -> SmoothedCells:
        """Positions, time and graph as windows, transport and regression see them.

        Examples
        --------
        >>> vk.smoothed.x.shape, vk.smoothed.graph.shape
        ((300, 20), (300, 300))
        """
        n_smooth = 0 if self._windows is None else self._windows.n_smooth
        if self._smoothing is None or self._smoothing[0] is not self._cells or self._smoothing[1] != n_smooth:
            cells = smooth_cells(self.cells.x, self.cells.time, self.connectivities, n_smooth)
            self._smoothing = self._cells, n_smooth, cells
        return self._smoothing[2]

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
        """Key in ``adata.obs`` of the clusters that windows are made in; ``None`` where none was given.

        Examples
        --------
        >>> OTVelocityKernel(adata, cluster_key="clusters").cluster_key
        'clusters'
        """
        key = self._init_kwargs["cluster_key"]
        return None if key is None else str(key)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Options of each step that was run, by step.

        Examples
        --------
        >>> vk.settings["velocity"]["epsilon"], vk.settings["field"]["n_steps"]
        (0.05, 300)
        """
        return {step: options.to_dict() for step, options in self._options.items()}

    @property
    def logits(self) -> sp.csr_matrix | None:
        """Similarity of velocity and displacement along each edge of the graph, shape ``[n_cells, n_cells]``.

        Examples
        --------
        >>> vk.logits.shape, float(abs(vk.logits).max()) <= 1  # cosines
        ((300, 300), True)
        """
        if self._logits is not None:
            self._logits.data.setflags(write=False)  # a pickle forgets it
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
        """Confidence in the raw velocity of each cell, from 0 to 1, shape ``[n_cells]``.

        For a pseudotime it is the cosine to the true direction that is to be expected: near 1 where positions around
        the cell change with time and little else, low where they scatter, and 0 where time falls along the velocity, as
        where transport contradicts the regression. It is calibrated on simulated counts; in a single data set the mean
        may be off by 0.1. It does not see a time that is wrong. For real time points, and without regression, it is
        relative to the best cell. See :attr:`transport` ``.confidence`` for the formula.

        Examples
        --------
        >>> sure = vk.confidence > 0.5
        >>> sure.shape
        (300,)
        """
        return self._needed("transport", "compute_velocity").confidence

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Whether a cell lies at an end of the process, shape ``[n_cells]``. Backward: at its beginning.

        With a pseudotime these are the ends of :meth:`suggest_terminal_states`, by the clusters of the kernel where it
        has any. With real time points, and backward, such a cell has a window before it and none after it, and no
        neighbour that is later by more than a quarter of the time from a window to its target.

        Examples
        --------
        >>> float(vk.cells.time[vk.ends].min()) > 0.5  # late cells
        True
        """
        if not self.backward and not self.cells.is_series:
            return self._find_ends(self.cluster_key).label >= 0
        transport = self._needed("transport", "compute_velocity")
        windows = self._needed("windows", "compute_windows")
        return end_cells(transport, windows, self.cells.time, self.connectivities, self.backward)

    def _find_ends(self, cluster_key: str | None, smooth: bool = True, options: EndOptions = EndOptions()) -> Ends:
        """Find the ends by the field, or without one by transport; of perturbed cells those of the unperturbed."""
        source = self._source_of_ends(smooth)
        asked = (*self._labels_and_roots(cluster_key), replace(options, n_halves=None))
        if self._ends is None or self._ends[0] is not source or not _same(self._ends[1], asked):
            x, graph, time, cells, velocity, labels, roots = self._asked_of_ends(cluster_key, smooth)
            by_flow = self.cells.is_series
            found = find_ends(x, graph, time, cells, velocity, labels, roots, options, by_flow=by_flow)
            self._ends = source, asked, found
        return self._ends[2]

    def _asked_of_ends(self, cluster_key: str | None, smooth: bool = True) -> tuple[Any, ...]:
        """Return what :func:`find_ends` takes, but for the options."""
        source, cells, at = self._source_of_ends(smooth), self.smoothed, self.cells
        velocity = np.nan_to_num(source.velocity) if hasattr(source, "velocity") else source(cells.x, cells.time)
        return at.x, self.connectivities, at.time, cells, velocity, *self._labels_and_roots(cluster_key)

    def _source_of_ends(self, smooth: bool) -> Any:
        """Return the field whose flow comes to the ends, or transport without one."""
        field: Any = getattr(self._field, "field", self._field) if smooth else None
        return field or self._needed("transport", "compute_velocity")

    def _labels_and_roots(self, cluster_key: str | None) -> tuple[NDArray[np.str_] | None, NDArray[np.int64] | None]:
        return None if cluster_key is None else self._clusters_of(cluster_key), self._roots

    @property
    def raw_velocity(self) -> NDArray[np.float64]:
        """Velocity before the field, in units of the basis per unit of time, shape ``[n_cells, n_dims]``.

        For a pseudotime it is the mean of transport and of a regression on time, and transport alone with
        ``compute_velocity(regression=False)`` and for real time points.

        Cells without an estimate are NaN, never zero.

        Examples
        --------
        >>> vk.raw_velocity.shape
        (300, 20)
        """
        return self._needed("transport", "compute_velocity").velocity

    @property
    def velocity(self) -> NDArray[np.float64]:
        """Velocity of the field at each cell, in units of the basis per unit of time, shape ``[n_cells, n_dims]``.

        Examples
        --------
        >>> metrics.cosine_to_truth(vk.velocity, adata.obsm["true_velocity_pca"]) > 0.7
        True
        """
        return self._needed("field", "fit_field")(self.cells.x, self.cells.time)

    def _arguments(self, step: str) -> dict[str, Any]:
        """Return the arguments with which a step was run."""
        return self._options[step].to_dict()

    # ------------------------------------------------------------------------------------------ CellRank's contract
    def _repr_html_(self) -> str:
        """Return a table for notebooks: of which cells, and which steps are done."""
        key, cells = self._init_kwargs, self.cells
        facts: dict[str, Any] = {
            "cells": f"{cells.n_cells}, in {cells.n_dims} dimensions of obsm[{self.basis!r}]",
            "time": f"{self._time} obs[{key['time_key']!r}], {extent(cells.time)}",
            "process": "backward" if self.backward else "forward",
        }
        if self.cluster_key is not None:
            facts["clusters"] = f"obs[{self.cluster_key!r}]"
        done = {}
        for step, stage, method in zip(self._options_of_steps, STAGES, METHODS, strict=False):
            result = getattr(self, f"_{stage}")
            done[step] = result is not None
            facts[step] = f"not yet: .{method}()" if result is None else result
        done["transitions"] = self._transition_matrix is not None
        shown = ", ".join(f"{name}={value}" for name, value in self.params.items())
        facts["transitions"] = shown if done["transitions"] else "not yet: .compute_transition_matrix()"
        return as_table(str(self), facts, done)

    def __invert__(self) -> Self:
        kernel: Self = self._copy_ignore("_transition_matrix", "_computed", "_logits")
        kernel._backward = not self.backward
        kernel._init_kwargs["backward"] = kernel._backward
        kernel._forget_matrix()
        return kernel

    def _refuse_options(self, method: str, names: Sequence[str]) -> None:
        """Say of options that only the other kind of kernel has where they are."""
        if not names or not hasattr(self._other, method):
            return
        there = signature(getattr(self._other, method)).parameters
        for name in names:
            if name in there:
                raise TypeError(
                    f"Expected `{name}` with {self._other._time} only, found it in `{method}` of {self._time}: "
                    f"{self._instead}."
                )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say of a method that only the other kind of kernel has where it is."""
            if name[0] != "_" and hasattr(self._other, name) and not hasattr(type(self), name):
                raise WrongTimeError(
                    f"Expected {self._other._time}, found {self._time}, which has no `{name}`: {self._instead}."
                )
            return super().__getattribute__(name)  # raises what it raised before


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Return whether arrays and options are the same."""
    return all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b
        for a, b in zip(one, other, strict=True)
    )
