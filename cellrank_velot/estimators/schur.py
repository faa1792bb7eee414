"""The leading part of a sorted real Schur decomposition of a sparse stochastic matrix, by a block Krylov-Schur method.

Arrays in and out. Vectors lie in the rows of arrays here, so that each is one piece of memory. The constant vector is
known, and kept apart from the start; what converges is checked with the matrix itself at the end.

Most of the time is not spent on products with a sparse matrix ``A``, but on keeping vectors orthogonal. Where the
eigenvalues with the largest real part are asked for, a vector of the space is thus two products on from the one before:
the space is that of ``B = (A + 4 A^2) / 5``, which has the same vectors and, unlike ``A^2``, in the same order.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cholesky, lapack, schur, solve_triangular
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

from cellrank_velot._utils.jit import read_only
from cellrank_velot._utils.slices import Slices
from cellrank_velot.estimators.compiled import along_base, multiply, take_away

__all__ = ["PartialSchur", "Which", "closed_classes", "eigengap", "partial_schur", "splits_pair"]

logger = logging.getLogger("cellrank_velot")

Which = Literal["LR", "LM"]
Array = NDArray[np.float64]
Order = Callable[[NDArray[np.complex128]], Array]

BLOCK = 2  # vectors that a product carries along: as many equal eigenvalues are told apart
LARGEST_BLOCK = 16
GUARD = 60  # vectors beyond those asked for: more of them cost memory and save products
TOLERANCE = 1e-10  # residual of a vector of length one
ENOUGH = 1e-6  # residual that is still of use, where the products run out
MOST_PRODUCTS = 60_000
SAME = 1e-9  # eigenvalues that differ by less may be copies of one
ROUNDING = 1e-14  # what a vector of length one may have along another
NEAR = 1e-6  # a copy that has all but converged is no farther from the others
AWAY = 10  # residuals by which an eigenvalue is away from others, however much the chain is directed


@dataclass(frozen=True, kw_only=True)
class PartialSchur:
    """Leading Schur vectors ``Q``, ``[n_cells, n_components]``, with ``A Q = Q R``, sorted by eigenvalue.

    ``A`` is the matrix in the metric of the input distribution. ``residual`` is the largest norm of a column of
    ``A Q - Q R``.
    """

    vectors: Array
    matrix: Array
    eigenvalues: NDArray[np.complex128]
    residual: float
    n_products: int

    @property
    def n_components(self) -> int:
        """Number of vectors."""
        return self.vectors.shape[1]


def closed_classes(matrix: sp.csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the communicating class of each cell, and the numbers of those classes that no step leaves."""
    n_classes, label = connected_components(matrix, directed=True, connection="strong")
    coo = matrix.tocoo()
    leaves = (label[coo.row] != label[coo.col]) & (coo.data != 0)
    is_closed = np.ones(n_classes, dtype=bool)
    is_closed[label[coo.row[leaves]]] = False
    return label.astype(np.int64), np.flatnonzero(is_closed)


def eigengap(eigenvalues: NDArray[np.complex128], alpha: float = 1.0) -> int:
    """Return the position of the eigenvalue before the largest gap; a gap counts less the farther it is from one."""
    real = np.sort(np.real(eigenvalues))[::-1]
    return int(np.argmax(real[:-1] - real[1:] - alpha * (1 - real[:-1])))


def splits_pair(eigenvalues: NDArray[np.complex128], n: int) -> bool:
    """Return whether the first ``n`` sorted eigenvalues end within a conjugate pair."""
    if n < 1 or n >= len(eigenvalues) + 1:
        return False
    last = eigenvalues[n - 1]
    return bool(last.imag > 0) if last.imag != 0 else False


# ---------------------------------------------------------------------------------------------------- small matrices
def _largest_real(eigenvalues: NDArray[np.complex128]) -> Array:
    return np.asarray(eigenvalues.real)


