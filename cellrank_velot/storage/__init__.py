"""What is written to an AnnData, and read back.

``pack`` turns the stages into arrays that h5ad can hold and back into stages; ``tables`` says what each must look like,
so that a damaged file is named in the error and nothing of it is run.
"""

from cellrank_velot.storage.h5ad import write_h5ad
from cellrank_velot.storage.pack import read_trajectories, write_trajectories

__all__ = ["read_trajectories", "write_h5ad", "write_trajectories"]
