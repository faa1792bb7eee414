"""Transport of all windows of 3000 cells against one `ot.sinkhorn` call per pair of windows, the same problems."""

from __future__ import annotations

import numpy as np
import ot
from common import alternate, bifurcation, quiet

from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.velocity import compute_velocity
from cellrank_velot.transport.windows import WindowOptions, Windows, build_windows

EPSILON, TOL, MAX_ITER = 0.05, 1e-6, 500


def one_by_one(x: np.ndarray, time: np.ndarray, windows: Windows) -> np.ndarray:
    """Return the mean displacement of each cell, one call of POT per pair."""
    total, count = np.zeros_like(x), np.zeros(x.shape[0])
    for source_window, target_window in windows.pairs:
        source, target = windows.cells(source_window), windows.cells(target_window)
        cost = ot.dist(x[source], x[target])
        cost /= cost.max()
        cost += time[source][:, None] > time[target]
        plan = ot.sinkhorn([], [], cost, EPSILON, numItermax=MAX_ITER, stopThr=TOL, warn=False)
        total[source] += plan @ x[target] / plan.sum(1, keepdims=True) - x[source]
        count[source] += 1
    return total / np.maximum(count, 1)[:, None]


def main() -> None:
    """Print seconds and ratio with the default windows and with those of VelOT."""
    quiet()
    adata = bifurcation()
    x, time = np.asarray(adata.obsm["X_pca"], dtype=float), adata.obs["pseudotime"].to_numpy(dtype=float)
    time = (time - time.min()) / np.ptp(time)
    for name, options in (("default", {}), ("VelOT's", {"time_lag": None, "overlap_clusters": 1})):
        windows = build_windows(x, time, WindowOptions(**options))
        kwargs = {"epsilon": EPSILON, "tol": TOL, "max_iter": MAX_ITER, "reach": None, "relaxation": 1.0}
        ours, theirs, ratio = alternate(
            lambda windows=windows, kwargs=kwargs: compute_velocity(
                x, time, windows, options=TransportOptions(**kwargs)
            ),
            lambda windows=windows: one_by_one(x, time, windows),
        )
        print(
            f"{name} windows, {windows.n_pairs} pairs of {np.unique(windows.sizes)[-1]} cells: "
            f"ours {ours:.3f} s, ot.sinkhorn {theirs:.3f} s, {ratio:.1f} times"
        )


if __name__ == "__main__":
    main()
