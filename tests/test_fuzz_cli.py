"""Whatever a file and the arguments hold: the command line makes a report, or says in one line what is wrong.

Fifty jobs here, always the same; ``make fuzz`` draws five hundred new ones.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, read_h5ad
from hypothesis import event, given, settings
from hypothesis import strategies as st
from odd_slots import GRAPHS, LABELS, NAMES, POSITIONS, TIMES, time_limit
from planted import PlantedCells, plant_cells

from cellrank_velot.fates import ends
from cellrank_velot.job import cli, outputs, steps

N_CELLS = 40
TIME_LIMIT = 120
N_JOBS = max(50, settings().max_examples // 5)
# Pictures take most of the time: of the jobs of the suite that would show something odd, each third one has them.
ALL_DRAWN = N_JOBS > 50

Change = Callable[[AnnData, np.random.Generator], Any]


# ------------------------------------------------------------------------------------------------- what may be odd
def put(slot: str, key: str, make: Callable[[np.random.Generator, int], Any]) -> Change:
    def change(adata: AnnData, rng: np.random.Generator) -> None:
        value = make(rng, adata.n_obs)
        if slot == "obsm" and isinstance(value, pd.DataFrame):
            value.index = adata.obs_names
        getattr(adata, slot)[key] = value

    return change


def rename(axis: str, names: Callable[[int], list[str]]) -> Change:
    def change(adata: AnnData, rng: np.random.Generator) -> None:
        size = adata.n_obs if axis == "obs" else adata.n_vars
        setattr(adata, f"{axis}_names", names(size))

    return change


def without(slot: str, key: str) -> Change:
    return lambda adata, rng: getattr(adata, slot).pop(key)


def note(key: str, value: Any) -> Change:
    return lambda adata, rng: adata.uns.update({key: value})


def graph(kind: str) -> Change:
    def change(adata: AnnData, rng: np.random.Generator) -> None:
        adata.obsp["connectivities"] = GRAPHS[kind](adata.obsm["X_pca"], rng)

    return change


def compare(key: str, make: Callable[[np.random.Generator, int], Any]) -> Change:
    """Put in four samples of two conditions, and in place of one of the two something odd."""

    def change(adata: AnnData, rng: np.random.Generator) -> None:
        number = np.arange(adata.n_obs) % 4
        adata.obs["condition"], adata.obs["sample"] = np.array(["x", "y"])[number % 2], np.array(list("stuv"))[number]
        adata.obs[key] = make(rng, adata.n_obs)

    return change


def expression(make: Callable[[np.ndarray, np.random.Generator], Any]) -> Change:
    def change(adata: AnnData, rng: np.random.Generator) -> None:
        adata.X = make(np.asarray(adata.X), rng)

    return change


def prepare_anew(adata: AnnData, rng: np.random.Generator) -> None:
    """Leave counts only."""
    for slot in (adata.obsm, adata.varm, adata.obsp, adata.uns):
        slot.clear()
    adata.X = rng.poisson(np.clip(np.asarray(adata.X), 0, 8)).astype(np.float32)


EXPRESSION: dict[str, Callable[[np.ndarray, np.random.Generator], Any]] = {
    "sparse": lambda x, rng: sp.csr_matrix(x),
    "float16": lambda x, rng: x.astype(np.float16),
    "integers": lambda x, rng: np.round(np.abs(x)).astype(int),
    "zeros": lambda x, rng: np.zeros_like(x),
    "constant": lambda x, rng: np.ones_like(x),
    "negative": lambda x, rng: x - 5,
    "a NaN": lambda x, rng: np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x),
    "an infinity": lambda x, rng: np.where(np.arange(x.size).reshape(x.shape) == 7, np.inf, x),
    "huge": lambda x, rng: x.astype(np.float64) * 1e300,
}
GENE_NAMES: dict[str, Callable[[int], list[str]]] = {
    **NAMES,
    "formulas": lambda n: [f"=A{i}" for i in range(n)],
    "mathematics": lambda n: [f"$\\bad_{i}$ {{x}} %s" for i in range(n)],
    "empty": lambda n: [""] * n,
    "numbers": lambda n: [str(i) for i in range(n)],
    "one is nan": lambda n: ["nan", *(f"g{i}" for i in range(1, n))],
}
ROOTS = ["cell_5", 3, 39, 40, -1, 2.0, 2.5, np.array([5, 9]), np.array([]), np.nan, True, {"a": 1}]
COLORS = [
    np.array(["colour 1", "colour 2", "colour 3"]),
    np.array(["red", "#00ff00", "C3"]),
    "red",
    np.array(["red"]),
    np.array([]),
    np.arange(3),
    np.eye(3),
    {"stem": "red", "left": "blue"},
]
NEIGHBORS = [
    {},
    "pca",
    {"params": "none"},
    {"params": {"use_rep": "X_gone"}},
    {"connectivities_key": "gone"},
    np.eye(2),
]
STALE = {
    "estimates": [put("obs", f"velot_{name}", LABELS["texts"]) for name in ("confidence", "cluster", "growth")],
    "velocities": [put("obsm", f"velot_velocity{name}", POSITIONS["one dimension"]) for name in ("", "_raw")],
    "states": [put("obs", f"{name}_fwd", LABELS["unicode"]) for name in ("macrostates", "term_states", "init_states")],
    "colours of states": [note(f"{name}_fwd_colors", "red") for name in ("macrostates", "term_states")],
    "lineages": [
        put("obsm", "lineages_fwd", POSITIONS["usual"]),
        put("obsm", "macrostates_fwd_memberships", POSITIONS["texts"]),
    ],
    "kernel": [note("velot", {"T_fwd": 3}), note("T_fwd_params", "none")],
    "matrix": [lambda adata, rng: adata.obsp.update({"T_fwd": np.eye(adata.n_obs)})],
    "pseudotime": [note("pseudotime", {"method": 3, "roots": np.arange(2)})],
    "Schur vectors": [note("schur_matrix_fwd", "none"), note("eigendecomposition_fwd", 3)],
}
ARGUMENTS: list[tuple[str, ...]] = [
    ("--terminal-states", "left,right"),
    ("--terminal-states", "left"),
    ("--terminal-states", "nowhere"),
    ("--terminal-states", ","),
    ("--n-states", "2"),
    ("--n-states", "39"),
    ("--n-states", "1000"),
    ("--n-states", "auto"),
    ("--n-states", "1"),
    ("--weight", "1"),
    ("--weight", "0.01"),
    ("--weight", "0"),
    ("--weight", "nan"),
    ("--root-cluster", "stem"),
    ("--root-cluster", "nowhere"),
    ("--root-cell", "cell_3"),
    ("--root-cell", "nobody"),
    ("--root-cluster", "stem", "--pseudotime", "geodesic"),
    ("--root-cluster", "left", "--pseudotime", "diffusion"),
    ("--root-cluster", "stem", "--root-cell", "cell_3"),
    ("--basis", "umap"),
    ("--basis", "X_pca"),
    ("--basis", "nothing"),
    ("--embedding", "pca"),
    ("--embedding", "nothing"),
    ("--normalize", "yes"),
    ("--normalize", "no"),
    ("--cluster-key", "stage"),
    ("--cluster-key", "dpt_pseudotime"),
    ("--cluster-key", "nothing"),
    ("--time-key", "stage"),
    ("--time-key", "clusters"),
    ("--time-key", "nothing"),
    ("--seed", "4294967295"),
    ("--seed", "4294967296"),
    ("--n-pcs", "2"),
    ("--n-pcs", "1000"),
    ("--n-neighbors", "1000"),
    ("--n-steps", "1"),
    ("--pseudotime", "magic"),
    ("--time-kind", "experimental"),
    ("--time-kind", "experimental", "--time-key", "stage", "--cluster-key", "stage"),
    ("--condition-key", "clusters", "--sample-key", "stage"),
    ("--condition-key", "stage", "--sample-key", "clusters", "--reference", "nothing"),
    ("--condition-key", "clusters"),
    ("--reference", "left"),
]


@dataclass(frozen=True)
class Odd:
    """Something that is not as usual: a change to the cells, arguments, and whether pictures show it."""

    name: str
    change: Change = lambda adata, rng: None
    arguments: tuple[str, ...] = ()
    drawn: bool = False


TIME, GROUPS, DRAWN = ("--time-key", "odd"), ("--cluster-key", "odd"), ("--embedding", "odd")
POINTS = ("--time-key", "points", "--time-kind", "experimental")
COMPARED = ("--condition-key", "condition", "--sample-key", "sample")
POINTS_OF_TIME: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "in order": lambda rng, n: np.arange(n) * 3 // n,
    "two": lambda rng, n: pd.Categorical(np.array(["E8.5", "E10"])[np.arange(n) * 2 // n]),
    "the last of one cell": lambda rng, n: np.append(np.arange(n - 1) % 2, 2),
    "mixed": lambda rng, n: rng.integers(0, 4, n) * 1e6 - 7,
}
TIME_POINTS = {**POINTS_OF_TIME, **{kind: TIMES[kind] for kind in ("two times", "one later", "texts", "dates", "NaN")}}
UNUSUAL = [
    *(
        Odd(f"time points: {kind}", put("obs", "points", make), POINTS, drawn=True)
        for kind, make in TIME_POINTS.items()
    ),
    *(Odd(f"conditions: {kind}", compare("condition", make), COMPARED, drawn=True) for kind, make in LABELS.items()),
    *(Odd(f"samples: {kind}", compare("sample", make), COMPARED, drawn=True) for kind, make in LABELS.items()),
    *(Odd(f"time: {kind}", put("obs", "odd", make), TIME, drawn=True) for kind, make in TIMES.items()),
    *(Odd(f"clusters: {kind}", put("obs", "odd", make), GROUPS, drawn=True) for kind, make in LABELS.items()),
    *(Odd(f"positions: {kind}", put("obsm", "X_pca", make)) for kind, make in POSITIONS.items()),
    *(Odd(f"UMAP: {kind}", put("obsm", "X_umap", make), drawn=True) for kind, make in POSITIONS.items()),
    *(Odd(f"embedding: {kind}", put("obsm", "X_odd", make), DRAWN, drawn=True) for kind, make in POSITIONS.items()),
    *(Odd(f"graph: {kind}", graph(kind)) for kind in GRAPHS),
    *(Odd(f"names of cells: {kind}", rename("obs", names)) for kind, names in NAMES.items()),
    *(Odd(f"names of genes: {kind}", rename("var", names), drawn=True) for kind, names in GENE_NAMES.items()),
    *(Odd(f"expression: {kind}", expression(make), drawn=True) for kind, make in EXPRESSION.items()),
    *(Odd(f"counts: {a}", prepare_anew, a, drawn=True) for a in [("--root-cluster", "stem"), ("--n-pcs", "1000"), ()]),
    *(Odd(f"root: {value}", note("iroot", value), drawn=True) for value in ROOTS),
    *(Odd(f"colours: {value}", note("clusters_colors", value), drawn=True) for value in COLORS),
    *(Odd(f"neighbours: {value}", note("neighbors", value), ("--root-cluster", "stem")) for value in NEIGHBORS),
    *(Odd(f"stale: {n}", lambda a, rng, of=of: [c(a, rng) for c in of], drawn=True) for n, of in STALE.items()),
    *(Odd(f"missing: {s} {k}", without(s, k)) for s, k in [("obs", "dpt_pseudotime"), ("obs", "clusters")]),
    *(Odd(f"missing: {s} {k}", without(s, k)) for s, k in [("obsm", "X_pca"), ("obsm", "X_umap")]),
    *(Odd(f"missing: {s} {k}", without(s, k)) for s, k in [("obsp", "connectivities"), ("uns", "neighbors")]),
    *(Odd(" ".join(given), arguments=given) for given in ARGUMENTS),
]


@dataclass(frozen=True)
class Job:
    """A file with a few things that are odd, and arguments."""

    odd: tuple[Odd, ...] = ()
    seed: int = 0
    n_cells: int = N_CELLS

    def __repr__(self) -> str:
        return f"Job({[odd.name for odd in self.odd]}, seed={self.seed}, n_cells={self.n_cells})"

    def write(self, path: Path, cells: PlantedCells) -> None:
        adata, rng = cells.adata()[: self.n_cells].copy(), np.random.default_rng(self.seed)
        for odd in self.odd:
            odd.change(adata, rng)
        adata.write_h5ad(path)

    @property
    def drawn(self) -> bool:
        return any(odd.drawn for odd in self.odd) and (ALL_DRAWN or self.seed % 3 == 0)

    @property
    def arguments(self) -> list[str]:
        return [text for odd in self.odd for text in odd.arguments]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Draw a usual job with a few things that are not."""
    odd = draw(st.lists(st.sampled_from(UNUSUAL), min_size=1, max_size=3, unique_by=lambda one: one.name))
    n_cells = draw(st.sampled_from([N_CELLS] * 12 + [20, 5, 3, 2, 1]))
    return Job(tuple(odd), draw(st.integers(0, 1000)), n_cells)


