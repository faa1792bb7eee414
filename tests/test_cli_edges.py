"""The command line on odd slots: a job that is done is never lost, and what is missing is named with its cause."""

import re
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData, read_h5ad

from cellrank_velot import OTVelocityKernel, datasets, plotting, pp
from cellrank_velot.cells import read_root
from cellrank_velot.fates import ends
from cellrank_velot.job import cli, inputs, outputs
from cellrank_velot.job.options import IN_A_SHELL, as_arguments

pytestmark = pytest.mark.usefixtures("_coarse_pictures")
ROOT = "Progenitor"
FIGURES = {"velocity_stream", "fate_map", "macrostates", "gene_trends", "time", "training", "confidence"}


@pytest.fixture(scope="module")
def prepared() -> AnnData:
    """Cells with everything that the job needs."""
    return datasets.bifurcation(n_cells=200)


@pytest.fixture
def cells(prepared: AnnData) -> AnnData:
    return prepared.copy()


@pytest.fixture
def job(tmp_path: Path, capsys, monkeypatch) -> Callable[..., tuple[int, str, Path]]:
    """Run the command line on an AnnData; return the exit code, what it says, and the folder."""

    monkeypatch.setattr(ends, "N_HALVES", 2)

    def run(adata: AnnData, *args: str) -> tuple[int, str, Path]:
        adata.write_h5ad(tmp_path / "in.h5ad")
        code = cli.main(["run", str(tmp_path / "in.h5ad"), "--out", str(tmp_path / "out"), "--n-steps", "20", *args])
        return code, capsys.readouterr().err, tmp_path / "out"

    return run


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    monkeypatch.setattr(outputs, "_write_figures", lambda result, folder: {})


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").iterdir()}


# --------------------------------------------------------------------------------------------------------- odd slots
def texts_as_time(adata):
    adata.obs["pt"] = adata.obs["dpt_pseudotime"].round(3).astype(str)


def categories_as_time(adata):
    adata.obs["pt"] = pd.Categorical(adata.obs["dpt_pseudotime"].round(2))


def holes_in_the_umap(adata):
    adata.obsm["X_umap"][::7] = np.nan


def sparse_umap(adata):
    adata.obsm["X_umap"] = sp.csr_matrix(adata.obsm["X_umap"])


def mathematics_in_names(adata):
    adata.obs["clusters"] = adata.obs["clusters"].cat.rename_categories(
        {"Fate A": r"$\bad$", "Fate B": "=B {x} %s <b>", "Progenitor": "_$1"}
    )
    del adata.uns["clusters_colors"]


def root_as_a_name(adata):
    adata.uns["iroot"] = "cell5"


def several_roots(adata):
    adata.uns["iroot"] = np.array([5, 9])


def root_of_more_cells(adata):
    adata.uns["iroot"] = 12345


def colors_by_name(adata):
    adata.uns["clusters_colors"] = dict.fromkeys(adata.obs["clusters"].cat.categories, "#ff0000")


def words_as_colors(adata):
    adata.uns["clusters_colors"] = np.array(["colour 1", "colour 2", "colour 3", "colour 4"])


def one_color(adata):
    adata.uns["clusters_colors"] = "red"


def half_precision(adata):
    adata.X = np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X).astype(np.float16)


def one_cell_type_of_integers(adata):
    adata.obs["clusters"] = adata.obs["clusters"].cat.codes.to_numpy()
    adata.uns.pop("clusters_colors", None)


