"""Plots of kernels, velocities and fates, exposed as :mod:`cellrank_velot.pl`, with the conventions of CellRank's own.

A file holds the plots of one subject; none has the name of a plot, which would hide it. What they share lies in
``_draw``: ``figure`` opens and closes figures, ``kernel`` says what a kernel or an AnnData has, ``embedding`` draws
cells. Plots read an AnnData and change nothing in it.
"""

from cellrank_velot.plotting.clones import clone_calibration, clone_overlap, clone_scores
from cellrank_velot.plotting.clusters import spatial_clusters
from cellrank_velot.plotting.conditions import condition_fates, condition_trends, condition_velocity
from cellrank_velot.plotting.descent import fate_bars, fate_heatmap, fate_summary
from cellrank_velot.plotting.estimates import confidence, embedding, time_check, uncertainty
from cellrank_velot.plotting.fates import fate_map, macrostates, terminal_states
from cellrank_velot.plotting.field import training
from cellrank_velot.plotting.interactive import landscape_3d, trajectories_3d
from cellrank_velot.plotting.landscape import landscape_animation, potential_landscape
from cellrank_velot.plotting.lines import trajectories
from cellrank_velot.plotting.pairs import window_transport, windows
from cellrank_velot.plotting.particles import flow, flow_animation
from cellrank_velot.plotting.perturbation import dose_response, fate_shift, perturbation_arrows, screen
from cellrank_velot.plotting.process import fate_cells, process_paths
from cellrank_velot.plotting.regulation import regulation_heatmap, regulation_network
from cellrank_velot.plotting.resting import fixed_points, least_action_path
from cellrank_velot.plotting.sankey import sankey
from cellrank_velot.plotting.search import gridsearch_heatmap
from cellrank_velot.plotting.snapshots import growth_map, population
from cellrank_velot.plotting.trends import gene_trends, trend_heatmap
from cellrank_velot.plotting.velocity import velocity_comparison, velocity_grid, velocity_quiver, velocity_stream

__all__ = [
    "clone_calibration",
    "clone_overlap",
    "clone_scores",
    "condition_fates",
    "condition_trends",
    "condition_velocity",
    "confidence",
    "dose_response",
    "embedding",
    "fate_bars",
    "fate_cells",
    "fate_heatmap",
    "fate_map",
    "fate_shift",
    "fate_summary",
    "fixed_points",
    "flow",
    "flow_animation",
    "gene_trends",
    "gridsearch_heatmap",
    "growth_map",
    "landscape_3d",
    "landscape_animation",
    "least_action_path",
    "macrostates",
    "perturbation_arrows",
    "population",
    "potential_landscape",
    "process_paths",
    "regulation_heatmap",
    "regulation_network",
    "sankey",
    "screen",
    "spatial_clusters",
    "terminal_states",
    "time_check",
    "training",
    "trajectories",
    "trajectories_3d",
    "trend_heatmap",
    "uncertainty",
    "velocity_comparison",
    "velocity_grid",
    "velocity_quiver",
    "velocity_stream",
    "window_transport",
    "windows",
]


def __dir__() -> list[str]:
    return __all__
