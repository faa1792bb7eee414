"""What a change of genes does to cells: their displacement, the velocity they feel, and the shift of their fates.

Expression, loadings and changes of genes go in; a displacement of each cell in the basis comes out. From it follow the
velocity of perturbed cells, a field like any other, and the fates of particles that move with and without it, also
beside those under changes of other genes that reach as far.
"""

from cellrank_velot.perturbation.changes import Change, Effect, Perturbation, compute_perturbation, parse_changes
from cellrank_velot.perturbation.field import PerturbedField
from cellrank_velot.perturbation.flow import Fates, FlowFates, Variants, one_by_one
from cellrank_velot.perturbation.matched import draw_matched
from cellrank_velot.perturbation.shift import FateShift, ShiftOptions, compute_fate_shift

__all__ = [
    "Change",
    "Effect",
    "FateShift",
    "Fates",
    "FlowFates",
    "Perturbation",
    "PerturbedField",
    "ShiftOptions",
    "Variants",
    "compute_fate_shift",
    "compute_perturbation",
    "draw_matched",
    "one_by_one",
    "parse_changes",
]
