"""The main job, from an AnnData to velocity, macrostates, fate probabilities and driver genes.

In go an AnnData and :class:`JobOptions`. :func:`prepare_inputs` finds or computes what the kernel needs,
:func:`build_kernel` runs it, and :func:`analyse` runs CellRank's estimator. Out comes a :class:`JobResult`, which the
command line writes to tables, pictures, an h5ad file and a report.
"""

from cellrank_velot.job.analysis import analyse
from cellrank_velot.job.inputs import build_kernel, prepare_inputs
from cellrank_velot.job.options import JobOptions, JobResult

__all__ = ["JobOptions", "JobResult", "analyse", "build_kernel", "prepare_inputs"]
