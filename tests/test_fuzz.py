"""Whatever an AnnData holds: a right result, or an error that says what is wrong; and nothing of the user's changes.

Some hundred cases here, always the same; ``make fuzz`` draws thousands of new ones.
"""

from __future__ import annotations

import hashlib
import linecache
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import event, given
from hypothesis import strategies as st
from odd_slots import GRAPHS, LABELS, NAMES, POSITIONS, TIMES, spread, time_limit
from scipy.sparse.csgraph import connected_components

import cellrank_velot
from cellrank_velot import OTVelocityKernel, write_h5ad
from cellrank_velot.kernel.base import WrongTimeError

PACKAGE = str(Path(cellrank_velot.__file__).parent)
QUIET = {"show_progress_bar": False}
DOCUMENTED = (TypeError, ValueError, KeyError, RuntimeError, MemoryError)
# Longer than any case takes, by far: then it hangs.
TIME_LIMIT = 60
N_TRAINING_STEPS = 3

FORMS = ("in memory", "view", "view of every second cell", "backed", "read-only")
KEYS = ("X_pca", "X_ü 🧬", "latent")

OPTIONS: dict[str, dict[str, list[Any]]] = {
    "windows": {
        "n_clusters": [1, 2, 7, 0, -1, 10**6, 1.5, "3", True],
        "window_size": [5, 3, 1000, 0, np.int64(4), 2.5, None],
        "overlap": [0.0, 0.9, 0.999999, 1.0, -0.1, np.nan, "half"],
        "min_window_size": [2, 5, 1, 0, 10**9, None],
        "time_lag": [None, 0.1, 1e-300, 5.0, 0.0, np.inf, "soon"],
        "overlap_clusters": [1, 2, 50, 0],
        "tail": ["drop", "split", "keep"],
        "tail_threshold": [0, 3, -1],
        "n_smooth": [0, 1, 20, -1, 2.0, "much"],
        "random_state": [1, 2**31, -1, 2**40, "seed"],
    },
    "velocity": {
        "epsilon": [1e-4, 10.0, 1e-12, 1e12, 1e-300, 0.0, -1.0, np.nan, "auto"],
        "lambda_time": [0.0, 1e6, 1e300, -1.0, np.inf],
        "lambda_knn": [0.5, 1e6, -1.0],
        "reach": [None, 1e-3, 1e6, 0.0, -1.0],
        "relaxation": [0.0, 1.0, "auto", -0.5, 5.0, "much"],
        "regression": [False, True, 1, "no"],
        "tol": [1e-1, 1e-14, 0.0, -1.0],
        "max_iter": [1, 2, 0, 1.5],
        "device": ["cpu", "gpu", "cuda:99", 3, ""],
        "n_jobs": [1, 2, -1, 0, "two"],
        "memory_limit": ["1 GB", "1 kB", 10**9, 0, -1, "much", None],
    },
    "field": {
        "hidden": [(), (1,), (4, 4, 4), (0,), "wide", 8],
        "use_time": [False],
        "lambda_smooth": [0.0, 1e6, -1.0],
        "lambda_curl": [1.0, -1.0],
        "lambda_divergence": [1.0, np.inf],
        "batch_size": [1, 7, 10**6, 0],
        "learning_rate": [1.0, 1e6, 1e-12, 0.0, np.nan],
        "held_out": [0.0, 0.5, 0.99, 1.0, -0.1],
        "patience": [1, 0],
        "random_state": [7, -1],
    },
    "transitions": {
        "similarity": ["cosine", "correlation", "dot_product", "sine", 3],
        "softmax_scale": [1.0, 1e-12, 1e6, 0.0, -1.0, np.inf, "auto", "large"],
        "backward_mode": ["negate", "invert"],
        "smooth": [False],
        "settle": [True],
        "variance_stabilize": [True],
        "threshold": [0.1, 0.0, 1.0, -0.1, 1e-6],
        "model": ["monte_carlo", "stochastic", "magic"],
        "n_samples": [1, 5, 0],
        "compute_cond_num": [True],
        "check_connectivity": [True],
    },
}


# What may be asked of a kernel with a transition matrix. Each may refuse, but only in words of its own.
THEN: dict[str, Callable[[OTVelocityKernel], Any]] = {
    "nothing": lambda kernel: None,
    "written and read": lambda kernel: read_again(kernel),
    "pickled": lambda kernel: same_result(pickle.loads(pickle.dumps(kernel)), kernel),
    "copied": lambda kernel: same_result(kernel.copy(deep=True), kernel),
    "mixed": lambda kernel: (0.8 * kernel + 0.2 * mixed_in(kernel)).transition_matrix,
    "uncertainty": lambda kernel: finite(kernel.compute_uncertainty(n_members=2, **QUIET).velocity_uncertainty),
    "trajectories": lambda kernel: finite(kernel.compute_trajectories(n_trajectories=3, n_steps=5, **QUIET).x),
    "backward trajectories": lambda kernel: finite(
        kernel.compute_trajectories(n_trajectories=3, n_steps=5, direction="backward", **QUIET).x
    ),
    "flow": lambda kernel: finite(kernel.simulate_flow(n_particles=5, n_steps=5, basis=kernel.basis, **QUIET).x),
    "process": lambda kernel: finite(kernel.simulate_process(n_particles=2).x),
    "landscape": lambda kernel: finite(kernel.compute_landscape(basis=kernel.basis, n_grid=10).density),
    "fates": lambda kernel: finite(kernel.fate_probabilities(n_particles=2, show_progress_bar=False).table),
    "ends": lambda kernel: kernel.ends,
}


