"""Raw velocity against VelOT's, on VelOT's windows and with its parameters.

VelOT pairs a window with itself where the last window of a cluster ends at its last cell; these pairs have no
direction and are taken from both.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import velot
from common import bifurcation, pancreas, quiet

from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.velocity import compute_velocity
from cellrank_velot.transport.windows import WindowOptions, Windows, build_windows


def main() -> None:
    """Print, for each data set, how many cells agree."""
    quiet()
    for name, adata in (("pancreas", pancreas()), ("bifurcation", bifurcation())):
        with contextlib.redirect_stdout(io.StringIO()):
            velot.tl.build_windows(adata)
            stored = adata.uns["velot_windows"]
            pairs = [pair for pair in stored["pairs"] if not np.array_equal(*pair)]
            n_self, stored["pairs"] = len(stored["pairs"]) - len(pairs), pairs
            velot.tl.compute_ot_velocity(adata)
        theirs = adata.obsm["velot_velocity_raw_pca"]
        x, time = np.asarray(adata.obsm["X_pca"], dtype=float), adata.obs["pseudotime"].to_numpy(dtype=float)
        ours = compute_velocity(
            x,
            time,
            Windows.from_pairs(pairs, time),
            adata.obsp["connectivities"].tocsr(),
            TransportOptions(lambda_knn=1.0, reach=None, relaxation=1.0),
        )
        known = np.linalg.norm(theirs, axis=1) > 0
        a, b = theirs[known], ours.velocity[known]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        n_clusters = max(5, min(30, len(x) // 100))
        rebuilt = build_windows(
            x, time, WindowOptions(n_clusters=n_clusters, time_lag=None, overlap_clusters=1, random_state=42)
        )
        print(
            f"{name}: {len(pairs)} pairs ({n_self} self-pairs of VelOT left out, our own windows: {rebuilt.n_pairs}), "
            f"{known.sum()} cells with a velocity in VelOT, {ours.n_forward.astype(bool).sum()} here; "
            f"cosine min {cosine.min():.6f}, median {np.median(cosine):.6f}, below 0.999: {(cosine < 0.999).sum()}"
        )


if __name__ == "__main__":
    main()
