"""Pictures of kernels and fates, exposed as :mod:`cellrank_velot.pl`, with the conventions of CellRank's own plots.

One file per subject: ``velocity`` (arrows), ``estimates`` (what is known of them), ``field`` (its training), ``fates``
(macrostates and fate probabilities), ``pairs`` (windows and their transport), ``clusters`` (that windows are
made in), ``search`` (scores over a grid of parameters), ``lines`` (trajectories), ``particles`` (a flow and its
fates), ``landscape`` (the quasi-potential), ``regulation`` (which gene drives which) and ``perturbation``; of time
series, ``snapshots`` (populations and growth), ``process`` (paths) and ``descent`` (fates and ancestors). No file has
the name of a plot, which would hide it. ``_figure``, ``_colors``, ``_embedding``, ``_arrows``, ``_animation``,
``_gif``, ``_paths``, ``_plane`` and ``_relief`` hold what they share. Knows AnnData, changes nothing in it.
"""

from cellrank_velot.plotting.clusters import spatial_clusters
from cellrank_velot.plotting.descent import fate_bars, fate_heatmap
from cellrank_velot.plotting.estimates import confidence, embedding, uncertainty
from cellrank_velot.plotting.fates import fate_map, macrostates
from cellrank_velot.plotting.field import training
from cellrank_velot.plotting.landscape import landscape_animation, potential_landscape
from cellrank_velot.plotting.lines import trajectories
from cellrank_velot.plotting.pairs import window_transport, windows
from cellrank_velot.plotting.particles import fate_summary, flow, flow_animation
from cellrank_velot.plotting.perturbation import fate_shift, perturbation_arrows
from cellrank_velot.plotting.process import fate_cells, process_paths
from cellrank_velot.plotting.regulation import regulation_heatmap, regulation_network
from cellrank_velot.plotting.search import gridsearch_heatmap
from cellrank_velot.plotting.snapshots import growth_map, population
from cellrank_velot.plotting.velocity import velocity_comparison, velocity_grid, velocity_quiver, velocity_stream

__all__ = [
    "confidence",
    "embedding",
    "fate_bars",
    "fate_cells",
    "fate_heatmap",
    "fate_map",
    "fate_shift",
    "fate_summary",
    "flow",
    "flow_animation",
    "gridsearch_heatmap",
    "growth_map",
    "landscape_animation",
    "macrostates",
    "perturbation_arrows",
    "population",
    "potential_landscape",
    "process_paths",
    "regulation_heatmap",
    "regulation_network",
    "spatial_clusters",
    "training",
    "trajectories",
    "uncertainty",
    "velocity_comparison",
    "velocity_grid",
    "velocity_quiver",
    "velocity_stream",
    "window_transport",
    "windows",
]
