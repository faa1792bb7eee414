"""The method of the kernel that changes every gene in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot.cells import CellSelector, Interval, read_loadings, read_pca, rows_of_states, select_cells
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.dynamics import clusters_for, first_tenth, starts_for
from cellrank_velot.kernel.perturbation import Perturbations
from cellrank_velot.perturbation import Chain, Screen, ScreenOptions, compute_screen, parse_kinds
from cellrank_velot.transitions import compute_transitions

__all__ = ["Screens"]


class Screens(Perturbations):
    """Methods of the kernel that change genes, all of them too."""

    @all_or_nothing()
    def screen(
        self,
        genes: Sequence[str] | str | None = None,
        changes: Sequence[str] | Mapping[str, Any] = ("knockout", "overexpression"),
        cells: CellSelector | None = None,
        *,
        states: Mapping[str, Sequence[str]] | None = None,
        start_ixs: CellSelector | None = None,
        source_cluster: str | Sequence[str] | None = None,
        source_time: Interval | None = None,
        cluster_key: str | None = None,
        weight: float = ScreenOptions.weight,
        n_exact: int = ScreenOptions.n_exact,
        n_null: int = ScreenOptions.n_null,
        layer: str | None = None,
        gene_scale: str | None = None,
        random_state: int = ScreenOptions.random_state,
        device: str = "auto",
        n_jobs: int | None = None,
        show_progress_bar: bool = True,
    ) -> Screen:
        """Change every gene, one at a time, and rank them by how far they shift the fates of a group of cells.

        Fates are those of the transition matrix, mixed with the connectivities as in ``0.8 * vk + 0.2 * ck``. A change
        acts as in :meth:`perturb`: a cell has the velocity of cells that have the changed gene. The shift is computed
        to first order, for all genes from one sensitivity of the fates: twice as many matrices as there are dimensions,
        however many genes. For the ``n_exact`` largest, it is computed once more without the approximation;
        :meth:`fate_shift` follows single particles.

        The p-value compares a gene with itself: its values are dealt out anew among cells of the same time, ``n_null``
        times. Such a gene has the same values and the same course in time, and cannot know the fates but by time. The
        false discovery rate is over all genes, changes and lineages.

        **What a PCA cannot tell.** The field was learnt from cells that nobody perturbed. A gene shifts a fate if cells
        that have more of it are on the way there: markers of a fate do, as well as the genes that decide it. The list
        is one of candidates. Genes of one programme have loadings alike, and stand or fall together. A gene that hardly
        varies, such as a factor of few molecules, has little weight in the PCA and does little, whatever its role.

        Parameters
        ----------
        genes
            Names or symbols of genes, such as a list of transcription factors; all with a weight in the PCA where not
            given.
        changes
            ``"knockout"`` sets a gene to 0, ``"overexpression"`` to a level that one in twenty of the cells that
            express it exceeds. Or names, each with a change as in :meth:`perturb`: ``{"half": ("scale", 0.5)}``.
        cells
            Cells in which genes are changed, as in :meth:`perturb`; all where not given.
        states
            Names of the cells of each terminal state; those of :meth:`suggest_terminal_states` where not given.
        start_ixs
            Cells whose fates count: positions, names or a mask, or CellRank's selector such as
            ``{"clusters": "Ngn3 low EP"}``. Without cells, cluster and time, those of the first tenth of time.
        source_cluster
            Cluster, or several, that these are in; any where not given.
        source_time
            From which time to which time they are, of the kernel's time; ``None`` for no bound.
            Cells must meet all conditions that are given.
        cluster_key
            Key in ``adata.obs`` of the clusters; that of the kernel, or ``"clusters"``, where not given.
        weight
            Share of the kernel in the matrix, in ``(0, 1]``; the rest follows the connectivities.
        n_exact
            Number of changes whose shift is computed without the approximation, the largest first.
        n_null
            Number of times that values are dealt out; 0 for no p-values.
        layer
            Layer of the expression, ``adata.X`` where not given: what the PCA was computed from, before it was scaled.
        gene_scale
            Column of ``adata.var`` that the PCA's values were divided by; genes were not scaled where not given.
        random_state
            Seed of this.
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        n_jobs
            Number of jobs of the field and the matrices, as in :meth:`compute_transition_matrix`.
        show_progress_bar
            Whether to show progress bars.

        Returns
        -------
        The screen; its :meth:`~cellrank_velot.perturbation.Screen.to_frame` is a table, ``pl.screen`` a picture.

        Raises
        ------
        KeyError
            If a gene, cell, column or cluster is unknown.
        RuntimeError
            Before :meth:`compute_transition_matrix` with the field, for a backward kernel, or for a matrix of another
            origin.
        TypeError, ValueError
            If an option is out of range, there are no terminal states, no cells to start from, the values were centred,
            or the basis is not the PCA.

        Examples
        --------
        >>> found = vk.screen(source_cluster="Progenitor", n_exact=5, show_progress_bar=False)
        >>> table = found.to_frame()
        >>> lost = table.query("lineage == 'Fate A' and change == 'knockout' and delta < 0")
        >>> "FateA" in lost["gene"].iloc[0]  # the gene, or one of its targets
        True
        """
        options = ScreenOptions(weight=weight, n_exact=n_exact, n_null=n_null, random_state=random_state)
        kinds = parse_kinds(changes)
        run = Run(device=device, n_jobs=n_jobs, show_progress_bar=show_progress_bar)
        names = np.asarray(self.adata.var_names, dtype=np.str_)
        given = None if genes is None else [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
        wanted = None if given is None else self._known_genes(given)
        for gene in names[wanted] if wanted is not None else ():
            self._loadings_of(str(gene))
        chosen = select_cells(self.adata, cells)
        read_loadings(self._adata_of_pca, self.basis, list(names))  # its checks
        self._warn_about_values(layer, gene_scale)
        weights = read_pca(self._adata_of_pca, self.cells.n_dims)
        at = np.flatnonzero((weights != 0).any(axis=1)) if wanted is None else np.array(wanted)
        values = self._values(layer)[:, at]
        clusters, key = clusters_for(self, cluster_key, source_cluster, None)
        if start_ixs is None and source_cluster is None and source_time is None:
            source_time = first_tenth(self.cells)
        starts = starts_for(self, start_ixs, key, source_cluster, source_time)
        chain = self._answering(starts, states, None if clusters is None else key, options, run)
        return compute_screen(
            chain,
            values,
            weights[at].T,
            names[at],
            kinds,
            options,
            cells=chosen,
            scale=self._scale(gene_scale, at),
            show_progress_bar=show_progress_bar,
        )

    # ---------------------------------------------------------------------------------------------------- private
    def _answering(
        self,
        starts: NDArray[np.bool_],
        states: Mapping[str, Sequence[str]] | None,
        cluster_key: str | None,
        options: ScreenOptions,
        run: Run,
    ) -> Chain:
        """Return the chain of this kernel's options, which answers to displacements of its cells."""
        if self.backward:
            raise RuntimeError("Expected a forward kernel for fates, found a backward one.")
        kernel: Any = self
        self._needed("transition_matrix", "compute_transition_matrix")
        asked: Any = kernel._request
        made = self._transition_matrix is self._computed
        if asked is None or asked.gene_subset is not None or not asked.smooth or not made:
            raise RuntimeError(
                "Expected the transition matrix of `compute_transition_matrix` by the field, without `gene_subset` and "
                "with a similarity by name, found another one, which cannot be made again for displaced cells."
            )
        field: Any = self._needed("field", "fit_field")
        if states is None:
            states = kernel.suggest_terminal_states(cluster_key, n_halves=0, show_progress_bar=False)
        rows = rows_of_states(self.adata, states)
        if len(rows) < 2:
            raise ValueError(
                f"Expected at least two terminal states between which fates can shift, found {list(rows)}. Name them "
                "in `states`, as {'Beta': [...], 'Alpha': [...]}."
            )
        # A rule would give displaced cells another scale.
        asked = replace(asked, model="deterministic", softmax_scale=kernel.params["softmax_scale"])
        ends = kernel._end_of_cells(asked.settle, asked.smooth) if asked.settle else None
        x, time, graph = self.cells.x, self.cells.time, self.connectivities
        walk = compute_transitions(x, np.zeros_like(x), graph).matrix

        def matrix_at(shift: NDArray[np.float64]) -> Any:
            velocity = np.asarray(field(x + shift, time, device=run.device, n_jobs=run.n_jobs))
            moved = compute_transitions(x, velocity, graph, asked, ends=ends, run=Run(n_jobs=run.n_jobs)).matrix
            return options.weight * moved + (1 - options.weight) * walk

        free = starts.copy()
        for cells in rows.values():
            free[cells] = False
        if not free.any():
            raise ValueError("Expected starts that are not cells of a terminal state, found none.")
        return Chain(x, time, matrix_at, free, rows)
