"""The command line from end to end: files, log, report, exit codes, and what it leaves alone."""

import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from cellrank import Lineage

from cellrank_velot import OTVelocityKernel, datasets, write_h5ad
from cellrank_velot._utils.files import replacing
from cellrank_velot.fates import TerminalStates, ends
from cellrank_velot.job import JobOptions, analysis, cli, inputs, outputs, steps
from cellrank_velot.job.report import Cell, Figure, Report, Table, package_versions, render, write_report
from cellrank_velot.storage import h5ad

write_figures = outputs._write_figures
FEW_STEPS = ["--n-steps", "50"]
FIGURES = {"velocity_stream", "fate_map", "macrostates", "gene_trends", "time", "training", "confidence"}
TABLES = {"drivers.csv", "fate_probabilities.csv", "terminal_states.csv"}
FILES = TABLES | {"adata.h5ad", "figures", "report.html", "run.log"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> SimpleNamespace:
    """The results of the demo on few cells."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "results"
    code = cli.main(["demo", "--out", str(folder), "--n-cells", "300", *FEW_STEPS])
    return SimpleNamespace(folder=folder, code=code, adata=read_h5ad(folder / "adata.h5ad"))


@pytest.fixture(scope="module")
def cells_on_disk(demo, tmp_path_factory) -> Path:
    adata = AnnData(
        demo.adata.X,
        obs=demo.adata.obs[["clusters", "dpt_pseudotime"]].copy(),
        var=demo.adata.var[[]].copy(),
        obsm={key: demo.adata.obsm[key] for key in ("X_pca", "X_umap")},
        obsp={"connectivities": demo.adata.obsp["connectivities"]},
    )
    adata.obs["clusters"] = adata.obs["clusters"].astype(str)
    path = tmp_path_factory.mktemp("cells") / "raw.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture
def raw(cells_on_disk, tmp_path, monkeypatch) -> Path:
    """The cells of the demo as a user has them: prepared, annotated, without results.

    No figures are drawn, and direction and halves of the cells, which take half of the rest, are left to the demo.
    """
    monkeypatch.setattr(outputs, "_write_figures", lambda result, folder: {})
    monkeypatch.setattr(analysis, "_test_direction", lambda *_: None)
    monkeypatch.setattr(ends, "N_HALVES", 2)
    return Path(shutil.copy(cells_on_disk, tmp_path))


@pytest.fixture
def draw_all(monkeypatch, _coarse_pictures) -> None:
    """Draw all figures, coarsely: those of the demo are drawn as users see them."""
    monkeypatch.setattr(outputs, "_write_figures", write_figures)


def changed(path: Path, change) -> Path:
    adata = read_h5ad(path)
    adata = change(adata) or adata
    adata.write_h5ad(path)
    return path


def run(path: Path, *args: str) -> int:
    return cli.main(["run", str(path), "--out", str(path.parent / "out"), "--quiet", *FEW_STEPS, *args])


# ----------------------------------------------------------------------------------------------------------- demo
def test_demo_writes_all_files(demo):
    assert demo.code == cli.OK
    assert {path.name for path in demo.folder.iterdir()} == FILES
    assert {path.stem for path in (demo.folder / "figures").iterdir()} == FIGURES
    assert all(path.suffix == ".png" and path.stat().st_size > 2000 for path in (demo.folder / "figures").iterdir())


def test_demo_finds_both_fates(tmp_path, monkeypatch):
    # With the 300 cells and few steps of the shared run, cells of one fate went to the other with 0.3.
    monkeypatch.setattr(outputs, "_write_figures", lambda result, folder: {})
    assert cli.main(["demo", "--out", str(tmp_path), "--n-cells", "600", "--quiet"]) == cli.OK
    fates = pd.read_csv(tmp_path / "fate_probabilities.csv", index_col="cell")
    assert set(fates.columns) == {"time", "cluster", "to Fate A", "to Fate B"}
    np.testing.assert_allclose(fates[["to Fate A", "to Fate B"]].sum(axis=1), 1, atol=1e-3)
    mean = fates.groupby("cluster")[["to Fate A", "to Fate B"]].mean()
    assert mean.loc["Fate A", "to Fate A"] > 0.8 > 0.2 > mean.loc["Fate A", "to Fate B"]
    assert mean.loc["Fate B", "to Fate B"] > 0.8 > 0.2 > mean.loc["Fate B", "to Fate A"]
    assert 0.25 < mean.loc["Progenitor", "to Fate A"] < 0.75
    drivers = pd.read_csv(tmp_path / "drivers.csv", index_col=0)
    assert drivers.loc["FateA", "Fate A_corr"] > 0.5 > -0.5 > drivers.loc["FateA", "Fate B_corr"]


def test_h5ad_brings_back_the_kernel(demo):
    kernel = OTVelocityKernel.from_adata(demo.adata, "T_fwd")
    np.testing.assert_array_equal(kernel.transition_matrix.toarray(), demo.adata.obsp["T_fwd"].toarray())
    np.testing.assert_array_equal(kernel.velocity, demo.adata.obsm["velot_velocity"])
    assert demo.adata.obsm["lineages_fwd"].shape == (300, 2)
    assert set(demo.adata.obs["term_states_fwd"].cat.categories) == {"Fate A", "Fate B"}


def test_log_says_what_was_chosen(demo):
    log = (demo.folder / "run.log").read_text()
    for text in (
        "Simulating 300 cells",
        "Time is `obs['dpt_pseudotime']`",
        "macrostates: ",
        "Terminal states by shape and flow: Fate",
        "Done in",
    ):
        assert text in log


def test_report_is_one_file_without_anything_from_outside(demo):
    html = (demo.folder / "report.html").read_text()
    assert len(html) < 4_000_000
    assert html.count('src="data:image/png;base64,') == len(FIGURES)
    assert not re.findall(r'\b(?:src|href|action)\s*=\s*"(?!data:)', html)
    assert not re.findall(r"<script|<link|<iframe|@import|url\(", html)
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "http" not in text
    assert 'name="viewport"' in text


def test_report_says_what_a_reader_asks(demo):
    text = re.sub(
        r"\s+", " ", re.sub(r"<[^>]+>|base64,[A-Za-z0-9+/=]+", " ", (demo.folder / "report.html").read_text())
    )
    for part in (
        "Velocity and fates of simulated cells",
        "300 cells were followed along dpt_pseudotime",
        "two terminal states",
        "Cosine with true velocity",
        "Fate probabilities by cluster",
        "Driver genes",
        "softmax_scale",
        "seed 0",
        f"python {sys.version_info.major}.{sys.version_info.minor}",
    ):
        assert part in text
    for name in ("cellrank", "scanpy", "torch", "numpy"):
        assert f"{name} {package_versions()[name]}" in text


# ------------------------------------------------------------------------------------------------------------ run
def test_run_on_counts_prepares_first(tmp_path):
    adata = datasets.bifurcation(n_cells=150, n_genes=30, preprocess=False)
    adata.X = np.random.default_rng(0).poisson(np.exp(adata.X)).astype(np.float32)
    adata.write_h5ad(tmp_path / "counts.h5ad")
    args = [
        "--root-cluster",
        "Progenitor",
        "--n-pcs",
        "10",
        "--n-neighbors",
        "12",
        "--terminal-states",
        "Fate A,Fate B",
    ]
    assert run(tmp_path / "counts.h5ad", *args) == cli.OK
    result = read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert result.obsm["X_pca"].shape == (150, 10)
    assert {"X_umap", "velot_velocity"} <= set(result.obsm)
    np.testing.assert_array_equal(result.layers["counts"], adata.X)
    assert set(result.obs["term_states_fwd"].dropna()) == {"Fate A", "Fate B"}


def test_run_uses_what_is_there(raw):
    before = read_h5ad(raw)
    assert run(raw, "--time-key", "dpt_pseudotime", "--cluster-key", "clusters", "--basis", "pca") == cli.OK
    after = read_h5ad(raw.parent / "out" / "adata.h5ad")
    for key in ("X_pca", "X_umap"):
        np.testing.assert_array_equal(after.obsm[key], before.obsm[key])
    np.testing.assert_array_equal(after.obs["dpt_pseudotime"], before.obs["dpt_pseudotime"])
    assert read_h5ad(raw).obs.columns.tolist() == before.obs.columns.tolist()


def test_same_seed_same_result(raw):
    results = []
    for _ in range(2):
        assert run(raw, "--seed", "3", "--n-states", "3") == cli.OK
        results.append((raw.parent / "out" / "fate_probabilities.csv").read_bytes())
    assert results[0] == results[1]


def test_run_without_clusters_and_genes(raw, draw_all):
    def bare(adata):
        obs = adata.obs[["dpt_pseudotime"]].copy()
        return AnnData(obs=obs, obsm={"latent": adata.obsm["X_pca"], "X_umap": adata.obsm["X_umap"]})

    assert run(changed(raw, bare), "--basis", "latent", "--weight", "1", "--n-states", "3") == cli.OK
    out = raw.parent / "out"
    assert not (out / "drivers.csv").exists()
    assert "cluster" not in pd.read_csv(out / "fate_probabilities.csv").columns
    assert "No genes" in (out / "run.log").read_text()


@pytest.mark.parametrize(("arguments", "key"), [([], "consensus"), (["--pseudotime", "diffusion"], "dpt")])
def test_root_cell_gives_a_time_on_the_graph_that_is_there(raw, demo, arguments, key):
    def drop(adata):
        del adata.obs["dpt_pseudotime"]

    root = str(demo.adata.obs_names[int(demo.adata.uns["iroot"])])
    assert run(changed(raw, drop), "--root-cell", root, "--n-states", "2", *arguments) == cli.OK
    time = read_h5ad(raw.parent / "out" / "adata.h5ad").obs[f"{key}_pseudotime"]
    assert time[root] < 0.05
    assert time.corr(demo.adata.obs["dpt_pseudotime"], method="spearman") > 0.97


def test_cells_without_neighbours(raw):
    def cut(adata):
        graph = adata.obsp["connectivities"].tolil()
        graph[:4] = 0
        graph[:, :4] = 0
        graph = graph.tocsr()
        graph.eliminate_zeros()
        adata.obsp["connectivities"] = graph

    assert run(changed(raw, cut), "--terminal-states", "Fate A,Fate B") in (cli.OK, cli.FAILED)
    report = (raw.parent / "out" / "report.html").read_text()
    assert "cells have no neighbours: the velocity is used alone" in report


def test_time_that_does_not_reach_all_cells_is_refused_before_any_work(raw, capsys):
    def cut(adata):
        graph = adata.obsp["connectivities"].tolil()
        graph[:50, 50:] = 0
        graph[50:, :50] = 0
        adata.obsp["connectivities"] = graph.tocsr()

    assert run(changed(raw, cut), "--root-cluster", "Progenitor") == cli.BAD_INPUT
    assert "The neighbour graph has 3 components, of 250, 47, 3 cells" in capsys.readouterr().err


def test_time_that_falls_and_a_cycle_are_pointed_out(raw, draw_all):
    adata = read_h5ad(raw)
    time, late = adata.obs["dpt_pseudotime"], adata.obs["clusters"] == "Fate A"
    adata.obs["dpt_pseudotime"] = time.where(~late, time[late].max() + time[late].min() - time)
    adata.write_h5ad(raw)
    assert run(raw, "--cluster-key", "clusters", "--terminal-states", "Fate A,Fate B") in (cli.OK, cli.FAILED)
    report = (raw.parent / "out" / "report.html").read_text()
    assert report.count("In cluster Fate A time falls with the distance from the root: ") == 2
    assert "In cluster Fate B" not in report
    assert (raw.parent / "out" / "figures" / "time_check.png").exists()


def test_wrong_root_is_pointed_out(raw):
    assert run(raw, "--time-key", "dpt_pseudotime", "--root-cluster", "Fate A", "--n-states", "2") == cli.OK
    report = (raw.parent / "out" / "report.html").read_text()
    assert "the earliest cluster is &#39;Progenitor&#39;, not the root &#39;Fate A&#39;" in report


def test_too_many_states_fall_back(raw, monkeypatch):
    attempt, tried = steps._try_macrostates, []

    def at_most_three(estimator, n_states, options):
        tried.append(n_states)
        return n_states <= 3 and attempt(estimator, n_states, options)

    monkeypatch.setattr(steps, "_try_macrostates", at_most_three)
    assert run(raw, "--n-states", "5") == cli.OK
    assert tried[:3] == [5, 4, 3]
    log = (raw.parent / "out" / "run.log").read_text()
    assert re.search(r"WARNING cellrank_velot: 5 macrostates cannot be told apart: using [23]", log)


def test_unreachable_terminal_states_leave_a_result_without_fates(raw, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ValueError("`305` value(s) do not sum to 1")

    monkeypatch.setattr(steps.GPCCA, "compute_fate_probabilities", fail)
    assert run(raw, "--n-states", "2") == cli.FAILED
    out = raw.parent / "out"
    assert {path.name for path in out.iterdir()} == FILES - {"drivers.csv", "fate_probabilities.csv"}
    assert "could not be computed" in (out / "report.html").read_text()


def does_not_converge(*args, **kwargs):
    raise RuntimeError("20 Schur vectors have not converged")


def test_named_ends_need_no_macrostates(raw, draw_all, monkeypatch):
    monkeypatch.setattr(steps.GPCCA, "compute_schur", does_not_converge)
    assert run(raw, "--terminal-states", "Fate A, Fate B") == cli.OK
    out = raw.parent / "out"
    assert {path.stem for path in (out / "figures").iterdir()} == FIGURES - {"macrostates"}
    assert "No macrostates" in (out / "report.html").read_text()


def test_ends_by_shape_need_no_macrostates(raw, draw_all, monkeypatch):
    monkeypatch.setattr(steps.GPCCA, "compute_schur", does_not_converge)
    assert run(raw, "--cluster-key", "clusters") == cli.OK
    report = (raw.parent / "out" / "report.html").read_text()
    assert "No macrostates" in report
    assert "They were found by the shape of the data and the flow" in report


def test_without_any_end_the_report_says_what_to_do(raw, monkeypatch, capsys):
    monkeypatch.setattr(steps, "compute_schur", lambda *_: False)
    monkeypatch.setattr(OTVelocityKernel, "suggest_terminal_states", lambda *_, **__: TerminalStates({}))
    assert run(raw) == cli.FAILED
    assert "Name the clusters where the process ends" in capsys.readouterr().err
    assert {path.name for path in (raw.parent / "out").iterdir()} == FILES - TABLES
    assert "The process may be a cycle" in (raw.parent / "out" / "report.html").read_text()


def test_one_lineage_ends_in_a_sentence(raw):
    assert run(raw, "--terminal-states", "Fate A") == cli.OK
    report = (raw.parent / "out" / "report.html").read_text()
    assert "There is one lineage: every cell goes to Fate A, and no gene drives a choice" in report
    assert not (raw.parent / "out" / "drivers.csv").exists()


def test_time_points_are_told_from_a_pseudotime(raw):
    adata = read_h5ad(raw)
    adata.obs["day"] = np.round(adata.obs["dpt_pseudotime"] * 4)
    adata.write_h5ad(raw)
    run(raw, "--time-key", "day")
    assert "`adata.obs['day']` has 5 different values" in (raw.parent / "out" / "run.log").read_text()


def test_time_points_are_followed_to_descendants_and_ancestors(raw):
    adata = read_h5ad(raw)
    adata.obs["stage"] = pd.cut(adata.obs["dpt_pseudotime"], [-1, 0.3, 0.6, 2], labels=["E8.5", "E9", "E10"])
    del adata.obsp["connectivities"]
    adata.write_h5ad(raw)
    assert run(raw, "--time-key", "stage", "--time-kind", "experimental") == cli.OK
    out = raw.parent / "out"
    assert set(read_h5ad(out / "adata.h5ad").obs["stage"]) == {8.5, 9.0, 10.0}
    for name, starts in (("descendants", "Progenitor"), ("ancestors", "Fate A")):
        table = pd.read_csv(out / f"{name}.csv")
        assert starts in set(table["from"])
        np.testing.assert_allclose(table.groupby("from")["share"].sum(), 1, atol=1e-6)
    flows = pd.read_csv(out / "cluster_flows.csv")
    np.testing.assert_allclose(flows.groupby("time")["mass"].sum(), 1)
    report = (out / "report.html").read_text()
    assert "Descendants per cell" in report
    assert "chances of single cells, whatever they grow to" in report
    assert "E10" in (out / "run.log").read_text()


def test_conditions_are_compared_over_samples(raw, draw_all):
    adata = read_h5ad(raw)
    sample = np.arange(adata.n_obs) % 6
    adata.obs["mouse"] = [f"m{number}" for number in sample]
    adata.obs["drug"] = np.where(sample < 3, "none", "much")
    adata.write_h5ad(raw)
    keys = ["--condition-key", "drug", "--sample-key", "mouse", "--reference", "none"]
    assert run(raw, *keys, "--terminal-states", "Fate A,Fate B") == cli.OK
    out = raw.parent / "out"
    found, samples = (pd.read_csv(out / f"condition_{name}.csv") for name in ("differences", "samples"))
    assert set(found["reference"]) == {"none"}
    assert {"lineage share", "cluster share", "fate", "speed", "rise"} <= set(found["measure"])
    assert set(samples["sample"]) == set(adata.obs["mouse"])
    drawn = {path.stem for path in (out / "figures").glob("condition_*.png")}
    assert drawn == {f"condition_{name}" for name in ("fates", "clusters", "velocity", "trends")}
    report = (out / "report.html").read_text()
    assert "Differences between conditions" in report
    assert "3 samples against 3" in report


def test_a_root_is_refused_with_time_points(raw, capsys):
    assert run(raw, "--time-kind", "experimental", "--root-cluster", "Progenitor") == cli.BAD_INPUT
    assert "the first time point is the start" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [[], ["--terminal-states", "Fate A,Fate B"]])
def test_ends_need_no_macrostates(raw, monkeypatch, ends):
    monkeypatch.setattr(steps, "_try_macrostates", lambda *args: False)
    assert run(raw, *ends) == cli.OK
    assert set(read_h5ad(raw.parent / "out" / "adata.h5ad").obs["term_states_fwd"].dropna()) == {"Fate A", "Fate B"}


def test_macrostates_stand_in_where_no_end_is_found(raw, monkeypatch):
    monkeypatch.setattr(OTVelocityKernel, "suggest_terminal_states", lambda *_, **__: TerminalStates({}))
    assert run(raw, "--n-states", "3") == cli.OK
    assert "they are the macrostates that are stable and late" in (raw.parent / "out" / "report.html").read_text()


# --------------------------------------------------------------------------------------------------------- errors
def drop_time(adata):
    del adata.obs["dpt_pseudotime"]


def drop_basis(adata):
    return AnnData(obs=adata.obs)


def hole_in_time(adata):
    adata.obs.iloc[:3, adata.obs.columns.get_loc("dpt_pseudotime")] = np.nan


def hole_in_clusters(adata):
    adata.obs["clusters"] = adata.obs["clusters"].where(adata.obs["clusters"] != "Fate A").astype("category")


def one_batch(adata):
    adata.obs["batch"] = "one"


BAD = {
    "time missing": ([], drop_time, r"Expected one of \['pseudotime'.*--root-cluster"),
    "time unknown": (["--time-key", "age"], None, r"adata\.obs\['age'\].*dpt_pseudotime"),
    "time not finite": ([], hole_in_time, r"`3` of `300` cells: 'cell0', 'cell1', 'cell2'"),
    "time not numeric": (["--time-key", "clusters"], None, r"to be numeric"),
    "clusters unknown": (["--cluster-key", "leiden"], None, r"adata\.obs\['leiden'\].*--cluster-key"),
    "clusters missing": ([], hole_in_clusters, r"a cluster for each cell .* found none for"),
    "root unknown": (["--root-cluster", "Acinar"], None, r"\['Acinar'\].*valid ones are \['Fate A'"),
    "root cell unknown": (["--root-cell", "x"], None, r"such as 'cell0', found 'x'"),
    "both roots": (["--root-cell", "cell0", "--root-cluster", "Fate A"], None, "found both"),
    "terminal state unknown": (["--terminal-states", "Fate A,Acinar"], None, r"\['Acinar'\]"),
    "basis unknown": (["--basis", "scvi"], None, r"adata\.obsm\['scvi'\].*X_pca"),
    "basis missing": ([], drop_basis, r"Expected genes or a basis"),
    "embedding unknown": (["--embedding", "tsne"], None, r"adata\.obsm\['tsne'\]"),
    "pseudotime unknown": (["--pseudotime", "x"], None, r"`--pseudotime` to be one of \['consensus', 'geodesic'"),
    "condition without samples": (["--condition-key", "clusters"], None, "`--condition-key` and `--sample-key` toget"),
    "condition unknown": (["--condition-key", "drug", "--sample-key", "clusters"], None, r"adata\.obs\['drug'\]"),
    "condition of samples": (
        ["--condition-key", "clusters", "--sample-key", "batch"],
        one_batch,
        "in more than one cond",
    ),
    "weight": (["--weight", "1.5"], None, r"`--weight` to be in \(0, 1\], found `1.5`"),
    "one state": (["--n-states", "1"], None, "`--n-states` to be at least `2`"),
    "no steps": (["--n-steps", "0"], None, "`--n-steps` to be at least `1`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, raw, capsys):
    args, change, message = BAD[case]
    if change is not None:
        changed(raw, change)
    assert run(raw, *args) == cli.BAD_INPUT
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert out == ""
    assert line.startswith("cellrank-velot: error: ")
    assert re.search(message, line)
    assert not (raw.parent / "out").exists()


def test_missing_and_broken_file(tmp_path, capsys):
    assert run(tmp_path / "none.h5ad") == cli.BAD_INPUT
    assert "found none at" in capsys.readouterr().err
    (tmp_path / "text.h5ad").write_text("no HDF5")
    assert run(tmp_path / "text.h5ad") == cli.BAD_INPUT
    assert "cannot be read as h5ad" in capsys.readouterr().err


def test_out_is_a_file_or_the_input(raw, capsys):
    assert cli.main(["run", str(raw), "--out", str(raw)]) == cli.BAD_INPUT
    assert "to be a folder" in capsys.readouterr().err
    own = raw.rename(raw.with_name("adata.h5ad"))
    before = own.read_bytes()
    assert cli.main(["run", str(own), "--out", str(own.parent)]) == cli.BAD_INPUT
    assert "would replace the input" in capsys.readouterr().err
    assert own.read_bytes() == before


def test_errors_from_below_say_so(raw, monkeypatch, capsys):
    monkeypatch.setattr(cli, "build_kernel", lambda *args: {}["n_neighbors"])
    assert run(raw) == cli.BAD_INPUT
    assert "n_neighbors" in capsys.readouterr().err
    with pytest.raises(cli.InputError, match=r"KeyError in .*: n_neighbors \(`--debug` shows where\)"):
        run(raw, "--debug")


@pytest.mark.parametrize("args", [[], ["run"], ["fly"], ["run", "a.h5ad"], ["demo", "--seed", "x"]])
def test_wrong_arguments(args, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == cli.BAD_INPUT
    assert "usage: cellrank-velot" in capsys.readouterr().err


def test_a_bug_is_not_hidden_but_logged(raw, monkeypatch):
    monkeypatch.setattr(cli, "analyse", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(raw)
    assert "ZeroDivisionError" in (raw.parent / "out" / "run.log").read_text()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, cli.INTERRUPTED), (MemoryError, cli.FAILED)])
def test_interruption_and_memory(raw, monkeypatch, capsys, error, code):
    def stop(*args):
        raise error

    monkeypatch.setattr(cli, "analyse", stop)
    assert run(raw) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_handlers_are_taken_away(raw):
    import logging

    names = ("cellrank_velot", "cellrank", "py.warnings")
    before = [(list(one.handlers), one.level, one.propagate) for one in map(logging.getLogger, names)]
    run(raw, "--weight", "7")
    assert [(list(one.handlers), one.level, one.propagate) for one in map(logging.getLogger, names)] == before


def test_progress_goes_to_stderr(raw, capsys):
    command = ["run", str(raw), "--out", str(raw.parent / "out"), "--n-states", "2", *FEW_STEPS]
    assert cli.main(command) == cli.OK
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"^\[ +\d+\.\d s\] Found 300 cells", err, flags=re.MULTILINE)


def test_python_m(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cellrank_velot", "run", "none.h5ad", "--out", "none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cellrank_velot", run_name="__main__")
    assert ended.value.code == cli.BAD_INPUT
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "cellrank-velot: error: Expected an h5ad file, found none at none.h5ad."


# ---------------------------------------------------------------------------------------------------------- files
def test_files_of_others_stay_and_quiet_is_quiet(raw, capsys):
    out = raw.parent / "out"
    (out / "figures").mkdir(parents=True)
    others = [out / "notes.txt", out / "figures" / "mine.png", out / "other.h5ad"]
    for path in others:
        path.write_text("mine")
    (out / "report.html").write_text("old")
    assert run(raw, "--n-states", "2") == cli.OK
    assert "Found 300 cells" not in capsys.readouterr().err
    assert [path.read_text() for path in others] == ["mine"] * 3
    assert "Velocity and fates of raw.h5ad" in (out / "report.html").read_text()


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_text() == "before"
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_h5ad_leaves_the_old_one_and_the_fates(demo, tmp_path, monkeypatch):
    adata = demo.adata.copy()
    (tmp_path / "adata.h5ad").write_text("old")
    lineages = Lineage(np.full((300, 2), 0.5), names=["a", "b"])
    adata.obsm["lineages_fwd"] = lineages
    monkeypatch.setattr(h5ad, "write_elem", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_h5ad(adata, tmp_path / "adata.h5ad")
    assert (tmp_path / "adata.h5ad").read_text() == "old"
    assert list(adata.obsm["lineages_fwd"].names) == ["a", "b"]
    assert len(list(tmp_path.iterdir())) == 1


# ------------------------------------------------------------------------------------------------- small decisions
def test_numbers_of_states_by_eigengap():
    values = np.array([1, 0.99, 0.98, 0.6, 0.59, 0.58])
    assert steps._by_eigengap(values)[0] == 3
    values = np.array([1, 0.9, 0.6 + 0.1j, 0.6 - 0.1j, 0.3])
    assert sorted(steps._by_eigengap(values)) == [2, 4]


def states(stability, time):
    """An estimator and a time with one state for each entry, three cells in each."""
    names = [f"s{i}" for i in range(len(stability))]
    cells = pd.Series(np.repeat(names, 3)).astype("category")
    chosen = []
    estimator = SimpleNamespace(
        macrostates=cells,
        coarse_T=pd.DataFrame(np.diag(stability), index=names, columns=names),
        adata=SimpleNamespace(n_obs=cells.size),
        set_terminal_states=lambda names, n_cells: chosen.extend(names),
    )
    return estimator, np.repeat(time, 3).astype(float), chosen


def test_states_without_probabilities_do_not_count():
    options = steps.StateOptions()
    estimator, time, _ = states([0.99, 0.97, 12.3], [0.0, 0.9, 0.8])
    assert steps._n_terminal(estimator, time, options.stable, options.late) == 0
    estimator, time, _ = states([0.99, 0.97, 1.001], [0.0, 0.9, 0.8])
    assert steps._n_terminal(estimator, time, options.stable, options.late) == 2


@pytest.mark.parametrize(
    ("stability", "time", "expected"),
    [
        ([0.99, 0.99, 0.97, 0.8], [0.0, 0.8, 0.9, 0.7], ["s1", "s2"]),  # the stable early state is none
        ([0.99, 0.99, 0.92, 0.5], [0.0, 0.8, 0.9, 0.7], ["s1", "s2"]),  # two are better than one
        ([0.99, 0.70, 0.80, 0.5], [0.0, 0.7, 0.9, 0.8], ["s2", "s3"]),  # none is stable: all late ones
        ([0.99, 0.99, 0.50, 0.5], [0.0, 0.9, 0.8, 0.7], ["s1"]),
    ],
)
def test_terminal_states_are_stable_and_late(stability, time, expected):
    estimator, of_cells, chosen = states(stability, time)
    steps.terminal_from_macrostates(estimator, of_cells, steps.StateOptions())
    assert chosen == expected


def test_root_check_compares_clusters(caplog):
    adata = AnnData(np.zeros((20, 1)), obs={"t": np.arange(20.0), "clusters": ["early"] * 10 + ["late"] * 10})
    options = JobOptions(cluster_key="clusters", root_cluster="early")
    inputs._check_root(adata, options, "t")
    assert not caplog.records
    inputs._check_root(adata, replace(options, root_cluster="late"), "t")
    assert "check the direction of time" in caplog.text


def test_names_that_occur_twice(caplog):
    adata = AnnData(np.zeros((3, 2)))
    adata.obs_names, adata.var_names = ["a", "a", "b"], ["g", "g"]
    inputs._make_names_unique(adata)
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert "Names of 1 cells" in caplog.text


# --------------------------------------------------------------------------------------------------------- report
def test_report_escapes_what_it_is_given():
    evil = "<script>alert(1)</script>"
    html = render(
        Report(
            title=evil,
            summary=[evil],
            facts={evil: evil},
            figures=[Figure(evil, evil, png=b"x")],
            tables=[Table(evil, evil, [evil], [[Cell(evil), Cell(evil, 0.5)]])],
            parameters={evil: {evil: evil}},
            warnings=[evil],
            versions={evil: evil},
            footer=evil,
        )
    )
    assert "<script" not in html


def test_smallest_report(tmp_path):
    path = write_report(tmp_path / "r.html", Report(title="Only a title", summary=[]))
    assert "<h1>Only a title</h1>" in path.read_text()
    assert "<img" not in path.read_text()
    assert "<section" not in path.read_text()


def test_versions_of_what_is_not_installed():
    found = package_versions(["numpy", "no-such-package"])
    assert found["numpy"] == np.__version__
    assert found["no-such-package"] == "not installed"
