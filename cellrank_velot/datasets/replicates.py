"""Two conditions with several samples each, as counts, whose difference in fate is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.special import expit, logit

from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.datasets.circuit import BIFURCATION, FloatArray, Network, draw_network, integrate
from cellrank_velot.datasets.simulated import PROCESS_SD, to_anndata
from cellrank_velot.preprocessing import prepare

__all__ = ["two_conditions"]

_CONDITIONS = ("control", "treated")
_FATES = ("FateA", "FateB")
_SIZE_SD = 0.35  # of the logarithm of the number of cells of a sample
_AGE_SD = 0.2  # of the logarithm of the ratio that shapes the times of a sample
_DEPTH_SD = 0.3  # of the logarithm of the counts of a cell
_COUNTS_PER_GENE = 20.0
_DISPERSION = 0.2
_N_STEPS = 100
_SPARE = 2.6  # paths that are simulated for each cell: those of the other fate are of no use
_N_PCS = 20


def two_conditions(
    n_cells: int = 200,
    n_samples: int | Sequence[int] = 3,
    *,
    shift: float = 0.15,
    share: float = 0.5,
    sample_sd: float = 0.2,
    gene_sd: float = 0.1,
    response: float = 0.5,
    n_responding: int = 5,
    n_genes: int = 60,
    random_state: int = 0,
    preprocess: bool = True,
) -> AnnData:
    """Simulate progenitors that choose between two fates, under two conditions, with several samples of each.

    Cells follow the circuit of :func:`bifurcation`, each on a path of its own to the end, so that its fate is known. In
    a sample, a cell has fate A with the chance of the sample. That is the chance of the condition, moved by chance from
    sample to sample. Samples also differ in their number of cells, in how late their cells are, and in the level of
    each gene. What is seen are counts.

    Parameters
    ----------
    n_cells
        Typical number of cells of a sample, at least 30. Sizes of samples differ, by a factor of two and more.
    n_samples
        Number of samples of each condition, or one number for the control and one for the treated.
    shift
        Chance of fate A under the treatment less that under control.
    share
        Chance of fate A under control, in ``(0, 1)``.
    sample_sd
        Standard deviation over the samples of a condition of the logarithm of the odds of fate A. With 0.2, and a share
        of a half, the chances of two samples in three lie within 0.05 of it.
    gene_sd
        Standard deviation over samples of the logarithm of the level of each gene.
    response
        Logarithm by which the responding genes are higher under the treatment.
    n_responding
        Number of genes that respond. They have nothing to do with the circuit.
    n_genes
        Number of genes, at least 10.
    random_state
        Seed.
    preprocess
        Whether to run :func:`cellrank_velot.pp.prepare`, after which the set is ready for the kernel.

    Returns
    -------
    AnnData with

    - ``layers["counts"]``, negative-binomial counts, which `X` holds as well, or with ``preprocess=True`` their scaled
      logarithms;
    - ``obs["condition"]``, "control" or "treated"; ``obs["sample"]``; ``obs["true_fate"]``, where the path of the cell
      ends; ``obs["true_time"]`` and ``obs["clusters"]``, with their colours in `uns`;
    - ``var["role"]`` and ``var["responds"]``;
    - ``uns["two_conditions"]["samples"]``, a table with the condition, the number of cells and the chance of fate A,
      ``true_share``, of each sample;
    - with ``preprocess=True`` what :func:`~cellrank_velot.pp.prepare` writes.

    Raises
    ------
    TypeError
        If an option is not a number.
    ValueError
        If an option is out of range, or a condition would have a chance beyond 0 and 1.

    Examples
    --------
    >>> adata = datasets.two_conditions(n_cells=60, n_samples=(2, 3), preprocess=False)
    >>> adata.uns["two_conditions"]["samples"]["condition"].value_counts().to_dict()
    {'treated': 3, 'control': 2}
    >>> late = adata[adata.obs["true_time"] > 6].obs
    >>> bool(
    ...     (late["true_fate"] == "Fate A")
    ...     .groupby(late["condition"], observed=True)
    ...     .mean()
    ...     .diff()
    ...     .iloc[-1]
    ...     > 0
    ... )
    True
    """
    numbers = _numbers(n_samples)
    check_integer("n_cells", n_cells, low=30)
    check_integer("n_genes", n_genes, low=10)
    check_integer("n_responding", n_responding)
    check_number("share", share, low=0, high=1, open_low=True, open_high=True)
    check_number("shift", shift, low=-1, high=1)
    for name, value in (("sample_sd", sample_sd), ("gene_sd", gene_sd)):
        check_number(name, value, low=0)
    check_number("response", response)
    if not 0 < share + shift < 1:
        raise ValueError(f"Expected `share + shift` to be in (0, 1), found `{share + shift:g}`.")
    check_seed(random_state)

    streams = map(np.random.default_rng, np.random.SeedSequence(random_state).spawn(4))
    network_rng, sample_rng, cell_rng, count_rng = streams
    network = draw_network(BIFURCATION, n_genes, network_rng)
    samples = _draw_samples(numbers, n_cells, (share, share + shift), sample_sd, sample_rng)
    of_cell, state, time, fate = _draw_cells(network, samples, cell_rng)
    adata = to_anndata(BIFURCATION, network, state, time)
    del adata.layers["true_velocity"]  # of the circuit, as if there were no conditions
    responds = np.flatnonzero(adata.var["role"] == "unrelated")[:n_responding]
    adata.var["responds"] = np.isin(np.arange(n_genes), responds)
    level = adata.layers.pop("true_expression") + gene_sd * sample_rng.standard_normal((len(samples), n_genes))[of_cell]
    treated = (samples["condition"] == _CONDITIONS[1]).to_numpy()[of_cell]
    level[np.ix_(treated, responds)] += response
    adata.layers["counts"] = _counts(level, count_rng)
    adata.X = adata.layers["counts"].copy()
    adata.obs["condition"] = pd.Categorical(samples["condition"].to_numpy()[of_cell], categories=_CONDITIONS)
    adata.obs["sample"] = pd.Categorical(samples.index.to_numpy()[of_cell], categories=samples.index)
    adata.obs["true_fate"] = pd.Categorical.from_codes(fate, ["Fate A", "Fate B"])
    adata.uns["two_conditions"] = {"samples": samples}
    if preprocess:
        prepare(
            adata,
            root_cluster=BIFURCATION.roots,
            n_pcs=min(_N_PCS, n_genes - 1),
            n_hvg=n_genes,
            normalize=True,
            random_state=random_state,
            show_progress_bar=False,
        )
    return adata


def _numbers(n_samples: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(n_samples, Sequence) and len(n_samples) != 2:
        raise ValueError(f"Expected `n_samples` of each of two conditions, found `{len(n_samples)}` numbers.")
    both = n_samples if isinstance(n_samples, Sequence) else (n_samples, n_samples)
    one, other = (check_integer("n_samples", number, low=1) for number in both)
    return one, other


def _draw_samples(
    numbers: tuple[int, int], n_cells: int, shares: tuple[float, float], sd: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Return condition, number of cells, chance of fate A and lateness of each sample."""
    condition = np.repeat([0, 1], numbers)
    n = condition.size
    sizes = np.maximum(np.round(n_cells * np.exp(_SIZE_SD * rng.standard_normal(n))), 20).astype(int)
    chance = expit(logit(np.array(shares)[condition]) + sd * rng.standard_normal(n))
    names = [f"{_CONDITIONS[c]}{i + 1}" for number, c in zip(numbers, (0, 1), strict=True) for i in range(number)]
    table = {"condition": np.array(_CONDITIONS, dtype=object)[condition], "cells": sizes, "true_share": chance}
    table["lateness"] = np.exp(_AGE_SD * rng.standard_normal(n))
    return pd.DataFrame(table, pd.Index(names, name="sample"))


