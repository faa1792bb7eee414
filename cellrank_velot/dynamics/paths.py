"""The result of motion: paths of particles, how each of them ended, and the shares of their fates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from cellrank_velot._utils.stage import Stage, stored
from cellrank_velot._utils.validation import check_known, check_number

__all__ = ["NO_FATE", "Status", "Trajectories", "join"]

#: Row of a table of fates for the particles that came to none of the terminal clusters.
NO_FATE = "none"


class Status(IntEnum):
    """How a trajectory ended.

    Examples
    --------
    >>> paths = vk.compute_trajectories(
    ...     start_cluster="Progenitor", n_trajectories=5, n_steps=10
    ... )
    >>> dynamics.Status(paths.status[0]).message
    'ran out of steps'
    >>> late = paths.select(paths.status == dynamics.Status.OUT_OF_STEPS)
    """

    ARRIVED = 0
    STALLED = 1
    LEFT_DATA = 2
    OUT_OF_STEPS = 3
    END_OF_TIME = 4

    @property
    def message(self) -> str:
        """How the trajectory ended, in words."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.ARRIVED: "arrived",
    Status.STALLED: "stalled at a sink",
    Status.LEFT_DATA: "left the data",
    Status.OUT_OF_STEPS: "ran out of steps",
    Status.END_OF_TIME: "came to the end of time",
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trajectories(Stage):
    """Paths of particles through the velocity field.

    Attributes
    ----------
    ids
        Number of each trajectory, shape ``[n_trajectories]``; a selection keeps the numbers.
    x
        Points of all paths in the basis, shape ``[n_points, n_dims]``.
    time
        Time of each point, in ``[0, 1]`` for a pseudotime, shape ``[n_points]``.
    offsets
        Where each path starts in ``x``, and the end, shape ``[n_trajectories + 1]``.
    status
        :class:`Status` of each trajectory, shape ``[n_trajectories]``.
    direction
        ``1`` for forward in time and ``-1`` for backward, shape ``[n_trajectories]``.
    start_ix
        Cell at which each trajectory started, shape ``[n_trajectories]``.
    clusters
        Names of the clusters, shape ``[n_clusters]``.
    start_cluster, end_cluster
        Index in ``clusters`` of the cluster at the start and at the end of each trajectory, the one to which most of
        the nearest cells belong, shape ``[n_trajectories]``; ``-1`` for none.
    n_tried
        Number of starts that were tried; those that did not come to the target were left out.
    targets
        Index in ``clusters`` of the clusters to arrive at, shape ``[n_targets]``; none where there was no target.
    basis
        Name of the basis, where it is known.

    Examples
    --------
    >>> paths = vk.compute_trajectories(
    ...     start_cluster="Progenitor", n_trajectories=5, n_steps=50
    ... )
    >>> len(paths), paths.n_dims, paths.starts.shape, paths.ends.shape
    (5, 20, (5, 20), (5, 20))
    >>> first, times = paths.paths[0], paths.times[0]  # points and times of the first one
    >>> bool(len(first) == len(times) == paths.lengths[0])
    True
    >>> set(paths.statuses)
    {'ran out of steps'}
    """

    ids: NDArray[np.int64] = field(metadata=stored("n_trajectories", low=0))
    x: NDArray[np.float64] = field(metadata=stored("n_points", "n_dims"))
    time: NDArray[np.float64] = field(metadata=stored("n_points"))
    offsets: NDArray[np.int64] = field(metadata=stored("n_offsets", low=0))
    status: NDArray[np.int8] = field(metadata=stored("n_trajectories", low=0, high=4))
    direction: NDArray[np.int8] = field(metadata=stored("n_trajectories", low=-1, high=1))
    start_ix: NDArray[np.int64] = field(metadata=stored("n_trajectories", low=0, high="n_cells"))
    clusters: NDArray[np.str_] = field(metadata=stored("n_clusters"))
    start_cluster: NDArray[np.int64] = field(metadata=stored("n_trajectories", low=-1, high="n_clusters"))
    end_cluster: NDArray[np.int64] = field(metadata=stored("n_trajectories", low=-1, high="n_clusters"))
    n_tried: int = field(metadata=stored(low=0))
    targets: NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, dtype=np.int64), metadata=stored("n_targets", low=0, high="n_clusters")
    )
    basis: str = ""

    def __post_init__(self) -> None:
        """Check that the arrays fit together."""
        # A file returns names as objects.
        object.__setattr__(self, "clusters", np.asarray(self.clusters, dtype=np.str_).reshape(-1))
        Stage.__post_init__(self)
        per_path = (self.status, self.direction, self.start_ix, self.start_cluster, self.end_cluster)
        if any(array.shape != self.ids.shape for array in per_path):
            raise ValueError(f"Expected one entry for each of the `{self.ids.size}` trajectories.")
        if self.x.ndim != 2 or self.time.shape != self.x.shape[:1]:
            raise ValueError(f"Expected a time for each point, found the shapes `{self.time.shape}`, `{self.x.shape}`.")
        if self.offsets.shape != (self.ids.size + 1,) or self.offsets[0] != 0 or self.offsets[-1] != self.x.shape[0]:
            raise ValueError(f"Expected `offsets` of `{self.ids.size}` paths over `{self.x.shape[0]}` points.")
        if (np.diff(self.offsets) < 1).any():
            raise ValueError("Expected `offsets` that rise, with a point at least in each path.")

    def __len__(self) -> int:
        return int(self.ids.size)

    def __repr__(self) -> str:
        counts = Counter(self.statuses)
        names = Counter(str(self.clusters[code]) for code in self.end_cluster if code >= 0)
        most = [", ".join(f"{name}: {n}" for name, n in found.most_common(4)) for found in (counts, names)]
        lost = int(self.without_fate.sum())
        most.append(f"without a fate: {lost}" if lost else "")
        return f"Trajectories[n={len(self)}{''.join(f'; {text}' for text in most if text)}]"

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"paths": len(self), "points": self.x.shape[0], "dims": self.n_dims}
        facts |= {f"stopped: {name}": n for name, n in Counter(self.statuses).most_common()}
        ends = Counter(str(self.clusters[code]) for code in self.end_cluster if code >= 0)
        return facts | {f"end in {name}": n for name, n in ends.most_common()}

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.x.shape[1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of points of each path, shape ``[n_trajectories]``."""
        return np.diff(self.offsets)

    @property
    def paths(self) -> list[NDArray[np.float64]]:
        """Points of each trajectory, each of shape ``[n_points, n_dims]``."""
        return [self.x[start:end] for start, end in pairwise(self.offsets)]

    @property
    def times(self) -> list[NDArray[np.float64]]:
        """Times of the points of each trajectory, each of shape ``[n_points]``."""
        return [self.time[start:end] for start, end in pairwise(self.offsets)]

    @property
    def starts(self) -> NDArray[np.float64]:
        """First point of each path, shape ``[n_trajectories, n_dims]``."""
        return self.x[self.offsets[:-1]]

    @property
    def ends(self) -> NDArray[np.float64]:
        """Last point of each path, shape ``[n_trajectories, n_dims]``."""
        return self.x[self.offsets[1:] - 1]

    @property
    def without_fate(self) -> NDArray[np.bool_]:
        """Which particles came to no fate, shape ``[n_trajectories]``.

        They ran out of steps, left the data, or, where there are clusters to arrive at, ended elsewhere.
        """
        lost = np.isin(self.status, [Status.OUT_OF_STEPS, Status.LEFT_DATA])
        return np.asarray(self.status != Status.ARRIVED if self.targets.size else lost)

    @property
    def statuses(self) -> list[str]:
        """How each trajectory ended, in words."""
        return [Status(code).message for code in self.status]

    def select(self, ids: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> Trajectories:
        """Return some of the trajectories.

        Parameters
        ----------
        ids
            Numbers of trajectories, as in ``ids``, or a mask of shape ``[n_trajectories]``.

        Returns
        -------
        These trajectories, under the same numbers.

        Raises
        ------
        KeyError
            If there is no trajectory of that number, or the mask has another shape.

        Examples
        --------
        >>> paths = vk.compute_trajectories(n_trajectories=5, n_steps=10)
        >>> paths.select([0, 2]).ids.tolist()
        [0, 2]
        >>> stalled = paths.select(paths.status == dynamics.Status.STALLED)
        """
        chosen = np.asarray(ids)
        if chosen.dtype == bool:
            if chosen.shape != self.ids.shape:
                raise KeyError(f"Expected a mask of `{len(self)}` trajectories, found the shape `{chosen.shape}`.")
            at = np.flatnonzero(chosen)
        else:
            where = {int(number): i for i, number in enumerate(self.ids)}
            for number in chosen.ravel():
                check_known("trajectories", int(number), where)
            at = np.array([where[int(number)] for number in chosen.ravel()], dtype=np.int64)
        points = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in at]
        rows = np.concatenate(points) if points else np.empty(0, dtype=np.int64)
        return replace(
            self,
            ids=self.ids[at],
            x=self.x[rows],
            time=self.time[rows],
            offsets=np.concatenate([[0], np.cumsum(self.lengths[at])]).astype(np.int64),
            status=self.status[at],
            direction=self.direction[at],
            start_ix=self.start_ix[at],
            start_cluster=self.start_cluster[at],
            end_cluster=self.end_cluster[at],
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each trajectory.

        Returns
        -------
        Direction, status, cell and cluster of the start, cluster of the end, times of both, number of points and length
        of the path in units of the basis, by id.

        Examples
        --------
        >>> paths = vk.compute_trajectories(n_trajectories=5, n_steps=10)
        >>> paths.to_frame().columns[:3].tolist()
        ['direction', 'status', 'start_ix']
        """
        steps = np.linalg.norm(np.diff(self.x, axis=0), axis=1)
        travelled = np.concatenate([[0.0], np.cumsum(steps)])
        return pd.DataFrame(
            {
                "direction": np.where(self.direction > 0, "forward", "backward"),
                "status": pd.Categorical(self.statuses, categories=[status.message for status in Status]),
                "start_ix": self.start_ix,
                "start_cluster": self._names(self.start_cluster),
                "end_cluster": self._names(self.end_cluster),
                "start_time": self.time[self.offsets[:-1]],
                "end_time": self.time[self.offsets[1:] - 1],
                "n_points": self.lengths,
                "length": travelled[self.offsets[1:] - 1] - travelled[self.offsets[:-1]],
            },
            index=pd.Index(self.ids, name="id"),
        )

    def points_to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each point.

        Returns
        -------
        Id of the trajectory, number of the point in it, time, and position in the basis, ``dim_1`` and so on.

        Examples
        --------
        >>> paths = vk.compute_trajectories(n_trajectories=5, n_steps=10)
        >>> paths.points_to_frame().columns[:4].tolist()
        ['id', 'point', 'time', 'dim_1']
        """
        frame = pd.DataFrame(self.x, columns=[f"dim_{i + 1}" for i in range(self.n_dims)])
        frame.insert(0, "id", np.repeat(self.ids, self.lengths))
        frame.insert(1, "point", np.arange(self.x.shape[0]) - np.repeat(self.offsets[:-1], self.lengths))
        frame.insert(2, "time", self.time)
        return frame

    def fates(self, terminal_clusters: str | Sequence[str] | None = None, *, level: float = 0.95) -> pd.DataFrame:
        """Return the share of the particles that came to each cluster, of all directions together.

        Parameters
        ----------
        terminal_clusters
            Clusters to count as fates. Where not given, the clusters to arrive at; without these, all clusters in which
            a particle ended.
        level
            Level of Wilson's confidence interval of a share. It covers the chance of the particles, not the error of
            the field.

        Returns
        -------
        By fate the number of particles (``n_particles``), their ``share`` of all, and their share of those that came to
        a fate (``probability``) with its interval, ``low`` and ``high``. The last row, ``"none"``, counts those without
        a fate.

        Raises
        ------
        KeyError
            If a cluster is unknown.
        ValueError
            If ``level`` is not between 0 and 1.

        Examples
        --------
        >>> flow = vk.simulate_flow(
        ...     terminal_clusters=["Fate A", "Fate B"], n_particles=20, n_steps=10
        ... )
        >>> fates = flow.fates(level=0.9)
        >>> int(fates["n_particles"].sum()), fates.index.tolist()
        (20, ['Fate A', 'Fate B', 'none'])
        """
        check_number("level", level, low=0, high=1, open_low=True, open_high=True)
        ended = np.bincount(self.end_cluster[self.end_cluster >= 0], minlength=self.clusters.size)
        chosen = self.fate_names(terminal_clusters)
        counts = np.array([ended[np.flatnonzero(self.clusters == name)[0]] for name in chosen], dtype=np.int64)
        total = int(counts.sum())
        rows = []
        for count in counts:
            interval = binomtest(int(count), total).proportion_ci(level, method="wilson") if total else (np.nan, np.nan)
            rows.append((count, count / max(len(self), 1), count / total if total else np.nan, *interval))
        rows.append((len(self) - total, (len(self) - total) / max(len(self), 1), np.nan, np.nan, np.nan))
        columns = ["n_particles", "share", "probability", "low", "high"]
        return pd.DataFrame(rows, columns=columns, index=pd.Index([*chosen, NO_FATE], name="fate"))

    def fate_names(self, terminal_clusters: str | Sequence[str] | None = None) -> list[str]:
        """Return the names of the clusters that count as fates, each once.

        Parameters
        ----------
        terminal_clusters
            Clusters to count as fates. Where not given, the clusters to arrive at; without these, all clusters in which
            a particle ended.

        Returns
        -------
        The names, in the order given.

        Raises
        ------
        KeyError
            If a cluster is unknown.

        Examples
        --------
        >>> flow = vk.simulate_flow(
        ...     terminal_clusters=["Fate B", "Fate A"], n_particles=5, n_steps=5
        ... )
        >>> flow.fate_names(), flow.fate_names("Fate B")
        (['Fate A', 'Fate B'], ['Fate B'])
        """
        if terminal_clusters is None:
            codes = self.targets if self.targets.size else np.unique(self.end_cluster[self.end_cluster >= 0])
            return [str(name) for name in self.clusters[codes]]
        given = [terminal_clusters] if isinstance(terminal_clusters, str) else terminal_clusters
        chosen = list(dict.fromkeys(str(name) for name in given))
        for name in chosen:
            check_known("clusters", name, self.clusters)
        return chosen

    def _names(self, codes: NDArray[np.int64]) -> pd.Categorical:
        return pd.Categorical.from_codes(codes, categories=[str(name) for name in self.clusters])


def join(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the trajectories of several runs as one, with new numbers."""
    first = parts[0]
    if len(parts) == 1:
        return replace(first, ids=np.arange(len(first)))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))])
    together = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("x", "time", "status", "direction", "start_ix", "start_cluster", "end_cluster")
    }
    return Trajectories(
        ids=np.arange(sum(map(len, parts))),
        offsets=offsets,
        clusters=first.clusters,
        targets=first.targets,
        n_tried=sum(part.n_tried for part in parts),
        **together,
    )
