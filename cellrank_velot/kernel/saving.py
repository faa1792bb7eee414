"""The kernel in AnnData: written beside CellRank's transition matrix, and read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import BaseVelocityKernel
from cellrank_velot.kernel.transitions import PARAMS
from cellrank_velot.storage.pack import STAGES, pack, plain, sealed
from cellrank_velot.storage.saved import cells_fingerprint, read_entry

__all__ = ["Saving"]

# Where the estimates of the kernel are written, by the stage that they come from.
ESTIMATES = {
    "transport": (("obsm", "velot_velocity_raw", "raw_velocity"), ("obs", "velot_confidence", "confidence")),
    "field": (("obsm", "velot_velocity", "velocity"),),
    "uncertainty": (("obs", "velot_uncertainty", "velocity_uncertainty"),),
    "couplings": (("obs", "velot_growth", "growth"),),
}


class Saving(BaseVelocityKernel):
    """Methods of the kernel that write it to AnnData and read it."""

    @all_or_nothing(writes=True)
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
        Nothing. Writes, beside CellRank's ``obsp[key]`` and ``uns["{key}_params"]``,

        - ``obsm["velot_velocity"]`` and ``obsm["velot_velocity_raw"]``: velocity of the field and of transport,
        - ``obs["velot_confidence"]``, ``obs["velot_cluster"]`` and, where computed, ``obs["velot_uncertainty"]``,
        - of real time points ``obs["velot_growth"]``,
        - ``uns["velot"][key]``: windows, velocity, field and uncertainty as arrays.

        Examples
        --------
        >>> vk.write_to_adata()
        >>> sorted(key for key in adata.obsm if key.startswith("velot"))
        ['velot_velocity', 'velot_velocity_raw']
        >>> from cellrank_velot import write_h5ad
        >>> write_h5ad(adata, "cells.h5ad")
        """
        name = key or ("T_bwd" if self.backward else "T_fwd")
        for entry in (f"{name}_params", "velot"):  # of something else, and in the way
            if not isinstance(self.adata.uns.get(entry, {}), Mapping):
                del self.adata.uns[entry]
        super().write_to_adata(key=key, copy=copy)
        key = name
        packed = pack({name: getattr(self, f"_{name}") for name in STAGES})
        packed["n_cells"] = self.cells.n_cells
        packed["fingerprint"] = cells_fingerprint(self.transition_matrix, self.cells)
        packed["settings"] = {step: _writable(values) for step, values in self.settings.items()}
        self.adata.uns["velot"] = {**self.adata.uns.get("velot", {}), key: sealed(packed)}
        if self.windows is not None:
            clusters = self.windows.cluster if self._known_clusters is None else self._known_clusters
            self.adata.obs["velot_cluster"] = pd.Categorical(clusters)
        for stage, places in ESTIMATES.items():
            for slot, name, estimate in places:
                if name in getattr(self.adata, slot):  # of a kernel that was written before
                    del getattr(self.adata, slot)[name]
                if getattr(self, f"_{stage}") is not None:
                    getattr(self.adata, slot)[name] = np.array(getattr(self, estimate))

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

        Returns
        -------
        The kernel; of real time points an :class:`~cellrank_velot.OTTimeSeriesKernel`.

        Raises
        ------
        KeyError
            If nothing was saved under that key.
        ValueError
            If what was saved is damaged, of another version, or of other cells.

        Examples
        --------
        >>> vk.write_to_adata()
        >>> again = OTVelocityKernel.from_adata(adata, key="T_fwd")
        >>> bool((again.velocity == vk.velocity).all())
        True
        """
        entry = read_entry(adata, key)
        try:
            kernel: Self = super().from_adata(adata, key=key, copy=copy)
        except (KeyError, TypeError, ValueError) as error:
            raise entry.other_data(error) from error
        kernel._init_kwargs = plain(kernel._init_kwargs)
        stages, kernel._options = entry.stages(adata.obsp[key], kernel.cells)
        kernel._params = {name: entry.params[name] for name in PARAMS if name in entry.params}  # a file sorts them
        for name, stage in stages.items():
            setattr(kernel, f"_{name}", stage)
        return kernel


def _writable(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as h5ad can hold them: no ``None``, which is what is missing when it is read, and no tuple."""
    return {
        name: np.asarray(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if value is not None
    }
