"""The velocity of perturbed cells, as a field that can take the place of the velocity field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from dataclasses import field as kept  # the class has a field of that name
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import as_tensor
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.stage import Stage, stored
from cellrank_velot.dynamics.region import Region
from cellrank_velot.field import VelocityField
from cellrank_velot.field.evaluation import values_at
from cellrank_velot.perturbation.changes import Perturbation

__all__ = ["PerturbedField"]

FloatArray = NDArray[np.float64]
Function = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class PerturbedField(Stage):
    r"""Velocity of cells in which genes are held changed.

    :math:`v'(x, t) = v(x + D(x), t) + \rho D(x)`. The displacement :math:`D` is a weighted mean over the cells nearest
    to :math:`x`, because a zero in a single cell is mostly a molecule that was missed. The cell stays at :math:`x`, and
    moves like cells that have its genes after the change. To first order the change of the velocity is the
    Jacobian times the displacement, as in dynamo :cite:`qiu:22`; it adds up along the way. The push :math:`\rho D`
    draws cells to the changed state itself. CellOracle :cite:`kamimoto:23` makes its transitions from such a push,
    after the change has spread over a network of genes. By default, there is no push.

    For a field with growth, score and noise, growth is that at :math:`x + D`, too. Score and noise are those at
    :math:`x`, as they describe where cells are and not what they do.

    Attributes
    ----------
    field
        The unperturbed field.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    amounts
        Change of each gene in each cell, shape ``[n_cells, n_genes]``.
    directions
        Displacement of a unit change of each gene, shape ``[n_genes, n_dims]``.
    push
        Rate :math:`\rho`, per unit of time.
    n_neighbors
        Number of nearest cells whose displacements are averaged.

    Examples
    --------
    >>> from cellrank_velot.perturbation import PerturbedField
    >>> field = PerturbedField.of(vk.field, vk.cells.x, vk.perturb({"FateA": ("scale", 0.5)}))
    >>> response = field(vk.cells.x, vk.cells.time) - vk.velocity
    >>> response.shape
    (300, 20)
    """

    field: Any = kept(metadata=stored(stage=VelocityField))
    x: FloatArray = kept(metadata=stored("n_cells", "n_dims"))
    amounts: FloatArray = kept(metadata=stored("n_cells", "n_genes"))
    directions: FloatArray = kept(metadata=stored("n_genes", "n_dims"))
    push: float = 0.0
    n_neighbors: int = kept(default=15, metadata=stored(low=1, high="n_cells"))

    @classmethod
    def of(cls, field: Any, x: FloatArray, perturbation: Perturbation, *, push: float = 0.0) -> Self:
        """Perturb a field, given the positions of the cells that were perturbed, shape ``[n_cells, n_dims]``."""
        return cls(field, x, perturbation.amounts, perturbation.directions, push)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, the unperturbed field as a dictionary."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**values, "field": self.field.to_dict() if isinstance(self.field, VelocityField) else self.field}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build it from what :meth:`to_dict` returned."""
        field = values.get("field")
        field = VelocityField.from_dict(dict(field)) if isinstance(field, Mapping) else field
        return cls(**{**values, "field": field})

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.x.shape[1])

    @property
    def history(self) -> Any:
        """Losses of the unperturbed field."""
        return self.field.history

    @property
    def best_step(self) -> int:
        """Step of its training whose weights are kept."""
        return int(self.field.best_step)

    @property
    def has_heads(self) -> bool:
        """Whether there are growth, score and noise."""
        return bool(getattr(self.field, "has_heads", False))

    @property
    def diffusion(self) -> float:
        """Noise of the unperturbed field."""
        return float(getattr(self.field, "diffusion", 0.0))

    def width(self, time: FloatArray) -> FloatArray:
        """Return how widely pairs of cells spread around their paths in the unperturbed field, shape ``[n]``."""
        return np.asarray(self.field.width(time))

    def on(self, device: torch.device | str) -> Function:
        """Return the velocity as a function of tensors, ``x [n, n_dims]`` and ``time [n]``."""
        velocity, displace = self.field.on(device), self._displace(device)

        def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            shift = displace(x)
            return velocity(x + shift, time) + self.push * shift

        return evaluate

    def drift_on(self, device: torch.device | str) -> Function:
        """Return the drift: the perturbed velocity, plus the unperturbed drift less the unperturbed velocity."""
        perturbed, velocity, drift = self.on(device), self.field.on(device), self.field.drift_on(device)
        return lambda x, time: perturbed(x, time) + drift(x, time) - velocity(x, time)

    def heads_on(
        self, device: torch.device | str
    ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return velocity and growth of perturbed cells, and the score of the unperturbed field."""
        heads, displace = self.field.heads_on(device), self._displace(device)

        def evaluate(x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            shift = displace(x)
            velocity, growth, _ = heads(x + shift, time)
            return velocity + self.push * shift, growth, heads(x, time)[2]

        return evaluate

    def growth_on(self, device: torch.device | str) -> Function:
        """Return the growth of perturbed cells, per unit of time."""
        growth, displace = self.field.growth_on(device), self._displace(device)
        return lambda x, time: growth(x + displace(x), time)

    def __call__(
        self, x: FloatArray, time: FloatArray | float, *, device: str = "cpu", n_jobs: int | None = None
    ) -> FloatArray:
        """Return velocities of shape ``[n_points, n_dims]`` at positions and times."""
        return values_at(self, "on", x, time, device, n_jobs)

    def drift(self, x: FloatArray, time: FloatArray | float, *, device: str = "cpu") -> FloatArray:
        """Return the drift, shape ``[n_points, n_dims]``."""
        return values_at(self, "drift_on", x, time, device)

    def growth(self, x: FloatArray, time: FloatArray | float, *, device: str = "cpu") -> FloatArray:
        """Return the growth, shape ``[n_points]``."""
        return values_at(self, "growth_on", x, time, device)

    def score(self, x: FloatArray, time: FloatArray | float, **kwargs: Any) -> FloatArray:
        """Return the score of the unperturbed field, shape ``[n_points, n_dims]``."""
        return np.asarray(self.field.score(x, time, **kwargs))

    def displacement(self, x: FloatArray) -> FloatArray:
        """Return the displacement :math:`D` at positions, shape ``[n_points, n_dims]``."""
        return values_at(self, "_shift_on", x, 0.0, "cpu")

    def _shift_on(self, device: torch.device) -> Function:
        """Return the displacement as a function of positions and times."""
        displace = self._displace(device)
        return lambda x, _time: displace(x)

    def _displace(self, device: torch.device | str) -> Callable[[torch.Tensor], torch.Tensor]:
        region = Region.of(self.x, n_neighbors=self.n_neighbors, device=device)
        amounts, directions = (
            as_tensor(values, torch.device(device)) for values in (self.amounts[region.chosen], self.directions)
        )
        return lambda x: region.mean_of(amounts, x).to(x.dtype) @ directions.to(x.dtype)
