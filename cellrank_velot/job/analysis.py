"""Analysis of the main job: macrostates, terminal states, fate probabilities and driver genes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from cellrank_velot.direction import DirectionTest, TimeCheck
from cellrank_velot.estimators import GPCCA
from cellrank_velot.fates import TerminalStates
from cellrank_velot.job import steps
from cellrank_velot.job.conditions import comparison_of
from cellrank_velot.job.log import attempt
from cellrank_velot.job.options import EndsBy, JobOptions, JobResult
from cellrank_velot.job.series import follow
from cellrank_velot.kernel import OTVelocityKernel

__all__ = ["analyse"]

logger = logging.getLogger("cellrank_velot")


def analyse(kernel: OTVelocityKernel, options: JobOptions) -> JobResult:
    """Find macrostates, terminal states, fate probabilities and driver genes, from options with all keys found.

    Terminal states are the clusters named, else the ends by shape and flow, else macrostates that are stable and late.
    A step that the data do not allow, or that fails, is left out with a warning, so that the rest is not lost. Results
    are also written to the AnnData, as CellRank writes them.
    """
    missing: list[str] = []
    checks: dict[str, Any] = {}
    if options.is_series:
        checks["series"] = follow(kernel, options.cluster_key, options.seed, missing)
    else:
        checks["time_check"] = attempt(missing, "No check of the time", _check_time, kernel, options)
        checks["direction"] = attempt(missing, "No test of direction", _test_direction, kernel, options)
    result = JobResult(
        options=options,
        kernel=kernel,
        has_macrostates=False,
        missing=missing,
        **checks,
    )
    choice = steps.StateOptions(
        n_states=options.n_states, cluster_key=options.cluster_key, terminal_states=options.terminal_states
    )
    with steps.few_threads(kernel.adata.n_obs):
        estimator = attempt(missing, "No estimator", _make_estimator, kernel, options)
        if estimator is None:
            return result
        has_macrostates = attempt(missing, "No macrostates", _find_macrostates, estimator, kernel, choice)
        states = attempt(missing, "No search for ends", _find_ends, kernel, options)
        result = replace(
            result,
            estimator=estimator,
            has_macrostates=bool(has_macrostates),
            candidates=None if states is None else states.to_frame(),
        )
        ends_by = attempt(missing, "No terminal states", _choose_ends, estimator, result, states, choice)
        if ends_by is None:
            logger.warning(
                "No terminal states were found, hence no fates and no driver genes. Name the clusters where the "
                "process ends: `--terminal-states`"
            )
            return result
        result = replace(result, ends_by=ends_by)
        fates = attempt(missing, "No fate probabilities", steps.compute_fates, estimator)
        if fates is None:
            return result
        drivers = attempt(missing, "No driver genes", steps.compute_drivers, estimator, fates)
        result = replace(result, fates=fates, drivers=drivers)
        if options.condition_key is None:
            return result
        given = kernel, fates, drivers, options
        comparison = attempt(missing, "No comparison of conditions", comparison_of, *given)
        for sentence in [] if comparison is None else comparison.summary():
            logger.info("%s", sentence)
        return replace(result, comparison=comparison)


def _make_estimator(kernel: OTVelocityKernel, options: JobOptions) -> GPCCA:
    return GPCCA(steps.combine(kernel, options.weight))


def _find_macrostates(estimator: GPCCA, kernel: OTVelocityKernel, choice: steps.StateOptions) -> bool:
    return steps.compute_schur(estimator) and steps.choose_macrostates(estimator, kernel.cells.time, choice)


def _find_ends(kernel: OTVelocityKernel, options: JobOptions) -> TerminalStates:
    return kernel.suggest_terminal_states(options.cluster_key, show_progress_bar=options.show_progress_bar)


def _choose_ends(
    estimator: GPCCA, result: JobResult, states: TerminalStates | None, choice: steps.StateOptions
) -> EndsBy | None:
    """Set the terminal states, and return what they come from; ``None`` where there are none."""
    time = result.kernel.cells.time
    if choice.terminal_states:
        steps.terminal_from_clusters(estimator, time, choice)
        return "names"
    if states:
        estimator.set_terminal_states(dict(states), cluster_key=choice.cluster_key)
        logger.info("Terminal states by shape and flow: %s. `--terminal-states` takes others", ", ".join(states))
        return "shape"
    if result.has_macrostates:
        steps.terminal_from_macrostates(estimator, time, choice)
        return "macrostates"
    return None


def _check_time(kernel: OTVelocityKernel, options: JobOptions) -> TimeCheck:
    check = kernel.check_time(options.cluster_key)
    for finding in check.findings:
        logger.warning("%s. The velocity leads back to the root there: see time_check.png", finding)
    return check


def _test_direction(kernel: OTVelocityKernel, options: JobOptions) -> DirectionTest:
    """Test whether there is a direction, and warn where none is shown: everything else rests on it."""
    test = kernel.test_direction(options.cluster_key, random_state=options.seed)
    log = logger.info if test.found else logger.warning
    log("%s", test.summary())
    return test
