"""Losses of the velocity field, in standardised units: velocities have unit mean square per component.

So a weight means the same on every data set.
"""

from __future__ import annotations

from collections.abc import Callable

from cellrank_velot._utils.lazy import torch

__all__ = ["curl_loss", "divergence_loss", "fit_loss", "smoothness_loss"]

Network = Callable[["torch.Tensor"], "torch.Tensor"]


def fit_loss(predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean squared error per component of ``[n, n_dims]`` arrays; weights of shape ``[n]``."""
    return ((predicted - target).square().mean(1) * weight).sum() / weight.sum()


def smoothness_loss(here: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference per component between velocities of neighbours, ``[n, n_dims]`` each."""
    return (here - there).square().mean()


def curl_loss(network: Network, inputs: torch.Tensor, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    r"""Return an estimate of the squared curl, :math:`\|J - J^\top\|_F^2 / 2 d`, over all dimensions.

    ``inputs`` has positions in its first ``n_dims`` columns. One random direction z per point is enough:
    :math:`E\|Jz - J^\top z\|^2 = \|J - J^\top\|_F^2` :cite:`hutchinson:89`.
    """
    z = _directions(inputs, n_dims, generator)
    inputs, outputs = _traced(network, inputs)
    jz = _jvp(outputs, inputs, z)
    jtz = _vjp(outputs, inputs, z[:, :n_dims])[:, :n_dims]
    return (jz - jtz).square().sum(1).mean() / (2 * n_dims)


def divergence_loss(network: Network, inputs: torch.Tensor, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    r"""Return an estimate of the squared divergence per dimension, :math:`(\mathrm{tr} J)^2 / d`.

    Two independent directions per point make the estimate of the square unbiased :cite:`hutchinson:89`.
    """
    traces = []
    inputs, outputs = _traced(network, inputs)
    for _ in range(2):
        z = _directions(inputs, n_dims, generator)
        traces.append((_jvp(outputs, inputs, z) * z[:, :n_dims]).sum(1))
    return (traces[0] * traces[1]).mean() / n_dims


def _directions(inputs: torch.Tensor, n_dims: int, generator: torch.Generator) -> torch.Tensor:
    """Return random signs for the positions and zero for the time."""
    signs = torch.randint(0, 2, (inputs.shape[0], n_dims), generator=generator, device=generator.device) * 2 - 1
    z = torch.zeros_like(inputs)
    z[:, :n_dims] = signs.to(inputs)
    return z


def _traced(network: Network, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs that derivatives are taken by, and the outputs there."""
    inputs = inputs.detach().requires_grad_()
    return inputs, network(inputs)


def _jvp(outputs: torch.Tensor, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return J z, as the derivative of u J by u: torch's forward mode has one state for all threads of a process."""
    u = torch.zeros_like(outputs, requires_grad=True)
    derivative: torch.Tensor = torch.autograd.grad(_vjp(outputs, inputs, u), u, z, create_graph=True)[0]
    return derivative


def _vjp(outputs: torch.Tensor, inputs: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return z J."""
    derivative: torch.Tensor = torch.autograd.grad(outputs, inputs, z, create_graph=True)[0]
    return derivative
