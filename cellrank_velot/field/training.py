"""Training of the velocity field: a fixed budget of steps, and held-out cells that say when to stop.

Depends on numpy, scipy, torch and the rest of this folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from cellrank_velot._utils.device import as_tensor, float_on, in_parts, resolve_device, single_thread, with_halves
from cellrank_velot._utils.parallel import blocks
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.field.losses import curl_loss, divergence_loss, fit_loss, smoothness_loss
from cellrank_velot.field.network import VelocityField, build_network, draw_weights

__all__ = ["check_field_options", "fit_field"]

logger = logging.getLogger("cellrank_velot")

EVALUATE_EVERY = 25
# Held-out cells at most: more tell the loss no better than it needs to be known.
MAX_HELD_OUT = 10_000
# Cells whose positions are looked at at a time.
BLOCK_CELLS = 65_536


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells as they are, and the units in which positions, time and velocities are of order one.

    What a step needs is taken to these units when it is needed: of a million cells it is a small part.
    """

    x: torch.Tensor
    time: torch.Tensor
    velocity: torch.Tensor
    weight: torch.Tensor
    rough: torch.Tensor | None
    centre: NDArray[np.float64]
    x_scale: float
    time_centre: float
    time_scale: float
    velocity_scale: float
    mean_weight: float
    use_time: bool

    @classmethod
    def of(
        cls,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        velocity: NDArray[np.float64],
        rough: NDArray[np.float64] | None,
        weight: NDArray[np.float64],
        known: NDArray[np.int64],
        *,
        use_time: bool,
        device: torch.device,
    ) -> _Cells:
        """Find the units, from the cells with a velocity where it is about that."""
        centre = x.mean(axis=0)
        # One scale for all dimensions keeps the geometry: what is far in the basis is far for the network.
        square = sum(float(np.sum((x[slice(*part)] - centre) ** 2)) for part in blocks(x.shape[0], BLOCK_CELLS))
        speed = np.einsum("ij,ij->i", velocity, velocity)[known] / x.shape[1]
        return cls(
            x=as_tensor(x, device),
            time=as_tensor(time, device),
            velocity=as_tensor(velocity, device),
            weight=as_tensor(weight, device),
            rough=None if rough is None else as_tensor(rough, device),
            centre=centre,
            x_scale=float(np.sqrt(square / x.size)) or 1.0,
            time_centre=float(time.mean()),
            time_scale=float(time.std()) or 1.0,
            velocity_scale=float(np.sqrt(np.average(speed, weights=weight[known]))) or 1.0,
            mean_weight=float(weight[known].mean()),
            use_time=use_time,
        )

    def inputs(self, cells: torch.Tensor) -> torch.Tensor:
        """Return what the network sees of some cells, shape ``[n, n_inputs]``."""
        x = self.x[cells]
        inputs = (x - as_tensor(self.centre, x.device)) / self.x_scale
        if self.use_time:
            inputs = torch.cat([inputs, ((self.time[cells] - self.time_centre) / self.time_scale).unsqueeze(1)], dim=1)
        return inputs.float()

    def fit(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the velocities that the network is to have, and their weights."""
        target = (self.velocity[cells] / self.velocity_scale).float()
        return target, (self.weight[cells] / self.mean_weight).float()

    def roughness(self, cells: torch.Tensor) -> torch.Tensor | float:
        """Return the part of the velocity in which neighbours may differ."""
        return 0.0 if self.rough is None else (self.rough[cells] / self.velocity_scale).float()


def fit_field(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    velocity: NDArray[np.float64],
    weight: NDArray[np.float64],
    graph: sp.csr_matrix,
    relaxation: NDArray[np.float64] | None = None,
    *,
    hidden: Sequence[int] = (128, 128),
    use_time: bool = True,
    lambda_smooth: float = 1.0,
    lambda_curl: float = 0.0,
    lambda_divergence: float = 0.0,
    n_steps: int = 300,
    batch_size: int = 256,
    learning_rate: float = 2e-3,
    held_out: float = 0.1,
    patience: int = 10,
    random_state: int = 0,
    device: str = "auto",
    show_progress_bar: bool = False,
) -> VelocityField:
    """Fit a smooth velocity field to the velocities of the cells.

    The loss is the weighted squared error, plus ``lambda_smooth`` times the squared difference between neighbours,
    plus ``lambda_curl`` and ``lambda_divergence`` times curl and divergence. All are in standardised units. Neighbours
    share where they go, not how they return to the manifold, each from its own side: from their difference that of
    their relaxation is taken off.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    velocity
        Velocities of shape ``[n_cells, n_dims]``; cells with NaN inform the smoothness only.
    weight
        Weight of each cell in the fit, shape ``[n_cells]``, not negative.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    relaxation
        The part of ``velocity`` in which neighbours may differ, shape ``[n_cells, n_dims]``; none where not given.
    hidden
        Sizes of the hidden layers.
    use_time
        Whether time is an input, next to the position.
    lambda_smooth, lambda_curl, lambda_divergence
        Weights of the penalties.
    n_steps
        Largest number of steps.
    batch_size
        Cells per step.
    learning_rate
        First step size of Adam; it falls to zero along a cosine.
    held_out
        Share of cells, 10 000 of them at most, that are not trained on and choose the step to keep.
    patience
        Stop after so many evaluations, 25 steps each, without a better one.
    random_state
        Seed of initial weights, batches and held-out cells.
    device
        Torch device, or ``"auto"``.
    show_progress_bar
        Whether to show a progress bar.

    Returns
    -------
    The field, with the weights of the step that was best on the held-out cells.

    Raises
    ------
    ValueError
        If an option is out of range or fewer than ten cells have a velocity.

    Examples
    --------
    >>> from cellrank_velot.field import fit_field
    >>> x, time, graph = vk.cells.x, vk.cells.time, vk.connectivities
    >>> options = {"hidden": (32, 32), "n_steps": 100}
    >>> field = fit_field(x, time, vk.raw_velocity, vk.confidence, graph, **options)
    >>> field(x, time).shape, field.best_step <= 100
    ((300, 20), True)
    """
    check_field_options(
        hidden, (lambda_smooth, lambda_curl, lambda_divergence), n_steps, batch_size, learning_rate, held_out, patience
    )
    check_seed(random_state)
    where = resolve_device(device)
    known = np.flatnonzero(np.isfinite(velocity).all(axis=1) & (weight > 0))
    if known.size < 10:
        raise ValueError(f"Expected a velocity for at least `10` cells, found `{known.size}`.")
    rng = np.random.default_rng(random_state)
    known = rng.permutation(known)
    x, time, velocity = (np.ascontiguousarray(values, dtype=np.float64) for values in (x, time, velocity))
    cells = _Cells.of(x, time, velocity, relaxation, weight, known, use_time=use_time, device=where)
    network = build_network(x.shape[1] + use_time, x.shape[1], list(hidden))
    draw_weights(network, torch.Generator().manual_seed(int(rng.integers(2**31))))
    network.to(where)
    n_held_out = min(max(1, round(held_out * known.size)), MAX_HELD_OUT)
    trainer = _Trainer(
        cells=cells,
        network=network,
        neighbors=_NeighborSampler(graph, where),
        held_out=torch.from_numpy(known[:n_held_out]).to(where),
        trained=torch.from_numpy(known[n_held_out:]).to(where),
        lambdas=(lambda_smooth, lambda_curl, lambda_divergence),
        generator=torch.Generator(where).manual_seed(int(rng.integers(2**31))),
    )
    with single_thread(where):
        history, best_step, weights = trainer.run(n_steps, batch_size, learning_rate, patience, show_progress_bar)
    logger.info("Fitted the velocity field: kept step %d of %d", best_step, int(history["step"][-1]))
    return VelocityField(
        weights=weights,
        centre=cells.centre,
        x_scale=cells.x_scale,
        time_centre=cells.time_centre,
        time_scale=cells.time_scale,
        velocity_scale=cells.velocity_scale,
        use_time=use_time,
        history=history,
        best_step=best_step,
    )


def check_field_options(
    hidden: Sequence[int],
    lambdas: tuple[float, float, float],
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    held_out: float,
    patience: int,
) -> None:
    """Refuse options of :func:`fit_field` that are out of range; ``lambdas`` are smoothness, curl and divergence.

    Raises
    ------
    TypeError, ValueError
        If one is.
    """
    if not isinstance(hidden, Sequence | np.ndarray):
        raise TypeError(f"Expected `hidden` to be a sequence of layer sizes, found `{type(hidden).__name__}`.")
    for size in hidden:
        check_integer("hidden", size, low=1)
    for name, value in zip(("lambda_smooth", "lambda_curl", "lambda_divergence"), lambdas, strict=True):
        check_number(name, value, low=0)
    for name, count in (("n_steps", n_steps), ("batch_size", batch_size), ("patience", patience)):
        check_integer(name, count, low=1)
    check_number("learning_rate", learning_rate, low=0, open_low=True)
    check_number("held_out", held_out, low=0, high=0.5, open_low=True)


@dataclass(frozen=True, eq=False)
class _Trainer:
    """One run of training."""

    cells: _Cells
    network: nn.Sequential
    neighbors: _NeighborSampler
    held_out: torch.Tensor
    trained: torch.Tensor
    lambdas: tuple[float, float, float]
    generator: torch.Generator

    def run(
        self, n_steps: int, batch_size: int, learning_rate: float, patience: int, show_progress_bar: bool
    ) -> tuple[dict[str, NDArray[np.float64]], int, dict[str, NDArray[np.float32]]]:
        """Train; return the history, the best step and its weights."""
        fused = self.generator.device.type in ("cpu", "cuda")  # one call for all weights
        optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate, fused=fused)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        rows: list[tuple[float, ...]] = []
        recent: list[torch.Tensor] = []
        best, best_step, kept = np.inf, 0, self._weights()
        with tqdm(total=n_steps, desc="field", unit="step", disable=not show_progress_bar) as bar:
            for step in range(1, n_steps + 1):
                losses, batch_size = with_halves(self._gradients, batch_size, "training the field")
                optimizer.step()
                schedule.step()
                bar.update()
                recent.append(losses)
                if step % EVALUATE_EVERY and step != n_steps:
                    continue
                validation = self._held_out_loss()
                rows.append((step, validation, *torch.stack(recent).mean(0).tolist()))
                recent.clear()
                if validation < best:
                    best, best_step, kept = validation, step, self._weights()
                elif step - best_step >= patience * EVALUATE_EVERY:
                    break
        if not np.isfinite(best):
            raise FloatingPointError("Training of the velocity field diverged: lower `learning_rate`.")
        names = ("step", "held_out", "total", "fit", "smooth", "curl", "divergence")
        history = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        return history, best_step, kept

    def _gradients(self, batch_size: int) -> torch.Tensor:
        """Leave the gradients of a batch with the network, and return its losses."""
        losses = self._losses(self._batch(batch_size))
        self.network.zero_grad(set_to_none=True)
        losses[0].backward()
        return torch.stack(losses).detach()

    def _batch(self, batch_size: int) -> torch.Tensor:
        size = min(batch_size, self.trained.numel())
        chosen = torch.randint(self.trained.numel(), (size,), generator=self.generator, device=self.generator.device)
        return self.trained[chosen]

    def _losses(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the total and its terms, unweighted."""
        cells, n_dims = self.cells, self.cells.x.shape[1]
        everywhere = torch.randint(
            cells.x.shape[0], batch.shape, generator=self.generator, device=self.generator.device
        )
        neighbor = self.neighbors.sample(everywhere, self.generator)
        inputs = cells.inputs(torch.cat([batch, everywhere, neighbor]))
        predicted, here, there = self.network(inputs).chunk(3)
        fit = fit_loss(predicted, *cells.fit(batch))
        smooth = smoothness_loss(here - cells.roughness(everywhere), there - cells.roughness(neighbor))
        points = inputs[: batch.numel()]
        zero = fit.new_zeros(())
        smooth_weight, curl_weight, divergence_weight = self.lambdas
        curl = curl_loss(self.network, points, n_dims, self.generator) if curl_weight else zero
        divergence = divergence_loss(self.network, points, n_dims, self.generator) if divergence_weight else zero
        total = fit + smooth_weight * smooth + curl_weight * curl + divergence_weight * divergence
        return total, fit, smooth, curl, divergence

    def _held_out_loss(self) -> float:
        with torch.no_grad():
            parts = in_parts(lambda cells: self.network(self.cells.inputs(cells)), [self.held_out], "held-out cells")
            predicted = torch.cat([values for _, values in parts])
            return float(fit_loss(predicted, *self.cells.fit(self.held_out)))

    def _weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: value.detach().cpu().numpy().copy() for name, value in self.network.state_dict().items()}


class _NeighborSampler:
    """Draws a random neighbour of each cell; a cell without one is its own neighbour."""

    def __init__(self, graph: sp.csr_matrix, device: torch.device) -> None:
        self.indptr = as_tensor(graph.indptr, device)
        # A cell without neighbours draws none of its own, but must point to something.
        self.indices = as_tensor(graph.indices if graph.indices.size else np.zeros(1, dtype=np.int32), device)

    def sample(self, cells: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one neighbour of each of these cells, same shape."""
        start = self.indptr[cells].long()
        degree = self.indptr[cells + 1].long() - start
        draw = torch.rand(cells.shape, generator=generator, device=generator.device, dtype=float_on(generator.device))
        edge = (start + (draw * degree).long()).clamp_(max=self.indices.numel() - 1)
        return torch.where(degree > 0, self.indices[edge].long(), cells)
