"""Which gene drives which: derivatives of the velocity field, read through the loadings of the PCA or a decoder.

In go a field and the cells. Out comes a :class:`Regulation`, a matrix of effects for each group of cells.
"""

from cellrank_velot.regulation.bootstrap import RegulationOptions
from cellrank_velot.regulation.derivatives import Decoder, Variables
from cellrank_velot.regulation.groups import bin_times, name_groups, points_along
from cellrank_velot.regulation.matrix import Regulation, compute_growth_genes, compute_regulation

__all__ = [
    "Decoder",
    "Regulation",
    "RegulationOptions",
    "Variables",
    "bin_times",
    "compute_growth_genes",
    "compute_regulation",
    "name_groups",
    "points_along",
]
