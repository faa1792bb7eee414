"""What is written to an AnnData, and read back.

``pack`` turns the stages into arrays that h5ad can hold and back into stages; ``read`` checks what a file holds, so
that the error names a damaged entry and nothing of it is run. ``h5ad`` and ``zarr`` write the file.
"""

from cellrank_velot.storage.h5ad import write_h5ad
from cellrank_velot.storage.pack import read_trajectories, write_trajectories
from cellrank_velot.storage.zarr import write_zarr

__all__ = ["read_trajectories", "write_h5ad", "write_trajectories", "write_zarr"]
