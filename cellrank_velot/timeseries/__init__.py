"""Real time points: how a population moves, grows and dies from each snapshot to the next.

``snapshots`` pairs the time points, ``couplings`` transports each to the next, ``clonal`` chooses how sharply by cells
of one clone, ``bridges`` draws paths between the cells that belong together, and ``interpolation`` returns the
population at any time.
"""

from cellrank_velot.timeseries.bridges import Bridges
from cellrank_velot.timeseries.clonal import EpsilonChoice, choose_epsilon
from cellrank_velot.timeseries.couplings import SnapshotCouplings, couple_snapshots
from cellrank_velot.timeseries.flows import cluster_flows
from cellrank_velot.timeseries.interpolation import Population, interpolate_paths
from cellrank_velot.timeseries.options import PATH_PASSES, CouplingOptions, PopulationOptions
from cellrank_velot.timeseries.snapshots import SnapshotOptions, build_snapshots

__all__ = [
    "PATH_PASSES",
    "Bridges",
    "CouplingOptions",
    "EpsilonChoice",
    "Population",
    "PopulationOptions",
    "SnapshotCouplings",
    "SnapshotOptions",
    "build_snapshots",
    "choose_epsilon",
    "cluster_flows",
    "couple_snapshots",
    "interpolate_paths",
]
