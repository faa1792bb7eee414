"""The kernels, which wire the stages together and to CellRank. No numerics here.

``pseudotime`` and ``time_points`` are the two kernels and their steps, on the common ``base``. What both can do besides
is in parts: ``transitions`` makes the matrix, ``saving`` keeps it in AnnData, ``diagnostics`` tests the direction and
suggests states, ``dynamics`` has trajectories and flow, and so on; ``populations`` is for real time points alone.
"""

from cellrank_velot.kernel.conditions import compare_conditions
from cellrank_velot.kernel.pseudotime import OTVelocityKernel
from cellrank_velot.kernel.time_points import OTTimeSeriesKernel

__all__ = ["OTTimeSeriesKernel", "OTVelocityKernel", "compare_conditions"]
