"""Pictures of kernels and fates, exposed as :mod:`cellrank_velot.pl`, with the conventions of CellRank's own plots.

One file per subject: ``velocity`` (arrows and what is known of them), ``field`` (its training), ``fates`` (macrostates
and fate probabilities), ``search`` (scores over a grid of parameters). ``_figure``, ``_colors`` and ``_embedding`` hold
what they share. Knows AnnData, changes nothing in it.
"""

from cellrank_velot.plotting.fates import fate_map, macrostates
from cellrank_velot.plotting.field import training
from cellrank_velot.plotting.search import gridsearch_heatmap
from cellrank_velot.plotting.velocity import confidence, embedding, velocity_stream

__all__ = ["confidence", "embedding", "fate_map", "gridsearch_heatmap", "macrostates", "training", "velocity_stream"]
