"""Trajectories in an embedding: how they are read, where their points lie at which time, and the colours of fates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellrank_velot.cells import find_basis, read_basis
from cellrank_velot.dynamics import Status, Trajectories
from cellrank_velot.embedding.projection import embed_points
from cellrank_velot.plotting._draw.embedding import colors_by_name
from cellrank_velot.plotting._draw.kernel import HasAnnData, adata_of, cells_of
from cellrank_velot.storage.pack import read_trajectories

__all__ = [
    "NOWHERE",
    "Frames",
    "Place",
    "cluster_colors",
    "fate_names",
    "fate_word",
    "frames_of",
    "is_jump",
    "place_of",
    "read",
    "running_mean",
]

FloatArray = NDArray[np.float64]

# Colour of what came to no cluster, or to none that counts as a fate.
NOWHERE = "#4D4D4D"
# A step that is so long in the picture, as a share of its width or height, and so much longer than steps of its length
# in the basis are on average, is a jump. On pancreas, steps that cross a tear are 10 to 40 times as long, others hardly
# ever 6 times.
JUMP_LENGTH, JUMP_STRETCH = 0.05, 6.0


def read(data: AnnData | HasAnnData, trajectories: Trajectories | None, key: str) -> Trajectories:
    """Return the trajectories, or those that were written to ``adata.uns[key]``."""
    adata = adata_of(data)
    if trajectories is not None and not isinstance(trajectories, Trajectories):
        raise TypeError(f"Expected `trajectories` to be `Trajectories`, found `{type(trajectories).__name__}`.")
    found = read_trajectories(adata, key) if trajectories is None else trajectories
    if not len(found):
        raise ValueError("Expected trajectories to draw, found none.")
    if found.start_ix.max() >= adata.n_obs:
        raise ValueError(
            f"Expected trajectories of these `{adata.n_obs}` cells, found one that starts at cell "
            f"`{found.start_ix.max()}`."
        )
    return found


# ---------------------------------------------------------------------------------------------------------- where it is
@dataclass(frozen=True)
class Place:
    """The basis of the trajectories and an embedding of the same cells."""

    basis: FloatArray  # [n_cells, n_basis_dims]
    embedding: FloatArray  # [n_cells, 2]

    @property
    def exact(self) -> bool:
        """Whether the embedding is the beginning of the basis."""
        return self.basis.shape[1] >= 2 and bool(np.array_equal(self.basis[:, :2], self.embedding))

    def embed(self, points: FloatArray) -> FloatArray:
        """Return points of the basis in the embedding, shape ``[n_points, 2]``."""
        return points[:, :2].copy() if self.exact else embed_points(points, self.basis, self.embedding)

    def steps(self, points: FloatArray) -> FloatArray:
        """Return points of the embedding such that width and height of the picture are 1, shape ``[n_points, 2]``."""
        return points / np.maximum(np.ptp(self.embedding, axis=0), np.finfo(np.float64).tiny)


class InBasis(Protocol):
    """Trajectories, and other results that are positions in a basis."""

    @property
    def basis(self) -> str:
        """Key in ``adata.obsm`` of the positions; empty where it is not known."""

    @property
    def n_dims(self) -> int:
        """Number of dimensions."""


def place_of(data: Any, found: InBasis, embedding: FloatArray, velocity_basis: str | None) -> Place:
    """Return where trajectories, or other positions in a basis, are and where they are drawn."""
    adata = adata_of(data)
    cells = cells_of(data)
    if velocity_basis is None and not found.basis and cells is not None:
        x, name = cells.x, "the basis of the kernel"
    else:
        key = find_basis(adata, velocity_basis or found.basis or "X_pca")
        x, name = read_basis(adata, key), f"adata.obsm[{key!r}]"
    if x.shape[1] != found.n_dims:
        raise ValueError(
            f"Expected positions in the `{x.shape[1]}` dimensions of {name}, found `{found.n_dims}`. "
            "Pass the basis that they were computed in as `velocity_basis`."
        )
    return Place(x, embedding)


def is_jump(place: Place, step: FloatArray, drawn: FloatArray) -> NDArray[np.bool_]:
    """Return which steps jump across the embedding: they are far longer as ``drawn`` than in the basis."""
    if place.exact:
        return np.zeros(len(step), dtype=bool)
    length, basis_length = np.linalg.norm(place.steps(drawn), axis=1), np.linalg.norm(step, axis=1)
    known = np.isfinite(length) & np.isfinite(basis_length)
    length, basis_length = np.where(known, length, 0.0), np.where(known, basis_length, 0.0)
    typical = length.sum() / max(basis_length.sum(), np.finfo(np.float64).tiny)
    return (length > JUMP_LENGTH) & (length > JUMP_STRETCH * typical * basis_length)


def running_mean(points: FloatArray, first: NDArray[np.int64], half: NDArray[np.int64]) -> FloatArray:
    """Return the mean of each point and of its neighbours within its piece: ``half`` on either side, or fewer.

    Pieces of the points, shape ``[n_points, n_dims]``, start at ``first``. Their ends stay where they are.
    """
    sizes = np.diff(np.append(first, len(points)))
    since = np.arange(len(points)) - np.repeat(first, sizes)
    reach = np.minimum(np.minimum(since, np.repeat(sizes, sizes) - 1 - since), np.repeat(half, sizes))
    total = np.concatenate([np.zeros((1, points.shape[1])), np.cumsum(points, axis=0)])
    at = np.arange(len(points))
    return np.asarray((total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)[:, None])


# ----------------------------------------------------------------------------------------------------- times of the run
@dataclass(frozen=True)
class Frames:
    """Particles at some times of their run."""

    share: FloatArray  # of the run, [n_frames]
    x: FloatArray  # in the embedding, [n_frames, n_particles, 2]
    time: FloatArray  # at the place of each particle, [n_frames, n_particles]
    ended: NDArray[np.bool_]  # whether each has ended, [n_frames, n_particles]
    jumped: NDArray[np.bool_]  # whether each has jumped across the embedding since the last frame
    n_lost: int = 0  # particles that came to no fate

    def title(self, frame: int) -> str:
        """Return the share of the run, how many particles have ended, and at the end how many came to no fate."""
        ended = int(self.ended[frame].sum())
        share = float(self.share[frame])
        run = {0.0: "Start", 1.0: "End of the run"}.get(share, f"{share:.0%} of the run")
        text = f"{run}, {ended} ended" if ended else run
        return f"{text}, {self.n_lost} without a fate" if self.n_lost and share == 1.0 else text


def frames_of(found: Trajectories, place: Place, n_frames: int) -> Frames:
    """Place all particles at times that are spread evenly over the run.

    The number of a point of a path is its time of the run. Between two points, particles are placed in the basis, where
    there is nothing to jump across.
    """
    lengths = found.lengths
    share = np.asarray(np.linspace(0, 1, n_frames) if n_frames > 1 else [1.0], dtype=np.float64)
    clock = share[:, None] * (lengths.max() - 1)
    at = np.minimum(clock, lengths - 1)
    low = np.floor(at).astype(np.int64)
    weight = at - low
    high = np.minimum(low + 1, lengths - 1) + found.offsets[:-1]
    low = low + found.offsets[:-1]
    basis = (1 - weight)[..., None] * found.x[low] + weight[..., None] * found.x[high]
    # A particle that has ended stays: it need not be placed in each frame again.
    fresh = np.ones(at.shape, dtype=bool)
    fresh[1:] = at[1:] != at[:-1]
    x = np.full((*at.shape, 2), np.nan)
    x[fresh] = place.embed(basis[fresh])
    for frame in range(1, n_frames):
        x[frame] = np.where(fresh[frame, :, None], x[frame], x[frame - 1])
    jumped = np.zeros(at.shape, dtype=bool)
    steps = is_jump(place, np.diff(basis, axis=0).reshape(-1, found.n_dims), np.diff(x, axis=0).reshape(-1, 2))
    jumped[1:] = steps.reshape(n_frames - 1, len(found))
    ended = (clock >= lengths - 1) & (found.status != Status.OUT_OF_STEPS)
    time, n_lost = (1 - weight) * found.time[low] + weight * found.time[high], int(found.without_fate.sum())
    return Frames(share, x, time, ended, jumped, n_lost)


# ----------------------------------------------------------------------------------------------------- colours of fates
def cluster_colors(data: Any, found: Trajectories, cluster_key: str | None) -> Mapping[str, str]:
    """Return the colour of each cluster of the trajectories, as in other plots where a column of ``obs`` has them."""
    return colors_by_name(data, [str(name) for name in found.clusters], cluster_key, "clusters of the trajectories")


def fate_names(found: Trajectories, terminal_clusters: str | Sequence[str] | None) -> list[str]:
    """Return the names of the clusters that count as fates, in the order of the clusters where they are not given.

    Without names, these are the targets, else the clusters at which a trajectory arrived, else all in which one ends.
    """
    if not found.clusters.size:
        raise ValueError(
            "Expected trajectories with clusters, which are their fates, found none. Compute them with clusters."
        )
    if terminal_clusters is None and not found.targets.size:
        arrived = found.status == Status.ARRIVED
        ends = np.unique(found.end_cluster[arrived if arrived.any() else slice(None)])
        return [str(name) for name in found.clusters[ends[ends >= 0]]]
    chosen = found.fate_names(terminal_clusters)
    if not chosen:
        raise ValueError("Expected at least one terminal cluster, found none.")
    return chosen


def fate_word(found: Trajectories) -> str:
    """Return what the end of the trajectories is: where they go to, or came from."""
    return "Fate" if (found.direction > 0).all() else "Origin" if (found.direction < 0).all() else "End"
