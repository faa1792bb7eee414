"""Perturbed and unperturbed particles that start together and feel the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.stage import Stage
from cellrank_velot.dynamics import Field, FlowOptions
from cellrank_velot.dynamics.drift import confined, diffusing
from cellrank_velot.dynamics.flow import SEARCH_EVERY
from cellrank_velot.dynamics.motion import Motion, move
from cellrank_velot.dynamics.region import NearestCells
from cellrank_velot.dynamics.solvers import Drift, OdeStep, SdeStep, Step
from cellrank_velot.dynamics.starts import codes_of, target_codes
from cellrank_velot.perturbation.changes import Effect
from cellrank_velot.perturbation.field import PerturbedField

__all__ = ["Fates", "FlowFates", "Variants", "one_by_one"]

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

# Terms of the binomial series: with 20, the noise has 97 % of the variance of the cells around.
N_TERMS = 20
# Particles that move together, in bounded memory.
MAX_PARTICLES = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Variants(Stage):
    """Several perturbations of the same number of genes, to be compared with each other."""

    amounts: FloatArray  # change of each gene in each cell, [n_variants, n_cells, n_genes]; all zero for none
    directions: FloatArray  # displacement of a unit change of each gene, [n_variants, n_genes, n_dims]
    effect: Effect

    def __len__(self) -> int:
        return int(self.amounts.shape[0])

    def field(self, number: int, field: Any, x: FloatArray) -> PerturbedField:
        """Return the field of one of them, given the unperturbed one and the positions of the cells."""
        return PerturbedField(field, x, self.amounts[number], self.directions[number])


class Fates(Protocol):
    """Simulates where particles come to."""

    def __call__(
        self, variants: Variants, start_ix: IndexArray, random_state: int
    ) -> tuple[IndexArray, FloatArray | None]:
        """Move the same particles, from the cells ``start_ix [n_particles]``, under each of several perturbations.

        All perturbations have the same noise. Returned are the number of the fate that each particle comes to, ``-1``
        for none, shape ``[n_variants, n_particles]``, and weights of the same shape, such as by growth, or ``None``.
        """


def one_by_one(
    run: Callable[[Any, FloatArray, IndexArray, int], tuple[IndexArray, FloatArray | None]], field: Any, x: FloatArray
) -> Fates:
    """Return fates under several perturbations from a simulation of one.

    ``run`` takes a field, positions to start from, the cells there and a seed, and returns the fate of each particle
    and its weight, or ``None``. With the same seed it must draw the same noise for the same particle.
    """

    def fates(variants: Variants, start_ix: IndexArray, random_state: int) -> tuple[IndexArray, FloatArray | None]:
        codes, weights = [], []
        for number in range(len(variants)):
            perturbed = variants.field(number, field, x)
            starts = x[start_ix]
            if variants.effect == "pulse":
                starts = starts + perturbed.displacement(starts)
            moving = perturbed if variants.effect == "clamp" and variants.amounts[number].any() else field
            found, weight = run(moving, starts, start_ix, random_state)
            codes.append(found)
            weights.append(weight)
        known = [weight for weight in weights if weight is not None]
        return np.stack(codes), np.stack(known) if len(known) == len(weights) else None

    return fates


@dataclass(frozen=True, eq=False)
class FlowFates:
    """Fates by a flow through a velocity field, forward in time.

    All perturbations move together, and particles of the same number feel the same noise.
    """

    field: Field
    x: FloatArray
    time: FloatArray
    clusters: Sequence[Any]
    terminal_clusters: str | Sequence[str] | None = None
    options: FlowOptions = FlowOptions()
    run: Run = Run()

    @property
    def lineages(self) -> list[str]:
        """Names of the fates; all clusters where no terminal ones are given."""
        _, names = codes_of(self.clusters, self.x.shape[0])
        targets = target_codes(self.terminal_clusters, names)
        return [str(name) for name in (names if targets is None else names[targets])]

    def __call__(
        self, variants: Variants, start_ix: IndexArray, random_state: int
    ) -> tuple[IndexArray, FloatArray | None]:
        """Move particles, see :class:`Fates`."""
        motion = Motion.of(
            self.field,
            self.x,
            self.time,
            replace(self.options, save_every=self.options.most_steps),  # only the ends count
            clusters=self.clusters,
            targets=self.terminal_clusters,
            search_every=SEARCH_EVERY,
            device=self.run.device,
        )
        motion = replace(motion, to_targets_only=True)
        size = max(MAX_PARTICLES // start_ix.size, 1)
        batches = [np.arange(i, min(i + size, len(variants))) for i in range(0, len(variants), size)]
        bar = tqdm(batches, desc="perturbed flow", unit="batch", disable=not self.run.show_progress_bar)
        ends = [self._ends(variants, batch, start_ix, random_state, motion.again()) for batch in bar]
        code = np.full(motion.clusters.size + 1, -1)  # the last one for particles in no cluster
        chosen = np.arange(motion.clusters.size) if motion.targets is None else motion.targets
        code[chosen] = np.arange(chosen.size)
        return code[np.concatenate(ends)], None

    def _ends(
        self, variants: Variants, batch: IndexArray, start_ix: IndexArray, random_state: int, motion: Motion
    ) -> IndexArray:
        """Return the cluster where each particle of some variants ends, shape ``[n_variants, n_particles]``."""
        displace = _Displace(variants, batch, motion.near, start_ix.size)
        starts = np.tile(self.x[start_ix], (batch.size, 1))
        if variants.effect == "pulse":
            ids = torch.arange(starts.shape[0], device=motion.device)
            # With searches of its own: nearest cells remember where particles were.
            first = _Displace(variants, batch, motion.near.again(), start_ix.size)
            starts = starts + first(torch.tensor(starts, device=motion.device), ids).cpu().numpy()
        velocity = self.field.on(motion.device)

        def perturbed(x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return velocity(x + displace(x, ids), time)

        drift: Drift = perturbed if variants.effect == "clamp" else lambda x, time, _ids: velocity(x, time)
        step: Step = OdeStep(confined(drift, motion.near, self.options), "euler")
        if self.options.diffusion > 0:
            generator = torch.Generator(motion.device).manual_seed(random_state)
            noisy = SdeStep(diffusing(drift, motion.near, self.options), motion.region.n_neighbors, generator)
            step = CommonNoise(noisy, motion.near, start_ix.size)
        time, cells = np.tile(self.time[start_ix], batch.size), np.tile(start_ix, batch.size)
        return move(motion, step, starts, time, cells).end_cluster.reshape(batch.size, start_ix.size)


class _Displace:
    """Displacement of particles of several variants: the mean of the cells around, of the variant of the particle.

    It is that at the place of the last search for nearest cells, as it hardly changes meanwhile.
    """

    def __init__(self, variants: Variants, batch: IndexArray, near: NearestCells, n_particles: int) -> None:
        region = near.region
        device, n_rows = region.cells.device, batch.size * n_particles
        self.near, self.n_particles = near, n_particles
        self.amounts = torch.tensor(variants.amounts[batch][:, region.chosen], device=device)
        self.directions = torch.tensor(variants.directions[batch], device=device)
        self.at = torch.full((n_rows, region.cells.shape[1]), torch.nan, dtype=torch.float64, device=device)
        self.amount = torch.zeros((n_rows, self.amounts.shape[2]), dtype=torch.float64, device=device)

    def __call__(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        index = self.near.of(x, ids)
        place = self.near.at[ids]
        new = (place != self.at[ids]).any(dim=1)
        if new.any():
            which, variant = ids[new], ids[new] // self.n_particles
            weight = self.near.region.around(place[new], index[new]).weight.double()
            self.amount[which] = torch.einsum("nk,nkg->ng", weight, self.amounts[variant.unsqueeze(1), index[new]])
            self.at[which] = place[new]
        return torch.einsum("ng,ngd->nd", self.amount[ids], self.directions[ids // self.n_particles])


class CommonNoise:
    r"""Steps of particles in several copies, where all copies of a particle feel the same noise.

    The noise of a flow is a sum over the cells around a particle, drawn for those that still move. Two copies that
    have moved apart a little, or one of which has ended, would have nothing in common any more. Here each particle has
    one draw :math:`z` in the basis at each step, which moves all its copies by :math:`\Sigma^{1/2} z`, the symmetric
    root of the covariance of the cells around, which varies slowly. Each copy by itself has the noise of the flow, and
    copies separate only where the perturbation separates them. The root is applied as :math:`A^T (A A^T)^{-1/2} A z`,
    with the weighted deviations :math:`A` of the cells and the first terms of the binomial series of the power
    :cite:`higham:08`.
    """

    def __init__(self, step: SdeStep, near: NearestCells, n_particles: int) -> None:
        self.step, self.near, self.n_particles = step, near, n_particles

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, clock: int
    ) -> torch.Tensor:
        """Return the next positions, see :class:`cellrank_velot.dynamics.solvers.Step`."""
        generator = self.step.generator
        # As many draws at each step, whoever still moves.
        normal = torch.randn((self.n_particles, x.shape[1]), generator=generator, device=generator.device)
        around = self.near.region.around(x, self.near.of(x, ids))
        deviation = around.weight.sqrt().unsqueeze(2) * (around.cells - around.mean.unsqueeze(1))
        factors = whitened(deviation, normal[ids % self.n_particles])
        return self.step.move(x, time, ids, dt, dt.sqrt().unsqueeze(1) * factors)


def whitened(deviation: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`(A A^T)^{-1/2} A z` for matrices ``A [n, n_neighbors, n_dims]`` and vectors ``z [n, n_dims]``."""
    gram = torch.bmm(deviation, deviation.transpose(1, 2))
    norm = gram.square().sum(dim=(1, 2)).sqrt().clamp_min(torch.finfo(gram.dtype).tiny)
    gram = gram / norm[:, None, None]
    term = torch.bmm(deviation, normal.unsqueeze(2))
    total, factor = term.clone(), 1.0
    for number in range(1, N_TERMS + 1):
        term = term - torch.bmm(gram, term)
        factor *= (2 * number - 1) / (2 * number)
        total += factor * term
    return (total / norm.sqrt()[:, None, None]).squeeze(2)
