"""Derivatives of a field at points: its Jacobian and the gradient of its growth, in the basis or between named genes.

Depends on numpy and torch. A field is anything that gives its drift, and its growth where it has one, as a function of
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import jacfwd, jacrev, jvp, vmap

from cellrank_velot._utils.device import resolve_device, single_thread

__all__ = ["Decoder", "Differentiable", "Genes", "Reading", "has_growth", "jacobians"]

# Numbers held at a time while derivatives are computed.
CHUNK_VALUES = 4_000_000
# Inner width that a field is taken to have, for the size of a chunk.
USUAL_WIDTH = 256
# Singular values of a decoder's Jacobian below this share of the largest are rounding errors of single precision.
NEGLIGIBLE = 1e-6

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Decoder = Callable[[torch.Tensor], torch.Tensor]


class Differentiable(Protocol):
    """A field such as :class:`cellrank_velot.field.VelocityField`; ``drift_on`` is asked in place of ``on``."""

    def on(self, device: torch.device | str) -> Function:
        """Return the field as a function of positions ``[n, n_dims]`` and times ``[n]``."""


@dataclass(frozen=True, eq=False)
class Genes:
    """How named genes are read from the basis: through loadings or through a decoder.

    Attributes
    ----------
    names
        Names of the genes.
    loadings
        Loadings :math:`W` of a PCA at these genes, shape ``[n_dims, n_genes]``: a position is :math:`(g - m) W^T` of
        the expression, and the velocity of genes is :math:`v W`.
    decoder
        In place of loadings, a differentiable function from positions ``[n, n_dims]`` to the expression of all genes
        that it knows, ``[n, n_known]``. A module is called where its weights are and in their precision, another
        function on the CPU and in double precision.
    chosen
        Which outputs of the decoder the genes are, shape ``[n_genes]``; all where ``None``.
    n_known
        Number of outputs of the decoder, where ``chosen`` is given, to check it; not checked where ``None``.

    Raises
    ------
    ValueError
        If there are not loadings or a decoder, or both, or numbers of genes do not agree.

    Examples
    --------
    >>> from cellrank_velot.regulation.derivatives import Genes
    >>> genes = Genes(("FateA", "FateB"), loadings=adata.varm["PCs"][1:3].T)
    >>> genes.loadings.shape
    (20, 2)
    """

    names: tuple[str, ...]
    loadings: NDArray[np.float64] | None = None
    decoder: Decoder | None = None
    chosen: NDArray[np.int64] | None = None
    n_known: int | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if (self.loadings is None) == (self.decoder is None):
            raise ValueError("Expected `loadings` or a `decoder` of the genes, found both or neither.")
        if len(set(self.names)) != len(self.names):
            raise ValueError("Expected each gene once, found some twice.")
        found = self.chosen if self.loadings is None else self.loadings.T
        if found is not None and len(found) != len(self.names):
            raise ValueError(f"Expected as many genes as the `{len(self.names)}` names, found `{len(found)}`.")


def has_growth(field: Any) -> bool:
    """Return whether a field gives growth: it has ``growth_on``, and heads where it says whether it has them.

    Parameters
    ----------
    field
        Any field.

    Examples
    --------
    >>> from cellrank_velot.regulation.derivatives import has_growth
    >>> has_growth(sk.field), has_growth(vk.field)
    (True, False)
    """
    return hasattr(field, "growth_on") and bool(getattr(field, "has_heads", True))


def jacobians(
    field: Differentiable, x: NDArray[np.float64], time: NDArray[np.float64] | float, *, device: str = "cpu"
) -> NDArray[np.float64]:
    """Return the Jacobian of the drift at each point, exact but for rounding.

    Parameters
    ----------
    field
        The field.
    x
        Positions of shape ``[n_points, n_dims]``.
    time
        Time of each position, shape ``[n_points]``, or one for all.
    device
        Torch device, or ``"auto"``.

    Returns
    -------
    Derivatives of the drift in dimension ``i`` by the position in dimension ``j``, per unit of time, shape
    ``[n_points, n_dims, n_dims]``. It grows with the square of the dimensions: for means over many cells, see
    :func:`cellrank_velot.regulation.matrix.compute_regulation`, which keeps none of it.

    Examples
    --------
    >>> from cellrank_velot.regulation.derivatives import jacobians
    >>> jacobians(vk.field, vk.cells.x[:3], vk.cells.time[:3]).shape
    (3, 20, 20)
    """
    where = resolve_device(device)
    times = np.broadcast_to(np.asarray(time, dtype=np.float64), x.shape[:1])
    result = np.empty((x.shape[0], x.shape[1], x.shape[1]))
    derivative = _derivative(_drift(field, where))
    with single_thread(where):
        for part in _chunks(x.shape[0], x.shape[1]):
            result[part] = derivative(*_tensors(x[part], times[part], where)).cpu().numpy()
    return result


@dataclass(frozen=True, eq=False)
class Reading:
    """What is computed at each cell, and what is made of its means, between genes or dimensions.

    Attributes
    ----------
    names
        Names of the dimensions of the basis, or of the genes.
    genes
        How genes are read; ``None`` for dimensions of the basis.

    Examples
    --------
    >>> import torch
    >>> from cellrank_velot.regulation.derivatives import Reading
    >>> reading, rate = Reading([f"PC{i + 1}" for i in range(20)], None), np.zeros(20)
    >>> chunks = reading.of_drift(
    ...     vk.field, vk.cells.x, vk.cells.time, rate, torch.device("cpu")
    ... )
    >>> mean = np.concatenate(list(chunks)).mean(axis=0)
    >>> reading.jacobian(rate)(mean).shape  # a last row says what the basis holds
    (1, 21, 20)
    """

    names: list[str]
    genes: Genes | None

    def of_drift(
        self,
        field: Differentiable,
        x: NDArray[np.float64],
        time: NDArray[np.float64],
        rate: NDArray[np.float64],
        where: torch.device,
    ) -> Iterator[NDArray[np.float64]]:
        """Yield chunks of Jacobians, flat; those of a decoder are between genes and end with what it holds of them."""
        drift = _drift(field, where)
        derivative = _derivative(drift)
        known, decoder = self._decoder(x)
        for part in _chunks(x.shape[0], x.shape[1], known):
            points = _tensors(x[part], time[part], where)
            values = derivative(*points).double().cpu()
            if decoder is not None:
                rows, inverse, bend = decoder(x[part], drift(*points).double().cpu())
                share = rows @ inverse
                values = (rows @ values + bend) @ inverse + torch.tensor(rate)[:, None] * share
                values = torch.cat([values, torch.diagonal(share, dim1=1, dim2=2).unsqueeze(1)], dim=1)
            yield values.flatten(1).numpy()

    def jacobian(self, rate: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        """Return what makes means between genes of means at cells; a last row is what the basis holds of them."""
        n = len(self.names)

        def finish(values: NDArray[np.float64]) -> NDArray[np.float64]:
            if self.genes is not None and self.genes.decoder is not None:
                return values.reshape(-1, n + 1, n)
            weights = np.eye(n) if self.genes is None else self._loadings
            share = weights.T @ weights
            inner = values.reshape(-1, weights.shape[0], weights.shape[0])
            between = weights.T @ inner @ weights + rate[:, None] * share
            return np.concatenate([between, np.broadcast_to(np.diag(share), (len(between), 1, n))], axis=1)

        return finish

    def of_growth(
        self, field: Any, x: NDArray[np.float64], time: NDArray[np.float64], where: torch.device
    ) -> Iterator[NDArray[np.float64]]:
        """Yield chunks of gradients of growth; those of a decoder are by gene."""
        growth: Function = field.growth_on(where)
        gradient = _derivative(lambda points, times: growth(points, times).reshape(-1, 1))
        known, decoder = self._decoder(x)
        for part in _chunks(x.shape[0], x.shape[1], known):
            values = gradient(*_tensors(x[part], time[part], where)).double().cpu()
            if decoder is not None:
                values = values @ decoder(x[part])[1]
            yield values.squeeze(1).numpy()

    def gradient(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return means by gene of means at cells."""
        return values if self.genes is None or self.genes.loadings is None else values @ self._loadings

    @property
    def _loadings(self) -> NDArray[np.float64]:
        if self.genes is None or self.genes.loadings is None:
            raise AssertionError  # asked for with loadings only
        return self.genes.loadings

    def _decoder(self, x: NDArray[np.float64]) -> tuple[int, Any]:
        """Return how many genes a decoder knows, and what gives its derivatives at points.

        These are the chosen rows of its Jacobian, of the pseudo-inverse the chosen columns and, given a drift, how the
        rows of the Jacobian times the drift change with the point.
        """
        if self.genes is None or self.genes.decoder is None:
            return 0, None
        decode, chosen = self.genes.decoder, self.genes.chosen
        place = _place_of(decode)
        known = _check_decoded(decode(torch.tensor(x[:2], **place)), x[:2], self.genes)
        take = torch.arange(known) if chosen is None else torch.tensor(chosen)

        def of_one(point: torch.Tensor) -> torch.Tensor:
            return decode(point.unsqueeze(0)).squeeze(0)

        def along(point: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
            change: torch.Tensor = jvp(of_one, (point,), (way,))[1]
            return change

        rows_of, bend_of = vmap(jacfwd(of_one)), vmap(jacfwd(along))

        def evaluate(at: NDArray[np.float64], drift: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            points = torch.tensor(at, **place)
            rows = rows_of(points).detach().double().cpu()
            # Of the normal equations, which are small; their eigenvalues are squares of singular values.
            inner = torch.linalg.pinv(rows.mT @ rows, rtol=NEGLIGIBLE**2, hermitian=True)
            found = rows[:, take], inner @ rows[:, take].mT
            if drift is None:
                return found
            return *found, bend_of(points, drift.to(**place)).detach().double().cpu()[:, take]

        return known, evaluate


def _drift(field: Differentiable, where: torch.device) -> Function:
    function: Function = getattr(field, "drift_on", field.on)(where)
    return function


def _derivative(function: Function) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function of points and times that gives the derivative by the point, shape ``[n, n_out, n_dims]``."""
    derivative = vmap(jacrev(lambda point, time: function(point.unsqueeze(0), time.unsqueeze(0)).squeeze(0)))
    return lambda x, time: derivative(x, time).detach()


def _chunks(n_points: int, n_dims: int, n_known: int = 0) -> Iterator[slice]:
    size = max(1, CHUNK_VALUES // (n_dims * (n_dims + USUAL_WIDTH + 3 * n_known)))
    for start in range(0, n_points, size):
        yield slice(start, start + size)


def _tensors(x: NDArray[np.float64], time: NDArray[np.float64], where: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(np.ascontiguousarray(part), dtype=torch.float64, device=where) for part in (x, time))


def _place_of(decoder: Decoder) -> dict[str, Any]:
    """Return device and precision of a module's weights; of another function, the CPU and double precision."""
    weight = next(decoder.parameters(), None) if isinstance(decoder, torch.nn.Module) else None
    return {"dtype": torch.float64} if weight is None else {"dtype": weight.dtype, "device": weight.device}


def _check_decoded(found: Any, x: NDArray[np.float64], genes: Genes) -> int:
    """Return how many genes a decoder knows, after a look at what it gives."""
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or found.shape[0] != x.shape[0]:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(
            f"Expected `decoder` to return a tensor of the shape `[{x.shape[0]}, n_genes]`, found `{shape}`."
        )
    known = int(found.shape[1])
    expected = len(genes.names) if genes.chosen is None else genes.n_known
    if expected is not None and known != expected:
        raise ValueError(f"Expected `decoder` to return the `{expected}` genes named, found `{known}`.")
    return known
