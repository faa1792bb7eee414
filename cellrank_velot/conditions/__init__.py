"""Conditions with replicates: what differs between them, with the sample as the unit, not the cell.

In go cells with their fates, clusters, velocities and genes, and which sample of which condition each comes from. Each
sample is summed up in one number for each measure. Out come differences between conditions, with intervals and tests
over the samples.
"""

from cellrank_velot.conditions.comparison import MeasuredCells, compare
from cellrank_velot.conditions.design import Design
from cellrank_velot.conditions.inference import TestKind
from cellrank_velot.conditions.measures import commitment
from cellrank_velot.conditions.result import ComparisonOptions, ConditionComparison
from cellrank_velot.conditions.trends import SampleTrends

__all__ = [
    "ComparisonOptions",
    "ConditionComparison",
    "Design",
    "MeasuredCells",
    "SampleTrends",
    "TestKind",
    "commitment",
    "compare",
]
