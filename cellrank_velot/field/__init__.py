"""The velocity field: what it is (``network``), what it minimises (``losses``), how it is found (``training``)."""

from cellrank_velot.field.network import VelocityField
from cellrank_velot.field.training import fit_field

__all__ = ["VelocityField", "fit_field"]
