"""Bounds on memory: how they are given, that they are held, and data that is not in memory at all."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

import cellrank_velot as cv
from cellrank_velot._utils.memory import bytes_of, jobs_within

pytestmark = pytest.mark.process

QUIET = {"show_progress_bar": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, np.inf),
        (1e9, 1e9),
        (512, 512),
        ("4 GB", 4e9),
        ("4GiB", 2**32),
        ("1.5 kb", 1500),
        ("2e3", 2000),
        (" 7 t ", 7e12),
    ],  # fmt: skip
)
def test_limits_are_understood(given, expected: float):
    assert bytes_of(given) == expected


@pytest.mark.parametrize("given", ["4 XB", "much", "", "-1 GB", "0 GB", "1.2.3 GB"])
def test_limit_that_is_none_says_so(given: str):
    with pytest.raises(ValueError, match="Expected `memory_limit` such as `'4 GB'`"):
        bytes_of(given)


@pytest.mark.parametrize(("given", "error"), [(0, ValueError), (-5, ValueError), (True, TypeError), ([1], TypeError)])
def test_limit_that_is_no_number(given, error):
    with pytest.raises(error, match="memory_limit"):
        bytes_of(given)


def test_limit_takes_jobs_away():
    assert jobs_within(None, 100, 10, 8, "it") == 8
    assert jobs_within(150, 100, 10, 8, "it") == 5
    assert jobs_within(111, 100, 10, 8, "it") == 1
    with pytest.raises(MemoryError, match=r"at least 110 B for it, found 109 B: allow more"):
        jobs_within(109, 100, 10, 8, "it")


def test_too_low_a_limit_changes_nothing():
    adata = cv.datasets.bifurcation(n_cells=300)
    kernel = cv.OTVelocityKernel(adata).compute_windows()
    with pytest.raises(MemoryError, match="for transport, found"):
        kernel.compute_velocity(memory_limit="1 kB", **QUIET)
    assert kernel.transport is None
    kernel.fit_field(n_steps=20, **QUIET)
    with pytest.raises(MemoryError, match="for the transition matrix, found"):
        kernel.compute_transition_matrix(memory_limit="1 kB", **QUIET)
    assert kernel._transition_matrix is None


HELD = """
import re, sys, threading, numpy as np, scipy.sparse as sp
from cellrank_velot._utils.memory import bytes_of
from cellrank_velot._utils.options import Run
from cellrank_velot.graph import SmoothedCells
from cellrank_velot.transport import build_windows, estimate_velocity
from cellrank_velot.transitions import TransitionOptions, compute_transitions

def cells(n):
    rng = np.random.default_rng(0)
    time = np.sort(rng.random(n))
    x = np.column_stack([8 * time, rng.normal(size=(n, 29))])
    near = np.clip(np.arange(n)[:, None] + np.r_[-10:0, 1:11], 0, n - 1)
    graph = sp.csr_matrix((np.ones(near.size), near.ravel(), np.arange(0, near.size + 1, 20)), shape=(n, n))
    graph.sum_duplicates()
    return x, time, graph

def least(function):
    try:
        function(1)
    except MemoryError as error:
        return bytes_of(re.search(r"at least ([0-9.]+ [kMG]?B)", str(error))[1])

def peak_of(function, limit):
    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096
    before, peak, done = resident(), [0], threading.Event()
    def look():
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident())
    looking = threading.Thread(target=look); looking.start()
    kept = function(limit)
    done.set(); looking.join()
    return max(peak[0], resident()) - before

for n in (2000, 150_000):  # the first loads the loops
    x, time, graph = cells(n)
    windows = build_windows(x, time)
    def run(limit):
        return {"run": Run(device="cpu", n_jobs=4, memory_limit=limit)}
    steps = {
        "transport": lambda limit: estimate_velocity(SmoothedCells(x, time, graph), windows, **run(limit)),
        "matrix": lambda limit: compute_transitions(x, x[::-1].copy(), graph, **run(limit)),
        "settled": lambda limit: compute_transitions(
            x, x[::-1].copy(), graph, TransitionOptions(threshold=0.01), ends=time > 0.9, **run(limit)
        ),
    }
    for name, step in steps.items():
        for more in (1.0, 1.3):
            limit = more * least(step)
            print(n, name, peak_of(step, limit) / limit)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_limits_are_held():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    shares = [(name, float(share)) for n_cells, name, share in lines if n_cells == "150000"]
    assert [name for name, _ in shares] == ["transport"] * 2 + ["matrix"] * 2 + ["settled"] * 2
    # No limit is far above what is taken; on a loaded machine fewer jobs hold their share at once.
    assert all(0.1 < share <= 1 for _, share in shares), shares


# ------------------------------------------------------------------------------------------------ not in memory at all
@pytest.fixture(scope="module")
def adata():
    return cv.datasets.bifurcation(n_cells=300)


def assert_same_kernel(kernel: cv.OTVelocityKernel, adata: ad.AnnData) -> None:
    expected = cv.OTVelocityKernel(adata, basis="X_pca").fit_field(n_steps=20, **QUIET).compute_transition_matrix()
    found = kernel.fit_field(n_steps=20, **QUIET).compute_transition_matrix()
    np.testing.assert_array_equal(found.transition_matrix.toarray(), expected.transition_matrix.toarray())
    found.write_to_adata()
    np.testing.assert_array_equal(found.adata.obsm["velot_velocity"], expected.velocity)


@pytest.mark.parametrize("chunks", [(100, -1), (70, 7), (300, 20)])
def test_basis_as_a_dask_array(adata, chunks):
    dask = pytest.importorskip("dask.array")
    other = adata.copy()
    other.obsm["X_pca"] = dask.from_array(np.asarray(adata.obsm["X_pca"]), chunks=chunks)
    assert_same_kernel(cv.OTVelocityKernel(other), adata)
    assert isinstance(other.obsm["X_pca"], dask.Array)


def test_backed_anndata(adata, tmp_path):
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert_same_kernel(cv.OTVelocityKernel(backed), adata)
    assert backed.isbacked


def test_lazy_anndata(adata, tmp_path):
    pytest.importorskip("xarray")
    pytest.importorskip("dask")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    lazy = ad.experimental.read_lazy(tmp_path / "cells.h5ad")
    kernel = cv.OTVelocityKernel(lazy)
    assert_same_kernel(kernel, adata)
    assert type(kernel.adata.X) is type(lazy.X)  # expression stays where it is
    with pytest.raises(KeyError, match="Expected `adata.obsp\\['other'\\]`"):
        cv.OTVelocityKernel(lazy, conn_key="other")


def test_field_is_asked_block_by_block(adata):
    dask = pytest.importorskip("dask.array")
    kernel = cv.OTVelocityKernel(adata).fit_field(n_steps=20, **QUIET)
    x, time, field = kernel.cells.x, kernel.cells.time, kernel.field
    blocked = dask.map_blocks(
        lambda x, time: field(x, time[:, 0]),
        dask.from_array(np.array(x), chunks=(70, -1)),
        dask.from_array(np.array(time)[:, None], chunks=(70, 1)),
        dtype=float,
    )
    assert blocked.shape == x.shape
    np.testing.assert_allclose(blocked.compute(), kernel.velocity, atol=1e-5)
