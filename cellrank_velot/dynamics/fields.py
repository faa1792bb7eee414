"""Fields that particles can follow besides a trained one. Times and speeds are in the unit that the caller takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot.dynamics.region import Region

__all__ = ["Field", "Interpolated", "Rescaled"]

Velocity = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


class Field(Protocol):
    """A velocity field, such as :class:`cellrank_velot.field.VelocityField` or :class:`Interpolated`."""

    def on(self, device: torch.device | str) -> Velocity:
        """Return the field as a function of positions ``[n, n_dims]`` and times ``[n]``, both tensors.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """


@dataclass(frozen=True, eq=False)
class Interpolated:
    """Velocity between cells, as the mean over the nearest ones: a field without a network.

    Attributes
    ----------
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    velocity
        Their velocities, shape ``[n_cells, n_dims]``. Cells with NaN are left out.
    n_neighbors
        Number of nearest cells, five at least.

    Examples
    --------
    >>> import torch
    >>> field = dynamics.Interpolated(vk.cells.x, vk.raw_velocity, n_neighbors=10)
    >>> field.on("cpu")(torch.tensor(vk.cells.x[:3]), torch.zeros(3)).shape
    torch.Size([3, 20])
    """

    x: NDArray[np.float64]
    velocity: NDArray[np.float64]
    n_neighbors: int = 15

    def on(self, device: torch.device | str) -> Velocity:
        """Return it as a function of positions ``[n, n_dims]`` and times ``[n]``, which do not matter.

        Parameters
        ----------
        device
            Torch device that the tensors are on.

        Raises
        ------
        ValueError
            If no cell has a velocity.
        """
        known = np.isfinite(self.velocity).all(axis=1)
        if not known.any():
            raise ValueError("Expected cells with a velocity to interpolate between, found none.")
        region = Region.of(self.x[known], n_neighbors=self.n_neighbors, device=device)
        velocity = torch.tensor(self.velocity[known][region.chosen], device=device)
        return lambda x, _time: region.mean_of(velocity, x)


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A field whose time runs from 0 to 1 over an interval of the time of another field.

    Attributes
    ----------
    field
        The other field.
    first, last
        Ends of the interval, in the time of that field. Velocities are per interval.

    Examples
    --------
    >>> import torch
    >>> field, x = dynamics.Rescaled(sk.field, *sk.cells.time_range), sk.cells.x[:3]
    >>> velocity = field.on("cpu")(torch.tensor(x), torch.full((3,), 0.5)).detach()
    >>> np.allclose(velocity, 3 * sk.query_velocity(x, 1.5), atol=1e-4)  # of three days
    True
    """

    field: Field
    first: float
    last: float

    def on(self, device: torch.device | str) -> Velocity:
        """Return it as a function of positions ``[n, n_dims]`` and times ``[n]`` from 0 to 1.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """
        velocity, length = self.field.on(device), self.last - self.first
        return lambda x, time: velocity(x, self.first + length * time) * length
