"""Leave each inner time point out of four time series and foretell it from the others, beside the peers.

Prints a table and writes ``docs/time_series.md`` between its markers. `--quick` takes one seed and no peers, `--field`
the field alone beside exact transport: both only print. `--passes` compares one pass of the couplings with four on
series apart from these, and writes its own table. `--speed` measures seconds and memory of couplings and field.
Needs the shared data, and torchcfm for the peers.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from common import DATA, quiet, table
from joblib import Parallel, delayed
from process_fit import read as read_series

from cellrank_velot.datasets import birth_death
from cellrank_velot.field import fit_process
from cellrank_velot.metrics import held_out_time, wasserstein
from cellrank_velot.metrics.time_points import HeldOutMethod
from cellrank_velot.timeseries.couplings import couple_snapshots
from cellrank_velot.timeseries.snapshots import build_snapshots

SETS = {"zebrafish": "X_latent", "emt": "X_pca", "mouse_hematopoiesis": "X_latent", "misa": "X_state"}
SEEDS = (0, 1, 2)
METHODS: tuple[HeldOutMethod, ...] = ("paths", "field", "exact", "previous")
N_CELLS = 1500
# Training of the peers; an exact transport of 256 cells in each of twice as many steps took ten times as long.
N_STEPS, BATCH_SIZE = 1000, 128
PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"
MARKS = ("<!-- held-out: begin -->\n", "<!-- held-out: end -->\n")
# Noise, difference of growth between the fates, and dimensions of simulated series; and series of others.
SIMULATED = ((0.2, 0.6, 5), (0.2, 1.2, 2), (0.3, 0.0, 2), (0.3, 1.2, 10), (0.3, 2.0, 2))
OF_OTHERS = ("dyngen_growth", "toy_branching_2d")
PASS_MARKS = ("<!-- passes: begin -->\n", "<!-- passes: end -->\n")


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and times of a series."""
    adata = ad.read_h5ad(DATA / f"{name}_time_series.h5ad")
    return np.asarray(adata.obsm[SETS[name]], dtype=np.float64), adata.obs["day"].to_numpy(dtype=np.float64)


