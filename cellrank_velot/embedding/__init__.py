"""Velocities and points in an embedding, such as a UMAP, and their averages on a grid.

In go positions or velocities in the basis; out come their places or arrows in two dimensions.
"""

from cellrank_velot.embedding.grid import VelocityGrid, velocity_on_grid
from cellrank_velot.embedding.projection import embed_points, project_by_linear_map, project_by_transitions

__all__ = ["VelocityGrid", "embed_points", "project_by_linear_map", "project_by_transitions", "velocity_on_grid"]
