"""The velocity field: what it is (``network``), what it minimises (``losses``), how it is found (``training``).

Of a time series, ``matching`` finds it from couplings, with growth and score.
"""

from cellrank_velot.field.matching import check_matching_options, fit_process
from cellrank_velot.field.network import VelocityField
from cellrank_velot.field.training import check_field_options, fit_field

__all__ = ["VelocityField", "check_field_options", "check_matching_options", "fit_field", "fit_process"]
