"""The transition matrix: where a velocity leads a cell among its neighbours.

``similarities`` compares the velocity with the displacement along each edge, ``matrix`` turns this into probabilities,
and ``monte_carlo`` averages them over the error of the velocity.
"""

from cellrank_velot.transitions.matrix import compute_transitions
from cellrank_velot.transitions.similarities import Similarity, SimilarityFunction

__all__ = ["Similarity", "SimilarityFunction", "compute_transitions"]
