"""Trajectories: the paths of cells along the velocity, forward or backward in time.

Depends on the rest of this folder, numpy and torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.validation import check_choice, check_integer, check_number
from cellrank_velot.dynamics.guide import Field, TimeFrom, drift_of, guided, mean_speed
from cellrank_velot.dynamics.motion import SIGNS, Direction, Limits, check_motion_options, move
from cellrank_velot.dynamics.paths import Status, Trajectories, join
from cellrank_velot.dynamics.region import Companions, Region
from cellrank_velot.dynamics.solvers import Method, OdeStep
from cellrank_velot.dynamics.starts import check_starts, codes_of, target_codes

__all__ = ["check_trajectory_options", "compute_trajectories"]

logger = logging.getLogger("cellrank_velot")

# Share of the spacing by which a particle moves before its nearest cells are searched for: more of it slows it down, as
# the cells that draw it fall behind.
SEARCH_EVERY = 0.1


def compute_trajectories(
    field: Field,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    starts: NDArray[np.int64] | Sequence[int],
    *,
    clusters: Sequence[Any] | None = None,
    target_cluster: str | Sequence[str] | None = None,
    current: Field | None = None,
    direction: Direction = "forward",
    n_trajectories: int = 20,
    n_steps: int = 400,
    step_size: float = 0.005,
    method: Method = "rk4",
    rtol: float = 1e-4,
    atol: float = 1e-6,
    time_from: TimeFrom = "cells",
    confine: float = 0.7,
    max_distance: float = 2.5,
    min_speed: float = 0.1,
    n_neighbors: int = 15,
    max_attempts_factor: int = 10,
    save_every: int = 1,
    random_state: int = 0,
    device: str = "auto",
    show_progress_bar: bool = False,
) -> Trajectories:
    """Follow cells along a velocity field.

    All particles move at once. Each ends with a :class:`Status`: it *arrived* at the target; it *stalled*, slower than
    ``min_speed``; it *left the data*, and its path ends where it was last among them; it *ran out of steps*; or it
    *came to the end of time*, which only the time of a path does.

    Parameters
    ----------
    field
        The velocity, such as a :class:`cellrank_velot.field.VelocityField`, or :class:`Interpolated`.
    x, time
        Positions and times of the cells, shapes ``[n_cells, n_dims]`` and ``[n_cells]``, times in ``[0, 1]``.
    starts
        Positions of the cells to start from, shape ``[n_starts]``; ``n_trajectories`` of them are drawn where there are
        more.
    clusters
        Cluster of each cell, of length ``n_cells``; needed for a target. None where not given.
    target_cluster
        Cluster, or several, to arrive at. Only trajectories that come to one are kept, and each ends at its last point
        before it leaves it. All trajectories are kept where not given.
    current
        The part of ``field`` that changes its sign when time is reversed; the rest leads to the data, in either
        direction, see :func:`cellrank_velot.dynamics.guide.drift_of`. Used backward; all of ``field`` where not given.
    direction
        ``"forward"``, ``"backward"``, or ``"both"`` for two trajectories from each start.
    n_trajectories
        Number of trajectories, in each direction.
    n_steps
        Largest number of steps.
    step_size
        Time of one step, of which all cells have one in all: a particle of mean speed moves by this fraction of the
        mean speed. It must be short enough for particles to pass several steps between one cell and the next.
    method
        ``"euler"``, ``"rk4"``, or ``"dopri5"``, which adapts its steps between two points that are ``step_size`` apart.
    rtol, atol
        Tolerances of ``"dopri5"``.
    time_from
        The time at which the field is asked: ``"cells"``, the mean time of the cells around the particle; ``"path"``,
        which moves along from the time of the start to the end of time; or ``"start"``, which stays that of the start.
    confine
        How fast a particle returns to the data: while it moves by the spacing of the cells, its distance from the mean
        of the cells around it falls by the factor ``exp(-confine)``. 0 for the field alone, whose errors add up along
        a path until it leaves the data.
    max_distance
        Distance from the data at which a particle has left them, in units of the spacing of the cells nearby; a cell
        lies at about 1.
    min_speed
        Speed below which a particle has stalled, as a share of the mean speed of the cells; measured on the way by half
        of the spacing of the cells, so that one that goes in a small circle has stalled, too.
    n_neighbors
        Number of nearest cells, five at least, that draw a particle, tell its time and vote on its cluster.
    max_attempts_factor
        With a target, up to this many times ``n_trajectories`` starts are tried.
    save_every
        Steps from one point kept to the next.
    random_state
        Seed of the choice of starts.
    device
        Torch device, or ``"auto"``.
    show_progress_bar
        Whether to show a progress bar.

    Returns
    -------
    The trajectories, at most ``n_trajectories`` in each direction.

    Raises
    ------
    KeyError
        If a target is not among the clusters.
    ValueError
        If there are no starts, an option is out of range, or a target comes without clusters.

    Examples
    --------
    >>> x, time = vk.cells.x, vk.cells.time
    >>> early = np.flatnonzero(time < 0.1)
    >>> paths = dynamics.compute_trajectories(
    ...     vk.field, x, time, early, n_trajectories=5, n_steps=50
    ... )
    >>> len(paths), bool((paths.lengths <= 51).all())
    (5, True)
    """
    check_trajectory_options(direction, n_trajectories, method, rtol, atol, max_attempts_factor)
    check_motion_options(
        n_steps, step_size, save_every, time_from, confine, max_distance, min_speed, n_neighbors, random_state
    )
    labels, names = codes_of(clusters, x.shape[0])
    targets = target_codes(target_cluster, names)
    starts = check_starts(starts, x.shape[0])
    n_starts = n_trajectories * (1 if targets is None else max_attempts_factor)
    chosen = np.random.default_rng(random_state).permutation(starts)[:n_starts]
    if chosen.size < n_trajectories:
        logger.info("Only %d cells to start from: computing as many trajectories", chosen.size)
    where = resolve_device(device)
    region = Region.of(x, time, labels, n_neighbors=n_neighbors, random_state=random_state, device=where)
    limits = Limits(
        n_steps=n_steps,
        step_size=step_size,
        max_distance=max_distance,
        min_speed=min_speed * mean_speed(field, x, time),
        save_every=save_every,
    )
    found = []
    for sign in SIGNS[direction]:
        companions = Companions(region, SEARCH_EVERY)
        paths = move(
            OdeStep(
                guided(drift_of(field, current, sign, where), companions, confine, time_from, step_size),
                method,
                rtol,
                atol,
            ),
            x[chosen],
            time[chosen],
            companions,
            limits,
            sign=sign,
            time_from=time_from,
            start_ix=chosen,
            clusters=names,
            targets=targets,
            show_progress_bar=show_progress_bar,
        )
        if targets is not None:
            paths = _arrived(paths, n_trajectories, target_cluster, sign)
        found.append(paths)
    return join(found)


def check_trajectory_options(
    direction: str, n_trajectories: int, method: str, rtol: float, atol: float, max_attempts_factor: int
) -> None:
    """Refuse options of :func:`compute_trajectories` that are out of range.

    Raises
    ------
    TypeError, ValueError
        If one is.
    """
    check_choice("direction", direction, Direction)
    check_choice("method", method, Method)
    check_integer("n_trajectories", n_trajectories, low=1)
    check_integer("max_attempts_factor", max_attempts_factor, low=1)
    check_number("rtol", rtol, low=0, open_low=True)
    check_number("atol", atol, low=0, open_low=True)


def _arrived(paths: Trajectories, n_trajectories: int, target: str | Sequence[str] | None, sign: int) -> Trajectories:
    """Return the first of those that arrived, and say how many did."""
    at = np.flatnonzero(paths.status == Status.ARRIVED)
    way = "forward" if sign > 0 else "backward"
    message = "%d of %d %s trajectories arrived at %r"
    level = logging.INFO if at.size >= n_trajectories else logging.WARNING
    logger.log(level, message, at.size, len(paths), way, target)
    return replace(paths.select(paths.ids[at[:n_trajectories]]), n_tried=len(paths))
