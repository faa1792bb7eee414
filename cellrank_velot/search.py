"""Search of parameters: the kernel over a grid, with each step computed once for all combinations that share it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain, product
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from joblib import delayed, parallel_config
from tqdm.auto import tqdm

from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.parallel import Jobs
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells import read_clusters
from cellrank_velot.kernel import OTTimeSeriesKernel, OTVelocityKernel
from cellrank_velot.metrics import SCORES, cross_boundary_correctness, summary
from cellrank_velot.metrics.table import step_forward
from cellrank_velot.storage.pack import STAGES, plain

__all__ = ["gridsearch"]

logger = logging.getLogger("cellrank_velot")

# The steps by the names that qualify a parameter, in the order in which each needs the one before.
STEPS = {
    "kernel": "__init__",
    "windows": "compute_windows",
    "velocity": "compute_velocity",
    "field": "fit_field",
    "transition": "compute_transition_matrix",
}
# Kernels by their kind of time: their steps take different parameters.
KERNELS: dict[str, type] = {"pseudotime": OTVelocityKernel, "experimental": OTTimeSeriesKernel}
# What a combination may fail with while the others go on: bad values, missing keys, numerical trouble, a full GPU.
ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)

Choice = tuple[int, ...]


def gridsearch(
    adata: AnnData,
    param_grid: Mapping[str, Sequence[Any]],
    cluster_edges: Iterable[tuple[Any, Any]] | None = None,
    cluster_key: str = "clusters",
    fixed_params: Mapping[str, Any] | None = None,
    *,
    true_velocity_key: str | None = None,
    n_jobs: int | None = 1,
    show_progress_bar: bool = True,
) -> pd.DataFrame:
    """Score the kernel for every combination of parameters.

    A step is computed once for all combinations that agree in its parameters and in those of the steps before it. A
    grid over ``lambda_smooth``, for example, builds its windows and solves its transport once. The best score is no
    proof, as scores need no known answer: a velocity that is smoothed to one direction is coherent, too.

    Parameters
    ----------
    adata
        Annotated data with a time in ``obs``, positions in ``obsm`` and a neighbour graph in ``obsp``. Nothing is
        written to it.
    param_grid
        Values to try, a list for each parameter. Names are those of the arguments of
        :class:`~cellrank_velot.OTVelocityKernel` and its methods ``compute_windows``, ``compute_velocity``,
        ``fit_field`` and ``compute_transition_matrix``. A name that several of them have, such as ``random_state``,
        goes to all of them. With ``"kernel."``, ``"windows."``, ``"velocity."``, ``"field."`` or ``"transition."``
        before it, a name goes to this step only, and the plain name to the others. With the parameter
        ``time_kind="experimental"`` they are those of :class:`~cellrank_velot.OTTimeSeriesKernel`; the seed of its
        draws is ``"velocity.random_state"``.
    cluster_edges
        Pairs of clusters, from and to, that cells are known to move along. Without them there are no
        ``cross_boundary`` scores. With them, windows, velocity and field are computed in reversed time, too, which
        doubles the work.
    cluster_key
        Key in ``adata.obs`` of the clusters for the scores. The kernel's own clusters, in which windows are made, are
        the parameter ``"cluster_key"``.
    fixed_params
        One value for each of other parameters, named in the same way. All others have their defaults.
    true_velocity_key
        Key in ``adata.obsm`` of a known velocity in the basis of the kernel, shape ``[n_cells, n_dims]``. Without it
        there is no ``cosine_to_truth``.
    n_jobs
        Number of jobs. ``None`` takes that of joblib's ``parallel_config``, which also chooses the backend. The result
        does not depend on it.
    show_progress_bar
        Whether to show a progress bar, which counts the steps to compute.

    Returns
    -------
    One row for each combination, the last parameter varying fastest. Columns are the parameters of the grid, then

    - ``cross_boundary_direction``: how far time makes cells cross the borders of the edges, mean over the edges; beside
      it ``cross_boundary_forward``, ``cross_boundary_reversed`` and ``cross_boundary_no_time``, as
      :func:`~cellrank_velot.metrics.cross_boundary_direction` explains them;
    - ``inner_cluster_coherence``: mean over the clusters;
    - ``step_forward``: share of cells that a step of the transition matrix leads to a later time;
    - ``speed``: median norm of the velocity; ``coverage``: share of cells with an estimate from transport;
      ``converged``: share of the couplings that converged;
    - ``cosine_to_truth``, ``cosine_to_truth_raw``: of the field and of transport;
    - ``seconds``: time that all steps of this combination took, also those that it shares with other rows, without what
      ran in reversed time;
    - ``error``: why there are no scores; ``None`` where there are.

    All scores but ``step_forward``, ``coverage``, ``converged`` and ``cosine_to_truth_raw`` are those of the velocity
    field, also where ``smooth=False`` makes the transition matrix without it.

    Raises
    ------
    KeyError
        If clusters, a cluster of an edge, or the known velocity are missing.
    TypeError
        If ``adata`` is no AnnData, the grid is no mapping, or the values of a parameter are no list.
    ValueError
        If a name is unknown or given twice, the grid or the values of a parameter are empty, or edges are no pairs.

    Examples
    --------
    >>> from cellrank_velot import gridsearch
    >>> grid = {"epsilon": [0.02, 0.1], "lambda_smooth": [0.3, 1.0]}
    >>> results = gridsearch(
    ...     adata, grid, [("Progenitor", "Transition")], fixed_params={"n_steps": 20}
    ... )
    >>> results.shape[0], int(results["error"].isna().sum())
    (4, 4)
    >>> best = results.loc[results["cross_boundary_direction"].idxmax(), list(grid)]
    """
    plan = _Plan.of(param_grid, fixed_params or {})
    scoring = _Scoring.of(adata, cluster_key, cluster_edges, true_velocity_key)
    outcomes = _run(adata, plan, scoring, n_jobs, show_progress_bar)
    results = _table(plan, scoring, outcomes)
    n_failed = int(results["error"].notna().sum())
    if n_failed:
        first = results["error"].dropna().iloc[0]
        logger.warning("%d of %d combinations failed, see the column `error`: %s", n_failed, len(results), first)
    return results


# ------------------------------------------------------------------------------------------------------------ the grid
@dataclass(frozen=True)
class _Plan:
    """What to compute.

    A combination has, for each parameter of the grid, the number of its value. Up to some step it is the same as others
    if they agree in the parameters of the steps so far: it then has -1 for the parameters of later steps.
    """

    grid: dict[str, list[Any]]
    fixed: dict[str, Any]
    known: dict[str, list[str]]
    steps: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, param_grid: Mapping[str, Sequence[Any]], fixed_params: Mapping[str, Any]) -> _Plan:
        """Check what was asked."""
        for argument, given in (("param_grid", param_grid), ("fixed_params", fixed_params)):
            if not isinstance(given, Mapping):
                raise TypeError(f"Expected `{argument}` to be a mapping of names, found `{type(given).__name__}`.")
        if not param_grid:
            raise ValueError("Expected at least one parameter in `param_grid`, found none.")
        twice = sorted(set(param_grid) & set(fixed_params))
        if twice:
            raise ValueError(f"Expected a parameter in `param_grid` or in `fixed_params`, found {twice} in both.")
        grid = {name: _values(name, values) for name, values in param_grid.items()}
        kind_keys = ("time_kind", "kernel.time_kind")
        kinds = [kind for key in kind_keys for kind in (*grid.get(key, ()), fixed_params.get(key))]
        known = _known([kind for kind in KERNELS if kind in kinds] or ["pseudotime"])
        return cls(grid, dict(fixed_params), known, _resolve([*param_grid, *fixed_params], known))

    def combinations(self) -> list[Choice]:
        """Return all combinations, the last parameter varying fastest."""
        return list(product(*(range(len(values)) for values in self.grid.values())))

    def shared(self, choice: Choice, step: str) -> Choice:
        """Return a combination up to a step, with -1 for the parameters that only later steps take."""
        order = list(STEPS)
        first = (min(order.index(taker) for taker in self.steps[name]) for name in self.grid)
        return tuple(i if at <= order.index(step) else -1 for i, at in zip(choice, first, strict=True))

    def choices(self, step: str) -> list[Choice]:
        """Return the combinations that a step must be computed for."""
        return list(dict.fromkeys(self.shared(choice, step) for choice in self.combinations()))

    def options(self, choice: Choice, step: str) -> dict[str, Any]:
        """Return the arguments of a step."""
        given = {name: values[i] for (name, values), i in zip(self.grid.items(), choice, strict=True)} | self.fixed
        silent = {"show_progress_bar": False} if "show_progress_bar" in self.known[step] else {}
        return silent | {_argument(name): value for name, value in given.items() if step in self.steps[name]}


def _known(kinds: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the parameters of each step, of the kernels for some kinds of time."""
    names = {step: [_parameters(KERNELS[kind], method) for kind in kinds] for step, method in STEPS.items()}
    return {step: list(dict.fromkeys(chain.from_iterable(of_kernels))) for step, of_kernels in names.items()}


