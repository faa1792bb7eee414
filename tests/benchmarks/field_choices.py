"""Choices of the velocity field: how smooth and how long, regression or flow matching, potential or curl penalty.

Writes docs/field.md. `--quick` takes one seed of two small sets and writes nothing.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from common import bifurcation, quiet, table
from scipy.spatial.distance import cdist
from torch import nn

import cellrank_velot as cv
from cellrank_velot import datasets, metrics
from cellrank_velot.field import FieldOptions, fit_field
from cellrank_velot.field.losses import fit_loss, smoothness_loss
from cellrank_velot.field.network import build_network, draw_weights
from cellrank_velot.transport.problem import TransportOptions
from cellrank_velot.transport.sinkhorn import sinkhorn
from cellrank_velot.transport.velocity import TransportVelocity, compute_velocity

DOCS = Path(__file__).parents[2] / "docs"
SEEDS = (41, 42)
SETS: dict[str, Callable[[int], ad.AnnData]] = {
    "bifurcation": lambda seed: datasets.bifurcation(n_cells=2000, random_state=seed),
    "bifurcation, noise 2": lambda seed: datasets.bifurcation(n_cells=2000, noise=2.0, random_state=seed),
    "tree": lambda seed: datasets.tree(n_cells=2000, random_state=seed),
    "convergence": lambda seed: datasets.convergence(n_cells=2000, random_state=seed),
    "bifurcation, 600 cells": lambda seed: datasets.bifurcation(n_cells=600, random_state=seed),
}
LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
SPLITS = 2
# Transport alone, on cells as they are: what a field makes of the noise of a velocity does not show otherwise.
WINDOWS, VELOCITY = {"n_smooth": 0}, {"regression": False}
# What the field is where no table says otherwise; the loop of this script follows it.
LEARNING_RATE, BATCH_SIZE, HIDDEN, N_STEPS, EVERY = 2e-3, 256, [128, 128], 300, 25
FIELD = {"lambda_smooth": 1.0, "learning_rate": LEARNING_RATE}
Row = dict[str, Any]

SMOOTHNESS = (
    "From 0.1 to 1 the strength of smoothing hardly matters, on any set. The best of the five values, which only "
    "the truth can tell, gains 0.0008 on average and 0.003 at most. It is 0.1 or 0.3 on every set. Values above 1 are "
    "worse on nearly all sets.\n\n"
    "A search for the best value does not pay. *Halves* compares fields of one half of the cells with the transport "
    "of the other (`metrics.held_out_agreement`, two splits) and takes the best value for all cells, which takes "
    "about eleven times as long as a fit. *Same windows* uses the tenth of the cells that training holds out, and "
    "takes five fits. Neither gains more than 0.0007 on average. And as held-out cells share windows, and so noise, "
    "with the cells trained on, they cannot tell noise from motion."
)
STOPPING = (
    "100 steps are too few. 1000 steps gain 0.0035 on average, up to 0.008 on the tree, and lose on no set. 3000 gain "
    "no more than 1000, and take twice the time."
)
FLOW = (
    "Flow matching draws four targets from each row of each plan, and points at the share s of the way from source "
    "to target, weighted as the transport velocity weights long displacements. The network learns the displacement "
    "over the time. Halfway, at s = 0.5, it contains no relaxation to the manifold and compares with "
    "`relaxation=0`; at the source it compares with `relaxation=1`. With as many steps, regression on the mean "
    "displacement is better on nearly every set, on average by 0.004 with 300 and by 0.003 with 1000. Two reasons "
    "are likely. A drawn target has noise that the mean does not have. And points between cells lie nearer to the "
    "manifold than the cells, where the field is evaluated. It hardly matters whether s is a half or uniform."
)
POTENTIAL = (
    "A pure gradient loses on every set with 300 steps, 0.009 on average. With 1000 it is 0.001 behind the network "
    "with as many on average, and takes nearly twice the time. A gradient plus any other field, with a penalty on the "
    "square of the latter, approaches the network as the penalty falls. The curl penalty gains on no set. In these "
    "circuits genes act on targets that do not act back, so the drift is not a gradient. The first row below the one "
    "in bold is the plain network, trained in the loop of this script: both loops agree."
)
LIMITS = (
    "Differences below 0.002 are no larger than those between seeds of training. The other differences hold for "
    "these data. The simulated kinds are those that the defaults were chosen on, with other seeds, and only one is "
    "small and one has more noise. Network, learning rate and batches are the same throughout: flow matching and "
    "potentials were not tuned, and tuning may improve them. Not tried: flow matching with couplings of minibatches "
    "instead of windows, a closed-form rule for the smoothness, `lambda_smooth` below 0.1. The cosine does not "
    "measure speed. For a process that is a gradient system, or for a field that is integrated away from the cells, "
    "a potential may do better than here."
)


class Potential(nn.Module):
    """Velocity as the gradient of a scalar, plus a rest if asked."""

    def __init__(self, n_dims: int, generator: torch.Generator, *, rest: bool) -> None:
        super().__init__()
        self.n_dims = n_dims
        self.scalar = build_network(n_dims + 1, 1, HIDDEN)
        self.rest = build_network(n_dims + 1, n_dims, HIDDEN) if rest else None
        for network in filter(None, (self.scalar, self.rest)):
            draw_weights(network, generator)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return velocities at positions and times, shape ``[n, n_dims + 1]``."""
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            gradient = torch.autograd.grad(self.scalar(inputs).sum(), inputs, create_graph=self.training)[0]
        velocity = gradient[:, : self.n_dims]
        return velocity if self.rest is None else velocity + self.rest(inputs)


