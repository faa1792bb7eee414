"""What the user asks of the main job, and what was found. Each option is an argument of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Literal

import pandas as pd
from anndata import AnnData
from cellrank.estimators import GPCCA

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_integer, check_number, check_seed
from cellrank_velot.cells import TimeKind
from cellrank_velot.conditions import ConditionComparison
from cellrank_velot.direction import DirectionTest, TimeCheck
from cellrank_velot.dynamics import ProcessFates
from cellrank_velot.kernel import OTVelocityKernel
from cellrank_velot.preprocessing.pseudotime import PseudotimeMethod

__all__ = ["JobOptions", "JobResult", "as_arguments"]

Normalize = Literal["auto", "yes", "no"]
EndsBy = Literal["names", "shape", "macrostates"]
# What messages tell people in Python to do, and how the command line does it.
IN_A_SHELL = {
    "`OTVelocityKernel(adata, time_key=..., time_kind='experimental')`": "`--time-kind experimental`",
    "`normalize=False`": "`--normalize no`",
    "`normalize=True`": "`--normalize yes`",
    "Leave them out, or lower `min_cells`.": "Leave them out.",
    " and pass the donor as `pair_key` where both sides have the same donors": "",
    " Lower `n_clusters`, `min_window_size` or `time_lag`.": "",
    ". Raise `max_iter` or `epsilon`": "",
    ". Raise `softmax_scale`": "",
    "`time_kind='pseudotime'`": "`--time-kind pseudotime`",
    "`random_state`": "`--seed`",
    "`.to_frame()` of the result lists what was considered; name states yourself: "
    "`g.set_terminal_states({'Beta': [...]})`": "The report lists what was considered. Name the clusters where it ends "
    "with `--terminal-states`",
}


def _argument(
    default: Any,
    text: str,
    convert: Callable[[str], Any] = str,
    *,
    metavar: str | None = None,
    check: Callable[[str, Any], Any] | None = None,
    demo: bool = False,
) -> Any:
    """Return a field that is also an argument of ``cellrank-velot run``, and of ``demo`` where that has it."""
    given = {"help": text, "type": convert, "metavar": metavar, "default": default}
    return field(default=default, metadata={"argument": given, "check": check, "demo": demo})


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _number_of_states(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _whole(low: int) -> Callable[[str, Any], Any]:
    return lambda name, value: value is None or check_integer(name, value, low=low)


@dataclass(frozen=True, kw_only=True)
class JobOptions(Options):
    """What the user asks for. ``None`` leaves the choice to :func:`prepare_inputs`, which returns all keys found."""

    time_key: str | None = _argument(None, "column of obs with a pseudotime, or with time points", metavar="KEY")
    time_kind: TimeKind = _argument(
        "pseudotime",
        "kind of time: pseudotime, or experimental for time points such as days (pseudotime)",
        check=partial(check_choice, choices=TimeKind),
    )
    root_cluster: str | None = _argument(
        None, "cluster where the process begins, if there is no time yet", metavar="NAME"
    )
    root_cell: str | None = _argument(None, "cell where the process begins, if there is no time yet", metavar="NAME")
    pseudotime: PseudotimeMethod = _argument(
        "consensus",
        "time from the root: consensus, geodesic or diffusion (consensus)",
        check=partial(check_choice, choices=PseudotimeMethod),
    )
    cluster_key: str | None = _argument(None, "column of obs that names the states (clusters, if there)", metavar="KEY")
    basis: str | None = _argument(None, "positions in obsm (X_pca, computed where missing)", metavar="KEY")
    embedding: str = _argument("umap", "embedding of the pictures (umap)", metavar="KEY")
    terminal_states: tuple[str, ...] = _argument((), "clusters where it ends", _names, metavar="A,B")
    normalize: Normalize = _argument(
        "auto",
        "scale counts and take logarithms, if a PCA has to be computed: auto, yes or no (auto)",
        check=partial(check_choice, choices=Normalize),
    )
    condition_key: str | None = _argument(
        None, "column of obs with the condition of each cell, to compare conditions", metavar="KEY"
    )
    sample_key: str | None = _argument(None, "column of obs with the sample: the animal, the donor", metavar="KEY")
    reference: str | None = _argument(None, "condition that others are compared with (the first)", metavar="NAME")
    n_pcs: int = _argument(30, "components of a PCA that has to be computed (30)", int, check=_whole(2))
    n_neighbors: int = _argument(30, "neighbours of a graph that has to be computed (30)", int, check=_whole(2))
    n_states: int | None = _argument(
        None, "number of macrostates (default: auto)", _number_of_states, metavar="N", check=_whole(2), demo=True
    )
    weight: float = _argument(
        0.8,
        "weight of velocity against neighbours (0.8)",
        float,
        check=partial(check_number, low=0, high=1, open_low=True),
        demo=True,
    )
    n_steps: int | None = _argument(
        None, "training steps of the field, at most (300; of time points 1500)", int, check=_whole(1), demo=True
    )
    seed: int = _argument(0, "seed of every step (0)", int, check=lambda name, value: check_seed(value), demo=True)
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            check = option.metadata.get("check")
            if check is not None:
                check(option.name, getattr(self, option.name))
        if self.root_cluster is not None and self.root_cell is not None:
            raise ValueError("Expected `root_cluster` or `root_cell`, found both.")
        if (self.condition_key is None) != (self.sample_key is None):
            raise ValueError(
                "Expected `condition_key` and `sample_key` together, found one of them: conditions are compared over "
                "samples."
            )
        if self.reference is not None and self.condition_key is None:
            raise ValueError("Expected `reference` with `condition_key`, found it alone.")
        if self.is_series and (self.root_cluster or self.root_cell):
            raise ValueError("Expected no root with `time_kind` `experimental`: the first time point is the start.")

    @property
    def is_series(self) -> bool:
        """Whether time is real time points."""
        return self.time_kind == "experimental"


def as_arguments(text: str) -> str:
    """Return a message in which options are called as on the command line: `--root-cell`, not `root_cell`."""
    for python, shell in IN_A_SHELL.items():
        text = text.replace(python, shell)
    for option in fields(JobOptions):
        text = text.replace(f"`{option.name}`", f"`--{option.name.replace('_', '-')}`")
    return text


@dataclass(frozen=True)
class SeriesResult:
    """Descent between the first and the last time point; what could not be computed is ``None``."""

    descendants: ProcessFates | None = None  # of the clusters of the first time point, at the last
    ancestors: ProcessFates | None = None  # of the clusters of the last time point, at the first
    flows: pd.DataFrame | None = None  # mass from cluster to cluster, of consecutive time points

    def tables(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield the tables to write, by the name of their file."""
        for name in ("descendants", "ancestors"):
            fates: ProcessFates | None = getattr(self, name)
            if fates is not None:
                yield f"{name}.csv", fates.to_frame().set_index("from")
        if self.flows is not None:
            yield "cluster_flows.csv", self.flows.set_index("time")


