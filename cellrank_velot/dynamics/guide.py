"""What moves a particle: the velocity, reversed for the way back, and the data that it keeps to.

Depends on the region, numpy and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cellrank_velot.dynamics.region import Companions, Region
from cellrank_velot.dynamics.solvers import Coefficients, Drift, Spread

__all__ = ["Field", "TimeFrom", "drift_of", "guided", "mean_speed", "noisy"]

TimeFrom = Literal["cells", "path", "start"]


class Field(Protocol):
    """A velocity field, such as :class:`cellrank_velot.field.VelocityField` or :class:`Interpolated`."""

    def on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the field as a function of positions ``[n, n_dims]`` and times ``[n]``."""


def drift_of(field: Field, current: Field | None, sign: int, device: torch.device | str) -> Drift:
    r"""Return the drift of particles that move forward (``sign=1``) or backward in time (``-1``).

    The velocity :math:`v` is the sum of a current :math:`c`, which changes its sign when time is reversed, and a
    relaxation to the data, :math:`u = v - c`, which does not :cite:`nelson:66`: forward :math:`v`, backward
    :math:`u - c = v - 2c`. The velocity turned around, which is taken where the current is not given, drives particles
    away from the data as surely as the velocity holds them there.

    Parameters
    ----------
    field
        The velocity.
    current
        The part of it that changes its sign when time is reversed; all of it where ``None``. Used backward only.
    sign
        ``1`` for forward in time, ``-1`` for backward.
    device
        Torch device.

    Returns
    -------
    A function of positions ``[n, n_dims]``, times ``[n]`` and numbers of particles ``[n]``, which it does not use.

    Examples
    --------
    >>> import torch
    >>> from cellrank_velot.dynamics.guide import drift_of
    >>> x, time = torch.tensor(vk.cells.x[:3]), torch.tensor(vk.cells.time[:3])
    >>> back = drift_of(vk.field, None, -1, "cpu")
    >>> np.allclose(back(x, time, torch.arange(3)).detach(), -vk.velocity[:3], atol=1e-4)
    True
    """
    velocity = field.on(device)
    if sign > 0:
        return lambda x, time, _ids: velocity(x, time)
    if current is None:
        return lambda x, time, _ids: -velocity(x, time)
    turning = current.on(device)
    return lambda x, time, _ids: velocity(x, time) - 2 * turning(x, time)


def guided(drift: Drift, companions: Companions, confine: float, time_from: TimeFrom, step_size: float = 0.0) -> Drift:
    r"""Return the drift of particles that keep to the data, :math:`v + \kappa \, (m - x)`.

    The mean :math:`m` of the cells around a particle draws it with the rate :math:`\kappa = \text{confine} \, |v| /
    \ell`, where :math:`\ell` is the typical spacing of the cells: the particle returns as it moves on, at any speed.
    """
    if confine == 0 and time_from != "cells":
        return drift

    region = companions.region

    def evaluate(x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        around = region.around(x, companions.of(x, ids))
        velocity = drift(x, around.time if time_from == "cells" else time, ids)
        return velocity + _rate(velocity, region, confine, step_size) * around.offset

    return evaluate


def noisy(
    drift: Drift, companions: Companions, diffusion: float, confine: float, time_from: TimeFrom, step_size: float
) -> Coefficients:
    r"""Return drift and noise of particles that diffuse along the data.

    The noise has the covariance :math:`\Sigma` of the cells around a particle, :math:`dx = [v + \kappa (m - x)] \, dt +
    \sqrt{2 \kappa} \, \Sigma^{1/2} \, dW` with :math:`\kappa = \text{diffusion} \, |v| / \ell`. The cells nearby being
    Gaussian with mean :math:`m`, the score of their density is :math:`\Sigma^{-1} (m - x)`: the drift that goes with
    the noise is the one that keeps their density where the noise is the same all around. As it is smaller where cells
    are dense, particles keep somewhat closer together than cells: a Gaussian bundle of cells has a bundle of particles
    of 0.6 to 0.7 times its variance, an even one of the same.

    Parameters
    ----------
    drift
        The drift of particles without the noise, see :func:`drift_of`.
    companions
        The cells near each particle.
    diffusion, confine
        Strength of the noise and of the way back to the data, see :func:`cellrank_velot.dynamics.simulate_flow`.
    time_from
        Where ``"cells"``, the drift is asked at the mean time of the cells around.
    step_size
        Time of one step.

    Returns
    -------
    A function of positions, times and numbers of particles that returns the drift, shape ``[n, n_dims]``, and another
    function, which multiplies increments of noise, shape ``[n, n_neighbors]``, by
    :math:`\sqrt{2 \kappa} \, \Sigma^{1/2}`.

    Examples
    --------
    >>> import torch
    >>> from cellrank_velot.dynamics.guide import drift_of, noisy
    >>> from cellrank_velot.dynamics.region import Companions
    >>> companions = Companions(dynamics.Region.of(vk.cells.x, vk.cells.time), search_every=0.5)
    >>> step = noisy(drift_of(vk.field, None, 1, "cpu"), companions, 1.0, 0.7, "cells", 0.005)
    >>> x, time = torch.tensor(vk.cells.x[:3]), torch.tensor(vk.cells.time[:3])
    >>> drift, spread = step(x, time, torch.arange(3))
    >>> spread(torch.randn(3, 15)).shape
    torch.Size([3, 20])
    """
    region = companions.region

    def evaluate(x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, Spread]:
        around = region.around(x, companions.of(x, ids))
        velocity = drift(x, around.time if time_from == "cells" else time, ids)
        noise = _rate(velocity, region, diffusion, step_size)
        back = torch.maximum(noise, _rate(velocity, region, confine, step_size))
        # Steps of finite length spread more than their rate says, by the factor that is divided by here.
        strength = (noise * (2 - noise * step_size)).sqrt()
        return velocity + back * around.offset, lambda increment: strength * around.scatter(increment.float())

    return evaluate


def mean_speed(field: Field, x: NDArray[np.float64], time: NDArray[np.float64]) -> float:
    """Return the mean speed at the cells, in units of the basis per time, or at some of them where there are many."""
    some = np.random.default_rng(0).permutation(x.shape[0])[:5000]
    with torch.no_grad():
        velocity = field.on("cpu")(torch.tensor(x[some]), torch.tensor(time[some]))
    return float(velocity.norm(dim=1).mean())


def _rate(velocity: torch.Tensor, region: Region, strength: float, step_size: float) -> torch.Tensor:
    """Return how often, per time, the velocity takes a particle past a cell, times a strength, shape ``[n, 1]``."""
    spacing = max(region.typical_spacing, torch.finfo(torch.float32).tiny)
    rate = strength * velocity.norm(dim=1, keepdim=True) / spacing
    # A step returns to the mean at most, or it would shoot past it.
    return rate.clamp_max(1.0 / step_size) if step_size else rate
