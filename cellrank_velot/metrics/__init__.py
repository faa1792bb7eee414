"""Scores of a velocity: how well it agrees with neighbours, held-out cells or a known truth, and how good its chain is.

In go arrays, or a kernel (``genes``, ``host`` and ``table``). Out come numbers and tables. ``direction`` asks the
neighbours, ``agreement`` and ``time_points`` hold cells and time points out, ``chain`` looks at transition matrices,
and ``host`` calls CellRank's own scores.
"""

from cellrank_velot.metrics._kernel import VelocityKernel
from cellrank_velot.metrics.agreement import HeldOutAgreement, held_out_agreement
from cellrank_velot.metrics.chain import reconstructability, row_correlations, step_forward_fraction
from cellrank_velot.metrics.direction import (
    cosine_to_truth,
    cosines,
    cross_boundary_correctness,
    cross_boundary_direction,
    inner_cluster_coherence,
)
from cellrank_velot.metrics.genes import gene_velocity, reconstructability_score
from cellrank_velot.metrics.host import step_boundary_correctness, terminal_state_identification
from cellrank_velot.metrics.table import SCORES, summary
from cellrank_velot.metrics.time_points import held_out_time, wasserstein

__all__ = [
    "SCORES",
    "HeldOutAgreement",
    "VelocityKernel",
    "cosine_to_truth",
    "cosines",
    "cross_boundary_correctness",
    "cross_boundary_direction",
    "gene_velocity",
    "held_out_agreement",
    "held_out_time",
    "inner_cluster_coherence",
    "reconstructability",
    "reconstructability_score",
    "row_correlations",
    "step_boundary_correctness",
    "step_forward_fraction",
    "summary",
    "terminal_state_identification",
    "wasserstein",
]


def __dir__() -> list[str]:
    return __all__