def _parameters(kernel: type, method: str) -> list[str]:
    signature = inspect.signature(getattr(kernel, method))
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in signature.parameters.items() if p.kind in named and name not in ("self", "adata")]


def _argument(name: str) -> str:
    """Return a name without its step."""
    return name.rpartition(".")[2]


def _resolve(names: Sequence[str], known: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Return the steps that each name goes to."""
    qualified = {f"{step}.{name}": step for step in STEPS for name in known[step]}
    steps: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name in qualified:
            steps[name] = (qualified[name],)
            continue
        # The draws of real time points have a seed of their own, `velocity.random_state`.
        takers = tuple(step for step in STEPS if name in known[step] and (step, name) != ("velocity", "random_state"))
        if not takers:
            raise ValueError(_unknown(name, known, list(qualified)))
        steps[name] = tuple(step for step in takers if f"{step}.{name}" not in names)
        if not steps[name]:
            raise ValueError(f"Expected a value of `{name}` once for each step, found it for {list(takers)} twice.")
    return steps


def _unknown(name: Any, known: Mapping[str, list[str]], qualified: list[str]) -> str:
    elsewhere = [other for other in qualified if _argument(other) == _argument(str(name))]
    candidates = [*dict.fromkeys(argument for names in known.values() for argument in names), *qualified]
    close = elsewhere or get_close_matches(str(name), candidates, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    listed = "; ".join(f"{step}: {', '.join(names)}" for step, names in known.items())
    return f"Expected the name of a parameter, found `{name!r}`.{hint} Known are, by step, {listed}."


def _values(name: str, values: Any) -> list[Any]:
    """Return the values of a parameter as a list of Python's own."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray | pd.Series | pd.Index):
        raise TypeError(f"Expected `param_grid[{name!r}]` to be a list of values, found `{type(values).__name__}`.")
    if len(values) == 0:
        raise ValueError(f"Expected at least one value in `param_grid[{name!r}]`, found none.")
    return [plain(value) for value in values]


# ----------------------------------------------------------------------------------------------------------- the scores
@dataclass(frozen=True)
class _Scoring:
    """What the kernels are judged by."""

    cluster_key: str
    edges: list[tuple[Any, Any]] | None
    truth_key: str | None

    @classmethod
    def of(
        cls, adata: AnnData, cluster_key: str, edges: Iterable[tuple[Any, Any]] | None, truth_key: str | None
    ) -> _Scoring:
        """Check what was asked."""
        if not isinstance(adata, AnnData):
            raise TypeError(f"Expected `adata` to be an `AnnData`, found `{type(adata).__name__}`.")
        clusters = read_clusters(adata, cluster_key)
        if truth_key is not None:
            check_known("adata.obsm", truth_key, adata.obsm.keys())
        pairs = None if edges is None else list(edges)
        if pairs is not None:
            # The score itself checks the edges. Without neighbours it costs nothing.
            nowhere, no_graph = np.zeros((adata.n_obs, 1)), sp.csr_matrix((adata.n_obs, adata.n_obs))
            cross_boundary_correctness(nowhere, nowhere, no_graph, clusters, pairs)
        return cls(cluster_key, pairs, truth_key)

    def reverse_of(self, kernel: OTVelocityKernel, step: str) -> OTVelocityKernel | None:
        """Return the kernel in reversed time where a step must run in it, too: for the scores of borders."""
        return None if self.edges is None or step == "transition" else kernel._in_reversed_time()

    def columns(self) -> list[str]:
        """Return the names of the scores."""
        needed = {"cross_boundary": self.edges, "cosine_to_truth": self.truth_key}
        missing = tuple(prefix for prefix, given in needed.items() if given is None)
        return [name for name in SCORES if not name.startswith(missing)]

    def of_field(self, kernel: OTVelocityKernel, reverse: OTVelocityKernel | None) -> dict[str, float]:
        """Return the scores that do not depend on the transition matrix."""
        given = None if reverse is None else reverse.velocity
        table = summary(kernel, self.cluster_key, self.edges, self.truth_key, reversed_velocity=given)
        # The row of all cells is the last of its metric: a cluster may also be named "all".
        overall = table[table["group"] == "all"].drop_duplicates("metric", keep="last")
        return dict(zip(overall["metric"], overall["value"], strict=True))


def _table(plan: _Plan, scoring: _Scoring, outcomes: Mapping[Choice, _Outcome]) -> pd.DataFrame:
    combinations = plan.combinations()
    ends = [outcomes[choice] for choice in combinations]
    columns: dict[str, Any] = {}
    for position, (name, values) in enumerate(plan.grid.items()):
        column = [values[choice[position]] for choice in combinations]
        # By itself, pandas makes NaN of None, and floats of the integers beside it.
        columns[name] = pd.Series(column, dtype=object if any(value is None for value in values) else None)
    for name in scoring.columns():
        columns[name] = np.array([np.nan if end.error else end.scores[name] for end in ends])
    columns["seconds"] = np.array([np.nan if end.error else end.seconds for end in ends])
    columns["error"] = pd.Series([end.error for end in ends], dtype=object)
    return pd.DataFrame(columns)


# -------------------------------------------------------------------------------------------------------------- the run
@dataclass(frozen=True)
class _Outcome:
    """What a step hands to those after it: stages, scores, the seconds so far, or the error that ended it.

    ``reverse`` are the stages in reversed time, where there are any.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    reverse: dict[str, Stage] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    def after(self, before: _Outcome) -> _Outcome:
        """Return this outcome with that of the steps before it."""
        return _Outcome(
            before.stages | self.stages,
            before.reverse | self.reverse,
            before.scores | self.scores,
            before.seconds + self.seconds,
            self.error,
        )


def _run(
    adata: AnnData, plan: _Plan, scoring: _Scoring, n_jobs: int | None, show_progress_bar: bool
) -> dict[Choice, _Outcome]:
    """Return how every combination ended."""
    kernels, outcomes = _read(adata, plan)
    steps = [step for step in STEPS if step != "kernel"]
    bar = tqdm(
        total=sum(len(plan.choices(step)) for step in steps),
        desc="grid search",
        unit="step",
        disable=not show_progress_bar,
    )
    with bar, single_thread(), Jobs(n_jobs, bar) as parallel:
        # Step by step: there are as many jobs as distinct stages, whatever the grid varies.
        for before, step in zip(STEPS, steps, strict=False):
            choices = plan.choices(step)
            origin = {choice: outcomes[plan.shared(choice, before)] for choice in choices}
            todo = [choice for choice in choices if origin[choice].error is None]
            # Copied here: a copy takes the AnnData out for a moment, which other threads must not see.
            found = parallel(
                delayed(_compute)(
                    kernels[plan.shared(choice, "kernel")].copy(),
                    scoring.reverse_of(kernels[plan.shared(choice, "kernel")], step),
                    step,
                    plan.options(choice, step),
                    origin[choice],
                    scoring,
                )
                for choice in todo
            )
            bar.update(len(choices) - len(todo))
            outcomes = origin | {c: end.after(origin[c]) for c, end in zip(todo, found, strict=True)}
    return outcomes


def _read(adata: AnnData, plan: _Plan) -> tuple[dict[Choice, OTVelocityKernel], dict[Choice, _Outcome]]:
    """Make the kernels, one unless the grid has parameters of theirs."""
    kernels: dict[Choice, OTVelocityKernel] = {}
    outcomes = {}
    for choice in plan.choices("kernel"):
        start = perf_counter()
        try:
            kernels[choice] = OTVelocityKernel(adata, **plan.options(choice, "kernel"))
        except ERRORS as error:
            outcomes[choice] = _Outcome(error=_message(error))
        else:
            outcomes[choice] = _Outcome(seconds=perf_counter() - start)
    return kernels, outcomes


def _compute(
    kernel: OTVelocityKernel,
    reverse: OTVelocityKernel | None,
    step: str,
    options: dict[str, Any],
    before: _Outcome,
    scoring: _Scoring,
) -> _Outcome:
    """Run one step of a kernel, and of that in reversed time, on the stages before it, and return what is new."""
    start = perf_counter()
    try:
        # A combination is one job: its steps must not start others.
        with parallel_config(backend="sequential"), single_thread():
            stages = _run_step(kernel, step, options, before.stages)
            seconds = perf_counter() - start
            back = {} if reverse is None else _run_step(reverse, step, options, before.reverse)
            scores = scoring.of_field(kernel, reverse) if step == "field" else {}
            scores |= {"step_forward": step_forward(kernel)} if step == "transition" else {}
    except ERRORS as error:
        return _Outcome(error=_message(error))
    return _Outcome(stages, back, scores, seconds)


def _run_step(
    kernel: OTVelocityKernel, step: str, options: dict[str, Any], before: dict[str, Stage]
) -> dict[str, Stage]:
    """Run one step of a kernel on the stages before it, and return the new ones: others are there already."""
    for name, stage in before.items():
        setattr(kernel, f"_{name}", stage)
    getattr(kernel, STEPS[step])(**options)
    now = {name: getattr(kernel, name) for name in STAGES if name not in before}
    return {name: stage for name, stage in now.items() if stage is not None}


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