def _draw_cells(
    network: Network, samples: pd.DataFrame, rng: np.random.Generator
) -> tuple[NDArray[np.int64], FloatArray, FloatArray, NDArray[np.int64]]:
    """Return the sample, state, time and fate of each cell.

    Paths are followed from the time of the cell to the end by the circuit alone, as no other gene acts on it.
    """
    tried = np.ceil(_SPARE * samples["cells"].to_numpy() + 60).astype(int)
    of_cell: NDArray[np.int64] = np.repeat(np.arange(len(samples)), tried)
    late = samples["lateness"].to_numpy()[of_cell]
    time = BIFURCATION.duration * rng.beta(late, 1 / late)
    start = np.tile(network.start(BIFURCATION.starts[0]), (time.size, 1))
    noise = PROCESS_SD * network.noise
    start += noise / np.sqrt(2 * network.rate) * rng.standard_normal(start.shape)
    state = integrate(network, start, time, process_sd=noise, rng=rng, n_steps=_N_STEPS)
    n_circuit = network.n_circuit
    alone = {name: getattr(network, name)[:n_circuit] for name in ("names", "weights", "bias", "rate", "noise")}
    left = 2 * BIFURCATION.duration - time
    end = integrate(
        replace(network, **alone), state[:, :n_circuit], left, process_sd=noise[:n_circuit], rng=rng, n_steps=_N_STEPS
    )
    genes = [network.names.index(name) for name in _FATES]
    fate = (end[:, genes[0]] < end[:, genes[1]]).astype(np.int64)
    chosen = []
    for number, (size, chance) in enumerate(zip(samples["cells"], samples["true_share"], strict=True)):
        n_first = rng.binomial(size, chance)
        for code, wanted in enumerate((n_first, size - n_first)):
            has = np.flatnonzero((of_cell == number) & (fate == code))
            chosen.append(rng.choice(has, wanted, replace=wanted > has.size))
    cells = np.sort(np.concatenate(chosen))
    return of_cell[cells], state[cells], time[cells], fate[cells]


def _counts(level: FloatArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return negative-binomial counts of cells whose depth differs."""
    rate = np.expm1(np.maximum(level, 0))
    depth = _COUNTS_PER_GENE * level.shape[1] * np.exp(_DEPTH_SD * rng.standard_normal((len(level), 1)))
    mean = depth * rate / rate.sum(axis=1, keepdims=True)
    return rng.poisson(mean * rng.gamma(1 / _DISPERSION, _DISPERSION, mean.shape)).astype(np.float32)
