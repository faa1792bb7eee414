"""Where the flow comes to rest: zeros of a field near the data, and the ends of the data that it runs into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from cellrank_velot._utils.device import single_thread
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.options import Options
from cellrank_velot._utils.stage import TINY, Stage, stored
from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.dynamics.fields import Field
from cellrank_velot.dynamics.local import Local, LocalField, jacobian_of

__all__ = ["FixedPointOptions", "FixedPoints", "Kind", "find_fixed_points"]

FloatArray = NDArray[np.float64]
Kind = Literal["stable node", "stable focus", "saddle", "unstable node", "unstable focus", "undecided"]

# Steps of Newton's method, and of the flow that leads to where it starts; the flow's length in spacings of the cells.
N_NEWTON, N_FLOW, STEP = 40, 200, 0.5
# Most points that Newton's method starts from. The flow is slow below this share of the speed without the pull.
MOST_CANDIDATES, SLOW = 150, 0.5
# Parts that the way between two starts is cut into, how often, and the most ends whose borders are followed.
N_PARTS, N_CUTS, MOST_GOALS = 9, 6, 12
# What is left of the drift at a solution, as a share of the mean speed; the field computes with seven digits.
SOLVED = 1e-4
# Points that agree within this share of the spacing of the cells are one.
SAME = 0.5
# Real and imaginary parts below these shares of the largest eigenvalue are rounding.
ROUNDING, TURNING = 1e-5, 1e-3


@dataclass(frozen=True, kw_only=True)
class FixedPointOptions(Options):
    """Options of fixed points, explained by :meth:`cellrank_velot.OTVelocityKernel.fixed_points`.

    Examples
    --------
    >>> dynamics.FixedPointOptions(n_starts=50).max_distance
    2.5
    """

    n_starts: int = 200
    confine: float = 0.7
    max_distance: float = 2.5
    n_neighbors: int = 15
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check them."""
        for name in ("n_starts", "n_neighbors"):
            check_integer(name, getattr(self, name), low=1)
        check_number("confine", self.confine, low=0)
        check_number("max_distance", self.max_distance, low=1)
        check_seed(self.random_state)


@dataclass(frozen=True, slots=True, eq=False)
class FixedPoints(Stage):
    """Points where the flow comes to rest, stable ones first.

    Attributes
    ----------
    x
        Positions in the basis, shape ``[n_points, n_dims]``.
    eigenvalues
        Eigenvalues of the Jacobian of the drift, per unit of time, the largest real part first, shape ``[n_points,
        n_dims]``.
    kind
        ``"stable node"``, ``"stable focus"`` where what decays last turns, ``"saddle"``, ``"unstable node"``,
        ``"unstable focus"``, or ``"undecided"`` where no eigenvalue is positive and one is zero; shape ``[n_points]``.
    held
        Whether the velocity leads on and the data end here. Otherwise the velocity is zero; shape ``[n_points]``.
    speed
        Length of the velocity over the mean of the cells, shape ``[n_points]``.
    basin
        Share of the starts that come to rest here, shape ``[n_points]``.
    distance
        Distance from the data in units of the spacing of the cells nearby, shape ``[n_points]``. A cell lies at about
        1.
    time
        Mean time of the cells around, shape ``[n_points]``.
    cluster
        Most frequent cluster among the cells around, empty without clusters; shape ``[n_points]``.
    basis
        Key in ``adata.obsm`` of the positions.

    Examples
    --------
    >>> points = vk.fixed_points()
    >>> points.x.shape[1], points.eigenvalues.shape == points.x.shape
    (20, True)
    """

    x: FloatArray = field(metadata=stored("n_points", "n_dims"))
    eigenvalues: NDArray[np.complex128]
    kind: NDArray[np.str_]
    held: NDArray[np.bool_]
    speed: FloatArray
    basin: FloatArray
    distance: FloatArray
    time: FloatArray
    cluster: NDArray[np.str_]
    basis: str = ""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_dims(self) -> int:
        """Number of dimensions of the basis."""
        return int(self.x.shape[1])

    @property
    def stable(self) -> NDArray[np.bool_]:
        """Whether the flow comes to each point from all sides, shape ``[n_points]``."""
        return np.char.startswith(self.kind, "stable")

    def to_frame(self) -> pd.DataFrame:
        """Return a table with one row for each point.

        Returns
        -------
        ``kind``, ``cluster``, ``held``, ``speed``, ``basin``, ``time`` and ``distance`` as above; ``n_unstable``, the
        number of directions that lead away; and ``rate``, the largest real part of an eigenvalue.
        """
        columns = {name: getattr(self, name) for name in ("kind", "cluster", "held", "speed", "basin", "time")}
        real = self.eigenvalues.real
        table = pd.DataFrame({**columns, "distance": self.distance})
        table["n_unstable"] = (real > ROUNDING * np.abs(real).max(axis=1, initial=0)[:, None]).sum(axis=1)
        table["rate"] = real.max(axis=1, initial=-np.inf)
        return table

    def __repr__(self) -> str:
        if not len(self):
            return f"{type(self).__name__}: none near the data"
        table = self.to_frame().round(3).to_string()
        return f"{type(self).__name__}: {len(self)}, {int(self.stable.sum())} stable\n{table}"


