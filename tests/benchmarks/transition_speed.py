"""Transition matrix of 10 000 cells of 30 dimensions against CellRank's `VelocityKernel(attr="obsm")`.

Then the Monte Carlo matrix against the deterministic one: what it costs, and its error by the number of samples.
`--cells` takes another number of cells.
"""

from __future__ import annotations

import argparse

import anndata as ad
import cellrank as cr
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from common import alternate, quiet

from cellrank_velot.transitions.matrix import compute_transitions
from cellrank_velot.transitions.options import TransitionOptions

SAMPLES = (8, 16, 32, 64, 128)


def simulate(n_cells: int, n_dims: int = 30, n_neighbors: int = 30) -> ad.AnnData:
    """Return random cells with random velocities."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((n_cells, 1), dtype=np.float32))
    adata.obsm["X_pca"] = rng.normal(size=(n_cells, n_dims)) * np.linspace(3, 1, n_dims)
    adata.obsm["velocity"] = rng.normal(size=(n_cells, n_dims))
    sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_pca")
    return adata


def against_cellrank(adata: ad.AnnData) -> None:
    """Print seconds, ratio and the largest difference, for cosine and correlation."""
    kernel = cr.kernels.VelocityKernel(adata, attr="obsm", xkey="X_pca", vkey="velocity")
    inputs = (adata.obsm["X_pca"], adata.obsm["velocity"], adata.obsp["connectivities"])
    for similarity in ("cosine", "correlation"):
        found = {}

        def ours(similarity: str = similarity, found: dict = found) -> None:
            found["ours"] = compute_transitions(
                *inputs, TransitionOptions(similarity=similarity, softmax_scale="median")
            ).matrix

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


def monte_carlo_cost(adata: ad.AnnData) -> None:
    """Print seconds of the Monte Carlo matrix and their ratio to the deterministic one."""
    inputs = (adata.obsm["X_pca"], adata.obsm["velocity"], adata.obsp["connectivities"])
    std = np.ones_like(adata.obsm["velocity"])
    for n_samples in SAMPLES:

        def sampled(n_samples: int = n_samples) -> None:
            compute_transitions(*inputs, TransitionOptions(model="monte_carlo", n_samples=n_samples), velocity_std=std)

        a, b, ratio = alternate(lambda: compute_transitions(*inputs), sampled)
        print(f"{n_samples} samples: deterministic {a:.2f} s, Monte Carlo {b:.2f} s, {ratio:.1f} times")


def monte_carlo_error(adata: ad.AnnData, n_rows: int = 300, n_plain: int = 2000) -> None:
    """Print the total variation from the mean over 2000 plain samples, mean over rows, by size of the error."""
    x, velocity = adata.obsm["X_pca"], adata.obsm["velocity"]
    first = sp.diags((np.arange(adata.n_obs) < n_rows).astype(float))
    graph = sp.csr_matrix(first @ adata.obsp["connectivities"])
    usual = compute_transitions(x, velocity, graph)
    norm = np.linalg.norm(velocity, axis=1, keepdims=True) / np.sqrt(x.shape[1])
    for relative in (0.5, 1.0, 2.0):
        std = relative * norm * np.ones_like(velocity)

        def plain(n: int, seed: int, std: np.ndarray = std) -> sp.csr_matrix:
            rng = np.random.default_rng(seed)
            drawn = (velocity + std * rng.normal(size=std.shape) for _ in range(n))
            return (
                sum(
                    compute_transitions(x, v, graph, TransitionOptions(softmax_scale=usual.softmax_scale)).matrix
                    for v in drawn
                )
                / n
            )

        reference = plain(n_plain, seed=0)[:n_rows]

        def error(matrix: sp.csr_matrix, reference: sp.csr_matrix = reference) -> float:
            return 0.5 * abs(matrix[:n_rows] - reference).sum() / n_rows

        print(f"error of the velocity {relative:g} times its length: deterministic {error(usual.matrix):.4f}")
        for n in SAMPLES:
            found = compute_transitions(
                x, velocity, graph, TransitionOptions(model="monte_carlo", n_samples=n), velocity_std=std
            ).matrix
            print(f"  {n} samples: {error(found):.4f}, plain samples {error(plain(n, seed=1)):.4f}")
        print(f"  {n_plain} other plain samples: {error(plain(n_plain, seed=1)):.4f}")


def main() -> None:
    """Run all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    quiet()
    cr.logging.set_verbosity(0) if hasattr(cr.logging, "set_verbosity") else None
    adata = simulate(parser.parse_args().cells)
    against_cellrank(adata)
    monte_carlo_cost(adata)
    monte_carlo_error(simulate(1000))


if __name__ == "__main__":
    main()
