"""Training of the velocity field: a fixed budget of steps, and held-out cells that decide when to stop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils.device import as_tensor, float_on, in_parts, resolve_device, single_thread, with_halves
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options, Run
from cellrank_velot._utils.parallel import blocks
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.field.losses import curl_loss, divergence_loss, fit_loss, smoothness_loss
from cellrank_velot.field.network import VelocityField, build_network, draw_weights, layer_sizes
from cellrank_velot.graph.smoothing import SmoothedCells

__all__ = ["FieldOptions", "fit_field"]

logger = logging.getLogger("cellrank_velot")

EVALUATE_EVERY = 25
# Largest number of held-out cells: more would not make the loss much more exact.
MAX_HELD_OUT = 10_000
# Cells whose distances are computed at a time.
BLOCK_CELLS = 65_536


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells, and the units in which positions, time and velocities are of order one.

    Each step converts the cells that it needs, a small part of a million.
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
    # The way from each cell's position and time to the smoothed ones.
    to_smooth: tuple[torch.Tensor, torch.Tensor] | None

    @classmethod
    def of(
        cls,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        velocity: NDArray[np.float64],
        rough: NDArray[np.float64] | None,
        weight: NDArray[np.float64],
        known: NDArray[np.int64],
        smoothed: SmoothedCells | None,
        *,
        use_time: bool,
        device: torch.device,
    ) -> _Cells:
        """Find the units; that of velocities from the cells that have one."""
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
            to_smooth=None
            if smoothed is None or smoothed.x is x
            else (as_tensor(smoothed.x - x, device), as_tensor(smoothed.time - time, device)),
        )

    def inputs(self, cells: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return the inputs of the network for some cells, ``[n, n_inputs]``; with a generator drawn along the way."""
        x, time = self.x[cells], self.time[cells]
        if generator is not None and self.to_smooth is not None:
            share = torch.rand(cells.shape, generator=generator, device=x.device, dtype=float_on(x.device))
            x = x + share.unsqueeze(1) * self.to_smooth[0][cells]
            time = time + share * self.to_smooth[1][cells]
        inputs = (x - as_tensor(self.centre, x.device)) / self.x_scale
        if self.use_time:
            inputs = torch.cat([inputs, ((time - self.time_centre) / self.time_scale).unsqueeze(1)], dim=1)
        return inputs.float()

    def fit(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the velocities of some cells, and their weights, both in these units."""
        target = (self.velocity[cells] / self.velocity_scale).float()
        return target, (self.weight[cells] / self.mean_weight).float()

    def roughness(self, cells: torch.Tensor) -> torch.Tensor | float:
        """Return the part of the velocity in which neighbours may differ."""
        return 0.0 if self.rough is None else (self.rough[cells] / self.velocity_scale).float()


@dataclass(frozen=True, kw_only=True)
class FieldOptions(Options):
    """Penalties and training, as :meth:`~cellrank_velot.OTVelocityKernel.fit_field` explains them."""

    hidden: Sequence[int] = (128, 128)
    use_time: bool = True
    lambda_smooth: float = 0.1
    lambda_curl: float = 0.0
    lambda_divergence: float = 0.0
    n_steps: int = 300
    batch_size: int = 256
    learning_rate: float = 8e-3
    held_out: float = 0.1
    patience: int = 10
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        self._without_none("n_steps", "batch_size", "learning_rate")
        object.__setattr__(self, "hidden", layer_sizes(self.hidden))
        for name in ("lambda_smooth", "lambda_curl", "lambda_divergence"):
            check_number(name, getattr(self, name), low=0)
        for name in ("n_steps", "batch_size", "patience"):
            check_integer(name, getattr(self, name), low=1)
        check_number("learning_rate", self.learning_rate, low=0, open_low=True)
        check_number("held_out", self.held_out, low=0, high=0.5, open_low=True)
        check_seed(self.random_state)


def fit_field(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    velocity: NDArray[np.float64],
    weight: NDArray[np.float64],
    graph: sp.csr_matrix,
    relaxation: NDArray[np.float64] | None = None,
    options: FieldOptions = FieldOptions(),
    run: Run = Run(),
    *,
    smoothed: SmoothedCells | None = None,
) -> VelocityField:
    """Fit a smooth velocity field to the velocities of the cells; keep the step that is best on held-out cells.

    The loss is the squared error, weighted by ``weight``, plus penalties on the differences between neighbours, on curl
    and on divergence, all in standardised units. Neighbours may differ in ``relaxation``, the part of ``velocity`` with
    which each returns to their mean from its own side. Cells with a velocity of NaN count for the differences alone. A
    cell is shown anywhere between its own position and its ``smoothed`` one, so that the field holds for both.
    """
    where = resolve_device(run.device)
    known = np.flatnonzero(np.isfinite(velocity).all(axis=1) & (weight > 0))
    if known.size < 10:
        raise ValueError(f"Expected a velocity for at least `10` cells, found `{known.size}`.")
    rng = np.random.default_rng(options.random_state)
    known = rng.permutation(known)
    x, time, velocity = (np.ascontiguousarray(values, dtype=np.float64) for values in (x, time, velocity))
    cells = _Cells.of(x, time, velocity, relaxation, weight, known, smoothed, use_time=options.use_time, device=where)
    network = build_network(x.shape[1] + options.use_time, x.shape[1], options.hidden)
    draw_weights(network, torch.Generator().manual_seed(int(rng.integers(2**31))))
    network.to(where)
    n_held_out = min(max(1, round(options.held_out * known.size)), MAX_HELD_OUT)
    trainer = _Trainer(
        cells=cells,
        network=network,
        neighbors=_NeighborSampler(graph, where),
        held_out=torch.from_numpy(known[:n_held_out]).to(where),
        trained=torch.from_numpy(known[n_held_out:]).to(where),
        options=options,
        generator=torch.Generator(where).manual_seed(int(rng.integers(2**31))),
    )
    with single_thread(where):
        history, best_step, weights = trainer.run(run.show_progress_bar)
    logger.info("Fitted the velocity field: kept step %d of %d", best_step, int(history["step"][-1]))
    return VelocityField(
        weights=weights,
        centre=cells.centre,
        x_scale=cells.x_scale,
        time_centre=cells.time_centre,
        time_scale=cells.time_scale,
        velocity_scale=cells.velocity_scale,
        use_time=options.use_time,
        history=history,
        best_step=best_step,
    )


@dataclass(frozen=True, eq=False)
class _Trainer:
    """One run of training."""

    cells: _Cells
    network: torch.nn.Sequential
    neighbors: _NeighborSampler
    held_out: torch.Tensor
    trained: torch.Tensor
    options: FieldOptions
    generator: torch.Generator

    def run(
        self, show_progress_bar: bool
    ) -> tuple[dict[str, NDArray[np.float64]], int, dict[str, NDArray[np.float32]]]:
        """Train; return the history, the best step and its weights."""
        options, n_steps, batch_size = self.options, self.options.n_steps, self.options.batch_size
        fused = self.generator.device.type in ("cpu", "cuda")  # one call for all weights
        optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate, fused=fused)
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
                elif step - best_step >= options.patience * EVALUATE_EVERY:
                    break
        if not np.isfinite(best):
            raise FloatingPointError("Training of the velocity field diverged: lower `learning_rate`.")
        names = ("step", "held_out", "total", "fit", "smooth", "curl", "divergence")
        history = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        return history, best_step, kept

    def _gradients(self, batch_size: int) -> torch.Tensor:
        """Compute the gradients of a batch in place, and return its losses."""
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
        inputs = cells.inputs(torch.cat([batch, everywhere, neighbor]), self.generator)
        predicted, here, there = self.network(inputs).chunk(3)
        fit = fit_loss(predicted, *cells.fit(batch))
        smooth = smoothness_loss(here - cells.roughness(everywhere), there - cells.roughness(neighbor))
        points = inputs[: batch.numel()]
        zero = fit.new_zeros(())
        options = self.options
        curl = curl_loss(self.network, points, n_dims, self.generator) if options.lambda_curl else zero
        divergence = (
            divergence_loss(self.network, points, n_dims, self.generator) if options.lambda_divergence else zero
        )
        total = fit + options.lambda_smooth * smooth + options.lambda_curl * curl
        total = total + options.lambda_divergence * divergence
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
        # A cell without neighbours needs an index, too, though it is not used.
        self.indices = as_tensor(graph.indices if graph.indices.size else np.zeros(1, dtype=np.int32), device)

    def sample(self, cells: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return one neighbour of each of these cells, same shape."""
        start = self.indptr[cells].long()
        degree = self.indptr[cells + 1].long() - start
        draw = torch.rand(cells.shape, generator=generator, device=generator.device, dtype=float_on(generator.device))
        edge = (start + (draw * degree).long()).clamp_(max=self.indices.numel() - 1)
        return torch.where(degree > 0, self.indices[edge].long(), cells)
