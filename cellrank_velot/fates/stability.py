"""How often a group of cells is an end when only half of the cells are there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from cellrank_velot.fates.ends import EndOptions, Ends, find_ends
from cellrank_velot.graph.smoothing import SmoothedCells

__all__ = ["with_stability"]


def with_stability(ends: Ends, asked: tuple[Any, ...], options: EndOptions, *, show_progress_bar: bool = True) -> Ends:
    """Return the ends with the share of halves of the cells in which most of each candidate lies in an end.

    ``asked`` is what :func:`find_ends` takes before its options. Half of each cluster is drawn, so that small ones are
    there.
    """
    x, graph, time, cells, velocity, labels, roots = asked
    names = np.zeros(len(x), dtype=int) if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
    rng = np.random.default_rng(options.random_state)
    halves = options.halves_of(len(x))
    count = np.zeros(len(ends.candidates))
    for _ in tqdm(range(halves), desc="halves of the cells", unit="half", delay=1, disable=not show_progress_bar):
        half = _half(names, rng)
        place = np.full(len(x), -1)
        place[half] = np.arange(half.size)
        roots_there = None if roots is None else place[roots][place[roots] >= 0]
        found = find_ends(
            *(x[half], graph[half][:, half], time[half]),
            SmoothedCells(cells.x[half], cells.time[half], cells.graph[half][:, half]),
            velocity[half],
            None if labels is None else np.asarray(labels)[half],
            None if roots_there is None or not roots_there.size else roots_there,
            options,
        )
        inside = found.label >= 0
        for number, candidate in enumerate(ends.candidates):
            there = place[candidate.cells]
            count[number] += bool(inside[there[there >= 0]].sum() >= 0.5 * max((there >= 0).sum(), 1))
    if not halves:
        return ends
    shares = zip(ends.candidates, count / halves, strict=True)
    return replace(ends, candidates=tuple(replace(of, stable=float(share)) for of, share in shares))


def _half(names: NDArray[np.integer[Any]], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return half of the cells of each name, rounded up, in their order."""
    order = rng.permutation(names.size)
    by_name = order[np.argsort(names[order], kind="stable")]
    first = np.searchsorted(names[by_name], names[by_name])  # where its name begins
    rank = np.arange(names.size) - first
    sizes = np.bincount(names)[names[by_name]]
    return np.sort(by_name[rank < (sizes + 1) // 2])
