"""Velocities and points in an embedding, such as a UMAP.

In go positions or velocities in the basis. Out come arrows or places in the embedding, and the
averages of arrows on a grid.
"""

from cellrank_velot.embedding.grid import VelocityGrid, velocity_on_grid
from cellrank_velot.embedding.projection import embed_points, project_by_linear_map, project_by_transitions

__all__ = ["VelocityGrid", "embed_points", "project_by_linear_map", "project_by_transitions", "velocity_on_grid"]
