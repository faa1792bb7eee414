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
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_seed

__all__ = ["ProcessField", "ProcessPaths", "SimulationOptions", "simulate_process"]


class ProcessField(Protocol):
    """A field with growth and score, such as :class:`cellrank_velot.field.VelocityField` of a time series."""

    @property
    def diffusion(self) -> float:
        """Diffusion, in units of the basis per root of the unit of time."""

    def heads_on(
        self, device: torch.device | str
    ) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return velocity, growth and score as a function of positions ``[n, n_dims]`` and times ``[n]``.

        Parameters
        ----------
        device
            Torch device that the tensors are on.
        """


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(Options):
    """Options of a simulated process.

    Attributes
    ----------
    noise
        Whether to follow the process. Otherwise particles follow the velocity, which moves the population alike.
    n_steps
        Number of steps.
    n_saved
        Number of points kept after the start, evenly spread; the last step is one of them.
    random_state
        Seed of the noise.

    Examples
    --------
    >>> dynamics.SimulationOptions(n_saved=10).n_steps
    100
    """

    noise: bool = True
    n_steps: int = 100
    n_saved: int = 1
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
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
    sigma = field.diffusion if options.noise else 0.0
    position = torch.tensor(x, dtype=torch.float64, device=where)
    start = clock = torch.tensor(times, device=where)
    step = (until - start).abs() / n_steps
    log_weight = torch.zeros_like(clock)
    keep = set(np.linspace(0, n_steps, options.n_saved + 1).round().astype(int)[1:].tolist())
    kept = [(position, clock, log_weight)]
    with (
        torch.no_grad(),
        single_thread(where),
        tqdm(total=n_steps, desc="process", unit="step", disable=not run.show_progress_bar) as bar,
    ):
        for number in range(1, n_steps + 1):
            # At the middle of the step, which is more accurate where the field changes with time.
            velocity, growth, score = heads(position, clock + sign * step / 2)
            increment = torch.randn(position.shape, generator=generator, dtype=torch.float64, device=where)
            drift = sign * velocity + sigma**2 / 2 * score
            position = position + drift * step[:, None] + sigma * step.sqrt()[:, None] * increment
            log_weight = log_weight + sign * growth * step
            # Counted from the end, so that the last time is exact: a sum of steps is not.
            clock = until - (until - start) * (1 - number / n_steps)
            if number in keep:
                kept.append((position, clock, log_weight))
            bar.update()
    if not torch.isfinite(position).all():
        raise FloatingPointError("Particles left all bounds: raise `n_steps`, or fit the field with more steps.")
    positions, clocks, log_weights = (torch.stack(part).cpu().numpy() for part in zip(*kept, strict=True))
    return ProcessPaths(
        x=positions,
        time=clocks,
        log_weight=log_weights,
        start_ix=np.arange(x.shape[0]) if start_ix is None else np.asarray(start_ix, dtype=np.int64),
        direction="forward" if sign > 0 else "backward",
    )
