"""The command line: ``cellrank-velot demo`` and ``cellrank-velot run``, also as ``python -m cellrank_velot``.

Arguments, log, progress and exit codes; the work is done by :mod:`cellrank_velot.job` and the files are written by
:mod:`cellrank_velot.job.outputs`. The only module of the package that prints and installs handlers.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path

import anndata
import cellrank
import matplotlib
from anndata import AnnData

from cellrank_velot import datasets
from cellrank_velot.job import JobOptions, JobResult, analyse, build_kernel, prepare_inputs
from cellrank_velot.job.outputs import write_results

__all__ = ["build_parser", "main"]

logger = logging.getLogger("cellrank_velot")

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class InputError(Exception):
    """What the user has to change; the message is for them."""


class OutputError(Exception):
    """A file that cannot be written; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; those of the process where not given.

    Returns
    -------
    0 on success, 1 where a part of the result is missing or cannot be written, 2 where the input is at fault, 130 on
    Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    matplotlib.use("agg")
    with _logging(quiet=args.quiet) as log:
        try:
            return _run(args, log)
        except (InputError, OutputError, MemoryError) as error:
            logger.debug("Stopped", exc_info=True)
            if args.debug:
                raise
            reason = str(error) or "out of memory: use fewer cells, or a machine with more"
            sys.stderr.write(f"cellrank-velot: error: {reason}\n")
            return BAD_INPUT if isinstance(error, InputError) else FAILED
        except KeyboardInterrupt:
            sys.stderr.write("cellrank-velot: interrupted\n")
            return INTERRUPTED
        except Exception:
            logger.debug("Stopped", exc_info=True)
            raise


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all arguments."""
    parser = argparse.ArgumentParser(
        prog="cellrank-velot",
        description="Optimal-transport velocity, macrostates, fate probabilities and driver genes of single cells.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--n-states", type=_number_of_states, metavar="N", help="number of macrostates (default: auto)")
    shared.add_argument("--weight", type=float, default=0.8, help="weight of velocity against neighbours (0.8)")
    shared.add_argument("--n-steps", type=int, default=300, help="training steps of the field, at most (300)")
    shared.add_argument("--seed", type=int, default=0, help="seed of every step (0)")
    shared.add_argument("--debug", action="store_true", help="show where an error comes from")
    shared.add_argument("--quiet", action="store_true", help="show warnings and errors only")

    demo = commands.add_parser("demo", parents=[shared], help="analyse simulated cells, whose true velocity is known")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results (demo)")
    demo.add_argument("--n-cells", type=int, default=2000, help="number of cells (2000)")

    run = commands.add_parser("run", parents=[shared], help="analyse an h5ad file")
    run.add_argument("input", type=Path, metavar="INPUT.h5ad", help="cells, with counts or log-normalised expression")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    run.add_argument("--time-key", metavar="KEY", help="column of obs with a pseudotime")
    run.add_argument("--root-cluster", metavar="NAME", help="cluster where the process begins, if there is no time yet")
    run.add_argument("--root-cell", metavar="NAME", help="cell where the process begins, if there is no time yet")
    run.add_argument("--cluster-key", metavar="KEY", help="column of obs that names the states (clusters, if there)")
    run.add_argument("--basis", metavar="KEY", help="positions in obsm (X_pca, computed where missing)")
    run.add_argument("--embedding", default="umap", metavar="KEY", help="embedding of the pictures (umap)")
    run.add_argument("--terminal-states", type=_names, default=(), metavar="A,B", help="clusters where it ends")
    run.add_argument("--n-pcs", type=int, default=30, help="components of a PCA that has to be computed (30)")
    run.add_argument("--n-neighbors", type=int, default=30, help="neighbours of a graph that has to be computed (30)")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _number_of_states(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _run(args: argparse.Namespace, log: _Log) -> int:
    """Do the job and report on it."""
    with _blame_input(KeyError, ValueError, TypeError, OSError):
        options = _options(args)
        adata = _simulate(args) if args.command == "demo" else _read(args)
        options = prepare_inputs(adata, options)
        folder = _open_folder(args.out, None if args.command == "demo" else args.input)
        log.write_to(folder / "run.log")
    with _blame_input(KeyError, ValueError):
        kernel = build_kernel(adata, options)
    try:
        result = analyse(kernel, options)
    except RuntimeError as error:
        raise InputError(str(error)) from error
    footer = f"Made by cellrank-velot {args.command} on {datetime.now():%Y-%m-%d %H:%M}, {log.elapsed:.0f} s."
    source = "simulated cells" if args.command == "demo" else args.input.name
    try:
        paths = write_results(result, folder, source=source, warnings=log.warnings, footer=footer)
    except OSError as error:
        raise OutputError(f"{error.strerror or error}. Make room, or choose another folder with `--out`.") from error
    for path in paths[-2:]:
        logger.info("Wrote %s", path)
    logger.info("Done in %.0f s", log.elapsed)
    return _exit_code(result)


def _exit_code(result: JobResult) -> int:
    return FAILED if result.fates is None else OK


def _options(args: argparse.Namespace) -> JobOptions:
    names = JobOptions.__dataclass_fields__
    given = {name: value for name, value in vars(args).items() if name in names}
    if args.command == "demo":
        given["cluster_key"] = "clusters"
    return JobOptions(**given, show_progress_bar=sys.stderr.isatty() and not args.quiet)


def _simulate(args: argparse.Namespace) -> AnnData:
    logger.info("Simulating %d cells that choose between two fates", args.n_cells)
    return datasets.bifurcation(n_cells=args.n_cells, random_state=args.seed)


def _read(args: argparse.Namespace) -> AnnData:
    path: Path = args.input
    if not path.is_file():
        raise InputError(f"Expected an h5ad file, found none at {path}.")
    logger.info("Reading %s", path)
    try:
        adata = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read as h5ad: {_first_line(error)}") from error
    logger.info("Found %d cells and %d genes", adata.n_obs, adata.n_vars)
    return adata


def _open_folder(folder: Path, source: Path | None) -> Path:
    """Make the folder of the results, unless that would put the input at risk."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Expected `--out` to be a folder, found a file at {folder}.")
    if source is not None and (folder / "adata.h5ad").resolve() == source.resolve():
        raise InputError(f"The results would replace the input {source}: choose another folder with `--out`.")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"No permission to write to {folder}.")
    return folder


