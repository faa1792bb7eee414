"""Gene circuits as tables of interactions (at the end of the file), their drift, and one integrator for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

__all__ = ["BIFURCATION", "CONVERGENCE", "TREE", "Circuit", "Network", "draw_network", "integrate"]

FloatArray = NDArray[np.float64]
Edge = tuple[str, str, float]

_FRACTION_UNRELATED = 0.3
_PRIVATE_NOISE = 0.2
# Cells that targets are named by, the noise that lets them decide, and the spread below which a target does not change.
_N_WITNESSES, _DECIDING_SD, _CHANGE = 200, 0.02, 0.05


@dataclass(frozen=True)
class Circuit:
    """Who acts on whom, where cells begin, and what the clusters are called.

    Gene `i` follows ``dx_i/dt = rate_i (expit(bias_i + sum_j weight_ij x_j) - x_i)``, the gene-circuit equation of
    :cite:t:`mjolsness:91`: production saturates between 0 (off) and 1 (on), decay is linear.
    """

    bias: Mapping[str, float]
    """Input of each gene without its regulators. The keys name the genes."""
    edges: tuple[Edge, ...]
    """Regulator, target and weight; positive activates, negative represses."""
    starts: tuple[Mapping[str, float], ...]
    """Genes that are not off at the beginning, one mapping per root. Cells begin at each root equally often."""
    clusters: tuple[Edge, ...]
    """Cluster, marker gene and threshold. The last entry that a cell exceeds names its cluster, else "Transition"."""
    roots: tuple[str, ...]
    """Clusters where the process begins."""
    duration: float
    """Time of the latest cells."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Turnover per unit of time, of the genes where it is not 1."""


@dataclass(frozen=True, eq=False)
class Network:
    """All genes of a simulated set, the circuit first, and how their state is seen as log expression."""

    names: tuple[str, ...]
    """Names of the genes."""
    roles: tuple[str, ...]
    """"circuit", "target" or "unrelated"."""
    weights: FloatArray
    """Shape ``[n_genes, n_circuit]``: only the circuit regulates."""
    bias: FloatArray
    """Input without regulators, shape ``[n_genes]``."""
    rate: FloatArray
    """Turnover per unit of time, shape ``[n_genes]``."""
    noise: FloatArray
    """Process noise relative to that of the circuit, shape ``[n_genes]``."""
    base: FloatArray
    """Log expression of a gene that is off, shape ``[n_genes]``."""
    amplitude: FloatArray
    """Log expression that a gene gains when on, shape ``[n_genes]``."""

    @property
    def n_circuit(self) -> int:
        """Number of genes that regulate others."""
        return int(self.weights.shape[1])

    def drift(self, x: FloatArray) -> FloatArray:
        """Deterministic change of the state `x` per unit of time, both of shape ``[n_cells, n_genes]``."""
        production: FloatArray = expit(x[:, : self.n_circuit] @ self.weights.T + self.bias)
        return self.rate * (production - x)

    def start(self, state: Mapping[str, float]) -> FloatArray:
        """State of a root, shape ``[n_genes]``: the circuit as given, every other gene where its drift is zero."""
        circuit = np.array([state.get(name, 0.0) for name in self.names[: self.n_circuit]])
        return np.concatenate([circuit, expit(self.weights @ circuit + self.bias)[self.n_circuit :]])

    def express(self, x: FloatArray) -> FloatArray:
        """Log expression of the state `x`, both of shape ``[n_cells, n_genes]``."""
        return self.base + self.amplitude * x


