"""Roll the cells of the first time point through whole series, and compare with the cells that were there.

W1 is the exact Wasserstein-1 distance, mean over all later times: to the cells that the field was trained on, and to a
fifth of each time point that it never saw. The floor is the distance between those two groups of cells. Prints a table
and writes ``docs/time_series.md`` between its markers. Needs the shared data. `--quick` takes one seed, `--sets` some
of the sets; both only print.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import ot
import pandas as pd
import torch
from common import DATA, quiet, table
from joblib import Parallel, delayed

from cellrank_velot.dynamics import SimulationOptions, simulate_process
from cellrank_velot.field import ProcessOptions, fit_process
from cellrank_velot.timeseries.couplings import couple_snapshots
from cellrank_velot.timeseries.snapshots import build_snapshots

FILES = {"zebrafish": "X_latent", "emt": "X_pca", "mouse_hematopoiesis": "X_latent", "misa": "X_state"}
SETS = ("dyngen_growth", *FILES, "toy_branching_2d", "lotka_volterra", "repressilator")
SEEDS = (0, 1, 2)
# Cells of a time point, where there are more: exact distances are slow.
N_CELLS = 600
HELD_OUT = 0.2
# Times the automatic diffusion, and particles: many where figures count, fewer where no explosion is to be shown.
DIFFUSIONS = (0.01, 0.1, 1.0, 10.0)
N_PARTICLES, N_ELSEWHERE = 2000, 500
PAGE = Path(__file__).parents[2] / "docs" / "time_series.md"
MARKS = ("<!-- fit: begin -->\n", "<!-- fit: end -->\n")


def read(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and times of a series, of large ones some of the cells."""
    folder = DATA / "series"
    if name in FILES:
        adata = ad.read_h5ad(DATA / f"{name}_time_series.h5ad")
        x, times = np.asarray(adata.obsm[FILES[name]], dtype=np.float64), adata.obs["day"].to_numpy(dtype=np.float64)
    elif (folder / f"{name}.csv").exists():
        frame = pd.read_csv(folder / f"{name}.csv")
        frame = frame[frame["condition"] == "control"] if "condition" in frame else frame
        columns = [column for column in frame if column[0] in "xs" and column[-1].isdigit()]
        x = frame[columns].to_numpy(dtype=np.float64)
        times = frame["samples" if "samples" in frame else "time"].to_numpy(dtype=np.float64)
    else:
        series = np.load(folder / f"{name}.npz")["Xs"].astype(np.float64)
        x, times = series.reshape(-1, series.shape[2]), np.repeat(np.arange(len(series)), series.shape[1]).astype(float)
    rng = np.random.default_rng(seed)
    some = np.concatenate([rng.permutation(np.flatnonzero(times == t))[:N_CELLS] for t in np.unique(times)])
    return x[some], times[some]


def distance(x: np.ndarray, weights: np.ndarray, y: np.ndarray) -> float:
    """Return the exact Wasserstein-1 distance of weighted particles to cells."""
    masses = weights / weights.sum(), np.full(len(y), 1 / len(y))
    return float(ot.emd2(*masses, ot.dist(x, y, "euclidean"), numItermax=1_000_000))


