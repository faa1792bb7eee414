"""The branching process: cells that move, divide and die, on arrays alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from cellrank_velot.datasets.circuit import FloatArray

__all__ = ["CLUSTERS", "FATES", "BirthDeath", "IntArray", "Population", "outlook", "simulate"]

IntArray = NDArray[np.int64]

CLUSTERS = ("Progenitor A", "Progenitor B", "Fate A", "Fate B")
FATES = ("Fate A", "Fate B")

_BRANCH, _END = 1.0, 3.0  # progress where the branches part, and where cells come to rest
_EARLY_SIDE, _LATE_SIDE = 0.3, 1.5  # distance of the branches from the middle, before they part and after
_BASE_BIRTH, _BASE_DEATH = 0.4, 0.1
_DECAY = 2.0  # of the dimensions without a process
_START_SD = (0.3, 0.15)  # of progress and of side
_N_PATHS = 50
_MAX_STEP, _PATH_STEP = 0.01, 0.02
_MAX_POPULATION = 2_000_000


@dataclass(frozen=True, eq=False)
class BirthDeath:
    r"""A branching diffusion: cells follow :math:`dx = b(x) dt + \sigma dW`, divide at one rate and die at another.

    The state has two dimensions with a process, progress `p` and side `w`, and others that only fluctuate,

    .. math::
        dp &= \tanh(2 (3 - p)) dt + \sigma dW_p \\
        dw &= w (1 - w^2 / m(p)^2) dt + \sigma dW_w, \quad m(p) = 0.3 + 1.2 / (1 + e^{-(p - 1) / 0.3}) \\
        dz_i &= -2 z_i dt + \sigma dW_i,

    all turned by one rotation. Before progress 1 the sides are close and cells still change them; later they are far
    apart. From there on, cells divide faster on the side of fate A and die faster on the side of fate B.

    Attributes
    ----------
    sigma
        Diffusion in every direction, per square root of unit time.
    growth_contrast
        Growth rate of fate A minus that of fate B, per unit of time.
    rotation
        Orthogonal matrix of shape ``[n_dims, n_dims]``; positions are ``state @ rotation.T``.

    Examples
    --------
    >>> process = datasets.process_of(series)
    >>> x = series.obsm["X_pca"]
    >>> process.drift(x).shape, process.growth(x).shape, process.sigma
    ((400, 10), (400,), 0.3)
    """

    sigma: float
    growth_contrast: float
    rotation: FloatArray

    def drift(self, x: FloatArray) -> FloatArray:
        """Return the drift, the expected change per unit of time, shape ``[n_points, n_dims]``.

        Parameters
        ----------
        x
            Positions, shape ``[n_points, n_dims]``.
        """
        return np.asarray(_drift(x @ self.rotation) @ self.rotation.T)

    def birth(self, x: FloatArray) -> FloatArray:
        """Return the rate of division, per unit of time, shape ``[n_points]``.

        Parameters
        ----------
        x
            Positions, shape ``[n_points, n_dims]``.
        """
        return _rates(x @ self.rotation, self.growth_contrast)[0]

    def death(self, x: FloatArray) -> FloatArray:
        """Return the rate of death, per unit of time, shape ``[n_points]``.

        Parameters
        ----------
        x
            Positions, shape ``[n_points, n_dims]``.
        """
        return _rates(x @ self.rotation, self.growth_contrast)[1]

    def growth(self, x: FloatArray) -> FloatArray:
        """Return the growth rate, birth minus death, per unit of time, shape ``[n_points]``.

        Parameters
        ----------
        x
            Positions, shape ``[n_points, n_dims]``.
        """
        return self.birth(x) - self.death(x)

    def clusters(self, x: FloatArray) -> IntArray:
        """Return the code of the cluster: 0, 1 for progenitors A, B and 2, 3 for fates A, B, shape ``[n_points]``.

        Parameters
        ----------
        x
            Positions, shape ``[n_points, n_dims]``.
        """
        state = x @ self.rotation
        return np.where(state[:, 0] < _BRANCH, 0, 2) + _side(state)


@dataclass(frozen=True, eq=False)
class Population:
    """All cells that are alive at one time, and which cell of the time before each comes from."""

    x: FloatArray  # [n_cells, n_dims]
    parent: IntArray  # [n_cells], at the first time the cell itself


def simulate(process: BirthDeath, n_founders: int, times: FloatArray, *, rng: np.random.Generator) -> list[Population]:
    r"""Simulate a population cell by cell, by steps of Euler and Maruyama :cite:p:`kloeden:92` of at most 0.01.

    In a step of length `h` a cell survives with probability :math:`e^{-\delta h}` and then divides with probability
    :math:`e^{\beta h} - 1`: the expected number of cells grows by :math:`e^{g h}` exactly.
    """
    state = _start(n_founders, process, rng)
    found = [Population(state @ process.rotation.T, np.arange(n_founders))]
    for span in np.diff(times):
        parent: IntArray = np.arange(len(state))
        n_steps = max(1, int(np.ceil(span / _MAX_STEP)))
        for _ in range(n_steps):
            kept = _next_generation(state, process.growth_contrast, span / n_steps, rng)
            if kept is not None:
                state, parent = state[kept], parent[kept]
            if len(state) > _MAX_POPULATION:
                raise ValueError(
                    f"The population grew beyond `{_MAX_POPULATION}` cells: take fewer founders, an earlier last time "
                    "or a smaller `growth_contrast`."
                )
            state = _step(state, process.sigma, span / n_steps, rng)
        found.append(Population(state @ process.rotation.T, parent))
    return found


def outlook(
    process: BirthDeath, state: FloatArray, span: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    r"""Return fates and expected descendants of cells after a time ``span``, shape ``[n_cells, 2]`` each.

    ``state`` has progress and side. The descendants are :math:`E[e^{\int g(x_t) dt} 1_F(x_T)]` over paths without
    branching, by the formula of Feynman and Kac :cite:p:`kac:49`.
    """
    paths, log_weight = np.repeat(state, _N_PATHS, axis=0), np.zeros(len(state) * _N_PATHS)
    n_steps = int(np.ceil(span / _PATH_STEP))
    for _ in range(n_steps):
        birth, death = _rates(paths, process.growth_contrast)
        log_weight += (birth - death) * (span / n_steps)
        paths = _step(paths, process.sigma, span / n_steps, rng)
    ends = _side(paths)[:, None] == np.arange(len(FATES))
    weighted = ends * np.exp(log_weight)[:, None]
    shape = (len(state), _N_PATHS, len(FATES))
    return ends.reshape(shape).mean(axis=1), weighted.reshape(shape).mean(axis=1)


def _start(n_founders: int, process: BirthDeath, rng: np.random.Generator) -> FloatArray:
    """Draw the founders, half of either side and the other dimensions in equilibrium."""
    state = rng.standard_normal((n_founders, len(process.rotation))) * process.sigma / np.sqrt(2 * _DECAY)
    state[:, :2] = np.array(_START_SD) * rng.standard_normal((n_founders, 2))
    state[:, 1] += np.where(np.arange(n_founders) % 2 == 0, _EARLY_SIDE, -_EARLY_SIDE)
    return state


def _drift(state: FloatArray) -> FloatArray:
    """Return the drift of the state, before the rotation."""
    progress, side = state[:, 0], state[:, 1]
    change = -_DECAY * state
    change[:, 0] = np.tanh(2 * (_END - progress))
    width = _EARLY_SIDE + (_LATE_SIDE - _EARLY_SIDE) * expit((progress - _BRANCH) / 0.3)
    change[:, 1] = side * (1 - (side / width) ** 2)
    return change


def _rates(state: FloatArray, contrast: float) -> tuple[FloatArray, FloatArray]:
    """Return the rates of birth and of death, shape ``[n_points]`` each."""
    late = expit((state[:, 0] - _BRANCH) / 0.25)
    on_side_a = expit(state[:, 1] / 0.25)
    birth = _BASE_BIRTH + contrast / 2 * late * on_side_a
    death = _BASE_DEATH + contrast / 2 * late * (1 - on_side_a)
    return birth, death


def _side(state: FloatArray) -> IntArray:
    """Return 0 on the side of A, 1 on that of B."""
    return (state[:, 1] < 0).astype(np.int64)


def _step(state: FloatArray, sigma: float, dt: float, rng: np.random.Generator) -> FloatArray:
    return state + dt * _drift(state) + sigma * np.sqrt(dt) * rng.standard_normal(state.shape)


def _next_generation(state: FloatArray, contrast: float, dt: float, rng: np.random.Generator) -> IntArray | None:
    """Return the cell that each cell after a step comes from; ``None`` where none has divided or died."""
    birth, death = _rates(state, contrast)
    chance = rng.uniform(size=(2, len(state)))
    n_daughters = (chance[0] < np.exp(-death * dt)) * (1 + (chance[1] < np.expm1(birth * dt)))
    return None if (n_daughters == 1).all() else np.repeat(np.arange(len(state)), n_daughters)