def flow_matching(kind: str, x: np.ndarray, times: np.ndarray, point: float, seed: int) -> np.ndarray:
    """Return the cells before a time, moved to it by torchcfm's flow matching on the other time points."""
    from torchcfm.conditional_flow_matching import (
        ExactOptimalTransportConditionalFlowMatcher,
        SchrodingerBridgeConditionalFlowMatcher,
    )

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # torchcfm draws its pairs from it
    rng = np.random.default_rng(seed)
    points = np.unique(times)
    centre, scale = x.mean(axis=0), x.std()
    snapshots = [torch.tensor((x[times == t] - centre) / scale, dtype=torch.float32) for t in points]
    matcher = (
        ExactOptimalTransportConditionalFlowMatcher(sigma=0.1)
        if kind == "OT-CFM"
        else SchrodingerBridgeConditionalFlowMatcher(sigma=0.5, ot_method="exact")
    )
    sizes = [x.shape[1] + 1, 64, 64, 64]
    layers = [m for a, b in zip(sizes[:-1], sizes[1:], strict=True) for m in (torch.nn.Linear(a, b), torch.nn.SELU())]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(64, x.shape[1]))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(N_STEPS):
        loss = torch.zeros(())
        for k in range(points.size - 1):
            here, there = (s[torch.as_tensor(rng.integers(len(s), size=BATCH_SIZE))] for s in snapshots[k : k + 2])
            share, at, velocity = matcher.sample_location_and_conditional_flow(here, there)
            length = points[k + 1] - points[k]
            clock = (points[k] + share * length - points[0]) / (points[-1] - points[0])
            loss = loss + (network(torch.cat([at, clock[:, None]], 1)) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = int(np.searchsorted(points, point)) - 1
    length, share = (
        points[before + 1] - points[before],
        (point - points[before]) / (points[before + 1] - points[before]),
    )
    moving = snapshots[before][torch.as_tensor(rng.permutation(len(snapshots[before]))[:N_CELLS])]
    with torch.no_grad():
        for step in range(100):
            clock = (points[before] + (step + 0.5) / 100 * share * length - points[0]) / (points[-1] - points[0])
            moving = moving + network(torch.cat([moving, torch.full((len(moving), 1), clock)], 1)) * share / 100
    return moving.double().numpy() * scale + centre


def run(name: str, seed: int, peers: bool, methods: Sequence[HeldOutMethod] = METHODS) -> pd.DataFrame:
    """Return the distances of all methods at the inner time points of a series."""
    quiet()
    torch.set_num_threads(1)
    x, times = read(name)
    rows = held_out_time(x, times, methods=methods, n_cells=N_CELLS, random_state=seed)
    for point in np.unique(times)[1:-1] if peers else ():
        # The same cells as in `held_out_time` are the truth.
        there, others = x[times == point], times != point
        rng = np.random.default_rng(seed)
        truth = there if len(there) <= N_CELLS else there[rng.choice(len(there), N_CELLS, replace=False)]
        for kind in ("OT-CFM", "SB-CFM"):
            w1, w2 = wasserstein(flow_matching(kind, x[others], times[others], point, seed), truth)
            rows.loc[len(rows)] = [point, kind, w1, w2, np.nan]
    return rows.assign(data=name, seed=seed)


def speed() -> None:
    """Print seconds and peak memory of couplings and field on the largest series, on one thread."""
    torch.set_num_threads(1)
    x, times = read("emt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    couplings, _ = couple_snapshots(x, times, build_snapshots(times))
    middle = time.perf_counter()
    fit_process(couplings, x)
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(x)} cells: couplings {middle - start:.1f} s, field {end - middle:.1f} s, ", end="")
    print(f"peak {after / 2**20:.2f} GiB, {(after - before) / 2**20:.2f} GiB of it theirs")


def passes() -> pd.DataFrame:
    """Return W1 of paths relative to exact transport, of one pass and of four, on series other than SETS."""
    rows = []
    for case in (*SIMULATED, *OF_OTHERS):
        ratios = []
        for seed in SEEDS:
            if isinstance(case, str):
                name, (x, times) = case, read_series(case, seed)
            else:
                sigma, contrast, n_dims = case
                name = f"birth and death, noise {sigma}, growth {contrast}, {n_dims} dimensions"
                options = {"n_dims": n_dims, "sigma": sigma, "growth_contrast": contrast}
                adata = birth_death(times=(0.0, 1.0, 2.0, 3.0, 4.0), **options, random_state=100 + seed)
                x, times = adata.obsm["X_pca"], adata.obs["day"].to_numpy(dtype=np.float64)
            found = [
                held_out_time(
                    x, times, methods=methods, n_cells=N_CELLS, coupling_options={"n_passes": n}, random_state=seed
                ).set_index(["time", "method"])["w1"]
                for n, methods in ((1, ["exact", "paths"]), (4, ["paths"]))
            ]
            one, four = (w1.xs("paths", level="method") / found[0].xs("exact", level="method") for w1 in found)
            ratios.append((one.mean(), four.mean(), (one < four).sum(), one.size))
        one, four = (np.array(ratios)[:, :2]).mean(axis=0)
        better, n = np.array(ratios, dtype=int)[:, 2:].sum(axis=0)
        ratio = {"one pass": f"{one:.2f}", "four passes": f"{four:.2f}"}
        rows.append({"series": name, **ratio, "one is nearer": f"{better} of {n}"})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--speed", action="store_true", help="seconds and memory on the largest series, nothing else")
    parser.add_argument("--field", action="store_true", help="the field alone, beside exact transport")
    parser.add_argument("--passes", action="store_true", help="one pass of the couplings and four, on other series")
    options = parser.parse_args()
    if options.speed:
        quiet()
        speed()
        return
    if options.passes:
        quiet()
        torch.set_num_threads(1)
        write(table(passes()), PASS_MARKS)
        return
    seeds = SEEDS[:1] if options.quick else SEEDS
    if options.field:
        parts = [run(name, seed, peers=False, methods=["field", "exact"]) for seed in seeds for name in sorted(SETS)]
        print(table(ratios(pd.concat(parts))))
        return
    tasks = [(name, seed) for name in sorted(SETS) for seed in seeds]
    found = Parallel(options.jobs, verbose=10)(delayed(run)(*task, peers=not options.quick) for task in tasks)
    rows = pd.concat(found)
    text = report(rows)
    print(text)
    if not options.quick:
        write(text, MARKS)


def write(text: str, marks: tuple[str, str]) -> None:
    """Write a table to the page, between its marks."""
    page = PAGE.read_text()
    head, rest = page.split(marks[0])
    PAGE.write_text(head + marks[0] + text + marks[1] + rest.split(marks[1])[1])


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Return W1 of the field as means over seeds, and relative to exact transport, the mean of all last."""
    mean = rows.pivot_table(index=["data", "time"], columns="method", values="w1").reset_index()
    mean["field / exact"] = mean["field"] / mean["exact"]
    mean.loc[len(mean)] = ["mean", np.nan, *mean[["exact", "field", "field / exact"]].mean()]
    return mean.round(3)


def report(rows: pd.DataFrame) -> str:
    """Return W1 as means over seeds, and relative to exact transport."""
    names = {
        "paths": "paths (default)",
        "field": "field",
        "exact": "exact OT, straight",
        "previous": "time point before",
    }
    rows = rows.assign(method=rows["method"].replace(names))
    mean = rows.pivot_table(index=["data", "time"], columns="method", values="w1", sort=False)
    each = rows.pivot_table(index=["data", "time", "seed"], columns="method", values="w1", sort=False)
    reference = "exact OT, straight"
    ratio = each.div(each[reference], axis=0)
    spread = ratio.groupby(level=["data", "time"], sort=False).agg(["min", "max"])
    order = [column for column in [*names.values(), "OT-CFM", "SB-CFM"] if column in mean]
    shown = pd.DataFrame({"data": [d for d, _ in mean.index], "time": [f"{t:g}" for _, t in mean.index]})
    for column in order:
        shown[f"W1 {column}"] = [f"{value:.3f}" for value in mean[column]]
    shown["paths / exact"] = [f"{value:.2f}" for value in mean[names["paths"]] / mean[reference]]
    low, high = (spread[(names["paths"], end)] for end in ("min", "max"))
    shown["over seeds"] = [f"{a:.2f} to {b:.2f}" for a, b in zip(low, high, strict=True)]
    relative = mean.div(mean[reference], axis=0)
    summary = pd.DataFrame(
        {
            "method": order,
            "mean ratio to exact OT": [f"{relative[column].mean():.2f}" for column in order],
            "better than exact OT": [f"{(relative[column] < 1).sum()} of {len(relative)}" for column in order],
        }
    )
    return table(shown) + "\n" + table(summary)


if __name__ == "__main__":
    main()