# ------------------------------------------------------------------------------------------------- what must hold
@pytest.fixture(scope="module")
def cells() -> PlantedCells:
    return plant_cells(N_CELLS)


@pytest.fixture(autouse=True)
def _little_work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw coarsely, and try few halves and numbers of macrostates: what is odd does not depend on them."""
    if not ALL_DRAWN:
        request.getfixturevalue("_coarse_pictures")
    monkeypatch.setattr(outputs, "DPI", 20)
    monkeypatch.setattr(ends, "N_HALVES", 2)
    monkeypatch.setattr(steps, "MAX_STATES", 4)


def run(job: Job, cells: PlantedCells, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command line, and return the exit code and what it says."""
    argv = ["run", str(folder / "in.h5ad"), "--out", str(folder / "out"), "--n-steps", "3", *job.arguments]
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        if not job.drawn:
            patch.setattr(outputs, "_write_figures", lambda result, folder: {})
        try:
            code = cli.main(argv)
        except SystemExit as stop:  # of the parser
            code = stop.code
    return code, capsys.readouterr().err


@pytest.mark.slow
@settings(max_examples=N_JOBS)
@given(job=jobs())
def test_a_report_or_one_line_that_names_the_cause(job: Job, cells: PlantedCells, capsys):
    with tempfile.TemporaryDirectory() as name, time_limit(TIME_LIMIT):
        folder = Path(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                job.write(folder / "in.h5ad", cells)
        except Exception:  # noqa: BLE001 - anndata does not take this: nothing to test
            event("refused by anndata")
            return
        code, said = run(job, cells, folder, capsys)
        event(f"exit code {code}")
        assert "Traceback" not in said
        assert "shows where" not in said, said  # an error that was not foreseen
        assert "Error in " not in said, said
        errors = re.findall(r"^cellrank-velot(?: run)?: error: .{15,}$", said, flags=re.MULTILINE)
        if code == cli.BAD_INPUT:
            assert len(errors) == 1
            assert said.rstrip().splitlines()[-1] == errors[0]
        else:
            assert code in (cli.OK, cli.FAILED)
            check(folder / "out", drawn=job.drawn, whole=code == cli.OK)


def check(folder: Path, *, drawn: bool, whole: bool) -> None:
    """Check what holds of every result."""
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Velocity and fates of in.h5ad" in report
    assert ">nan<" not in report
    adata = read_h5ad(folder / "adata.h5ad")
    np.testing.assert_allclose(np.asarray(adata.obsp["T_fwd"].sum(axis=1)).ravel(), 1, atol=1e-9)
    if whole:
        fates = pd.read_csv(folder / "fate_probabilities.csv", index_col="cell")
        assert len(fates) == adata.n_obs
        assert np.isfinite(fates["time"]).all()
        np.testing.assert_allclose(fates.filter(regex="^to ").sum(axis=1), 1, atol=1e-3)
        assert not drawn or (folder / "figures" / "velocity_stream.png").exists()
