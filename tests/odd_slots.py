"""What a slot of an AnnData may hold, odd things among them: for the tests that draw cases."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.neighbors import kneighbors_graph

Make = Callable[[np.random.Generator, int], Any]


def spread(rng: np.random.Generator, n: int, n_dims: int = 3) -> np.ndarray:
    return rng.normal(size=(n, n_dims)) + np.linspace(0, 5, n)[:, None]


def with_value(values: np.ndarray, rng: np.random.Generator, value: float) -> np.ndarray:
    values[rng.integers(len(values)), ...] = value
    return values


POSITIONS: dict[str, Make] = {
    "usual": spread,
    "one dimension": lambda rng, n: spread(rng, n, 1),
    "200 dimensions": lambda rng, n: spread(rng, n, 200),
    "no dimension": lambda rng, n: np.empty((n, 0)),
    "float32": lambda rng, n: spread(rng, n).astype(np.float32),
    "float16": lambda rng, n: spread(rng, n).astype(np.float16),
    "integers": lambda rng, n: rng.integers(0, 4, (n, 3)),
    "unsigned": lambda rng, n: rng.integers(0, 4, (n, 3)).astype(np.uint8),
    "booleans": lambda rng, n: rng.random((n, 3)) < 0.5,
    "complex": lambda rng, n: spread(rng, n).astype(complex),
    "texts": lambda rng, n: spread(rng, n).astype(str),
    "constant": lambda rng, n: np.ones((n, 3)),
    "constant column": lambda rng, n: spread(rng, n) * [1, 0, 1],
    "on a line": lambda rng, n: np.linspace(0, 1, n)[:, None] * [1.0, 2.0, -1.0],
    "duplicated cells": lambda rng, n: np.repeat(spread(rng, n), 2, axis=0)[:n],
    "two places": lambda rng, n: np.repeat([[0.0, 0, 0], [1.0, 1, 1]], [n - n // 2, n // 2], axis=0),
    "far from the origin": lambda rng, n: spread(rng, n) + 1e8,
    "far blobs": lambda rng, n: spread(rng, n) + 1e6 * (np.arange(n) % 3)[:, None],
    "one outlier": lambda rng, n: with_value(spread(rng, n), rng, 1e9),
    "huge": lambda rng, n: spread(rng, n) * 1e60,
    "beyond squares": lambda rng, n: spread(rng, n) * 1e200,
    "tiny": lambda rng, n: spread(rng, n) * 1e-60,
    "below squares": lambda rng, n: spread(rng, n) * 1e-200,
    "denormal": lambda rng, n: spread(rng, n) * 1e-310,
    "NaN": lambda rng, n: with_value(spread(rng, n), rng, np.nan),
    "infinite": lambda rng, n: with_value(spread(rng, n), rng, np.inf),
    "Fortran order": lambda rng, n: np.asfortranarray(spread(rng, n)),
    "every second row": lambda rng, n: spread(rng, 2 * n)[::2],
    "big endian": lambda rng, n: spread(rng, n).astype(">f8"),
    "sparse": lambda rng, n: sp.csr_matrix(spread(rng, n)),
    "sparse columns": lambda rng, n: sp.csc_matrix(spread(rng, n)),
    "sparse array": lambda rng, n: sp.csr_array(spread(rng, n)),
    "table": lambda rng, n: pd.DataFrame(spread(rng, n), columns=["α", "b", "c"]),
    "table of texts": lambda rng, n: pd.DataFrame({"a": ["x"] * n}),
    "dask": lambda rng, n: lazily(spread(rng, n)),
    "dask of NaN": lambda rng, n: lazily(with_value(spread(rng, n), rng, np.nan)),
    "dask of sparse": lambda rng, n: lazily(spread(rng, n)).map_blocks(sp.csr_matrix),
    "three dimensions": lambda rng, n: rng.normal(size=(n, 2, 2)),
}

TIMES: dict[str, Make] = {
    "usual": lambda rng, n: np.clip(np.linspace(0, 1, n) + rng.normal(size=n) * 0.02, 0, None),
    "ties": lambda rng, n: np.round(np.linspace(0, 1, n), 1),
    "two times": lambda rng, n: (np.arange(n) % 2).astype(float),
    "one later": lambda rng, n: (np.arange(n) == n - 1).astype(float),
    "constant": lambda rng, n: np.ones(n),
    "float32": lambda rng, n: rng.random(n).astype(np.float32),
    "float16": lambda rng, n: rng.random(n).astype(np.float16),
    "integers": lambda rng, n: rng.integers(0, 50, n),
    "unsigned": lambda rng, n: rng.integers(0, 50, n).astype(np.uint8),
    "negative": lambda rng, n: -rng.random(n),
    "huge": lambda rng, n: rng.random(n) * 1e300,
    "across all numbers": lambda rng, n: (rng.random(n) - 0.5) * 3.4e308,
    "tiny": lambda rng, n: rng.random(n) * 1e-300,
    "denormal": lambda rng, n: rng.random(n) * 1e-318,
    "far from zero": lambda rng, n: 1e12 + rng.random(n) * 1e-3,
    "one outlier": lambda rng, n: with_value(rng.random(n), rng, 1e9),
    "NaN": lambda rng, n: with_value(rng.random(n), rng, np.nan),
    "infinite": lambda rng, n: with_value(rng.random(n), rng, np.inf),
    "all NaN": lambda rng, n: np.full(n, np.nan),
    "booleans": lambda rng, n: rng.random(n) < 0.5,
    "texts": lambda rng, n: np.array(["day 1", "day 2"])[np.arange(n) % 2],
    "numbers as texts": lambda rng, n: rng.random(n).astype(str),
    "categories of numbers": lambda rng, n: pd.Categorical(np.round(rng.random(n), 1)),
    "categories of texts": lambda rng, n: pd.Categorical(np.array(["a", "b"])[np.arange(n) % 2]),
    "categories, one missing": lambda rng, n: pd.Categorical(with_value(np.round(rng.random(n), 1), rng, np.nan)),
    "nullable": lambda rng, n: pd.array(rng.random(n), dtype="Float64"),
    "nullable, one missing": lambda rng, n: pd.array([None, *rng.random(n - 1)], dtype="Float64"),
    "nullable integers": lambda rng, n: pd.array(rng.integers(0, 9, n), dtype="Int64"),
    "nullable booleans": lambda rng, n: pd.array(rng.random(n) < 0.5, dtype="boolean"),
    "strings": lambda rng, n: pd.array(rng.random(n).astype(str), dtype="string"),
    "objects": lambda rng, n: rng.random(n).astype(object),
    "objects, one missing": lambda rng, n: np.array([None, *rng.random(n - 1)], dtype=object),
    "mixed objects": lambda rng, n: np.array(["x", *rng.random(n - 1)], dtype=object),
    "dates": lambda rng, n: pd.Timestamp(2024, 1, 1) + pd.to_timedelta(np.arange(n), unit="D"),
    "durations": lambda rng, n: pd.to_timedelta(np.arange(n), unit="D"),
    "complex": lambda rng, n: rng.random(n) + 1j,
}

LABELS: dict[str, Make] = {
    "usual": lambda rng, n: pd.Categorical(np.array(["a", "b"])[np.arange(n) * 2 // n]),
    "one": lambda rng, n: pd.Categorical(["a"] * n),
    "one each": lambda rng, n: [f"cluster {i}" for i in range(n)],
    "unused category": lambda rng, n: pd.Categorical(["a"] * n, categories=["z", "a"]),
    "texts": lambda rng, n: np.array(["a", "b"])[np.arange(n) % 2],
    "integers": lambda rng, n: np.arange(n) % 3 - 1,
    "booleans": lambda rng, n: np.arange(n) % 2 == 0,
    "numbers": lambda rng, n: (np.arange(n) % 2) / 3,
    "strings": lambda rng, n: pd.array(np.array(["a", "b"])[np.arange(n) % 2], dtype="string"),
    "strings, one missing": lambda rng, n: pd.array([None, *["a"] * (n - 1)], dtype="string"),
    "nullable integers": lambda rng, n: pd.array(np.arange(n) % 2, dtype="Int64"),
    "missing": lambda rng, n: pd.Categorical([None, *["a"] * (n - 1)]),
    "mixed objects": lambda rng, n: np.array([1, *["a"] * (n - 1)], dtype=object),
    "unicode": lambda rng, n: pd.Categorical(np.array(["α/β", "ß, 🧬"])[np.arange(n) % 2]),
    "empty name": lambda rng, n: pd.Categorical(np.array(["", " "])[np.arange(n) % 2]),
}


def lazily(values: np.ndarray) -> Any:
    return pytest.importorskip("dask.array").from_array(values, chunks=(7, -1))


def nearest(x: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    if len(x) == 1:
        return sp.csr_matrix((1, 1))
    graph = kneighbors_graph(np.nan_to_num(x), min(6, len(x) - 1))
    graph.data = rng.uniform(0.1, 1, graph.data.size)
    return sp.csr_matrix(graph.maximum(graph.T))


def entries(graph: sp.csr_matrix, change: Callable[[np.ndarray], Any]) -> sp.csr_matrix:
    graph.data = np.asarray(change(graph.data))
    return graph


def one_entry(graph: sp.csr_matrix, value: float) -> sp.csr_matrix:
    graph.data[:1] = value
    return graph


def without(graph: sp.csr_matrix, cell: int) -> sp.csr_matrix:
    kept = sp.diags((np.arange(graph.shape[0]) != cell).astype(float))
    graph = sp.csr_matrix(kept @ graph @ kept)
    graph.eliminate_zeros()
    return graph


def pieces(graph: sp.csr_matrix) -> sp.csr_matrix:
    coo = graph.tocoo()
    same = (coo.row % 2) == (coo.col % 2)
    return sp.csr_matrix((coo.data[same], (coo.row[same], coo.col[same])), shape=graph.shape)


def unsorted(graph: sp.csr_matrix) -> sp.csr_matrix:
    for i in range(graph.shape[0]):
        row = slice(graph.indptr[i], graph.indptr[i + 1])
        graph.indices[row], graph.data[row] = graph.indices[row][::-1].copy(), graph.data[row][::-1].copy()
    graph.has_sorted_indices = False
    return graph


def wide(graph: sp.csr_matrix) -> sp.csr_matrix:
    graph.indices, graph.indptr = graph.indices.astype(np.int64), graph.indptr.astype(np.int64)
    return graph


def twice(graph: sp.csr_matrix) -> sp.csr_matrix:
    coo = graph.tocoo()
    data, row, col = (np.concatenate([part, part]) for part in (coo.data / 2, coo.row, coo.col))
    order = np.argsort(row, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=graph.shape[0]))])
    return sp.csr_matrix((data[order], col[order], indptr), shape=graph.shape)


GRAPHS: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "usual": nearest,
    "of other positions": lambda x, rng: nearest(rng.normal(size=(len(x), 2)), rng),
    "one direction": lambda x, rng: sp.csr_matrix(sp.triu(nearest(x, rng))),
    "asymmetric weights": lambda x, rng: entries(nearest(x, rng), lambda w: w * rng.random(w.size)),
    "pieces": lambda x, rng: pieces(nearest(x, rng)),
    "an isolated cell": lambda x, rng: without(nearest(x, rng), 0),
    "no edges": lambda x, rng: sp.csr_matrix((len(x), len(x))),
    "complete": lambda x, rng: sp.csr_matrix(np.ones((len(x), len(x)))),
    "identity": lambda x, rng: sp.identity(len(x), format="csr"),
    "with itself": lambda x, rng: sp.csr_matrix(nearest(x, rng) + sp.identity(len(x))),
    "zeros stored": lambda x, rng: one_entry(nearest(x, rng), 0.0),
    "all zeros stored": lambda x, rng: entries(nearest(x, rng), np.zeros_like),
    "a NaN": lambda x, rng: one_entry(nearest(x, rng), np.nan),
    "an infinity": lambda x, rng: one_entry(nearest(x, rng), np.inf),
    "a negative weight": lambda x, rng: one_entry(nearest(x, rng), -1.0),
    "tiny weights": lambda x, rng: entries(nearest(x, rng), lambda w: w * 1e-300),
    "huge weights": lambda x, rng: entries(nearest(x, rng), lambda w: w * 1e300),
    "float32": lambda x, rng: nearest(x, rng).astype(np.float32),
    "integers": lambda x, rng: entries(nearest(x, rng), np.ones_like).astype(np.int64),
    "booleans": lambda x, rng: nearest(x, rng).astype(bool),
    "indices of 64 bits": lambda x, rng: wide(nearest(x, rng)),
    "unsorted": lambda x, rng: unsorted(nearest(x, rng)),
    "entries twice": lambda x, rng: twice(nearest(x, rng)),
    "columns": lambda x, rng: sp.csc_matrix(nearest(x, rng)),
    "sparse array": lambda x, rng: sp.csr_array(nearest(x, rng)),
    "dense": lambda x, rng: nearest(x, rng).toarray(),
}

NAMES: dict[str, Callable[[int], list[str]]] = {
    "usual": lambda n: [f"cell {i}" for i in range(n)],
    "repeated": lambda n: ["same"] * n,
    "unicode": lambda n: [f"zελλ {i} 🧬" for i in range(n)],
    "with slashes": lambda n: [f"a/b/{i}" for i in range(n)],
}


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Fail where nothing comes back: a hang is worse than an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise AssertionError(f"no result after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
