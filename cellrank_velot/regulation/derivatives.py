"""Derivatives of a field at points: its Jacobian and the gradient of its growth, between dimensions or named genes.

A field is anything that gives its drift, and its growth where it has one, as a function of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.lazy import torch

__all__ = ["Decoder", "Differentiable", "Variables", "has_growth", "jacobians"]

FloatArray = NDArray[np.float64]

# Numbers held at a time while derivatives are computed.
CHUNK_VALUES = 4_000_000
# Width of the inner layers of a field that the sizes of chunks assume.
USUAL_WIDTH = 256
# Singular values of a decoder's Jacobian below this share of the largest are rounding errors of single precision.
NEGLIGIBLE = 1e-6
# Torch's forward mode has one state for all threads of a process: one at a time.
FORWARD_MODE = Lock()

Function = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Decoder = Callable[["torch.Tensor"], "torch.Tensor"]


class Differentiable(Protocol):
    """A field such as :class:`cellrank_velot.field.VelocityField`; ``drift_on`` is asked in place of ``on``."""

    def on(self, device: torch.device | str) -> Function:
        """Return the field as a function of positions ``[n, n_dims]`` and times ``[n]``."""


def has_growth(field: Any) -> bool:
    """Return whether a field gives growth: it has ``growth_on``, and heads if it says whether it has them."""
    return hasattr(field, "growth_on") and bool(getattr(field, "has_heads", True))


def jacobians(field: Differentiable, x: FloatArray, time: FloatArray | float, *, device: str = "cpu") -> FloatArray:
    """Return the Jacobian of the drift at each point, ``[n_points, n_dims, n_dims]``, exact but for rounding.

    Element ``i, j`` is the derivative of the drift in dimension ``i`` by the position in dimension ``j``. ``time`` is
    that of each point, or one for all.
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
class Variables:
    """What effects are between: dimensions of the basis, or genes that loadings or a decoder read from it.

    Loadings :math:`W` of a PCA give genes :math:`g` and their velocity: a position is :math:`(g - m) W^T`, and the
    velocity of genes is :math:`v W`. A decoder is a differentiable function from positions ``[n, n_dims]`` to all genes
    that it knows, ``[n, n_known]``. A module is called where its weights are and in their precision, another function
    on the CPU and in double precision.
    """

    names: tuple[str, ...]
    loadings: FloatArray | None = None  # [n_dims, n_genes]
    decoder: Decoder | None = None
    # Which outputs of the decoder the genes are, [n_genes], and how many outputs it must have; any number where None.
    chosen: NDArray[np.int64] | None = None
    n_known: int | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.loadings is not None and self.decoder is not None:
            raise ValueError("Expected `loadings` or a `decoder` of the genes, found both.")
        if self.are_genes and len(set(self.names)) != len(self.names):
            raise ValueError("Expected each gene once, found some twice.")
        found = self.chosen if self.loadings is None else self.loadings.T
        if found is not None and len(found) != len(self.names):
            raise ValueError(f"Expected as many genes as the `{len(self.names)}` names, found `{len(found)}`.")

    @property
    def are_genes(self) -> bool:
        """Whether they are genes, and not the dimensions of the basis."""
        return self.loadings is not None or self.decoder is not None

    def check_basis(self, n_dims: int) -> None:
        """Check that they belong to a basis of so many dimensions."""
        if self.loadings is not None and self.loadings.shape[0] != n_dims:
            raise ValueError(
                f"Expected loadings of the `{n_dims}` dimensions of the basis, found `{self.loadings.shape[0]}`."
            )
        if not self.are_genes and not len(self.names) == len(set(self.names)) == n_dims:
            raise ValueError(
                f"Expected a different name for each of the `{n_dims}` dimensions, found {list(self.names)}."
            )

    def jacobians_of(
        self, field: Differentiable, x: FloatArray, time: FloatArray, rate: FloatArray, where: torch.device
    ) -> Iterator[FloatArray]:
        """Yield flat Jacobians, chunk by chunk.

        They are between dimensions of the basis, and through a decoder between genes. These end with a row that says
        which share of a change of each gene the basis keeps.
        """
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

    def mean_jacobian(self, values: FloatArray, rate: FloatArray) -> FloatArray:
        """Return Jacobians between the variables, ``[n, n_variables + 1, n_variables]``, from means of flat ones.

        The last row says which share of a change of each variable the basis keeps. ``rate`` is taken off the diagonal.
        """
        n = len(self.names)
        if self.decoder is not None:
            return values.reshape(-1, n + 1, n)
        weights = np.eye(n) if self.loadings is None else self.loadings
        share = weights.T @ weights
        inner = values.reshape(-1, weights.shape[0], weights.shape[0])
        between = weights.T @ inner @ weights + rate[:, None] * share
        return np.concatenate([between, np.broadcast_to(np.diag(share), (len(between), 1, n))], axis=1)

    def gradients_of(self, field: Any, x: FloatArray, time: FloatArray, where: torch.device) -> Iterator[FloatArray]:
        """Yield gradients of growth by dimension of the basis, and through a decoder by gene, chunk by chunk."""
        growth: Function = field.growth_on(where)
        gradient = _derivative(lambda points, times: growth(points, times).reshape(-1, 1))
        known, decoder = self._decoder(x)
        for part in _chunks(x.shape[0], x.shape[1], known):
            values = gradient(*_tensors(x[part], time[part], where)).double().cpu()
            if decoder is not None:
                values = values @ decoder(x[part])[1]
            yield values.squeeze(1).numpy()

    def mean_gradient(self, values: FloatArray) -> FloatArray:
        """Return gradients by variable from means of those of :meth:`gradients_of`."""
        return values if self.loadings is None else values @ self.loadings

    def _decoder(self, x: FloatArray) -> tuple[int, Any]:
        """Return how many genes the decoder knows, and the function of points that gives its derivatives there.

        These are the chosen rows of its Jacobian and the chosen columns of the pseudo-inverse. Given a drift, also how
        the product of these rows with the drift changes with the point.
        """
        if self.decoder is None:
            return 0, None
        decode, chosen = self.decoder, self.chosen
        place = _place_of(decode)
        known = _check_decoded(decode(torch.tensor(x[:2], **place)), x[:2], self)
        take = torch.arange(known) if chosen is None else torch.tensor(chosen)

        def of_one(point: torch.Tensor) -> torch.Tensor:
            return decode(point.unsqueeze(0)).squeeze(0)

        def along(point: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
            change: torch.Tensor = torch.func.jvp(of_one, (point,), (way,))[1]
            return change

        rows_of, bend_of = torch.func.vmap(torch.func.jacfwd(of_one)), torch.func.vmap(torch.func.jacfwd(along))

        def evaluate(at: FloatArray, drift: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            points = torch.tensor(at, **place)
            with FORWARD_MODE:
                rows = rows_of(points).detach().double().cpu()
            # The normal equations are small. Their eigenvalues are squares of singular values.
            inner = torch.linalg.pinv(rows.mT @ rows, rtol=NEGLIGIBLE**2, hermitian=True)
            found = rows[:, take], inner @ rows[:, take].mT
            if drift is None:
                return found
            with FORWARD_MODE:
                bend = bend_of(points, drift.to(**place)).detach().double().cpu()
            return *found, bend[:, take]

        return known, evaluate


def _drift(field: Differentiable, where: torch.device) -> Function:
    function: Function = getattr(field, "drift_on", field.on)(where)
    return function


def _derivative(function: Function) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function of points and times that gives the derivative by the point, shape ``[n, n_out, n_dims]``."""
    of_one = torch.func.jacrev(lambda point, time: function(point.unsqueeze(0), time.unsqueeze(0)).squeeze(0))
    derivative = torch.func.vmap(of_one)
    return lambda x, time: derivative(x, time).detach()


def _chunks(n_points: int, n_dims: int, n_known: int = 0) -> Iterator[slice]:
    size = max(1, CHUNK_VALUES // (n_dims * (n_dims + USUAL_WIDTH + 3 * n_known)))
    for start in range(0, n_points, size):
        yield slice(start, start + size)


def _tensors(x: FloatArray, time: FloatArray, where: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(np.ascontiguousarray(part), dtype=torch.float64, device=where) for part in (x, time))


def _place_of(decoder: Decoder) -> dict[str, Any]:
    """Return device and precision of a module's weights; of another function, the CPU and double precision."""
    weight = next(decoder.parameters(), None) if isinstance(decoder, torch.nn.Module) else None
    return {"dtype": torch.float64} if weight is None else {"dtype": weight.dtype, "device": weight.device}


def _check_decoded(found: Any, x: FloatArray, genes: Variables) -> int:
    """Return how many genes a decoder knows, from what it returns at some points."""
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
