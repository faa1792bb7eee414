"""The velocity field: a multilayer perceptron of position and time as plain arrays, with heads for growth and score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import as_tensor
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot._utils.validation import check_integer
from cellrank_velot.field.evaluation import values_at

__all__ = ["VelocityField", "build_network", "draw_weights", "layer_sizes", "split_heads"]

Function = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Heads = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class VelocityField(Stage):
    r"""Velocity at any position and time; of a time series also growth and score.

    With heads, cells move by :math:`dx = b \, dt + \sigma \, dW` and multiply at the rate :math:`g`. Their density
    :math:`p` has the score :math:`\nabla \log p`, and follows :math:`\partial_t p = - \nabla \cdot (p v) + g p` with
    the velocity :math:`v = b - \sigma^2 / 2 \, \nabla \log p`.

    Attributes
    ----------
    weights
        Weights ``[n_out, n_in]`` and biases ``[n_out]`` of the layers by name, float32.
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
    diffusion
        Diffusion :math:`\sigma` of the process, in basis per root time; 0 without heads.
    growth_scale, score_scale
        Units of the heads: rate per time, and one over the basis.
    bridge_noise
        Noise of the bridges between pairs of cells, in basis per root time.
    times, widths
        Time points, and how widely a pair of cells spreads around its path there, per dimension, shape ``[n_widths]``;
        :meth:`width` is what it is between them. One of each where there are no bridges.
    bounds
        Largest speed, smallest and largest growth, and largest noise that the training saw, shape ``[4]``: means of
        them, which the heads are, cannot lie outside. Empty where there are none.
    growth_shift
        What is added to the growth of all particles between two time points, so that they have the mass of the later
        one, shape ``[n_times - 1]``. Empty where nothing is. :meth:`growth`, that of cells, is without it.

    Examples
    --------
    >>> vk.field(vk.cells.x[:3], vk.cells.time[:3]).shape
    (3, 20)
    >>> field, x = sk.field, sk.cells.x
    >>> field.has_heads, field.growth(x, 1.5).shape, field.score(x, 1.5).shape
    (True, (400,), (400, 10))
    """

    weights: Mapping[str, NDArray[np.float32]]
    centre: NDArray[np.float64] = field(metadata=stored("n_dims"))
    x_scale: float = field(metadata=stored(low=TINY))
    time_centre: float
    time_scale: float = field(metadata=stored(low=TINY))
    velocity_scale: float = field(metadata=stored(low=TINY))
    use_time: bool
    history: Mapping[str, NDArray[Any]] = field(metadata=stored("n_evaluations", gaps=True))
    best_step: int = field(metadata=stored(low=0))
    diffusion: float = field(default=0.0, metadata=stored(low=0))
    growth_scale: float = field(default=1.0, metadata=stored(low=0))
    score_scale: float = field(default=1.0, metadata=stored(low=0))
    bridge_noise: float = field(default=0.0, metadata=stored(low=0))
    times: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1), metadata=stored("n_widths"))
    widths: NDArray[np.float64] = field(default_factory=lambda: np.ones(1), metadata=stored("n_widths", low=TINY))
    bounds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), metadata=stored("n_bounds"))
    growth_shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), metadata=stored("n_shifts"))

    def _facts(self) -> dict[str, Any]:
        layers = [value.shape[0] for value in self.weights.values() if value.ndim == 2]
        facts = {"dims": self.n_dims, "hidden": layers[:-1], "best_step": self.best_step, "uses_time": self.use_time}
        return facts | ({"diffusion": self.diffusion} if self.has_heads else {})

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.centre.size)

    @property
    def has_heads(self) -> bool:
        """Whether the field knows growth and score."""
        return self.diffusion > 0

    def __call__(
        self,
        x: NDArray[np.float64],
        time: NDArray[np.float64] | float,
        *,
        device: str = "cpu",
        n_jobs: int | None = None,
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
        n_jobs
            Number of jobs on the CPU; as many as torch has threads where not given.

        Returns
        -------
        Velocities of shape ``[n_points, n_dims]``, in basis per time.
        """
        return values_at(self, "on", x, time, device, n_jobs)

    def growth(
        self, x: NDArray[np.float64], time: NDArray[np.float64] | float, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """Return the growth rate per time, shape ``[n_points]``.

        Parameters
        ----------
        x
            Positions of shape ``[n_points, n_dims]``.
        time
            Time of each position, shape ``[n_points]``, or one for all.
        device
            Torch device.

        Raises
        ------
        RuntimeError
            If the field has no such head.
        """
        return values_at(self, "growth_on", x, time, device)

    def score(
        self, x: NDArray[np.float64], time: NDArray[np.float64] | float, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        """Return the gradient of the log density, shape ``[n_points, n_dims]``.

        Parameters
        ----------
        x
            Positions of shape ``[n_points, n_dims]``.
        time
            Time of each position, shape ``[n_points]``, or one for all.
        device
            Torch device.

        Raises
        ------
        RuntimeError
            If the field has no such head.
        """
        return values_at(self, "score_on", x, time, device)

    def drift(
        self, x: NDArray[np.float64], time: NDArray[np.float64] | float, *, device: str = "cpu"
    ) -> NDArray[np.float64]:
        r"""Return the drift :math:`v + \sigma^2 / 2 \, \nabla \log p`, shape ``[n_points, n_dims]``.

        Without heads it is the velocity.

        Parameters
        ----------
        x
            Positions of shape ``[n_points, n_dims]``.
        time
            Time of each position, shape ``[n_points]``, or one for all.
        device
            Torch device.
        """
        return values_at(self, "drift_on", x, time, device)

    def width(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how widely a pair of cells spreads around its path, shape ``[n]``.

        Parameters
        ----------
        time
            Times, shape ``[n]``.
        """
        if self.times.size == 1:
            return np.full(np.shape(time), self.x_scale)
        times, widths = torch.tensor(self.times), torch.tensor(self.widths)
        return np.asarray(spread_of(torch.tensor(time), times, widths, self.bridge_noise)[0])

    def on(self, device: torch.device | str) -> Function:
        """Return the velocity as a function of tensors, ``x [n, n_dims]`` and ``time [n]``, differentiable in both.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """
        heads = self.heads_on(device)
        return lambda x, time: heads(x, time)[0]

    def growth_on(self, device: torch.device | str) -> Function:
        """Return the growth rate as a function of tensors, with values of shape ``[n]``; see :meth:`on`.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """
        self._need_heads()
        heads = self._all_heads_on(device)
        return lambda x, time: heads(x, time)[1]

    def score_on(self, device: torch.device | str) -> Function:
        """Return the gradient of the log density as a function of tensors; see :meth:`on`.

        It is smoother than that of :meth:`heads_on`, which knows single cells at time points.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """
        self._need_heads()
        heads = self._all_heads_on(device)
        return lambda x, time: heads(x, time)[2]

    def drift_on(self, device: torch.device | str) -> Function:
        """Return the drift as a function of tensors; see :meth:`drift` and :meth:`on`.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """
        if not self.has_heads:
            return self.on(device)
        heads = self._all_heads_on(device)

        def evaluate(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            velocity, _, score, _ = heads(x, time)
            return velocity + self.diffusion**2 / 2 * score

        return evaluate

    def heads_on(
        self, device: torch.device | str
    ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return velocity, growth and score at once, as a function of tensors; empty where the field has no heads.

        The score is that of the bridges, which are as narrow at time points as single cells. The growth is that of
        particles, with ``growth_shift``.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """
        heads, shifted = self._all_heads_on(device), self.growth_shift.size > 0
        times, shift = (as_tensor(values, torch.device(device)) for values in (self.times, self.growth_shift))

        def evaluate(x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            velocity, growth, _, score = heads(x, time)
            if shifted:
                # An index would not do where derivatives are taken of one point at a time.
                later = time.unsqueeze(-1) >= times[1:-1]
                growth = growth + shift[0] + (later * shift.diff()).sum(-1)
            return velocity, growth, score

        return evaluate

    def _all_heads_on(self, device: torch.device | str) -> Callable[[torch.Tensor, torch.Tensor], Heads]:
        """Return velocity, growth, the smooth score and that of the bridges, as a function of tensors."""
        n_outputs = n_outputs_of(self.n_dims, self.times) if self.has_heads else self.n_dims
        n_clocks = n_clocks_of(self.times)
        sizes = [weights.shape[0] for weights in self._inner]
        network = build_network(self.n_dims + self.use_time * n_clocks, n_outputs, sizes)
        network.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})
        network.to(device).requires_grad_(False)
        centre, times, widths, bounds = (
            as_tensor(values, torch.device(device)) for values in (self.centre, self.times, self.widths, self.bounds)
        )

        def evaluate(x: torch.Tensor, time: torch.Tensor) -> Heads:
            inputs = (x - centre) / self.x_scale
            if self.use_time:
                clock = ((time - self.time_centre) / self.time_scale).unsqueeze(-1)
                inputs = torch.cat([inputs, clock, *([shares_of(time, times)] if n_clocks > 1 else [])], dim=-1)
            velocity, growth, score, noise = split_heads(network(inputs.float()).to(x.dtype), self.n_dims)
            velocity, growth, score = (
                velocity * self.velocity_scale,
                growth * self.growth_scale,
                score * self.score_scale,
            )
            if not self.has_heads or times.numel() == 1:
                return velocity, growth, score, score
            width, widening = (value.unsqueeze(-1) for value in spread_of(time, times, widths, self.bridge_noise))
            if bounds.numel():
                # No mean of what the training saw lies outside: far from all cells the network would make it up.
                velocity, noise = _no_longer(velocity, bounds[0]), _no_longer(noise, bounds[3])
                score, growth = _no_longer(score, bounds[3] / width), growth.clamp(bounds[1], bounds[2])
            return velocity + widening * noise, growth, score, -noise / width

        return evaluate

    def _need_heads(self) -> None:
        if not self.has_heads:
            raise RuntimeError(
                "Expected a field with growth and score, found one of velocity alone: they come with snapshots at real "
                "time points, `OTVelocityKernel(adata, time_kind='experimental')`."
            )

    @property
    def _inner(self) -> list[NDArray[np.float32]]:
        # By the layer's number: a file returns names in another order.
        names = sorted((name for name in self.weights if name.endswith("weight")), key=lambda n: int(n.split(".")[0]))
        return [self.weights[name] for name in names[:-1]]


def split_heads(outputs: torch.Tensor, n_dims: int) -> tuple[torch.Tensor, ...]:
    """Return velocity of the paths, growth, score and noise from the outputs of the network ``[..., n_outputs]``."""
    velocity, growth, score, noise = outputs.tensor_split([n_dims, n_dims + 1, 2 * n_dims + 1], dim=-1)
    return velocity, growth.sum(-1), score, noise


def n_outputs_of(n_dims: int, times: NDArray[np.float64]) -> int:
    """Return the number of outputs of a network with heads; one without bridges, as in 0.1.0, has no noise."""
    return (3 if times.size > 1 else 2) * n_dims + 1


def shares_of(time: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return which share of each interval between time points is over, shape ``[..., n_times - 1]``."""
    return ((time.unsqueeze(-1) - times[:-1]) / times.diff()).clamp(0, 1)


def n_clocks_of(times: NDArray[np.float64]) -> int:
    """Return how many inputs of the network tell the time: time itself, and the shares of more than one interval."""
    return times.size if times.size > 2 else 1


def spread_of(
    time: torch.Tensor, times: torch.Tensor, widths: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return how widely pairs spread around their paths, and how fast that grows, both ``[...]``.

    Brownian bridges between Gaussians around the cells have the variance :math:`(1 - s) w_0^2 + s w_1^2 + \sigma^2 T s
    (1 - s)` at the share :math:`s` of an interval of length :math:`T`. At a time point itself, it does not grow.
    """
    share, length = shares_of(time, times), times.diff()
    steps = (widths**2).diff()
    width = (widths[0] ** 2 + (share * steps + sigma**2 * length * share * (1 - share)).sum(-1)).sqrt()
    inside = (share > 0) & (share < 1)
    growing = torch.where(inside, steps / length + sigma**2 * (1 - 2 * share), torch.zeros_like(share)).sum(-1)
    return width, growing / (2 * width)


def _no_longer(vectors: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return the vectors, those longer than this shortened to it."""
    norm = vectors.square().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return vectors * (length / norm).clamp_max(1.0)


def layer_sizes(hidden: Any) -> tuple[int, ...]:
    """Return the sizes of hidden layers, checked."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence | np.ndarray):
        raise TypeError(f"Expected `hidden` to be a sequence of layer sizes, found `{type(hidden).__name__}`.")
    return tuple(check_integer("hidden", size, low=1) for size in hidden)


def build_network(n_inputs: int, n_outputs: int, hidden: Sequence[int]) -> torch.nn.Sequential:
    """Return a multilayer perceptron with smooth activations, whose derivatives exist everywhere.

    Its weights are not set: torch would draw them from the global random state.
    """
    sizes = [n_inputs, *hidden]
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [torch.nn.utils.skip_init(torch.nn.Linear, before, after), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.utils.skip_init(torch.nn.Linear, sizes[-1], n_outputs))


def draw_weights(network: torch.nn.Sequential, generator: torch.Generator) -> None:
    """Draw weights and biases of each layer uniformly, within one over the root of its number of inputs."""
    for layer in network:
        if isinstance(layer, torch.nn.Linear):
            bound = layer.in_features**-0.5
            torch.nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            torch.nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
