"""Options of the couplings of a time series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellrank_velot._utils.options import Options
from cellrank_velot._utils.validation import check_integer, check_number, check_seed

__all__ = ["PATH_PASSES", "CouplingOptions", "PopulationOptions"]

# Passes of the couplings whose pairs are followed from one time point to the next. Where the truth is known, one pass
# places cells better, and four, the default of the couplings, find their growth better.
PATH_PASSES = 1
# Pairs of a cell: about as many as a batch has cells.
MAX_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class CouplingOptions(Options):
    """How time points are coupled, as :meth:`~cellrank_velot.OTVelocityKernel.compute_velocity` of them explains.

    ``tau`` is one number, or two for source and target.
    """

    epsilon: float = 0.05
    tau: float | Sequence[float] = 0.9
    n_passes: int = 4
    n_draws: int = 4
    tol: float = 1e-6
    max_iter: int = 500
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        self._without_none("tau", "n_passes", "n_draws")
        check_number("epsilon", self.epsilon, low=0, open_low=True)
        tau: Any = self.tau
        if isinstance(tau, np.ndarray):
            tau = tau.tolist()  # of an array without dimensions a number
        values = tau if isinstance(tau, list | tuple) else [tau, tau]
        if len(values) != 2:
            raise ValueError(f"Expected `tau` as one number, or as two for source and target, found `{len(values)}`.")
        pair = tuple(check_number("tau", value, low=0, high=1, open_low=True) for value in values)
        object.__setattr__(self, "tau", pair if isinstance(tau, list | tuple) else tau)
        check_integer("n_passes", self.n_passes, low=1)
        if check_integer("n_draws", self.n_draws, low=1) > MAX_DRAWS:
            raise ValueError(f"Expected `n_draws` to be at most `{MAX_DRAWS}`, found `{self.n_draws}`.")
        check_number("tol", self.tol, low=0, open_low=True)
        check_integer("max_iter", self.max_iter, low=1)
        check_seed(self.random_state)

    @property
    def both_tau(self) -> tuple[float, float]:
        """``tau`` of source and target."""
        source, target = self.tau if isinstance(self.tau, tuple) else (self.tau, self.tau)
        return float(source), float(target)


@dataclass(frozen=True, kw_only=True)
class PopulationOptions(CouplingOptions):
    """The same, with where the kernel has growth, mass and clones from; masses handed to it are ``"given"``."""

    growth_key: str | None = None
    mass: str | None = None
    clone_key: str | None = None