def _largest_real_before(eigenvalues: NDArray[np.complex128]) -> Array:
    """Return the order of eigenvalues ``b = (a + 4 a^2) / 5`` by the real part of ``a``."""
    return np.asarray(np.sqrt(1 + 80 * eigenvalues).real)


def _largest(eigenvalues: NDArray[np.complex128]) -> Array:
    return np.asarray(np.abs(eigenvalues))


_ORDERS: dict[Which, Order] = {"LR": _largest_real, "LM": _largest}


def _eigenvalues_of(t: Array) -> NDArray[np.complex128]:
    """Return the eigenvalues of a real Schur matrix, a pair as ``(a + bi, a - bi)``, in the order of its diagonal."""
    values = np.diag(t).astype(np.complex128)
    for i in np.flatnonzero(np.diag(t, -1)):
        root = np.sqrt(complex(t[i, i + 1] * t[i + 1, i] + ((t[i, i] - t[i + 1, i + 1]) / 2) ** 2))
        middle = (t[i, i] + t[i + 1, i + 1]) / 2
        values[i], values[i + 1] = middle + 1j * abs(root.imag), middle - 1j * abs(root.imag)
    return values


def _sort_schur(t: Array, u: Array, order: Order) -> tuple[Array, Array]:
    """Return a real Schur decomposition with its blocks in falling order of their eigenvalues.

    A block moves up by LAPACK's exchange of neighbours. Two that are too close for it stay as they are.
    """
    t, u = np.asfortranarray(t), np.asfortranarray(u)
    size, at = t.shape[0], 0
    while at < size:
        keys = order(_eigenvalues_of(t))
        best = at + int(np.argmax(keys[at:] > keys[at:].max() - 1e-14))
        if best > at:
            moved, vectors, info = lapack.dtrexc(t, u, best + 1, at + 1)
            if info == 0:
                t, u = moved, vectors
        at += 2 if at + 1 < size and t[at + 1, at] != 0 else 1
    return t, u


def _small_schur(h: Array, order: Order) -> tuple[Array, Array]:
    t, u = schur(h, output="real")[:2]
    return _sort_schur(t, u, order)


