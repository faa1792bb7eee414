"""The velocity field: what it is (``network``), what it minimises (``losses``), how it is found (``training``)."""

from cellrank_velot.field.network import VelocityField
from cellrank_velot.field.training import check_field_options, fit_field

__all__ = ["VelocityField", "check_field_options", "fit_field"]
