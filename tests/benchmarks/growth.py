"""Growth, branches and descent of a process that is simulated cell by cell, and the circuit of MISA.

Writes a section of docs/time_series.md, about three minutes of one core: ``python tests/benchmarks/growth.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from common import DATA, quiet, table

import cellrank_velot as cv
from cellrank_velot.dynamics import labels_near

PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"
QUIET = {"show_progress_bar": False}
BRANCHES = ["Fate A", "Fate B"]
# Noise of the simulated cells and passes of the coupling.
SETTINGS = ((0.2, 4), (0.3, 4), (0.3, 1))
SEEDS = (0, 1)


def kernel_of(adata: ad.AnnData, n_passes: int = 4) -> cv.OTVelocityKernel:
    """Return a kernel that knows how large the populations were."""
    known = adata.uns["birth_death"]
    mass = dict(zip(map(float, known["times"]), map(float, known["mass"]), strict=True))
    kernel = cv.OTVelocityKernel(adata, time_key="day", time_kind="experimental")
    return kernel.compute_velocity(mass=mass, n_passes=n_passes, **QUIET).fit_field(**QUIET)


def branches(kernel: cv.OTVelocityKernel) -> pd.Series:
    """Return the mass of each branch on the last day, simulated forward from the first one, over the true one."""
    adata, known = kernel.adata, kernel.adata.uns["birth_death"]
    last = adata.obs["day"].to_numpy() == adata.obs["day"].max()
    clusters = adata.obs["clusters"].astype("category").cat
    codes = clusters.codes.to_numpy().astype(np.int64)[last]
    paths = kernel.simulate_process(n_particles=6000, **QUIET)
    shares = labels_near(paths.ends, adata.obsm["X_pca"][last], codes, len(clusters.categories))
    mass = pd.Series(shares.T @ paths.weights / paths.n_particles, clusters.categories)
    seen = np.bincount(codes, minlength=len(mass)) / last.sum() * known["mass"][-1]
    return (mass / seen)[BRANCHES]


def growth() -> Iterator[dict[str, Any]]:
    for sigma, n_passes in SETTINGS:
        found = []
        for seed in SEEDS:
            adata = cv.datasets.birth_death(n_cells=800, random_state=seed, sigma=sigma)
            kernel = kernel_of(adata, n_passes)
            truth = adata.obs["true_growth"].to_numpy()
            slope = np.polyfit(truth, kernel.growth, 1)[0]
            found.append((np.corrcoef(kernel.growth, truth)[0, 1], slope, branches(kernel)))
        row = {
            "noise, passes": f"{sigma}, {n_passes}",
            "correlation of a cell's growth with the truth": ", ".join(f"{r:.2f}" for r, _, _ in found),
            "slope": ", ".join(f"{slope:.2f}" for _, slope, _ in found),
            "mass of the two branches over the true one": ", ".join(
                " and ".join(f"{share:.2f}" for share in shares) for _, _, shares in found
            ),
        }
        print(row, flush=True)
        yield row


def descent() -> Iterator[dict[str, Any]]:
    """Compare the tables of founders and fates: forward, backward and of the simulated population."""
    for n_cells in (300, 150):
        for seed in SEEDS:
            adata = cv.datasets.birth_death(n_cells=n_cells, random_state=seed)
            known, kernel = adata.uns["birth_death"], kernel_of(adata)
            first, last = (
                adata.obs["clusters"][adata.obs["day"] == known["times"][end]].value_counts(normalize=True)
                for end in (0, -1)
            )
            for noise in (1.0, 2.0):
                ahead = kernel.fate_probabilities(group_by="clusters", n_particles=20, noise=noise, **QUIET)
                back = kernel.ancestry(group_by="clusters", n_particles=20, noise=noise, **QUIET)
                number = ahead.growth * first.reindex(ahead.growth.index)
                tables = {
                    "forward": ahead.table.mul(number / number.sum(), axis=0),
                    "backward": back.table.mul(last.reindex(back.table.index), axis=0).T,
                    "true": known["lineages"] / known["lineages"].to_numpy().sum(),
                }
                a, b, truth = (
                    tables[name].reindex(index=["Progenitor A", "Progenitor B"], columns=BRANCHES).fillna(0).to_numpy()
                    for name in tables
                )
                row = {"cells a day": n_cells, "seed": seed, "`noise`": f"{noise:g}"}
                row |= {"forward from backward": f"{np.abs(a - b).max():.2f}"}
                row |= {"forward from the lineages": f"{np.abs(a - truth).max():.2f}"}
                row |= {"backward from the lineages": f"{np.abs(b - truth).max():.2f}"}
                print(row, flush=True)
                yield row


def circuit() -> Iterator[dict[str, Any]]:
    """Yield the Jacobian of the drift of two genes that repress each other and activate themselves."""
    adata = ad.read_h5ad(DATA / "misa_time_series.h5ad")
    sc.pp.neighbors(adata, use_rep="X_state")
    kernel = cv.OTVelocityKernel(adata, time_key="day", time_kind="experimental", basis="X_state").fit_field(**QUIET)
    for days, cells in (("2", {"day": [2, 2]}), ("all", None)):
        for degradation in (1.0, 0.0):
            found = kernel.compute_regulation(names=["X", "Y"], cells=cells, degradation=degradation, groups="clusters")
            matrix = np.asarray(found.matrix(found.groups[0]), dtype=float)
            signs = "yes" if (np.sign(matrix) == [[1, -1], [-1, 1]]).all() else "no"
            row = {"cells of day": days, "decay taken off": degradation, "Jacobian": np.round(matrix, 2).tolist()}
            row |= {"all four signs right": signs}
            print(row, flush=True)
            yield row


def main() -> None:
    quiet()
    warnings.simplefilter("ignore")
    head, _, rest = PAGE.read_text().partition("<!-- known -->")
    tail = rest.partition("<!-- end of known -->")[2]
    parts = [table(pd.DataFrame(rows())) for rows in (growth, descent, circuit)]
    text = (
        f"{parts[0]}\nDescent: the largest difference in any entry of the table of founders and fates.\n\n{parts[1]}\n"
        "The circuit of MISA, two genes that repress each other and activate themselves: rows are the genes that are "
        f"acted on.\n\n{parts[2]}"
    )
    PAGE.write_text(f"{head}<!-- known -->\n\n{text}\n<!-- end of known -->{tail}")


if __name__ == "__main__":
    main()
