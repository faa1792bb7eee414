"""What moves a particle: the velocity, its reversal in time, and the confinement to the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot.dynamics.fields import Field
from cellrank_velot.dynamics.options import FlowOptions, MotionOptions
from cellrank_velot.dynamics.region import NearestCells, Region
from cellrank_velot.dynamics.solvers import Coefficients, Drift, Spread

__all__ = ["confined", "diffusing", "drift_of", "mean_speed"]


def drift_of(field: Field, current: Field | None, sign: int, device: torch.device | str) -> Drift:
    r"""Return the drift of particles that move forward (``sign=1``) or backward in time (``-1``).

    The velocity :math:`v` is the sum of a current :math:`c`, which changes its sign when time is reversed, and a
    relaxation to the data, :math:`v - c`, which does not :cite:`nelson:66`. The drift backward is therefore
    :math:`v - 2c`. Without a known current it is :math:`-v`, which drives particles away from the data as surely as
    the velocity holds them there.
    """
    velocity = field.on(device)
    if sign > 0:
        return lambda x, time, _ids: velocity(x, time)
    if current is None:
        return lambda x, time, _ids: -velocity(x, time)
    reversible = current.on(device)
    return lambda x, time, _ids: velocity(x, time) - 2 * reversible(x, time)


def confined(drift: Drift, near: NearestCells, options: MotionOptions) -> Drift:
    r"""Return the drift of particles that keep to the data, :math:`v + \kappa \, (m - x)`.

    The mean :math:`m` of the cells around a particle attracts it at the rate :math:`\kappa = \text{confine} \, |v| /
    \ell`, where :math:`\ell` is the typical spacing of the cells: the distance falls with the way, at any speed.
    """
    if options.confine == 0 and options.time_from != "cells":
        return drift

    def evaluate(x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        around = near.region.around(x, near.of(x, ids))
        velocity = drift(x, around.time if options.time_from == "cells" else time, ids)
        return velocity + _rate(velocity, near.region, options.confine, options.step_size) * around.offset

    return evaluate


def diffusing(drift: Drift, near: NearestCells, options: FlowOptions) -> Coefficients:
    r"""Return drift and noise of particles that diffuse along the data.

    The noise has the covariance :math:`\Sigma` of the cells around a particle: :math:`dx = [v + \kappa (m - x)] \, dt +
    \sqrt{2 \kappa} \, \Sigma^{1/2} \, dW` with :math:`\kappa = \text{diffusion} \, |v| / \ell`. For Gaussian cells of
    mean :math:`m` the score is :math:`\Sigma^{-1} (m - x)`, so that this drift keeps their density where :math:`\Sigma`
    is constant. :math:`\Sigma` is smaller where cells are dense. Particles therefore keep a little closer together
    than cells: in a Gaussian bundle of cells they have 0.6 to 0.7 times the variance, in a uniform one the same.
    """
    step_size = options.step_size

    def evaluate(x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, Spread]:
        around = near.region.around(x, near.of(x, ids))
        velocity = drift(x, around.time if options.time_from == "cells" else time, ids)
        noise = _rate(velocity, near.region, options.diffusion, step_size)
        back = torch.maximum(noise, _rate(velocity, near.region, options.confine, step_size))
        # Steps of finite length would spread particles further than their rate says.
        strength = (noise * (2 - noise * step_size)).sqrt()
        return velocity + back * around.offset, lambda increment: strength * around.scatter(increment.float())

    return evaluate


def mean_speed(field: Field, x: NDArray[np.float64], time: NDArray[np.float64]) -> float:
    """Return the mean speed at 5000 of the cells, or at all, in units of the basis per time."""
    some = np.random.default_rng(0).permutation(x.shape[0])[:5000]
    with torch.no_grad():
        velocity = field.on("cpu")(torch.tensor(x[some]), torch.tensor(time[some]))
    return float(velocity.norm(dim=1).mean())


def _rate(velocity: torch.Tensor, region: Region, strength: float, step_size: float) -> torch.Tensor:
    """Return ``strength`` times the spacings of cells that the velocity passes per time, shape ``[n, 1]``."""
    spacing = max(region.typical_spacing, torch.finfo(torch.float32).tiny)
    rate = strength * velocity.norm(dim=1, keepdim=True) / spacing
    # A step leads to the mean at most: it would overshoot otherwise.
    return rate.clamp_max(1.0 / step_size)
