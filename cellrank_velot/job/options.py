"""The main job: what the user asks for, and what was found. Holds AnnData and CellRank's estimator, does nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from anndata import AnnData
from cellrank.estimators import GPCCA

from cellrank_velot._utils.validation import check_integer, check_number
from cellrank_velot.kernel import OTVelocityKernel

__all__ = ["JobOptions", "JobResult"]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the user asks for; ``None`` leaves the choice to :func:`prepare_inputs`, which returns all keys found.

    Attributes
    ----------
    time_key
        Column of ``obs`` with a pseudotime; the first of the usual names where ``None`` and no root is given.
    basis
        Key of ``obsm`` with the positions.
    embedding
        Key of ``obsm`` for the pictures.
    cluster_key
        Column of ``obs`` with annotated clusters, which name the states.
    root_cluster, root_cell
        Where the process begins, for a diffusion pseudotime.
    n_pcs, n_neighbors
        For a PCA and a neighbour graph that have to be computed.
    weight
        Weight of the velocity; the rest is that of the neighbour graph.
    n_states
        Number of macrostates.
    terminal_states
        Clusters in which the process ends.
    n_steps
        Largest number of training steps of the field.
    seed
        Seed of every step.
    show_progress_bar
        Whether to show progress bars.

    Examples
    --------
    >>> from cellrank_velot.job import JobOptions
    >>> JobOptions(cluster_key="clusters", root_cluster="Progenitor", n_states=3).weight
    0.8
    """

    time_key: str | None = None
    basis: str | None = None
    embedding: str = "umap"
    cluster_key: str | None = None
    root_cluster: str | None = None
    root_cell: str | None = None
    n_pcs: int = 30
    n_neighbors: int = 30
    weight: float = 0.8
    n_states: int | None = None
    terminal_states: tuple[str, ...] = ()
    n_steps: int = 300
    seed: int = 0
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number("weight", self.weight, low=0, high=1, open_low=True)
        for name, low in (("n_pcs", 2), ("n_neighbors", 2), ("n_steps", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), low=low)
        if self.n_states is not None:
            check_integer("n_states", self.n_states, low=2)
        if self.root_cluster is not None and self.root_cell is not None:
            raise ValueError("Expected `root_cluster` or `root_cell`, found both.")


@dataclass(frozen=True, slots=True)
class JobResult:
    """What the job found.

    Attributes
    ----------
    options
        Options with the keys that were used.
    kernel
        The velocity kernel.
    estimator
        CellRank's estimator, on the velocity combined with the neighbour graph.
    fates
        Fate probabilities, cells x lineages; ``None`` where they could not be computed.
    drivers
        Correlation of each gene with each lineage, as CellRank returns it; ``None`` without genes or without a choice
        of fates.
    has_macrostates
        Whether macrostates were found.

    Examples
    --------
    >>> from cellrank_velot.job import JobOptions, analyse, prepare_inputs
    >>> result = analyse(
    ...     vk, prepare_inputs(adata, JobOptions(terminal_states=("Fate A", "Fate B")))
    ... )
    >>> result.fates.shape, result.adata is adata
    ((300, 2), True)
    """

    options: JobOptions
    kernel: OTVelocityKernel
    estimator: GPCCA
    fates: pd.DataFrame | None = None
    drivers: pd.DataFrame | None = None
    has_macrostates: bool = True

    @property
    def adata(self) -> AnnData:
        """Annotated data with all results."""
        return self.kernel.adata
