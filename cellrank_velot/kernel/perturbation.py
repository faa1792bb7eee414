"""In-silico perturbation as methods of the kernel: genes are changed, cells are displaced, and fates may shift.

Thin calls of :mod:`cellrank_velot.perturbation`; reads expression and loadings from AnnData.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.validation import check_integer, check_known
from cellrank_velot.cells.read import read_loadings
from cellrank_velot.cells.select import CellSelector, Interval, select_cells
from cellrank_velot.dynamics import TimeFrom, labels_near, simulate_process
from cellrank_velot.dynamics.flow import check_flow_options
from cellrank_velot.dynamics.motion import check_motion_options
from cellrank_velot.dynamics.region import Region
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.perturbation import (
    Effect,
    Fates,
    FateShift,
    FlowFates,
    Perturbation,
    PerturbedField,
    Variants,
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
# Distance from the data, see :meth:`Region.look`, beyond which the field knows nothing, and the share of cells there
# that is worth a warning.
FAR, MANY = 2.5, 0.1


class Perturbations(Parts):
    """Methods of the kernel that change genes and see what becomes of the cells."""

    if TYPE_CHECKING:  # of :class:`cellrank_velot.kernel.dynamics.Dynamics`

        def _clusters_for(
            self, cluster_key: str | None, *asked: str | Sequence[str] | None
        ) -> tuple[pd.Series | None, str | None]: ...
        def _starts(
            self,
            start_ixs: CellSelector | None,
            cluster_key: str | None,
            cluster: str | Sequence[str] | None,
            time: Interval | None,
        ) -> NDArray[np.bool_]: ...

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

        The field sees a cell as its place in the PCA: a gene counts as far as it has a weight there, and a change that
        is small beside the spread of the cells does little. Other genes that a gene regulates are not changed here;
        they follow along the way, as far as the field has learned it. It learns from cells that were not perturbed:
        what goes together in them is taken for what follows from each other. A gene that only marks a fate shifts it as
        much as one that decides it, and either way: on a simulated fork whose genes are known, the knock-out of the
        deciding gene takes its fate away, and that of one of its targets, which decides nothing, seems to add to it.

        Parameters
        ----------
        changes
            By gene a number that its expression is set to (0 is a knock-out), ``("scale", factor)``, or
            ``("add", difference)``, in the units of ``layer``.
        cells
            Cells that are perturbed: positions or names, a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 high EP"}``; all where not given.
        effect
            ``"clamp"``, a change that lasts: all along its way, a cell has the velocity of cells that are displaced as
            the cells around it are, see :class:`cellrank_velot.perturbation.PerturbedField`. ``"pulse"``, a change
            that is made once: cells start displaced, and nothing keeps them from coming back. A knock-out lasts.
        layer
            Layer of the expression, ``adata.X`` where not given. It must be what the PCA was computed from, such as
            log-normalised values, which is checked; before they were scaled, if they were.
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
        n_particles: int = 300,
        n_null: int = 20,
        null_genes: Sequence[str] | None = None,
        level: float = 0.95,
        n_steps: int = 300,
        step_size: float = 0.005,
        diffusion: float = 1.0,
        time_from: TimeFrom = "cells",
        confine: float = 0.7,
        max_distance: float = 2.5,
        min_speed: float = 0.1,
        n_neighbors: int = 15,
        random_state: int = 0,
        device: str = "auto",
        show_progress_bar: bool = True,
    ) -> FateShift:
        """Compare where perturbed and unperturbed cells come to, and where they do when other genes are changed.

        Perturbed and unperturbed particles start together and feel the same noise, so that the difference of their
        fates is that of the perturbation. Whether the gene matters more than any other, moved as far, is told by
        ``n_null`` genes that are drawn at random, see :func:`cellrank_velot.perturbation.draw_matched`. With 20 no
        p-value is below 0.048, and none is after adjustment for many fates: take 200 to report one.
        Always forward in time. With experimental time, particles follow the process to the last time point, and of the
        options of :func:`cellrank_velot.dynamics.simulate_flow` only ``n_neighbors`` and ``device`` count.

        Parameters
        ----------
        perturbation
            Result of :meth:`perturb`, or changes for it.
        start_ixs, source_cluster, source_time
            Cells that particles start from, as for :meth:`simulate_flow`; those of the first tenth of time where
            nothing is given.
        terminal_clusters
            Fates; all clusters where not given.
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
        n_steps, step_size, diffusion, time_from, confine, max_distance, min_speed, n_neighbors, device
            See :func:`cellrank_velot.dynamics.simulate_flow`.
        random_state
            Seed of starts, noise and other genes.
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
        check_flow_options("forward", n_particles, diffusion, 0.0)
        check_motion_options(
            n_steps, step_size, 1, time_from, confine, max_distance, min_speed, n_neighbors, random_state
        )
        check_integer("n_null", n_null)
        clusters, key = self._clusters_for(cluster_key, source_cluster, terminal_clusters)
        if clusters is None:
            raise KeyError("Expected the `cluster_key` of the clusters that are fates, found none.")
        if start_ixs is None and source_cluster is None and source_time is None:
            first, last = self.cells.time_range
            source_time = (None, first + (last - first) / 10)
        starts = self._starts(start_ixs, key, source_cluster, source_time)
        groups = None if group_key is None else self._groups(group_key, starts)
        perturbation = self._perturbation(perturbation)
        null, drawn = self._null(perturbation, n_null, null_genes, random_state)
        options = {
            "n_steps": n_steps,
            "step_size": step_size,
            "diffusion": diffusion,
            "time_from": time_from,
            "confine": confine,
            "max_distance": max_distance,
            "min_speed": min_speed,
            "n_neighbors": n_neighbors,
            "device": device,
            "show_progress_bar": show_progress_bar,
        }
        fates, lineages = self._fates(clusters, terminal_clusters, **options)
        shift = compute_fate_shift(
            perturbation,
            fates,
            starts,
            lineages,
            groups=groups,
            null=null,
            null_genes=drawn,
            n_particles=n_particles,
            level=level,
            random_state=random_state,
        )
        _report(shift)
        return shift

    @all_or_nothing()
    def perturbed_kernel(
        self, perturbation: Perturbation | Mapping[str, Any], *, push: float = 0.0, **kwargs: Any
    ) -> Self:
        """Return a copy of the kernel whose transition matrix is that of perturbed cells.

        Its field is :class:`cellrank_velot.perturbation.PerturbedField`, with which all that asks the field goes on:
        transitions, trajectories and flow. The softmax keeps the scale of this kernel, so that the two matrices differ
        by the perturbation alone.

        Parameters
        ----------
        perturbation
            Result of :meth:`perturb` that lasts, or changes for it.
        push
            Rate at which cells are drawn to the changed state itself, per unit of time; the velocity of cells in that
            state alone where it is 0.
        **kwargs
            Options of :meth:`compute_transition_matrix`; those of this kernel where it has a matrix.

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
        kernel: Any = self.copy()  # type: ignore[attr-defined]  # of CellRank
        kernel._clear()
        kernel._field = PerturbedField.of(field, self.cells.x, perturbation, push=push)
        found: Self = kernel.compute_transition_matrix(**options)
        return found

    # -------------------------------------------------------------------------------------------------- private
    def _fates(self, clusters: Any, terminal_clusters: Any, **options: Any) -> tuple[Fates, list[str]]:
        """Return what simulates fates, and their names."""
        resolve_device(options["device"])
        if self.field is None:
            self.fit_field(device=options["device"], show_progress_bar=options["show_progress_bar"])
        field = self._needed("field", "fit_field")
        if self.cells.is_series:
            return self._fates_of_series(field, clusters, terminal_clusters, options["n_neighbors"], options["device"])
        fates = FlowFates(field, self.cells.x, self.cells.time, clusters, terminal_clusters, **options)
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

        def run(
            moving: Any, positions: NDArray[np.float64], start_ix: NDArray[np.int64], seed: int
        ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            paths = simulate_process(moving, positions, time[start_ix], last, random_state=seed, device=device)
            shares = labels_near(paths.ends, x[at_end], labels, len(names), n_neighbors)
            return fate[shares.argmax(axis=1)], paths.weights

        return one_by_one(run, field, x), lineages

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
        self, perturbation: Perturbation, n_null: int, pool: Sequence[str] | None, random_state: int
    ) -> tuple[Variants | None, NDArray[np.str_] | None]:
        """Return other perturbations and the names of their genes."""
        if n_null == 0:
            return None, None
        names = np.asarray(self.adata.var_names, dtype=np.str_)
        candidates = (np.asarray(self.adata.varm["PCs"]) != 0).any(axis=1) & ~np.isin(names, perturbation.genes)
        if pool is not None:
            self._known_genes([str(gene) for gene in pool])
            candidates &= np.isin(names, [str(gene) for gene in pool])
        at = np.flatnonzero(candidates)
        null, drawn = draw_matched(
            perturbation,
            self._values(perturbation.layer or None)[:, at],
            np.asarray(self.adata.varm["PCs"], dtype=np.float64)[at].T,
            n_null=n_null,
            scale=self._scale(perturbation.gene_scale or None, at),
            random_state=random_state,
        )
        return null, names[at][drawn]

    def _groups(self, key: str, starts: NDArray[np.bool_]) -> NDArray[np.str_]:
        check_known("adata.obs", key, self.adata.obs.columns)
        values = self.adata.obs[key]
        if values[starts].isna().any():
            raise ValueError(f"Expected a group for each start in `adata.obs[{key!r}]`, found cells without one.")
        return np.asarray(values.astype(str), dtype=np.str_)

    def _known_genes(self, genes: list[str]) -> list[int]:
        """Return where genes are among the variables."""
        names = self.adata.var_names
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
            return read_loadings(self.adata, self.basis, [gene])
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
        """Say where the PCA was not computed from these values: some cells tell, through their differences."""
        weights = np.asarray(self.adata.varm["PCs"], dtype=np.float64)
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
        """Return the options of the transition matrix of this kernel, as far as its parameters tell them."""
        params = dict(self.params)  # type: ignore[attr-defined]  # of CellRank
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
            "%s changes the fate of %.1f %% of the particles at most: less than can be told. Genes of little weight "
            "in the PCA do little",
            *(shift.name, 100 * shift.changed.max()),
        )
