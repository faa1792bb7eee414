"""Simulated cells as AnnData: gene circuits with known velocity, and a blob without any direction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from cellrank_velot._utils.validation import check_integer, check_number, check_seed
from cellrank_velot.datasets.circuit import (
    BIFURCATION,
    CONVERGENCE,
    TREE,
    Circuit,
    FloatArray,
    Network,
    draw_network,
    integrate,
)
from cellrank_velot.preprocessing import prepare

__all__ = ["PROCESS_SD", "bifurcation", "convergence", "gaussian_blob", "to_anndata", "tree"]

# Colours of Okabe & Ito (2008), distinct for the common kinds of colour blindness; grey is that of transitions.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_TRANSITION, _TRANSITION_COLOR = "Transition", "#999999"

PROCESS_SD = 0.02  # per square root of unit time, where 0 is off and 1 is on
_MEASUREMENT_SD = 0.06  # in units of log expression
_N_PCS = 20


def bifurcation(
    n_cells: int = 2000, n_genes: int = 100, *, noise: float = 1.0, random_state: int = 0, preprocess: bool = True
) -> AnnData:
    """Simulate a progenitor that chooses between two fates.

    Two genes activate themselves and repress each other. The decay of a progenitor factor releases them, and noise
    decides which of them wins. Every cell comes from a trajectory of its own, at a time drawn uniformly from the whole
    process.

    Parameters
    ----------
    n_cells
        Number of cells, at least 10.
    n_genes
        Number of genes, at least the 3 of the circuit. Of the others, 70 % are targets of the circuit and the rest
        is unrelated to it.
    noise
        Factor on the process noise and on the measurement noise. 3 makes a noisy set. 0 leaves only the spread of the
        cells at the beginning.
    random_state
        Seed. The network depends on it too, but not on `n_cells` or `noise`.
    preprocess
        Whether to run :func:`cellrank_velot.pp.prepare`, after which the set is ready for the kernel.

    Returns
    -------
    AnnData with

    - `X`, the log expression as measured, and ``layers["true_expression"]``, the same without measurement noise;
    - ``layers["true_velocity"]``, the drift there, in units of log expression per unit of time;
    - ``obs["true_time"]`` and ``obs["clusters"]``, with their colours in `uns`;
    - ``var["role"]`` ("circuit", "target" or "unrelated"), ``var[["bias", "rate", "base", "amplitude"]]`` and
      ``varp["true_regulation"]``, the weights of the network, rows acting on columns;
    - with ``preprocess=True`` also what :func:`~cellrank_velot.pp.prepare` writes, and ``obsm["true_velocity_pca"]``,
      the drift in the space of the PCA.

    Raises
    ------
    TypeError
        If an option is not a number.
    ValueError
        If there are too few cells or genes, or if `noise` is negative.

    Examples
    --------
    >>> adata = datasets.bifurcation(n_cells=100, n_genes=50, noise=2.0)
    >>> adata.shape, adata.obsm["true_velocity_pca"].shape
    ((100, 50), (100, 20))
    >>> list(adata.obs["clusters"].cat.categories)
    ['Progenitor', 'Transition', 'Fate A', 'Fate B']
    """
    return _dataset(BIFURCATION, n_cells, n_genes, noise=noise, random_state=random_state, preprocess=preprocess)


def tree(
    n_cells: int = 2000, n_genes: int = 100, *, noise: float = 1.0, random_state: int = 0, preprocess: bool = True
) -> AnnData:
    """Simulate a curved tree with four leaves: a fate decision, followed by another one on either branch.

    In every decision two genes activate themselves and repress each other. Every cell comes from a trajectory of its
    own, at a time drawn uniformly from the whole process.

    Parameters
    ----------
    n_cells
        Number of cells, at least 10.
    n_genes
        Number of genes, at least the 7 of the circuit. Of the others, 70 % are targets of the circuit and the rest
        is unrelated to it.
    noise
        Factor on the process noise and on the measurement noise. 3 makes a noisy set. 0 leaves only the spread of the
        cells at the beginning.
    random_state
        Seed. The network depends on it too, but not on `n_cells` or `noise`.
    preprocess
        Whether to run :func:`cellrank_velot.pp.prepare`, after which the set is ready for the kernel.

    Returns
    -------
    AnnData with log expression in `X`, ``layers["true_velocity"]``, ``obs["true_time"]``, ``obs["clusters"]`` and the
    other slots that :func:`bifurcation` lists.

    Raises
    ------
    TypeError
        If an option is not a number.
    ValueError
        If there are too few cells or genes, or if `noise` is negative.

    Examples
    --------
    >>> adata = datasets.tree(n_cells=200, preprocess=False)
    >>> adata.obs["clusters"].cat.categories.size, adata.layers["true_velocity"].shape
    (8, (200, 100))
    """
    return _dataset(TREE, n_cells, n_genes, noise=noise, random_state=random_state, preprocess=preprocess)


def convergence(
    n_cells: int = 2000, n_genes: int = 100, *, noise: float = 1.0, random_state: int = 0, preprocess: bool = True
) -> AnnData:
    """Simulate two roots that flow into one fate, each by way of an intermediate state of its own.

    Two progenitor factors decay, and each is followed by a pulse of an intermediate gene. Every cell comes from a
    trajectory of its own, at a time drawn uniformly from the whole process.

    Parameters
    ----------
    n_cells
        Number of cells, at least 10.
    n_genes
        Number of genes, at least the 6 of the circuit. Of the others, 70 % are targets of the circuit and the rest
        is unrelated to it.
    noise
        Factor on the process noise and on the measurement noise. 3 makes a noisy set. 0 leaves only the spread of the
        cells at the beginning.
    random_state
        Seed. The network depends on it too, but not on `n_cells` or `noise`.
    preprocess
        Whether to run :func:`cellrank_velot.pp.prepare`, after which the set is ready for the kernel.

    Returns
    -------
    AnnData with log expression in `X`, ``layers["true_velocity"]``, ``obs["true_time"]``, ``obs["clusters"]`` and the
    other slots that :func:`bifurcation` lists. With ``preprocess=True``, ``obs["dpt_pseudotime"]`` is the
    diffusion pseudotime from the nearer of two root cells, one in each root cluster.

    Raises
    ------
    TypeError
        If an option is not a number.
    ValueError
        If there are too few cells or genes, or if `noise` is negative.

    Examples
    --------
    >>> adata = datasets.convergence(n_cells=200, preprocess=False)
    >>> list(adata.obs["clusters"].cat.categories)
    ['Root A', 'Root B', 'Transition', 'Common', 'Fate']
    """
    return _dataset(CONVERGENCE, n_cells, n_genes, noise=noise, random_state=random_state, preprocess=preprocess)


def gaussian_blob(n_cells: int = 1000, n_dims: int = 10, *, random_state: int = 0) -> AnnData:
    """Draw cells without any direction: an isotropic Gaussian with a random pseudotime, for tests of the null.

    Parameters
    ----------
    n_cells
        Number of cells, at least 10.
    n_dims
        Number of dimensions of `X` and of ``obsm["X_pca"]``, which are equal. At least 2.
    random_state
        Seed.

    Returns
    -------
    AnnData with ``obsm["X_pca"]`` of shape ``[n_cells, n_dims]``, 30 neighbours, ``obs["pseudotime"]`` uniform in
    [0, 1] and independent of the coordinates, and ``obs["clusters"]``, the quadrants of the first two dimensions.

    Raises
    ------
    TypeError
        If an option is not an integer.
    ValueError
        If there are fewer than 10 cells or 2 dimensions.

    Examples
    --------
    >>> adata = datasets.gaussian_blob(n_cells=200)
    >>> time, x = adata.obs["pseudotime"], adata.obsm["X_pca"]
    >>> bool(abs(np.corrcoef(time, x.T)[0, 1:]).max() < 0.3)
    True
    """
    check_integer("n_cells", n_cells, low=10)
    check_integer("n_dims", n_dims, low=2)
    check_seed(random_state)
    rng = np.random.default_rng(random_state)
    x = rng.standard_normal((n_cells, n_dims))
    adata = AnnData(x, obs=_cell_frame(n_cells), var=pd.DataFrame(index=[f"Dim{i + 1}" for i in range(n_dims)]))
    quadrants = np.array(["--", "-+", "+-", "++"])
    adata.obs["clusters"] = pd.Categorical(quadrants[2 * (x[:, 0] > 0) + (x[:, 1] > 0)], categories=quadrants)
    adata.uns["clusters_colors"] = list(_COLORS[:4])
    adata.obs["pseudotime"] = rng.uniform(size=n_cells)
    adata.obsm["X_pca"] = x.copy()
    sc.pp.neighbors(adata, n_neighbors=min(30, n_cells // 2), use_rep="X_pca", random_state=random_state)
    return adata


def _dataset(
    circuit: Circuit, n_cells: int, n_genes: int, *, noise: float, random_state: int, preprocess: bool
) -> AnnData:
    """Simulate the cells of a circuit, measure them, and prepare them for the kernel."""
    check_integer("n_cells", n_cells, low=10)
    check_integer("n_genes", n_genes, low=len(circuit.bias))
    check_number("noise", noise, low=0)

    check_seed(random_state)
    # Streams of their own, so that neither the noise nor the number of cells changes the network.
    network_rng, cell_rng, noise_rng = map(np.random.default_rng, np.random.SeedSequence(random_state).spawn(3))
    network = draw_network(circuit, n_genes, network_rng)
    time = cell_rng.uniform(0.0, circuit.duration, size=n_cells)
    root = cell_rng.integers(len(circuit.starts), size=n_cells)
    start = np.stack([network.start(state) for state in circuit.starts])[root]
    process_sd = PROCESS_SD * network.noise
    # The stationary spread of the process noise, so that the first cells vary like the later ones.
    start += process_sd / np.sqrt(2 * network.rate) * cell_rng.standard_normal(start.shape)
    state = integrate(network, start, time, process_sd=noise * process_sd, rng=noise_rng)

    adata = to_anndata(circuit, network, state, time)
    measured = adata.layers["true_expression"] + noise * _MEASUREMENT_SD * noise_rng.standard_normal(state.shape)
    adata.X = np.maximum(measured, 0.0)
    if preprocess:
        prepare(
            adata,
            root_cluster=circuit.roots,
            pseudotime="diffusion",
            n_pcs=_N_PCS,
            n_hvg=n_genes,
            normalize=False,
            random_state=random_state,
            show_progress_bar=False,
        )
        adata.obsm["true_velocity_pca"] = adata.layers["true_velocity"] @ adata.varm["PCs"]
    return adata


def to_anndata(circuit: Circuit, network: Network, state: FloatArray, time: FloatArray) -> AnnData:
    """Return all that is known of the cells before they are measured."""
    numbers = {name: getattr(network, name) for name in ("bias", "rate", "base", "amplitude")}
    var = pd.DataFrame({"role": pd.Categorical(network.roles)} | numbers, index=list(network.names))
    adata = AnnData(obs=_cell_frame(time.size), var=var)
    adata.layers["true_expression"] = network.express(state)
    adata.layers["true_velocity"] = network.amplitude * network.drift(state)
    adata.varp["true_regulation"] = np.pad(network.weights.T, ((0, adata.n_vars - network.n_circuit), (0, 0)))
    adata.obs["true_time"] = time

    labels = np.full(time.size, _TRANSITION, dtype=object)
    for name, gene, threshold in circuit.clusters:
        labels[state[:, network.names.index(gene)] > threshold] = name
    palette = dict(zip((name for name, *_ in circuit.clusters), _COLORS, strict=False))
    names = [*circuit.roots, _TRANSITION, *(name for name in palette if name not in circuit.roots)]
    adata.obs["clusters"] = pd.Categorical(labels, categories=[name for name in names if name in labels])
    palette[_TRANSITION] = _TRANSITION_COLOR
    adata.uns["clusters_colors"] = [palette[name] for name in adata.obs["clusters"].cat.categories]
    return adata


def _cell_frame(n_cells: int) -> pd.DataFrame:
    return pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
