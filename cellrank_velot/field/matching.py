"""Training of a field with heads from couplings, by flow and score matching: no process is ever simulated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from tqdm.auto import tqdm

from cellrank_velot._utils.device import resolve_device, single_thread, with_halves
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options, Run
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed
from cellrank_velot.field.network import (
    VelocityField,
    build_network,
    draw_weights,
    layer_sizes,
    n_clocks_of,
    n_outputs_of,
    shares_of,
    split_heads,
    spread_of,
)
from cellrank_velot.timeseries.bridges import Bridges
from cellrank_velot.timeseries.couplings import SnapshotCouplings

__all__ = ["ProcessOptions", "fit_process"]

logger = logging.getLogger("cellrank_velot")

EVALUATE_EVERY = 50
# Points on which the step to keep is chosen.
N_EVALUATION = 4096
# Bridges end in cells, where the score would be unbounded. So they end in Gaussians around the cells: a point drawn
# from one is as far from its cell as this share of the distance to the nearest other cell of that time.
END_WIDTH = 0.5
# Noise of the bridges, as a share of that of the couplings: narrower ones keep apart what lies near each other.
BRIDGE_SHARE = 0.5
# Cells whose nearest cell is looked for.
N_NEAREST = 1000
# Share of the points that are drawn with wide noise, how wide, and the least weight of a point there.
TAIL_SHARE, TAIL_WIDTH, TAIL_WEIGHT = 0.1, 3.0, 0.01
# How much more the score counts where bridges are narrow than where they are widest, at most.
MAX_SCORE_WEIGHT = 10.0
# Steps over which weights are averaged.
MEMORY = 100
# Points of an interval at which its mass is computed.
N_MASS = 33
# Cells that are followed from one time point to the next to see which mass they come to, at most, and their steps.
N_FOLLOWED, N_FOLLOWED_STEPS = 2000, 50


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(Options):
    """Options of the training, as :meth:`~cellrank_velot.OTVelocityKernel.fit_field` of time points explains them."""

    hidden: Sequence[int] = (128, 128, 128)
    diffusion: float | Literal["auto"] = "auto"
    n_steps: int = 1500
    batch_size: int = 512
    learning_rate: float = 3e-3
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        self._without_none("diffusion", "n_steps", "batch_size", "learning_rate")
        object.__setattr__(self, "hidden", layer_sizes(self.hidden))
        if isinstance(self.diffusion, str):
            check_choice("diffusion", self.diffusion, ["auto"])
        else:
            check_number("diffusion", self.diffusion, low=0, open_low=True)
        check_integer("n_steps", self.n_steps, low=1)
        check_integer("batch_size", self.batch_size, low=1)
        check_number("learning_rate", self.learning_rate, low=0, open_low=True)
        check_seed(self.random_state)


def fit_process(
    couplings: SnapshotCouplings,
    x: NDArray[np.float64],
    options: ProcessOptions = ProcessOptions(),
    *,
    straight: bool = False,
    run: Run = Run(),
) -> VelocityField:
    r"""Fit velocity, growth and score of the process that the couplings are snapshots of.

    A pair of cells moves along its bridge :math:`\mu(t)`, with the variance :math:`\beta(t) = \sigma^2 (t - t_0) (t_1 -
    t) / (t_1 - t_0)` of a Brownian bridge around it, and its mass grows at a constant rate. Mixed over all pairs, their
    mean velocity, growth and score are those of the whole population, which has the right positions and masses at every
    time point. They are the minimum of a regression on random points of the bridges :cite:`tong:24`, here weighted by
    the mass that the pairs have. Pairs move ``straight``, or along cubics through more time points.
    """
    where = resolve_device(run.device)
    sigma = couplings.diffusion if isinstance(options.diffusion, str) else float(options.diffusion)
    rng = np.random.default_rng(options.random_state)
    generator = torch.Generator(where).manual_seed(int(rng.integers(2**31)))
    points = _Points(
        Bridges(couplings, x, device=where, straight=straight), BRIDGE_SHARE * couplings.diffusion, generator
    )
    n_dims = x.shape[1]
    network = build_network(
        n_dims + n_clocks_of(couplings.times), n_outputs_of(n_dims, couplings.times), options.hidden
    )
    draw_weights(network, torch.Generator().manual_seed(int(rng.integers(2**31))))
    network.to(where)
    with single_thread(where):
        history, best_step = _train(network, points, options, run.show_progress_bar)
    logger.info("Fitted the process: kept step %d of %d", best_step, options.n_steps)
    field = VelocityField(
        weights={name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()},
        centre=points.centre.cpu().numpy(),
        x_scale=points.x_scale,
        time_centre=points.time_centre,
        time_scale=points.time_scale,
        velocity_scale=points.velocity_scale,
        use_time=True,
        history=history,
        best_step=best_step,
        diffusion=sigma,
        growth_scale=points.growth_scale,
        score_scale=points.score_scale,
        bridge_noise=BRIDGE_SHARE * couplings.diffusion,
        times=couplings.times,
        widths=points.widths.cpu().numpy(),
        bounds=points.bounds,
    )
    with torch.no_grad(), single_thread(where):
        shift = _growth_shift(field, couplings, x, rng, where)
    return replace(field, growth_shift=shift)


class _Points:
    """Random points of the bridges, in units in which positions, times and targets are of order one."""

    def __init__(self, bridges: Bridges, sigma: float, generator: torch.Generator) -> None:
        self.bridges, self.sigma, self.generator = bridges, sigma, generator
        couplings = bridges.couplings
        self.widths = torch.tensor(_widths(couplings, bridges.x.cpu().numpy()), device=generator.device)
        self.mean_rate = torch.stack([self._mean_rates(k) for k in range(couplings.n_intervals)])
        ratio = torch.tensor(np.diff(np.log(couplings.mass)), device=generator.device)
        self.total_rate = ratio / bridges.length
        each = (bridges.log_start.exp() + bridges.log_end.exp()) / 2
        total = torch.zeros_like(bridges.length).index_add_(0, bridges.interval, each)
        # Times are drawn uniformly, and pairs in proportion to the mean of their masses.
        self.cumulated = torch.cumsum(each / (total / bridges.length)[bridges.interval], 0)
        self.log_each = each.log()
        self._scale()

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return inputs, targets of velocity, growth and noise, its size over the unit of the score, and weights."""
        x, time, velocity, rate, noise, width, weight = self._raw(n)
        clock = [((time - self.time_centre) / self.time_scale)[:, None]]
        if n_clocks_of(self.bridges.couplings.times) > 1:
            clock.append(shares_of(time, self.bridges.times))
        inputs = torch.cat([(x - self.centre) / self.x_scale, *clock], 1)
        targets = torch.cat([velocity / self.velocity_scale, (rate / self.growth_scale)[:, None], noise], 1)
        return inputs.float(), targets.float(), (width * self.score_scale).float(), weight.float()

    def _raw(self, n: int) -> tuple[torch.Tensor, ...]:
        bridges, where = self.bridges, self.generator.device
        places = torch.rand(n, generator=self.generator, dtype=torch.float64, device=where) * self.cumulated[-1]
        pairs = torch.searchsorted(self.cumulated, places).clamp_max(self.cumulated.numel() - 1)
        share = torch.rand(n, generator=self.generator, dtype=torch.float64, device=where)
        mean, velocity = bridges.move(pairs, share)
        k = bridges.interval[pairs]
        length = bridges.length[k]
        time = bridges.times[k] + share * length
        width, _ = spread_of(time, bridges.times, self.widths, self.sigma)
        noise = torch.randn(mean.shape, generator=self.generator, dtype=torch.float64, device=where)
        n_dims = mean.shape[1]
        wide = torch.rand(n, generator=self.generator, dtype=torch.float64, device=where) < TAIL_SHARE
        noise = torch.where(wide[:, None], TAIL_WIDTH * noise, noise)
        square = noise.square().sum(1) / 2
        other = TAIL_SHARE / (1 - TAIL_SHARE) * TAIL_WIDTH**-n_dims * (square * (1 - TAIL_WIDTH**-2)).exp()
        usual = (1 / ((1 - TAIL_SHARE) * (1 + other))).clamp_min(TAIL_WEIGHT)
        rate = (bridges.log_end - bridges.log_start)[pairs] / length - self._mean_rate(k, share) + self.total_rate[k]
        weight = (bridges.log_mass(pairs, share) - self.log_each[pairs]).exp()
        return mean + width[:, None] * noise, time, velocity, rate, noise, width, weight * usual

    def _mean_rates(self, k: int) -> torch.Tensor:
        """Return the mean growth rate of an interval's pairs, at times spread over it, shape ``[N_MASS]``.

        Masses that change at constant rates sum to less half-way than at the ends: this mean corrects the rates.
        """
        part, bridges = self.bridges.couplings.pairs(k), self.bridges
        rate = (bridges.log_end[part] - bridges.log_start[part]) / bridges.length[k]
        shares = torch.linspace(0, 1, N_MASS, dtype=torch.float64, device=rate.device)
        rates = []
        for share in shares:
            mass = ((1 - share) * bridges.log_start[part] + share * bridges.log_end[part]).exp()
            rates.append((mass * rate).sum() / mass.sum())
        return torch.stack(rates)

    def _mean_rate(self, k: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        place = share * (N_MASS - 1)
        left = place.long().clamp_max(N_MASS - 2)
        rest = place - left
        return (1 - rest) * self.mean_rate[k, left] + rest * self.mean_rate[k, left + 1]

    def _scale(self) -> None:
        x, time, velocity, rate, noise, width, weight = self._raw(N_EVALUATION)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return (values * weight.reshape(-1, *[1] * (values.dim() - 1))).sum(0) / weight.sum()

        self.centre = mean(x)
        self.x_scale = float(mean((x - self.centre) ** 2).mean().sqrt()) or 1.0
        self.time_centre = float(time.mean())
        self.time_scale = float(time.std()) or 1.0
        self.velocity_scale = float(mean(velocity**2).mean().sqrt()) or 1.0
        self.growth_scale = float(mean(rate**2).sqrt()) or 1.0
        # About the score of a population as wide as that of all time points together.
        self.score_scale = 1.0 / max(self.x_scale, float(width.mean()))
        speed, size = velocity.norm(dim=1).max(), noise.norm(dim=1).max()
        self.bounds = np.array([float(value) for value in (speed, rate.min(), rate.max(), size)])


def _widths(couplings: SnapshotCouplings, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how wide the Gaussians are that bridges end in, per dimension, at each time point."""
    rng, widths = np.random.default_rng(0), []
    for k in range(couplings.times.size):
        ends = (
            couplings.source[couplings.pairs(k)]
            if k < couplings.n_intervals
            else couplings.target[couplings.pairs(k - 1)]
        )
        cells = x[np.unique(ends)]
        some = cells if cells.shape[0] <= N_NEAREST else cells[rng.choice(cells.shape[0], N_NEAREST, replace=False)]
        n = min(2, cells.shape[0])
        distance = NearestNeighbors(n_neighbors=n).fit(cells).kneighbors(some)[0][:, -1]
        widths.append(END_WIDTH * np.median(distance))
    least = 1e-3 * np.sqrt(x.var(axis=0).sum()) or 1.0
    return np.maximum(widths, least) / np.sqrt(x.shape[1])


def _growth_shift(
    field: VelocityField,
    couplings: SnapshotCouplings,
    x: NDArray[np.float64],
    rng: np.random.Generator,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return what the growth lacks between two time points for the mass of the later one, ``[n_times - 1]``.

    The mass is given. Small errors of where cells are add up in what they grow to, so the cells of each time point
    follow the field to the next one, and the same rate is added everywhere.
    """
    heads, shift = field.heads_on(device), np.zeros(couplings.n_intervals)
    for k in range(couplings.n_intervals):
        part = couplings.pairs(k)
        mass = np.bincount(couplings.source[part], couplings.start[part], minlength=x.shape[0])
        cells = rng.permutation(np.flatnonzero(mass))[:N_FOLLOWED]
        position = torch.tensor(x[cells], device=device)
        log_mass = torch.tensor(np.log(mass[cells]), device=device)
        clock = np.linspace(couplings.times[k], couplings.times[k + 1], N_FOLLOWED_STEPS + 1)
        before = float(torch.logsumexp(log_mass, 0))
        for start, end in pairwise(clock):
            middle = torch.full_like(log_mass, (start + end) / 2)
            velocity, growth, _ = heads(position, middle)
            position, log_mass = position + (end - start) * velocity, log_mass + (end - start) * growth
        grown = float(torch.logsumexp(log_mass, 0)) - before
        shift[k] = (np.log(couplings.mass[k + 1] / couplings.mass[k]) - grown) / (clock[-1] - clock[0])
    return shift


def _losses(network: torch.nn.Sequential, points: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the weighted squared errors of velocity, growth, score and noise, shape ``[4]``."""
    inputs, targets, width, weight = points
    n_dims = (targets.shape[1] - 1) // 2
    velocity, growth, score, noise = split_heads(network(inputs), n_dims)
    drawn = targets[:, n_dims + 1 :]
    errors = (
        (velocity - targets[:, :n_dims]).square().mean(1),
        (growth - targets[:, n_dims]).square(),
        # At time points, where bridges are narrow, the score would hardly count.
        (width[:, None] * score + drawn).square().mean(1) * (width.max() / width).square().clamp_max(MAX_SCORE_WEIGHT),
        (noise - drawn).square().mean(1),
    )
    return torch.stack([(error * weight).mean() for error in errors])


def _train(
    network: torch.nn.Sequential,
    points: _Points,
    options: ProcessOptions,
    show_progress_bar: bool,
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Train the network in place; return the history and the step whose weights it has."""
    n_steps, batch_size = options.n_steps, options.batch_size
    optimizer = torch.optim.Adam(network.parameters(), lr=float(options.learning_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    evaluation = points.draw(N_EVALUATION)
    rows: list[tuple[float, ...]] = []
    recent: list[torch.Tensor] = []
    # Weights fluctuate with the random points: keep their running mean.
    mean = torch.optim.swa_utils.AveragedModel(
        network, avg_fn=lambda old, new, n: old.lerp(new, max(1 / (float(n) + 1), 1 / MEMORY))
    )
    best, best_step, kept = np.inf, 0, deepcopy(network.state_dict())

    def gradients(size: int) -> torch.Tensor:
        losses = _losses(network, points.draw(size))
        network.zero_grad(set_to_none=True)
        losses.sum().backward()
        return losses.detach()

    with tqdm(total=n_steps, desc="process", unit="step", disable=not show_progress_bar) as bar:
        for step in range(1, n_steps + 1):
            losses, batch_size = with_halves(gradients, batch_size, "training the process")
            optimizer.step()
            schedule.step()
            mean.update_parameters(network)
            bar.update()
            recent.append(losses)
            if step % EVALUATE_EVERY and step != n_steps:
                continue
            with torch.no_grad():
                others = _losses(cast(torch.nn.Sequential, mean.module), evaluation)
            held_out, trained = float(others.sum()), torch.stack(recent).mean(0)
            rows.append((step, float(others[0]), held_out, float(trained.sum()), *trained.tolist()))
            recent.clear()
            if held_out < best:
                best, best_step, kept = held_out, step, deepcopy(mean.module.state_dict())
    if not np.isfinite(best):
        raise FloatingPointError("Training of the process diverged: lower `learning_rate`.")
    network.load_state_dict(kept)
    # As for the field of a pseudotime, `held_out` is what `fit` is, of points that were not trained on.
    names = ("step", "held_out", "held_out_total", "total", "fit", "growth", "score", "noise")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}, best_step
