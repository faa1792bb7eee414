"""The least action path: the way that noise most likely takes from one place to another against the drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.dynamics.fields import Field
from cellrank_velot.dynamics.local import LocalField
from cellrank_velot.graph.geodesic import near_graph, shortest_paths

__all__ = ["ActionOptions", "LeastActionPath", "find_least_action_path"]

FloatArray = NDArray[np.float64]

# Points of a path, as shares of those asked for, and steps of the optimiser: at first, for each guess, and then for the
# best of them; it stops where a step gains less than the last number.
COARSE, FINER = (0.25, 100, 1e-4), ((0.5, 200, 1e-5), (1.0, 200, 1e-5))
# Fewer points cut corners.
FEWEST = 20
# How much unequal steps cost: nothing depends on how points are spread along a path, but sums are best of equal ones.
EVEN = 1e-2
# Speed below which a drift has no direction, as a share of the mean speed.
STANDSTILL = 1e-6
# Share of the action after which the drift takes over.
SPENT = 0.99


@dataclass(frozen=True, kw_only=True)
class ActionOptions(Options):
    """Options of paths, explained by :meth:`cellrank_velot.OTVelocityKernel.least_action_path`.

    Examples
    --------
    >>> dynamics.ActionOptions(n_points=50).confine
    0.7
    """

    n_points: int = 100
    diffusion: float | None = None
    confine: float = 0.7
    n_neighbors: int = 15
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        check_integer("n_points", self.n_points, low=10)
        check_integer("n_neighbors", self.n_neighbors, low=1)
        check_number("confine", self.confine, low=0)
        check_seed(self.random_state)
        if self.diffusion is not None:
            check_number("diffusion", self.diffusion, low=0, open_low=True)


@dataclass(frozen=True, slots=True, eq=False)
class LeastActionPath(Stage):
    r"""The path of least action from a source to a target, and what it is compared with.

    Attributes
    ----------
    x
        Points of the path at equal distances, shape ``[n_points, n_dims]``.
    spent
        Action up to each point, without unit, shape ``[n_points]``. It grows where the path goes against the drift.
    time
        Mean time of the cells around each point, shape ``[n_points]``.
    distance
        Distance of each point from the data in units of the spacing of the cells nearby, shape ``[n_points]``. A cell
        lies at about 1.
    straight_action
        Action of the straight line.
    reverse_x
        Points of the path of least action back, from the target to the source, shape ``[n_points, n_dims]``.
    reverse_action
        Its action.
    diffusion
        Diffusion :math:`\sigma` that actions are for, in basis per root of time. They fall with its square.
    source, target
        What the path goes from and to.
    basis
        Key in ``adata.obsm`` of the positions.

    Examples
    --------
    >>> path = vk.least_action_path("Progenitor", "Fate B", n_points=10)
    >>> path.action < path.straight_action
    True
    """

    x: FloatArray = field(metadata=stored("n_points", "n_dims"))
    spent: FloatArray
    time: FloatArray
    distance: FloatArray
    straight_action: float
    reverse_x: FloatArray
    reverse_action: float
    diffusion: float
    source: str = "source"
    target: str = "target"
    basis: str = ""

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.x.shape[1])

    @property
    def action(self) -> float:
        """Action of the path; the chance to go it falls like ``exp(-action)``."""
        return float(self.spent[-1])

    @property
    def length(self) -> float:
        """Length of the path in the basis."""
        return float(np.linalg.norm(np.diff(self.x, axis=0), axis=1).sum())

    @property
    def committed_ix(self) -> int:
        """Number of the point at which 99 % of the action are spent. From there on the drift leads to the target."""
        return int(np.argmax(self.spent >= SPENT * self.spent[-1]))

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each point.

        Returns
        -------
        ``share`` of the length, ``action`` spent so far, ``time`` and ``distance`` as above, and ``committed``, whether
        the drift leads to the target from here.
        """
        n = len(self.x)
        return pd.DataFrame(
            {
                "share": np.linspace(0, 1, n),
                "action": self.spent,
                "time": self.time,
                "distance": self.distance,
                "committed": np.arange(n) >= self.committed_ix,
            }
        )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} from {self.source!r} to {self.target!r}: action {self.action:.3g}, straight "
            f"{self.straight_action:.3g}, back {self.reverse_action:.3g} (diffusion {self.diffusion:.3g})"
        )


