"""CellRank's GPCCA at any size.

In goes a kernel with a transition matrix. :class:`GPCCA` is CellRank's estimator without dense matrices and without
PETSc. Results are written to the AnnData as CellRank writes them.
"""

from cellrank_velot.estimators.estimator import GPCCA

__all__ = ["GPCCA"]
