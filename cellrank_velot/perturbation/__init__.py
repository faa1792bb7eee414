"""What a change of genes does to cells: their displacement, the velocity they feel, and the shift of their fates.

``changes`` takes changes of expression to the basis, ``matched`` draws other genes of the same length to compare with,
``field`` is the velocity of perturbed cells, ``flow`` moves perturbed and unperturbed particles under the same noise,
and ``shift`` compares where they come to. Depends on the field and the dynamics; knows neither AnnData nor CellRank.
"""

from cellrank_velot.perturbation.changes import Change, Effect, Perturbation, compute_perturbation, parse_changes
from cellrank_velot.perturbation.field import PerturbedField
from cellrank_velot.perturbation.flow import Fates, FlowFates, Variants, one_by_one
from cellrank_velot.perturbation.matched import draw_matched
from cellrank_velot.perturbation.shift import FateShift, compute_fate_shift

__all__ = [
    "Change",
    "Effect",
    "FateShift",
    "Fates",
    "FlowFates",
    "Perturbation",
    "PerturbedField",
    "Variants",
    "compute_fate_shift",
    "compute_perturbation",
    "draw_matched",
    "one_by_one",
    "parse_changes",
]
