"""An AnnData as a folder of zarr, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from anndata import AnnData

from cellrank_velot._utils.files import MARK
from cellrank_velot.storage.h5ad import plain_arrays

__all__ = ["write_zarr"]


def write_zarr(adata: AnnData, path: str | Path) -> None:
    """Write an AnnData with all results of CellRank to a folder of zarr.

    Take it in place of ``adata.write_zarr``, for the reason that :func:`write_h5ad` gives. A folder that is there is
    replaced once the new one is complete.

    Parameters
    ----------
    adata
        Annotated data. Columns of text become categories, as with ``AnnData.write_zarr``.
    path
        Folder to write. A store of zarr that is there is replaced; another folder, or a file, is not.

    Raises
    ------
    FileExistsError
        If something else than a store of zarr is at ``path``.
    OSError
        If the folder cannot be written.

    Examples
    --------
    >>> import anndata
    >>> from cellrank_velot import write_zarr
    >>> write_zarr(adata, "cells.zarr")
    >>> anndata.read_zarr("cells.zarr").n_obs
    300
    """
    target = Path(os.path.realpath(path))
    is_store = any((target / name).exists() for name in (".zgroup", "zarr.json"))
    if target.exists() and not is_store and (target.is_file() or any(target.iterdir())):
        raise FileExistsError(f"Expected a store of zarr or nothing at {path}, found something else.")
    new, old = (target.with_name(f".{target.name}{MARK}{secrets.token_hex(4)}") for _ in range(2))
    try:
        with plain_arrays(adata):
            adata.write_zarr(new)
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
