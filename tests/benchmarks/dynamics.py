"""Trajectories and flow: fates against CellRank's and the truth, ends on the pancreas, and VelOT's.

Writes docs/dynamics.md. `--quick` takes two seeds and leaves the page alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import time
from pathlib import Path
from typing import Any

import anndata as ad
import cellrank as cr
import numpy as np
import pandas as pd
from common import DATA, pancreas, quiet, table

import cellrank_velot as cv
from cellrank_velot import datasets
from cellrank_velot.dynamics import Status

PAGE = Path(__file__).parents[2] / "docs" / "dynamics.md"
HORMONES = ["Alpha", "Beta", "Delta", "Epsilon"]
QUIET = {"show_progress_bar": False}


def latest(kernel: cv.OTVelocityKernel, clusters: list[str], n_cells: int = 10) -> dict[str, list[str]]:
    """Return the latest cells of each cluster, as its terminal state."""
    obs = kernel.adata.obs
    order = obs.index[np.argsort(kernel.cells.time)]
    return {name: list(order[(obs.loc[order, "clusters"] == name).to_numpy()][-n_cells:]) for name in clusters}


def fates_of_cellrank(kernel: cv.OTVelocityKernel, source: str, lineages: list[str]) -> np.ndarray:
    """Return the mean fate probabilities of a cluster, to the latest cells of each lineage."""
    estimator = cr.estimators.GPCCA(kernel)
    estimator.set_terminal_states(latest(kernel, lineages))
    estimator.compute_fate_probabilities(use_petsc=False, solver="direct", show_progress_bar=False)
    names = [str(name) for name in estimator.fate_probabilities.names]
    probabilities = pd.DataFrame(np.asarray(estimator.fate_probabilities.X), columns=names)
    chosen = (kernel.adata.obs["clusters"] == source).to_numpy()
    return probabilities.loc[chosen].mean().reindex(lineages, fill_value=0.0).to_numpy()


def fates(seeds: list[int]) -> pd.DataFrame:
    """Return the probability of the first of two equally likely fates: CellRank's, and the flow's by diffusion."""
    lineages, rows = ["Fate A", "Fate B"], []
    for time_key in ("dpt_pseudotime", "true_time"):
        for seed in seeds:
            adata = datasets.bifurcation(random_state=seed)
            kernel = cv.OTVelocityKernel(adata, time_key=time_key).compute_transition_matrix(**QUIET)
            row: dict[str, Any] = {"time": time_key, "seed": seed}
            row["CellRank"] = round(fates_of_cellrank(kernel, "Progenitor", lineages)[0], 2)
            for diffusion in (0.5, 1.0, 2.0):
                flow = kernel.simulate_flow(
                    source_cluster="Progenitor",
                    terminal_clusters=lineages,
                    diffusion=diffusion,
                    n_particles=500,
                    key_added=None,
                    **QUIET,
                )
                found = flow.fates(lineages)
                row[f"flow {diffusion:g}"] = round(found["probability"].iloc[0], 2)
                if diffusion == 1.0:
                    row["95 % interval"] = "{:.2f} to {:.2f}".format(*found[["low", "high"]].iloc[0])
                    row["without a fate"] = round(found["share"].iloc[-1], 2)
            rows.append(row)
            print(row, flush=True)
    return pd.DataFrame(rows)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Return mean absolute differences between the flow, CellRank and the truth, by time."""
    rows = []
    for key, part in found.groupby("time", sort=False):
        for name in ("CellRank", "flow 0.5", "flow 1", "flow 2"):
            difference = (part[name] - part["CellRank"]).abs()
            rows.append(
                {
                    "time": key,
                    "": name,
                    "from CellRank, mean": f"{difference.mean():.2f}",
                    "largest": f"{difference.max():.2f}",
                    "within 0.1": f"{(difference <= 0.1).sum()} of {len(part)}",
                    "from the truth, mean": f"{(part[name] - 0.5).abs().mean():.2f}",
                }
            )
    return pd.DataFrame(rows)


def describe(paths: Any, clusters: list[str]) -> dict[str, Any]:
    """Return where trajectories ended and how many stayed in the data."""
    frame = paths.to_frame()
    stays = frame["status"] != Status.LEFT_DATA.message
    return {
        "trajectories": len(frame),
        f"ends in {' or '.join(clusters)}": f"{frame['end_cluster'].isin(clusters).mean():.0%}",
        "of those that stay": f"{frame.loc[stays, 'end_cluster'].isin(clusters).mean():.0%}" if stays.any() else "-",
        "left the data": f"{(~stays).mean():.0%}",
        "most frequent ends": ", ".join(
            f"{k} {v}" for k, v in frame["end_cluster"].value_counts().head(3).items() if v
        ),
    }


