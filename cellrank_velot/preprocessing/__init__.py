"""From raw counts to what the kernel needs, exposed as :mod:`cellrank_velot.pp`.

``prepare`` normalises, embeds and makes neighbours and a pseudotime; ``growth`` scores the genes of growth and death.
Both write to the AnnData that they are given.
"""

from cellrank_velot.preprocessing.growth import score_growth
from cellrank_velot.preprocessing.prepare import prepare
from cellrank_velot.preprocessing.pseudotime import choose_root_cell, set_pseudotime

__all__ = ["choose_root_cell", "prepare", "score_growth", "set_pseudotime"]


def __dir__() -> list[str]:
    return __all__
