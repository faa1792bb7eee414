"""The velocity field: what it is (``network``), what it minimises (``losses``), how it is found (``training``).

Of a time series, ``matching`` finds it from couplings, with growth and score. ``uncertainty`` says how far
its directions may be off.
"""

from cellrank_velot.field.matching import ProcessOptions, fit_process
from cellrank_velot.field.network import VelocityField
from cellrank_velot.field.training import FieldOptions, fit_field
from cellrank_velot.field.uncertainty import Steps, Uncertainty, UncertaintyOptions, compute_uncertainty

__all__ = [
    "FieldOptions",
    "ProcessOptions",
    "Steps",
    "Uncertainty",
    "UncertaintyOptions",
    "VelocityField",
    "compute_uncertainty",
    "fit_field",
    "fit_process",
]
