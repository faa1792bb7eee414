"""What a change of genes does to cells: their displacement, the velocity they feel, and the shift of their fates.

Expression, loadings and changes of genes go in; a displacement of each cell in the basis comes out. From it follow the
velocity of perturbed cells, a field like any other, and the fates of particles that move with and without it, also
beside those under changes of other genes that reach as far. A screen changes all genes, one by one.
"""

from cellrank_velot.perturbation.changes import Change, Effect, Perturbation, compute_perturbation, parse_changes
from cellrank_velot.perturbation.doses import DoseResponse, compute_dose_response
from cellrank_velot.perturbation.field import PerturbedField
from cellrank_velot.perturbation.flow import Fates, FlowFates, Variants, one_by_one
from cellrank_velot.perturbation.matched import draw_matched
from cellrank_velot.perturbation.screen import Chain, Screen, ScreenOptions, compute_screen, parse_kinds
from cellrank_velot.perturbation.shift import FateShift, ShiftOptions, compute_fate_shift

__all__ = [
    "Chain",
    "Change",
    "DoseResponse",
    "Effect",
    "FateShift",
    "Fates",
    "FlowFates",
    "Perturbation",
    "PerturbedField",
    "Screen",
    "ScreenOptions",
    "ShiftOptions",
    "Variants",
    "compute_dose_response",
    "compute_fate_shift",
    "compute_perturbation",
    "compute_screen",
    "draw_matched",
    "one_by_one",
    "parse_changes",
    "parse_kinds",
]
