"""The process of a time series, forward to descendants and backward to ancestors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options, Run
from cellrank_velot._utils.slices import Slices
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.dynamics.region import Region

__all__ = ["ProcessField", "ProcessPaths", "SimulationOptions", "count_lost", "simulate_process"]

# Particles that a field is asked for at a time: so many that threads share out 10 000 of them evenly.
SLICE = 2048


class ProcessField(Protocol):
    """A field with growth and score, such as :class:`cellrank_velot.field.VelocityField` of a time series."""

    def width(self, time: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how widely pairs of cells spread around their paths, shape ``[n]``.

        Parameters
        ----------
        time
            Times, shape ``[n]``.
        """

    @property
    def diffusion(self) -> float:
        """Diffusion, in units of the basis per root of the unit of time."""

    def heads_on(
        self, device: torch.device | str
    ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return velocity, growth and score as a function of positions ``[n, n_dims]`` and times ``[n]``.

        On the CPU it is asked for some of the particles at a time, in several threads.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """


# A particle is outside of the data where the fifth nearest cell is so many times as far as cells are from each other,
# those around it and those in general.
FAR = 5.0
# Times at which the width is looked at.
N_GRID = 4001
# Widths of the population beyond the usual distance from its mean from which on a particle has left it.
LEFT = 3.0
# Logarithm by which the width changes within a part of a step at most.
MAX_CHANGE = 0.25


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(Options):
    """Options of a simulated process.

    Attributes
    ----------
    noise
        Whether to follow the process, or a factor on the diffusion of its field. With 0 particles follow the velocity,
        which would move the population alike if the field had no error.
    n_steps
        Number of steps.
    n_saved
        Number of points kept after the start, evenly spread; the last step is one of them.
    random_state
        Seed of the noise. To let particles go on from where they came to, take another seed. With the same one, each
        would be pushed the same way again.

    Examples
    --------
    >>> dynamics.SimulationOptions(n_saved=10).n_steps
    100
    """

    noise: bool | float = True
    n_steps: int = 100
    n_saved: int = 1
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        if not isinstance(self.noise, bool | np.bool_):
            check_number("noise", self.noise, low=0)
        check_integer("n_steps", self.n_steps, low=1)
        check_integer("n_saved", self.n_saved, low=1)
        check_seed(self.random_state)


@dataclass(frozen=True, slots=True, eq=False)
class ProcessPaths(Stage):
    """Paths of particles through a time series, all with the same number of points.

    Attributes
    ----------
    x
        Positions, shape ``[n_points, n_particles, n_dims]``.
    time
        Times, shape ``[n_points, n_particles]``.
    log_weight
        Logarithm of the size of the population that a particle stands for, relative to its start, shape ``[n_points,
        n_particles]``. Forward it is the number of the descendants. Backward, each particle stands for one cell, and
        the weights make them stand for all cells of their time.
    start_ix
        Cell that each particle starts from, shape ``[n_particles]``.
    direction
        ``"forward"`` or ``"backward"``.

    Examples
    --------
    >>> paths = sk.simulate_process("Progenitor A", n_particles=20, n_saved=10)
    >>> paths.n_particles, paths.ends.shape, paths.weights.shape
    (20, (20, 10), (20,))
    >>> paths.time.round(6)[[0, -1], 0].tolist()
    [0.0, 3.0]
    """

    x: NDArray[np.float64]
    time: NDArray[np.float64]
    log_weight: NDArray[np.float64]
    start_ix: NDArray[np.int64]
    direction: str

    @property
    def n_particles(self) -> int:
        """Number of particles."""
        return int(self.start_ix.size)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each particle at its end, shape ``[n_particles]``."""
        return np.exp(self.log_weight[-1])

    @property
    def ends(self) -> NDArray[np.float64]:
        """Where the particles come to, shape ``[n_particles, n_dims]``."""
        return self.x[-1]


def simulate_process(
    field: ProcessField,
    x: NDArray[np.float64],
    time: NDArray[np.float64] | float,
    until: float,
    options: SimulationOptions = SimulationOptions(),
    *,
    start_ix: NDArray[np.int64] | None = None,
    run: Run = Run(),
) -> ProcessPaths:
    r"""Let particles follow the process, or its reversal, from their times to another.

    Forward, :math:`dx = [v + \sigma^2 / 2 \, \nabla \log p] \, dt + \sigma \, dW`, and the weight of a particle grows
    at the rate :math:`g`: it stands for its descendants. Backward, :math:`dx = [-v + \sigma^2 / 2 \, \nabla \log p] \,
    d(-t) + \sigma \, dW` :cite:`anderson:82`, and ancestors need no weight: with the density :math:`p` of a population
    that has grown and shrunk, this is the law of the ancestors of its cells. Both give the same joint law of ancestors
    and descendants.

    Parameters
    ----------
    field
        Velocity, growth, score and diffusion.
    x
        Where the particles start, shape ``[n_particles, n_dims]``.
    time
        When they start, shape ``[n_particles]``, or one time for all.
    until
        Time at which they end: later for descendants, earlier for ancestors.
    options
        Noise, steps, points to keep and seed.
    start_ix
        Cell that each starts from, kept with the paths, shape ``[n_particles]``; the number of the particle where not
        given.
    run
        Device, and whether to show a progress bar.

    Returns
    -------
    The paths, with ``n_saved + 1`` points each.

    Raises
    ------
    ValueError
        If there are no particles, or some start before and others after the end.
    FloatingPointError
        If particles leave all bounds.

    Examples
    --------
    >>> x, time = sk.cells.x[:10], sk.cells.time[:10]
    >>> options = dynamics.SimulationOptions(n_saved=5)
    >>> paths = dynamics.simulate_process(sk.field, x, time, 3.0, options)
    >>> paths.x.shape
    (6, 10, 10)
    >>> bool((paths.weights > 0).all())  # each stands for so many descendants
    True
    """
    times = np.array(np.broadcast_to(np.asarray(time, dtype=np.float64), x.shape[:1]))
    if x.ndim != 2 or x.shape[0] == 0:
        raise ValueError(f"Expected `x` of shape `[n_particles, n_dims]` with particles, found `{x.shape}`.")
    if not np.isfinite(until) or ((times < until).any() and (times > until).any()):
        raise ValueError(f"Expected `until` after all starts or before all of them, found `{until}`.")
    sign = 1.0 if (times <= until).all() else -1.0
    where, n_steps = resolve_device(run.device), options.n_steps
    generator = torch.Generator(where).manual_seed(int(np.random.default_rng(options.random_state).integers(2**31)))
    heads = field.heads_on(where)
    sigma = field.diffusion * float(options.noise)
    position = torch.tensor(x, dtype=torch.float64, device=where)
    clock = torch.tensor(times, device=where)
    clocks = _clocks(field, times, until, n_steps)
    log_weight = torch.zeros_like(clock)
    keep = set(np.linspace(0, n_steps, options.n_saved + 1).round().astype(int)[1:].tolist())
    kept = [(position, clock, log_weight)]
    with (
        torch.no_grad(),
        single_thread(where),
        Slices(len(position), SLICE if where.type == "cpu" else len(position)) as slices,
        tqdm(total=n_steps, desc="process", unit="step", delay=1, disable=not run.show_progress_bar) as bar,
    ):
        for number, inner in enumerate(clocks, 1):
            for ends in torch.tensor(inner, device=where):
                step = (ends - clock).abs()
                # At the middle of the step, which is more accurate where the field changes with time.
                middle = (clock + ends) / 2
                velocity, growth, score = _in_parts(heads, position, middle, slices)
                width = torch.tensor(field.width(middle.cpu().numpy()), device=where)[:, None]
                position = position + (sign * step)[:, None] * velocity + _set_back(score, width)
                if sigma:
                    increment = torch.randn(position.shape, generator=generator, dtype=torch.float64, device=where)
                    position = position + _scattered(score, width, increment, sigma**2 * step[:, None])
                log_weight = log_weight + sign * growth * step
                clock = ends
            if number in keep:
                kept.append((position, clock, log_weight))
            bar.update()
    if not torch.isfinite(position).all():
        raise FloatingPointError("Particles left all bounds: raise `n_steps`, or fit the field with more steps.")
    positions, saved, log_weights = (torch.stack(part).cpu().numpy() for part in zip(*kept, strict=True))
    return ProcessPaths(
        x=positions,
        time=saved,
        log_weight=log_weights,
        start_ix=np.arange(x.shape[0]) if start_ix is None else np.asarray(start_ix, dtype=np.int64),
        direction="forward" if sign > 0 else "backward",
    )


def count_lost(paths: ProcessPaths, x: NDArray[np.float64]) -> int:
    """Return how many particles end outside of the data, whose cells are at ``x [n_cells, n_dims]``."""
    region, ends = Region.of(x), torch.tensor(paths.ends)
    index = region.nearest(ends)
    # Where cells crowd, a short way off is far by their spacing, and near by that of all others.
    crowded = region.spacing[index].median(dim=1).values.clamp_max(region.typical_spacing)
    spacings = region.look(ends, index)[0] * crowded / region.typical_spacing
    return int((spacings > FAR).sum())


def _in_parts(
    heads: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    position: torch.Tensor,
    time: torch.Tensor,
    slices: Slices,
) -> list[torch.Tensor]:
    """Return what the field says at all particles, asked for slices of them in threads."""

    def asked(part: slice) -> tuple[torch.Tensor, ...]:
        with torch.no_grad(), single_thread(position.device):  # each thread of Python has settings of its own
            return heads(position[part], time[part])

    return [torch.cat(parts) for parts in zip(*slices.map(asked), strict=True)]


def _set_back(score: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Return the way back of particles that have left the population, zero for all others, shape ``[n, n_dims]``.

    In a Gaussian, the score tells how many widths a point is from the mean. Hardly any point of the population is
    farther than ``LEFT`` widths more than is usual: whoever is comes from an error of the field, and is set back there.
    """
    away = -score * width
    length = away.norm(dim=1, keepdim=True).clamp_min(torch.finfo(away.dtype).tiny)
    usual = score.shape[1] ** 0.5 + LEFT
    return -width * away * (1 - usual / length).clamp_min(0)


def _scattered(
    score: torch.Tensor, width: torch.Tensor, increment: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    r"""Return how far noise of a variance moves particles, and what the score takes back, shape ``[n, n_dims]``.

    The variance is at most ``width ** 2``, that of a pair of cells: with any noise, no particle overshoots. A step
    :math:`a s + \sqrt{2 a - a^2 |s|^2 / d} \, \xi` along the score :math:`s` keeps the variance of any Gaussian, be it
    as narrow as a pair or as wide as a population. To first order it is the step of Euler and Maruyama.
    """
    square = width.square()
    half = square * (1 - torch.exp(-variance / square)) / 2
    left = 2 * half - half.square() * score.square().mean(dim=1, keepdim=True)
    return half * score + left.clamp_min(0).sqrt() * increment


def _clocks(field: ProcessField, start: NDArray[np.float64], until: float, n_steps: int) -> list[NDArray[np.float64]]:
    """Return the times at the ends of the parts of each step, of shape ``[n_parts, n_particles]``.

    Where the population narrows to single cells, near time points, a step has several parts.
    """
    low, high = min(start.min(), until), max(start.max(), until)
    grid = np.linspace(low, high, N_GRID)
    changes = np.abs(np.diff(np.log(field.width(grid))))
    progress = np.concatenate([[0.0], np.cumsum(changes)])
    shares = np.linspace(0, 1, n_steps + 1)[:, None]
    # Counted from the end, so that the last time is exact.
    ends = until - (until - start) * (1 - shares)
    amounts = np.interp(ends, grid, progress)
    n_parts = np.ceil(np.abs(np.diff(amounts, axis=0)).max(axis=1) / MAX_CHANGE).clip(1).astype(int)
    # A share of even progress, so that it rises everywhere.
    even = 1e-3 * MAX_CHANGE * (grid - low) / ((high - low) or 1.0)
    return [_divided(ends[k], ends[k + 1], n, grid, progress + even) for k, n in enumerate(n_parts)]


def _divided(
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    n_parts: int,
    grid: NDArray[np.float64],
    progress: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the ends of the parts of a step, between which the width changes by the same factor."""
    if n_parts == 1:
        return end[None]
    here, there = np.interp(start, grid, progress), np.interp(end, grid, progress)
    share = np.arange(1, n_parts)[:, None] / n_parts
    return np.concatenate([np.interp(here + share * (there - here), progress, grid), end[None]])
