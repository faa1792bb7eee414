"""Options of the steps of the kernel by kind of time: which there are, and what stands for one that is not given.

Depends on snapshots and numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellrank_velot.timeseries.snapshots import SnapshotOptions

__all__ = ["STEPS", "names_of", "options_of"]

# Methods whose parameters `settings` keeps.
STEPS = {
    "windows": "compute_windows",
    "velocity": "compute_velocity",
    "field": "fit_field",
    "uncertainty": "compute_uncertainty",
}

# Options that only pseudotime has, and those that only real time points have, by step, as they usually are.
PSEUDOTIME_OPTIONS: dict[str, dict[str, Any]] = {
    "windows": {
        "n_clusters": None,
        "window_size": None,
        "overlap": 0.5,
        "min_window_size": 20,
        "time_lag": "auto",
        "overlap_clusters": None,
        "tail": "force",
        "tail_threshold": 10,
    },
    "velocity": {"lambda_time": 1.0, "lambda_knn": 0.0, "reach": 2.0, "relaxation": "auto"},
    "field": {
        "use_time": True,
        "lambda_smooth": 1.0,
        "lambda_curl": 0.0,
        "lambda_divergence": 0.0,
        "held_out": 0.1,
        "patience": 10,
    },
}
SERIES_OPTIONS: dict[str, dict[str, Any]] = {
    "windows": {"batch_size": None},
    "velocity": {
        "tau": None,
        "growth_key": None,
        "mass": None,
        "n_passes": None,
        "n_draws": None,
        "random_state": 0,
    },
    "field": {"diffusion": None},
}
# What these stand for where they are not given.
SERIES_DEFAULTS: dict[str, dict[str, Any]] = {
    "windows": {"batch_size": SnapshotOptions.batch_size},
    "velocity": {"tau": 0.9, "n_passes": 4, "n_draws": 4},
    "field": {"diffusion": "auto", "n_steps": 1500, "batch_size": 512, "learning_rate": 3e-3},
}


def options_of(step: str, given: dict[str, Any], *, series: bool) -> dict[str, Any]:
    """Return the options of a step that its kind of time has, with their defaults, and refuse others.

    Raises
    ------
    ValueError
        If an option of the other kind of time has another value than its usual one.
    """
    kind, other = ("pseudotime", PSEUDOTIME_OPTIONS) if series else ("experimental time", SERIES_OPTIONS)
    for name, usual in other[step].items():
        if isinstance(given[name], np.ndarray) or given[name] != usual:
            raise ValueError(f"Expected `{name}` with {kind} only, found `{given[name]!r}`.")
    options = {name: given[name] for name in names_of(step, list(given), series=series)}
    if series:
        options.update({name: value for name, value in SERIES_DEFAULTS[step].items() if options[name] is None})
    return options


def names_of(step: str, names: Sequence[str], *, series: bool) -> list[str]:
    """Return those of the names of a step's options that its kind of time has."""
    other = PSEUDOTIME_OPTIONS if series else SERIES_OPTIONS
    return [name for name in names if name not in other.get(step, {})]