# ---------------------------------------------------------------------------------------------------- long vectors
class _Product:
    """The matrix in the metric of the input distribution, applied to rows; it counts what it is applied to."""

    def __init__(self, matrix: sp.csr_matrix, weights: Array | None, slices: Slices, which: Which) -> None:
        self.arrays = read_only(matrix.indptr, matrix.indices, matrix.data.astype(np.float64, copy=False))
        self.slices, self.n_products = slices, 0
        self.root = None if weights is None else np.sqrt(weights)
        # Of the moduli, pairs such as 0.9 and -0.9 would become one.
        self.two_steps = which == "LR"
        self.order: Order = _ORDERS[which]
        self.order_onward: Order = _largest_real_before if self.two_steps else self.order

    def __call__(self, rows: Array) -> Array:
        self.n_products += rows.shape[0]
        columns = read_only((rows if self.root is None else rows / self.root).T)[0]
        result = np.empty(rows.shape)
        self.slices.map(lambda part: multiply(*self.arrays, columns, result, part.start, part.stop))
        return result if self.root is None else result * self.root

    def onward(self, rows: Array) -> Array:
        """Return the vectors of the space that follow on rows."""
        following = self(rows)
        return (following + 4 * self(following)) / 5 if self.two_steps else following

    def onward_of(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Return the same of a small matrix."""
        return (matrix + 4 * matrix @ matrix) / 5 if self.two_steps else matrix


def _orthonormal(
    rows: Array, *bases: Array, rng: np.random.Generator, slices: Slices
) -> tuple[list[Array], Array, Array]:
    """Make rows orthonormal to each other and to bases, and return their parts along the bases, a factor and the rows.

    ``rows = sum(parts.T @ base) + factor.T @ result``. A row that depends on others becomes a random one, of which the
    factor has nothing. The number of rows is even.
    """
    parts: list[Array] = [np.zeros((base.shape[0], rows.shape[0])) for base in bases]
    factor = np.eye(rows.shape[0])
    scale = np.linalg.norm(rows, axis=1)
    rows = np.array(rows)
    fixed = read_only(*bases)

    def along_bases(part: slice) -> list[Array]:
        return [along_base(base, rows, part.start, part.stop) for base in fixed]

    def without(part: slice, again: bool) -> list[Array]:
        """Take away what lies along the bases; return products of the rest while it is in the cache."""
        for along, base in zip(lengths, fixed, strict=True):
            if np.abs(along).max(initial=0.0) > ROUNDING:
                take_away(base, along, rows, part.start, part.stop)
        rest = rows[:, part]
        return [rest @ rest.T, *(along_bases(part) if again else ())]

    lengths = _summed(slices.map(along_bases))
    for again in (True, False):  # twice is enough
        for part, along in zip(parts, lengths, strict=True):
            part += along @ factor
        gram, *lengths = _summed(slices.map(partial(without, again=again)))
        upper = _upper(gram, scale)
        if upper is not None:
            inverse = solve_triangular(upper, np.eye(len(upper)))
            rows = inverse.T @ rows
            lengths = [along @ inverse for along in lengths]
        else:
            upper, rows = _factorized(rows, scale, bases, rng)
            lengths = _summed(slices.map(along_bases))
        factor = upper @ factor
        scale = np.ones(rows.shape[0])
    return parts, factor, rows


def _summed(parts: list[list[Array]]) -> list[Array]:
    return [np.add.reduce(column) for column in zip(*parts, strict=True)]


def _upper(gram: Array, scale: Array) -> Array | None:
    """Return the factor by Cholesky, if rows are independent enough for it."""
    with contextlib.suppress(np.linalg.LinAlgError):
        upper = cholesky(gram)
        if np.diag(upper).min() > 1e-6 * np.diag(upper).max() and (np.diag(upper) > 1e-6 * scale).all():
            return np.asarray(upper)
    return None


def _factorized(rows: Array, scale: Array, bases: tuple[Array, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return an upper factor and orthonormal rows, ``rows = upper.T @ result``, where rows may depend on others."""
    upper, result = np.zeros((rows.shape[0],) * 2), np.empty_like(rows)
    for i in range(rows.shape[0]):
        row, done = rows[i], result[:i]
        for _ in range(2):
            along = done @ row
            row = row - along @ done
            upper[:i, i] += along
        upper[i, i] = np.linalg.norm(row)
        if upper[i, i] > 1e-13 * scale[i]:
            result[i] = row / upper[i, i]
        else:
            upper[i, i] = 0
            result[i] = _random_row((*bases, done), rows.shape[1], rng)
    return upper, result


def _random_row(bases: tuple[Array, ...], size: int, rng: np.random.Generator) -> Array:
    """Return a random row of length one, orthogonal to bases."""
    row = rng.standard_normal(size)
    for _ in range(3):
        for base in bases:
            row = row - (base @ row) @ base
        row /= np.linalg.norm(row)
    return row


@dataclass
class _Space:
    """A Krylov space: ``A V = V T + next coupling`` apart from what lies along the vectors kept apart."""

    basis: Array  # [size, n_cells], rows beyond `filled` are free
    filled: int
    projected: Array  # [filled + block, filled]
    following: Array  # [block, n_cells]


def _grow(space: _Space, product: _Product, kept: Array, size: int, rng: np.random.Generator) -> None:
    """Add blocks until the basis has the size."""
    block = space.following.shape[0]
    while space.filled + block <= size:
        old = space.filled
        space.basis[old : old + block] = space.following
        space.filled = old + block
        parts, factor, rows = _orthonormal(
            product.onward(space.following), kept, space.basis[: space.filled], rng=rng, slices=product.slices
        )
        grown = np.zeros((space.filled + block, space.filled))
        grown[: old + block, :old] = space.projected
        grown[: space.filled, old:] = parts[1]
        grown[space.filled :, old:] = factor
        space.projected, space.following = grown, rows


def _shrink(space: _Space, n_keep: int, order: Order, slices: Slices) -> tuple[Array, Array]:
    """Keep the leading Schur vectors of the space; return their Schur matrix and their residuals."""
    filled = space.filled
    t, u = _small_schur(space.projected[:filled], order)
    coupling = space.projected[filled:] @ u
    if n_keep < filled and t[n_keep, n_keep - 1] != 0:
        n_keep += 1

    def turn(part: slice) -> None:  # in place, as the basis is the largest array
        space.basis[:n_keep, part] = u[:, :n_keep].T @ space.basis[:filled, part]

    slices.map(turn)
    space.filled = n_keep
    space.projected = np.vstack([t[:n_keep, :n_keep], coupling[:, :n_keep]])
    return t[:n_keep, :n_keep], np.linalg.norm(coupling[:, :n_keep], axis=0)


def partial_schur(
    matrix: sp.csr_matrix,
    n_components: int,
    weights: Array | None = None,
    which: Which = "LR",
    tolerance: float = TOLERANCE,
    most_products: int = MOST_PRODUCTS,
) -> PartialSchur:
    """Return the leading Schur vectors of a row-stochastic matrix, one more where a pair would be split.

    ``weights`` is the input distribution, even where it is ``None``.
    """
    n_cells = matrix.shape[0]
    n_components = min(n_components, n_cells)
    # Neighbours close to each other in memory: a product takes half of the time.
    order = reverse_cuthill_mckee(sp.csr_matrix(matrix), symmetric_mode=True)
    matrix = sp.csr_matrix(matrix[order][:, order])
    weights = None if weights is None else np.asarray(weights)[order]
    constant = np.full(n_cells, 1 / np.sqrt(n_cells)) if weights is None else np.sqrt(weights / weights.sum())
    label, closed = closed_classes(matrix)
    with Slices(n_cells) as slices:
        product = _Product(matrix, weights, slices, which)
        if n_cells <= max(3 * n_components, 300):
            found = _dense(product, constant, n_components)
        else:
            found = _with_copies(product, constant, label, closed, n_components, tolerance, most_products)
    vectors = np.empty_like(found.vectors)
    vectors[order] = found.vectors
    return replace(found, vectors=vectors)


def _with_copies(
    product: _Product,
    constant: Array,
    label: NDArray[np.int64],
    closed: NDArray[np.int64],
    n_components: int,
    tolerance: float,
    most_products: int,
) -> PartialSchur:
    """Search in blocks so wide that all copies of an eigenvalue are found."""
    block = min(max(BLOCK, closed.size + closed.size % 2), LARGEST_BLOCK)  # even
    found: PartialSchur | None = None
    repeated = np.empty(0, dtype=np.complex128)
    while True:
        start = _begin(constant, label, closed, block) if found is None else found
        before = found
        found = _iterate(product, constant, start, repeated, n_components, block, tolerance, most_products)
        others = found.eigenvalues[1:]  # without that of the constant vector
        repeated = others[(np.abs(others[:, None] - others[None]) < SAME).sum(1) >= block]
        if found is before or block >= LARGEST_BLOCK or not repeated.size:
            return found
        # As many equal eigenvalues as vectors in a block: there may be more of them, apart from those that are known.
        block = min(2 * block, LARGEST_BLOCK)


def _begin(constant: Array, label: NDArray[np.int64], closed: NDArray[np.int64], block: int) -> Array:
    """Return the first block: what converges to the chance to end in each closed class, the rest at random."""
    start = np.random.default_rng(0).standard_normal((block, constant.size))
    for i, name in enumerate(closed[: block - 1] if closed.size > 1 else ()):
        start[i] = constant * (label == name)
    return start


def _iterate(
    product: _Product,
    constant: Array,
    start: Array | PartialSchur,
    repeated: NDArray[np.complex128],
    n_components: int,
    block: int,
    tolerance: float,
    most_products: int,
) -> PartialSchur:
    n_cells = constant.size
    rng = np.random.default_rng(0)
    wanted = n_components - 1
    size = min(wanted + GUARD + block, n_cells - 1 - block)
    kept = constant[None]
    basis, filled = np.empty((size, n_cells)), 0
    projected: Array = np.zeros((block, 0))
    known: PartialSchur | None = None
    n_known: int | None = None
    if isinstance(start, PartialSchur):  # a Krylov space that ended with them, and goes on at random
        known, filled = start, start.n_components - 1
        basis[:filled] = start.vectors[:, 1:].T
        projected = np.vstack([product.onward_of(start.matrix[1:, 1:]), np.zeros((block, filled))])
        repeated = np.diag(product.onward_of(np.diag(repeated)))
        n_known = _copies(projected[:filled], np.zeros(filled), filled, repeated)
    first = rng.standard_normal((block, n_cells)) if isinstance(start, PartialSchur) else start
    _, _, following = _orthonormal(first, kept, basis[:filled], rng=rng, slices=product.slices)
    space = _Space(basis, filled, projected, following)
    limit = product.n_products + most_products
    rounds = 0
    while True:
        rounds += 1
        _grow(space, product, kept, size, rng)
        n_keep = min(wanted + max(GUARD // 2 - block, 1), space.filled - block)
        t, residuals = _shrink(space, n_keep, product.order_onward, product.slices)
        enough = wanted + (1 if splits_pair(_eigenvalues_of(t), wanted) else 0)
        worst = residuals[:enough].max(initial=0.0)
        copies = None if known is None or rounds < 2 else _copies(t, residuals, enough + 1, repeated)
        if known is not None and copies == n_known:
            return known
        done = worst <= tolerance and (known is None or copies is not None)
        if done or product.n_products >= limit:
            break
    return _finish(product, np.vstack([kept, space.basis[:enough]]), n_components)


def _copies(t: Array, residuals: Array, n: int, repeated: NDArray[np.complex128]) -> int | None:
    """Return how many of the ``n`` leading eigenvalues are copies of those that are repeated, if it can be told."""
    values = _eigenvalues_of(t)[:n]
    distance = np.abs(values[:, None] - repeated).min(axis=1)
    others = distance >= NEAR
    away = (distance[others] > AWAY * residuals[: len(values)][others]).all()
    return int((~others).sum()) if away else None


def _finish(product: _Product, rows: Array, n_components: int) -> PartialSchur:
    """Sort all vectors by the matrix itself, keep the leading ones, and compute what they miss."""
    image = product(rows)
    projected = rows @ image.T
    projected[1:, 0] = 0  # the constant vector is exact
    t, u = _small_schur(projected[1:, 1:], product.order)
    full = np.block([[projected[:1, :1], projected[:1, 1:] @ u], [np.zeros((t.shape[0], 1)), t]])
    rows[1:], image[1:] = u.T @ rows[1:], u.T @ image[1:]
    values = _eigenvalues_of(full)
    n = n_components + (1 if splits_pair(values, n_components) and n_components < len(values) else 0)
    missing = image[:n] - full[:n, :n].T @ rows[:n]
    residual = float(np.linalg.norm(missing, axis=1).max())
    return PartialSchur(
        vectors=np.ascontiguousarray(rows[:n].T),
        matrix=full[:n, :n],
        eigenvalues=values[:n],
        residual=residual,
        n_products=product.n_products,
    )


def _dense(product: _Product, constant: Array, n_components: int) -> PartialSchur:
    """Decompose a small matrix whole, the constant vector first."""
    n_cells = constant.size
    basis = np.linalg.qr(np.column_stack([constant, np.eye(n_cells)[:, 1:]]))[0].T
    basis[0] = constant
    inner = basis[1:] @ product(basis[1:]).T
    t, u = _small_schur(inner, product.order)
    n = min(n_components + 1, n_cells) - 1
    if 0 < n < t.shape[0] and t[n, n - 1] != 0:
        n += 1
    rows = np.vstack([constant, u[:, :n].T @ basis[1:]])
    return _finish(product, rows, n_components)