def find_fixed_points(
    field: Field,
    x: FloatArray,
    time: FloatArray,
    options: FixedPointOptions = FixedPointOptions(),
    *,
    clusters: pd.Series | None = None,
    at_time: float | None = None,
    basis: str = "",
) -> FixedPoints:
    r"""Find where the flow comes to rest, near the data.

    First come zeros of the drift :math:`b`, by a damped Newton method on :math:`|b|^2`. With ``confine`` above 0 there
    follow those of the drift that keeps to the data, :math:`b + \kappa (m - x)` with :math:`\kappa = \text{confine} \,
    |b| / \ell`, as particles have it. Where the data end and the velocity leads on, it holds the particle. As the pull
    is in proportion to the speed, such points depend on the direction of the velocity alone.

    Parameters
    ----------
    field
        The field. Its drift is asked where it has one, as that of a time series.
    x
        Positions of the cells, shape ``[n_cells, n_dims]``.
    time
        Their times, shape ``[n_cells]``.
    options
        Starts, pull and what is near.
    clusters
        Cluster of each cell.
    at_time
        Time at which the field is asked; the mean time of the cells around where not given.
    basis
        Name of the basis, which the result keeps.

    Returns
    -------
    The points, those that agree within half of the spacing of the cells as one.

    Examples
    --------
    >>> points = dynamics.find_fixed_points(vk.field, vk.cells.x, vk.cells.time)
    >>> bool((points.distance <= 2.5).all())
    True
    """
    codes = None if clusters is None else clusters.cat.codes.to_numpy(dtype=np.int64)
    names = [] if clusters is None else [str(name) for name in clusters.cat.categories]
    local = LocalField.of(
        field,
        x,
        time,
        codes,
        confine=options.confine,
        n_neighbors=options.n_neighbors,
        at_time=at_time,
        random_state=options.random_state,
    )
    rng = np.random.default_rng(options.random_state)
    chosen = rng.permutation(len(x))[: options.n_starts]
    with single_thread(torch.device("cpu")):
        starts = torch.tensor(x[np.sort(chosen)])
        ends, slow = _flow(local, starts)
        border = _between(local, starts, ends)
        candidates = _apart(torch.cat([ends, border, slow]), SAME * local.spacing)[:MOST_CANDIDATES]
        speed = local.velocity(starts, local.region.nearest(starts)).norm(dim=1)
        slowest = starts[speed.argsort()[: max(options.n_starts // 4, 1)]]
        zeros = _solve(
            local, lambda p, near: local.velocity(p, near) / local.mean_speed, torch.cat([candidates, slowest])
        )
        held = _solve(local, local.direction, candidates) if options.confine > 0 else zeros[:0]
        return _described(local, zeros, held, ends, names, options.max_distance, basis)


# --------------------------------------------------------------------------------------------------------- search
def _flow(local: LocalField, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the flow takes points, and the points where it slows down on the way, slowest first."""
    step = local.spacing * min(STEP, 1 / max(local.confine, 1.0))
    x, way, places, speeds = starts, torch.zeros_like(starts), [], []
    last = before = torch.zeros(len(starts), dtype=starts.dtype)
    with torch.no_grad():
        for _ in range(N_FLOW):
            came, way = way, local.direction(x, local.region.nearest(x))
            speed = way.norm(dim=1)
            # That of the point before is lower than those on both sides of it.
            low = (last < before) & (last <= speed) & (last < SLOW)
            if low.any():
                places.append((x - step * came)[low])
                speeds.append(last[low])
            if bool((speed < SOLVED).all()):
                break
            before, last = last, speed
            x = x + step * way
    if not places:
        return x, starts[:0]
    return x, torch.cat(places)[torch.cat(speeds).argsort()]


def _between(local: LocalField, starts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return where the flow slows down along the borders between what flows to one end and to another.

    The border leads to a saddle. Between two starts on either side, it is found by cutting their distance into parts.
    """
    goals = _apart(ends, local.spacing)
    goal = torch.cdist(ends, goals).argmin(dim=1)
    pairs = [pair for i in range(len(goals)) for j in range(i) if (pair := _nearest_pair(starts, goal == i, goal == j))]
    if not pairs or len(goals) > MOST_GOALS:
        return starts[:0]
    low, high = (starts[list(side)] for side in zip(*pairs, strict=True))
    home = goal[[i for i, _ in pairs]]
    share = torch.linspace(0, 1, N_PARTS + 1, dtype=starts.dtype)[1:-1, None, None]
    rows = torch.arange(len(pairs))
    for _ in range(N_CUTS):
        inner = low + share * (high - low)
        came, slow = _flow(local, inner.flatten(0, 1))
        at_home = (torch.cdist(came, goals).argmin(dim=1).view(N_PARTS - 1, -1) == home).long()
        # How many from the lower side on go where it goes.
        n_home = at_home.cumprod(dim=0).sum(dim=0)
        steps = torch.cat([low[None], inner, high[None]])
        low, high = steps[n_home, rows], steps[n_home + 1, rows]
    return slow


def _nearest_pair(x: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> tuple[int, int] | None:
    """Return the nearest two points of two groups."""
    first, second = one.nonzero()[:, 0], other.nonzero()[:, 0]
    place = int(torch.cdist(x[first], x[second]).argmin())
    return int(first[place // len(second)]), int(second[place % len(second)])


def _solve(local: LocalField, function: Local, x: torch.Tensor) -> torch.Tensor:
    """Return the zeros of a function that Newton's method, damped by Levenberg and Marquardt, finds from points."""
    derivative, n_dims = jacobian_of(function), x.shape[1]
    near = local.region.nearest(x)
    value, slope = function(x, near), derivative(x, near)
    square = value.square().sum(dim=1)
    damping = torch.full_like(square, 1e-3)
    for _ in range(N_NEWTON):
        normal = slope.mT @ slope
        size = torch.diagonal(normal, dim1=1, dim2=2).mean(dim=1) + torch.finfo(x.dtype).tiny
        normal = normal + (damping * size)[:, None, None] * torch.eye(n_dims, dtype=x.dtype)
        step = -torch.linalg.lstsq(normal, (slope.mT @ value.unsqueeze(2))).solution.squeeze(2)
        # No further than the neighbourhood that the derivative is of.
        step = step * (local.spacing / step.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)
        at = x + step
        near = local.region.nearest(at)
        found = function(at, near)
        better = found.square().sum(dim=1) < square
        if better.any():
            x, value = torch.where(better[:, None], at, x), torch.where(better[:, None], found, value)
            slope = slope.clone()
            slope[better] = derivative(at[better], near[better])
            square = value.square().sum(dim=1)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e8)
        if bool(((square < (0.1 * SOLVED) ** 2) | (damping > 1e7)).all()):
            break
    return x[square.sqrt() < SOLVED].detach()


def _apart(points: torch.Tensor, distance: float) -> torch.Tensor:
    """Return the points, in their order, that are not so near to one before them."""
    kept: list[int] = []
    for i in range(len(points)):
        if not kept or bool(((points[kept] - points[i]).norm(dim=1) >= distance).all()):
            kept.append(i)
    return points[kept]


# ---------------------------------------------------------------------------------------------------- description
def _described(
    local: LocalField,
    zeros: torch.Tensor,
    held: torch.Tensor,
    ends: torch.Tensor,
    names: Sequence[str],
    max_distance: float,
    basis: str,
) -> FixedPoints:
    """Return those that are near the data, each once, with what they are."""
    points, is_held = _unique(local, zeros, held, max_distance)
    if not len(points):
        x, numbers, texts = points.numpy(), np.empty(0), np.empty(0, dtype=np.str_)
        none = x.astype(np.complex128)
        return FixedPoints(x, none, texts, is_held, numbers, numbers, numbers, numbers, texts, basis)
    near = local.region.nearest(points)
    speed = local.velocity(points, near)
    # At a zero of the direction, the derivative of the drift is that of the direction times the speed.
    slopes = torch.where(
        torch.tensor(is_held)[:, None, None],
        jacobian_of(local.direction)(points, near) * local.speed(speed).unsqueeze(2),
        jacobian_of(local.velocity)(points, near),
    )
    values = np.linalg.eigvals(slopes.detach().numpy()).astype(np.complex128)
    values = np.take_along_axis(values, np.argsort(-values.real, axis=1, kind="stable"), axis=1)
    kind = np.array([_kind(row) for row in values], dtype=np.str_)
    distance, code = local.region.look(points, near)
    away = cdist(ends.numpy(), points.numpy())
    arrived = away.argmin(axis=1)[away.min(axis=1) < local.spacing]
    basin = np.bincount(arrived, minlength=len(points)) / len(ends)
    order = np.lexsort((-basin, is_held, kind != "saddle", ~np.char.startswith(kind, "stable")))
    return FixedPoints(
        x=points.numpy()[order],
        eigenvalues=values[order],
        kind=kind[order],
        held=is_held[order],
        speed=(speed.norm(dim=1).detach().numpy() / local.mean_speed)[order],
        basin=basin[order],
        distance=distance.numpy().astype(np.float64)[order],
        time=local.region.time_around(points, near).numpy()[order],
        cluster=np.array([names[i] if i >= 0 else "" for i in code.tolist()], dtype=np.str_)[order],
        basis=basis,
    )


def _unique(
    local: LocalField, zeros: torch.Tensor, held: torch.Tensor, max_distance: float
) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Return the points near the data, zeros before what is held, and which are held."""
    both = torch.cat([zeros, held])
    is_held = np.arange(len(both)) >= len(zeros)
    if not len(both):
        return both, is_held
    inside = local.region.look(both, local.region.nearest(both))[0] <= max_distance
    both, is_held = both[inside], is_held[inside.numpy()]
    kept = _apart(both, SAME * local.spacing)
    first = cdist(kept.numpy(), both.numpy()).argmin(axis=1) if len(kept) else np.empty(0, dtype=np.int64)
    return kept, is_held[first]


def _kind(values: NDArray[np.complex128]) -> Kind:
    """Return what a fixed point with these eigenvalues is."""
    size = max(float(np.abs(values).max()), TINY)
    up, down = values.real > ROUNDING * size, values.real < -ROUNDING * size
    turns = abs(values[0].imag) > TURNING * size
    if up.any() and down.any():
        return "saddle"
    if down.all():
        return "stable focus" if turns else "stable node"
    if up.all():
        return "unstable focus" if turns else "unstable node"
    return "undecided" if not up.any() else "saddle"
