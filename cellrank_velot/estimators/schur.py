"""The leading part of a sorted real Schur decomposition of a sparse stochastic matrix, by a block Krylov-Schur method.

Arrays in and out. Vectors lie in the rows of arrays here, so that each is one piece of memory. The constant vector is
known, and kept apart from the start; what converges is checked with the matrix itself at the end.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cholesky, lapack, schur, solve_triangular
from scipy.sparse.csgraph import connected_components

__all__ = ["PartialSchur", "Which", "closed_classes", "eigengap", "partial_schur", "sort_schur", "splits_pair"]

logger = logging.getLogger("cellrank_velot")

Which = Literal["LR", "LM"]
Array = NDArray[np.float64]

BLOCK = 2  # vectors that a product carries along: as many equal eigenvalues are told apart
LARGEST_BLOCK = 16
GUARD = 60  # vectors beyond those asked for: more of them cost memory and save products
TOLERANCE = 1e-10  # residual of a vector of length one
ENOUGH = 1e-6  # residual that is still of use, where the products run out
MOST_PRODUCTS = 60_000
SAME = 1e-7  # eigenvalues that differ by less may be copies of one


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
def _order(eigenvalues: NDArray[np.complex128], which: Which) -> Array:
    return np.asarray(eigenvalues.real if which == "LR" else np.abs(eigenvalues))


def _eigenvalues_of(t: Array) -> NDArray[np.complex128]:
    """Return the eigenvalues of a real Schur matrix, a pair as ``(a + bi, a - bi)``, in the order of its diagonal."""
    values = np.diag(t).astype(np.complex128)
    for i in np.flatnonzero(np.diag(t, -1)):
        root = np.sqrt(complex(t[i, i + 1] * t[i + 1, i] + ((t[i, i] - t[i + 1, i + 1]) / 2) ** 2))
        middle = (t[i, i] + t[i + 1, i + 1]) / 2
        values[i], values[i + 1] = middle + 1j * abs(root.imag), middle - 1j * abs(root.imag)
    return values


def sort_schur(t: Array, u: Array, which: Which = "LR") -> tuple[Array, Array]:
    """Return a real Schur decomposition with its blocks in falling order of their eigenvalues.

    A block moves up by LAPACK's exchange of neighbours. Two that are too close for it stay as they are.
    """
    t, u = np.asfortranarray(t), np.asfortranarray(u)
    size, at = t.shape[0], 0
    while at < size:
        keys = _order(_eigenvalues_of(t), which)
        best = at + int(np.argmax(keys[at:] > keys[at:].max() - 1e-14))
        if best > at:
            moved, vectors, info = lapack.dtrexc(t, u, best + 1, at + 1)
            if info == 0:
                t, u = moved, vectors
        at += 2 if at + 1 < size and t[at + 1, at] != 0 else 1
    return t, u


def _small_schur(h: Array, which: Which) -> tuple[Array, Array]:
    t, u = schur(h, output="real")[:2]
    return sort_schur(t, u, which)


# ---------------------------------------------------------------------------------------------------- long vectors
class _Product:
    """The matrix in the metric of the input distribution, applied to rows; it counts what it is applied to."""

    def __init__(self, matrix: sp.csr_matrix, weights: Array | None) -> None:
        self.matrix, self.n_products = matrix, 0
        self.root = None if weights is None else np.sqrt(weights)

    def __call__(self, rows: Array) -> Array:
        self.n_products += rows.shape[0]
        columns = np.ascontiguousarray(rows.T if self.root is None else (rows / self.root).T)
        result = np.ascontiguousarray((self.matrix @ columns).T)
        return result if self.root is None else result * self.root


def _orthonormal(rows: Array, *bases: Array, rng: np.random.Generator) -> tuple[list[Array], Array, Array]:
    """Make rows orthonormal to each other and to bases, and return their parts along the bases, a factor and the rows.

    ``rows = sum(parts.T @ base) + factor.T @ result``. A row that depends on others becomes a random one, of which the
    factor has nothing.
    """
    parts: list[Array] = [np.zeros((base.shape[0], rows.shape[0])) for base in bases]
    factor = np.eye(rows.shape[0])
    scale = np.linalg.norm(rows, axis=1)
    for _ in range(2):  # twice is enough
        for part, base in zip(parts, bases, strict=True):
            along = base @ rows.T
            rows = rows - along.T @ base
            part += along @ factor
        upper, rows = _factorized(rows, scale, bases, rng)
        factor = upper @ factor
        scale = np.ones(rows.shape[0])
    return parts, factor, rows


def _factorized(rows: Array, scale: Array, bases: tuple[Array, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return an upper factor and orthonormal rows, ``rows = upper.T @ result``."""
    gram = rows @ rows.T
    with contextlib.suppress(np.linalg.LinAlgError):
        upper = cholesky(gram)
        if np.diag(upper).min() > 1e-6 * np.diag(upper).max() and (np.diag(upper) > 1e-6 * scale).all():
            return upper, np.asarray(solve_triangular(upper, rows, trans="T"))
    upper, result = np.zeros_like(gram), np.empty_like(rows)
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
        parts, factor, rows = _orthonormal(product(space.following), kept, space.basis[: space.filled], rng=rng)
        grown = np.zeros((space.filled + block, space.filled))
        grown[: old + block, :old] = space.projected
        grown[: space.filled, old:] = parts[1]
        grown[space.filled :, old:] = factor
        space.projected, space.following = grown, rows


