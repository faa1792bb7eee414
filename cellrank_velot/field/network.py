"""The velocity field: a multilayer perceptron of position and time, kept as plain arrays.

Depends on numpy and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import skip_init

from cellrank_velot._device import resolve_device
from cellrank_velot._stage import Stage

__all__ = ["VelocityField", "build_network", "draw_weights"]

# Points evaluated at a time, so that a query of any length has bounded memory.
CHUNK_POINTS = 65_536


@dataclass(frozen=True, slots=True, eq=False)
class VelocityField(Stage):
    """Velocity at any position and time.

    Attributes
    ----------
    weights
        Weights and biases by name, float32.
    centre
        Mean position of the cells, shape ``[n_dims]``.
    x_scale
        Root mean squared distance of the cells from the centre, per dimension.
    time_centre, time_scale
        Mean and standard deviation of the cells' time.
    velocity_scale
        Root mean squared component of the velocities fitted, in basis per time.
    use_time
        Whether time is an input.
    history
        Losses by name, those of training as means since the evaluation before, and the step of each, all of shape
        ``[n_evaluations]``.
    best_step
        Step whose weights are kept.
    """

    weights: Mapping[str, NDArray[np.float32]]
    centre: NDArray[np.float64]
    x_scale: float
    time_centre: float
    time_scale: float
    velocity_scale: float
    use_time: bool
    history: Mapping[str, NDArray[np.float64]]
    best_step: int

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.centre.size)

    def __call__(
        self, x: NDArray[np.float64], time: NDArray[np.float64] | float, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """Evaluate the field.

        Parameters
        ----------
        x
            Positions of shape ``[n_points, n_dims]``.
        time
            Time of each position, shape ``[n_points]``, or one for all.
        device
            Torch device.

        Returns
        -------
        Velocities of shape ``[n_points, n_dims]``, in basis per time.
        """
        where = resolve_device(device)
        function = self.on(where)
        times = np.broadcast_to(np.asarray(time, dtype=np.float64), x.shape[:1])
        result = np.empty((x.shape[0], self.n_dims))
        with torch.no_grad():
            for start in range(0, x.shape[0], CHUNK_POINTS):
                part = slice(start, start + CHUNK_POINTS)
                values = function(torch.tensor(x[part], device=where), torch.tensor(times[part], device=where))
                result[part] = values.cpu().numpy()
        return result

    def on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the field as a function of tensors, ``x [n, n_dims]`` and ``time [n]``, differentiable in both."""
        network = build_network(self.n_dims + self.use_time, self.n_dims, hidden=[w.shape[0] for w in self._inner])
        network.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})
        network.to(device).requires_grad_(False)
        centre = torch.tensor(self.centre, device=device)

        def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            inputs = (x - centre) / self.x_scale
            if self.use_time:
                inputs = torch.cat([inputs, ((time - self.time_centre) / self.time_scale).unsqueeze(1)], dim=1)
            return network(inputs.float()).to(x.dtype) * self.velocity_scale

        return evaluate

    @property
    def _inner(self) -> list[NDArray[np.float32]]:
        # By the layer's number: a file returns names in another order.
        names = sorted((name for name in self.weights if name.endswith("weight")), key=lambda n: int(n.split(".")[0]))
        return [self.weights[name] for name in names[:-1]]


def build_network(n_inputs: int, n_outputs: int, hidden: list[int]) -> nn.Sequential:
    """Return a multilayer perceptron with smooth activations, whose derivatives exist everywhere.

    Its weights are not set: torch would draw them from the global random state.
    """
    sizes = [n_inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [skip_init(nn.Linear, before, after), nn.SiLU()]
    return nn.Sequential(*layers, skip_init(nn.Linear, sizes[-1], n_outputs))


def draw_weights(network: nn.Sequential, generator: torch.Generator) -> None:
    """Draw weights and biases of each layer uniformly, within one over the root of its number of inputs."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