def ends() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return where trajectories and flow end on the pancreas."""
    kernel = cv.OTVelocityKernel(pancreas()).compute_transition_matrix(**QUIET)
    options = {"n_trajectories": 200, "key_added": None, **QUIET}
    forward = kernel.compute_trajectories(start_cluster="Ngn3 low EP", **options)
    there = pd.DataFrame([{"from": "Ngn3 low EP", **describe(forward, HORMONES)}])
    origin, rows = ["Ductal", "Ngn3 low EP"], []
    for name in HORMONES:
        backward = kernel.compute_trajectories(start_cluster=name, direction="backward", **options)
        rows.append({"from": name, **describe(backward, origin)})
    chances = []
    for source in ("Ngn3 low EP", "Pre-endocrine"):
        chances.append({"from": source, "": "CellRank", **shares(fates_of_cellrank(kernel, source, HORMONES))})
        for diffusion in (0.5, 1.0, 2.0):
            flow = kernel.simulate_flow(
                source_cluster=source,
                terminal_clusters=HORMONES,
                diffusion=diffusion,
                n_particles=500,
                key_added=None,
                **QUIET,
            )
            found = flow.fates(HORMONES)
            row = shares(found.loc[HORMONES, "probability"].to_numpy())
            chances.append({"from": source, "": f"flow {diffusion:g}", **row, "none": f"{found['share'].iloc[-1]:.2f}"})
    return there, pd.DataFrame(rows), pd.DataFrame(chances).fillna("")


def shares(values: np.ndarray) -> dict[str, str]:
    """Return probabilities by hormone-producing type."""
    return {name: f"{value:.2f}" for name, value in zip(HORMONES, values, strict=True)}


def against_velot(n: int = 50) -> pd.DataFrame:
    """Return processor seconds and ends of VelOT's trajectories and ours, on its preparation of the pancreas."""
    import velot

    adata = ad.read_h5ad(DATA / "pancreas_739.h5ad")
    with contextlib.redirect_stdout(io.StringIO()):
        adata = velot.pp.prepare(adata, root_cluster="Ductal")
        velot.tl.velocity(adata, verbose=False)
    kernel = cv.OTVelocityKernel(adata, time_key="pseudotime").fit_field(**QUIET)
    kernel.current_field(**QUIET)
    rows = []
    for direction, source in (("forward", "Ngn3 low EP"), ("backward", "Beta")):
        for n_steps in (200, 1000):
            start, told = time.process_time(), io.StringIO()
            with contextlib.redirect_stdout(told):
                velot.tl.compute_trajectories(
                    adata, start_cluster=source, direction=direction, n_trajectories=n, n_steps=n_steps
                )
            seconds = time.process_time() - start
            # It keeps no table of ends; it prints one.
            counts = re.findall(r"'([^']+)'\)?: (?:np\.int64\()?(\d+)", told.getvalue().split("clusters: ")[-1])
            ends = ", ".join(f"{name} {count}" for name, count in sorted(counts, key=lambda pair: -int(pair[1])))
            rows.append(
                {
                    "": "VelOT 1.0.0",
                    "from": f"{source}, {direction}",
                    "steps": str(n_steps),
                    "processor seconds": seconds,
                    "ends": ends,
                }
            )
        start = time.process_time()
        paths = kernel.compute_trajectories(
            start_cluster=source, direction=direction, n_trajectories=n, key_added=None, **QUIET
        )
        seconds = time.process_time() - start
        counts = paths.to_frame()["end_cluster"].value_counts()
        ends = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        rows.append(
            {"": "cellrank_velot", "from": f"{source}, {direction}", "processor seconds": seconds, "ends": ends}
        )
    return pd.DataFrame(rows).round({"processor seconds": 1}).fillna("")


def main() -> None:
    """Measure all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    quiet()
    there, back, chances = ends()
    print(there.to_string(), back.to_string(), chances.to_string(), sep="\n", flush=True)
    peers = against_velot()
    print(peers.to_string(), flush=True)
    found = fates([70, 71] if quick else list(range(70, 75)))
    short = summary(found)
    print(found.to_string(), short.to_string(), sep="\n")
    head, _, _ = PAGE.read_text().partition("<!-- figures -->") if PAGE.exists() else ("", "", "")
    if quick:
        return
    PAGE.write_text(
        f"{head}<!-- figures -->\n\n## Figures\n\nWritten by `python tests/benchmarks/dynamics.py`.\n\n"
        f"### The pancreas\n\nForward:\n\n{table(there)}\nBackward, to the progenitors:\n\n{table(back)}\n"
        f"Fates of the flow, by its diffusion, and CellRank's:\n\n{table(chances)}\n"
        "The same trajectories by VelOT 1.0.0, by Euler's method, and by us with the defaults (order 4), with VelOT's "
        f"preparation:\n\n{table(peers)}\n"
        "### Fates on simulated cells\n\nThe probability of one of two fates that are equally likely, from the "
        "progenitors of 2000 cells, seeds 70 to 74; differences are absolute:\n\n"
        f"{table(short)}"
    )


if __name__ == "__main__":
    main()
