"""One step of many particles: an ordinary differential equation by torchdiffeq, a stochastic one by Euler-Maruyama.

Depends on torch and torchdiffeq.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torchdiffeq import odeint

__all__ = ["Coefficients", "Drift", "Method", "OdeStep", "SdeStep", "Step"]

Method = Literal["euler", "rk4", "dopri5"]
# Velocity [n, n_dims] at positions [n, n_dims] and times [n] of particles with numbers [n].
Drift = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Drift [n, n_dims], and the linear map of increments of a Wiener process [n, n_noise] to displacements [n, n_dims].
Spread = Callable[[torch.Tensor], torch.Tensor]
Coefficients = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Spread]]


class Step(Protocol):
    """Moves particles by one step."""

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, clock: int
    ) -> torch.Tensor:
        """Return the next positions.

        Parameters
        ----------
        x
            Positions of shape ``[n, n_dims]``.
        time
            Time of each particle, shape ``[n]``.
        ids
            Number of each particle, shape ``[n]``.
        dt
            Length of the step of each particle, positive, shape ``[n]``.
        clock
            ``1`` or ``-1`` where the time of a particle rises or falls as it moves, ``0`` where it stands still.
        """


@dataclass(frozen=True, eq=False)
class OdeStep:
    r"""A step along :math:`dx / ds = b(x, t)`.

    Attributes
    ----------
    drift
        The function :math:`b`.
    method
        ``"euler"``, ``"rk4"``, or ``"dopri5"``, which takes as many smaller steps as its tolerances ask for.
    rtol, atol
        Relative and absolute tolerance of ``"dopri5"``, of the root mean square over all particles.
    """

    drift: Drift
    method: Method = "rk4"
    rtol: float = 1e-4
    atol: float = 1e-6

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, clock: int
    ) -> torch.Tensor:
        """Return the next positions, see :class:`Step`."""
        length = dt.unsqueeze(1)
        lost = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)

        # All particles share the parameter s in [0, 1], so that steps of different length go through one solver.
        def rate(s: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            change = length * self.drift(y, time + clock * s * dt, ids)
            # One velocity that is no number would stop a solver that adapts its steps, for all particles.
            broken = ~change.isfinite().all(dim=1)
            lost.logical_or_(broken)
            return change.masked_fill(broken.unsqueeze(1), 0.0)

        options = {"first_step": 1.0} if self.method == "dopri5" else {}
        interval = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        end = odeint(rate, x, interval, method=self.method, rtol=self.rtol, atol=self.atol, options=options)[-1]
        return end.masked_fill(lost.unsqueeze(1), torch.nan)


@dataclass(frozen=True, eq=False)
class SdeStep:
    r"""A step of :math:`dx = b(x, t) \, ds + S(x, t) \, dW` by Euler and Maruyama.

    Attributes
    ----------
    coefficients
        The functions :math:`b` and :math:`S`.
    n_noise
        Number of independent noises of each particle.
    generator
        Source of the noise.
    """

    coefficients: Coefficients
    n_noise: int
    generator: torch.Generator

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, clock: int
    ) -> torch.Tensor:
        """Return the next positions, see :class:`Step`."""
        normal = torch.randn((x.shape[0], self.n_noise), generator=self.generator, device=self.generator.device)
        return self.move(x, time, ids, dt, dt.sqrt().unsqueeze(1) * normal.to(x.device))

    def move(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, increment: torch.Tensor
    ) -> torch.Tensor:
        """Return the next positions for given increments of the Wiener process, shape ``[n, n_noise]``."""
        drift, spread = self.coefficients(x, time, ids)
        return x + dt.unsqueeze(1) * drift + spread(increment)
