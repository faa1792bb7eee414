"""Is there a direction at all? Shuffled time (``permutation``), reversed time (``flip``), what is known (``root``).

Plain functions over arrays. Depends on the stages windows and velocity; knows neither AnnData nor CellRank.
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