def run(name: str, seed: int, held_out: float) -> list[dict[str, object]]:
    """Return the distances of one fit at all later times, by the diffusion of the process."""
    quiet()
    torch.set_num_threads(1)
    x, times = read(name, seed)
    points, rng = np.unique(times), np.random.default_rng(seed)
    unseen = np.zeros(times.size, dtype=bool)
    for point in points:
        there = rng.permutation(np.flatnonzero(times == point))
        unseen[there[: round(held_out * there.size)]] = True
    # In dyngen the number of cells is that of the population; elsewhere it is what was sampled.
    counts = np.array([(times == point).sum() for point in points])
    mass = counts / counts[0] if name == "dyngen_growth" else np.ones(points.size)
    start = time.perf_counter()
    couplings, _ = couple_snapshots(x[~unseen], times[~unseen], build_snapshots(times[~unseen]), mass=mass)
    field = fit_process(couplings, x[~unseen], ProcessOptions(random_state=seed))
    seconds = time.perf_counter() - start
    first = x[~unseen][times[~unseen] == points[0]]
    rows: list[dict[str, object]] = []
    for factor in (1.0,) if held_out else DIFFUSIONS:
        n = N_PARTICLES if factor == 1 else N_ELSEWHERE
        here, weights = first[rng.permutation(n) % len(first)], np.ones(n)
        noisy = replace(field, diffusion=factor * field.diffusion)
        for k, point in enumerate(points[1:], 1):
            # With one seed for all intervals, the noise of a particle would be the same in each, and push it one way.
            options = SimulationOptions(random_state=1000 * seed + k)
            paths = simulate_process(noisy, here, points[k - 1], point, options)
            here, weights = paths.ends, weights * paths.weights
            seen, other = x[~unseen & (times == point)], x[unseen & (times == point)]
            before = x[times == points[k - 1]]
            row = {"data": name, "seed": seed, "diffusion": factor, "time": point, "seconds": seconds}
            row["trained"] = distance(here, weights, seen)
            row["before"] = distance(before, np.ones(len(before)), x[times == point])
            row["mass"] = abs(weights.mean() / mass[k] - 1)
            row["factor"] = max(weights.mean() / mass[k], mass[k] / weights.mean())
            if held_out:
                row["unseen"] = distance(here, weights, other)
                row["floor"] = distance(seen, np.ones(len(seen)), other)
            rows.append(row)
    return rows


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    options = parser.parse_args()
    seeds = SEEDS[:1] if options.quick else SEEDS
    tasks = [(name, seed, share) for name in options.sets for seed in seeds for share in (0.0, HELD_OUT)]
    found = Parallel(options.jobs, verbose=10)(delayed(run)(*task) for task in tasks)
    rows = pd.DataFrame([row for part in found for row in part])
    text = report(rows)
    print(text)
    if not options.quick and options.sets == list(SETS):
        head, rest = PAGE.read_text().split(MARKS[0])
        PAGE.write_text(head + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1])


def counted() -> str:
    """Say how far the sizes of the population that grows are off by the chance of counting its cells."""
    times = pd.read_csv(DATA / "series" / "dyngen_growth.csv")["samples"]
    counts = times.value_counts().sort_index().to_numpy()
    drawn = np.random.default_rng(0).poisson(counts, (100_000, counts.size))
    off = np.abs((drawn[:, 1:] / drawn[:, :1]) / (counts[1:] / counts[0]) - 1).mean()
    cells = ", ".join(map(str, counts))
    return f"The masses of dyngen_growth are numbers of cells, {cells}. As Poisson numbers they are off by {off:.3f}.\n"


def report(rows: pd.DataFrame) -> str:
    """Return distances with the default diffusion, and the worst over all diffusions."""
    whole, part = rows[rows["unseen"].isna()], rows[rows["unseen"].notna()]
    at_default = [frame[frame["diffusion"] == 1.0].groupby("data", sort=False) for frame in (whole, part)]
    shown, over = (group.mean(numeric_only=True) for group in at_default)
    worst = whole.assign(ratio=whole["trained"] / whole["before"]).groupby("data", sort=False).max(numeric_only=True)
    fit = pd.DataFrame(
        {
            "data": shown.index,
            "seeds": [rows.loc[rows["data"] == name, "seed"].nunique() for name in shown.index],
            "all cells trained on": [f"{value:.3f}" for value in shown["trained"]],
            "four fifths: those": [f"{value:.3f}" for value in over["trained"]],
            "the fifth unseen": [f"{value:.3f}" for value in over["unseen"]],
            "floor": [f"{value:.3f}" for value in over["floor"]],
            "unseen / floor": [f"{value:.2f}" for value in over["unseen"] / over["floor"]],
            "time point before": [f"{value:.3f}" for value in shown["before"]],
            "mass off by": [f"{value:.3f}" for value in shown["mass"]],
            "seconds": [f"{value:.0f}" for value in shown["seconds"]],
        }
    )
    grid = whole.pivot_table(index="data", columns="diffusion", values="trained", sort=False)
    extremes = pd.DataFrame({"data": grid.index})
    for factor in grid:
        extremes[f"{factor:g} x"] = [f"{value:.3f}" for value in grid[factor]]
    extremes["worst / time point before"] = [f"{worst.loc[name, 'ratio']:.2f}" for name in grid.index]
    extremes["mass off by a factor of at most"] = [f"{worst.loc[name, 'factor']:.2f}" for name in grid.index]
    return table(fit) + "\n" + table(extremes) + "\n" + counted()


if __name__ == "__main__":
    main()
