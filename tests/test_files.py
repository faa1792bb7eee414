"""Files are written whole or not at all: failures, full disks, killed processes, links and permissions."""

import errno
import importlib.util
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.animation import AbstractMovieWriter
from matplotlib.figure import Figure as Canvas

from cellrank_velot import plotting as pl
from cellrank_velot import write_h5ad
from cellrank_velot._utils import files as _files
from cellrank_velot._utils.files import MARK, replacing
from cellrank_velot.job import cli
from cellrank_velot.job.log import logging_of_a_call
from cellrank_velot.job.report import Report, write_report

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_half_and(fail, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        fail()


# ---------------------------------------------------------------------------------------------------- replacing
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("no"), FULL])
@pytest.mark.parametrize("there", [True, False])
def test_failure_leaves_what_was_there(tmp_path, error, there):
    path = tmp_path / "file.txt"
    if there:
        path.write_text("before")

    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        write_half_and(fail, path)
    assert names(tmp_path) == ({"file.txt"} if there else set())
    assert not there or path.read_text() == "before"
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert f"{path} could not be written, and is as it was before: No space left on device" in str(caught.value)
        assert "MiB are free there" in str(caught.value)


def test_permissions_are_those_of_any_file(tmp_path):
    path = tmp_path / "new.txt"
    before = os.umask(0o027)
    try:
        with replacing(path) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o664)
    with replacing(path) as temporary:
        temporary.write_text("newer")
    assert path.stat().st_mode & 0o777 == 0o664
    assert path.read_text() == "newer"


def test_file_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    monkeypatch.setattr(_files.os, "access", lambda *_: False)  # the tests may run as root
    with pytest.raises(PermissionError, match="could not be written"):
        write_half_and(lambda: None, path)
    assert path.read_text() == "mine"


def test_links_are_followed(tmp_path):
    (tmp_path / "data").mkdir()
    target, link = tmp_path / "data" / "file.txt", tmp_path / "link.txt"
    target.write_text("before")
    link.symlink_to(target)
    with replacing(link) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("after")
    assert link.is_symlink()
    assert target.read_text() == "after"


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    with replacing(pipe) as given:
        given.write_text("through")
    reader.join()
    assert received == ["through"]
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError, match="could not be written"):
        write_half_and(lambda: None, tmp_path)


def test_names_of_temporary_files(tmp_path):
    path = tmp_path / ("ä" * 120 + ".tar.gz")
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        assert one.name.startswith(".ä")
        assert MARK in one.name
        assert one.suffix == ".gz"
        one.write_text("one")
        other.write_text("other")
    assert names(tmp_path) == {path.name}


