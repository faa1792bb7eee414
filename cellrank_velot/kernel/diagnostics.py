"""Methods that check a kernel before one trusts it: whether there is a direction, and where it begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_flag
from cellrank_velot.cells import read_clusters, read_expression
from cellrank_velot.direction import DirectionTest, FlipTest, TimeCheck, direction_test, flip_test, time_check
from cellrank_velot.fates import (
    EndOptions,
    SourceOptions,
    TerminalStates,
    suggest_initial_states,
    terminal_states,
    with_stability,
)
from cellrank_velot.kernel.base import BaseVelocityKernel

__all__ = ["DirectionTests", "States"]


class DirectionTests(BaseVelocityKernel):
    """Tests of the direction that a pseudotime gives."""

    def test_direction(
        self,
        cluster_key: str | None = None,
        *,
        layer: str | None = None,
        flip: bool = True,
        max_cells: int = 1500,
        n_splits: int = 1,
        n_draws: int = 10,
        level: float = 0.05,
        random_state: int = 0,
    ) -> DirectionTest:
        """Test whether the cells form a course, and whether the time runs along it. One call, one verdict.

        A pseudotime is smooth over the cells that it was computed from, whether they have an order or not. So the
        pseudotime is computed anew on halves of the genes, and on clouds of cells without structure.
        :func:`cellrank_velot.direction.direction_test` has the formulas. The verdict is the same for reversed time: no
        such test can tell which end is the beginning, see :func:`cellrank_velot.direction.root_check`.

        Parameters
        ----------
        cluster_key
            Key in ``adata.obs`` of clusters, for the flow across each border between them; none where not given.
        layer
            Key in ``adata.layers`` of the expression to halve. Where not given, ``"counts"``, or else ``adata.X``. Of
            its genes, those in ``adata.var["highly_variable"]`` are taken. With fewer than 24 genes the test has the
            positions alone, and is weaker.
        flip
            Whether to run :func:`cellrank_velot.direction.flip_test` on the same cells, too, and report it. It does
            not change the verdict.
        max_cells
            Number of cells to test; of more, as many are drawn at random.
        n_splits
            Number of times that the genes are halved.
        n_draws
            Number of clouds of each comparison.
        level
            Level at which there is a direction.
        random_state
            Seed of the cells drawn, of halves and clouds.

        Returns
        -------
        The verdict. Printed, it says what speaks for a direction and what against.

        Raises
        ------
        KeyError
            If the clusters or the layer are missing.
        TypeError
            If an option is not a number.
        ValueError
            If an option is out of range.

        Examples
        --------
        >>> test = vk.test_direction("clusters", layer="true_expression")
        >>> test.found, float(test.share)
        (True, 1.0)
        >>> print(test)
        Direction: yes, p = ...
        >>> test.border_frame().columns.tolist()
        ['flow', 'p_value', 'p_adjusted']
        """
        cells = self.cells
        found = read_expression(self.adata, layer)
        expression, counts = (None, False) if found is None else found
        return direction_test(
            *(cells.x, cells.time, expression, _labels(self, cluster_key)),
            counts=counts,
            flip=flip,
            max_cells=max_cells,
            n_splits=n_splits,
            n_draws=n_draws,
            level=level,
            random_state=random_state,
        )

    def flip_test(
        self,
        cluster_key: str | None = None,
        *,
        smooth: bool = True,
        neighborhoods: NDArray[np.int64] | None = None,
        window_options: Mapping[str, Any] | None = None,
        velocity_options: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> FlipTest:
        """Reverse the time and see whether the velocity reverses.

        A flow reverses with time, noise does not. The velocity is computed anew for the time given and for reversed
        time. The test treats both directions of time alike, so it cannot say which one is right.

        Parameters
        ----------
        cluster_key
            Key in ``adata.obs`` of clusters, for means by cluster; none where not given.
        smooth
            Whether to average velocities over each cell and its neighbours before they are compared.
        neighborhoods
            Codes of the spatial clusters in which windows are made, shape ``[n_cells]``; KMeans in the basis where not
            given.
        window_options
            Options of the windows by name, such as ``{"n_clusters": 5}``: those of :meth:`compute_windows`, with its
            defaults.
        velocity_options
            Options of the transport by name, such as ``{"epsilon": 0.1}``: those of :meth:`compute_velocity`, with its
            defaults but for ``reach=None`` and ``relaxation=1.0``.
        random_state
            Seed of KMeans.

        Returns
        -------
        Cosine between each cell's velocity and minus its velocity in reversed time. Printed, it says what it means.

        Raises
        ------
        KeyError
            If the clusters are missing.
        TypeError
            If an option is unknown or of the wrong type.
        ValueError
            If an option is out of range, or no windows can be built.

        Examples
        --------
        >>> test = vk.flip_test("clusters")
        >>> bool(test.mean > 0.5), bool(test.reversed_share > 0.5)
        (True, True)
        >>> test.to_frame().index.tolist()
        ['all', 'Fate A', 'Fate B', 'Progenitor', 'Transition']
        """
        cells = self.cells
        return flip_test(
            *(cells.x, cells.time, self.connectivities, _labels(self, cluster_key)),
            smooth=smooth,
            neighborhoods=neighborhoods,
            window_options=window_options,
            velocity_options=velocity_options,
            random_state=random_state,
        )

    def check_time(self, cluster_key: str | None = None) -> TimeCheck:
        """Compare the time with the distance from its own root, along the neighbour graph.

        Where time falls while the distance rises, the velocity leads back to the root.
        :func:`cellrank_velot.pl.time_check` draws where that is.

        Parameters
        ----------
        cluster_key
            Key in ``adata.obs`` of clusters, for shares by cluster; none where not given.

        Returns
        -------
        Distance from the root, and agreement with the time, of each cell. The root is what ``pp.prepare`` has written
        for this time, otherwise the earliest 1 % of the cells. Printed, it says what it means.

        Raises
        ------
        KeyError
            If the clusters are missing.

        Examples
        --------
        >>> check = vk.check_time("clusters")
        >>> print(check)
        Time rises with the distance from its root in 100% of the cells.
        >>> check.to_frame().index.tolist()
        ['all', 'Fate A', 'Fate B', 'Progenitor', 'Transition']
        """
        cells = self.cells
        return time_check(cells.x, cells.time, self.connectivities, _labels(self, cluster_key), self._roots)


class States(BaseVelocityKernel):
    """Suggestions of terminal and initial states, from the transition matrix."""

    def suggest_terminal_states(
        self,
        cluster_key: str | None = None,
        *,
        n_cells: int | None = EndOptions.n_cells,
        max_through: float = EndOptions.max_through,
        min_stay: float = EndOptions.min_stay,
        min_time: float = EndOptions.min_time,
        n_groups: int | None = EndOptions.n_groups,
        n_halves: int | None = EndOptions.n_halves,
        random_state: int = EndOptions.random_state,
        show_progress_bar: bool = True,
    ) -> TerminalStates:
        """Suggest terminal states, from the shape of the data and the flow, for ``GPCCA.set_terminal_states``.

        The clusters, and groups that are made from smoothed positions, are candidates. One is an end if hardly any
        shortest way from the root to other cells leads through it, if it is late, and if the flow stays. A cluster that
        nothing is reached through is an end also where the flow leaves it: a pseudotime is wrong at small ends first.
        They are the ends of the process in time, for a backward kernel, too.

        Parameters
        ----------
        cluster_key
            Key in ``adata.obs`` of clusters, which are candidates and name the states. Without it there are groups of
            the positions alone, called ``terminal``: small ends that somebody told apart by their genes are not found.
        n_cells
            Number of cells of each state, those farthest from the root; all cells where there are fewer. Where not
            given, 30, or one in a hundred of all cells if that is more, but at most half of those at the end, and at
            least 10.
        max_through
            Most cells that are reached through the group, for each of its own, without a sign of the flow.
        min_stay
            Least ratio of the flow that stays for a group that is no cluster, see
            :meth:`~cellrank_velot.fates.TerminalStates.to_frame`.
        min_time
            Share of the cells that must be earlier than the group, in ``[0, 1]``.
        n_groups
            Number of groups that are made from positions. Where not given, ``5 * log10(n_cells) - 5``, which is 10 for
            1000 cells, of 20 cells in the mean at least.
        n_halves
            Number of random halves of the cells in which the ends are sought again, to see which are stable. Where not
            given, 10 up to 20 000 cells, none beyond.
        random_state
            Seed of the groups and halves.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        Names of cells by state: a dictionary with ``to_frame()``, the evidence for all candidates, and ``add(name)``.
        Each state is called after its cluster; ``_1``, ``_2`` tell several of one name apart. Empty, with a warning,
        where there is no end, as on a cycle.

        Raises
        ------
        KeyError
            If the clusters are missing.
        RuntimeError
            Before :meth:`compute_velocity`.
        TypeError
            If an option is not a number.
        ValueError
            If an option is out of range.

        Examples
        --------
        >>> states = vk.suggest_terminal_states("clusters", n_cells=10)
        >>> {name: len(states[name]) for name in sorted(states)}
        {'Fate A': 10, 'Fate B': 10}
        >>> table = states.to_frame()  # all candidates, with the reasons why others are not taken
        """
        options = EndOptions(
            n_cells=n_cells,
            max_through=max_through,
            min_stay=min_stay,
            min_time=min_time,
            n_groups=n_groups,
            n_halves=n_halves,
            random_state=random_state,
        )
        check_flag("show_progress_bar", show_progress_bar)
        ends = self._find_ends(cluster_key, options=options)
        ends = with_stability(ends, self._asked_of_ends(cluster_key), options, show_progress_bar=show_progress_bar)
        return terminal_states(ends, self.adata.obs_names, options, cluster_key)

    def suggest_initial_states(
        self,
        cluster_key: str | None = None,
        *,
        n_cells: int | None = SourceOptions.n_cells,
        min_persistence: float = SourceOptions.min_persistence,
        max_time: float = SourceOptions.max_time,
        n_steps: int | None = SourceOptions.n_steps,
    ) -> dict[str, list[str]]:
        """Suggest initial states, the sources of the flow, in the form that ``GPCCA.set_initial_states`` takes.

        Sources are the sinks of the reversed flow. The reversed flow also collects at the tips of fates, where few
        cells come from beyond. So a source must be early.

        Parameters
        ----------
        cluster_key
            Key in ``adata.obs`` of the clusters that name the states. They are called ``initial`` where not given.
        n_cells
            Number of cells of each state, and the fewest that may come from a source. One in a hundred cells, at least
            10, where not given.
        min_persistence
            Smallest contrast of a source, as a natural logarithm: how many times more mass of the reversed flow arrives
            there than at the pass to a greater source. The default 1.5 is a contrast of 4.5.
        max_time
            Share of the cells that may be earlier than the centre of a source, in ``[0, 1]``.
        n_steps
            Number of steps of the flow. Where not given, twice as many as it takes from the beginning to the end of
            time, at most 2000.

        Returns
        -------
        Names of cells by state, the most distinct state first. Each state is called after the most common cluster of
        its cells; ``_1``, ``_2`` tell states of one cluster apart. Empty, with a warning, where the flow has no source.

        Raises
        ------
        KeyError
            If the clusters are missing.
        RuntimeError
            Before :meth:`compute_transition_matrix`.
        TypeError
            If an option is not a number.
        ValueError
            If an option is out of range.

        Examples
        --------
        >>> list(vk.suggest_initial_states("clusters"))
        ['Progenitor']
        """
        options = SourceOptions(n_cells=n_cells, min_persistence=min_persistence, max_time=max_time, n_steps=n_steps)
        return suggest_initial_states(*self._chain(cluster_key), options, backward=self.backward)

    def _chain(self, cluster_key: str | None) -> tuple[Any, Any, Any, Any, Any]:
        matrix = self._needed("transition_matrix", "compute_transition_matrix")
        return matrix, self.connectivities, self.cells.time, self.adata.obs_names, _labels(self, cluster_key)


def _labels(kernel: BaseVelocityKernel, cluster_key: str | None) -> pd.Series | None:
    return None if cluster_key is None else read_clusters(kernel.adata, cluster_key)
