"""Flow: particles that drift and diffuse through the velocity field, and where they come to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Run
from cellrank_velot.dynamics.drift import confined, diffusing, drift_of
from cellrank_velot.dynamics.fields import Field
from cellrank_velot.dynamics.motion import Motion, move
from cellrank_velot.dynamics.options import SIGNS, FlowOptions
from cellrank_velot.dynamics.paths import Status, Trajectories, join
from cellrank_velot.dynamics.solvers import OdeStep, SdeStep, Step
from cellrank_velot.dynamics.starts import check_starts

__all__ = ["simulate_flow"]

logger = logging.getLogger("cellrank_velot")

# Noise carries a particle to and fro between two steps of the flow: an exact search for each would be in vain.
SEARCH_EVERY = 0.25


def simulate_flow(
    field: Field,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    starts: NDArray[np.int64] | Sequence[int],
    options: FlowOptions = FlowOptions(),
    *,
    clusters: Sequence[Any] | None = None,
    terminal_clusters: str | Sequence[str] | None = None,
    current: Field | None = None,
    run: Run = Run(),
) -> Trajectories:
    r"""Let particles drift and diffuse through a velocity field.

    Euler-Maruyama for :math:`dx = [v + \kappa (m - x)] \, dt + \sqrt{2 \kappa} \, \Sigma^{1/2} \, dW` with the velocity
    :math:`v`, the mean :math:`m` and covariance :math:`\Sigma` of the cells around the particle, and
    :math:`\kappa = \text{diffusion} \cdot |v| / \ell`, where :math:`\ell` is the typical spacing of the cells. The
    noise grows with the local speed, and spreads particles along the data, as the cells are spread.

    Parameters
    ----------
    field
        The velocity, such as a :class:`cellrank_velot.field.VelocityField`, or :class:`Interpolated`.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    time
        Times of the cells, in ``[0, 1]``, shape ``[n_cells]``.
    starts
        Positions in ``x`` of the cells to start from, shape ``[n_starts]``. Particles are spread over them evenly.
    options
        Number of particles, noise, direction, steps and limits. The kernel's method
        :meth:`~cellrank_velot.OTVelocityKernel.simulate_flow` explains each of them, under the same name. Memory grows
        with the number of particles, and of steps that they take, over ``save_every``.
    clusters
        Cluster of each cell, of length ``n_cells``. Particles have no fates where not given.
    terminal_clusters
        Fates: a particle that comes to one ends at its last point before it leaves it, as in a chain that is absorbed
        there. Without them its fate is the cluster where it ends.
    current
        The part of ``field`` that changes its sign when time is reversed; the rest leads to the data in either
        direction :cite:`nelson:66`. Used backward; all of ``field`` where not given.
    run
        Device, and whether to show a progress bar.

    Returns
    -------
    The paths; :meth:`Trajectories.fates` counts where they came to. A message says how many came to no fate.

    Raises
    ------
    KeyError
        If a terminal cluster is not among the clusters.
    TypeError
        If the starts are not whole numbers.
    ValueError
        If there are no starts, one is out of range, or terminal clusters come without clusters.

    Examples
    --------
    >>> x, time, early = vk.cells.x, vk.cells.time, np.flatnonzero(vk.cells.time < 0.1)
    >>> clusters = adata.obs["clusters"].tolist()
    >>> field = dynamics.Interpolated(x, vk.raw_velocity)
    >>> few = dynamics.FlowOptions(n_particles=30, n_steps=50)
    >>> flow = dynamics.simulate_flow(field, x, time, early, few, clusters=clusters)
    >>> flow.fates().columns.tolist()
    ['n_particles', 'share', 'probability', 'low', 'high']
    """
    motion = Motion.of(
        field,
        x,
        time,
        options,
        clusters=clusters,
        targets=terminal_clusters,
        search_every=SEARCH_EVERY,
        device=run.device,
    )
    rng = np.random.default_rng(options.random_state)
    chosen = rng.permutation(np.resize(rng.permutation(check_starts(starts, x.shape[0])), options.n_particles))
    scale = options.noise_scale * motion.region.typical_spacing * x.shape[1] ** -0.5
    found = []
    for sign in SIGNS[options.direction]:
        motion = motion.again(sign)
        drift = drift_of(field, current, sign, motion.device)
        step: Step = OdeStep(confined(drift, motion.near, options), "euler")
        if options.diffusion > 0:
            generator = torch.Generator(motion.device).manual_seed(int(rng.integers(2**31)))
            step = SdeStep(diffusing(drift, motion.near, options), motion.region.n_neighbors, generator)
        begin = x[chosen] + scale * rng.normal(size=(chosen.size, x.shape[1]))
        found.append(move(motion, step, begin, time[chosen], chosen, show_progress_bar=run.show_progress_bar))
    paths = join(found)
    _tell(paths)
    return paths


def _tell(paths: Trajectories) -> None:
    """Say how many particles came to no fate, and why; warn where they are more than a tenth."""
    lost = int(paths.without_fate.sum())
    if not lost:
        return
    counts = [(status, int((paths.status[paths.without_fate] == status).sum())) for status in Status]
    why = ", ".join(f"{count} {status.message}" for status, count in counts if count)
    level = logging.WARNING if lost > len(paths) / 10 else logging.INFO
    logger.log(level, "%d of %d particles came to no fate: %s", lost, len(paths), why)
