"""Which genes drive which, and which drive growth, as methods of the kernel.

Thin calls of :mod:`cellrank_velot.regulation.matrix`, and what they read of the AnnData.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.validation import check_choice, check_integer, check_known
from cellrank_velot.cells.read import read_loadings
from cellrank_velot.cells.select import CellSelector, select_cells
from cellrank_velot.dynamics import Trajectories
from cellrank_velot.field import VelocityField
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.regulation.derivatives import Decoder, Genes, has_growth
from cellrank_velot.regulation.matrix import Regulation as RegulationResult
from cellrank_velot.regulation.matrix import bin_times, compute_growth_genes, compute_regulation, name_intervals

__all__ = ["Regulation"]

RegulationKind = Literal["heatmap", "network"]
# Values of a numeric column beyond which it is no grouping.
MAX_LEVELS = 50


class Regulation(Parts):
    """Methods of the kernel that ask the derivatives of its field."""

    # The last result and the field it is of: another field makes it out of date.
    _regulation: tuple[VelocityField | None, RegulationResult] | None = None

    @property
    def regulation(self) -> RegulationResult | None:
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
        n_bootstrap: int = 200,
        level: float = 0.95,
        min_cells: int = 5,
        random_state: int = 0,
        device: str = "auto",
    ) -> RegulationResult:
        """Ask which gene drives which: average the Jacobian of the field's drift over groups of cells.

        Genes are read through the loadings of a PCA in ``adata.varm["PCs"]``, or through a ``decoder``. What an edge
        means, and what it does not, is told by :func:`cellrank_velot.regulation.matrix.compute_regulation`. It is of
        the forward process, in a backward kernel, too.

        Parameters
        ----------
        genes
            Names of genes, at most 200, or a boolean column of ``adata.var``; dimensions of the basis where not given.
        groups
            Key in ``adata.obs`` of groups to average over, or the group of each cell; all cells where not given.
        cells
            Cells to average over: positions, names or a mask, or CellRank's selector; all where not given.
        names
            Names of the dimensions of the basis, without ``genes``, such as ``["X", "Y"]``.
        decoder
            Differentiable function from positions in the basis, a tensor ``[n, n_dims]``, to genes, ``[n, n_known]``.
            Loadings are used where not given.
        decoder_genes
            Names of all genes that the decoder gives, in its order; those of ``adata.var`` where not given. Without
            ``genes``, edges are between all of them.
        n_bins
            Number of bins of time to average over, with as many cells each, in place of ``groups``; no bins where not
            given.
        trajectories
            Average along these in place of cells: each gives its point in the middle of each of ``n_bins`` bins of
            time, five where not given, and the bootstrap draws trajectories.
        degradation
            Degradation rate per unit of the kernel's time, one or by name, which is taken off the diagonal.
        fields
            Fields to average over in place of the kernel's own, such as those of kernels of half the cells each: the
            interval then holds what they differ in. The field of the kernel where not given.
        n_bootstrap, level, min_cells, random_state, device
            See :func:`cellrank_velot.regulation.matrix.compute_regulation`.

        Returns
        -------
        The regulation, whose ``edges()`` is a table; kept as :attr:`regulation`, too.

        Raises
        ------
        KeyError
            If genes, loadings, a column or a degradation rate are missing.
        RuntimeError
            If the field was not fitted.
        TypeError
            If cells are given as something else.
        ValueError
            If a gene has no weight in the basis, two arguments exclude each other, or an option is out of range.

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
        read = self._genes(genes, decoder, decoder_genes)
        field = self._needed("field", "fit_field") if fields is None else list(fields)
        x, time, parts = self._points(cells, groups, n_bins, trajectories)
        if names is None and read is None:
            names = self._dimensions()
        result = compute_regulation(
            field,
            x,
            time,
            parts,
            genes=read,
            names=names,
            degradation=_rates(degradation, read.names if read is not None else names or ()),
            n_bootstrap=n_bootstrap,
            level=level,
            min_cells=min_cells,
            random_state=random_state,
            device=device,
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
        n_bootstrap: int = 200,
        level: float = 0.95,
        min_cells: int = 5,
        random_state: int = 0,
        device: str = "auto",
    ) -> pd.DataFrame:
        """Ask which genes go with growth: average the gradient of the field's growth rate over groups of cells.

        Parameters
        ----------
        genes
            Names of any number of genes, or a boolean column of ``adata.var``; dimensions of the basis where not given.
        groups, cells, names, decoder, decoder_genes, n_bins, fields, n_bootstrap, level, min_cells, random_state, \
device
            As for :meth:`compute_regulation`.

        Returns
        -------
        The table of :func:`cellrank_velot.regulation.matrix.compute_growth_genes`, the strongest genes of each group
        first.

        Raises
        ------
        RuntimeError
            If the field was not fitted, or has no growth, as that of a pseudotime.
        KeyError, TypeError, ValueError
            As :meth:`compute_regulation`.

        Examples
        --------
        >>> table = sk.growth_genes(["Gene1", "Gene2", "Gene3"], groups="clusters", n_bootstrap=50)
        >>> len(table)  # three genes in four clusters
        12
        """
        field = self._needed("field", "fit_field") if fields is None else list(fields)
        if not all(has_growth(one) for one in (field if isinstance(field, list) else [field])):
            raise RuntimeError(
                "Expected a field with growth, found none: it needs an experimental time. A pseudotime tells nothing "
                "of growth."
            )
        read = self._genes(genes, decoder, decoder_genes)
        x, time, parts = self._points(cells, groups, n_bins, None)
        return compute_growth_genes(
            field,
            x,
            time,
            parts,
            genes=read,
            names=self._dimensions() if names is None and read is None else names,
            n_bootstrap=n_bootstrap,
            level=level,
            min_cells=min_cells,
            random_state=random_state,
            device=device,
        )

    def plot_regulation(
        self, regulation: RegulationResult | None = None, kind: RegulationKind = "heatmap", **kwargs: Any
    ) -> Any:
        """Draw effects of genes on one another; the last computed where not given.

        Parameters
        ----------
        regulation
            What :meth:`compute_regulation` returned.
        kind
            ``"heatmap"`` or ``"network"``.
        **kwargs
            Passed on to :func:`cellrank_velot.pl.regulation_heatmap` or :func:`cellrank_velot.pl.regulation_network`.

        Returns
        -------
        The Axes where ``show=False``, a list of them for several groups; nothing otherwise.

        Raises
        ------
        RuntimeError
            If none is given and none was computed with the present field.

        Examples
        --------
        >>> regulation = vk.compute_regulation(["Stem", "FateA", "FateB"], n_bootstrap=50)
        >>> ax = vk.plot_regulation(show=False)
        >>> vk.plot_regulation(regulation, kind="network", min_stability=0, save="network.png")
        """
        from cellrank_velot.plotting import regulation as plots

        check_choice("kind", kind, RegulationKind)
        regulation = self.regulation if regulation is None else regulation
        if regulation is None:
            raise RuntimeError("Compute the regulation first, as `.compute_regulation()`.")
        draw = plots.regulation_heatmap if kind == "heatmap" else plots.regulation_network
        return draw(regulation, **kwargs)

    # -------------------------------------------------------------------------------------------------- private
    def _dimensions(self) -> list[str]:
        name = self.basis.removeprefix("X_")
        return [f"{name.upper() if len(name) <= 4 else name}{at + 1}" for at in range(self.cells.n_dims)]

    def _genes(
        self, genes: Sequence[str] | str | None, decoder: Decoder | None, decoder_genes: Sequence[str] | None
    ) -> Genes | None:
        """Return how the genes asked for are read from the basis; ``None`` where none are."""
        if decoder is None:
            if decoder_genes is not None:
                raise ValueError("Expected `decoder_genes` with a `decoder` only.")
            return None if genes is None else self._genes_of_loadings(genes)
        if not callable(decoder):
            raise TypeError(f"Expected `decoder` to be a function, found `{type(decoder).__name__}`.")
        if genes is None and decoder_genes is None:
            raise ValueError("Expected `genes`, or all `decoder_genes`, with a `decoder`.")
        known = pd.Index(self.adata.var_names if decoder_genes is None else [str(name) for name in decoder_genes])
        chosen = list(known) if genes is None else self._gene_names(genes)
        missing = [gene for gene in chosen if gene not in known]
        if missing:
            raise KeyError(f"Expected genes of the decoder, found `{len(missing)}` others: {missing[:5]}.")
        return Genes(tuple(chosen), decoder=decoder, chosen=_positions(known, chosen), n_known=len(known))

    def _genes_of_loadings(self, genes: Sequence[str] | str) -> Genes:
        loadings = read_loadings(self.adata, self.basis, genes)
        asked = self._gene_names(genes)
        weighty = (np.asarray(self.adata.varm["PCs"]) != 0).any(axis=1)
        known = self.adata.var_names[weighty & self.adata.var_names.isin(asked)]
        without = [gene for gene in asked if gene not in known]
        if without and not isinstance(genes, str):
            raise ValueError(
                f"Expected genes with a weight in the PCA, found `{len(without)}` without: {without[:5]}. Were they "
                "among the variable genes?"
            )
        chosen = [gene for gene in asked if gene in known]
        return Genes(tuple(chosen), loadings=loadings[:, _positions(known, chosen)])

    def _gene_names(self, genes: Sequence[str] | str) -> list[str]:
        if isinstance(genes, str):
            check_known("adata.var", genes, self.adata.var.columns)
            return [str(name) for name in self.adata.var_names[self.adata.var[genes].to_numpy(dtype=bool)]]
        return [str(gene) for gene in genes]

    def _points(
        self,
        cells: CellSelector | None,
        groups: str | Sequence[Any] | None,
        n_bins: int | None,
        trajectories: Trajectories | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], pd.Categorical | None]:
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
            return _along(trajectories, 5 if n_bins is None else n_bins)
        chosen = select_cells(self.adata, cells)
        if not chosen.any():
            raise ValueError("Expected cells to average over, found none.")
        x, time = self.cells.x[chosen], self.cells.time[chosen]
        parts = bin_times(time, n_bins) if n_bins is not None else None
        return x, time, parts if groups is None else self._labels(groups)[chosen]

    def _labels(self, groups: str | Sequence[Any]) -> pd.Categorical:
        """Return the group of each cell."""
        if not isinstance(groups, str):
            if len(groups) != self.adata.n_obs:
                raise ValueError(f"Expected a group for each of the `{self.adata.n_obs}` cells, found `{len(groups)}`.")
            return pd.Categorical(groups)
        check_known("adata.obs", groups, self.adata.obs.columns)
        labels = pd.Categorical(self.adata.obs[groups])
        if pd.api.types.is_numeric_dtype(labels.categories.dtype):
            if labels.categories.size > MAX_LEVELS:
                raise ValueError(
                    f"Expected groups in `adata.obs[{groups!r}]`, found `{labels.categories.size}` numbers. For bins "
                    "of time, pass `n_bins`."
                )
            labels = labels.rename_categories([f"{value:.6g}" for value in labels.categories])
        return labels