def find_least_action_path(
    field: Field,
    x: FloatArray,
    time: FloatArray,
    source: FloatArray,
    target: FloatArray,
    options: ActionOptions = ActionOptions(),
    *,
    graph: sp.csr_matrix | None = None,
    at_time: float | None = None,
    names: tuple[str, str] = ("source", "target"),
    basis: str = "",
) -> LeastActionPath:
    r"""Find the path of least action between two places :cite:`freidlin:12`.

    Cells move by :math:`dx = b \, dt + \sigma \, dW`. A path that takes the time :math:`T` has the action
    :math:`\frac{1}{2 \sigma^2} \int_0^T |\dot x - b|^2 dt`. The least over all times is :math:`\frac{1}{\sigma^2} \int
    (|b| \, |dx| - b \cdot dx)`, an integral along the path alone, which is minimised :cite:`heymann:08`. Downhill it is
    zero. Of a drift :math:`b = -\nabla U` it is :math:`2 \Delta U / \sigma^2` uphill. The noise is the same everywhere
    and in all directions. So the path does not depend on its strength.

    Parameters
    ----------
    field
        The field. Its drift is asked where it has one, as that of a time series.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    time
        Their times, shape ``[n_cells]``.
    source, target
        The two places, shape ``[n_dims]``.
    options
        Points of the path, noise, and the pull to the data.
    graph
        Neighbour graph of the cells. The optimiser starts from the shortest path over it, too, and not from the
        straight line alone.
    at_time
        Time at which the field is asked; the mean time of the cells around where not given.
    names
        What the places are called.
    basis
        Name of the basis, which the result keeps.

    Returns
    -------
    The path.

    Examples
    --------
    >>> early, late = vk.cells.x[vk.cells.time.argmin()], vk.cells.x[vk.cells.time.argmax()]
    >>> options = dynamics.ActionOptions(n_points=10)
    >>> path = dynamics.find_least_action_path(
    ...     vk.field, vk.cells.x, vk.cells.time, early, late, options
    ... )
    >>> path.action < path.reverse_action
    True
    """
    local = LocalField.of(
        field,
        x,
        time,
        None,
        confine=options.confine,
        n_neighbors=options.n_neighbors,
        at_time=at_time,
        random_state=options.random_state,
    )
    share = np.linspace(0, 1, options.n_points)[:, None]
    straight = source + share * (target - source)
    guesses = [straight]
    if graph is not None:
        guesses.append(_over_cells(x, graph, source, target, options.n_points))
    with single_thread(torch.device("cpu")):
        diffusion = usual_diffusion(local) if options.diffusion is None else float(options.diffusion)
        there = _least(local, guesses)
        back = _least(local, [guess[::-1] for guess in (there, *guesses)])
        # The way back may show a better way there.
        other = _least(local, [back[::-1]])
        there = min(there, other, key=lambda path: float(_action(local, path).sum()))
        near = local.region.nearest(torch.tensor(there))
        per_noise = 1 / diffusion**2
        return LeastActionPath(
            x=there,
            spent=np.concatenate([[0.0], np.cumsum(_action(local, there))]) * per_noise,
            time=local.region.time_around(torch.tensor(there), near).numpy(),
            distance=local.region.look(torch.tensor(there), near)[0].numpy().astype(np.float64),
            straight_action=float(_action(local, straight).sum()) * per_noise,
            reverse_x=back,
            reverse_action=float(_action(local, back).sum()) * per_noise,
            diffusion=diffusion,
            source=names[0],
            target=names[1],
            basis=basis,
        )


def usual_diffusion(local: LocalField) -> float:
    r"""Return the mean noise of a flow with ``diffusion=1``, :math:`\sigma^2 = 2 \, |v| \, s^2 / \ell`.

    Over the spacing :math:`\ell` of the cells, it takes a particle anywhere among the cells around, whose variance per
    dimension is :math:`s^2`.
    """
    return float(np.sqrt(max(2 * local.mean_speed / local.spacing * local.spread(), TINY)))