def draw_network(circuit: Circuit, n_genes: int, rng: np.random.Generator) -> Network:
    """Surround a circuit with unrelated genes and with targets, each regulated by up to two genes of the circuit.

    Of the genes outside the circuit 70 % are targets, equally many of each gene of the circuit. A target is called
    after the gene of the circuit that it goes with where the process ends: one that ``FateA`` represses is a
    ``FateBTarget``.
    """
    genes = list(circuit.bias)
    n_circuit = len(genes)
    n_unrelated = int(_FRACTION_UNRELATED * (n_genes - n_circuit))
    n_targets = n_genes - n_circuit - n_unrelated

    weights = np.zeros((n_genes, n_circuit))
    for regulator, target, weight in circuit.edges:
        weights[genes.index(target), genes.index(regulator)] = weight
    first = np.arange(n_targets) % n_circuit
    gain = rng.uniform(4.0, 8.0, size=n_targets) * rng.choice([1.0, 1.0, -1.0], size=n_targets)
    target_ix = n_circuit + np.arange(n_targets)
    weights[target_ix, first] = gain
    # A second, weaker regulator bends the paths: not all targets of one gene move together.
    weights[target_ix, rng.integers(n_circuit, size=n_targets)] += rng.uniform(-3.0, 3.0, size=n_targets)
    bias = np.concatenate(
        [
            list(circuit.bias.values()),
            -gain * rng.uniform(0.3, 0.7, size=n_targets),
            logit(rng.uniform(0.2, 0.8, size=n_unrelated)),
        ]
    )
    rate = rng.uniform(0.7, 2.0, size=n_genes)
    rate[:n_circuit] = [circuit.rates.get(name, 1.0) for name in genes]
    network = Network(
        names=(
            *genes,
            *(f"Target{i + 1}" for i in range(n_targets)),
            *(f"Unrelated{i + 1}" for i in range(n_unrelated)),
        ),
        roles=("circuit",) * n_circuit + ("target",) * n_targets + ("unrelated",) * n_unrelated,
        weights=weights,
        bias=bias,
        rate=rate,
        # Most of a target's variation comes through the circuit. Its own noise is soon forgotten: it has no direction.
        noise=np.where(np.arange(n_genes) < n_circuit, 1.0, _PRIVATE_NOISE),
        base=rng.uniform(0.5, 1.5, size=n_genes),
        amplitude=rng.uniform(0.8, 2.0, size=n_genes),
    )
    named, counts = [], Counter[str]()
    for gene in _partners(network, circuit):
        counts[gene] += 1
        named.append(f"{gene}Target{counts[gene]}")
    return replace(network, names=(*genes, *named, *network.names[n_circuit + n_targets :]))


