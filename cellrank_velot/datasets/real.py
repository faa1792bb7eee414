"""The pancreas data set, downloaded by CellRank or read from a local file."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData, read_h5ad

__all__ = ["pancreas"]


def pancreas(path: str | Path | None = None) -> AnnData:
    """Return mouse pancreas endocrinogenesis at E15.5 :cite:p:`bastidas-ponce:19`, raw counts.

    Parameters
    ----------
    path
        An h5ad file to read. Where not given, CellRank downloads its copy of 2531 cells, once, to the folder
        ``datasets/`` of the working directory.

    Returns
    -------
    AnnData with counts in `X` and the cell types in ``obs["clusters"]``. Hand it to
    ``cellrank_velot.pp.prepare(adata, root_cluster=...)``.

    Raises
    ------
    FileNotFoundError
        If there is no file at `path`.
    ConnectionError
        If the download fails.

    Examples
    --------
    >>> adata.write_h5ad("cells.h5ad")  # a file of one's own, here other cells
    >>> datasets.pancreas("cells.h5ad").shape  # without a path, CellRank downloads the data
    (300, 100)
    """
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"Expected an h5ad file at `{path}`, found none. Leave `path` out to download the data."
            )
        return read_h5ad(path)
    from cellrank.datasets import pancreas as download

    try:
        adata: AnnData = download()
    except OSError as error:  # what urllib, sockets and the file system raise
        raise ConnectionError(
            f"The pancreas data could not be downloaded: {error}. Without a connection read a local h5ad file, "
            "`datasets.pancreas(path=...)`, or use simulated cells, `datasets.bifurcation()`."
        ) from error
    return adata
