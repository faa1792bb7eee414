"""Data sets: simulated circuits with known velocity, of conditions, with growth or with barcodes; and the pancreas."""

from cellrank_velot.datasets.barcoded import barcoded_lineages
from cellrank_velot.datasets.birth_death import birth_death, process_of
from cellrank_velot.datasets.branching import BirthDeath
from cellrank_velot.datasets.real import pancreas
from cellrank_velot.datasets.replicates import two_conditions
from cellrank_velot.datasets.simulated import bifurcation, convergence, gaussian_blob, tree

__all__ = [
    "BirthDeath",
    "barcoded_lineages",
    "bifurcation",
    "birth_death",
    "convergence",
    "gaussian_blob",
    "pancreas",
    "process_of",
    "tree",
    "two_conditions",
]


def __dir__() -> list[str]:
    return __all__
