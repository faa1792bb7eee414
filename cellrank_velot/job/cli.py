"""The command line: ``cellrank-velot demo`` and ``cellrank-velot run``, also as ``python -m cellrank_velot``.

Arguments, progress and exit codes. The only file of the package that prints.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import anndata
import matplotlib
from anndata import AnnData

from cellrank_velot import datasets
from cellrank_velot.job import JobOptions, analyse, build_kernel, prepare_inputs
from cellrank_velot.job.log import Log, describe, logging_of_a_call
from cellrank_velot.job.outputs import write_results

__all__ = ["build_parser", "main"]

logger = logging.getLogger("cellrank_velot")

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DEBUG = "`--debug`"
EXIT_CODES = (
    "Exit codes: 0 where all results were written; 1 where a part is missing, which the report names, or could not be "
    "written; 2 where the input is at fault, and nothing was computed; 130 on Ctrl-C."
)


class InputError(Exception):
    """What the user has to change; the message is for them."""


class OutputError(Exception):
    """A file that cannot be written; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    0 on success, 1 where a part of the result is missing or cannot be written, 2 where the input is at fault, 130 on
    Ctrl-C. What is missing is named in the report and in the log.
    """
    args = build_parser().parse_args(argv)
    matplotlib.use("agg")
    with logging_of_a_call(quiet=args.quiet) as log:
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
        epilog=EXIT_CODES,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="analyse an h5ad file", epilog=EXIT_CODES)
    run.add_argument("input", type=Path, metavar="INPUT.h5ad", help="cells, with counts or log-normalised expression")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    demo = commands.add_parser("demo", help="analyse simulated cells, whose true velocity is known", epilog=EXIT_CODES)
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of the results (demo)")
    demo.add_argument("--n-cells", type=int, default=2000, help="number of cells (2000)")
    for option in fields(JobOptions):
        for command in (run, demo) if option.metadata.get("demo") else (run,):
            if "argument" in option.metadata:
                command.add_argument(f"--{option.name.replace('_', '-')}", **option.metadata["argument"])
    for command in (run, demo):
        command.add_argument("--debug", action="store_true", help="show where an error comes from")
        command.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    return parser


def _run(args: argparse.Namespace, log: Log) -> int:
    """Do the job and report on it."""
    with _blame_input(KeyError, ValueError, TypeError, RuntimeError, OSError):
        options = _options(args)
        adata = _simulate(args) if args.command == "demo" else _read(args)
        options = prepare_inputs(adata, options)
        folder = _open_folder(args.out, None if args.command == "demo" else args.input)
        log.write_to(folder / "run.log")
    with _blame_input(KeyError, ValueError, TypeError, RuntimeError):
        kernel = build_kernel(adata, options)
    result = analyse(kernel, options)
    footer = f"Made by cellrank-velot {args.command} on {datetime.now():%Y-%m-%d %H:%M}, {log.elapsed:.0f} s."
    source = "simulated cells" if args.command == "demo" else args.input.name
    try:
        paths = write_results(result, folder, source=source, warnings=log.warnings, footer=footer)
    except OSError as error:
        raise OutputError(f"{error.strerror or error}. Make room, or choose another folder with `--out`.") from error
    for path in paths[-2:]:
        logger.info("Wrote %s", path)
    logger.info("Done in %.0f s", log.elapsed)
    return FAILED if result.fates is None or result.missing else OK


def _options(args: argparse.Namespace) -> JobOptions:
    names = {option.name for option in fields(JobOptions)}
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
        raise InputError(f"{path} cannot be read as h5ad: {describe(error, where_to_look=DEBUG)}") from error
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
        raise InputError(describe(error, where_to_look=DEBUG)) from error
