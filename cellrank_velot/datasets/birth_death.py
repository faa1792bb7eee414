"""Snapshots of the branching process as AnnData, with known drift, growth, fates and lineages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy.stats import ortho_group

from cellrank_velot._utils.validation import check_integer, check_known, check_number, check_seed
from cellrank_velot.datasets.branching import CLUSTERS, FATES, BirthDeath, IntArray, Population, outlook, simulate
from cellrank_velot.datasets.circuit import FloatArray

__all__ = ["birth_death", "process_of"]

# Colours of Okabe & Ito (2008): a light and a full tone for either side.
_COLORS = ("#56B4E9", "#F0E442", "#0072B2", "#E69F00")
_FOUNDERS_PER_CELL = 4
_N_GENES = 50


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

    Every cell of a population is simulated, with its divisions and its death; daughters begin where their mother is.
    :class:`~cellrank_velot.datasets.BirthDeath` has the equations. Snapshots are random samples of the
    population. Most progenitors A become fate A and most progenitors B fate B, but some change sides. Where growth is
    unequal, most cells of the last time come from few cells of the first.

    Parameters
    ----------
    n_cells
        Number of cells sampled at each time, at least 10: one number for all times, or one per time. ``None`` takes
        every cell.
    times
        Times of the snapshots, increasing, at least two. The process begins at the first.
    n_dims
        Number of dimensions, at least two. All but two of them only fluctuate.
    sigma
        Diffusion per square root of unit time, in every dimension.
    growth_contrast
        Growth rate of fate A minus that of fate B, per unit of time. With 0 all cells grow alike, at a rate of 0.3.
    n_founders
        Number of cells at the first time, before sampling, at least 10. Where not given, four times the largest of
        `n_cells`, which makes the samples nearly independent, or 500 where every cell is taken.
    random_state
        Seed.

    Returns
    -------
    AnnData with

    - ``obsm["X_pca"]``, positions of shape ``[n_cells, n_dims]``, and `X`, the same in 50 genes, with the loadings
      ``varm["PCs"]`` and the means ``var["mean"]``; ``obsm["X_state"]``, progress and side, for pictures; a graph of 30
      neighbours;
    - ``obs["day"]``, the time; ``obs["clusters"]``, "Progenitor A", "Progenitor B", "Fate A" and "Fate B";
    - ``obsm["true_velocity_pca"]``, the drift at the cell, and ``obs["true_growth"]``, its growth rate;
    - ``obsm["true_fates"]``, shape ``[n_cells, 2]``, the probability that a cell ends on the side of fate A or fate B
      at the last time, if it neither divides nor dies; ``obsm["true_descendants"]``, the expected number of its
      descendants there. Both are means over 50 paths a cell. Descendants divided by their sum are the fates of a cell
      as its lineage shows them;
    - ``obs["clone"]``, the founder that a cell comes from. For each time but the last, such as 0, the ancestor of each
      later cell at that time: ``obs["ancestor_cluster_0"]`` and ``obsm["ancestor_pca_0"]``, missing in other cells;
    - ``uns["birth_death"]``, of the whole population: ``"times"``; ``"population"``, the number of cells per time;
      ``"mass"``, the same relative to the first time; ``"cluster_mass"``, that of each cluster, shape
      ``[n_times, 4]``; ``"lineages"``, the number of cells at the last time by the cluster of their founders (rows) and
      the side where they are (columns); ``"sigma"``, ``"growth_contrast"`` and ``"rotation"``. :func:`process_of`
      returns drift and growth as functions of the position.

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
    at = _increasing(times)
    wanted = _numbers(n_cells, at.size)
    check_integer("n_dims", n_dims, low=2)
    check_number("sigma", sigma, low=0)
    check_number("growth_contrast", growth_contrast, low=0)
    if n_founders is None:
        n_founders = 500 if wanted is None else _FOUNDERS_PER_CELL * max(wanted)
    check_integer("n_founders", n_founders, low=10)
    check_seed(random_state)

    # Streams of their own: how many cells are sampled changes neither the rotation nor the genes.
    spawned = np.random.SeedSequence(random_state).spawn(4)
    basis_rng, process_rng, sample_rng, path_rng = map(np.random.default_rng, spawned)
    process = BirthDeath(float(sigma), float(growth_contrast), ortho_group.rvs(n_dims, random_state=basis_rng))
    populations = simulate(process, n_founders, at, rng=process_rng)
    samples = _sample(populations, wanted, at, sample_rng)
    adata = _to_anndata(process, populations, samples, at, basis_rng)
    _add_outlook(adata, process, at, path_rng)
    n_neighbors = min(30, adata.n_obs // 2)
    sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_pca", random_state=random_state)
    return adata


def process_of(adata: AnnData) -> BirthDeath:
    """Return the process that :func:`birth_death` has simulated, which gives drift and growth at any position.

    Parameters
    ----------
    adata
        The result of :func:`birth_death`, also read from a file.

    Returns
    -------
    The process.

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


def _sample(
    populations: list[Population], wanted: list[int] | None, times: FloatArray, rng: np.random.Generator
) -> list[IntArray]:
    """Choose the cells of each snapshot, in the order of the population."""
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


def _add_outlook(adata: AnnData, process: BirthDeath, times: FloatArray, rng: np.random.Generator) -> None:
    """Write the fates and the expected descendants of every cell at the last time."""
    fates, descendants = (np.zeros((adata.n_obs, len(FATES))) for _ in range(2))
    for time in times:
        cells = np.flatnonzero(adata.obs["day"] == time)
        fates[cells], descendants[cells] = outlook(process, adata.obsm["X_state"][cells], times[-1] - time, rng)
    adata.obsm["true_fates"], adata.obsm["true_descendants"] = fates, descendants


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


def _increasing(times: ArrayLike) -> FloatArray:
    at = np.asarray(times)
    if at.dtype.kind not in "iuf":
        raise TypeError(f"Expected `times` to be numbers, found `{at.dtype}`.")
    at = at.astype(np.float64)
    if at.ndim != 1 or at.size < 2 or not np.isfinite(at).all() or (np.diff(at) <= 0).any():
        raise ValueError(f"Expected `times` to be at least two increasing numbers, found `{times!r}`.")
    return at


def _numbers(n_cells: int | Sequence[int] | None, n_times: int) -> list[int] | None:
    """Return the number of cells at each time; ``None`` stands for all."""
    if n_cells is None:
        return None
    if np.ndim(n_cells) == 0:
        return [check_integer("n_cells", n_cells, low=10)] * n_times
    numbers: Any = n_cells
    if len(numbers) != n_times:
        raise ValueError(f"Expected `n_cells` to be one number or one per time (`{n_times}`), found `{n_cells}`.")
    return [check_integer("n_cells", number, low=10) for number in numbers]
