"""Which gene drives which: derivatives of the velocity field, read through the loadings of the PCA.

In go a field and the cells; out comes a :class:`Regulation`, a matrix of effects for each group of cells.
"""

from cellrank_velot.regulation.derivatives import Decoder
from cellrank_velot.regulation.matrix import Regulation, compute_growth_genes, compute_regulation

__all__ = ["Decoder", "Regulation", "compute_growth_genes", "compute_regulation"]
