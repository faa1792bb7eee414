"""Checks of the direction of time: whether there is a direction at all, and whether it is the right one.

In go positions, a pseudotime and, where there is one, expression. ``verdict`` asks whether the cells form a course that
the time runs along: ``walk`` has the random walk over the cells, ``clouds`` the cells without structure that they are
compared with, ``halves`` the halves of the genes. ``flip`` compares with reversed time, ``root`` with what is known
from elsewhere, ``time`` with the distance from the root of the time itself, and ``cycle`` looks for a closed loop. Each
returns what it found, which says in words what it means.
"""

from cellrank_velot.direction.flip import FlipTest, flip_test
from cellrank_velot.direction.root import ReferenceKind, RootCheck, Verdict, root_check
from cellrank_velot.direction.time import TimeCheck, time_check
from cellrank_velot.direction.verdict import DirectionTest, direction_test

__all__ = [
    "DirectionTest",
    "FlipTest",
    "ReferenceKind",
    "RootCheck",
    "TimeCheck",
    "Verdict",
    "direction_test",
    "flip_test",
    "root_check",
    "time_check",
]


def __dir__() -> list[str]:
    return __all__
