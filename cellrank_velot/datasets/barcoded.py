"""Barcoded lineages that are sampled more than once, with the fate probability of every cell known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import ortho_group

from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.datasets.circuit import FloatArray

__all__ = ["barcoded_lineages"]

IntArray = NDArray[np.int64]

PROGENITOR = "Progenitor"
# Grey for progenitors; the fates have the colours of Okabe & Ito (2008).
_COLORS = ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")

_SPEED = 0.5  # progress per day
_START_SD = 0.2  # of the progress of founders: sisters are in step, clones are not
_DECIDES = 1.5  # progress at which a cell takes its fate
_SEEN = 0.2  # distance from the middle at which a cell before its decision lies, per unit of visible bias
_ARM = 1.6  # distance of the arms from the middle, far from the decision
_PULL = 4.0  # rate, per day, at which cells come to where they belong
_WOBBLE = 0.25  # spread around it
_NAMED = 0.8  # distance from the middle from which on a cell has the name of its fate
_DIVISION = (1.0, 0.5)  # divisions per day, before and after the decision
_DRIFT = 0.2  # spread by which the visible bias changes in a day
_STEP = 0.05
_N_PATHS = 200
_N_GENES = 50
_MAX_POPULATION = 3_000_000


@dataclass
class _Cells:
    """Cells that are alive: clone, well, progress, visible and hidden bias, fate (-1 before) and place."""

    clone: IntArray
    well: IntArray
    progress: FloatArray
    seen: FloatArray
    hidden: FloatArray
    fate: IntArray
    place: FloatArray

    def take(self, which: NDArray[np.bool_] | IntArray) -> _Cells:
        """Return some of them, also more than once."""
        return _Cells(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def __len__(self) -> int:
        return self.clone.size


def barcoded_lineages(
    n_cells: int | Sequence[int] = 800,
    times: Sequence[float] = (2.0, 4.0, 6.0),
    *,
    n_fates: int = 3,
    n_clones: int | None = None,
    bias: float = 3.0,
    hidden: float = 0.5,
    missing: float = 0.4,
    n_wells: int = 2,
    growth_contrast: float = 0.0,
    n_dims: int = 10,
    random_state: int = 0,
) -> AnnData:
    r"""Simulate barcoded progenitors whose daughters are sequenced on several days, as lineage tracing does.

    Founders get a barcode on day 0. Cells divide, and each takes one of several fates around day 3, with the
    probabilities :math:`\mathrm{softmax}(v + h)`. The visible bias :math:`v` moves the cell in the space that is
    measured, drifts, and is passed on to daughters. The hidden bias :math:`h` is passed on, too, but nothing that is
    measured tells it :cite:p:`weinreb:20`. At each time some cells are taken out and measured; after the first time
    the others grow on in separate wells.

    Parameters
    ----------
    n_cells
        Number of cells measured at each time, at least 10: one number for all times, or one per time.
    times
        Days of the samples, increasing.
    n_fates
        Number of fates, from 2 to 7.
    n_clones
        Number of founders, each with a barcode of its own; a third of the largest of ``n_cells`` where not given.
    bias
        Standard deviation of the bias of founders, in units of log odds. With 0 all cells take all fates alike.
    hidden
        Share of its variance that is hidden, in ``[0, 1]``.
    missing
        Share of the cells whose barcode is not found, in ``[0, 1)``.
    n_wells
        Number of wells in which cells grow after the first time.
    growth_contrast
        Divisions per day after the decision of the fate that grows fastest minus those of the one that grows slowest;
        the others lie evenly between.
    n_dims
        Number of dimensions, at least the number of fates. Those that the process does not need only fluctuate.
    random_state
        Seed.

    Returns
    -------
    AnnData with

    - ``obsm["X_pca"]``, positions, shape ``[n_cells, n_dims]``, and `X`, the same in 50 genes; ``obsm["X_state"]``,
      for pictures; a graph of 30 neighbours;
    - ``obs["day"]``; ``obs["pseudotime"]``, progress as far as the position tells it; ``obs["clusters"]``,
      "Progenitor", "Fate A" and so on; ``obs["well"]``, missing on the first day;
    - ``obsm["X_clone"]``, a sparse matrix of cells by barcodes, and ``obs["clone_id"]``, the same as a column with
      gaps;
    - ``obsm["true_fates"]``, the probability of each fate, given all that the cell carries, a table with a column for
      each fate; ``obsm["true_fates_seen"]``, the same where the hidden bias is not known: what a method can tell
      that sees no clones.

    Raises
    ------
    TypeError
        If an option has the wrong type.
    ValueError
        If an option is out of range, or fewer cells are alive at some time than are to be measured.

    Examples
    --------
    >>> adata = datasets.barcoded_lineages(n_cells=200)
    >>> adata.obsm["X_clone"].shape, adata.obs["clusters"].cat.categories.tolist()
    ((600, 66), ['Progenitor', 'Fate A', 'Fate B', 'Fate C'])
    >>> bool(np.allclose(adata.obsm["true_fates"].sum(axis=1), 1))
    True
    """
    at = _increasing(times)
    wanted = [n_cells] * at.size if isinstance(n_cells, int | np.integer) else list(n_cells)
    if len(wanted) != at.size:
        raise ValueError(f"Expected `n_cells` to be one number or one per time (`{at.size}`), found `{n_cells}`.")
    for number in wanted:
        check_integer("n_cells", number, low=10)
    check_integer("n_fates", n_fates, low=2)
    if n_fates >= len(_COLORS):
        raise ValueError(f"Expected `n_fates` to be at most `{len(_COLORS) - 1}`, found `{n_fates}`.")
    n_clones = max(wanted) // 3 if n_clones is None else n_clones
    check_integer("n_clones", n_clones, low=1)
    check_number("bias", bias, low=0)
    check_number("hidden", hidden, low=0, high=1)
    check_number("missing", missing, low=0, high=1, open_high=True)
    check_integer("n_wells", n_wells, low=1)
    check_number("growth_contrast", growth_contrast, low=0, high=2 * _DIVISION[1])
    check_integer("n_dims", n_dims, low=n_fates)
    check_seed(random_state)
    spawned = np.random.SeedSequence(random_state).spawn(3)
    process_rng, sample_rng, truth_rng = map(np.random.default_rng, spawned)
    alive = _founders(n_clones, n_fates, bias, hidden, process_rng)
    growth: FloatArray = _DIVISION[1] + growth_contrast * (0.5 - np.arange(n_fates) / (n_fates - 1))
    samples, now = [], 0.0
    for number, (time, size) in enumerate(zip(at, wanted, strict=True)):
        alive = _grow(alive, time - now, growth, process_rng)
        now = float(time)
        if len(alive) < size:
            raise ValueError(
                f"Expected at least `{size}` cells alive at time `{time:g}`, found `{len(alive)}`. Take fewer "
                "`n_cells` or more `n_clones`."
            )
        order = sample_rng.permutation(len(alive))
        samples.append(alive.take(np.sort(order[:size])))
        alive = alive.take(np.sort(order[size:]))
        if number == 0:
            alive.well = sample_rng.integers(n_wells, size=len(alive))
    cells = _Cells(**{f.name: np.concatenate([getattr(s, f.name) for s in samples]) for f in fields(_Cells)})
    adata = _to_anndata(cells, n_dims, sample_rng)
    adata.obs["day"] = np.repeat(at, wanted)
    _add_clones(adata, cells, n_clones, missing, sample_rng)
    names = adata.obs["clusters"].cat.categories[1:]
    for key, spread in (("true_fates", 0.0), ("true_fates_seen", bias * np.sqrt(hidden))):
        adata.obsm[key] = pd.DataFrame(_outlook(cells, spread, truth_rng), adata.obs_names, list(names))
    sc.pp.neighbors(adata, n_neighbors=min(30, adata.n_obs // 2), use_rep="X_pca", random_state=random_state)
    return adata


def _founders(n_clones: int, n_fates: int, bias: float, hidden: float, rng: np.random.Generator) -> _Cells:
    draws = rng.standard_normal((2, n_clones, n_fates))
    seen = bias * np.sqrt(1 - hidden) * draws[0]
    cells = _Cells(
        clone=np.arange(n_clones),
        well=np.full(n_clones, -1),
        progress=_START_SD * rng.standard_normal(n_clones),
        seen=seen,
        hidden=bias * np.sqrt(hidden) * draws[1],
        fate=np.full(n_clones, -1),
        place=np.zeros((n_clones, n_fates - 1)),
    )
    cells.place = _target(cells) + _WOBBLE * rng.standard_normal(cells.place.shape)
    return cells


def _directions(n_fates: int) -> FloatArray:
    """Return unit vectors to the corners of a simplex, shape ``[n_fates, n_fates - 1]``."""
    centred = np.eye(n_fates) - 1 / n_fates
    corners = centred @ np.linalg.svd(centred)[2][: n_fates - 1].T
    return np.asarray(corners / np.linalg.norm(corners, axis=1, keepdims=True))


def _target(cells: _Cells) -> FloatArray:
    """Return where the cells belong, away from the middle."""
    corners = _directions(cells.seen.shape[1])
    before = _SEEN * (cells.seen - cells.seen.mean(axis=1, keepdims=True)) @ corners
    along = np.clip(cells.progress - _DECIDES, 0, 1)[:, None]
    after = (1 - along) * before + _ARM * along * corners[cells.fate]
    return np.where(cells.fate[:, None] < 0, before, after)


def _grow(cells: _Cells, span: float, growth: FloatArray, rng: np.random.Generator) -> _Cells:
    """Let cells move, decide and divide for a time."""
    n_steps = max(1, int(np.ceil(span / _STEP)))
    dt = span / n_steps
    keep = np.exp(-_PULL * dt)
    for _ in range(n_steps):
        rate = np.where(cells.fate < 0, _DIVISION[0], growth[cells.fate])
        divides = rng.random(len(cells)) < -np.expm1(-rate * dt)
        cells = cells.take(np.repeat(np.arange(len(cells)), 1 + divides))
        if len(cells) > _MAX_POPULATION:
            raise ValueError(f"The population grew beyond `{_MAX_POPULATION}` cells: take fewer `n_clones`.")
        cells.progress = cells.progress + _SPEED * dt
        free = cells.fate < 0
        cells.seen[free] += _DRIFT * np.sqrt(dt) * rng.standard_normal((int(free.sum()), growth.size))
        due = np.flatnonzero(free & (cells.progress >= _DECIDES))
        chances = softmax(cells.seen[due] + cells.hidden[due], axis=1).cumsum(axis=1)
        cells.fate[due] = np.minimum((rng.random((due.size, 1)) > chances).sum(axis=1), growth.size - 1)
        noise = _WOBBLE * np.sqrt(1 - keep**2) * rng.standard_normal(cells.place.shape)
        target = _target(cells)
        cells.place = target + keep * (cells.place - target) + noise
    return cells


def _outlook(cells: _Cells, hidden_sd: float, rng: np.random.Generator) -> FloatArray:
    """Return the probability of each fate, over what may still happen, and over a hidden bias of some spread."""
    fates = np.eye(cells.seen.shape[1])[cells.fate]
    free = np.flatnonzero(cells.fate < 0)
    left = _DRIFT * np.sqrt(np.clip(_DECIDES - cells.progress[free], 0, None) / _SPEED)
    known = cells.seen[free] + (0.0 if hidden_sd else cells.hidden[free])
    spread = np.sqrt(left**2 + np.square(hidden_sd))[:, None]
    total = np.zeros_like(known)
    for _ in range(_N_PATHS):
        total += softmax(known + spread * rng.standard_normal(known.shape), axis=1)
    fates[free] = total / _N_PATHS
    return np.asarray(fates)


def _to_anndata(cells: _Cells, n_dims: int, rng: np.random.Generator) -> AnnData:
    n, n_fates = cells.seen.shape
    state = _WOBBLE * rng.standard_normal((n, n_dims))
    state[:, 0] += np.minimum(cells.progress, _DECIDES + 1.5)
    state[:, 1:n_fates] = cells.place
    x = state @ ortho_group.rvs(n_dims, random_state=rng).T
    n_genes = max(_N_GENES, n_dims)
    loadings = np.linalg.qr(rng.standard_normal((n_genes, n_dims)))[0]
    adata = AnnData(
        x @ loadings.T + rng.uniform(2.0, 4.0, size=n_genes),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"Gene{i + 1}" for i in range(n_genes)]),
    )
    adata.varm["PCs"], adata.obsm["X_pca"], adata.obsm["X_state"] = loadings, x, state[:, :n_fates]
    adata.obs["pseudotime"] = (state[:, 0] - state[:, 0].min()) / np.ptp(state[:, 0])
    named = (cells.fate >= 0) & (np.linalg.norm(cells.place, axis=1) > _NAMED)
    names = [PROGENITOR, *(f"Fate {chr(65 + k)}" for k in range(n_fates))]
    adata.obs["clusters"] = pd.Categorical.from_codes(np.where(named, cells.fate + 1, 0), names)
    adata.uns["clusters_colors"] = list(_COLORS[: len(names)])
    wells = np.unique(cells.well[cells.well >= 0])
    adata.obs["well"] = pd.Categorical.from_codes(cells.well, [f"well{w + 1}" for w in range(wells.size)])
    return adata


def _add_clones(adata: AnnData, cells: _Cells, n_clones: int, missing: float, rng: np.random.Generator) -> None:
    """Write the barcodes that were found."""
    found = np.flatnonzero(rng.random(len(cells)) >= missing)
    entries = (np.ones(found.size, dtype=np.int8), (found, cells.clone[found]))
    adata.obsm["X_clone"] = sp.csr_matrix(entries, shape=(len(cells), n_clones))
    names = np.full(len(cells), np.nan, dtype=object)
    names[found] = [f"clone{c}" for c in cells.clone[found]]
    adata.obs["clone_id"] = pd.Categorical(names)


def _increasing(times: Sequence[float]) -> FloatArray:
    at = np.asarray(times)
    if at.dtype.kind not in "iuf":
        raise TypeError(f"Expected `times` to be numbers, found `{at.dtype}`.")
    at = at.astype(np.float64)
    if at.ndim != 1 or not at.size or not np.isfinite(at).all() or at[0] < 0 or (np.diff(at) <= 0).any():
        raise ValueError(f"Expected `times` to be increasing numbers of at least zero, found `{times!r}`.")
    return at
