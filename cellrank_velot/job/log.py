"""The log of one call of the command line: on the screen, in a file, and its warnings for the report."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import ParamSpec, TypeVar

import cellrank

from cellrank_velot.job.options import as_arguments

__all__ = ["Log", "attempt", "describe", "logging_of_a_call"]

logger = logging.getLogger("cellrank_velot")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def describe(error: BaseException, *, where_to_look: str = "run.log") -> str:
    """Return the message of an error, with its kind where it is not our own and may tell the user little."""
    # str() of a KeyError puts the message in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = text.strip().splitlines()[0] if text.strip() else ""
    where = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals.get("__name__", "")
    if where.startswith("cellrank_velot") and isinstance(
        error, KeyError | OSError | RuntimeError | TypeError | ValueError
    ):
        return as_arguments(text)
    return f"{type(error).__name__} in {where.split('.')[0]}: {text} ({where_to_look} shows where)"


def attempt(
    missing: list[str], what: str, step: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result | None:
    """Return the result of a step. Where it fails, say so and write it down as ``missing``: the rest is not lost.

    A file that cannot be written ends the job, as the others could not be written either.
    """
    try:
        return step(*args, **kwargs)
    except OSError:
        raise
    except Exception as error:  # whatever it is, hours of work may lie before it
        missing.append(f"{what}: {describe(error)}")
        logger.warning("%s", missing[-1])
        logger.debug("Failed", exc_info=True)
        return None


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


class Log(logging.Handler):
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
        """Keep a warning, once."""
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
        """Write what is left, and close the file."""
        target = self.memory.target
        self.memory.flush()
        self.memory.close()
        if target is not None:
            with suppress(OSError):  # the disk may be full
                target.close()
        super().close()


def _speak_shell(record: logging.LogRecord) -> bool:
    """Call options in a message as on the command line."""
    record.msg, record.args = as_arguments(record.getMessage()), ()
    return True


@contextmanager
def logging_of_a_call(*, quiet: bool) -> Iterator[Log]:
    """Install the handlers of one call and take them away after it."""
    log = Log()
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.WARNING if quiet else logging.INFO)
    screen.setFormatter(_Elapsed(log.start))
    host, python = logging.getLogger("cellrank"), logging.getLogger("py.warnings")
    before = {one: (list(one.handlers), one.level, one.propagate) for one in (logger, host, python)}
    logger.addFilter(_speak_shell)
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
        logger.removeFilter(_speak_shell)
        if verbosity is not None:
            cellrank.settings.verbosity = verbosity
        for one, (handlers, level, propagate) in before.items():
            one.handlers, one.level, one.propagate = handlers, level, propagate
        log.close()
