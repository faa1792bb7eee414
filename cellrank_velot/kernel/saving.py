"""The kernel in AnnData: written beside the host's transition matrix, and read again.

Depends on storage, which knows how stages become arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot._utils.validation import check_known
from cellrank_velot.cells.read import CellStates
from cellrank_velot.kernel._options import STEPS
from cellrank_velot.kernel._parts import Parts
from cellrank_velot.kernel._whole import all_or_nothing
from cellrank_velot.kernel.transitions import PARAMS
from cellrank_velot.storage import pack as storage

__all__ = ["Saving"]


class Saving(Parts):
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
        Nothing. Writes, beside the host's ``obsp[key]`` and ``uns["{key}_params"]``,

        - ``obsm["velot_velocity"]`` and ``obsm["velot_velocity_raw"]``: velocity of the field and of transport,
        - ``obs["velot_confidence"]``, ``obs["velot_cluster"]`` and, where computed, ``obs["velot_uncertainty"]``,
        - with experimental time ``obs["velot_growth"]``,
        - ``uns["velot"][key]``: windows, velocity, field and uncertainty as arrays.

        Examples
        --------
        >>> vk.write_to_adata()
        >>> sorted(key for key in adata.obsm if key.startswith("velot"))
        ['velot_velocity', 'velot_velocity_raw']
        >>> from cellrank_velot import write_h5ad
        >>> write_h5ad(adata, "cells.h5ad")
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
        self.adata.uns["velot"] = {**self.adata.uns.get("velot", {}), key: storage.sealed(packed)}
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

        Returns
        -------
        The kernel.

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
        check_known("adata.obsp", key, adata.obsp.keys())
        where, written = f"adata.uns['velot'][{key!r}]", adata.uns.get("velot", {})
        if not isinstance(written, Mapping) or written.get(key) is None:
            raise KeyError(f"Expected `{where}`, found none: it was not written by this kernel.")
        packed = written[key]
        storage.check_entry(packed, where)
        n_cells = storage.plain(packed.get("n_cells"))
        if not isinstance(n_cells, int) or n_cells != adata.n_obs:
            raise ValueError(
                f"Expected the `{n_cells}` cells that the kernel was saved with, found `{adata.n_obs}`, by "
                f"`{where}['n_cells']`."
            )
        params = _checked_params(adata, key, list(inspect.signature(cls).parameters))
        try:
            kernel: Self = super().from_adata(adata, key=key, copy=copy)
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(
                f"`adata.obsp[{key!r}]` and `adata.uns['{key}_params']['init']` do not give a kernel of these data: "
                f"{error.args[0] if error.args else error}"
            ) from error
        kernel._init_kwargs = storage.plain(kernel._init_kwargs)
        if not storage.same_digest(packed.get("fingerprint"), _fingerprint(adata.obsp[key], kernel.cells)):
            raise ValueError(
                f"Expected the matrix that was saved in `adata.obsp[{key!r}]`, and the basis and time of "
                f"`adata.uns['{key}_params']['init']` that it was computed from, by `{where}['fingerprint']`, found "
                "others, or cells in another order. Compute the kernel again."
            )
        stages = storage.unpack(packed, where, {"n_cells": adata.n_obs, "n_dims": kernel.cells.n_dims})
        couplings: Any = stages.get("couplings")
        if couplings is not None and not np.array_equal(couplings.times, kernel.cells.time_points):
            expected = f"to be the time points `{kernel.cells.time_points}`, found `{couplings.times}`"
            storage.damaged(f"{where}['couplings']['times']", expected)
        kernel._settings = kernel._read_settings(packed.get("settings", {}), f"{where}['settings']")
        kernel._params = {name: params[name] for name in PARAMS if name in params}  # a file sorts them by name
        for name, stage in stages.items():
            setattr(kernel, f"_{name}", stage)
        return kernel

    def _read_settings(self, stored: Any, where: str) -> dict[str, dict[str, Any]]:
        """Return the settings of a file, of known steps and options, with nothing but plain values and arrays."""
        if not isinstance(stored, Mapping) or not set(stored) <= set(STEPS):
            found = sorted(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
            storage.damaged(where, f"with steps of {sorted(STEPS)}, found `{found}`")
        settings = {}
        for step, values in stored.items():
            names = self._names_of(step)
            if not isinstance(values, Mapping) or not set(values) <= set(names):
                found = sorted(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
                storage.damaged(f"{where}[{step!r}]", f"with parameters of {names}, found `{found}`")
            for name, value in values.items():
                storage.check_plain(f"{where}[{step!r}][{name!r}]", value)
            settings[step] = dict.fromkeys(names) | storage.plain(dict(values))
        return settings


def _checked_params(adata: AnnData, key: str, arguments: list[str]) -> dict[str, Any]:
    """Return the parameters that the host has saved, after a look at what it passes on to the constructor.

    Raises
    ------
    KeyError, ValueError
        If they are missing or damaged.
    """
    where = f"adata.uns['{key}_params']"
    check_known("adata.uns", f"{key}_params", adata.uns.keys())
    saved = adata.uns[f"{key}_params"]
    for name in ("init", "params"):
        if not isinstance(saved, Mapping) or not isinstance(saved.get(name), Mapping):
            storage.damaged(f"{where}[{name!r}]", "to be a dictionary, found none")
        for entry, value in saved[name].items():
            storage.check_plain(f"{where}[{name!r}][{entry!r}]", value)
    if not set(saved["init"]) <= set(arguments):
        storage.damaged(f"{where}['init']", f"with arguments of {arguments}, found {sorted(map(str, saved['init']))}")
    matrix = sp.csr_matrix(adata.obsp[key])
    if matrix.dtype.kind != "f" or not (np.isfinite(matrix.data) & (matrix.data >= 0)).all():
        storage.damaged(f"adata.obsp[{key!r}]", f"to be finite and not negative, found `{matrix.dtype}`")
    params: dict[str, Any] = storage.plain(dict(saved["params"]))
    return params


def _fingerprint(matrix: sp.spmatrix, cells: CellStates) -> str:
    """Return a digest of a transition matrix and the cells that it was computed from."""
    matrix = sp.csr_matrix(matrix)
    entries = {name: getattr(matrix, name).astype(np.int64) for name in ("indices", "indptr")}
    return storage.fingerprint({"data": matrix.data, **entries, "x": cells.x, "time": cells.time})