@dataclass(frozen=True)
class Case:
    """What is drawn: the kind of each slot, and options that are not the usual ones."""

    n_cells: int = 40
    seed: int = 0
    positions: str = "usual"
    time: str = "usual"
    graph: str = "usual"
    labels: str | None = None
    names: str = "usual"
    form: str = "in memory"
    key: str = "X_pca"
    backward: bool = False
    series: bool = False
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    then: str = "nothing"

    def adata(self, folder: Path) -> AnnData:
        """Make the AnnData; where anndata itself refuses a slot there is nothing to test."""
        rng = np.random.default_rng(self.seed)
        n = self.n_cells
        obs = pd.DataFrame(index=NAMES[self.names](n))
        obs["time"] = np.arange(n) * 3 // n if self.series and self.time == "usual" else TIMES[self.time](rng, n)
        if self.labels is not None:
            obs["groups"] = LABELS[self.labels](rng, n)
        obs.index = pd.Index(NAMES[self.names](n))
        adata = AnnData(np.ones((n, 2), dtype=np.float32), obs=obs)
        x = POSITIONS[self.positions](rng, n)
        if isinstance(x, pd.DataFrame):
            x.index = obs.index
        adata.obsm[self.key] = x
        where = (
            x if isinstance(x, np.ndarray) and x.ndim == 2 and x.shape[1] and x.dtype.kind == "f" else spread(rng, n)
        )
        with np.errstate(all="ignore"):
            where = where / max(float(np.abs(np.nan_to_num(where)).max()), 1e-300)
        adata.obsp["connectivities"] = GRAPHS[self.graph](where.astype(float), rng)
        adata.uns["neighbors"] = {"connectivities_key": "connectivities", "params": {"use_rep": "X_pca"}}
        if self.form == "view":
            return adata[np.arange(n)]
        if self.form == "view of every second cell":
            return adata[::2]
        if self.form == "backed":
            adata.write_h5ad(folder / "cells.h5ad")
            return ad.read_h5ad(folder / "cells.h5ad", backed="r")
        if self.form == "read-only":
            for values in (adata.obsm[self.key], adata.obsp["connectivities"]):
                for array in (values, getattr(values, "data", None)):
                    if isinstance(array, np.ndarray):
                        array.flags.writeable = False
        return adata


