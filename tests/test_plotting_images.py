"""Pictures compared with how they looked when somebody last looked at them."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from cellrank_velot.dynamics import Trajectories
from cellrank_velot.plotting import flow, velocity_grid

BASELINES = Path(__file__).parent / "baseline"


def ring() -> AnnData:
    """Return 144 cells on a ring, each of which steps on to its next one, in three clusters."""
    angle = np.linspace(0, 2 * np.pi, 144, endpoint=False)
    adata = AnnData(np.ones((144, 1), dtype=np.float32))
    radius = 1 + 0.15 * np.cos(7 * angle)
    adata.obsm["X_umap"] = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    adata.obsm["X_pca"] = adata.obsm["X_umap"].copy()
    near = sp.csr_matrix(sum(np.roll(np.eye(144), shift, axis=1) for shift in (-2, -1, 1, 2)))
    weights = sum(w * np.roll(np.eye(144), shift, axis=1) for shift, w in ((-2, 0.05), (-1, 0.1), (1, 0.45), (2, 0.4)))
    adata.obsp["T_fwd"], adata.obsp["connectivities"] = sp.csr_matrix(weights), near
    adata.obs["clusters"] = pd.Categorical(np.repeat(["a", "b", "c"], 48))
    adata.uns["clusters_colors"] = ["#0072b2", "#e69f00", "#009e73"]
    return adata


def swarm(adata: AnnData) -> Trajectories:
    """Return nine particles that run along the ring, some further than others."""
    steps = np.array([10, 20, 30] * 3)
    starts = np.array([0, 8, 16, 50, 58, 66, 98, 106, 114])
    points = [np.arange(start, start + n) % 144 for start, n in zip(starts, steps, strict=True)]
    return Trajectories(
        ids=np.arange(9),
        x=np.concatenate([adata.obsm["X_pca"][part] for part in points]),
        time=np.concatenate([np.linspace(0, 1, part.size) for part in points]),
        offsets=np.concatenate([[0], np.cumsum(steps)]),
        status=np.where(steps < 30, 0, 3).astype(np.int8),
        direction=np.ones(9, dtype=np.int8),
        start_ix=starts,
        clusters=np.array(["a", "b", "c"]),
        start_cluster=starts // 48,
        end_cluster=np.array([part[-1] // 48 for part in points]),
        n_tried=9,
    )


def grid(adata: AnnData, axes: list, **kwargs) -> None:
    velocity_grid(adata, color="clusters", legend=False, n_grid=16, ax=axes[0], **kwargs)


def frames(adata: AnnData, axes: list, **kwargs) -> None:
    flow(adata, swarm(adata), legend=False, n_frames=2, ax=axes, **kwargs)


PICTURES = {
    "velocity_grid": (grid, 1, {"arrow_length": 2.4}),
    "flow": (frames, 2, {"color_by": "time"}),
}


def picture(name: str, path: Path, **kwargs) -> Path:
    draw, n_axes, _ = PICTURES[name]
    figure = plt.figure(figsize=(2.4 * n_axes, 2.4), dpi=80)
    axes = [figure.add_axes(((i + 0.02) / n_axes, 0.02, 0.96 / n_axes, 0.9)) for i in range(n_axes)]
    draw(ring(), axes, **kwargs)
    for ax in axes:
        ax.set_axis_off()  # no text: fonts differ between versions
        ax.set_title("", loc="left")
    figure.savefig(path)
    plt.close(figure)
    return path


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_as_before(name, tmp_path, picture_distance):
    """To renew one, delete its file, run this once, and look at what it has drawn."""
    baseline = BASELINES / f"{name}.png"
    if not baseline.exists():
        picture(name, baseline)
        pytest.fail(f"{baseline} was missing and is drawn now: look at it, then run again")

    def difference(**kwargs) -> float:
        return picture_distance(picture(name, tmp_path / "new.png", **kwargs), baseline)

    assert difference() < 0.01
    # The bound tells a picture from another one.
    assert difference(**PICTURES[name][2]) > 0.015
