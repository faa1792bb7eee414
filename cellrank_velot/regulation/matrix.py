"""Which gene drives which, and which drives growth: means of derivatives of the field over groups of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.options import Run
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_integer, check_known, check_number
from cellrank_velot.regulation.bootstrap import RegulationOptions, bootstrap
from cellrank_velot.regulation.derivatives import Differentiable, Variables, has_growth
from cellrank_velot.regulation.groups import large_groups

__all__ = ["MAX_GENES", "Regulation", "compute_growth_genes", "compute_regulation"]

FloatArray = NDArray[np.float64]

# Genes that effects are computed between: there are as many effects as pairs, in every replicate of the bootstrap.
MAX_GENES = 200


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Regulation(Stage):
    """Mean effect of genes, or dimensions of the basis, on one another, by group of cells.

    Attributes
    ----------
    jacobian
        Mean over the cells of a group of the derivative of the drift of gene ``i`` by gene ``j``, shape ``[n_groups,
        n_genes, n_genes]``: the effect of source ``j`` on target ``i``, per unit of time.
    std, lower, upper
        Standard deviation and interval of that mean over replicates of the bootstrap, same shape.
    stability
        Share of the replicates whose sign is that of the mean, same shape; zero where the mean is zero.
    held
        Share of a change of each gene that the basis keeps, in ``[0, 1]``, mean over the cells of a group, shape
        ``[n_groups, n_genes]``. One for dimensions of the basis.
    n_cells
        Number of cells of each group, shape ``[n_groups]``.
    groups, names
        Names of groups and of genes.
    degradation
        Rates that were taken off, shape ``[n_genes]``.
    level
        Share of the replicates in the interval.

    Examples
    --------
    >>> regulation = vk.compute_regulation(
    ...     ["Stem", "FateA", "FateB"], groups="clusters", n_bootstrap=50
    ... )
    >>> regulation.matrix("Transition").shape
    (3, 3)
    >>> len(regulation.edges(group="Transition", self_loops=False))
    6
    >>> regulation.contraction.shape  # of each group
    (4,)
    """

    jacobian: FloatArray
    std: FloatArray
    lower: FloatArray
    upper: FloatArray
    stability: FloatArray
    held: FloatArray
    n_cells: NDArray[np.int64]
    groups: NDArray[np.str_]
    names: NDArray[np.str_]
    degradation: FloatArray
    level: float

    def __post_init__(self) -> None:
        """Take names as text, which a file returns as objects, and check shapes."""
        for name in ("groups", "names"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.str_).reshape(-1))
        Stage.__post_init__(self)
        shape = (self.groups.size, self.names.size, self.names.size)
        for name in ("jacobian", "std", "lower", "upper", "stability"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"Expected `{name}` of the shape `{shape}`, found `{getattr(self, name).shape}`.")

    def __repr__(self) -> str:
        text = f"Regulation[groups={self.groups.size}; names={self.names.size}"
        strongest = self.edges(1, self_loops=False)
        if not len(strongest):
            return f"{text}]"
        edge = strongest.loc[strongest["effect"].abs().idxmax()]
        return f"{text}; {edge['source']} to {edge['target']}: {edge['effect']:+.3g} in {edge['group']}]"

    @property
    def contraction(self) -> FloatArray:
        """Mean rate at which the drift brings cells together: minus the mean diagonal, shape ``[n_groups]``.

        It is that of the whole regulation between dimensions of the basis, ``compute_regulation()`` without genes, and
        has nothing to do with which gene drives which. Only a velocity with ``relaxation`` contracts, as it brings
        cells back to their path: between genes, this adds the negative of what two genes share in the basis to each of
        their effects, and given as ``degradation`` it is taken off again. By default there is no relaxation. Then this
        is about zero or negative, cells drift apart, and there is nothing to take off.
        """
        return -np.asarray(np.diagonal(self.jacobian, axis1=1, axis2=2).mean(axis=1))

    def matrix(self, group: str) -> pd.DataFrame:
        """Return the mean effects in one group as a table with a row for each target and a column for each source.

        Parameters
        ----------
        group
            Name of the group.

        Raises
        ------
        KeyError
            If there is no such group.
        """
        check_known("groups", group, self.groups)
        at = int(np.flatnonzero(self.groups == group)[0])
        return pd.DataFrame(self.jacobian[at], index=self.names, columns=self.names)

    def edges(
        self, n: int | None = None, group: str | None = None, *, self_loops: bool = True, min_stability: float = 0.0
    ) -> pd.DataFrame:
        """Return effects as a table, the strongest first.

        Parameters
        ----------
        n
            Number of edges of each group; all where not given.
        group
            Group to return; all, one after the other, where not given.
        self_loops
            Whether to return the effects of genes on themselves.
        min_stability
            Least stability of an edge, in ``[0, 1]``.

        Returns
        -------
        One row for each edge: ``source``, ``target``, ``group``, ``effect`` (the mean), its ``std``, ``lower`` and
        ``upper``, ``sign`` (1 activates, -1 represses) and ``stability``.

        Raises
        ------
        KeyError
            If there is no such group.
        ValueError
            If ``n`` or ``min_stability`` is out of range.
        """
        check_number("min_stability", min_stability, low=0, high=1)
        if n is not None:
            check_integer("n", n, low=1)
        if group is not None:
            check_known("groups", group, self.groups)
        tables = [
            self._edges(at, n, self_loops, min_stability)
            for at, name in enumerate(self.groups)
            if group is None or name == group
        ]
        return pd.concat(tables, ignore_index=True)

    def _edges(self, at: int, n: int | None, self_loops: bool, min_stability: float) -> pd.DataFrame:
        target, source = np.divmod(np.arange(self.names.size**2), self.names.size)
        columns = {"source": self.names[source], "target": self.names[target], "group": str(self.groups[at])}
        stored = (self.jacobian, self.std, self.lower, self.upper, self.stability)
        table = pd.DataFrame(columns | _columns(*(array[at].ravel() for array in stored)))
        table = table[(table["stability"] >= min_stability) & (self_loops | (source != target))]
        strongest = table["effect"].abs().sort_values(ascending=False, kind="stable").index
        return table.loc[strongest[:n]]


def compute_regulation(
    field: Differentiable | Sequence[Differentiable],
    x: FloatArray,
    time: FloatArray,
    groups: Any = None,
    variables: Variables | None = None,
    degradation: float | FloatArray | Mapping[str, float] = 0.0,
    options: RegulationOptions = RegulationOptions(),
    run: Run = Run(),
) -> Regulation:
    r"""Average the Jacobian of the drift over groups of cells, and over several fields where there are.

    Between genes it is the derivative of their drift :math:`D v` by their levels, :math:`\partial_x (D v) D^+`
    :cite:`qiu:22`. :math:`D` are the rows of the chosen genes in the Jacobian of the decoder, and :math:`D^+` is its
    pseudo-inverse over all genes that it knows. A linear decoder gives :math:`D J D^+`, and the loadings of a PCA,
    which are orthonormal over all its genes, :math:`W^T J W`.

    Degradation in the drift, :math:`-\gamma_i g_i`, adds :math:`-\gamma_i (D D^+)_{ij}`, which is the diagonal alone
    where the basis holds all of the genes. ``degradation`` is this :math:`\gamma`, and is taken off.
    """
    variables = _checked(variables, x, time)
    rate = _rates(degradation, variables.names)
    if variables.are_genes and len(variables.names) > MAX_GENES:
        raise ValueError(
            f"Expected at most `{MAX_GENES}` genes, as edges are between all pairs, found `{len(variables.names)}`. "
            "Name those of interest."
        )
    where, fields = resolve_device(run.device), _fields(field)
    parts = large_groups(groups, len(x), options.min_cells)

    def chunks(one: Differentiable, cells: NDArray[np.int64]) -> Iterator[FloatArray]:
        return variables.jacobians_of(one, x[cells], time[cells], rate, where)

    def finish(means: FloatArray) -> FloatArray:
        return variables.mean_jacobian(means, rate)

    with single_thread(where):
        found = [
            bootstrap([chunks(one, cells) for one in fields], cells.size, finish, options) for cells in parts.values()
        ]
    mean, std, lower, upper, stability = (np.stack(column)[:, :-1] for column in zip(*found, strict=True))
    return Regulation(
        jacobian=mean,
        std=std,
        lower=lower,
        upper=upper,
        stability=stability,
        held=np.stack([values[0][-1] for values in found]),
        n_cells=np.array([cells.size for cells in parts.values()]),
        groups=np.array(list(parts)),
        names=np.array(variables.names),
        degradation=rate,
        level=options.level,
    )


def compute_growth_genes(
    field: Any,
    x: FloatArray,
    time: FloatArray,
    groups: Any = None,
    variables: Variables | None = None,
    options: RegulationOptions = RegulationOptions(),
    run: Run = Run(),
) -> pd.DataFrame:
    r"""Average the gradient of the growth rate over groups of cells, by gene :math:`(D^+)^T \nabla g`.

    See :func:`compute_regulation` for :math:`D`; with the loadings of a PCA the gradient is :math:`W^T \nabla g`.
    """
    variables = _checked(variables, x, time)
    where, fields = resolve_device(run.device), _fields(field)
    if not all(has_growth(one) for one in fields):
        raise RuntimeError(
            "Expected a field with growth, found none. Only a field of real time points has growth, "
            "`OTVelocityKernel(adata, time_kind='experimental')`; a pseudotime tells nothing of growth."
        )
    tables = []
    with single_thread(where):
        for group, cells in large_groups(groups, len(x), options.min_cells).items():
            chunks = [variables.gradients_of(one, x[cells], time[cells], where) for one in fields]
            values = bootstrap(chunks, cells.size, variables.mean_gradient, options)
            table = pd.DataFrame({"gene": variables.names, "group": group} | _columns(*values))
            tables.append(table.loc[table["effect"].abs().sort_values(ascending=False, kind="stable").index])
    return pd.concat(tables, ignore_index=True)


def _columns(
    effect: FloatArray, std: FloatArray, lower: FloatArray, upper: FloatArray, stability: FloatArray
) -> dict[str, NDArray[Any]]:
    """Return the columns that tables of effects share."""
    sign = np.sign(effect).astype(np.int64)
    return {"effect": effect, "std": std, "lower": lower, "upper": upper, "sign": sign, "stability": stability}


def _fields(field: Any) -> list[Any]:
    fields = list(field) if isinstance(field, Sequence) else [field]
    if not fields:
        raise ValueError("Expected a field or several, found none.")
    return fields


def _checked(variables: Variables | None, x: FloatArray, time: FloatArray) -> Variables:
    """Return the variables, which are the numbered dimensions of the basis where ``None``."""
    variables = Variables(tuple(map(str, range(x.shape[1])))) if variables is None else variables
    variables.check_basis(x.shape[1])
    if time.shape != x.shape[:1]:
        raise ValueError(f"Expected a time for each of the `{x.shape[0]}` cells, found the shape `{time.shape}`.")
    return variables


def _rates(degradation: float | FloatArray | Mapping[str, float], names: Sequence[str]) -> FloatArray:
    """Return the degradation rate of each gene."""
    if isinstance(degradation, Mapping | pd.Series):
        for name in names:
            check_known("degradation", name, degradation.keys())
        degradation = np.array([degradation[name] for name in names], dtype=np.float64)
    rates: FloatArray = np.asarray(degradation, dtype=np.float64)
    if rates.ndim > 1 or (rates.ndim == 1 and rates.size != len(names)):
        raise ValueError(
            f"Expected `degradation` of `{len(names)}` genes or one rate, found the shape `{rates.shape}`."
        )
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(
            f"Expected `degradation` to be finite and not negative, found `{degradation}`. A field whose `contraction` "
            "is negative has none to take off: leave `degradation` out, as in `.compute_regulation(genes)`."
        )
    return np.broadcast_to(rates, (len(names),)).copy()
