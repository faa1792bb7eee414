"""Options: values that travel together, checked once when they are made and then passed whole."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.memory import bytes_of, jobs_within
from cellrank_velot._utils.parallel import count_jobs

__all__ = ["Options", "Run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of frozen dataclasses of options. A subclass checks its values in ``__post_init__``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Run(Options):
    """Where and how a step is computed. Nothing of it changes the result.

    Attributes
    ----------
    device
        Torch device; ``"auto"`` takes a GPU where there is one.
    n_jobs
        Number of jobs on the CPU. ``None`` takes that of joblib's ``parallel_config``, else as many as torch has
        threads.
    memory_limit
        Bytes, or a text such as ``"4 GB"``, that the process may take besides what it holds.
    show_progress_bar
        Whether to show a progress bar.
    """

    device: str = "auto"
    n_jobs: int | None = None
    memory_limit: float | str | None = None
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        """Check them."""
        resolve_device(self.device)
        count_jobs(self.n_jobs)
        bytes_of(self.memory_limit)

    def jobs(self, fixed: float, of_job: float, step: str) -> int:
        """Return how many jobs at a time keep within the memory: ``fixed`` bytes in any case, ``of_job`` for each."""
        return jobs_within(self.memory_limit, fixed, of_job, count_jobs(self.n_jobs), step)
