"""The drift around a point as a smooth function of the point: velocity, time of the cells around, pull to the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot.dynamics.drift import mean_speed
from cellrank_velot.dynamics.fields import Field, Velocity
from cellrank_velot.dynamics.region import Region

__all__ = ["Local", "LocalField", "jacobian_of"]

# A function of points [n, n_dims] and of which cells are near them, [n, n_neighbors].
Local = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
# Speed below which a velocity has no direction, as a share of the mean speed of the cells.
STANDSTILL = 1e-3


@dataclass(frozen=True, eq=False)
class LocalField:
    """A field and the data that it was learnt from. All numbers are double, so that derivatives are exact."""

    velocity_at: Velocity
    region: Region
    cells: torch.Tensor  # less the centre of the region, [n_cells, n_dims]
    confine: float
    mean_speed: float
    at_time: float | None  # None: the mean time of the cells around

    @classmethod
    def of(
        cls,
        field: Field,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        labels: NDArray[np.int64] | None,
        *,
        confine: float,
        n_neighbors: int,
        at_time: float | None,
        random_state: int,
    ) -> LocalField:
        """Take the drift of a field that has one, and the velocity of another."""
        drift: Velocity = getattr(field, "drift_on", field.on)(torch.device("cpu"))
        region = Region.of(x, time, labels, n_neighbors=n_neighbors, random_state=random_state)
        speed = mean_speed(field, x, time if at_time is None else np.full(len(x), at_time))
        tiny = float(np.finfo(np.float64).tiny)
        return cls(drift, region, region.cells.double(), confine, max(speed, tiny), at_time)

    @property
    def spacing(self) -> float:
        """Typical distance between cells."""
        return max(self.region.typical_spacing, float(np.finfo(np.float32).tiny))

    def velocity(self, x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Return the velocity, shape ``[n, n_dims]``."""
        return self._parts(x, near)[0]

    def relative_velocity(self, x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Return the velocity over the mean speed of the cells."""
        return self.velocity(x, near) / self.mean_speed

    def drift(self, x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Return the velocity and the pull to the mean of the cells around, as particles have it."""
        velocity, offset = self._parts(x, near)
        return velocity + self.confine / self.spacing * self.speed(velocity) * offset

    def direction(self, x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Return the drift over the speed: it has the same zeros, and they are as sharp where the field is fast."""
        velocity, offset = self._parts(x, near)
        return velocity / self.speed(velocity) + self.confine / self.spacing * offset

    def speed(self, velocity: torch.Tensor) -> torch.Tensor:
        """Return the length of velocities, shape ``[n, 1]``, which is never zero."""
        return (velocity.square().sum(dim=1, keepdim=True) + (STANDSTILL * self.mean_speed) ** 2).sqrt()

    def spread(self) -> float:
        """Return the mean variance of the cells around a cell, per dimension."""
        around = self.region.around(
            self.cells + self.region.centre, self.region.nearest(self.cells + self.region.centre)
        )
        square = (around.cells - around.mean.unsqueeze(1)).square().mean(dim=2)
        return float((around.weight * square).sum(dim=1).mean())

    def _parts(self, x: torch.Tensor, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the velocity, and the way to the mean of the cells around."""
        here, cells = x - self.region.centre, self.cells[near]
        # A little more than zero: the root of zero has no derivative.
        square = (cells - here.unsqueeze(1)).square().sum(dim=2) + (1e-6 * self.spacing) ** 2
        weight = torch.softmax(-2.0 * square / square.amax(dim=1, keepdim=True), dim=1)
        if self.at_time is None:
            time = (weight * self.region.time[near]).sum(dim=1)
        else:
            time = torch.full_like(square[:, 0], self.at_time)
        return self.velocity_at(x, time), (weight.unsqueeze(2) * cells).sum(dim=1) - here


def jacobian_of(function: Local) -> Local:
    """Return the function that gives the derivatives by the point, shape ``[n, n_out, n_dims]``."""
    return torch.func.vmap(
        torch.func.jacrev(lambda point, near: function(point.unsqueeze(0), near.unsqueeze(0)).squeeze(0))
    )
