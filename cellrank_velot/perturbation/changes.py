"""Changes of gene expression, and the displacement of cells in the basis that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_choice, check_number

__all__ = ["Change", "Effect", "Kind", "Perturbation", "compute_perturbation", "parse_changes"]

FloatArray = NDArray[np.float64]

Kind = Literal["set", "scale", "add"]
Effect = Literal["clamp", "pulse"]

_WORDS: dict[str, str] = {"set": "{gene} = {value:g}", "scale": "{gene} × {value:g}", "add": "{gene} {value:+g}"}


@dataclass(frozen=True)
class Change:
    """What is done to one gene.

    Attributes
    ----------
    kind
        ``"set"`` to a value, ``"scale"`` by a factor, or ``"add"`` a difference; no expression falls below zero.
    value
        The value, factor or difference, in the units of the values that the PCA was computed from: twice a
        log-normalised value is more than twice the molecules.

    Examples
    --------
    >>> from cellrank_velot.perturbation import Change
    >>> Change("scale", 0.5).of(np.array([2.0, 4.0])).tolist()
    [-1.0, -2.0]
    >>> Change("set", 0.0).describe("Pax4")
    'Pax4 = 0'
    """

    kind: Kind
    value: float

    def of(self, expression: FloatArray) -> FloatArray:
        """Return the change of each expression value, of the same shape."""
        if self.kind == "set":
            return np.asarray(self.value - expression)
        if self.kind == "scale":
            return np.asarray((self.value - 1.0) * expression)
        return np.asarray(np.maximum(expression + self.value, 0.0) - expression if self.value < 0 else self.value)

    def describe(self, gene: str) -> str:
        """Return the change of a gene in words, such as ``"Pax4 = 0"``."""
        return _WORDS[self.kind].format(gene=gene, value=self.value)


def parse_changes(changes: Mapping[str, Any]) -> dict[str, Change]:
    """Return what is asked for each gene: a number to set it to, ``("scale", factor)`` or ``("add", difference)``."""
    if not isinstance(changes, Mapping):
        raise TypeError(f"Expected changes as `{{gene: value}}`, found `{type(changes).__name__}`.")
    if not changes:
        raise ValueError("Expected at least one gene to change, found none.")
    return {str(gene): _parsed(str(gene), change) for gene, change in changes.items()}


def _parsed(gene: str, change: Any) -> Change:
    if isinstance(change, Change):
        return change
    if isinstance(change, str) or not isinstance(change, Sequence):
        return Change("set", check_number(f"changes[{gene!r}]", change, low=0))
    if len(change) != 2:
        raise ValueError(f"Expected `changes[{gene!r}]` as `('scale', factor)` or the like, found `{change!r}`.")
    kind, value = change
    check_choice(f"changes[{gene!r}][0]", kind, Kind)
    number = check_number(f"changes[{gene!r}][1]", value, low=-np.inf if kind == "add" else 0.0)
    if number == {"scale": 1.0, "add": 0.0}.get(kind):
        raise ValueError(f"Expected a change of {gene!r}, found `{change!r}`, which leaves it as it is.")
    return Change(kind, number)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Perturbation(Stage):
    r"""Genes that are changed in cells, and the displacement of these cells in the basis.

    The displacement of a cell is :math:`\delta x = \sum_g \delta_g L_g` with the change :math:`\delta_g` of each gene
    and its row :math:`L_g` of the loadings. The centring of the PCA does not matter to it.

    Attributes
    ----------
    genes
        Names of the genes, shape ``[n_genes]``.
    kinds
        ``"set"``, ``"scale"`` or ``"add"`` for each gene, shape ``[n_genes]``.
    values
        Value, factor or difference for each gene, shape ``[n_genes]``.
    amounts
        Change of each gene in each cell, 0 in cells that are not perturbed, over the scale of the gene where the PCA
        was computed from scaled genes; shape ``[n_cells, n_genes]``.
    directions
        Loadings of the genes, shape ``[n_genes, n_dims]``.
    cells
        Which cells are perturbed, shape ``[n_cells]``.
    effect
        ``"clamp"`` for a change that lasts, ``"pulse"`` for one that is made once.
    layer
        Layer of the expression; empty for ``adata.X``.
    gene_scale
        Column of ``adata.var`` with the scales of genes; empty for genes that were not scaled.

    Examples
    --------
    >>> knockout = vk.perturb({"FateA": 0.0}, cells={"clusters": "Progenitor"})
    >>> knockout.name, knockout.effect, knockout.dx.shape
    ('FateA = 0', 'clamp', (300, 20))
    >>> knockout.changes["FateA"].value
    0.0
    >>> bool((knockout.dx[~knockout.cells] == 0).all())
    True
    """

    genes: NDArray[np.str_]
    kinds: NDArray[np.str_]
    values: FloatArray
    amounts: FloatArray
    directions: FloatArray
    cells: NDArray[np.bool_]
    effect: Effect
    layer: str = ""
    gene_scale: str = ""

    @property
    def dx(self) -> FloatArray:
        """Displacement of each cell in the basis, shape ``[n_cells, n_dims]``."""
        return np.asarray(self.amounts @ self.directions)

    @property
    def changes(self) -> dict[str, Change]:
        """What is done to each gene."""
        parts = zip(self.genes, self.kinds, self.values, strict=True)
        return {str(gene): Change(kind, float(value)) for gene, kind, value in parts}

    @property
    def name(self) -> str:
        """What is done, in words."""
        return ", ".join(change.describe(gene) for gene, change in self.changes.items())

    def __repr__(self) -> str:
        length = np.linalg.norm(self.dx[self.cells], axis=1).mean()
        return f"Perturbation[{self.name}; {self.effect}; {int(self.cells.sum())} cells, mean length {length:.3g}]"


def compute_perturbation(
    expression: FloatArray,
    loadings: FloatArray,
    changes: Mapping[str, Any],
    *,
    cells: NDArray[np.bool_] | None = None,
    scale: FloatArray | None = None,
    effect: Effect = "clamp",
    layer: str = "",
    gene_scale: str = "",
) -> Perturbation:
    """Return the perturbation of genes with expression ``[n_cells, n_genes]`` and loadings ``[n_dims, n_genes]``.

    ``cells [n_cells]`` are perturbed, all where not given. ``scale [n_genes]`` is what the PCA divided genes by.
    """
    asked = parse_changes(changes)
    check_choice("effect", effect, Effect)
    n_cells, n_genes = expression.shape
    if n_genes != len(asked) or loadings.shape[1] != n_genes:
        raise ValueError(
            f"Expected expression and loadings of `{len(asked)}` genes, found `{n_genes}` and `{loadings.shape[1]}`."
        )
    chosen = np.ones(n_cells, dtype=bool) if cells is None else np.asarray(cells, dtype=bool)
    if chosen.shape != (n_cells,) or not chosen.any():
        raise ValueError(f"Expected a mask of `{n_cells}` cells with some to perturb, found `{chosen.sum()}`.")
    amounts = np.zeros((n_cells, n_genes))
    for i, (gene, change) in enumerate(asked.items()):
        amounts[chosen, i] = change.of(expression[chosen, i])
        _check_gene(gene, change, amounts[chosen, i], expression[chosen, i], loadings[:, i])
    return Perturbation(
        genes=np.array(list(asked)),
        kinds=np.array([change.kind for change in asked.values()]),
        values=np.array([change.value for change in asked.values()]),
        amounts=amounts if scale is None else amounts / scale,
        directions=loadings.T,
        cells=chosen,
        effect=effect,
        layer=layer,
        gene_scale=gene_scale,
    )


def _check_gene(gene: str, change: Change, delta: FloatArray, expression: FloatArray, loadings: FloatArray) -> None:
    """Refuse a gene whose change cannot be seen in the basis."""
    if not loadings.any():
        raise ValueError(f"Expected {gene!r} to have a weight in the PCA, found none: the field does not see it.")
    if not np.isfinite(expression).all():
        raise ValueError(f"Expected finite expression of {gene!r}, found NaN or infinite values.")
    if change.kind != "add" and (expression < 0).any():
        raise ValueError(
            f"Expected expression of {gene!r} that is not negative, found `{(expression < 0).sum()}` cells where it "
            "is: the values were centred, and zero is not absence. Pass the layer of log-normalised values, and "
            "`gene_scale` where they were scaled for the PCA."
        )
    if not delta.any():
        raise ValueError(
            f"Expected `{change.describe(gene)}` to change its expression, found that it is `{expression.mean():g}` in "
            f"all `{expression.size}` cells already, and detected in `{(expression > 0).sum()}`."
        )
