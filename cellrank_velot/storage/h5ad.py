"""An AnnData as a file of h5ad, written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import write_elem

from cellrank_velot._utils.files import replacing

__all__ = ["plain_arrays", "write_h5ad"]


def _use_plain_texts(frame: pd.DataFrame) -> None:
    """Let categories be texts as Python has them: not every anndata writes the nullable texts of pandas."""
    for name in frame.columns[frame.dtypes == "category"]:
        categories = frame[name].cat.categories
        if isinstance(categories.dtype, pd.StringDtype) and categories.dtype.na_value is pd.NA:
            frame[name] = frame[name].cat.rename_categories(categories.astype(object))


def _use_plain_floats(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Let numbers with gaps be floats with NaN, and return the columns as they were: anndata does not write them."""
    kinds = pd.Float32Dtype | pd.Float64Dtype
    columns = {name: frame[name] for name, dtype in frame.dtypes.items() if isinstance(dtype, kinds)}
    for name, column in columns.items():
        frame[name] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    return columns


@contextmanager
def plain_arrays(adata: AnnData) -> Iterator[None]:
    """Let fate probabilities and columns be plain arrays meanwhile: not all that they may be can be written."""
    # By its name, as this room does not import CellRank.
    lineages = {key: value for key, value in adata.obsm.items() if type(value).__name__ == "Lineage"}
    floats: list[tuple[pd.DataFrame, dict[str, pd.Series]]] = []
    try:
        for key, value in lineages.items():
            adata.obsm[key] = np.asarray(value.X)
        adata.strings_to_categoricals()
        for frame in (adata.obs, adata.var):
            _use_plain_texts(frame)
            floats.append((frame, _use_plain_floats(frame)))
        yield
    finally:
        for frame, columns in floats:
            for name, column in columns.items():
                frame[name] = column
        for key, value in lineages.items():
            adata.obsm[key] = value


def write_h5ad(adata: AnnData, path: str | Path) -> None:
    """Write an AnnData with all results of CellRank to an h5ad file.

    Take it in place of ``adata.write_h5ad``, which fails with the fate probabilities of CellRank 2.0 and a recent
    anndata. The probabilities are written as plain arrays, without the names of the lineages. CellRank takes the names
    from the terminal states when it reads the file.

    The file is replaced once the new one is complete: if the disk is full or the process is stopped, the old file is
    still there. Until then the compressed file is held in memory.

    Parameters
    ----------
    adata
        Annotated data. Columns of text become categories, as with ``AnnData.write_h5ad``. Columns of pandas' nullable
        floats are written as floats.
    path
        File to write. A file that is there is replaced.

    Raises
    ------
    OSError
        If the file cannot be written. The message names it and the reason.

    Examples
    --------
    >>> import anndata
    >>> from cellrank_velot import write_h5ad
    >>> write_h5ad(adata, "cells.h5ad")
    >>> anndata.read_h5ad("cells.h5ad").n_obs
    300
    """
    with plain_arrays(adata):
        # HDF5 cannot close a file on a full disk, and crashes when the process ends: it writes to memory.
        buffer = BytesIO()
        with h5py.File(buffer, "w") as file:
            write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(buffer.getbuffer())
