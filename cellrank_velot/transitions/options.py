"""Options of the transition matrix, and the names that they may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_choice, check_flag, check_integer, check_number, check_seed

__all__ = ["BackwardMode", "Model", "ScaleRule", "Similarity", "SimilarityFunction", "TransitionOptions"]

Similarity = Literal["cosine", "correlation", "dot_product"]
SimilarityFunction = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
BackwardMode = Literal["transpose", "negate"]
Model = Literal["deterministic", "monte_carlo"]
ScaleRule = Literal["auto", "median"]
# Scale of cosines and correlations where the weights of the graph count. Chosen on simulated counts and real cells with
# known ends, `tests/benchmarks/fates.py`: sharper, mature cells leave their end; softer, fates are told apart late.
WEIGHTED_SCALE = 2.0


@dataclass(frozen=True, kw_only=True)
class TransitionOptions(Options):
    """Options that :meth:`~cellrank_velot.OTVelocityKernel.compute_transition_matrix` explains.

    Here ``backward_mode`` is ``None`` for the forward process.
    """

    similarity: Similarity | SimilarityFunction = "cosine"
    softmax_scale: float | ScaleRule | None = None
    backward_mode: BackwardMode | None = None
    weighted: bool = True
    variance_stabilize: bool = False
    threshold: float | None = None
    model: Model = "deterministic"
    n_samples: int = 64
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        if not callable(self.similarity):
            if not isinstance(self.similarity, str):
                raise TypeError(
                    f"Expected `similarity` to be a name or a function, found `{type(self.similarity).__name__}`."
                )
            check_choice("similarity", self.similarity, Similarity)
        if isinstance(self.softmax_scale, str):
            check_choice("softmax_scale", self.softmax_scale, ScaleRule)
        elif self.softmax_scale is not None:
            check_number("softmax_scale", self.softmax_scale, low=0, open_low=True)
        if self.backward_mode is not None:
            check_choice("backward_mode", self.backward_mode, BackwardMode)
        if self.threshold is not None:
            check_number("threshold", self.threshold, low=0, high=1, open_high=True)
        check_flag("weighted", self.weighted)
        check_choice("model", self.model, Model)
        check_integer("n_samples", self.n_samples, low=1)
        check_seed(self.random_state)

    @property
    def rule(self) -> float | ScaleRule:
        """The scale, or the rule for it: with weights of the graph, similarities up to one need no sharper scale."""
        if self.softmax_scale is not None:
            return self.softmax_scale
        return WEIGHTED_SCALE if self.weighted and self.similarity in ("cosine", "correlation") else "median"

    @property
    def transpose(self) -> bool:
        """Whether an edge compares the velocity at its target with the displacement from there."""
        return self.backward_mode == "transpose"
