"""The kernel, which wires the stages together and to CellRank. No numerics here.

``core`` is the kernel itself: its stages, transition matrix and storage. What it can do besides is in parts:
``diagnostics`` (tests of direction, states), ``dynamics`` (trajectories, flow, projection) and ``plots``.
"""

from cellrank_velot.kernel.core import OTVelocityKernel

__all__ = ["OTVelocityKernel"]
