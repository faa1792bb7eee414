"""Checks of the direction of time: whether there is more direction than by chance, and whether it is the right one.

In go positions, a pseudotime and a neighbour graph. ``permutation`` compares with shuffled time, ``flip`` with reversed
time, ``root`` with what is known from elsewhere. Each returns what it found, which says in words what it means.
"""

from cellrank_velot.direction.flip import FlipTest, flip_test
from cellrank_velot.direction.permutation import PermutationTest, Statistic, permutation_test
from cellrank_velot.direction.root import ReferenceKind, RootCheck, Verdict, root_check

__all__ = [
    "FlipTest",
    "PermutationTest",
    "ReferenceKind",
    "RootCheck",
    "Statistic",
    "Verdict",
    "flip_test",
    "permutation_test",
    "root_check",
]


def __dir__() -> list[str]:
    return __all__