# Everything that is not as usual, one by one. What changes all is there more often.
UNUSUAL: list[tuple[str, Any]] = [
    *(("positions", kind) for kind in POSITIONS),
    *(("time", kind) for kind in TIMES),
    *(("graph", kind) for kind in GRAPHS),
    *(("labels", kind) for kind in LABELS),
    *(("names", kind) for kind in NAMES),
    *(("form", form) for form in FORMS),
    *(("key", key) for key in KEYS),
    *(("n_cells", n) for n in (60, 50, 45, 36, 33, 24, 20, 12, 9, 5, 3, 2, 1)),
    *[("backward", True), ("series", True)] * 12,
    *[("then", then) for then in THEN] * 2,
    *((f"{step}.{name}", value) for step, names in OPTIONS.items() for name in names for value in names[name]),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a usual case with a few things that are not."""
    unusual = dict(draw(st.lists(st.sampled_from(UNUSUAL), max_size=4, unique_by=lambda choice: choice[0])))
    chosen: dict[str, dict[str, Any]] = {}
    for where in [name for name in unusual if "." in name]:
        step, name = where.split(".")
        chosen.setdefault(step, {})[name] = unusual.pop(where)
    return Case(seed=draw(st.integers(0, 1000)), options=chosen, **unusual)


# ------------------------------------------------------------------------------------------------- what must hold
def fingerprint(adata: AnnData) -> dict[str, str]:
    """Return a hash of everything in an AnnData that can be asked for."""

    def one(values: Any) -> str:
        if isinstance(values, (pd.DataFrame, pd.Series)):
            return hashlib.sha256(values.to_csv().encode() + str(values.dtypes).encode()).hexdigest()
        if sp.issparse(values):
            return one(values.data) + one(values.indices) + one(values.indptr)
        if isinstance(values, np.ndarray):
            text = np.ascontiguousarray(values).tobytes() if values.dtype != object else repr(values.tolist()).encode()
            return hashlib.sha256(text).hexdigest() + str(values.dtype)
        if hasattr(values, "compute"):
            return one(values.compute())
        return repr(values)

    found = {"names": one(np.asarray(adata.obs_names, dtype=object)), "var": one(adata.var)}
    for slot in ("obs", "obsm", "obsp", "layers", "varm", "uns"):
        found |= {f"{slot}/{key}": one(values) for key, values in getattr(adata, slot).items()}
    return found


def finite(values: Any) -> None:
    assert np.isfinite(np.asarray(values, dtype=float)).all()


def same_result(found: OTVelocityKernel, kernel: OTVelocityKernel) -> None:
    np.testing.assert_array_equal(found.transition_matrix.toarray(), kernel.transition_matrix.toarray())
    np.testing.assert_array_equal(found.velocity, kernel.velocity)


def read_again(kernel: OTVelocityKernel) -> None:
    adata = kernel.adata.to_memory() if kernel.adata.isbacked else kernel.adata.copy()
    own = kernel.copy()
    own.adata = adata
    own.write_to_adata(key="T")
    with tempfile.TemporaryDirectory() as folder:
        write_h5ad(adata, Path(folder) / "written.h5ad")
        same_result(OTVelocityKernel.from_adata(ad.read_h5ad(Path(folder) / "written.h5ad"), key="T"), kernel)


def mixed_in(kernel: OTVelocityKernel) -> cr.kernels.Kernel:
    try:
        return cr.kernels.ConnectivityKernel(kernel.adata).compute_transition_matrix()
    except ValueError:  # of the host, which does not take every graph
        return kernel


def is_clear(error: Exception) -> bool:
    """Return whether an error was raised on purpose, in our code or in the host's, and says something."""
    if type(error) not in (*DOCUMENTED, WrongTimeError) or len(str(error)) < 20:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    where, line = last.tb_frame.f_code.co_filename, linecache.getline(last.tb_frame.f_code.co_filename, last.tb_lineno)
    return where.startswith(PACKAGE) and line.strip().startswith("raise ")


def compute(case: Case, adata: AnnData) -> OTVelocityKernel:
    chosen = case.options
    kind = {"time_kind": "experimental"} if case.series else {}
    groups = None if case.labels is None else "groups"
    kernel = OTVelocityKernel(
        adata, backward=case.backward, time_key="time", basis=case.key, cluster_key=groups, **kind
    )
    small = {} if case.series else {"min_window_size": 4}
    kernel.compute_windows(**{**small, **chosen.get("windows", {})})
    kernel.compute_velocity(**{**QUIET, **chosen.get("velocity", {})})
    kernel.fit_field(**{"hidden": (4,), "n_steps": N_TRAINING_STEPS, **QUIET, **chosen.get("field", {})})
    return kernel.compute_transition_matrix(**{**QUIET, **chosen.get("transitions", {})})


def check(kernel: OTVelocityKernel, case: Case) -> None:
    """Check what holds of every result."""
    matrix = sp.csr_matrix(kernel.transition_matrix)
    n_cells = kernel.adata.n_obs
    assert matrix.shape == (n_cells, n_cells)
    assert np.isfinite(matrix.data).all()
    assert (matrix.data >= 0).all()
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1, rtol=0, atol=1e-12)
    assert np.isfinite(kernel.velocity).all()
    raw = kernel.raw_velocity
    assert (np.isfinite(raw).all(axis=1) | np.isnan(raw).all(axis=1)).all()
    assert ((kernel.confidence >= 0) & (kernel.confidence <= 1)).all()
    assert np.isfinite(kernel.query_velocity(kernel.cells.x[:3])).all()
    floor_is_on = case.options.get("transitions", {}).get("threshold", 1.0) != 0
    graph = sp.csr_matrix(kernel.connectivities, copy=True)
    graph.sum_duplicates()  # or scipy may never come back
    graph.eliminate_zeros()  # which are no edges, but scipy takes them for some
    connected = connected_components(graph, directed=True, connection="strong")[0] == 1
    if connected and floor_is_on and "threshold" not in case.options.get("transitions", {}):
        assert connected_components(matrix, directed=True, connection="strong")[0] == 1


@given(case=cases())
def test_right_result_or_clear_error(case: Case):
    with tempfile.TemporaryDirectory() as folder, time_limit(TIME_LIMIT):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                adata = case.adata(Path(folder))
        except Exception:  # noqa: BLE001 - anndata does not take this: nothing to test
            event("refused by anndata")
            return
        before = fingerprint(adata)
        kernel = None
        with refused_clearly():
            kernel = compute(case, adata)
            check(kernel, case)
        assert fingerprint(adata) == before
        if kernel is not None:
            with refused_clearly():
                THEN[case.then](kernel)
            # It may have written results of its own; what was there is as it was.
            assert before.items() <= fingerprint(adata).items()
        if adata.isbacked:
            adata.file.close()


@contextmanager
def refused_clearly() -> Iterator[None]:
    """Let errors pass that were raised on purpose, and count them."""
    try:
        yield
    except Exception as error:  # which ones are right is what is asked
        event(type(error).__name__)
        if not is_clear(error):
            raise
    else:
        event("done")
