"""The landscape of cells in a plane: their density, the quasi-potential that it makes, and the barriers between states.

In go the positions of cells in two dimensions, at one or more times. Out comes a :class:`Landscape`.
"""

from cellrank_velot.landscape.compute import LandscapeOptions, compute_landscape
from cellrank_velot.landscape.density import PlaneCells
from cellrank_velot.landscape.populations import MIN_CELLS, populations_of
from cellrank_velot.landscape.surface import Landscape

__all__ = ["MIN_CELLS", "Landscape", "LandscapeOptions", "PlaneCells", "compute_landscape", "populations_of"]