@pytest.mark.parametrize("there", [True, False])
def test_killed_process_leaves_the_old_file(tmp_path, there):
    path = tmp_path / "adata.h5ad"
    if there:
        path.write_text("before")
    # The module by itself: the package takes seconds to import.
    source = importlib.util.find_spec("cellrank_velot._utils.files").origin
    script = (
        "import importlib.util, sys, time\n"
        f"spec = importlib.util.spec_from_file_location('files', {source!r})\n"
        "files = importlib.util.module_from_spec(spec); spec.loader.exec_module(files)\n"
        f"with files.replacing({str(path)!r}) as temporary:\n"
        "    with open(temporary, 'wb') as file:\n"
        "        file.write(b'half'); file.flush(); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kill()
    (left,) = names(tmp_path) - {"adata.h5ad"}
    assert left.startswith(f".adata{MARK}")
    assert path.exists() == there
    assert not there or path.read_text() == "before"


# ------------------------------------------------------------------------------------------------- what is written
def small(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["words"] = ["a", "b"] * (adata.n_obs // 2)
    return adata


def test_nullable_texts_are_written(tmp_path):
    adata = AnnData(np.ones((4, 2)))
    adata.obs["texts"] = pd.array(["a", "b", None, "a"], dtype="string")
    adata.obs["categories"] = pd.Categorical(pd.array(["a", "b", "a", "a"], dtype="string"))
    write_h5ad(adata, tmp_path / "cells.h5ad")
    found = anndata.read_h5ad(tmp_path / "cells.h5ad").obs
    assert found["texts"].isna().tolist() == [False, False, True, False]
    assert found["categories"].tolist() == ["a", "b", "a", "a"]


def test_nullable_floats_are_written_as_floats_and_stay_what_they_are(tmp_path):
    adata = AnnData(np.ones((3, 2)))
    adata.obs["time"] = pd.array([0.5, None, 2.0], dtype="Float64")
    adata.var["length"] = pd.array([1.5, None], dtype="Float32")
    write_h5ad(adata, tmp_path / "cells.h5ad")
    found = anndata.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(found.obs["time"], [0.5, np.nan, 2.0])
    np.testing.assert_array_equal(found.var["length"], [1.5, np.nan])
    assert adata.obs["time"].dtype == "Float64"
    assert adata.obs["time"].isna().tolist() == [False, True, False]
    assert adata.var["length"].dtype == "Float32"


def test_h5ad_is_that_of_anndata(computed, tmp_path):
    computed.write_to_adata()
    adata = small(computed.adata)
    adata.raw = adata.copy()
    write_h5ad(adata, tmp_path / "ours.h5ad")
    adata.write_h5ad(tmp_path / "theirs.h5ad", compression="gzip")
    ours, theirs = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    assert repr(ours) == repr(theirs)
    assert ours.obs.equals(theirs.obs)
    assert ours.raw.shape == theirs.raw.shape
    np.testing.assert_array_equal(ours.obsm["velot_velocity"], theirs.obsm["velot_velocity"])


@pytest.fixture
def limited():
    """Return a function that bounds the size of files of this process, which a full disk is like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 3_000, 30_000])
def test_full_disk_leaves_the_old_h5ad(computed, tmp_path, limited, size, capfd):
    path = tmp_path / "adata.h5ad"
    write_h5ad(computed.adata, path)
    before = path.read_bytes()
    computed.write_to_adata()
    limited(size)
    with pytest.raises(OSError, match=r"adata.h5ad could not be written, and is as it was before: File too large"):
        write_h5ad(computed.adata, path)
    limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert path.read_bytes() == before
    assert names(tmp_path) == {"adata.h5ad"}
    assert "Traceback" not in capfd.readouterr().err  # HDF5 would leave some, and crash at the end of the process


def test_full_disk_leaves_old_figures_and_reports(computed, tmp_path, limited):
    picture, report = tmp_path / "training.png", tmp_path / "report.html"
    pl.training(computed, save=picture)
    write_report(report, Report(title="before", summary=[]))
    before = picture.read_bytes(), report.read_bytes()
    limited(1_000)
    with pytest.raises(OSError, match=r"training.png could not be written"):
        pl.training(computed, save=picture, dpi=150)
    with pytest.raises(OSError, match=r"report.html could not be written"):
        write_report(report, Report(title="after", summary=["long"] * 1000))
    limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert (picture.read_bytes(), report.read_bytes()) == before
    assert names(tmp_path) == {"training.png", "report.html"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failed_film_leaves_the_one_before(computed, tmp_path, monkeypatch, error):
    path = tmp_path / "flow.gif"
    path.write_text("the film of before")
    paths = computed.simulate_flow(n_particles=4, n_steps=4, show_progress_bar=False)
    kept = AbstractMovieWriter.saving

    def broken(self, fig, outfile, *args, **kwargs):
        Path(outfile).write_text("half of a film")
        raise error

    monkeypatch.setattr(AbstractMovieWriter, "saving", broken)
    with pytest.raises(error):
        pl.flow_animation(computed, paths, n_frames=2, save=path)
    assert path.read_text() == "the film of before"
    monkeypatch.setattr(AbstractMovieWriter, "saving", kept)
    pl.flow_animation(computed, paths, n_frames=2, save=path)
    assert path.read_bytes()[:3] == b"GIF"
    assert names(tmp_path) == {"flow.gif"}


# ------------------------------------------------------------------------------------------------- the command line
def test_full_disk_is_one_line_at_the_command_line(tmp_path, monkeypatch, capsys, limited, computed):
    """The job is done, and the disk is full from the first figure on: even the log ends."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "adata.h5ad").write_text("before")

    def on_a_full_disk(result, folder, **_):
        limited(300)
        try:
            for _ in range(20):
                cli.logger.warning("The log is full, too, when there are many warnings in it")
            pl.training(computed, save=folder / "figures" / "training.png")
        finally:
            limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])

    monkeypatch.setattr(cli, "_simulate", lambda args: computed.adata)
    monkeypatch.setattr(cli, "prepare_inputs", lambda adata, options: options)
    monkeypatch.setattr(cli, "build_kernel", lambda adata, options: computed)
    monkeypatch.setattr(cli, "analyse", lambda kernel, options: None)
    monkeypatch.setattr(cli, "write_results", on_a_full_disk)
    code = cli.main(["demo", "--out", str(out), "--quiet"])
    told = capsys.readouterr().err
    assert code == cli.FAILED
    (line,) = [line for line in told.splitlines() if line.startswith("cellrank-velot: error:")]
    assert f"{out / 'figures' / 'training.png'} could not be written" in line
    assert "File too large" in line
    assert line.endswith("Make room, or choose another folder with `--out`.")
    assert "Traceback" not in told
    assert "Logging error" not in told
    assert (out / "adata.h5ad").read_text() == "before"
    assert names(out / "figures") == set()


def test_log_that_cannot_be_written_does_not_stop_the_job(tmp_path, capfd):
    with logging_of_a_call(quiet=True) as log:
        log.write_to(tmp_path / "run.log")

        def write(*_):
            raise FULL

        log.memory.target.stream.close()
        log.memory.target.stream = type("Full", (), {"write": write, "flush": write, "close": write})()
        cli.logger.info("lost")
        cli.logger.warning("lost, too")
    assert "Traceback" not in capfd.readouterr().err
    assert log.warnings == ["lost, too"]


def test_interrupted_figure_leaves_nothing(tmp_path, computed, monkeypatch):
    def stop(self, path, **kwargs):
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Canvas, "savefig", stop)
    with pytest.raises(KeyboardInterrupt):
        pl.training(computed, save=tmp_path / "training.png")
    assert names(tmp_path) == set()
