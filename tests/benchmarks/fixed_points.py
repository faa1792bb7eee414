"""Fixed points of learnt fields against the ends that are known, and actions against closed forms.

Writes the tables at the end of docs/fixed_points.md. `--quick` takes one set and writes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from common import bifurcation, pancreas, quiet, table

import cellrank_velot as cv
from cellrank_velot.datasets.circuit import BIFURCATION, TREE, draw_network
from cellrank_velot.dynamics import ActionOptions, FixedPoints, find_fixed_points, find_least_action_path
from cellrank_velot.field import FieldOptions, fit_field

DOCS = Path(__file__).parents[2] / "docs"
QUIET = {"show_progress_bar": False}
CIRCUITS = {
    "bifurcation": (BIFURCATION, ["Fate A", "Fate B"]),
    "tree": (TREE, [f"Fate {n}" for n in ("A1", "A2", "B1", "B2")]),
}
ENDS = {"pancreas": ["Alpha", "Beta", "Delta", "Epsilon"], "shared": ["A", "B", "Trans"]}
# A cell is slow where its speed is the least within two steps of the graph and below this share of the mean.
SLOW = 0.5


def circuit_ends(name: str, seed: int, adata: ad.AnnData) -> dict[str, np.ndarray]:
    """Return where the equations of a circuit come to rest, in the basis."""
    circuit, ends = CIRCUITS[name]
    network = draw_network(circuit, adata.n_vars, np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0]))
    found = {}
    for end in ends:
        gene = end.replace(" ", "")
        state = network.start({gene: 1.0, f"Branch{gene[4]}": 1.0} if name == "tree" else {gene: 1.0})
        for _ in range(4000):
            state = state + 0.02 * network.drift(state[None])[0]
        found[end] = (network.express(state) - np.asarray(adata.X).mean(axis=0)) @ adata.varm["PCs"]
    return found


def slow_ends(kernel: Any, labels: np.ndarray, ends: list[str]) -> str:
    """Return how many ends have a cell of least speed, and how many such cells there are elsewhere."""
    speed = np.linalg.norm(kernel.velocity, axis=1)
    graph = kernel.connectivities.sign()
    reach = (graph + graph @ graph).tocsr()
    lowest = np.array(
        [speed[reach.indices[a:b]].min() for a, b in zip(reach.indptr[:-1], reach.indptr[1:], strict=True)]
    )
    at = labels[(speed <= lowest) & (speed < SLOW * speed.mean())]
    return f"{sum(end in at for end in ends)} (+{int((~np.isin(at, ends)).sum())})"


def row(name: str, points: FixedPoints, ends: list[str], known: dict[str, np.ndarray], slow: str) -> dict[str, Any]:
    """Return a row of the table."""
    stable = points.cluster[points.stable].tolist()
    apart = (
        np.mean([np.linalg.norm(a - b) for a in known.values() for b in known.values() if a is not b]) if known else 1.0
    )
    off = [
        np.linalg.norm(points.x[points.stable & (points.cluster == end)] - place, axis=1).min() / apart
        for end, place in known.items()
        if end in stable
    ]
    return {
        "cells": name,
        "known ends": len(ends),
        "found": sum(end in stable for end in ends),
        "others": len(stable) - sum(end in stable for end in ends),
        "saddles": int((points.kind == "saddle").sum()),
        "zeros of the velocity": int((~points.held).sum()),
        "off by": f"{np.mean(off):.2f}" if off else "",
        "ends with a slow cell (+ elsewhere)": slow,
    }


def of_kernel(
    name: str, adata: ad.AnnData, ends: list[str], known: dict[str, np.ndarray], **options: Any
) -> dict[str, Any]:
    """Return the row of a learnt field."""
    kernel = cv.OTVelocityKernel(adata, **options).fit_field(**QUIET)
    slow = slow_ends(kernel, adata.obs["clusters"].astype(str).to_numpy(), ends)
    return row(name, kernel.fixed_points(cluster_key="clusters"), ends, known, slow)


def fixed_points(quick: bool) -> pd.DataFrame:
    """Return what is found on each set."""
    rows = []
    for name, seeds in (("bifurcation", range(1 if quick else 5)), ("tree", range(0 if quick else 3))):
        for seed in seeds:
            adata = getattr(cv.datasets, name)(random_state=seed)
            rows.append(of_kernel(f"{name}, seed {seed}", adata, CIRCUITS[name][1], circuit_ends(name, seed, adata)))
            print(rows[-1], flush=True)
    if quick:
        return pd.DataFrame(rows)
    rows.append(of_kernel("pancreas", pancreas(), ENDS["pancreas"], {}))
    adata = bifurcation()
    rows.append(of_kernel("shared, its pseudotime", adata, ENDS["shared"], {}, time_key="pseudotime"))
    rows.append(of_kernel("shared, its true time", adata, ENDS["shared"], {}, time_key="true_time"))
    x, time, truth = adata.obsm["X_pca"], adata.obs["pseudotime"].to_numpy(), adata.obsm["true_velocity_pca"]
    field = fit_field(
        x, time, truth, np.ones(len(x)), adata.obsp["connectivities"], options=FieldOptions(use_time=False)
    )
    points = find_fixed_points(field, x, time, clusters=adata.obs["clusters"])
    rows.append(row("shared, a field of its true drift", points, ENDS["shared"], {}, ""))
    return pd.DataFrame(rows)


class Wells:
    """The drift of the potential h (x^2 - 1)^2 + 2 (y - bend (1 - x^2))^2."""

    def __init__(self, height: float, bend: float) -> None:
        self.height, self.bend = height, bend

    def on(self, device: Any) -> Any:
        """Return it as a function of tensors."""

        def drift(x: torch.Tensor, _time: torch.Tensor) -> torch.Tensor:
            off = x[:, 1] - self.bend * (1 - x[:, 0] ** 2)
            along = 4 * self.height * x[:, 0] * (x[:, 0] ** 2 - 1) + 8 * self.bend * off * x[:, 0]
            return -torch.stack([along, 4 * off], dim=1)

        return drift


def actions() -> pd.DataFrame:
    """Return the actions between the wells and from the saddle down."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.uniform(-1.6, 1.6, 600), rng.uniform(-1, 1.5, 600)])
    rows = []
    for height, bend, n_points in ((1, 0, 100), (3, 0, 100), (1, 0.7, 50), (1, 0.7, 100), (1, 0.7, 200)):
        options = ActionOptions(confine=0, diffusion=1.0, n_points=n_points)
        wells = (np.array([-1.0, 0.0]), np.array([1.0, 0.0]))
        path = find_least_action_path(Wells(height, bend), x, np.zeros(600), *wells, options)
        down = find_least_action_path(Wells(height, bend), x, np.zeros(600), np.array([-0.01, bend]), wells[0], options)
        rows.append(
            {
                "barrier": height,
                "bend of the valley": bend,
                "points": n_points,
                "expected": 2 * height,
                "there": f"{path.action:.3f}",
                "back": f"{path.reverse_action:.3f}",
                "straight": f"{path.straight_action:.3f}",
                "down from the saddle": f"{down.action:.4f}",
                "from the saddle at its nearest": f"{np.linalg.norm(path.x - [0, bend], axis=1).min():.3f}",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    quiet()
    text = (
        "## Figures\n\nWritten by `python tests/benchmarks/fixed_points.py`.\n\n### Ends of learnt fields\n\n"
        f"{table(fixed_points(quick))}\n### Actions between two wells\n\n{table(actions())}"
    )
    print(text)
    if not quick:
        page = DOCS / "fixed_points.md"
        head = page.read_text(encoding="utf-8").partition("<!-- figures -->\n")[0]
        page.write_text(f"{head}<!-- figures -->\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
