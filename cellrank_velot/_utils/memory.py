"""How much memory a step may take, and how many jobs that allows."""

from __future__ import annotations

import re
from math import ceil

from cellrank_velot._utils.validation import check_number

__all__ = ["bytes_of", "jobs_within"]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
SHOWN = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1))


def bytes_of(memory_limit: float | str | None) -> float:
    """Return a limit in bytes, given as a number or as ``"4 GB"`` or ``"512 MiB"``; infinite for ``None``."""
    if memory_limit is None:
        return float("inf")
    if isinstance(memory_limit, str):
        found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", memory_limit, re.IGNORECASE)
        try:
            number, unit = (float(found[1]), UNITS[found[2].lower()]) if found else (-1.0, 0)
        except (KeyError, ValueError):
            number, unit = -1.0, 0
        if number <= 0 or unit == 0:
            raise ValueError(f"Expected `memory_limit` such as `'4 GB'`, found `{memory_limit!r}`.")
        return number * unit
    return check_number("memory_limit", memory_limit, low=0, open_low=True)


def jobs_within(memory_limit: float | str | None, fixed: float, of_job: float, n_jobs: int, step: str) -> int:
    """Return how many of ``n_jobs`` jobs at a time keep within the limit.

    The step takes ``fixed`` bytes in any case and ``of_job`` bytes for each job. A limit that leaves no room for one
    job is a MemoryError.
    """
    limit = bytes_of(memory_limit)
    if fixed + of_job > limit:
        raise MemoryError(
            f"Expected a `memory_limit` of at least {_shown(fixed + of_job)} for {step}, found {_shown(limit)}: allow "
            "more, or take fewer cells or dimensions."
        )
    return int(max(1, min(n_jobs, (limit - fixed) // of_job)))


def _shown(n_bytes: float) -> str:
    """Return a number of bytes as a text that :func:`bytes_of` reads, rounded up."""
    unit, size = next((unit, size) for unit, size in SHOWN if n_bytes >= size or unit == "B")
    return f"{ceil(n_bytes / size * 100) / 100:g} {unit}"
