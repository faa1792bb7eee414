"""The main job, from an AnnData to velocity, macrostates, fate probabilities and driver genes on the host's estimator.

Wiring for the command line, in three steps: ``inputs`` finds or computes what the kernel needs and runs the kernel,
``analysis`` runs CellRank's estimator; ``job`` holds what is asked for and found. Writes no files; the log says what
was chosen.
"""

from cellrank_velot.job.analysis import analyse
from cellrank_velot.job.inputs import build_kernel, prepare_inputs
from cellrank_velot.job.options import JobOptions, JobResult

__all__ = ["JobOptions", "JobResult", "analyse", "build_kernel", "prepare_inputs"]