def _shrink(space: _Space, n_keep: int, which: Which) -> tuple[Array, Array]:
    """Keep the leading Schur vectors of the space; return their Schur matrix and their residuals."""
    filled = space.filled
    t, u = _small_schur(space.projected[:filled], which)
    coupling = space.projected[filled:] @ u
    if n_keep < filled and t[n_keep, n_keep - 1] != 0:
        n_keep += 1
    for start in range(0, space.basis.shape[1], 65_536):  # in place, as the basis is the largest array
        part = slice(start, start + 65_536)
        space.basis[:n_keep, part] = u[:, :n_keep].T @ space.basis[:filled, part]
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
    constant = np.full(n_cells, 1 / np.sqrt(n_cells)) if weights is None else np.sqrt(weights / weights.sum())
    product = _Product(matrix, weights)
    label, closed = closed_classes(matrix)
    if n_cells <= max(3 * n_components, 300):
        return _dense(product, constant, n_components, which)
    block = min(max(BLOCK, closed.size), LARGEST_BLOCK)
    while True:
        found = _iterate(product, constant, label, closed, n_components, block, which, tolerance, most_products)
        copies = np.abs(found.eigenvalues[:, None] - found.eigenvalues[None]) < SAME
        if block >= LARGEST_BLOCK or copies.sum(1).max() < block:
            return found
        # As many equal eigenvalues as vectors in a block: there may be more of them.
        block = min(2 * block, LARGEST_BLOCK)


def _iterate(
    product: _Product,
    constant: Array,
    label: NDArray[np.int64],
    closed: NDArray[np.int64],
    n_components: int,
    block: int,
    which: Which,
    tolerance: float,
    most_products: int,
) -> PartialSchur:
    n_cells = constant.size
    rng = np.random.default_rng(0)
    wanted = n_components - 1
    size = min(wanted + GUARD + block, n_cells - 1 - block)
    start = rng.standard_normal((block, n_cells))
    for i, name in enumerate(closed[: block - 1] if closed.size > 1 else ()):
        start[i] = constant * (label == name)  # what converges to the chance to end in this class
    kept = constant[None]
    _, _, start = _orthonormal(start, kept, rng=rng)
    space = _Space(np.empty((size, n_cells)), 0, np.zeros((block, 0)), start)
    limit = product.n_products + most_products
    while True:
        _grow(space, product, kept, size, rng)
        n_keep = min(wanted + max(GUARD // 2 - block, 1), space.filled - block)
        t, residuals = _shrink(space, n_keep, which)
        enough = wanted + (1 if splits_pair(_eigenvalues_of(t), wanted) else 0)
        worst = residuals[:enough].max(initial=0.0)
        if worst <= tolerance or product.n_products >= limit:
            break
    return _finish(product, np.vstack([kept, space.basis[:enough]]), n_components, which)


def _finish(product: _Product, rows: Array, n_components: int, which: Which) -> PartialSchur:
    """Sort all vectors by the matrix itself, keep the leading ones, and compute what they miss."""
    image = product(rows)
    projected = rows @ image.T
    projected[1:, 0] = 0  # the constant vector is exact
    t, u = _small_schur(projected[1:, 1:], which)
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


def _dense(product: _Product, constant: Array, n_components: int, which: Which) -> PartialSchur:
    """Decompose a small matrix whole, the constant vector first."""
    n_cells = constant.size
    basis = np.linalg.qr(np.column_stack([constant, np.eye(n_cells)[:, 1:]]))[0].T
    basis[0] = constant
    inner = basis[1:] @ product(basis[1:]).T
    t, u = _small_schur(inner, which)
    n = min(n_components + 1, n_cells) - 1
    if 0 < n < t.shape[0] and t[n, n - 1] != 0:
        n += 1
    rows = np.vstack([constant, u[:, :n].T @ basis[1:]])
    return _finish(product, rows, n_components, which)
