"""Trajectories: the paths of cells along the velocity, forward or backward in time."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot.dynamics.drift import confined, drift_of
from cellrank_velot.dynamics.fields import Field
from cellrank_velot.dynamics.motion import Motion, move
from cellrank_velot.dynamics.options import SIGNS, TrajectoryOptions
from cellrank_velot.dynamics.paths import Status, Trajectories, join
from cellrank_velot.dynamics.solvers import OdeStep
from cellrank_velot.dynamics.starts import check_starts

__all__ = ["compute_trajectories"]

logger = logging.getLogger("cellrank_velot")

# Share of the spacing by which a particle moves before its nearest cells are searched for: more of it slows it down, as
# the cells that attract it fall behind.
SEARCH_EVERY = 0.1


def compute_trajectories(
    field: Field,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    starts: NDArray[np.int64] | Sequence[int],
    options: TrajectoryOptions = TrajectoryOptions(),
    *,
    clusters: Sequence[Any] | None = None,
    target_cluster: str | Sequence[str] | None = None,
    current: Field | None = None,
    run: Run = Run(),
) -> Trajectories:
    """Follow cells along a velocity field.

    All particles move at once, by :math:`dx / ds = v`, and return to the data as they move. Each ends with a
    :class:`Status`.

    Parameters
    ----------
    field
        The velocity, such as a :class:`cellrank_velot.field.VelocityField`, or :class:`Interpolated`.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    time
        Times of the cells, in ``[0, 1]``, shape ``[n_cells]``.
    starts
        Positions in ``x`` of the cells to start from, shape ``[n_starts]``. ``n_trajectories`` of them are drawn where
        there are more.
    options
        Number of trajectories, direction, steps and limits. The kernel's method
        :meth:`~cellrank_velot.OTVelocityKernel.compute_trajectories` explains each of them, under the same name.
    clusters
        Cluster of each cell, of length ``n_cells``; needed for a target. None where not given.
    target_cluster
        Cluster, or several, to arrive at. Only trajectories that come to one are kept, and each ends at its last point
        before it leaves it. All trajectories are kept where not given.
    current
        The part of ``field`` that changes its sign when time is reversed; the rest leads to the data in either
        direction :cite:`nelson:66`. Used backward; all of ``field`` where not given.
    run
        Device, and whether to show a progress bar.

    Returns
    -------
    The trajectories, at most ``n_trajectories`` in each direction.

    Raises
    ------
    KeyError
        If a target is not among the clusters.
    TypeError
        If the starts are not whole numbers.
    ValueError
        If there are no starts, one is out of range, or a target comes without clusters.

    Examples
    --------
    >>> x, time = vk.cells.x, vk.cells.time
    >>> early = np.flatnonzero(time < 0.1)
    >>> few = dynamics.TrajectoryOptions(n_trajectories=5, n_steps=50)
    >>> paths = dynamics.compute_trajectories(vk.field, x, time, early, few)
    >>> len(paths), bool((paths.lengths <= 51).all())
    (5, True)
    """
    motion = Motion.of(
        field,
        x,
        time,
        options,
        clusters=clusters,
        targets=target_cluster,
        search_every=SEARCH_EVERY,
        device=run.device,
    )
    n_starts = options.n_trajectories * (1 if target_cluster is None else options.max_attempts_factor)
    rng = np.random.default_rng(options.random_state)
    chosen = rng.permutation(check_starts(starts, x.shape[0]))[:n_starts]
    if chosen.size < options.n_trajectories:
        logger.info("Only %d cells to start from: computing as many trajectories", chosen.size)
    found = []
    for sign in SIGNS[options.direction]:
        motion = motion.again(sign)
        drift = confined(drift_of(field, current, sign, motion.device), motion.near, options)
        step = OdeStep(drift, options.method, options.rtol, options.atol)
        paths = move(motion, step, x[chosen], time[chosen], chosen, show_progress_bar=run.show_progress_bar)
        found.append(paths if target_cluster is None else _arrived(paths, options.n_trajectories, target_cluster, sign))
    return join(found)


def _arrived(paths: Trajectories, n_trajectories: int, target: str | Sequence[str], sign: int) -> Trajectories:
    """Return the first of those that arrived, and say how many did."""
    at = np.flatnonzero(paths.status == Status.ARRIVED)
    level = logging.INFO if at.size >= n_trajectories else logging.WARNING
    way = "forward" if sign > 0 else "backward"
    logger.log(level, "%d of %d %s trajectories arrived at %r", at.size, len(paths), way, target)
    return replace(paths.select(paths.ids[at[:n_trajectories]]), n_tried=len(paths))
