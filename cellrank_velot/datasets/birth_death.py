"""Cells that move, divide and die along two branches, in snapshots, with drift, growth, fates and lineages known.

Depends on scanpy and on the checks of arguments. The process itself, :class:`BirthDeath`, and its simulation are plain
arrays; :func:`birth_death` makes an AnnData of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import ortho_group

from cellrank_velot._utils.validation import check_integer, check_known, check_number, check_seed
from cellrank_velot.datasets.circuit import FloatArray

__all__ = ["BirthDeath", "Population", "birth_death", "process_of", "simulate"]

IntArray = NDArray[np.int64]

CLUSTERS = ("Progenitor A", "Progenitor B", "Fate A", "Fate B")
FATES = ("Fate A", "Fate B")
# Okabe & Ito (2008): a light and a full tone for either side
_COLORS = ("#56B4E9", "#F0E442", "#0072B2", "#E69F00")

_BRANCH, _END = 1.0, 3.0  # progress where the branches part, and where cells come to rest
_EARLY_SIDE, _LATE_SIDE = 0.3, 1.5  # distance of the branches from the middle, before and after
_BASE_BIRTH, _BASE_DEATH = 0.4, 0.1
_DECAY = 2.0  # of the dimensions without a process
_START_SD = (0.3, 0.15)  # of progress and of side
_FOUNDERS_PER_CELL = 4
_N_GENES, _N_PATHS = 50, 50
_MAX_STEP, _PATH_STEP = 0.01, 0.02
_MAX_POPULATION = 2_000_000


@dataclass(frozen=True, eq=False)
class BirthDeath:
    r"""A branching diffusion: cells follow :math:`dx = b(x) dt + \sigma dW`, divide at one rate and die at another.

    The state has two dimensions of its own, progress `p` and side `w`, and others that only fluctuate,

    .. math::
        dp &= \tanh(2 (3 - p)) dt + \sigma dW_p \\
        dw &= w (1 - w^2 / m(p)^2) dt + \sigma dW_w, \quad m(p) = 0.3 + 1.2 / (1 + e^{-(p - 1) / 0.3}) \\
        dz_i &= -2 z_i dt + \sigma dW_i,

    all turned by one rotation. The sides are weak before progress 1, where cells still change them, and firm after.
    There, and only on its own side, fate A divides faster and fate B dies faster.

    Examples
    --------
    >>> process = datasets.process_of(series)
    >>> x = series.obsm["X_pca"]
    >>> process.drift(x).shape, process.growth(x).shape, process.sigma
    ((400, 10), (400,), 0.3)
    """

    sigma: float
    """Diffusion, in every direction, per square root of unit time."""
    growth_contrast: float
    """Difference of the growth rates of the two fates."""
    rotation: FloatArray
    """Orthogonal matrix of shape ``[n_dims, n_dims]``; positions are ``state @ rotation.T``."""

    def drift(self, x: FloatArray) -> FloatArray:
        """Return the expected change per unit of time at the positions `x`, both of shape ``[n_points, n_dims]``."""
        return np.asarray(_drift(x @ self.rotation) @ self.rotation.T)

    def birth(self, x: FloatArray) -> FloatArray:
        """Return the divisions per unit of time at `x` of shape ``[n_points, n_dims]``, shape ``[n_points]``."""
        return _rates(x @ self.rotation, self.growth_contrast)[0]

    def death(self, x: FloatArray) -> FloatArray:
        """Return the deaths per unit of time at `x` of shape ``[n_points, n_dims]``, shape ``[n_points]``."""
        return _rates(x @ self.rotation, self.growth_contrast)[1]

    def growth(self, x: FloatArray) -> FloatArray:
        """Return the growth rate, birth minus death, at `x` of shape ``[n_points, n_dims]``, ``[n_points]``."""
        return self.birth(x) - self.death(x)

    def clusters(self, x: FloatArray) -> IntArray:
        """Return the cluster at the positions `x` of shape ``[n_points, n_dims]``, as positions in ``CLUSTERS``.

        The side tells A from B, progress 1 a progenitor from a fate.
        """
        state = x @ self.rotation
        return np.where(state[:, 0] < _BRANCH, 0, 2) + _side(state)


@dataclass(frozen=True, eq=False)
class Population:
    """All cells that are alive at one time."""

    x: FloatArray
    """Positions, shape ``[n_cells, n_dims]``."""
    parent: IntArray
    """Position of each cell's ancestor in the population of the time before, shape ``[n_cells]``; at the first time,
    its own position."""


def birth_death(
    n_cells: int | Sequence[int] | None = 500,
    times: Sequence[float] = (0.0, 1.0, 2.0, 3.0),
    *,
    n_dims: int = 10,
    sigma: float = 0.3,
    growth_contrast: float = 1.2,
    n_founders: int | None = None,
    random_state: int = 0,
) -> AnnData:
    """Simulate progenitors of two kinds that move to two fates, one of which proliferates while the other dies.

    Every cell of a population is simulated, with its divisions and its death, see
    :class:`~cellrank_velot.datasets.birth_death.BirthDeath`; daughters begin where their mother is. Snapshots are
    random samples of it. Progenitors A mostly become fate A, progenitors B fate B, but some change sides; where growth
    is unequal, most cells of the end come from few of the beginning.

    Parameters
    ----------
    n_cells
        Number of cells sampled at each time, one number for all or one per time. ``None`` takes every cell.
    times
        Times of the snapshots, increasing, at least two. The process begins at the first.
    n_dims
        Number of dimensions, at least two; all but two of them only fluctuate.
    sigma
        Diffusion per square root of unit time, in every dimension.
    growth_contrast
        Growth rate of fate A minus that of fate B, per unit of time; 0 lets all grow alike, at a rate of 0.3.
    n_founders
        Number of cells at the first time, before sampling; by default four times the largest of `n_cells`, which
        makes the samples nearly independent of each other, or 500 where every cell is taken.
    random_state
        Seed.

    Returns
    -------
    AnnData with

    - ``obsm["X_pca"]``, positions, of shape ``[n_cells, n_dims]``, and `X`, the same in 50 genes, by the loadings
      ``varm["PCs"]`` and the means ``var["mean"]``; ``obsm["X_state"]``, progress and side, for pictures; 30
      neighbours;
    - ``obs["day"]``, the time; ``obs["clusters"]``, "Progenitor A", "Progenitor B", "Fate A" and "Fate B";
    - ``obsm["true_velocity_pca"]``, the drift at the cell, and ``obs["true_growth"]``, its growth rate;
    - ``obsm["true_fates"]``, the probability that a cell which neither divides nor dies ends on the side of fate A and
      of fate B at the last time, and ``obsm["true_descendants"]``, the expected number of its descendants there, both
      of shape ``[n_cells, 2]`` and means over 50 paths a cell. Descendants divided by their sum are the fates of a
      cell as its lineage shows them;
    - ``obs["clone"]``, the founder that a cell comes from, and for each time but the last, such as 0, the ancestor that
      a later cell had then: ``obs["ancestor_cluster_0"]`` and ``obsm["ancestor_pca_0"]`` (missing in cells that are
      not later);
    - ``uns["birth_death"]``, of the whole population: ``"times"``; ``"population"``, the number of cells per time;
      ``"mass"``, the same relative to the first time; ``"cluster_mass"``, that of each cluster, shape
      ``[n_times, 4]``; ``"lineages"``, a table of the number of cells at the last time by the cluster of their
      founders (rows) and the side where they are (columns); ``"sigma"``, ``"growth_contrast"`` and ``"rotation"``.
      :func:`process_of` returns drift and growth as functions of the position.

    Raises
    ------
    TypeError
        If an option has the wrong type.
    ValueError
        If an option is out of range, or fewer cells are alive at some time than are to be sampled.

    Examples
    --------
    >>> adata = datasets.birth_death(n_cells=100, times=[0, 1.5, 3], growth_contrast=2.0)
    >>> adata.obs["day"].value_counts(sort=False).to_dict()
    {0.0: 100, 1.5: 100, 3.0: 100}
    >>> mass = adata.uns["birth_death"]["mass"]  # of the whole population
    >>> bool(mass[-1] > 1.2)
    True
    >>> sk = OTVelocityKernel(adata, time_kind="experimental")
    """
    at = _checked_times(times)
    wanted = _checked_numbers(n_cells, at.size)
    check_integer("n_dims", n_dims, low=2)
    check_number("sigma", sigma, low=0)
    check_number("growth_contrast", growth_contrast, low=0)
    if n_founders is None:
        n_founders = 500 if wanted is None else _FOUNDERS_PER_CELL * max(wanted)
    check_integer("n_founders", n_founders, low=10)
    check_seed(random_state)

    # streams of their own: how many cells are sampled changes neither the rotation nor the genes
    spawned = np.random.SeedSequence(random_state).spawn(4)
    basis_rng, process_rng, sample_rng, path_rng = map(np.random.default_rng, spawned)
    process = BirthDeath(float(sigma), float(growth_contrast), ortho_group.rvs(n_dims, random_state=basis_rng))
    populations = simulate(process, n_founders, at, rng=process_rng)
    samples = _sample(populations, wanted, at, sample_rng)
    adata = _to_anndata(process, populations, samples, at, basis_rng)
    adata.obsm["true_fates"], adata.obsm["true_descendants"] = _outlook(process, adata, at[-1], path_rng)
    n_neighbors = min(30, adata.n_obs // 2)
    sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_pca", random_state=random_state)
    return adata


def process_of(adata: AnnData) -> BirthDeath:
    """Return the process that :func:`birth_death` has simulated, to evaluate its drift and growth anywhere.

    Parameters
    ----------
    adata
        What :func:`birth_death` returned, also when it comes from a file.

    Raises
    ------
    KeyError
        If `adata` does not come from :func:`birth_death`.

    Examples
    --------
    >>> process, x = datasets.process_of(series), series.obsm["X_pca"]
    >>> bool(np.allclose(process.drift(x), series.obsm["true_velocity_pca"]))
    True
    """
    check_known("adata.uns", "birth_death", adata.uns, "Simulate with `cellrank_velot.datasets.birth_death()`.")
    known = adata.uns["birth_death"]
    return BirthDeath(float(known["sigma"]), float(known["growth_contrast"]), np.asarray(known["rotation"]))


def simulate(process: BirthDeath, n_founders: int, times: FloatArray, *, rng: np.random.Generator) -> list[Population]:
    r"""Simulate a population cell by cell.

    Steps are those of Euler and Maruyama :cite:p:`kloeden:92`, of at most 0.01. In a step of length `h` a cell
    survives with probability :math:`e^{-\delta h}` and then divides with probability :math:`e^{\beta h} - 1`, so that
    the expected number of cells grows by :math:`e^{g h}` exactly.

    Parameters
    ----------
    process
        What cells do.
    n_founders
        Number of cells at the first time, half of either kind.
    times
        Increasing times, shape ``[n_times]``.
    rng
        Where all is drawn from.

    Returns
    -------
    The population at each time.

    Raises
    ------
    ValueError
        If the population grows beyond two million cells.
    """
    state = _start(n_founders, process, rng)
    found = [Population(state @ process.rotation.T, np.arange(n_founders))]
    for span in np.diff(times):
        parent: IntArray = np.arange(len(state))
        n_steps = max(1, int(np.ceil(span / _MAX_STEP)))
        for _ in range(n_steps):
            kept = _next_generation(state, process.growth_contrast, span / n_steps, rng)
            if kept is not None:
                state, parent = state[kept], parent[kept]
            if len(state) > _MAX_POPULATION:
                raise ValueError(
                    f"The population grew beyond `{_MAX_POPULATION}` cells: take fewer founders, an earlier last time "
                    "or a smaller `growth_contrast`."
                )
            state = _step(state, process.sigma, span / n_steps, rng)
        found.append(Population(state @ process.rotation.T, parent))
    return found


def _start(n_founders: int, process: BirthDeath, rng: np.random.Generator) -> FloatArray:
    """Draw the founders, half of either side and the other dimensions in equilibrium."""
    state = rng.standard_normal((n_founders, len(process.rotation))) * process.sigma / np.sqrt(2 * _DECAY)
    state[:, :2] = np.array(_START_SD) * rng.standard_normal((n_founders, 2))
    state[:, 1] += np.where(np.arange(n_founders) % 2 == 0, _EARLY_SIDE, -_EARLY_SIDE)
    return state


def _drift(state: FloatArray) -> FloatArray:
    """Drift in the dimensions of the process, before the rotation."""
    progress, side = state[:, 0], state[:, 1]
    change = -_DECAY * state
    change[:, 0] = np.tanh(2 * (_END - progress))
    width = _EARLY_SIDE + (_LATE_SIDE - _EARLY_SIDE) * expit((progress - _BRANCH) / 0.3)
    change[:, 1] = side * (1 - (side / width) ** 2)
    return change


def _rates(state: FloatArray, contrast: float) -> tuple[FloatArray, FloatArray]:
    """Rates of birth and of death, shape ``[n_points]`` each."""
    late = expit((state[:, 0] - _BRANCH) / 0.25)
    on_side_a = expit(state[:, 1] / 0.25)
    birth = _BASE_BIRTH + contrast / 2 * late * on_side_a
    death = _BASE_DEATH + contrast / 2 * late * (1 - on_side_a)
    return birth, death


def _side(state: FloatArray) -> IntArray:
    """0 on the side of A, 1 on that of B."""
    return (state[:, 1] < 0).astype(np.int64)


def _step(state: FloatArray, sigma: float, dt: float, rng: np.random.Generator) -> FloatArray:
    return state + dt * _drift(state) + sigma * np.sqrt(dt) * rng.standard_normal(state.shape)


def _next_generation(state: FloatArray, contrast: float, dt: float, rng: np.random.Generator) -> IntArray | None:
    """Return which cell each cell after a step comes from; ``None`` where none has divided or died."""
    birth, death = _rates(state, contrast)
    chance = rng.uniform(size=(2, len(state)))
    n_daughters = (chance[0] < np.exp(-death * dt)) * (1 + (chance[1] < np.expm1(birth * dt)))
    return None if (n_daughters == 1).all() else np.repeat(np.arange(len(state)), n_daughters)


def _sample(
    populations: list[Population], wanted: list[int] | None, times: FloatArray, rng: np.random.Generator
) -> list[IntArray]:
    """Choose the cells that are seen, in the order of the population."""
    if wanted is None:
        return [np.arange(len(population.x)) for population in populations]
    for population, number, time in zip(populations, wanted, times, strict=True):
        if len(population.x) < number:
            raise ValueError(
                f"Expected at least `{number}` cells alive at time `{time:g}`, found `{len(population.x)}`. Take fewer "
                "`n_cells` or more `n_founders`."
            )
    return [
        np.sort(rng.choice(len(population.x), number, replace=False))
        for population, number in zip(populations, wanted, strict=True)
    ]


def _outlook(
    process: BirthDeath, adata: AnnData, end: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    r"""Return fates and expected descendants of every cell at the end, shape ``[n_cells, 2]`` each.

    The descendants are :math:`E[e^{\int g(x_t) dt} 1_F(x_T)]` over paths of the diffusion alone, the formula of
    Feynman and Kac :cite:p:`kac:49`: no branching is needed.
    """
    fates, descendants = (np.zeros((adata.n_obs, len(FATES))) for _ in range(2))
    state = (adata.obsm["X_pca"] @ process.rotation)[:, :2]  # what the other dimensions do changes nothing
    for time in np.unique(adata.obs["day"]):
        cells = np.flatnonzero(adata.obs["day"] == time)
        paths, log_weight = np.repeat(state[cells], _N_PATHS, axis=0), np.zeros(cells.size * _N_PATHS)
        n_steps = int(np.ceil((end - time) / _PATH_STEP))
        for _ in range(n_steps):
            dt = (end - time) / n_steps
            birth, death = _rates(paths, process.growth_contrast)
            log_weight += (birth - death) * dt
            paths = _step(paths, process.sigma, dt, rng)
        ends = _side(paths)[:, None] == np.arange(len(FATES))
        shape = (cells.size, _N_PATHS, len(FATES))
        fates[cells] = ends.reshape(shape).mean(axis=1)
        descendants[cells] = (ends * np.exp(log_weight)[:, None]).reshape(shape).mean(axis=1)
    return fates, descendants


def _ancestors(populations: list[Population], until: int, cells: IntArray, of: int) -> IntArray:
    """Return the positions at time `until` of the ancestors of cells at time `of`."""
    for number in range(of, until, -1):
        cells = populations[number].parent[cells]
    return cells


def _to_anndata(
    process: BirthDeath,
    populations: list[Population],
    samples: list[IntArray],
    times: FloatArray,
    rng: np.random.Generator,
) -> AnnData:
    x = np.concatenate([population.x[cells] for population, cells in zip(populations, samples, strict=True)])
    n_dims = x.shape[1]
    n_genes = max(_N_GENES, n_dims)
    loadings = np.linalg.qr(rng.standard_normal((n_genes, n_dims)))[0]
    mean = rng.uniform(2.0, 4.0, size=n_genes)
    adata = AnnData(
        x @ loadings.T + mean,
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(len(x))]),
        var=pd.DataFrame({"mean": mean}, index=[f"Gene{i + 1}" for i in range(n_genes)]),
    )
    adata.varm["PCs"] = loadings
    adata.obsm["X_pca"], adata.obsm["X_state"] = x, (x @ process.rotation)[:, :2]
    adata.obsm["true_velocity_pca"] = process.drift(x)
    adata.obs["day"] = np.repeat(times, [len(cells) for cells in samples])
    adata.obs["clusters"] = pd.Categorical.from_codes(process.clusters(x), CLUSTERS)
    adata.uns["clusters_colors"] = list(_COLORS)
    adata.obs["true_growth"] = process.growth(x)
    _add_lineages(adata, process, populations, samples, times)
    adata.uns["birth_death"] = _summary(process, populations, times)
    return adata


def _add_lineages(
    adata: AnnData, process: BirthDeath, populations: list[Population], samples: list[IntArray], times: FloatArray
) -> None:
    """Write the founder of each cell and the ancestors of later cells at each time."""
    first = np.cumsum([0, *(len(cells) for cells in samples)])
    clone = [_ancestors(populations, 0, cells, number) for number, cells in enumerate(samples)]
    adata.obs["clone"] = np.concatenate(clone)
    for until, time in enumerate(times[:-1]):
        codes = np.full(adata.n_obs, -1)
        x = np.full(adata.obsm["X_pca"].shape, np.nan)
        for of in range(until + 1, times.size):
            here = slice(first[of], first[of + 1])
            x[here] = populations[until].x[_ancestors(populations, until, samples[of], of)]
            codes[here] = process.clusters(x[here])
        adata.obs[f"ancestor_cluster_{time:.12g}"] = pd.Categorical.from_codes(codes, CLUSTERS)
        adata.obsm[f"ancestor_pca_{time:.12g}"] = x


def _summary(process: BirthDeath, populations: list[Population], times: FloatArray) -> dict[str, Any]:
    """Return what is known of the whole population."""
    codes = [process.clusters(population.x) for population in populations]
    counts = np.stack([np.bincount(code, minlength=len(CLUSTERS)) for code in codes])
    last = np.arange(codes[-1].size)
    founder = codes[0][_ancestors(populations, 0, last, times.size - 1)]
    lineages = np.zeros((len(CLUSTERS), len(FATES)), dtype=np.int64)
    np.add.at(lineages, (founder, codes[-1] % 2), 1)
    return {
        "times": times,
        "population": counts.sum(axis=1),
        "mass": counts.sum(axis=1) / counts[0].sum(),
        "cluster_mass": counts / counts[0].sum(),
        "lineages": pd.DataFrame(lineages, index=list(CLUSTERS), columns=list(FATES)),
        "sigma": process.sigma,
        "growth_contrast": process.growth_contrast,
        "rotation": process.rotation,
    }


def _checked_times(times: ArrayLike) -> FloatArray:
    at = np.asarray(times)
    if at.dtype.kind not in "iuf":
        raise TypeError(f"Expected `times` to be numbers, found `{at.dtype}`.")
    at = at.astype(np.float64)
    if at.ndim != 1 or at.size < 2 or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise ValueError(f"Expected `times` to be at least two increasing numbers, found `{times!r}`.")
    return at


def _checked_numbers(n_cells: int | Sequence[int] | None, n_times: int) -> list[int] | None:
    """Return the number of cells at each time; ``None`` stands for all."""
    if n_cells is None:
        return None
    if np.ndim(n_cells) == 0:
        return [check_integer("n_cells", n_cells, low=10)] * n_times
    numbers: Any = n_cells
    if len(numbers) != n_times:
        raise ValueError(f"Expected `n_cells` to be one number or one per time (`{n_times}`), found `{n_cells}`.")
    return [check_integer("n_cells", number, low=10) for number in numbers]
