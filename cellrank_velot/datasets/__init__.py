"""Data sets: simulated gene circuits with known velocity, data without direction, and the pancreas."""

from cellrank_velot.datasets.real import pancreas
from cellrank_velot.datasets.simulated import bifurcation, convergence, gaussian_blob, tree

__all__ = ["bifurcation", "convergence", "gaussian_blob", "pancreas", "tree"]
