"""How good a velocity is: by neighbours (``direction``), held-out cells (``agreement``) and the chain (``chain``).

Of a time series, ``time_points`` leaves time points out.

These are plain functions of arrays. ``genes``, ``host`` and ``table`` read a kernel; ``host`` calls scores of CellRank.
"""

from cellrank_velot.metrics.agreement import HeldOutAgreement, held_out_agreement
from cellrank_velot.metrics.chain import reconstructability, row_correlations, step_forward_fraction
from cellrank_velot.metrics.direction import (
    cosine_to_truth,
    cosines,
    cross_boundary_correctness,
    inner_cluster_coherence,
)
from cellrank_velot.metrics.genes import gene_velocity, reconstructability_score
from cellrank_velot.metrics.host import step_boundary_correctness, terminal_state_identification
from cellrank_velot.metrics.table import summary
from cellrank_velot.metrics.time_points import held_out_time, wasserstein

__all__ = [
    "HeldOutAgreement",
    "cosine_to_truth",
    "cosines",
    "cross_boundary_correctness",
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
