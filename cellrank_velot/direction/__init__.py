"""Checks of the direction of time: whether there is more direction than by chance, and whether it is the right one.

In go positions, a pseudotime and a neighbour graph. ``permutation`` compares with shuffled time, ``flip`` with reversed
time, ``root`` with what is known from elsewhere, ``time`` with the distance from the root of the time itself. Each
returns what it found, which says in words what it means.
"""

from cellrank_velot.direction.flip import FlipTest, flip_test
from cellrank_velot.direction.permutation import PermutationTest, Statistic, permutation_test
from cellrank_velot.direction.root import ReferenceKind, RootCheck, Verdict, root_check
from cellrank_velot.direction.time import TimeCheck, time_check

__all__ = [
    "FlipTest",
    "PermutationTest",
    "ReferenceKind",
    "RootCheck",
    "Statistic",
    "TimeCheck",
    "Verdict",
    "flip_test",
    "permutation_test",
    "root_check",
    "time_check",
]


def __dir__() -> list[str]:
    return __all__
