"""Options: values that travel together, checked once when they are made and then passed whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from cellrank_velot._utils.device import resolve_device
from cellrank_velot._utils.memory import bytes_of, jobs_within
from cellrank_velot._utils.parallel import count_jobs

__all__ = ["Options", "Run", "options_of"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of frozen dataclasses of options. A subclass checks its values in ``__post_init__``."""

    def _without_none(self, *names: str) -> None:
        """Put the default in place of ``None``, which stood for it in version 0.1.0."""
        for name in names:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(type(self), name))

    def _where_missing(self, **values: Any) -> None:
        """Put values in place of ``None``: what version 0.1.0 did, in whose files an option is missing."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, numbers as Python's own."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}

    @classmethod
    def split(cls, values: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Return the options that are among some values, and the other values.

        Parameters
        ----------
        values
            Values by name.
        """
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in values.items() if name in names}
        return cls(**own), {name: value for name, value in values.items() if name not in names}


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
        if self.device != "auto":
            resolve_device(self.device)
        if self.n_jobs is not None:
            count_jobs(self.n_jobs)
        bytes_of(self.memory_limit)

    def jobs(self, fixed: float, of_job: float, step: str) -> int:
        """Return how many jobs at a time keep within the memory: ``fixed`` bytes in any case, ``of_job`` for each."""
        return jobs_within(self.memory_limit, fixed, of_job, count_jobs(self.n_jobs), step)

    def limited(self, fixed: float, of_job: float, step: str) -> Self:
        """Return it with as many jobs as :meth:`jobs` allows; without a limit it stays as it is."""
        return self if self.memory_limit is None else replace(self, n_jobs=self.jobs(fixed, of_job, step))


def options_of(
    argument: str, given: Mapping[str, Any] | None, *kinds: type[Options], **defaults: Any
) -> tuple[Any, ...]:
    """Return the options of each kind from those that a user gave by name, with these defaults in place of the usual.

    An unknown name is an error that lists the known ones.
    """
    found, rest = [], {**defaults, **(given or {})}
    for kind in kinds:
        options, rest = kind.split(rest)
        found.append(options)
    if rest:
        known = [field.name for kind in kinds for field in fields(kind)]
        raise TypeError(f"Expected the names {known} in `{argument}`, found {list(rest)}.")
    return tuple(found)
