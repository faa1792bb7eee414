"""Analysis of the main job: macrostates, terminal states, fate probabilities and driver genes."""

from __future__ import annotations

import logging
from dataclasses import replace

from cellrank_velot import estimators
from cellrank_velot.direction import DirectionTest
from cellrank_velot.estimators import StateOptions
from cellrank_velot.job.options import JobOptions, JobResult
from cellrank_velot.kernel import OTVelocityKernel

__all__ = ["analyse"]

logger = logging.getLogger("cellrank_velot")


def analyse(kernel: OTVelocityKernel, options: JobOptions) -> JobResult:
    """Find macrostates, terminal states, fate probabilities and driver genes, from options with all keys found.

    A step that the data do not allow is left out with a warning, so that the rest of the result is not lost. Results
    are also written to the AnnData, as CellRank writes them.
    """
    time = kernel.cells.time
    check = kernel.check_time(options.cluster_key)
    for finding in check.findings:
        logger.warning("%s. The velocity leads back to the root there: see time_check.png", finding)
    choice = StateOptions(
        n_states=options.n_states, cluster_key=options.cluster_key, terminal_states=options.terminal_states
    )
    with estimators.few_threads(kernel.adata.n_obs):
        estimator = estimators.GPCCA(estimators.combine(kernel, options.weight))
        decomposed = estimators.compute_schur(estimator)
        has_macrostates = decomposed and estimators.choose_macrostates(estimator, time, choice)
        if options.terminal_states:
            estimators.terminal_from_clusters(estimator, time, choice)
        elif has_macrostates:
            estimators.terminal_from_macrostates(estimator, time, choice)
        elif decomposed or not estimators.terminal_from_sinks(
            estimator, kernel.suggest_terminal_states(choice.cluster_key), choice
        ):
            raise RuntimeError(
                "No macrostates were found. Name the clusters where the process ends: `--terminal-states`."
            )
        result = JobResult(
            options=options,
            kernel=kernel,
            estimator=estimator,
            has_macrostates=has_macrostates,
            direction=_test_direction(kernel, options),
            time_check=check,
        )
        fates = estimators.compute_fates(estimator)
        if fates is None:
            return result
        return replace(result, fates=fates, drivers=estimators.compute_drivers(estimator, fates))


def _test_direction(kernel: OTVelocityKernel, options: JobOptions) -> DirectionTest:
    """Test whether there is a direction, and warn where none is shown: everything else rests on it."""
    test = kernel.test_direction(options.cluster_key, random_state=options.seed)
    log = logger.info if test.found else logger.warning
    log("%s", test.summary())
    return test
