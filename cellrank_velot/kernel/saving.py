"""The kernel in AnnData: written beside the host's transition matrix, and read again.

Depends on storage, which knows how stages become arrays.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot import storage
from cellrank_velot._validation import check_known
from cellrank_velot.cells import CellStates
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel.transitions import PARAMS

__all__ = ["Saving"]


class Saving(Parts):
    """Methods of the kernel that write it to AnnData and read it."""

    def write_to_adata(self, key: str | None = None, copy: bool = False) -> None:
        """Write transition matrix, parameters, windows, velocities and field to :attr:`adata`.

        Parameters
        ----------
        key
            Key of the transition matrix in ``adata.obsp``; ``T_fwd`` or ``T_bwd`` where not given.
        copy
            Whether to copy the transition matrix.

        Returns
        -------
        Nothing. Writes, beside the host's ``obsp[key]`` and ``uns["{key}_params"]``,

        - ``obsm["velot_velocity"]`` and ``obsm["velot_velocity_raw"]``: velocity of the field and of transport,
        - ``obs["velot_confidence"]``, ``obs["velot_cluster"]`` and, where computed, ``obs["velot_uncertainty"]``,
        - with experimental time ``obs["velot_growth"]``,
        - ``uns["velot"][key]``: windows, velocity, field and uncertainty as arrays.
        """
        super().write_to_adata(key=key, copy=copy)
        key = key or ("T_bwd" if self.backward else "T_fwd")
        packed = storage.pack({name: getattr(self, name) for name in storage.STAGES})
        packed["n_cells"] = self.cells.n_cells
        packed["fingerprint"] = _fingerprint(self.transition_matrix, self.cells)
        # A file holds no `None`: what is missing there is read as one.
        packed["settings"] = {
            step: {name: value for name, value in values.items() if value is not None}
            for step, values in self.settings.items()
        }
        self.adata.uns["velot"] = {**self.adata.uns.get("velot", {}), key: packed}
        if self.windows is not None:
            cluster_key = self._init_kwargs["cluster_key"]
            clusters = self.windows.cluster if cluster_key is None else self.adata.obs[cluster_key].to_numpy()
            self.adata.obs["velot_cluster"] = pd.Categorical(clusters)
        for slot, name in (
            ("obsm", "velot_velocity"),
            ("obsm", "velot_velocity_raw"),
            ("obs", "velot_confidence"),
            ("obs", "velot_uncertainty"),
            ("obs", "velot_growth"),
        ):
            if name in getattr(self.adata, slot):  # of a kernel written before
                del getattr(self.adata, slot)[name]
        if self.transport is not None:
            self.adata.obsm["velot_velocity_raw"] = self.transport.velocity.copy()
            self.adata.obs["velot_confidence"] = self.transport.confidence
            if self.transport.growth is not None:
                self.adata.obs["velot_growth"] = self.growth
        if self.field is not None:
            self.adata.obsm["velot_velocity"] = self.velocity
        if self.uncertainty is not None:
            self.adata.obs["velot_uncertainty"] = self.velocity_uncertainty

    @classmethod
    def from_adata(cls, adata: AnnData, key: str, copy: bool = False) -> Self:
        """Read a kernel saved by :meth:`write_to_adata`, with its windows, velocities, field and settings.

        Logits and condition number are not saved: :meth:`compute_transition_matrix` gives them again.

        Parameters
        ----------
        adata
            Annotated data.
        key
            Key of the transition matrix in ``adata.obsp``.
        copy
            Whether to copy the transition matrix.

        Raises
        ------
        KeyError
            If nothing was saved under that key.
        ValueError
            If what was saved is damaged, of another version, or of other cells.
        """
        check_known("adata.obsp", key, adata.obsp.keys())
        packed = adata.uns.get("velot", {}).get(key)
        if packed is None:
            raise KeyError(f"Expected `adata.uns['velot'][{key!r}]`, found none: it was not written by this kernel.")
        if int(packed["n_cells"]) != adata.n_obs:
            raise ValueError(
                f"Expected the `{packed['n_cells']}` cells that the kernel was saved with, found `{adata.n_obs}`."
            )
        stages = storage.unpack(packed)
        saved = adata.uns[f"{key}_params"]
        kernel: Self = super().from_adata(adata, key=key, copy=copy)
        kernel._init_kwargs = storage.plain(kernel._init_kwargs)
        if packed.get("fingerprint") != _fingerprint(adata.obsp[key], kernel.cells):
            raise ValueError(
                f"Expected the matrix that was saved in `adata.obsp[{key!r}]`, and the basis and time that it was "
                "computed from, found others. Compute the kernel again."
            )
        kernel._settings = {
            step: dict.fromkeys(kernel._names_of(step)) | values
            for step, values in storage.plain(packed.get("settings", {})).items()
        }
        params = storage.plain(dict(saved["params"]))
        kernel._params = {name: params[name] for name in PARAMS if name in params}  # a file sorts them by name
        for name, stage in stages.items():
            setattr(kernel, f"_{name}", stage)
        return kernel


def _fingerprint(matrix: sp.spmatrix, cells: CellStates) -> str:
    """Return a digest of a transition matrix and the cells that it was computed from."""
    matrix = sp.csr_matrix(matrix)
    entries = {name: getattr(matrix, name).astype(np.int64) for name in ("indices", "indptr")}
    return storage.fingerprint({"data": matrix.data, **entries, "x": cells.x, "time": cells.time})