@dataclass(frozen=True)
class JobResult:
    """What the job found: CellRank's estimator on the velocity combined with the neighbour graph, and its results.

    What could not be computed is ``None``, and ``missing`` says why.
    """

    options: JobOptions  # with the keys that were used
    kernel: OTVelocityKernel
    estimator: GPCCA | None = None
    fates: pd.DataFrame | None = None  # fate probabilities, cells x lineages
    drivers: pd.DataFrame | None = None  # genes x correlations with lineages; none without genes or a choice of fates
    has_macrostates: bool = True
    candidates: pd.DataFrame | None = None  # groups of cells that were asked whether they are an end, and the answer
    ends_by: EndsBy | None = None  # what the terminal states come from
    direction: DirectionTest | None = None  # whether there is a direction at all
    time_check: TimeCheck | None = None  # whether time rises with the distance from its own root
    comparison: ConditionComparison | None = None  # of conditions with replicates
    series: SeriesResult | None = None  # of real time points: descendants, ancestors and flows
    missing: list[str] = field(default_factory=list)  # what could not be made, and why

    @property
    def adata(self) -> AnnData:
        """Annotated data with all results."""
        return self.kernel.adata

    @property
    def terminal_states(self) -> list[str]:
        """Names of the terminal states."""
        states = None if self.estimator is None else self.estimator.terminal_states
        return [] if states is None else [str(name) for name in states.cat.categories]
