"""The kernel, which wires the stages together and to CellRank. No numerics here.

``core`` is the kernel itself and its stages; ``transitions`` makes its matrix and ``saving`` keeps it in AnnData. What
it can do besides is in parts: ``diagnostics`` (tests of direction, states), ``dynamics`` (trajectories, flow,
projection) and ``plots``.
"""

from cellrank_velot.kernel.core import OTVelocityKernel

__all__ = ["OTVelocityKernel"]
