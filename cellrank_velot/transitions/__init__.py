"""The transition matrix: where a velocity leads a cell among its neighbours.

``similarities`` compares the velocity with the displacement along each edge, ``matrix`` turns this into probabilities,
and ``monte_carlo`` averages them over the error of the velocity.
"""

from cellrank_velot.transitions.matrix import (
    Transitions,
    compute_transitions,
    condition_number,
    effective_neighbors,
)
from cellrank_velot.transitions.options import (
    BackwardMode,
    Model,
    ScaleRule,
    Similarity,
    SimilarityFunction,
    TransitionOptions,
)
from cellrank_velot.transitions.similarities import check_similarity

__all__ = [
    "BackwardMode",
    "Model",
    "ScaleRule",
    "Similarity",
    "SimilarityFunction",
    "TransitionOptions",
    "Transitions",
    "check_similarity",
    "compute_transitions",
    "condition_number",
    "effective_neighbors",
]
