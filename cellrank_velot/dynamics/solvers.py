"""One step of many particles: an ordinary differential equation by torchdiffeq, a stochastic one by Euler-Maruyama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cellrank_velot._utils.lazy import torch, torchdiffeq
from cellrank_velot.dynamics.options import Method

__all__ = ["Coefficients", "Drift", "OdeStep", "SdeStep", "Spread", "Step"]

# Velocity [n, n_dims] at positions [n, n_dims] and times [n] of particles with numbers [n].
Drift = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
# Drift [n, n_dims], and the linear map of increments of a Wiener process [n, n_noise] to displacements [n, n_dims].
Spread = Callable[["torch.Tensor"], "torch.Tensor"]
Coefficients = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], tuple["torch.Tensor", Spread]]


class Step(Protocol):
    """Moves particles by one step."""

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, clock: int
    ) -> torch.Tensor:
        """Return the next positions of particles at ``x [n, n_dims]`` with times, numbers and lengths of step ``[n]``.

        ``clock`` is 1 or -1 where their time rises or falls along the way, and 0 where it stands still.
        """


@dataclass(frozen=True, eq=False)
class OdeStep:
    """A step along ``dx / ds = drift(x, t)``; only ``"dopri5"`` uses the tolerances, on the mean over all particles."""

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
            # One velocity of NaN would stop a solver that adapts its steps, for all particles.
            broken = ~change.isfinite().all(dim=1)
            lost.logical_or_(broken)
            return change.masked_fill(broken.unsqueeze(1), 0.0)

        options = {"first_step": 1.0} if self.method == "dopri5" else {}
        interval = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
        end = torchdiffeq.odeint(
            rate, x, interval, method=self.method, rtol=self.rtol, atol=self.atol, options=options
        )[-1]
        return end.masked_fill(lost.unsqueeze(1), torch.nan)


@dataclass(frozen=True, eq=False)
class SdeStep:
    """A step of ``dx = drift(x, t) ds + spread(x, t) dW`` by Euler and Maruyama, with ``n_noise`` noises a particle."""

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