# Slots that have nothing to do with each other are odd in one job.
ODD = {
    "time is texts, iroot is a name": ([texts_as_time, root_as_a_name], ["--time-key", "pt"]),
    "time is categories, iroot is several": ([categories_as_time, several_roots], ["--time-key", "pt"]),
    "NaN in the UMAP, colours by name": ([holes_in_the_umap, colors_by_name], []),
    "sparse UMAP, iroot is stale": ([sparse_umap, root_of_more_cells], []),
    "formulas as names": ([mathematics_in_names], []),
    "float16, colours are words": ([half_precision, words_as_colors], []),
    "colours are one": ([one_color], []),
    "clusters are integers": ([one_cell_type_of_integers], []),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_slots_do_not_stop_the_job(cells, job, case):
    changes, args = ODD[case]
    for change in changes:
        change(cells)
    code, said, out = job(cells, *args)
    assert code == cli.OK, said
    assert pictures(out) == FIGURES
    assert "Traceback" not in said


def test_time_of_texts_is_drawn_as_numbers(cells, job, no_pictures):
    texts_as_time(cells)
    _, _, out = job(cells, "--time-key", "pt")
    np.testing.assert_allclose(read_h5ad(out / "adata.h5ad").obs["pt"], cells.obs["dpt_pseudotime"].round(3))
    assert pd.api.types.is_float_dtype(pd.read_csv(out / "fate_probabilities.csv")["time"])


# -------------------------------------------------------------------------------------------------------------- root
def test_no_other_cell_is_marked_as_the_root(cells):
    key = "dpt_pseudotime"
    assert cells.obs[key].iloc[read_root(cells, key)] == 0
    cells.uns.pop("pseudotime", None)  # as scanpy leaves the cells
    moved = cells[np.r_[150:200, 0:150]].copy()  # the positions are others, the number is the same
    assert read_root(moved, key) is None


def test_a_root_that_has_a_name_is_found_after_a_change_of_order(prepared):
    pp.prepare(adata := prepared.copy(), root_cluster=ROOT, normalize=False)
    root = adata.obs_names[adata.uns["iroot"]]
    moved = adata[np.random.default_rng(0).permutation(200)].copy()
    assert moved.obs_names[read_root(moved, "consensus_pseudotime")] == root
    left = moved[moved.obs_names != root].copy()
    assert read_root(left, "consensus_pseudotime") is None
    moved.obs["consensus_pseudotime"] = 1 - moved.obs["consensus_pseudotime"]
    assert read_root(moved, "consensus_pseudotime") is None


def test_the_mark_in_the_picture_is_the_checked_root(cells, job, monkeypatch):
    marks, draw = [], plotting.embedding
    monkeypatch.setattr(plotting, "embedding", lambda *x, **k: (marks.append(k["mark"]), draw(*x, **k))[1])
    del cells.uns["pseudotime"]
    job(cells[np.r_[150:200, 0:150]].copy())
    assert marks == [None]


# ------------------------------------------------------------------------------------------- what others leave behind
@pytest.mark.parametrize("entry", [{}, {"connectivities_key": "connectivities"}, {"params": {"use_rep": "X_gone"}}])
def test_neighbors_without_parameters(cells, job, no_pictures, entry):
    del cells.obsm["X_umap"], cells.obs["dpt_pseudotime"], cells.uns["neighbors"]
    cells.uns["neighbors"] = entry
    code, said, out = job(cells, "--root-cluster", ROOT)
    assert code == cli.OK, said
    assert read_h5ad(out / "adata.h5ad").uns["neighbors"]["params"]["n_neighbors"] > 2


def test_concat_that_kept_a_diffusion_map_without_eigenvalues(prepared, job, no_pictures):
    joined = anndata.concat([prepared[:90], prepared[90:]])
    assert "X_diffmap" in joined.obsm
    assert "diffmap_evals" not in joined.uns
    code, said, _ = job(joined, "--root-cluster", ROOT)
    assert code == cli.OK, said
    joined.obsp["connectivities"] = prepared.obsp["connectivities"]
    with pytest.raises(KeyError, match=r"diffmap_evals.*call `scanpy.tl.diffmap\(adata\)` again"):
        pp.set_pseudotime(joined, [0])


def counts_of(prepared: AnnData, depth: int) -> AnnData:
    rate = np.exp(prepared.layers["true_expression"])
    counts = np.random.default_rng(0).poisson(depth * rate / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    assert counts.max() < 65_504
    return AnnData(counts, obs=prepared.obs[["clusters"]].copy(), var=prepared.var[[]].copy())


def test_deep_counts_in_half_precision_are_those_in_single(prepared):
    single = counts_of(prepared, 200_000)
    single.X = single.X.astype(np.float16).astype(np.float32)
    half = single.copy()
    half.X = single.X.astype(np.float16)
    assert single.X.sum(axis=1).min() > 65_504
    for adata in (single, half):
        pp.prepare(adata, root_cluster=ROOT)
    assert half.X.dtype == np.float32
    np.testing.assert_array_equal(half.X, single.X)
    np.testing.assert_array_equal(half.obs["consensus_pseudotime"], single.obs["consensus_pseudotime"])
    tests = [OTVelocityKernel(adata).compute_velocity().test_direction() for adata in (single, half)]
    assert tests[0].summary() == tests[1].summary()


def test_counts_beside_an_empty_X(prepared, job, no_pictures):
    adata = counts_of(prepared, 4000)
    adata.layers["counts"], adata.X = adata.X, None
    code, said, _ = job(adata, "--root-cluster", ROOT)
    assert code == cli.OK, said


@pytest.mark.parametrize("unit", [2.0**200, 2.0**-200])
def test_neighbours_of_positions_in_any_unit(cells, unit):
    del cells.obsp["connectivities"], cells.obsp["distances"]
    cells.obsm["X_pca"] = cells.obsm["X_pca"].astype(np.float64)
    scaled = cells.copy()
    scaled.obsm["X_pca"] = cells.obsm["X_pca"] * unit
    for adata in (cells, scaled):
        inputs._complete_graph(adata, "X_pca", inputs.JobOptions())
    assert (scaled.obsp["connectivities"] != cells.obsp["connectivities"]).nnz == 0
    assert (scaled.obsp["distances"] != cells.obsp["distances"] * unit).nnz == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_graph_is_checked_before_a_time_is_computed_on_it(cells, job, value):
    cells.obsp["connectivities"].data[0] = value
    code, said, _ = job(cells, "--root-cluster", ROOT)
    assert code == cli.BAD_INPUT
    assert "error: Expected the weights in `adata.obsp['connectivities']` to be finite and not negative" in said


@pytest.mark.parametrize("stale", ["cell0", np.array([5, 9]), {"a": 1}])
def test_a_root_that_is_none_does_not_keep_another_from_being_named(cells, job, no_pictures, stale):
    cells.uns["iroot"] = stale
    code, said, out = job(cells, "--root-cluster", ROOT)
    assert code == cli.OK, said
    adata = read_h5ad(out / "adata.h5ad")
    assert adata.obs["consensus_pseudotime"].iloc[adata.uns["iroot"]] == 0


@pytest.mark.parametrize("args", [(), ("--root-cluster", ROOT)])
def test_two_cells_are_too_few(cells, job, args):
    code, said, _ = job(cells[:2].copy(), *args)
    assert code == cli.BAD_INPUT
    assert "error: Expected at least `3` cells, found `2`." in said


def test_one_column_may_be_time_and_clusters(cells, job, no_pictures):
    cells.obs["stage"] = pd.cut(cells.obs["dpt_pseudotime"], [-1, 0.3, 0.6, 2], labels=["E8.5", "E9", "E10"])
    code, said, out = job(cells, "--time-key", "stage", "--cluster-key", "stage", "--time-kind", "experimental")
    assert code == cli.OK, said
    obs = read_h5ad(out / "adata.h5ad").obs
    assert set(obs["stage"]) == {"E8.5", "E9", "E10"}
    assert set(obs["velot_stage"]) == {8.5, 9.0, 10.0}


def test_neighbours_are_computed_of_any_positions_and_texts_are_none(cells):
    del cells.obsp["connectivities"], cells.obsp["distances"]
    table = cells.copy()
    table.obsm["X_pca"] = pd.DataFrame(cells.obsm["X_pca"], index=cells.obs_names).add_prefix("PC")
    for adata in (cells, table):
        inputs._complete_graph(adata, "X_pca", inputs.JobOptions())
    found, expected = (adata.obsp["connectivities"].toarray() for adata in (table, cells))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # of double and of single precision
    assert table.uns["neighbors"] == cells.uns["neighbors"]
    del table.obsp["connectivities"]
    table.obsm["X_pca"] = table.obsm["X_pca"].assign(PC1="x")
    with pytest.raises(TypeError, match=r"Expected `adata.obsm\['X_pca'\]` to be numeric"):
        inputs._complete_graph(table, "X_pca", inputs.JobOptions())


# ------------------------------------------------------------------------------------------------------ true causes
def test_advice_names_options_of_the_command_line(prepared, job, no_pictures):
    scaled = AnnData(sc.pp.scale(np.asarray(prepared.X)), obs=prepared.obs[["clusters"]], var=prepared.var[[]])
    code, said, _ = job(scaled, "--root-cluster", ROOT)
    assert code == cli.BAD_INPUT
    assert "`--normalize no`" in said
    assert "normalize=False" not in said
    code, said, _ = job(scaled, "--root-cluster", ROOT, "--normalize", "no")
    assert code == cli.OK, said


def test_phrases_that_are_said_otherwise_in_a_shell_still_exist():
    source = "".join(path.read_text(encoding="utf-8") for path in Path(plotting.__file__).parents[1].rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source.replace('job/options.py"', ""))
    for python in IN_A_SHELL:
        assert source.count(python) >= 2, python
    assert as_arguments("Pass `root_cell` instead.") == "Pass `--root-cell` instead."


# ------------------------------------------------------------------------------------------------- nothing is lost
def test_a_picture_that_fails_is_named_and_the_rest_is_written(cells, job, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("no such scale")

    monkeypatch.setattr(plotting, "embedding", fail)
    monkeypatch.setattr(plotting, "time_check", None)  # not asked for where time and distance agree
    old = tmp_path / "out" / "figures" / "time.png"
    old.parent.mkdir(parents=True)
    old.write_text("of a run before")
    code, said, out = job(cells)
    message = re.compile(r"No picture 'time': ZeroDivisionError in \w+: no such scale \(run.log shows where\)")
    assert code == cli.FAILED
    assert message.search(said)
    assert message.search((out / "report.html").read_text().replace("&#39;", "'"))
    assert "ZeroDivisionError" in (out / "run.log").read_text()
    assert said.count("No picture") == 1
    assert pictures(out) == FIGURES - {"time"}  # that of the run before is no result of this one
    assert {"adata.h5ad", "drivers.csv", "fate_probabilities.csv", "report.html"} <= {f.name for f in out.iterdir()}


def test_results_are_written_before_the_pictures(cells, job, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(plotting, "velocity_stream", stop)
    code, _, out = job(cells)
    assert code == cli.INTERRUPTED
    assert (out / "drivers.csv").exists()
    assert "lineages_fwd" in read_h5ad(out / "adata.h5ad").obsm


@pytest.mark.parametrize(
    ("step", "what"),
    [
        ("test_direction", "No test of direction"),
        ("check_time", "No check of the time"),
        ("suggest_terminal_states", "No search for ends"),
    ],
)
def test_a_step_that_fails_does_not_take_the_others_with_it(cells, job, no_pictures, monkeypatch, step, what):
    def fail(*args, **kwargs):
        raise ArithmeticError("out of luck")

    monkeypatch.setattr(OTVelocityKernel, step, fail)
    code, said, out = job(cells, "--n-states", "3")
    assert code == cli.FAILED
    assert re.search(rf"{what}: ArithmeticError in \w+: out of luck", said)
    assert what in (out / "report.html").read_text()
    assert (out / "drivers.csv").exists()


# -------------------------------------------------------------------------------------------------------- the tables
def test_formulas_of_spreadsheets_are_escaped(cells, tmp_path):
    table = pd.DataFrame({"=A": ["=1+1", "plain", "@x"], "n": [-1.5, 2.0, 3.0]}, index=["-c", "+d", "e-1"])
    outputs._write_csv(table.rename_axis("cell"), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "cell,'=A,n\n'-c,'=1+1,-1.5\n'+d,plain,2.0\ne-1,'@x,3.0\n"


def test_colours_stay_with_their_clusters_where_one_is_gone(cells):
    colors = dict(zip(cells.obs["clusters"].cat.categories, ["#111111", "#222222", "#333333", "#444444"], strict=True))
    cells.uns["clusters_colors"] = list(colors.values())
    left = cells[cells.obs["clusters"] != "Fate A"].copy()
    left.obs["clusters"] = pd.Categorical(left.obs["clusters"].astype(str), categories=list(colors))
    left.uns["clusters_colors"] = list(colors.values())
    inputs._find_clusters(left, inputs.JobOptions())
    assert left.uns["clusters_colors"] == [colors[name] for name in left.obs["clusters"].cat.categories]


def test_exit_codes_are_told(capsys):
    for command in ([], ["run"], ["demo"]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        assert "Exit codes: 0 where all results were written" in re.sub(r"\s+", " ", capsys.readouterr().out)
