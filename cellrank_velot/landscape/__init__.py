"""The landscape of cells in a plane: their density, the quasi-potential that it makes, and the barriers between states.

Plain arrays in and out.
"""

from cellrank_velot.landscape.compute import compute_landscape
from cellrank_velot.landscape.density import PlaneCells
from cellrank_velot.landscape.surface import Landscape

__all__ = ["Landscape", "PlaneCells", "compute_landscape"]
