"""Values of a field at points, some at a time, in parallel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.device import as_tensor, in_parts, resolve_device
from cellrank_velot._utils.lazy import torch
from cellrank_velot._utils.parallel import blocks, run

__all__ = ["values_at"]

# Points of one task.
TASK_POINTS = 2**17
# Points that are evaluated at a time, to bound the memory, and to stay in the cache of a processor.
CHUNK_POINTS = {"cpu": 4096, "other": 2**17}


def values_at(
    field: Any,
    name: str,
    x: NDArray[np.float64],
    time: NDArray[np.float64] | float,
    device: str,
    n_jobs: int | None = None,
) -> NDArray[np.float64]:
    """Return values at positions ``[n_points, n_dims]`` of the method ``name`` of a field, such as ``"score_on"``."""
    where = resolve_device(device)
    x = np.ascontiguousarray(x, dtype=np.float64)
    times = np.ascontiguousarray(np.broadcast_to(np.asarray(time, dtype=np.float64), x.shape[:1]))
    parts = blocks(x.shape[0], TASK_POINTS) or [(0, 0)]
    found = run(_task, parts, (field, name, where, x, times), n_jobs=n_jobs if where.type == "cpu" else 1)
    return np.concatenate(list(found))


def _task(
    field: Any,
    name: str,
    device: torch.device,
    x: NDArray[np.float64],
    time: NDArray[np.float64],
    start: int,
    stop: int,
) -> NDArray[np.float64]:
    """Return the values at some of the points."""
    function = getattr(field, name)(device)
    size = CHUNK_POINTS["cpu" if device.type == "cpu" else "other"]
    parts = [range(start + first, start + last) for first, last in blocks(stop - start, size) or [(0, 0)]]

    def values(part: range) -> NDArray[Any]:
        at = slice(part.start, part.stop)
        return function(as_tensor(x[at], device), as_tensor(time[at], device)).cpu().numpy()

    with torch.no_grad():
        result = [found for _, found in in_parts(values, parts, "the values of the field")]
    return np.concatenate(result).astype(np.float64, copy=False)
