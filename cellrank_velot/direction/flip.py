"""The flip test: the velocity of a flow reverses with time, that of noise does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellrank_velot._utils.stage import Stage
from cellrank_velot.direction._common import check_cells, check_labels, pattern, velocity_by_time

__all__ = ["FlipTest", "flip_test"]


@dataclass(frozen=True, slots=True, eq=False)
class FlipTest(Stage):
    """Result of :func:`flip_test`. Printed, it says what it means.

    Attributes
    ----------
    cosine
        Cosine between each cell's velocity and minus its velocity in reversed time, shape ``[n_cells]``. It is 1 where
        the velocity reverses with time, -1 where it stays the same, NaN without a velocity.
    labels
        Cluster of each cell as text, shape ``[n_cells]``; ``None`` where no clusters were given.

    Examples
    --------
    >>> test = direction.flip_test(
    ...     vk.cells.x, vk.cells.time, vk.connectivities, adata.obs["clusters"]
    ... )
    >>> test.cosine.shape, 0 <= float(test.reversed_share) <= 1
    ((300,), True)
    >>> test.to_frame().index.tolist()
    ['all', 'Fate A', 'Fate B', 'Progenitor', 'Transition']
    """

    cosine: NDArray[np.float64]
    labels: NDArray[np.str_] | None

    @property
    def mean(self) -> float:
        """Mean cosine of the cells with a velocity; NaN where no cell has one."""
        known = self.cosine[np.isfinite(self.cosine)]
        return float(known.mean()) if known.size else np.nan

    @property
    def reversed_share(self) -> float:
        """Share of the cells with a velocity whose velocity reverses: their cosine is positive."""
        known = self.cosine[np.isfinite(self.cosine)]
        return float((known > 0).mean()) if known.size else np.nan

    def to_frame(self) -> pd.DataFrame:
        """Return mean cosine, share of reversed cells and number of cells: of all cells, and of each cluster."""
        known = np.isfinite(self.cosine)
        groups = {"all": known}
        if self.labels is not None:
            groups |= {str(label): known & (self.labels == label) for label in np.unique(self.labels)}
        rows = {
            name: {"cosine": self.cosine[cells].mean(), "reversed": (self.cosine[cells] > 0).mean(), "n": cells.sum()}
            for name, cells in groups.items()
            if cells.any()
        }
        table = pd.DataFrame(list(rows.values()), index=list(rows), columns=["cosine", "reversed", "n"])
        return table.astype({"n": np.int64})

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "Reversed time: no cell has a velocity."
        return (
            f"Reversed time: the velocity reverses in {self.reversed_share:.0%} of the cells, "
            f"mean cosine {self.mean:+.2f} (signal above 0, noise below)."
        )


def flip_test(
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    graph: sp.csr_matrix,
    labels: ArrayLike | None = None,
    *,
    smooth: bool = True,
    neighborhoods: NDArray[np.int64] | None = None,
    window_options: Mapping[str, Any] | None = None,
    velocity_options: Mapping[str, Any] | None = None,
    random_state: int = 0,
) -> FlipTest:
    """Reverse the time and see whether the velocity reverses.

    In each cell, the forward velocity :math:`v(t)` is compared with :math:`-v(-t)` by their cosine. A flow reverses
    with time. Noise does not: transport moves a cell that lies off the manifold back to it in either direction of time,
    so its cosine is negative. The mean cosine was 0.6 to 0.9 on simulated flows and 0.3 on pancreas, and below -0.3 on
    all of them with shuffled time. The test says how much of a velocity is flow. It treats both directions of time
    alike, so it cannot say which one is right.

    Parameters
    ----------
    x
        Positions of shape ``[n_cells, n_dims]``.
    time
        Time of each cell, shape ``[n_cells]``.
    graph
        Neighbour graph of shape ``[n_cells, n_cells]``.
    labels
        Cluster of each cell, shape ``[n_cells]``, for means by cluster; none where not given.
    smooth
        Whether to average velocities over each cell and its neighbours before they are compared.
    neighborhoods
        Codes of the spatial clusters in which windows are made, shape ``[n_cells]``; KMeans in ``x`` where not given.
    window_options
        Options of the windows by name, such as ``{"n_clusters": 5}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.compute_windows`, with its defaults.
    velocity_options
        Options of the transport by name, such as ``{"epsilon": 0.1}``: those of
        :meth:`~cellrank_velot.OTVelocityKernel.compute_velocity`, with its defaults but for ``reach=None``, so that all
        displacements count alike, and ``relaxation=1.0``. The current velocity (``relaxation=0.0``) would reverse by
        construction.
    random_state
        Seed of KMeans.

    Returns
    -------
    The cosine of each cell, with means by cluster.

    Raises
    ------
    TypeError
        If an option is unknown or of the wrong type.
    ValueError
        If shapes do not fit, values are not finite, or no windows can be built.

    Examples
    --------
    >>> test = direction.flip_test(
    ...     vk.cells.x, vk.cells.time, vk.connectivities, adata.obs["clusters"]
    ... )
    >>> bool(test.mean > 0.5)
    True
    >>> shuffled = np.random.default_rng(0).permutation(vk.cells.time)
    >>> bool(direction.flip_test(vk.cells.x, shuffled, vk.connectivities).mean < 0)
    True
    """
    x, time, graph = check_cells(x, time, graph)
    names = None if labels is None else check_labels(labels, time.size).astype(str)
    velocity = velocity_by_time(
        x, graph, neighborhoods, window_options, velocity_options, random_state, reach=None, relaxation=1.0
    )
    forward, reverse = velocity(time), -velocity(1 - time)
    if smooth:
        near = pattern(graph) + sp.identity(time.size, format="csr")
        forward, reverse = near @ np.nan_to_num(forward), near @ np.nan_to_num(reverse)
    norm = np.linalg.norm(forward, axis=1) * np.linalg.norm(reverse, axis=1)
    cosine = np.full(time.size, np.nan)
    np.divide((forward * reverse).sum(axis=1), norm, out=cosine, where=norm > 0)
    return FlipTest(cosine, names)