def _partners(network: Network, circuit: Circuit) -> list[str]:
    """Return for each target the gene of the circuit with which it is most correlated among cells at the end.

    Of one that is the same in all of them, it is the gene with which it rises or falls along the whole process.
    """
    rng, n_circuit = np.random.default_rng(0), network.n_circuit
    targets = np.flatnonzero(np.array(network.roles) == "target")
    alone = {name: getattr(network, name)[:n_circuit] for name in ("names", "weights", "bias", "rate", "noise")}
    state = np.array([[start.get(name, 0.0) for name in alone["names"]] for start in circuit.starts])
    state = np.tile(state, (_N_WITNESSES // len(state), 1))
    late = np.full(len(state), circuit.duration)
    found = []
    for time in (late, rng.uniform(0, circuit.duration, len(state))):
        x = integrate(replace(network, **alone), state, time, process_sd=_DECIDING_SD, rng=rng)
        # Without the lag and the noise of the targets themselves.
        x = np.concatenate([x, expit(x @ network.weights[targets].T + network.bias[targets])], axis=1)
        spread = x.std(axis=0)
        centred = (x - x.mean(axis=0)) / np.maximum(spread, _CHANGE)
        similarity = centred[:, n_circuit:].T @ centred[:, :n_circuit]
        found.append((similarity, spread[n_circuit:] > _CHANGE))
    (at_end, changes), (along, _) = found
    return [network.names[i] for i in np.where(changes, at_end.argmax(axis=1), np.abs(along).argmax(axis=1))]


def integrate(
    network: Network,
    start: FloatArray,
    time: FloatArray,
    *,
    process_sd: ArrayLike,
    rng: np.random.Generator,
    n_steps: int = 200,
) -> FloatArray:
    """Bring cells from ``start``, ``[n_cells, n_genes]``, each to its own time, by Euler-Maruyama :cite:p:`kloeden:92`.

    ``process_sd`` is the noise per square root of unit time, a number or one per gene.
    """
    x, dt = start.copy(), (time / n_steps)[:, None]
    kick = np.sqrt(dt) * np.asarray(process_sd, dtype=np.float64)
    noisy = bool(np.any(kick > 0))
    for _ in range(n_steps):
        x += network.drift(x) * dt
        if noisy:
            x += kick * rng.standard_normal(x.shape)
    return x


def _toggle(a: str, b: str) -> tuple[Edge, ...]:
    """Two genes that activate themselves and repress each other."""
    return (a, a, 5.0), (b, b, 5.0), (a, b, -7.0), (b, a, -7.0)


def _acts_on(source: str, *targets: str, weight: float) -> tuple[Edge, ...]:
    """One gene that acts alike on several."""
    return tuple((source, target, weight) for target in targets)


def _marked(*clusters: str, threshold: float = 0.7) -> tuple[Edge, ...]:
    """Clusters whose marker gene has their own name, written without a space."""
    return tuple((name, name.replace(" ", ""), threshold) for name in clusters)


BIFURCATION = Circuit(
    bias={"Stem": -5.0, "FateA": 0.5, "FateB": 0.5},
    edges=(*_toggle("FateA", "FateB"), *_acts_on("Stem", "FateA", "FateB", weight=-4.0)),
    starts=({"Stem": 1.0},),
    clusters=(("Progenitor", "Stem", 0.5), *_marked("Fate A", "Fate B")),
    roots=("Progenitor",),
    duration=8.5,
    rates={"Stem": 0.4},
)
"""A toggle switch, kept open by a progenitor factor that decays."""

TREE = Circuit(
    bias={"Stem": -5.0, "BranchA": 0.5, "BranchB": 0.5} | dict.fromkeys(("FateA1", "FateA2", "FateB1", "FateB2"), -5.5),
    edges=(
        *_toggle("BranchA", "BranchB"),
        *_acts_on("Stem", "BranchA", "BranchB", weight=-4.0),
        *_toggle("FateA1", "FateA2"),
        *_acts_on("BranchA", "FateA1", "FateA2", weight=6.0),
        *_toggle("FateB1", "FateB2"),
        *_acts_on("BranchB", "FateB1", "FateB2", weight=6.0),
    ),
    starts=({"Stem": 1.0},),
    clusters=(
        ("Progenitor", "Stem", 0.5),
        *_marked("Branch A", "Branch B", "Fate A1", "Fate A2", "Fate B1", "Fate B2"),
    ),
    roots=("Progenitor",),
    duration=11.0,
    rates={"Stem": 0.5},
)
"""The bifurcation, and on each of its branches a second toggle switch that the branch turns on."""

CONVERGENCE = Circuit(
    bias={"RootA": -5.0, "RootB": -5.0, "MidA": -3.0, "MidB": -3.0, "Common": -1.5, "Fate": -7.0},
    edges=(
        ("RootA", "MidA", 6.0),
        ("RootB", "MidB", 6.0),
        ("RootA", "Common", -5.0),
        ("RootB", "Common", -5.0),
        ("MidA", "Common", 4.0),
        ("MidB", "Common", 4.0),
        ("Common", "Common", 5.0),
        ("Common", "Fate", 10.0),
    ),
    starts=({"RootA": 1.0}, {"RootB": 1.0}),
    clusters=(*_marked("Root A", "Root B", threshold=0.5), *_marked("Common", "Fate")),
    roots=("Root A", "Root B"),
    duration=9.0,
    rates={"RootA": 0.6, "RootB": 0.6, "MidA": 1.2, "MidB": 1.2, "Fate": 0.5},
)
"""Two progenitor factors that decay, a pulse of an intermediate gene after each, and one path for both from there."""