def _positions(known: pd.Index, chosen: Sequence[str]) -> NDArray[np.int64]:
    if known.has_duplicates:
        raise ValueError("Expected genes of different names, found some twice: call `adata.var_names_make_unique()`.")
    return np.asarray(known.get_indexer(chosen), dtype=np.int64)


def _rates(degradation: float | Mapping[str, float], names: Sequence[str]) -> Any:
    if not isinstance(degradation, Mapping | pd.Series):
        return degradation
    for name in names:
        check_known("degradation", name, degradation.keys())
    return np.array([degradation[name] for name in names], dtype=np.float64)


def _along(trajectories: Trajectories, n_bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64], pd.Categorical]:
    """Return the point of each trajectory nearest to the middle of each bin of time that it passes."""
    check_integer("n_bins", n_bins, low=1)
    time = trajectories.time
    if not np.ptp(time) > 0:
        raise ValueError("Expected trajectories whose time moves, found none.")
    ends = np.linspace(time.min(), time.max(), n_bins + 1)
    code = np.clip(np.searchsorted(ends, time, side="right") - 1, 0, n_bins - 1)
    owner = np.repeat(np.arange(len(trajectories.ids)), np.diff(trajectories.offsets))
    order = np.lexsort([np.abs(time - (ends[code] + ends[code + 1]) / 2), code, owner])
    _, first = np.unique((owner * n_bins + code)[order], return_index=True)
    kept = order[first]
    return trajectories.x[kept], time[kept], pd.Categorical.from_codes(code[kept], name_intervals(ends))
