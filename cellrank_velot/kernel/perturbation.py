"""In-silico perturbation as methods of the kernel: genes are changed, cells are displaced, and fates may shift."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_known, check_number
from cellrank_velot.cells import CellSelector, Interval, by_symbol, read_clusters, read_loadings, read_pca, select_cells
from cellrank_velot.dynamics import FlowOptions, SimulationOptions, TimeFrom, labels_near, simulate_process
from cellrank_velot.dynamics.region import Region
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.kernel.dynamics import clusters_for, first_tenth, starts_for
from cellrank_velot.perturbation import (
    DoseResponse,
    Effect,
    Fates,
    FateShift,
    FlowFates,
    Perturbation,
    PerturbedField,
    ShiftOptions,
    Variants,
    compute_dose_response,
    compute_fate_shift,
    compute_perturbation,
    draw_matched,
    one_by_one,
    parse_changes,
)

__all__ = ["Perturbations"]

logger = logging.getLogger("cellrank_velot")

# Cells in which loadings are checked against expression, and the error of displacements that may pass.
N_CHECKED, MAX_ERROR = 200, 0.05
# Distance from the data beyond which the field is a guess, see Region.look, and the share of cells there that is worth
# a warning.
FAR, MANY = 2.5, 0.1


class Perturbations(BaseVelocityKernel):
    """Methods of the kernel that change genes and compare what becomes of the cells."""

    @all_or_nothing()
    def perturb(
        self,
        changes: Mapping[str, Any],
        cells: CellSelector | None = None,
        *,
        effect: Effect = "clamp",
        layer: str | None = None,
        gene_scale: str | None = None,
    ) -> Perturbation:
        """Change genes in cells, through the loadings of the PCA.

        The field knows a cell by its place in the PCA: a gene counts by its weight there, and a change that is small
        beside the spread of the cells does little. Only the given genes are changed. The genes that they regulate
        follow along the way, as far as the field has learned it.

        The field learns from cells that were not perturbed, and takes correlation for cause. A gene that only marks a
        fate shifts it as much as one that decides it, and in either direction. On a simulated fork whose genes are
        known, the knock-out of the deciding gene takes its fate away; that of one of its targets, which decides
        nothing, seems to add to it.

        Parameters
        ----------
        changes
            By gene a number that its expression is set to (0 is a knock-out), ``("scale", factor)``, or
            ``("add", difference)``, in the units of ``layer``.
        cells
            Cells that are perturbed: positions or names, a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 high EP"}``; all where not given.
        effect
            ``"clamp"`` for a change that lasts, such as a knock-out: all along its way, a cell has the velocity at its
            place plus the mean displacement of the cells around. ``"pulse"`` for a change that is made once: cells
            start displaced, and may come back.
        layer
            Layer of the expression, ``adata.X`` where not given. It must be what the PCA was computed from, such as
            log-normalised values, before they were scaled, if they were. A warning says so where it is not.
        gene_scale
            Column of ``adata.var`` that the PCA's values were divided by, such as ``"std"`` after scanpy's ``scale``;
            genes were not scaled where not given.

        Returns
        -------
        The perturbation, to be passed to :meth:`fate_shift` and :meth:`perturbed_kernel`.

        Raises
        ------
        KeyError
            If a gene, layer, column or cell is unknown, or there are no loadings.
        TypeError, ValueError
            If a change is not valid, a gene has no weight in the PCA or does not change in these cells, the values were
            centred, or the basis is not the PCA.

        Examples
        --------
        >>> knockout = vk.perturb({"FateA": 0.0}, cells={"clusters": "Progenitor"})
        >>> knockout.name, int(knockout.cells.sum()), knockout.dx.shape
        ('FateA = 0', 66, (300, 20))
        >>> vk.perturb({"FateA": ("scale", 0.5), "FateB": ("add", 0.2)}).name
        'FateA × 0.5, FateB +0.2'
        """
        asked = parse_changes(changes)
        genes = self._known_genes(list(asked))
        chosen = select_cells(self.adata, cells)
        loadings = np.concatenate([self._loadings_of(gene) for gene in asked], axis=1)
        self._warn_about_values(layer, gene_scale)
        perturbation = compute_perturbation(
            _dense(self._values(layer)[:, genes]),
            loadings,
            asked,
            cells=chosen,
            scale=self._scale(gene_scale, genes),
            effect=effect,
            layer=layer or "",
            gene_scale=gene_scale or "",
        )
        self._warn_about_length(perturbation)
        return perturbation

    @all_or_nothing()
    def fate_shift(
        self,
        perturbation: Perturbation | Mapping[str, Any],
        start_ixs: CellSelector | None = None,
        source_cluster: str | Sequence[str] | None = None,
        terminal_clusters: str | Sequence[str] | None = None,
        *,
        source_time: Interval | None = None,
        cluster_key: str | None = None,
        group_key: str | None = None,
        n_particles: int = ShiftOptions.n_particles,
        n_null: int = ShiftOptions.n_null,
        null_genes: Sequence[str] | None = None,
        level: float = ShiftOptions.level,
        n_steps: int | None = FlowOptions.n_steps,
        step_size: float = FlowOptions.step_size,
        diffusion: float = FlowOptions.diffusion,
        time_from: TimeFrom = FlowOptions.time_from,
        confine: float = FlowOptions.confine,
        max_distance: float = FlowOptions.max_distance,
        min_speed: float = FlowOptions.min_speed,
        n_neighbors: int = FlowOptions.n_neighbors,
        random_state: int = ShiftOptions.random_state,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> FateShift:
        """Compare where cells come to with and without a perturbation, and when other genes are changed.

        Perturbed and unperturbed particles start together and feel the same noise, so that their fates differ by the
        perturbation alone. Always forward in time. With experimental time, particles follow the process to the last
        time point.

        Does the gene matter more than others? ``n_null`` genes are drawn at random from those whose change moves cells
        about as far, and their change is scaled to reach exactly as far. The p-value is the share of them that shift a
        fate as much. With 20 genes it is at least 0.048, and after adjustment for several fates none is significant.
        Take 200 genes for a p-value to report.

        Parameters
        ----------
        perturbation
            Result of :meth:`perturb`, or changes for it.
        start_ixs
            Cells that particles start from: positions, names or a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 low EP"}``. Without cells, cluster and time, those of the first tenth of time.
        source_cluster
            Cluster, or several, that the starts are in; any where not given.
        terminal_clusters
            Fates; all clusters where not given.
        source_time
            From which time to which time the starts are, of the kernel's time; ``None`` for no bound.
            Cells must meet all conditions that are given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        group_key
            Key in ``adata.obs`` of groups of starts whose shares are counted apart; all together where not given.
        n_particles
            Number of particles in each group, for each perturbation.
        n_null
            Number of other genes to compare with; 0 for none.
        null_genes
            Genes to draw these from; all with a weight in the PCA where not given.
        level
            Level of the intervals.
        n_steps
            In pseudotime, largest number of steps; where not given, until each particle has come to a fate or stalled,
            as in :meth:`simulate_flow`.
        step_size
            In pseudotime, time of one step.
        diffusion
            In pseudotime, strength of the noise: 0 for none, up to 0.5 mild, from 1 on strong.
        time_from
            In pseudotime, time that goes into the field: ``"cells"``, the mean time of the cells around; ``"path"``,
            which moves on from the time of the start; or ``"start"``, which stays that of the start.
        confine
            In pseudotime, how fast a particle returns to the data: while it moves by the spacing of the cells, its
            distance from the mean of the cells around it falls by the factor ``exp(-confine)``. Only what exceeds
            ``diffusion`` counts.
        max_distance
            In pseudotime, distance from the data at which a particle has left them, in units of the spacing of the
            cells nearby. A cell lies at about 1.
        min_speed
            In pseudotime, speed below which a particle has stalled, as a share of the mean speed of the cells.
        n_neighbors
            Number of nearest cells, five at least in pseudotime, that vote on the cluster of a particle.
        random_state
            Seed of starts, noise and other genes.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The shift; its :meth:`~cellrank_velot.perturbation.FateShift.to_frame` is a table.

        Raises
        ------
        KeyError
            If a cell, column, cluster or gene is unknown.
        ValueError
            If no cell meets all conditions, too few genes can be drawn, or an option is out of range.

        Examples
        --------
        >>> fates = ["Fate A", "Fate B"]
        >>> half = {"FateA": ("scale", 0.5)}
        >>> shift = vk.fate_shift(
        ...     half, terminal_clusters=fates, n_particles=20, n_null=2, step_size=0.03
        ... )
        >>> bool(shift.delta[0, 0] <= 0)  # no more of them come to fate A
        True
        >>> table = shift.to_frame()  # shares before and after, intervals and p-values
        """
        options = ShiftOptions(n_particles=n_particles, n_null=n_null, level=level, random_state=random_state)
        flow = FlowOptions(
            n_steps=n_steps,
            step_size=step_size,
            diffusion=diffusion,
            time_from=time_from,
            confine=confine,
            max_distance=max_distance,
            min_speed=min_speed,
            n_neighbors=n_neighbors,
        )
        run = Run(device=device, show_progress_bar=show_progress_bar)
        clusters, starts = self._starting_groups(start_ixs, source_cluster, terminal_clusters, source_time, cluster_key)
        groups = None if group_key is None else self._groups(group_key, starts)
        perturbation = self._perturbation(perturbation)
        null, drawn = self._null(perturbation, null_genes, options)
        fates, lineages = self._fates(clusters, terminal_clusters, flow, run)
        shift = compute_fate_shift(
            perturbation, fates, starts, lineages, options, groups=groups, null=null, null_genes=drawn
        )
        _report(shift)
        return shift

    @all_or_nothing()
    def dose_response(
        self,
        genes: str | Sequence[str],
        factors: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
        cells: CellSelector | None = None,
        start_ixs: CellSelector | None = None,
        source_cluster: str | Sequence[str] | None = None,
        terminal_clusters: str | Sequence[str] | None = None,
        *,
        source_time: Interval | None = None,
        cluster_key: str | None = None,
        n_particles: int = ShiftOptions.n_particles,
        level: float = ShiftOptions.level,
        random_state: int = ShiftOptions.random_state,
        layer: str | None = None,
        gene_scale: str | None = None,
        device: str = "auto",
        show_progress_bar: bool = True,
        **flow: Any,
    ) -> DoseResponse:
        """Scale genes by a series of factors, and follow the same particles at each dose.

        A factor multiplies the expression of the genes, all of them together, in the units of ``layer``: 0 is a
        knock-out. Whether a shift is more than that of other genes is for :meth:`fate_shift` to say.

        Parameters
        ----------
        genes
            Gene, or several that are scaled together, by name or symbol.
        factors
            Factors, 0 or above; 1 is no change.
        cells
            Cells in which genes are scaled, as in :meth:`perturb`; all where not given.
        start_ixs
            Cells that particles start from, as in :meth:`fate_shift`.
        source_cluster
            Cluster, or several, that the starts are in; any where not given.
        terminal_clusters
            Fates; all clusters where not given.
        source_time
            From which time to which time the starts are, of the kernel's time; ``None`` for no bound.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        n_particles
            Number of particles at each dose.
        level
            Level of the intervals.
        random_state
            Seed of starts and noise.
        layer
            Layer of the expression, ``adata.X`` where not given, as in :meth:`perturb`.
        gene_scale
            Column of ``adata.var`` that the PCA's values were divided by; genes were not scaled where not given.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.
        **flow
            How particles move in pseudotime, as in :meth:`fate_shift`: ``step_size``, ``diffusion`` and the like.

        Returns
        -------
        The shares; ``to_frame()`` is a table, ``pl.dose_response`` a picture.

        Raises
        ------
        KeyError
            If a gene, cell, column or cluster is unknown.
        TypeError
            If an option of the flow is unknown.
        ValueError
            If there are no factors or one below 0, no cell meets all conditions, or an option is out of range.

        Examples
        --------
        >>> fates = ["Fate A", "Fate B"]
        >>> doses = vk.dose_response(
        ...     "FateA", [0, 1, 3], terminal_clusters=fates, n_particles=40, step_size=0.03
        ... )
        >>> bool(
        ...     doses.shares[0, 0] <= doses.shares[2, 0]
        ... )  # the more of it, the more come to fate A
        True
        """
        options = ShiftOptions(n_particles=n_particles, n_null=0, level=level, random_state=random_state)
        unknown = [name for name in flow if name not in {part.name for part in fields(FlowOptions)}]
        if unknown:
            raise TypeError(f"Expected options of the flow as in `fate_shift`, found `{unknown[0]}`.")
        doses = np.array([check_number("factors", factor, low=0) for factor in factors])
        if not doses.size:
            raise ValueError("Expected at least one factor, found none.")
        run = Run(device=device, show_progress_bar=show_progress_bar)
        clusters, starts = self._starting_groups(start_ixs, source_cluster, terminal_clusters, source_time, cluster_key)
        names = [genes] if isinstance(genes, str) else list(genes)
        taken = self.perturb(dict.fromkeys(names, 0.0), cells, layer=layer, gene_scale=gene_scale)
        fates, lineages = self._fates(clusters, terminal_clusters, FlowOptions(**flow), run)
        return compute_dose_response(taken, doses, fates, starts, lineages, options)

    @all_or_nothing()
    def perturbed_kernel(
        self, perturbation: Perturbation | Mapping[str, Any], *, push: float = 0.0, **kwargs: Any
    ) -> Self:
        """Return a copy of the kernel whose transition matrix is that of perturbed cells.

        Its field is the perturbed one, and all that follows the field uses it: transitions, trajectories and flow. The
        softmax keeps the scale of this kernel, so that the two matrices differ by the perturbation alone.

        Parameters
        ----------
        perturbation
            Result of :meth:`perturb` that lasts, or changes for it.
        push
            Rate at which cells are drawn to the changed state itself, per unit of time. With 0, they have the velocity
            of cells in that state.
        **kwargs
            Options of :meth:`compute_transition_matrix`; those of this kernel where not given.

        Returns
        -------
        A kernel with its transition matrix, on the same AnnData.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.
        ValueError
            If the perturbation is a pulse, which changes no velocity, or options of the matrix must be given again.

        Examples
        --------
        >>> changed = vk.perturbed_kernel({"FateA": ("scale", 0.5)})
        >>> changed.transition_matrix.shape
        (300, 300)
        >>> changed.params["softmax_scale"] == vk.params["softmax_scale"]
        True
        """
        field = self._needed("field", "fit_field")
        perturbation = self._perturbation(perturbation)
        if perturbation.effect != "clamp":
            raise ValueError("Expected a perturbation with `effect='clamp'`, found `'pulse'`: it changes no velocity.")
        options = {**self._matrix_options(kwargs), **kwargs}
        kernel: Any = self.copy()
        kernel._forget_matrix()
        kernel._field = PerturbedField.of(field, self.cells.x, perturbation, push=push)
        found: Self = kernel.compute_transition_matrix(**options)
        return found

    # -------------------------------------------------------------------------------------------------- private
    def _starting_groups(
        self,
        start_ixs: CellSelector | None,
        source_cluster: str | Sequence[str] | None,
        terminal_clusters: str | Sequence[str] | None,
        source_time: Interval | None,
        cluster_key: str | None,
    ) -> tuple[pd.Series, NDArray[np.bool_]]:
        """Return the clusters and which cells particles start from."""
        clusters, key = clusters_for(self, cluster_key, source_cluster, terminal_clusters)
        if clusters is None:
            raise KeyError("Expected the `cluster_key` of the clusters that are fates, found none.")
        if start_ixs is None and source_cluster is None and source_time is None:
            source_time = first_tenth(self.cells)
        return clusters, starts_for(self, start_ixs, key, source_cluster, source_time)

    def _fates(
        self, clusters: pd.Series, terminal_clusters: str | Sequence[str] | None, options: FlowOptions, run: Run
    ) -> tuple[Fates, list[str]]:
        """Return what simulates fates, and their names."""
        if self.field is None:
            self.fit_field(device=run.device, show_progress_bar=run.show_progress_bar)
        field = self._needed("field", "fit_field")
        if self.cells.is_series:
            return self._fates_of_series(field, clusters, terminal_clusters, options.n_neighbors, run.device)
        fates = FlowFates(field, self.cells.x, self.cells.time, clusters, terminal_clusters, options, run)
        return fates, fates.lineages

    def _fates_of_series(
        self, field: Any, clusters: pd.Series, terminal_clusters: Any, n_neighbors: int, device: str
    ) -> tuple[Fates, list[str]]:
        """Return the same for particles that follow the process to the last time point."""
        x, time, last = self.cells.x, self.cells.time, self.cells.time_range[1]
        names = [str(name) for name in clusters.cat.categories]
        wanted = [terminal_clusters] if isinstance(terminal_clusters, str) else terminal_clusters
        lineages = names if wanted is None else [str(name) for name in wanted]
        # Codes of the fates, in their order; -1 for other clusters.
        fate = np.array([lineages.index(name) if name in lineages else -1 for name in names])
        at_end = np.flatnonzero(time == last)
        labels = clusters.cat.codes.to_numpy()[at_end].astype(np.int64)

        def follow(
            moving: Any, positions: NDArray[np.float64], start_ix: NDArray[np.int64], seed: int
        ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            options, run = SimulationOptions(random_state=seed), Run(device=device)
            paths = simulate_process(moving, positions, time[start_ix], last, options, run=run)
            shares = labels_near(paths.ends, x[at_end], labels, len(names), n_neighbors)
            return fate[shares.argmax(axis=1)], paths.weights

        return one_by_one(follow, field, x), lineages

    def _perturbation(self, given: Perturbation | Mapping[str, Any]) -> Perturbation:
        if not isinstance(given, Perturbation):
            return self.perturb(given)
        if given.cells.size != self.cells.n_cells or given.directions.shape[1] != self.cells.n_dims:
            raise ValueError(
                f"Expected a perturbation of these `{self.cells.n_cells}` cells in `{self.cells.n_dims}` dimensions, "
                f"found one of `{given.cells.size}` in `{given.directions.shape[1]}`."
            )
        return given

    def _null(
        self, perturbation: Perturbation, pool: Sequence[str] | None, options: ShiftOptions
    ) -> tuple[Variants | None, NDArray[np.str_] | None]:
        """Return other perturbations and the names of their genes."""
        if options.n_null == 0:
            return None, None
        names = np.asarray(self.adata.var_names, dtype=np.str_)
        weights = read_pca(self._adata_of_pca, self.cells.n_dims)
        candidates = (weights != 0).any(axis=1) & ~np.isin(names, perturbation.genes)
        if pool is not None:
            self._known_genes([str(gene) for gene in pool])
            candidates &= np.isin(names, [str(gene) for gene in pool])
        at = np.flatnonzero(candidates)
        null, drawn = draw_matched(
            perturbation,
            self._values(perturbation.layer or None)[:, at],
            weights[at].T,
            n_null=options.n_null,
            scale=self._scale(perturbation.gene_scale or None, at),
            random_state=options.random_state,
        )
        return null, names[at][drawn]

    def _groups(self, key: str, starts: NDArray[np.bool_]) -> NDArray[np.str_]:
        values = read_clusters(self.adata, key)
        if values[starts].isna().any():
            raise ValueError(f"Expected a group for each start in `adata.obs[{key!r}]`, found cells without one.")
        return np.asarray(values.astype(str), dtype=np.str_)

    def _known_genes(self, genes: list[str]) -> list[int]:
        """Return where genes are among the variables."""
        names, genes = self.adata.var_names, by_symbol(self.adata, genes)
        for gene in genes:
            if gene not in names:
                close = get_close_matches(gene, list(names), n=5) or [
                    str(name) for name in names if str(name).lower() == gene.lower()
                ]
                hint = f"Close to it are {close}." if close else "None is close to it."
                raise KeyError(f"Expected genes of `adata.var_names`, found {gene!r}. {hint}")
            if int((names == gene).sum()) > 1:
                raise ValueError(f"Expected {gene!r} once in `adata.var_names`, found it several times.")
        return [int(names.get_loc(gene)) for gene in genes]

    def _loadings_of(self, gene: str) -> NDArray[np.float64]:
        """Return the loadings of a gene, shape ``[n_dims, 1]``."""
        try:
            return read_loadings(self._adata_of_pca, self.basis, [gene])
        except ValueError as error:
            if "weight in the PCA" not in str(error):
                raise
            raise ValueError(
                f"Expected {gene!r} to have a weight in the PCA, found none: it was not among the variable genes that "
                "the PCA was computed from, and the field does not see it. Compute the PCA with it."
            ) from error

    def _values(self, layer: str | None) -> Any:
        if layer is None:
            if self.adata.X is None:
                raise KeyError("Expected the expression in `adata.X`, found none. Pass `layer`.")
            return self.adata.X
        check_known("adata.layers", layer, self.adata.layers.keys())
        return self.adata.layers[layer]

    def _scale(self, key: str | None, genes: Any) -> NDArray[np.float64] | None:
        if key is None:
            return None
        check_known("adata.var", key, self.adata.var.columns)
        scale = self.adata.var[key].to_numpy(dtype=np.float64, na_value=np.nan)[genes]
        if not (scale > 0).all():
            raise ValueError(f"Expected positive scales of genes in `adata.var[{key!r}]`, found others.")
        return np.asarray(scale)

    def _warn_about_values(self, layer: str | None, gene_scale: str | None) -> None:
        """Warn where the PCA was not computed from these values, judged by some cells."""
        weights = read_pca(self._adata_of_pca, self.cells.n_dims)
        used = np.flatnonzero((weights != 0).any(axis=1))
        n_cells = self.cells.n_cells
        some = np.sort(np.random.default_rng(0).permutation(n_cells)[:N_CHECKED])
        values, scale = _dense(self._values(layer)[some][:, used]), self._scale(gene_scale, used)
        expected = (values if scale is None else values / scale) @ weights[used]
        found = self.cells.x[some]
        found, expected = found - found.mean(axis=0), expected - expected.mean(axis=0)
        error = float(np.linalg.norm(expected - found) / max(np.linalg.norm(found), np.finfo(np.float64).tiny))
        if not error <= MAX_ERROR:
            logger.warning(
                "The PCA was not computed from these values: through the loadings they miss it by %.0f %%. The "
                "displacement will be as wrong. Pass its `layer`, and `gene_scale` where genes were scaled",
                100 * error,
            )

    def _warn_about_length(self, perturbation: Perturbation) -> None:
        region = Region.of(self.cells.x)
        points = torch.tensor(self.cells.x[perturbation.cells] + perturbation.dx[perturbation.cells])
        ratio = region.look(points, region.nearest(points))[0]
        length = np.linalg.norm(perturbation.dx[perturbation.cells], axis=1)
        logger.info(
            "%s takes `%d` cells by %.2g of their spacing in the mean",
            *(perturbation.name, length.size, length.mean() / region.typical_spacing),
        )
        outside = float((ratio > FAR).double().mean())
        if outside > MANY:
            logger.warning(
                "%s takes %.0f %% of the cells to where there are no data: the field is a guess there",
                *(perturbation.name, 100 * outside),
            )

    def _matrix_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of this kernel's transition matrix, as far as its parameters hold them."""
        params = dict(self.params)
        params["backward_mode"] = params.pop("bwd_mode", None)
        if params.get("smooth", given.get("smooth", True)) is False:
            raise ValueError("Expected a transition matrix with `smooth=True`: transport has no perturbed velocity.")
        if "gene_subset" in params and "gene_subset" not in given:
            raise ValueError("Expected `gene_subset` again, as only its size is known of this kernel's matrix.")
        known = ("cosine", "correlation", "dot_product")
        if params.get("similarity", known[0]) not in known and "similarity" not in given:
            raise ValueError("Expected `similarity` again, as this kernel's matrix was made with a function.")
        return {name: value for name, value in params.items() if value is not None}


def _dense(values: Any) -> NDArray[np.float64]:
    return np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)


def _report(shift: FateShift) -> None:
    if (shift.no_fate > 0.2).any():
        logger.warning(
            "Up to %.0f %% of the particles came to no fate: shares are of the others. Take all `terminal_clusters`, "
            "or in pseudotime raise `n_steps`",
            100 * shift.no_fate.max(),
        )
    if shift.changed.max() < 0.01:
        logger.warning(
            "%s changes the fate of %.1f %% of the particles at most: too few to measure. Genes of little weight "
            "in the PCA do little",
            *(shift.name, 100 * shift.changed.max()),
        )