def changes_along(path: LeastActionPath, loadings: FloatArray, names: Sequence[str]) -> pd.DataFrame:
    """Return how genes with these loadings, shape ``[n_dims, n_genes]``, change along a path, most changed first."""
    level = (path.x - path.x[0]) @ loadings
    table = pd.DataFrame(
        {
            "change": level[-1],
            "before": level[path.committed_ix],
            "after": level[-1] - level[path.committed_ix],
            "lowest": level.min(axis=0),
            "highest": level.max(axis=0),
        },
        index=pd.Index(names, name="gene"),
    )
    return table.sort_values("change", key=np.abs, ascending=False, kind="stable")


# ------------------------------------------------------------------------------------------------------------- search
def _least(local: LocalField, guesses: Sequence[FloatArray]) -> FloatArray:
    """Return the path of least action that the optimiser finds from the best of several guesses."""
    coarse = [_relaxed(local, guess, *COARSE) for guess in guesses]
    path = min(coarse, key=lambda found: float(_action(local, found).sum()))
    # A short path is all there at once.
    for level in FINER if len(path) > 2 * FEWEST else FINER[1:]:
        path = _relaxed(local, path, *level)
    return path


def _relaxed(local: LocalField, path: FloatArray, share: float, n_steps: int, gain: float) -> FloatArray:
    """Return a path of less action between the same ends and with as many points, moved at a share of them."""
    n_points = len(path)
    path = _even(path, min(max(round(share * n_points), FEWEST), n_points))
    first, last = (torch.tensor(path[[i]]) for i in (0, -1))
    inner = torch.tensor(path[1:-1] / local.spacing, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [inner],
        max_iter=n_steps,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=gain,
        line_search_fn="strong_wolfe",
    )
    optimiser.step(_cost_of(local, optimiser, inner, first, last))
    return _even(torch.cat([first, inner.detach() * local.spacing, last]).numpy(), n_points)


def _cost_of(
    local: LocalField, optimiser: torch.optim.Optimizer, inner: torch.Tensor, first: torch.Tensor, last: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Return the function that the optimiser calls: the action, and a little for unequal steps."""
    scale = local.mean_speed * local.spacing

    def cost() -> torch.Tensor:
        optimiser.zero_grad()
        path = torch.cat([first, inner * local.spacing, last])
        length = path.diff(dim=0).norm(dim=1)
        uneven = (length / length.mean() - 1).square().mean()
        value = _density(local, path).sum() / scale + EVEN * length.sum() / local.spacing * uneven
        value.backward()
        return value

    return cost


def _density(local: LocalField, path: torch.Tensor) -> torch.Tensor:
    """Return the action of each piece of a path at a diffusion of 1, shape ``[n_points - 1]``."""
    middle, step = (path[1:] + path[:-1]) / 2, path.diff(dim=0)
    drift = local.drift(middle, local.region.nearest(middle.detach()))
    least = (STANDSTILL * local.mean_speed) ** 2
    return (drift.square().sum(dim=1) + least).sqrt() * step.norm(dim=1) - (drift * step).sum(dim=1)


def _action(local: LocalField, path: FloatArray) -> FloatArray:
    with torch.no_grad():
        return _density(local, torch.tensor(np.ascontiguousarray(path))).clamp_min(0).numpy()


def _even(path: FloatArray, n_points: int) -> FloatArray:
    """Return points at equal distances along a path."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    length, kept = np.unique(length, return_index=True)
    at = np.linspace(0, length[-1], n_points)
    even = np.stack([np.interp(at, length, column) for column in path[kept].T], axis=1)
    even[0], even[-1] = path[0], path[-1]
    return even


def _over_cells(
    x: FloatArray, graph: sp.csr_matrix, source: FloatArray, target: FloatArray, n_points: int
) -> FloatArray:
    """Return the shortest path over cells, without its corners."""
    first, last = (int(np.linalg.norm(x - place, axis=1).argmin()) for place in (source, target))
    before = shortest_paths(near_graph(x, graph), np.array([first]))[1]
    cells = [last]
    while before[cells[-1]] != cells[-1]:
        cells.append(int(before[cells[-1]]))
    path = np.concatenate([source[None], x[cells[::-1]], target[None]])
    path = _even(path, n_points)
    for _ in range(n_points // 5):
        path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    return path
