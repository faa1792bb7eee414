"""Methods of the kernel that tell which genes drive which, and which drive growth."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.lazy import torch  # noqa: F401  # the types of a decoder are looked for here
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_choice
from cellrank_velot.cells import CellSelector, basis_name, gene_names, read_clusters, read_gene_loadings, select_cells
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.field import VelocityField
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.plotting.regulation import regulation_heatmap, regulation_network
from cellrank_velot.regulation import (
    Decoder,
    Regulation,
    RegulationOptions,
    Variables,
    bin_times,
    compute_growth_genes,
    compute_regulation,
    name_groups,
    points_along,
)

__all__ = ["Regulations"]

logger = logging.getLogger("cellrank_velot")

RegulationKind = Literal["heatmap", "network"]
# Bins of time along trajectories where no number is asked for.
N_BINS = 5


class Regulations(BaseVelocityKernel):
    """Methods of the kernel that derive which gene drives which from its field."""

    # The last result and its field. Another field makes it out of date.
    _regulation: tuple[VelocityField | None, Regulation] | None = None

    @property
    def regulation(self) -> Regulation | None:
        """The last result of :meth:`compute_regulation`; ``None`` before it, and after a new field.

        Examples
        --------
        >>> vk.regulation is None
        True
        >>> vk.compute_regulation(["FateA", "FateB"], n_bootstrap=50) is vk.regulation
        True
        """
        if self._regulation is None or self._regulation[0] is not self.field:
            return None
        return self._regulation[1]

    @all_or_nothing()
    def compute_regulation(
        self,
        genes: Sequence[str] | str | None = None,
        groups: str | Sequence[Any] | None = None,
        cells: CellSelector | None = None,
        *,
        names: Sequence[str] | None = None,
        decoder: Decoder | None = None,
        decoder_genes: Sequence[str] | None = None,
        n_bins: int | None = None,
        trajectories: Trajectories | None = None,
        degradation: float | Mapping[str, float] = 0.0,
        fields: Sequence[VelocityField] | None = None,
        n_bootstrap: int = RegulationOptions.n_bootstrap,
        level: float = RegulationOptions.level,
        min_cells: int = RegulationOptions.min_cells,
        random_state: int = RegulationOptions.random_state,
        device: str = Run.device,
    ) -> Regulation:
        r"""Ask which gene drives which: average the Jacobian of the field's drift over groups of cells.

        The effect of gene :math:`j` on gene :math:`i` is the mean derivative of the velocity of :math:`i` by the level
        of :math:`j` :cite:`qiu:22`. With the loadings :math:`W` of a PCA and the Jacobian :math:`J` of the field it is
        :math:`W^T J W`. It is that of the forward process, also for a backward kernel.

        A gene is changed together with all genes that the basis cannot tell from it. So an effect says whose velocity
        changes with whose level, and nothing of which protein binds where. On simulated circuits that are seen through
        a PCA, genes that repress each other mostly come out right from the velocity of a pseudotime with default
        parameters and without ``degradation``. Over all effects, the coexpression of two genes tells the sign more
        often than such a field does. Take an effect as a question to an experiment.

        Parameters
        ----------
        genes
            Names of genes, at most 200, or a boolean column of ``adata.var``. The dimensions of the basis where not
            given.
        groups
            Key in ``adata.obs`` of the groups to average over, or the group of each cell, shape ``[n_cells]``. All
            cells where not given. Cells without a group are left out.
        cells
            Cells to average over: positions, names or a mask, or CellRank's selector, such as
            ``{"clusters": "Ductal"}``. All cells where not given.
        names
            Names of the dimensions of the basis, such as ``["X", "Y"]``, only without genes. Where not given, the name
            of the basis with a number, such as ``"PCA1"``.
        decoder
            Differentiable function from positions in the basis, a tensor ``[n, n_dims]``, to genes, ``[n, n_known]``. A
            ``torch`` module is called on its own device and in its own precision, another function on the CPU in double
            precision. The loadings of the PCA, ``adata.varm["PCs"]``, are used where not given.
        decoder_genes
            Names of all genes that the decoder gives, in its order. Those of ``adata.var`` where not given. Without
            ``genes``, all of them are asked for.
        n_bins
            Number of bins of time to average over, with as many cells each, in place of ``groups``. Where there are no
            more times than bins, each time is a bin. No bins where not given.
        trajectories
            Average along these in place of cells: each gives its point nearest to the middle of each of ``n_bins`` bins
            of time, 5 where not given, and the bootstrap draws trajectories.
        degradation
            Degradation rate per unit of the kernel's time, not negative: one for all genes, or one for each by name.
            Degradation makes the effect of a gene on itself smaller by its rate. It is taken off, so that the sign of
            this effect is that of self-regulation. It is for real time points. The velocity of a pseudotime has no
            decay in it by default, so leave this out there; a warning says so. With
            ``compute_velocity(relaxation=0.3)`` give :attr:`~cellrank_velot.regulation.Regulation.contraction`, such as
            ``degradation=float(vk.compute_regulation().contraction[0])``.
        fields
            Fields to average over in place of the kernel's own, such as those of kernels of half the cells each. They
            share the replicates, so that the interval holds what the fields differ in.
        n_bootstrap
            Number of replicates of the bootstrap, at least 2. Each draws the cells of a group with replacement
            :cite:`efron:79`. They tell how the mean depends on which cells there are, given the field, and nothing of
            the error of the field.
        level
            Share of the replicates within the interval, in ``(0, 1)``.
        min_cells
            Fewest cells of a group. Smaller groups are left out and named in a warning.
        random_state
            Seed of the bootstrap.
        device
            Torch device of the field. ``"auto"`` takes a GPU where there is one.

        Returns
        -------
        The regulation, whose ``edges()`` is a table. :attr:`regulation` keeps it.

        Raises
        ------
        FloatingPointError
            If a derivative of the field or of the decoder is not finite.
        KeyError
            If genes, loadings, a column or a degradation rate are missing.
        RuntimeError
            If the field was not fitted.
        TypeError
            If ``cells`` is of another type than those above, the decoder is not a function, or an option is not a
            number.
        ValueError
            If a gene has no weight in the basis, there are too many genes, no group has enough cells, two arguments
            exclude each other, shapes do not agree, or an option is out of range.

        Examples
        --------
        >>> regulation = vk.compute_regulation(
        ...     ["Stem", "FateA", "FateB"], groups="clusters", n_bootstrap=50
        ... )
        >>> regulation.jacobian.shape  # groups, targets, sources
        (4, 3, 3)
        >>> regulation.edges(n=2, group="Progenitor").columns.tolist()
        ['source', 'target', 'group', 'effect', 'std', 'lower', 'upper', 'sign', 'stability']
        """
        options = RegulationOptions(
            n_bootstrap=n_bootstrap, level=level, min_cells=min_cells, random_state=random_state
        )
        variables = self._variables(genes, names, decoder, decoder_genes)
        field = self._needed("field", "fit_field") if fields is None else list(fields)
        x, time, parts = self._points(cells, groups, n_bins, trajectories)
        run = Run(device=device)
        result = compute_regulation(field, x, time, parts, variables, degradation, options, run)
        if fields is None and self._velocity_is_a_current and result.degradation.any():
            logger.warning(
                "The velocity of a pseudotime without relaxation holds no decay that `degradation` could take off. "
                "Leave `degradation` out, as in `vk.compute_regulation(genes)`"
            )
        self._regulation = (self.field, result)
        return result

    @all_or_nothing()
    def growth_genes(
        self,
        genes: Sequence[str] | str | None = None,
        groups: str | Sequence[Any] | None = None,
        cells: CellSelector | None = None,
        *,
        names: Sequence[str] | None = None,
        decoder: Decoder | None = None,
        decoder_genes: Sequence[str] | None = None,
        n_bins: int | None = None,
        fields: Sequence[VelocityField] | None = None,
        n_bootstrap: int = RegulationOptions.n_bootstrap,
        level: float = RegulationOptions.level,
        min_cells: int = RegulationOptions.min_cells,
        random_state: int = RegulationOptions.random_state,
        device: str = Run.device,
    ) -> pd.DataFrame:
        r"""Ask which genes go with growth: average the gradient of the field's growth rate over groups of cells.

        With the loadings :math:`W` of a PCA and the growth rate :math:`g` it is :math:`W^T \nabla g`.

        Parameters
        ----------
        genes
            Names of any number of genes, or a boolean column of ``adata.var``. The dimensions of the basis where not
            given.
        groups
            Key in ``adata.obs`` of the groups to average over, or the group of each cell, shape ``[n_cells]``. All
            cells where not given. Cells without a group are left out.
        cells
            Cells to average over: positions, names or a mask, or CellRank's selector, such as
            ``{"clusters": "Ductal"}``. All cells where not given.
        names
            Names of the dimensions of the basis, such as ``["X", "Y"]``, only without genes. Where not given, the name
            of the basis with a number, such as ``"PCA1"``.
        decoder
            Differentiable function from positions in the basis, a tensor ``[n, n_dims]``, to genes, ``[n, n_known]``. A
            ``torch`` module is called on its own device and in its own precision, another function on the CPU in double
            precision. The loadings of the PCA, ``adata.varm["PCs"]``, are used where not given.
        decoder_genes
            Names of all genes that the decoder gives, in its order. Those of ``adata.var`` where not given. Without
            ``genes``, all of them are asked for.
        n_bins
            Number of bins of time to average over, with as many cells each, in place of ``groups``. Where there are no
            more times than bins, each time is a bin. No bins where not given.
        fields
            Fields to average over in place of the kernel's own, all of which have a growth rate.
        n_bootstrap
            Number of replicates of the bootstrap, at least 2. Each draws the cells of a group with replacement
            :cite:`efron:79`. They tell how the mean depends on which cells there are, given the field, and nothing of
            the error of the field.
        level
            Share of the replicates within the interval, in ``(0, 1)``.
        min_cells
            Fewest cells of a group. Smaller groups are left out and named in a warning.
        random_state
            Seed of the bootstrap.
        device
            Torch device of the field. ``"auto"`` takes a GPU where there is one.

        Returns
        -------
        One row for each gene and group, the strongest genes of each group first: ``gene``, ``group``, ``effect`` (the
        mean, per unit of time and of the gene), its ``std``, ``lower`` and ``upper``, ``sign`` and ``stability``.

        Raises
        ------
        FloatingPointError
            If a derivative of the field or of the decoder is not finite.
        KeyError
            If genes, loadings or a column are missing.
        RuntimeError
            If the field was not fitted, or has no growth, as that of a pseudotime.
        TypeError
            If ``cells`` is of another type than those above, the decoder is not a function, or an option is not a
            number.
        ValueError
            If a gene has no weight in the basis, no group has enough cells, two arguments exclude each other, shapes do
            not agree, or an option is out of range.

        Examples
        --------
        >>> table = sk.growth_genes(["Gene1", "Gene2", "Gene3"], groups="clusters", n_bootstrap=50)
        >>> len(table)  # three genes in four clusters
        12
        """
        options = RegulationOptions(
            n_bootstrap=n_bootstrap, level=level, min_cells=min_cells, random_state=random_state
        )
        field = self._needed("field", "fit_field") if fields is None else list(fields)
        variables = self._variables(genes, names, decoder, decoder_genes)
        x, time, parts = self._points(cells, groups, n_bins, None)
        return compute_growth_genes(field, x, time, parts, variables, options, Run(device=device))

    def plot_regulation(
        self, regulation: Regulation | None = None, kind: RegulationKind = "heatmap", **kwargs: Any
    ) -> Any:
        """Draw the effects of genes on one another.

        Parameters
        ----------
        regulation
            What :meth:`compute_regulation` returned; its last result where not given.
        kind
            ``"heatmap"`` for a table of effects, ``"network"`` for arrows between genes.
        **kwargs
            Passed on to :func:`cellrank_velot.pl.regulation_heatmap` or :func:`cellrank_velot.pl.regulation_network`.

        Returns
        -------
        The Axes where ``show=False``, a list of them for several groups. Nothing otherwise.

        Raises
        ------
        RuntimeError
            If no regulation is given, and none was computed with the present field.

        Examples
        --------
        >>> regulation = vk.compute_regulation(["Stem", "FateA", "FateB"], n_bootstrap=50)
        >>> ax = vk.plot_regulation(show=False)
        >>> vk.plot_regulation(regulation, kind="network", min_stability=0, save="network.png")
        """
        check_choice("kind", kind, RegulationKind)
        regulation = self.regulation if regulation is None else regulation
        if regulation is None:
            raise RuntimeError("Compute the regulation first, as `.compute_regulation()`.")
        draw = regulation_heatmap if kind == "heatmap" else regulation_network
        return draw(regulation, **kwargs)

    # -------------------------------------------------------------------------------------------------- private
    @property
    def _velocity_is_a_current(self) -> bool:
        """Whether the velocity is that of a pseudotime without relaxation, which does not bring cells together."""
        return self.settings.get("velocity", {}).get("relaxation") == 0

    def _variables(
        self,
        genes: Sequence[str] | str | None,
        names: Sequence[str] | None,
        decoder: Decoder | None,
        decoder_genes: Sequence[str] | None,
    ) -> Variables:
        """Return the genes asked for and how they are read from the basis, or its dimensions where none are."""
        if decoder is None and decoder_genes is not None:
            raise ValueError("Expected `decoder_genes` with a `decoder` only.")
        if names is not None and (genes is not None or decoder is not None):
            raise ValueError("Expected `names` of dimensions or `genes`, found both.")
        if decoder is not None:
            return self._decoded(genes, decoder, decoder_genes)
        if genes is None:
            numbered = [f"{basis_name(self.basis)}{at + 1}" for at in range(self.cells.n_dims)]
            return Variables(tuple(map(str, numbered if names is None else names)))
        found, loadings = read_gene_loadings(self._adata_of_pca, self.basis, genes)
        return Variables(tuple(found), loadings=loadings)

    def _decoded(
        self, genes: Sequence[str] | str | None, decoder: Decoder, decoder_genes: Sequence[str] | None
    ) -> Variables:
        if not callable(decoder):
            raise TypeError(f"Expected `decoder` to be a function, found `{type(decoder).__name__}`.")
        if genes is None and decoder_genes is None:
            raise ValueError("Expected `genes`, or all `decoder_genes`, with a `decoder`.")
        known = pd.Index(self.adata.var_names if decoder_genes is None else [str(name) for name in decoder_genes])
        if isinstance(genes, str):
            asked = gene_names(self.adata, genes)
        else:
            asked = [str(gene) for gene in (known if genes is None else genes)]
        missing = [gene for gene in asked if gene not in known]
        if missing:
            raise KeyError(f"Expected genes of the decoder, found `{len(missing)}` others: {missing[:5]}.")
        if known.has_duplicates:
            raise ValueError(
                "Expected genes of different names, found some twice: call `adata.var_names_make_unique()`."
            )
        return Variables(tuple(asked), decoder=decoder, chosen=known.get_indexer(asked), n_known=len(known))

    def _points(
        self,
        cells: CellSelector | None,
        groups: str | Sequence[Any] | None,
        n_bins: int | None,
        trajectories: Trajectories | None,
    ) -> tuple[NDArray[Any], NDArray[Any], pd.Categorical | None]:
        """Return positions and times to average over, and their groups."""
        if groups is not None and (n_bins is not None or trajectories is not None):
            raise ValueError("Expected `groups`, or bins of time by `n_bins` or `trajectories`, found both.")
        if trajectories is not None:
            if cells is not None:
                raise ValueError("Expected `cells` or `trajectories`, found both.")
            if trajectories.x.shape[1] != self.cells.n_dims or trajectories.basis not in ("", self.basis):
                raise ValueError(
                    f"Expected trajectories in `{self.basis}` of `{self.cells.n_dims}` dimensions, found ones in "
                    f"`{trajectories.basis}` of `{trajectories.x.shape[1]}`."
                )
            return points_along(trajectories, N_BINS if n_bins is None else n_bins)
        chosen = select_cells(self.adata, cells)
        if not chosen.any():
            raise ValueError("Expected cells to average over, found none.")
        x, time = self.cells.x[chosen], self.cells.time[chosen]
        parts = bin_times(time, n_bins) if n_bins is not None else None
        return x, time, parts if groups is None else self._labels(groups)[chosen]

    def _labels(self, groups: str | Sequence[Any]) -> pd.Categorical:
        """Return the group of each cell."""
        if isinstance(groups, str):
            labels = read_clusters(self.adata, groups).array
            return name_groups(labels, f"adata.obs[{groups!r}]")
        if len(groups) != self.adata.n_obs:
            raise ValueError(f"Expected a group for each of the `{self.adata.n_obs}` cells, found `{len(groups)}`.")
        return pd.Categorical(groups)
