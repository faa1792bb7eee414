"""Transition matrix of 10 000 cells of 30 dimensions against CellRank's `VelocityKernel(attr="obsm")`."""

from __future__ import annotations

import anndata as ad
import cellrank as cr
import numpy as np
import scanpy as sc
from common import alternate, quiet

from cellrank_velot.transitions import compute_transitions


def main(n_cells: int = 10_000, n_dims: int = 30, n_neighbors: int = 30) -> None:
    """Print seconds, ratio and the largest difference, for cosine and correlation."""
    quiet()
    cr.logging.set_verbosity(0) if hasattr(cr.logging, "set_verbosity") else None
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((n_cells, 1), dtype=np.float32))
    adata.obsm["X_pca"] = rng.normal(size=(n_cells, n_dims)) * np.linspace(3, 1, n_dims)
    adata.obsm["velocity"] = rng.normal(size=(n_cells, n_dims))
    sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_pca")
    kernel = cr.kernels.VelocityKernel(adata, attr="obsm", xkey="X_pca", vkey="velocity")
    for similarity in ("cosine", "correlation"):
        found = {}

        def ours(similarity: str = similarity, found: dict = found) -> None:
            result = compute_transitions(
                adata.obsm["X_pca"], adata.obsm["velocity"], adata.obsp["connectivities"], similarity=similarity
            )
            found["ours"] = result.matrix

        def theirs(similarity: str = similarity, found: dict = found) -> None:
            kernel._params = {}  # or the second run would only look at its cache
            kernel.compute_transition_matrix(similarity=similarity, show_progress_bar=False)
            found["theirs"] = kernel.transition_matrix

        a, b, ratio = alternate(ours, theirs, n=3)
        difference = abs(found["ours"] - found["theirs"]).max()
        print(
            f"{similarity}: {adata.obsp['connectivities'].nnz} edges, ours {a:.2f} s, VelocityKernel {b:.2f} s, "
            f"{ratio:.0f} times; largest difference of T {difference:.1e}"
        )


if __name__ == "__main__":
    main()