class Loop:
    """The training of the package, written out: for points that are no cells, and for models that are no plain network.

    Smoothness is asked for between neighbouring cells, whatever the points.
    """

    def __init__(self, kernel: cv.OTVelocityKernel) -> None:
        x, at = kernel.cells.x, kernel.cells.time
        self.kernel, self.n_dims = kernel, x.shape[1]
        self.centre, self.x_scale = x.mean(axis=0), np.sqrt(np.mean((x - x.mean(axis=0)) ** 2))
        self.time_centre, self.time_scale = at.mean(), at.std()
        self.velocity_scale = np.sqrt(np.nanmean(kernel.raw_velocity**2))
        self.cells = self.inputs(x, at)

    def inputs(self, x: np.ndarray, at: np.ndarray) -> torch.Tensor:
        """Return positions and times in units of order one."""
        columns = (x - self.centre) / self.x_scale, (at - self.time_centre) / self.time_scale
        return torch.tensor(np.column_stack(columns), dtype=torch.float32)

    def plain(self) -> nn.Module:
        """Return the network of the package."""
        network = build_network(self.n_dims + 1, self.n_dims, HIDDEN)
        draw_weights(network, torch.Generator().manual_seed(0))
        return network

    def potential(self, *, rest: bool = False) -> Potential:
        """Return a potential, and a rest if asked."""
        return Potential(self.n_dims, torch.Generator().manual_seed(0), rest=rest)

    def __call__(
        self,
        model: nn.Module,
        points: torch.Tensor,
        velocity: np.ndarray,
        weight: np.ndarray,
        rough: np.ndarray | None = None,
        *,
        penalty: float = 0.0,
        n_steps: int = N_STEPS,
    ) -> np.ndarray:
        """Train a model on velocities at points; return its velocity at the cells, shape ``[n_cells, n_dims]``."""
        rng = np.random.default_rng(0)
        known = rng.permutation(np.flatnonzero(np.isfinite(velocity).all(axis=1) & (weight > 0)))
        held_out, trained = np.split(known, [round(0.1 * known.size)])
        target = torch.tensor(velocity / self.velocity_scale, dtype=torch.float32)
        weights = torch.tensor(weight, dtype=torch.float32)
        excused = torch.zeros_like(self.cells[:, : self.n_dims])
        if rough is not None:
            excused = torch.tensor(rough / self.velocity_scale, dtype=torch.float32)
        graph = self.kernel.connectivities
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        best, found = np.inf, np.full(self.kernel.cells.x.shape, np.nan)
        for step in range(1, n_steps + 1):
            batch = rng.choice(trained, min(BATCH_SIZE, trained.size))
            cell = rng.integers(self.cells.shape[0], size=batch.size)
            degree = np.diff(graph.indptr)[cell]
            neighbor = graph.indices[graph.indptr[cell] + (rng.random(cell.size) * degree).astype(int)]
            here, there = (self.cells[ix] for ix in (cell, neighbor))
            predicted, at_cell, at_neighbor = model(torch.cat([points[batch], here, there])).chunk(3)
            loss = fit_loss(predicted, target[batch], weights[batch])
            loss = loss + smoothness_loss(at_cell - excused[cell], at_neighbor - excused[neighbor])
            if penalty:
                loss = loss + penalty * model.rest(points[batch]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % EVERY and step != n_steps:
                continue
            model.eval()
            with torch.no_grad():
                error = float(fit_loss(model(points[held_out]), target[held_out], weights[held_out]))
                if error < best:
                    best, found = error, model(self.cells).numpy().astype(np.float64) * self.velocity_scale
            model.train()
        return found


def sample_couplings(kernel: cv.OTVelocityKernel, n_targets: int = 4) -> dict[str, np.ndarray]:
    """Draw targets for each source cell of each pair of windows, weighted as the transport velocity weights them."""
    x, at, windows = kernel.cells.x, kernel.cells.time, kernel.windows
    generator = torch.Generator().manual_seed(0)
    parts, squares = [], []
    for (first, second), dt in zip(windows.pairs, windows.dt, strict=True):
        if dt <= 0:
            continue
        i, j = windows.cells(first), windows.cells(second)
        cost = cdist(x[i], x[j], "sqeuclidean")
        cost = cost / cost.max() + (at[i][:, None] > at[j])
        mass = [torch.full((1, n.size), 1 / n.size, dtype=torch.float64) for n in (i, j)]
        plan = sinkhorn(torch.from_numpy(cost)[None], *mass, 0.05).plan[0]
        drawn = torch.multinomial(plan, n_targets, replacement=True, generator=generator).numpy()
        p = plan.numpy()
        ahead = np.sum((p @ x[j] / p.sum(axis=1)[:, None] - x[i]) ** 2, axis=1)
        behind = np.sum((p.T @ x[i] / p.sum(axis=0)[:, None] - x[j]) ** 2, axis=1)
        squares += [ahead, behind]
        rows = np.repeat(np.arange(i.size), n_targets)
        parts.append((i[rows], j[drawn.ravel()], np.full(rows.size, dt), ahead[rows], behind[drawn.ravel()]))
    source, target, dt, ahead, behind = map(np.concatenate, zip(*parts, strict=True))
    limit = 2 * np.median(np.concatenate(squares))
    excess = np.maximum(ahead / limit - 1, 0) + np.maximum(behind / limit - 1, 0)
    return {"source": source, "target": target, "dt": dt, "weight": np.exp(-2 * excess)}


def flow_matching(
    loop: Loop, pairs: dict[str, np.ndarray], s: float | None, rough: np.ndarray | None = None, n_steps: int = N_STEPS
) -> np.ndarray:
    """Regress the displacement of each pair at a point along it, uniform where ``s`` is not given."""
    x, at = loop.kernel.cells.x, loop.kernel.cells.time
    i, j, dt = pairs["source"], pairs["target"], pairs["dt"]
    share = np.random.default_rng(0).random(i.size) if s is None else np.full(i.size, s)
    points = loop.inputs(x[i] + share[:, None] * (x[j] - x[i]), at[i] + share * dt)
    return loop(loop.plain(), points, (x[j] - x[i]) / dt[:, None], pairs["weight"], rough, n_steps=n_steps)


def fit(kernel: cv.OTVelocityKernel, transport: TransportVelocity | None = None, **options: Any) -> Any:
    """Return the field of the package."""
    transport = transport or kernel.transport
    values = transport.velocity, transport.confidence, kernel.connectivities, transport.relaxation
    return fit_field(kernel.cells.x, kernel.cells.time, *values, options=FieldOptions(**FIELD | options))


def agreement(kernel: cv.OTVelocityKernel, lambda_smooth: float) -> tuple[float, float]:
    """Return cosine and r2 of fields of one half with the transport of the other, mean over splits."""
    cells = kernel.cells.x, kernel.cells.time, kernel.connectivities
    found = [
        metrics.held_out_agreement(
            *cells,
            windows=WINDOWS,
            velocity=VELOCITY,
            field=FIELD | {"lambda_smooth": lambda_smooth},
            random_state=split,
        )
        for split in range(SPLITS)
    ]
    return float(np.mean([half.cosine for half in found])), float(np.mean([half.r2 for half in found]))


def smoothing(kernel: cv.OTVelocityKernel, score: Callable[[np.ndarray], Row]) -> Iterator[Row]:
    """Yield what each smoothness gives and which one is chosen, by halves and by cells held out of the windows."""
    at, rows, criteria = (kernel.cells.x, kernel.cells.time), [], []
    for value in LAMBDAS:
        start = time.perf_counter()
        field = fit(kernel, lambda_smooth=value)
        rows.append({**score(field(*at)), "seconds": time.perf_counter() - start, "lambda": value})
        start = time.perf_counter()
        cosine, r2 = agreement(kernel, value)
        seconds = time.perf_counter() - start
        criteria.append((cosine, r2, -float(field.history["held_out"].min()), rows[-1]["score"], seconds))
        yield {"table": "smoothness", "variant": f"lambda_smooth={value:g}", **rows[-1]}
    columns = np.array(criteria)
    refits = sum(row["seconds"] for row in rows)
    cost = {"halves, cosine": columns[:, 4].sum(), "halves, r2": columns[:, 4].sum(), "same windows": refits}
    for column, (name, seconds) in enumerate(cost.items()):
        chosen = rows[int(np.argmax(columns[:, column]))]
        yield {"table": "smoothness", "variant": f"chosen by {name}", **chosen, "seconds": seconds}
    best = rows[int(np.argmax(columns[:, 3]))]
    if "coherence" not in best:
        yield {"table": "smoothness", "variant": "best by the truth", **best, "seconds": np.nan}


def choices(kernel: cv.OTVelocityKernel) -> Iterator[tuple[str, str, Callable[[], np.ndarray]]]:
    """Yield table, name and function of each variant that needs no choice."""
    x, at, graph, transport = kernel.cells.x, kernel.cells.time, kernel.connectivities, kernel.transport
    for seed in (1, 2):
        yield "stopping", f"training seed {seed}", lambda seed=seed: fit(kernel, random_state=seed)(x, at)
    for n in (100, 1000, 3000):
        yield "stopping", f"n_steps={n}", lambda n=n: fit(kernel, n_steps=n)(x, at)
    yield (
        "stopping",
        "n_steps=1000, lambda_smooth=0.3",
        lambda: fit(kernel, n_steps=1000, lambda_smooth=0.3)(x, at),
    )

    current, forward = (
        compute_velocity(x, at, kernel.windows, graph, TransportOptions(**VELOCITY, relaxation=share))
        for share in (0.0, 1.0)
    )
    loop, pairs = Loop(kernel), sample_couplings(kernel)
    yield "flow", "regression, relaxation=0", lambda: fit(kernel, current)(x, at)
    yield "flow", "regression, relaxation=0, 1000 steps", lambda: fit(kernel, current, n_steps=1000)(x, at)
    yield "flow", "flow matching, s=0.5", lambda: flow_matching(loop, pairs, 0.5)
    yield "flow", "flow matching, s uniform", lambda: flow_matching(loop, pairs, None)
    yield "flow", "flow matching, s uniform, 1000 steps", lambda: flow_matching(loop, pairs, None, n_steps=1000)
    yield "flow", "regression, relaxation=1", lambda: fit(kernel, forward)(x, at)
    yield "flow", "flow matching, s=0", lambda: flow_matching(loop, pairs, 0.0, forward.relaxation)

    values = loop.cells, transport.velocity, transport.confidence, transport.relaxation
    yield "potential", "network, loop of this script", lambda: loop(loop.plain(), *values)
    yield "potential", "potential", lambda: loop(loop.potential(), *values)
    yield "potential", "potential, 1000 steps", lambda: loop(loop.potential(), *values, n_steps=1000)
    for mu in (1.0, 0.1):
        name = f"potential and rest, penalty {mu:g}"
        yield "potential", name, lambda mu=mu: loop(loop.potential(rest=True), *values, penalty=mu)
    for value in (0.1, 1.0):
        yield "potential", f"lambda_curl={value:g}", lambda value=value: fit(kernel, lambda_curl=value)(x, at)


def measure(name: str, seed: int, adata: ad.AnnData) -> Iterator[Row]:
    """Yield the score of each variant on one set."""
    kernel = cv.OTVelocityKernel(adata, time_key="pseudotime").compute_windows(**WINDOWS)
    kernel.compute_velocity(**VELOCITY, show_progress_bar=False)

    def score(velocity: np.ndarray) -> Row:
        return {"score": metrics.cosine_to_truth(velocity, adata.obsm["true_velocity_pca"])}

    row = {"data": name, "seed": seed}
    yield {**row, "table": "smoothness", "variant": "no field: transport", **score(kernel.raw_velocity)}
    for found in smoothing(kernel, score):
        yield {**row, **found}
    for part, variant, function in choices(kernel):
        start = time.perf_counter()
        velocity = function()
        yield {**row, "table": part, "variant": variant, **score(velocity), "seconds": time.perf_counter() - start}


def everything(*, quick: bool) -> Iterator[Row]:
    """Yield all rows."""
    sets = {name: SETS[name] for name in ("bifurcation, 600 cells",)} if quick else SETS
    for name, make in sets.items():
        for seed in SEEDS[:1] if quick else SEEDS:
            adata = make(seed)
            adata.obs["pseudotime"] = adata.obs["dpt_pseudotime"]
            yield from measure(name, seed, adata)
    if not quick:
        yield from measure("shared bifurcation", 0, bifurcation())


def compare(found: pd.DataFrame, part: str, reference: str, noise: float) -> str:
    """Return one table: the score by set, the paired difference to a reference over the sets, seconds."""
    default = found[found["variant"] == reference].set_index(["data", "seed"])["score"]
    rows = []
    for variant, group in found[found["table"].eq(part) | found["variant"].eq(reference)].groupby(
        "variant", sort=False
    ):
        row: Row = {"variant": f"**{variant}**" if variant == reference else variant}
        for data, of_set in group.groupby("data", sort=False):
            score = of_set["score"]
            row[data] = f"{score.mean():.3f}"
            if len(score) > 1:
                row[data] += f" ({score.min():.3f} to {score.max():.3f})"
        paired = group.set_index(["data", "seed"])["score"] - default
        row["difference"] = f"{paired.mean():+.4f} ({paired.min():+.3f} to {paired.max():+.3f})"
        row["better, worse"] = f"{(paired > noise).sum()}, {(paired < -noise).sum()}"
        seconds = group["seconds"].median()
        row["seconds"] = "" if np.isnan(seconds) else f"{seconds:.1f}"
        rows.append(row)
    return table(pd.DataFrame(rows).fillna(""))


def chosen(found: pd.DataFrame) -> str:
    """Return the table of the smoothness that each rule chooses, one value per seed."""
    rules = found[found["variant"].str.startswith(("chosen by", "best by"))]
    values = rules.assign(value=[f"{value:g}" for value in rules["lambda"]])
    by_set = values.groupby(["variant", "data"], sort=False)["value"].agg(", ".join).unstack("data")
    return table(by_set.reindex(rules["variant"].unique()).reset_index().fillna(""))


def training_noise(found: pd.DataFrame) -> float:
    """Return the largest difference that the seed of training makes on a set."""
    of_seed = found["variant"].str.startswith("training seed") | found["variant"].eq("lambda_smooth=1")
    scores = found[of_seed].groupby(["data", "seed"])["score"]
    return float((scores.max() - scores.min()).max())


def document(found: pd.DataFrame) -> str:
    """Return the text with its tables."""
    noise, default = training_noise(found), "lambda_smooth=1"
    return (
        "# Choices of the velocity field\n\nMade by `python tests/benchmarks/field_choices.py`. These are tables of "
        "what a field makes of a velocity that has noise: of transport alone, on cells as they are, by "
        "`compute_windows(n_smooth=0)`, `compute_velocity(regression=False)` and `fit_field(lambda_smooth=1, "
        "learning_rate=0.002)` where a table does not say otherwise. That is not the default, whose velocity has less "
        "noise and needs less smoothing: see [Velocity](velocity.md).\n\n"
        "The tables have the mean cosine to the true velocity over the 80 % fastest cells, as the mean over two seeds "
        "(smallest to largest). Simulated sets have 2000 cells unless the table says otherwise, with `dpt_pseudotime` "
        "as their time, and seeds that development did not use. Development did use the shared bifurcation (3000 "
        "cells). *difference*: to the row in bold, set by set, mean over the sets (smallest to largest). "
        "*better, worse*: on how many of the sets by more than "
        f"{noise:.4f}, the largest difference that another seed of training makes. *seconds*: median of one fit on "
        f"one core of a shared machine.\n\n## How smooth\n\n{SMOOTHNESS}\n\n"
        f"{compare(found, 'smoothness', default, noise)}\n"
        f"The `lambda_smooth` that each rule takes, one value per seed:\n\n{chosen(found)}\n"
        f"## How long\n\n{STOPPING}\n\n{compare(found, 'stopping', default, noise)}\n"
        f"## Regression or flow matching\n\n{FLOW}\n\n"
        f"{compare(found, 'flow', 'regression, relaxation=0', noise)}\n"
        f"## Potential or curl penalty\n\n{POTENTIAL}\n\n{compare(found, 'potential', default, noise)}\n"
        f"## What is not shown\n\n{LIMITS}\n"
    )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    quiet()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = document(pd.DataFrame(everything(quick=quick)))
    print(text)
    if not quick:
        (DOCS / "field.md").write_text(text)


if __name__ == "__main__":
    main()
