"""Simulated cells as counts, of which the velocity and the fates are known, in families that look like real data.

Expected expression moves along smooth curves or follows a gene circuit. It is seen as negative-binomial counts with a
library size of each cell; the true velocity goes through the same normalisation and PCA as the counts do.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot import datasets
from cellrank_velot.preprocessing.pseudotime import PSEUDOTIME_KEYS, set_pseudotime

__all__ = ["FAMILIES", "HELD_BACK", "Family", "simulate"]

Array = NDArray[np.float64]

# Step of time, as a share of the whole, over which expected expression is moved for the true velocity.
STEP = 1e-3


@dataclass(frozen=True)
class Branch:
    """A stretch of the process: it continues its parent, and cells are spread over its stretch of time."""

    parent: int  # number of the branch before, -1 at a root
    start: float
    stop: float
    share: float  # of the cells that pass through the parent
    back_to: int = -1  # number of the branch whose course it joins in the end
    cycle: bool = False  # whether it turns round once before it goes on


@dataclass(frozen=True)
class Family:
    """What is simulated, how it is sampled, and how it is seen."""

    branches: tuple[Branch, ...] = (Branch(-1, 0.0, 1.0, 1.0),)
    n_cells: int = 1000
    n_genes: int = 1500
    n_pcs: int = 30
    circuit: str = ""  # a gene circuit in place of the branches
    depth: float = 4000.0  # mean counts of a cell
    dropout: float = 0.0  # share of genes that a cell loses, beyond the counts
    dispersion: float = 0.2  # of the counts: variance m + dispersion m^2
    spread: float = 0.25  # of cells about their curve, relative to its length
    length: float = 3.0  # of the way from first to last, in units of log expression per latent dimension
    curvature: float = 2.0  # radians by which the whole way turns
    speed_ratio: float = 1.0  # of the fastest to the slowest stretch
    evenness: float = 1.0  # of sampling along time: the first of the parameters of a beta distribution
    n_batches: int = 1
    roots: int = 1
    root_clusters: tuple[str, ...] = ()  # of a gene circuit with several beginnings


TWO = (Branch(-1, 0, 0.45, 1.0), Branch(0, 0.45, 1, 0.5), Branch(0, 0.45, 1, 0.5))
FOUR = (
    Branch(-1, 0, 0.3, 1.0),
    *(Branch(0, 0.3, 0.6, 0.5),) * 2,
    *(Branch(1, 0.6, 1, 0.5),) * 2,
    *(Branch(2, 0.6, 1, 0.5),) * 2,
)
STAR = (Branch(-1, 0, 0.3, 1.0), *(Branch(0, 0.3, 1.0, share) for share in (0.9, 0.08, 0.02)))
RARE = (Branch(-1, 0, 0.4, 1.0), Branch(0, 0.4, 1.0, 0.98), Branch(0, 0.4, 1.0, 0.02))
REJOIN = (
    Branch(-1, 0, 0.3, 1.0),
    Branch(0, 0.3, 0.7, 0.5, back_to=3),
    Branch(0, 0.3, 0.7, 0.5, back_to=3),
    Branch(1, 0.7, 1, 1.0),
)
APART = (*TWO, Branch(-1, 0, 1, 1.0))
LOOP = (Branch(-1, 0, 0.6, 1.0, cycle=True), Branch(0, 0.6, 1, 1.0))
SHORT = (Branch(-1, 0, 0.4, 1.0), Branch(0, 0.4, 0.65, 0.5), Branch(0, 0.4, 1, 0.5))

# Families that defaults may be chosen on, and families that they are tried on afterwards.
FAMILIES = {
    "circuit: bifurcation": Family(circuit="bifurcation", n_genes=100),
    "circuit: tree": Family(circuit="tree", n_genes=100),
    "two fates": Family(TWO),
    "four fates": Family(FOUR),
    "three fates, 90 : 8 : 2": Family(STAR),
    "rare branch": Family(RARE),
    "uneven sampling": Family(TWO, evenness=0.5),
    "speeds, five-fold": Family(TWO, speed_ratio=5),
    "arms that rejoin": Family(REJOIN),
    "low depth": Family(TWO, depth=1000, dropout=0.3),
    "small changes, two fates": Family(TWO, length=1.6, spread=0.3),
    "small changes, four fates": Family(FOUR, length=1.6, spread=0.3),
    "small changes, 400 cells": Family(TWO, length=2.0, n_cells=400),
    "circuit: tree, low depth": Family(circuit="tree", n_genes=100, depth=1000, n_pcs=50),
}
HELD_BACK = {
    "circuit: convergence": Family(circuit="convergence", n_genes=100, root_clusters=("Root A", "Root B")),
    "one line": Family(),
    "a short branch": Family(SHORT),
    "in two parts": Family(APART, roots=2),
    "two batches, corrected": Family(TWO, n_batches=2),
    "300 cells": Family(TWO, n_cells=300, n_pcs=20),
    "6000 cells": Family(FOUR, n_cells=6000, n_pcs=50),
    "10 components": Family(FOUR, n_pcs=10),
    "strongly curved": Family(FOUR, curvature=4.0),
    "wide branches": Family(TWO, spread=0.5),
    "small changes, three fates": Family(STAR, length=1.6, spread=0.3),
    "circuit: bifurcation, low depth": Family(circuit="bifurcation", n_genes=100, depth=1000, n_pcs=50),
    "cycle, then exit": Family(LOOP, length=6.0),
}


def simulate(family: Family, seed: int) -> ad.AnnData:
    """Return prepared cells of a family.

    With ``obs["true_time"]``, ``obs["branch"]``, ``obsm["true_velocity_pca"]``, ``obsm["true_fates"]``, and
    ``obs["pseudotime"]`` from the earliest cell.
    """
    rng = np.random.default_rng([seed, 17])
    latent = _circuit(family, seed) if family.circuit else _curves(family, rng)
    expected, ahead, obs, fates = latent
    batch = rng.integers(family.n_batches, size=family.n_cells)
    effect = rng.normal(0, 0.6, (family.n_batches, expected.shape[1])) * (family.n_batches > 1)
    counts = _observe(expected * np.exp(effect)[batch], family, rng)
    keep = (counts > 0).sum(axis=0) >= 3
    adata = ad.AnnData(sp.csr_matrix(counts[:, keep].astype(np.float32)), obs=obs)
    adata.obs["batch"] = pd.Categorical(batch.astype(str))
    adata.obsm["true_fates"] = fates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _prepare(adata, family, seed)
    loadings = adata.varm["PCs"]
    dt = STEP * float(np.ptp(obs["true_time"]))
    set_times(adata, family.root_clusters)
    adata.obsm["true_velocity_pca"] = (_normalized(ahead)[:, keep] - _normalized(expected)[:, keep]) @ loadings / dt
    return adata


def _normalized(expected: Array) -> Array:
    return np.log1p(1e4 * expected / expected.sum(axis=1, keepdims=True))


def _observe(expected: Array, family: Family, rng: np.random.Generator) -> Array:
    """Draw negative-binomial counts of expected expression, shape ``[n_cells, n_genes]``."""
    size = family.depth * np.exp(rng.normal(0, 0.35, (len(expected), 1)))
    mean = size * expected / expected.sum(axis=1, keepdims=True)
    counts = rng.poisson(mean * rng.gamma(1 / family.dispersion, family.dispersion, mean.shape))
    return counts * (rng.uniform(size=counts.shape) >= family.dropout)


def _prepare(adata: ad.AnnData, family: Family, seed: int) -> None:
    """Prepare as a user would, without the UMAP."""
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if family.n_batches > 1:
        adata.X = sc.pp.combat(adata, key="batch", inplace=False)
    adata.var["highly_variable"] = True
    if adata.n_vars > 1000:
        sc.pp.highly_variable_genes(adata, n_top_genes=1000)
    sc.pp.pca(adata, n_comps=family.n_pcs, mask_var="highly_variable", random_state=seed)
    sc.pp.neighbors(adata, n_neighbors=30, use_rep="X_pca", random_state=seed)


def set_times(adata: ad.AnnData, root_clusters: tuple[str, ...] = ()) -> None:
    """Write pseudotimes from the earliest cell of each part of the graph.

    ``obs["pseudotime"]`` is the diffusion pseudotime, ``obs["consensus_pseudotime"]`` the default of ``pp.prepare``.
    """
    part = sp.csgraph.connected_components(adata.obsp["connectivities"])[1]
    true, times = (
        adata.obs["true_time"].to_numpy(),
        {"diffusion": np.empty(adata.n_obs), "consensus": np.empty(adata.n_obs)},
    )
    for number in np.unique(part):
        chosen = np.flatnonzero(part == number)
        if chosen.size < 20:
            for time in times.values():
                time[chosen] = 0.0
            continue
        piece = ad.AnnData(obs=adata.obs.iloc[chosen][["true_time"]])
        piece.obsp["connectivities"] = adata.obsp["connectivities"][chosen][:, chosen]
        piece.uns["neighbors"] = {
            "connectivities_key": "connectivities",
            "distances_key": "distances",
            "params": {"n_neighbors": 30, "method": "umap"},
        }
        piece.obsp["distances"] = adata.obsp["distances"][chosen][:, chosen]
        sc.tl.diffmap(piece)
        of = adata.obs["branch"].to_numpy()[chosen]
        first = [np.where(of == name, true[chosen], np.inf) for name in root_clusters] or [true[chosen]]
        piece.obsm["X_pca"] = adata.obsm["X_pca"][chosen]
        for method, time in times.items():
            set_pseudotime(piece, [int(np.argmin(at)) for at in first], method)
            time[chosen] = piece.obs[PSEUDOTIME_KEYS[method]]
    adata.obs["pseudotime"], adata.obs["consensus_pseudotime"] = times["diffusion"], times["consensus"]


def _circuit(family: Family, seed: int) -> tuple[Array, Array, pd.DataFrame, Array]:
    """Return expected expression now and a little later of the cells of a gene circuit."""
    made = getattr(datasets, family.circuit)(family.n_cells, family.n_genes, random_state=seed, preprocess=False)
    dt = STEP * float(np.ptp(made.obs["true_time"]))
    now = made.layers["true_expression"]
    obs = pd.DataFrame({"true_time": made.obs["true_time"].to_numpy(), "branch": made.obs["clusters"].to_numpy()})
    obs.index = obs.index.astype(str)
    return (
        np.expm1(now.clip(0)) + 0.01,
        np.expm1((now + dt * made.layers["true_velocity"]).clip(0)) + 0.01,
        obs,
        _fates_of_clusters(obs["branch"].to_numpy(dtype=str)),
    )


def _fates_of_clusters(names: NDArray[np.str_]) -> Array:
    """Return the fates of the cells of a circuit, which is symmetric: all fates that a cell may have are as likely."""
    ends = sorted({name for name in names if name.startswith("Fate")})
    fates = np.zeros((len(names), len(ends)))
    for cell, name in enumerate(names):
        branch = name.removeprefix("Branch ")
        open_to = [end == name or (name.startswith("Branch") and end.startswith(f"Fate {branch}")) for end in ends]
        fates[cell] = open_to if any(open_to) else [True] * len(ends)
    return fates / fates.sum(axis=1, keepdims=True)


def _curves(family: Family, rng: np.random.Generator) -> tuple[Array, Array, pd.DataFrame, Array]:
    """Return expected expression now and a little later of cells along smooth branching curves."""
    branches, n = family.branches, family.n_cells
    share = np.zeros(len(branches))
    for number, branch in enumerate(branches):
        share[number] = (1 / family.roots if branch.parent < 0 else share[branch.parent]) * branch.share
    children = [
        [k for k, b in enumerate(branches) if b.parent == i or branches[i].back_to == k] for i in range(len(branches))
    ]
    tips = [i for i in range(len(branches)) if not children[i]]
    # A cell: its time, then its branch at that time among those that there are, by their shares.
    time = rng.beta(family.evenness, 1.0 / family.evenness if family.evenness != 1 else 1.0, size=n)
    weight = np.array(
        [[share[k] * (b.start <= t < b.stop or (t >= b.stop == 1)) for k, b in enumerate(branches)] for t in time]
    )
    weight /= weight.sum(axis=1, keepdims=True)
    at = (rng.uniform(size=(n, 1)) > np.cumsum(weight, axis=1)).sum(axis=1).clip(max=len(branches) - 1)
    n_latent = 12
    course = _Courses(branches, family, n_latent, rng)
    off = family.spread * family.length / 3 * rng.standard_normal((n, n_latent)) * np.array([0.6] * n_latent)
    here, there = (course(at, t) + off for t in (time, time + STEP))
    n_genes = family.n_genes
    loading = rng.normal(0, 1, (n_latent, n_genes)) * (rng.uniform(size=(n_latent, n_genes)) < 0.25) * 0.6
    base = rng.normal(0, 1.3, n_genes)
    obs = pd.DataFrame({"true_time": time, "branch": [f"branch {k}" for k in at]})
    obs.index = obs.index.astype(str)
    fates = np.zeros((len(branches), len(tips)))
    for k in reversed(range(len(branches))):
        if k in tips:
            fates[k, tips.index(k)] = 1
        else:
            mass = np.array([share[c] for c in children[k]])
            fates[k] = (mass / mass.sum()) @ fates[children[k]]
    return np.exp(base + here @ loading), np.exp(base + there @ loading), obs, fates[at]


class _Courses:
    """Where each branch runs in the latent space: smooth curves, continuous with the branch before."""

    def __init__(self, branches: tuple[Branch, ...], family: Family, n_latent: int, rng: np.random.Generator) -> None:
        grid = np.linspace(0, 1, 201)
        # A fast stretch in the middle of the process and slow ones at its ends.
        speed = np.exp(np.log(family.speed_ratio) * (np.cos(2 * np.pi * (grid - 0.35)) + 1) / 2)
        self.grid, self.way = grid, np.concatenate([[0], np.cumsum((speed[1:] + speed[:-1]) / 2)])
        self.way /= self.way[-1]
        self.branches, self.points = branches, []
        headings = []
        for number, branch in enumerate(branches):
            inside = self.grid
            begin = np.interp(branch.start, grid, self.way)
            length = (
                np.interp(inside.clip(branch.start, branch.stop + 2 * STEP), grid, self.way) - begin
            ) * family.length
            if branch.parent < 0:
                origin, first = (rng.normal(0, 3.0, n_latent) if number else np.zeros(n_latent)), _unit(rng, n_latent)
            else:
                origin, first = self._end(branch.parent), headings[branch.parent]
            if branch.parent >= 0 and sum(b.parent == branch.parent for b in branches) > 1:
                first = first * 0.5 + _unit(rng, n_latent) * 0.9
                first /= np.linalg.norm(first)
            second = _unit(rng, n_latent)
            second -= (second @ first) * first
            second /= np.linalg.norm(second)
            turn = 2 * np.pi / length[-1] if branch.cycle else family.curvature / family.length
            angle = turn * length
            heading = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
            steps = np.diff(length, prepend=0)[:, None] * heading
            curve = origin + np.cumsum(steps, axis=0)
            headings.append(heading[-1])
            self.points.append(curve)
        for number, branch in enumerate(branches):
            if branch.back_to >= 0:  # the arms bend together towards where the next branch begins
                goal = self.points[branch.back_to][0]
                share = ((grid - branch.start) / (branch.stop - branch.start)).clip(0, 1)[:, None]
                self.points[number] = self.points[number] + share**2 * (goal - self._end(number))

    def _end(self, number: int) -> Array:
        return np.asarray(self.points[number][-1])

    def __call__(self, at: NDArray[np.int64], time: Array) -> Array:
        out = np.empty((len(at), self.points[0].shape[1]))
        for number, curve in enumerate(self.points):
            chosen = at == number
            out[chosen] = np.column_stack([np.interp(time[chosen], self.grid, column) for column in curve.T])
        return out


def _unit(rng: np.random.Generator, n: int) -> Array:
    vector = rng.standard_normal(n)
    return np.asarray(vector / np.linalg.norm(vector))
