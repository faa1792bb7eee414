"""Methods of the kernel that find where its flow comes to rest, and the likeliest way from one state to another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot.cells import CellSelector, cells_in_cluster, read_gene_loadings, select_cells
from cellrank_velot.dynamics import (
    ActionOptions,
    FixedPointOptions,
    FixedPoints,
    LeastActionPath,
    find_fixed_points,
    find_least_action_path,
)
from cellrank_velot.dynamics.action import changes_along
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.kernel.dynamics import clusters_for

__all__ = ["Resting"]


class Resting(BaseVelocityKernel):
    """Methods of the kernel on fixed points and paths of least action."""

    @all_or_nothing()
    def fixed_points(
        self,
        time: float | None = None,
        *,
        cluster_key: str | None = None,
        n_starts: int = FixedPointOptions.n_starts,
        confine: float | None = None,
        max_distance: float = FixedPointOptions.max_distance,
        n_neighbors: int = FixedPointOptions.n_neighbors,
        random_state: int = FixedPointOptions.random_state,
    ) -> FixedPoints:
        """Find where the flow comes to rest near the data, and whether it is stable there.

        A velocity along a pseudotime has no unit of time of its own, and mostly is not zero where cells are mature. So
        two kinds of points count: zeros of the velocity, and points where the data end while the velocity leads on.
        There the pull to the data holds particles, as in :meth:`compute_trajectories`. These points depend on the
        direction of the velocity alone, not on how fast the pseudotime runs.

        A flow that keeps to the data comes to rest somewhere, even where time says nothing. So ask
        :meth:`test_direction` first. A saddle lies between two ends, often where there are no cells; then none is
        found.

        Parameters
        ----------
        time
            Time at which the field is asked. Where not given, the mean time of the cells around each place; with real
            time points, the last one.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        n_starts
            Number of cells that the search starts from, drawn at random.
        confine
            Pull to the data, as in :meth:`compute_trajectories`. Where not given, 0.7 with a pseudotime, and 0 with
            real time points, whose drift holds cells together itself. With 0, zeros of the drift alone count.
        max_distance
            Distance from the data up to which a point counts, in units of the spacing of the cells nearby. A cell lies
            at about 1.
        n_neighbors
            Number of nearest cells, five at least, that attract, give the time and vote on the cluster.
        random_state
            Seed of the choice of starts.

        Returns
        -------
        The points with kind, stability and eigenvalues, those of the forward process also for a backward kernel. Their
        ``to_frame()`` is a table.

        Raises
        ------
        KeyError
            If the clusters are missing.
        RuntimeError
            If the field was not fitted.
        TypeError
            If an option is not a number.
        ValueError
            If an option is out of range.

        Examples
        --------
        >>> points = vk.fixed_points(n_starts=100)
        >>> sorted(points.cluster[points.stable].tolist())
        ['Fate A', 'Fate B']
        """
        options = FixedPointOptions(
            n_starts=n_starts,
            confine=self._confine(confine),
            max_distance=max_distance,
            n_neighbors=n_neighbors,
            random_state=random_state,
        )
        field = self._needed("field", "fit_field")
        clusters = clusters_for(self, cluster_key)[0]
        return find_fixed_points(
            field,
            self.cells.x,
            self.cells.time,
            options,
            clusters=clusters,
            at_time=self._at_time(time),
            basis=self.basis,
        )

    @all_or_nothing()
    def least_action_path(
        self,
        source: str | int | CellSelector,
        target: str | int | CellSelector,
        time: float | None = None,
        *,
        cluster_key: str | None = None,
        n_points: int = ActionOptions.n_points,
        diffusion: float | None = ActionOptions.diffusion,
        confine: float | None = None,
        n_neighbors: int = ActionOptions.n_neighbors,
        random_state: int = ActionOptions.random_state,
    ) -> LeastActionPath:
        r"""Find the likeliest way from one state to another, also against the flow, as in reprogramming.

        Cells are taken to move by :math:`dx = b \, dt + \sigma \, dW`. Of all paths and all speeds, the one with the
        least action is that which noise takes most often :cite:`freidlin:12`. Where the drift leads to the target, the
        action is zero; against it, it grows. The way back is another path, with its own action.

        The noise is alike everywhere and in all directions, so the path does not depend on its strength; actions do.
        Compare actions of one kernel with each other, and do not take them for rates.

        Parameters
        ----------
        source, target
            States: the name of a cluster; a cell by its number; cells by positions, names, a mask or CellRank's
            selector; or a position in the basis, an array of shape ``[n_dims]``. Cells stand for the one nearest to
            their mean.
        time
            Time at which the field is asked. Where not given, the mean time of the cells around each place; with real
            time points, the last one.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        n_points
            Number of points of the path, at least 10.
        diffusion
            :math:`\sigma`, in basis per root of time. Where not given, that of the field with real time points, and the
            mean noise of :meth:`simulate_flow` with a pseudotime.
        confine
            Pull to the data, as in :meth:`compute_trajectories`. Where not given, 0.7 with a pseudotime, and 0 with
            real time points. Without it, paths cut through places without cells, where the field is a guess.
        n_neighbors
            Number of nearest cells, five at least, that attract and give the time.
        random_state
            Seed of the choice of cells where there are more than 10 000.

        Returns
        -------
        The path with its action, those of the straight line and of the way back, and where on it the drift takes over.

        Raises
        ------
        KeyError
            If a cluster or a cell is unknown.
        RuntimeError
            If the field was not fitted.
        TypeError
            If a state is of another type than those above, or an option is not a number.
        ValueError
            If a state has no cells, source and target are the same place, or an option is out of range.

        Examples
        --------
        >>> path = vk.least_action_path("Progenitor", "Fate A", n_points=10)
        >>> path.action < path.reverse_action
        True
        """
        field = self._needed("field", "fit_field")
        known = float(getattr(field, "diffusion", 0.0)) or None
        options = ActionOptions(
            n_points=n_points,
            diffusion=known if diffusion is None else diffusion,
            confine=self._confine(confine),
            n_neighbors=n_neighbors,
            random_state=random_state,
        )
        (start, first), (end, last) = (
            self._place(name, state, cluster_key) for name, state in (("source", source), ("target", target))
        )
        if np.array_equal(start, end):
            raise ValueError("Expected `source` and `target` at two places, found one.")
        return find_least_action_path(
            field,
            self.cells.x,
            self.cells.time,
            start,
            end,
            options,
            graph=self.connectivities,
            at_time=self._at_time(time),
            names=(first, last),
            basis=self.basis,
        )

    def path_genes(self, path: LeastActionPath, genes: Sequence[str] | str | None = None) -> pd.DataFrame:
        """Say which genes change along a path, and whether before or after the drift takes over.

        Positions are brought to genes by the loadings of the PCA. So a gene that the PCA hardly knows does not change.

        Parameters
        ----------
        path
            What :meth:`least_action_path` returned.
        genes
            Names of genes, or a boolean column of ``adata.var``. All genes with a weight in the PCA where not given.

        Returns
        -------
        One row for each gene, the largest change first: ``change`` from the source to the target; ``before``, the part
        up to where 99 % of the action are spent, and ``after``, the rest; ``lowest`` and ``highest``, relative to the
        source. All in units of the expression that the PCA was made of.

        Raises
        ------
        KeyError
            If genes or loadings are missing.
        TypeError
            If ``path`` is of another type.
        ValueError
            If the basis is no PCA, the path is of another basis, or a gene has no weight in the PCA.

        Examples
        --------
        >>> path = vk.least_action_path("Progenitor", "Fate A", n_points=10)
        >>> table = vk.path_genes(path, ["Stem", "FateA", "FateB"])
        >>> bool(table.loc["FateA", "change"] > 0 > table.loc["Stem", "change"])
        True
        """
        if not isinstance(path, LeastActionPath):
            raise TypeError(f"Expected `path` to be a `LeastActionPath`, found `{type(path).__name__}`.")
        if path.basis != self.basis:
            raise ValueError(f"Expected a path in `{self.basis}`, found one in `{path.basis}`.")
        adata = self._adata_of_pca
        if genes is None and "PCs" in adata.varm:
            names = adata.var_names
            known = (np.asarray(adata.varm["PCs"]) != 0).any(axis=1) & ~names.duplicated(keep=False)
            genes = [str(name) for name in names[known]]
        found, loadings = read_gene_loadings(adata, self.basis, adata.var_names[:0] if genes is None else genes)
        return changes_along(path, loadings, found)

    # ---------------------------------------------------------------------------------------------------- private
    def _confine(self, confine: float | None) -> float:
        if confine is not None:
            return confine
        return 0.0 if self.cells.is_series else FixedPointOptions.confine

    def _at_time(self, time: float | None) -> float | None:
        return self.cells.time_range[1] if time is None and self.cells.is_series else time

    def _place(
        self, name: str, state: str | int | CellSelector, cluster_key: str | None
    ) -> tuple[NDArray[np.float64], str]:
        """Return where a state is, and what it is called."""
        values = np.asarray(state) if isinstance(state, Sequence | np.ndarray) and not isinstance(state, str) else None
        if values is not None and values.dtype.kind == "f":
            if values.shape != (self.cells.n_dims,) or not np.isfinite(values).all():
                shape = f"[{self.cells.n_dims}]"
                raise ValueError(f"Expected `{name}` to be a finite position of shape `{shape}`, found `{values}`.")
            return values.astype(np.float64), name
        if isinstance(state, str):
            key = clusters_for(self, cluster_key, state)[1]
            chosen = cells_in_cluster(self.adata, str(key), state)
        else:
            chosen = select_cells(self.adata, [state] if isinstance(state, int | np.integer) else state)
        if not chosen.any():
            raise ValueError(f"Expected cells of `{name}`, found none.")
        x = self.cells.x[chosen]
        return x[np.linalg.norm(x - x.mean(axis=0), axis=1).argmin()], state if isinstance(state, str) else name
