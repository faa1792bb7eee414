"""Perturbed and unperturbed particles that start together and feel the same noise.

Depends on the dynamics, numpy and torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.stage import Stage
from cellrank_velot.dynamics.flow import SEARCH_EVERY
from cellrank_velot.dynamics.guide import Field, TimeFrom, guided, mean_speed, noisy
from cellrank_velot.dynamics.motion import Limits, move
from cellrank_velot.dynamics.region import Companions, Region
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
    """Several perturbations of as many genes each, to be compared with each other.

    Attributes
    ----------
    amounts
        Change of each gene in each cell, shape ``[n_variants, n_cells, n_genes]``; all zero for no perturbation.
    directions
        Displacement of a unit change of each gene, shape ``[n_variants, n_genes, n_dims]``.
    effect
        ``"clamp"`` or ``"pulse"``.

    Examples
    --------
    >>> from cellrank_velot.perturbation import Variants
    >>> half = vk.perturb({"FateA": ("scale", 0.5)})
    >>> amounts = np.stack([0 * half.amounts, half.amounts])  # nothing, and half of the gene
    >>> len(Variants(amounts, np.stack([half.directions] * 2), "clamp"))
    2
    """

    amounts: FloatArray
    directions: FloatArray
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
        """Move the same particles under each of several perturbations.

        Parameters
        ----------
        variants
            The perturbations.
        start_ix
            Cell that each particle starts from, shape ``[n_particles]``.
        random_state
            Seed of the noise, the same for all perturbations.

        Returns
        -------
        Number of the fate that each particle comes to, ``-1`` for none, shape ``[n_variants, n_particles]``, and
        weights of the same shape, such as by growth, or ``None``.
        """


def one_by_one(
    run: Callable[[Any, FloatArray, IndexArray, int], tuple[IndexArray, FloatArray | None]], field: Any, x: FloatArray
) -> Fates:
    """Return fates under several perturbations from a simulation of one.

    Parameters
    ----------
    run
        Called with a field, positions to start from, the cells there and a seed, it returns the fate of each particle
        and its weight, or ``None``; with the same seed it must draw the same noise for the same particle.
    field
        The unperturbed field.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.

    Examples
    --------
    >>> from cellrank_velot.perturbation import Variants, one_by_one
    >>> def run(field, positions, start_ix, seed):  # in place of a simulation
    ...     return (field(positions, 0.5)[:, 0] > 0).astype(int), None
    >>> half = vk.perturb({"FateA": ("scale", 0.5)})
    >>> variants = Variants(half.amounts[None], half.directions[None], "clamp")
    >>> fates, weights = one_by_one(run, vk.field, vk.cells.x)(variants, np.arange(5), 0)
    >>> fates.shape
    (1, 5)
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
    """Fates by a flow through a velocity field; see :func:`cellrank_velot.dynamics.simulate_flow` for the options.

    All perturbations move as one crowd, and particles of the same number feel the same noise.

    Attributes
    ----------
    field
        The unperturbed field.
    x, time
        Positions and times of the cells, shapes ``[n_cells, n_dims]`` and ``[n_cells]``.
    clusters
        Cluster of each cell, of length ``n_cells``.
    terminal_clusters
        Clusters that are fates; all where not given.
    n_steps, step_size, diffusion, time_from, confine, max_distance, min_speed, n_neighbors, device, show_progress_bar
        As for the flow.

    Examples
    --------
    >>> from cellrank_velot.perturbation import FlowFates, Variants
    >>> clusters, fates = adata.obs["clusters"].tolist(), ["Fate A", "Fate B"]
    >>> simulate = FlowFates(vk.field, vk.cells.x, vk.cells.time, clusters, fates, n_steps=20)
    >>> half = vk.perturb({"FateA": ("scale", 0.5)})
    >>> variants = Variants(half.amounts[None], half.directions[None], "clamp")
    >>> found, _ = simulate(variants, np.arange(10), 0)
    >>> found.shape  # positions in `simulate.lineages`, -1 for particles on their way
    (1, 10)
    """

    field: Field
    x: FloatArray
    time: FloatArray
    clusters: Sequence[Any]
    terminal_clusters: str | Sequence[str] | None = None
    n_steps: int = 300
    step_size: float = 0.005
    diffusion: float = 1.0
    time_from: TimeFrom = "cells"
    confine: float = 0.7
    max_distance: float = 2.5
    min_speed: float = 0.1
    n_neighbors: int = 15
    device: str = "auto"
    show_progress_bar: bool = False

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
        where = resolve_device(self.device)
        labels, names = codes_of(self.clusters, self.x.shape[0])
        targets = target_codes(self.terminal_clusters, names)
        region = Region.of(self.x, self.time, labels, n_neighbors=self.n_neighbors, device=where)
        size = max(MAX_PARTICLES // start_ix.size, 1)
        batches = [np.arange(i, min(i + size, len(variants))) for i in range(0, len(variants), size)]
        bar = tqdm(batches, desc="perturbed flow", unit="batch", disable=not self.show_progress_bar)
        ends = [self._ends(variants, batch, start_ix, random_state, region, names, targets) for batch in bar]
        code = np.full(names.size + 1, -1)  # the last one for particles in no cluster
        chosen = np.arange(names.size) if targets is None else targets
        code[chosen] = np.arange(chosen.size)
        return code[np.concatenate(ends)], None

    def _ends(
        self,
        variants: Variants,
        batch: IndexArray,
        start_ix: IndexArray,
        random_state: int,
        region: Region,
        names: NDArray[np.str_],
        targets: IndexArray | None,
    ) -> IndexArray:
        """Return the cluster where each particle of some variants ends, shape ``[n_variants, n_particles]``."""
        companions = Companions(region, SEARCH_EVERY)
        displace = _Displace(variants, batch, companions, start_ix.size)
        starts = np.tile(self.x[start_ix], (batch.size, 1))
        if variants.effect == "pulse":
            ids = torch.arange(starts.shape[0], device=region.cells.device)
            # Of companions of its own, as these remember where particles were.
            first = _Displace(variants, batch, Companions(region, SEARCH_EVERY), start_ix.size)
            starts = starts + first(torch.tensor(starts, device=region.cells.device), ids).cpu().numpy()
        paths = move(
            self._step(displace, companions, start_ix.size, random_state, clamp=variants.effect == "clamp"),
            starts,
            np.tile(self.time[start_ix], batch.size),
            companions,
            Limits(
                n_steps=self.n_steps,
                step_size=self.step_size,
                max_distance=self.max_distance,
                min_speed=self.min_speed * mean_speed(self.field, self.x, self.time),
                save_every=self.n_steps,  # only the ends count
            ),
            time_from=self.time_from,
            start_ix=np.tile(start_ix, batch.size),
            clusters=names,
            targets=targets,
        )
        return paths.end_cluster.reshape(batch.size, start_ix.size)

    def _step(
        self, displace: _Displace, companions: Companions, n_particles: int, random_state: int, *, clamp: bool
    ) -> Step:
        device = companions.region.cells.device
        velocity = self.field.on(device)

        def perturbed(x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return velocity(x + displace(x, ids), time)

        drift: Drift = perturbed if clamp else lambda x, time, _ids: velocity(x, time)
        if self.diffusion == 0:
            return OdeStep(guided(drift, companions, self.confine, self.time_from, self.step_size), "euler")
        coefficients = noisy(drift, companions, self.diffusion, self.confine, self.time_from, self.step_size)
        generator = torch.Generator(device).manual_seed(random_state)
        return CommonNoise(SdeStep(coefficients, companions.region.n_neighbors, generator), companions, n_particles)


class _Displace:
    """Displacement of particles of several variants, each by its own one of the cells around.

    It is that of the place where the cells around a particle were last searched for, as these hardly change meanwhile.
    """

    def __init__(self, variants: Variants, batch: IndexArray, companions: Companions, n_particles: int) -> None:
        region = companions.region
        device, n_rows = region.cells.device, batch.size * n_particles
        self.companions, self.n_particles = companions, n_particles
        self.amounts = torch.tensor(variants.amounts[batch][:, region.chosen], device=device)
        self.directions = torch.tensor(variants.directions[batch], device=device)
        self.at = torch.full((n_rows, region.cells.shape[1]), torch.nan, dtype=torch.float64, device=device)
        self.amount = torch.zeros((n_rows, self.amounts.shape[2]), dtype=torch.float64, device=device)

    def __call__(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        index = self.companions.of(x, ids)
        place = self.companions.at[ids]
        new = (place != self.at[ids]).any(dim=1)
        if new.any():
            which, variant = ids[new], ids[new] // self.n_particles
            weight = self.companions.region.around(place[new], index[new]).weight.double()
            self.amount[which] = torch.einsum("nk,nkg->ng", weight, self.amounts[variant.unsqueeze(1), index[new]])
            self.at[which] = place[new]
        return torch.einsum("ng,ngd->nd", self.amount[ids], self.directions[ids // self.n_particles])


class CommonNoise:
    r"""Steps of particles in several copies, where all copies of a particle feel the same noise.

    The noise of a flow is a sum over the cells around a particle, drawn for those that still move: two particles that
    part a little, or one of which has ended, share nothing any more. Here a particle has one draw :math:`z` in the
    basis at each step, which moves all its copies by :math:`\Sigma^{1/2} z`, the symmetric root of the covariance of
    the cells around, which varies slowly. Each copy by itself has the noise of the flow, and copies part only where
    the perturbation parts them. The root is applied as :math:`A^T (A A^T)^{-1/2} A z`, with the weighted deviations
    :math:`A` of the cells and the first terms of the binomial series of the power :cite:`higham:08`.
    """

    def __init__(self, step: SdeStep, companions: Companions, n_particles: int) -> None:
        self.step, self.companions, self.n_particles = step, companions, n_particles

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, ids: torch.Tensor, dt: torch.Tensor, clock: int
    ) -> torch.Tensor:
        """Return the next positions, see :class:`cellrank_velot.dynamics.solvers.Step`."""
        generator = self.step.generator
        # As many draws at each step, whoever still moves.
        normal = torch.randn((self.n_particles, x.shape[1]), generator=generator, device=generator.device)
        around = self.companions.region.around(x, self.companions.of(x, ids))
        deviation = around.weight.sqrt().unsqueeze(2) * (around.cells - around.mean.unsqueeze(1))
        factors = whitened(deviation, normal[ids % self.n_particles])
        return self.step.move(x, time, ids, dt, dt.sqrt().unsqueeze(1) * factors)


def whitened(deviation: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`(A A^T)^{-1/2} A z`.

    Parameters
    ----------
    deviation
        Matrices :math:`A`, shape ``[n, n_neighbors, n_dims]``.
    normal
        Vectors :math:`z`, shape ``[n, n_dims]``.

    Returns
    -------
    Vectors of shape ``[n, n_neighbors]``.
    """
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