@contextmanager
def _blame_input(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds, which the checks of the package raise, into a message for the user."""
    try:
        yield
    except kinds as error:
        raise InputError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    """Return the message of an error, with its kind where it is not our own and may tell the user little."""
    # str() of a KeyError puts the message in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = text.strip().splitlines()[0] if text.strip() else ""
    where = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals.get("__name__", "")
    if where.startswith("cellrank_velot"):
        return text
    return f"{type(error).__name__} in {where.split('.')[0]}: {text} (`--debug` shows where)"


# ----------------------------------------------------------------------------------------------------------- log
class _Elapsed(logging.Formatter):
    """Messages with the seconds since the start."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start

    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        return f"[{record.created - self.start:6.1f} s] {mark}{record.getMessage()}"


class _LogFile(logging.FileHandler):
    """A log that ends where it can no longer be written: the job goes on, and may still say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # logging's name
        if isinstance(sys.exc_info()[1], OSError):
            self.setLevel(logging.CRITICAL + 1)
        else:
            super().handleError(record)


class _Log(logging.Handler):
    """The log of one call: warnings for the report, and all records for a file that is named later."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.start = time.time()
        self.warnings: list[str] = []
        self.memory = MemoryHandler(capacity=100_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.time() - self.start

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.warnings:
            self.warnings.append(record.getMessage())

    def write_to(self, path: Path) -> None:
        """Write all records so far, and those to come, to a file."""
        handler = _LogFile(path, mode="w", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        self.memory.setTarget(handler)
        self.memory.flush()
        self.memory.capacity = 1

    def close(self) -> None:
        target = self.memory.target
        self.memory.flush()
        self.memory.close()
        if target is not None:
            with suppress(OSError):  # the disk may be full
                target.close()
        super().close()


@contextmanager
def _logging(*, quiet: bool) -> Iterator[_Log]:
    """Install the handlers of one call and take them away after it."""
    log = _Log()
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING if quiet else logging.INFO)
    screen.setFormatter(_Elapsed(log.start))
    host, python = logging.getLogger("cellrank"), logging.getLogger("py.warnings")
    before = {one: (list(one.handlers), one.level, one.propagate) for one in (logger, host, python)}
    for one, handlers in ((logger, [screen, log, log.memory]), (host, [log.memory]), (python, [log.memory])):
        one.handlers, one.propagate = list(handlers), False
        one.setLevel(logging.DEBUG if one is logger else logging.WARNING)
    verbosity = getattr(cellrank.settings, "verbosity", None)  # CellRank 2.0 logs by ways of its own
    if verbosity is not None:
        cellrank.settings.verbosity = 0
    logging.captureWarnings(True)
    try:
        yield log
    finally:
        logging.captureWarnings(False)
        if verbosity is not None:
            cellrank.settings.verbosity = verbosity
        for one, (handlers, level, propagate) in before.items():
            one.handlers, one.level, one.propagate = handlers, level, propagate
        log.close()
