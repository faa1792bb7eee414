"""Velocities to ask for: at any place, without the pull to the data, and in reversed time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cellrank_velot._utils.options import Run
from cellrank_velot._utils.validation import check_integer
from cellrank_velot.field import VelocityField, fit_field
from cellrank_velot.kernel._atomic import all_or_nothing
from cellrank_velot.kernel.base import STAGES, BaseVelocityKernel

__all__ = ["Velocities"]

# The methods that a velocity takes, by the names of their options.
STEPS = {"windows": "compute_windows", "velocity": "compute_velocity", "field": "fit_field"}


class Velocities(BaseVelocityKernel):
    """Methods of the kernel that give its velocity elsewhere than at its cells, or otherwise."""

    @all_or_nothing()
    def current_field(self, *, device: str = "auto", show_progress_bar: bool = True) -> VelocityField:
        """Return the field without the relaxation to the data: the part that changes its sign when time is reversed.

        Going back in time needs it, as in ``compute_trajectories(direction="backward")``. It is fitted at the first
        call, with the options of :meth:`fit_field`, and it is not saved.

        Parameters
        ----------
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show a progress bar.

        Returns
        -------
        The field. Where there is no relaxation it is :attr:`field` itself.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.

        Examples
        --------
        >>> current = vk.fit_field(n_steps=50).current_field()
        >>> current(vk.cells.x, vk.cells.time).shape
        (300, 20)
        """
        field, transport = self._needed("field", "fit_field"), self._needed("transport", "compute_velocity")
        if not transport.relaxation.any():
            return field
        if "field" not in self._options:
            raise RuntimeError("The parameters of the field were not saved: call `.fit_field()` again.")
        if self._current is None:
            options: Any = self._options["field"]
            self._current = fit_field(
                self.cells.x,
                self.cells.time,
                transport.velocity - transport.relaxation,
                transport.fit_weight,
                self.smoothed.graph,
                options=options,
                run=Run(device=device, show_progress_bar=show_progress_bar),
                smoothed=self.smoothed,
            )
        return self._current

    def reversed_velocity(self, *, device: str = "auto", show_progress_bar: bool = False) -> NDArray[np.float64]:
        """Return the velocity that the same steps with the same options give where time runs the other way.

        It tells direction from noise: direction changes its sign with time, noise does not.
        :func:`cellrank_velot.metrics.cross_boundary_direction` takes it. All steps are repeated at each call, and the
        kernel stays as it is.

        Parameters
        ----------
        device
            Torch device; ``"auto"`` takes a GPU where there is one.
        show_progress_bar
            Whether to show progress bars.

        Returns
        -------
        Velocity of the field of reversed time at each cell, shape ``[n_cells, n_dims]``, in units of the basis per unit
        of time.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.

        Examples
        --------
        >>> cosine = metrics.cosines(vk.velocity, vk.reversed_velocity())
        >>> bool(np.median(cosine) < 0)
        True
        """
        self._needed("field", "fit_field")
        if missing := [step for step in STEPS if step not in self._options]:
            raise RuntimeError(f"The parameters of {missing} were not saved: call `.fit_field()` again.")
        twin = self._in_reversed_time()
        for step, method in STEPS.items():
            run = {} if step == "windows" else {"device": device, "show_progress_bar": show_progress_bar}
            getattr(twin, method)(**self._arguments(step), **run)
        return twin.velocity

    def _in_reversed_time(self) -> Self:
        """Return a kernel of the same cells whose time runs the other way, before its first step."""
        twin: Self = self._copy_ignore("_transition_matrix", "_computed", "_logits")
        # A pseudotime stays within [0, 1]; of real time points the sign alone changes, so that they stay exact.
        last = 0.0 if self.cells.is_series else 1.0
        twin._cells, twin._reversed = replace(self.cells, time=last - self.cells.time), True
        twin._options = {}
        for name in (*STAGES, "couplings", "paths", "current"):
            setattr(twin, f"_{name}", None)
        twin._forget_matrix()
        return twin

    def query_velocity(
        self, positions: NDArray[np.float64], time: NDArray[np.float64] | float | None = None, *, n_neighbors: int = 15
    ) -> NDArray[np.float64]:
        """Ask the field for the velocity at any position.

        Parameters
        ----------
        positions
            Positions in the basis, shape ``[n_points, n_dims]``.
        time
            Time of each position, shape ``[n_points]``, or one for all: a pseudotime from 0 to 1, or a real time in
            the units of ``time_key``. Where not given, the mean time of the nearest cells.
        n_neighbors
            Number of nearest cells whose mean time is taken.

        Returns
        -------
        Velocities in units of the basis per unit of time, shape ``[n_points, n_dims]``.

        Raises
        ------
        RuntimeError
            Before :meth:`fit_field`.
        ValueError
            If a shape does not fit or a value is not finite.

        Examples
        --------
        >>> between = (vk.cells.x[:5] + vk.cells.x[5:10]) / 2
        >>> vk.query_velocity(between).shape
        (5, 20)
        >>> bool(np.allclose(vk.query_velocity(vk.cells.x, vk.cells.time), vk.velocity))
        True
        """
        field = self._needed("field", "fit_field")
        positions = np.asarray(positions, dtype=np.float64)
        if positions.ndim != 2 or positions.shape[1] != field.n_dims:
            raise ValueError(f"Expected `positions` of shape `[n_points, {field.n_dims}]`, found `{positions.shape}`.")
        check_integer("n_neighbors", n_neighbors, low=1)
        if not np.isfinite(positions).all():
            raise ValueError("Expected finite `positions` and `time`, found NaN or infinite values.")
        time = np.asarray(self.cells.time_at(positions, n_neighbors) if time is None else time, dtype=np.float64)
        if time.shape not in ((), (positions.shape[0],)):
            raise ValueError(f"Expected `time` of shape `[{positions.shape[0]}]`, found `{time.shape}`.")
        if not np.isfinite(time).all():
            raise ValueError("Expected finite `positions` and `time`, found NaN or infinite values.")
        return field(positions, time)
