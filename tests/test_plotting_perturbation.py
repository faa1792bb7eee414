"""Pictures of perturbations: what is drawn of a shift and of a displacement, and what is refused."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from numpy.testing import assert_allclose

from cellrank_velot.perturbation import FateShift, compute_perturbation
from cellrank_velot.plotting.perturbation import fate_shift, perturbation_arrows

pytestmark = pytest.mark.usefixtures("_close_figures")


@pytest.fixture
def _close_figures():
    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def shift() -> FateShift:
    """Two groups, of which one shifts to the left beyond all of nineteen other genes."""
    rng = np.random.default_rng(0)
    before = np.full((2, 2), 0.5)
    after = np.array([[0.9, 0.1], [0.5, 0.5]])
    null = rng.normal(scale=0.05, size=(19, 2, 2))
    return FateShift(
        name="Pax4 = 0",
        groups=np.array(["early", "late"]),
        lineages=np.array(["left", "right"]),
        before=before,
        after=after,
        low=after - before - 0.1,
        high=after - before + 0.1,
        null=null,
        null_genes=np.array([[f"g{i}"] for i in range(19)]),
        no_fate=np.zeros((2, 2)),
        changed=np.array([0.4, 0.0]),
        n_particles=100,
        level=0.95,
    )


def dots(panel):
    """Return the large dots: where they are, and their faces."""
    found = [part for part in panel.collections if part.get_sizes().size and part.get_sizes()[0] > 20]
    return np.array([part.get_offsets()[0] for part in found]), [to_hex(part.get_facecolor()[0]) for part in found]


def test_shifts_are_dots_that_are_filled_beyond_chance(adata, shift):
    early, late = fate_shift(adata, shift, alpha=0.1, show=False)
    places, faces = dots(early)
    assert_allclose(places, [[0.4, 0], [-0.4, 1]])
    assert "#ffffff" not in faces
    assert faces[0] != faces[1]
    assert dots(late)[1] == ["#ffffff", "#ffffff"]
    assert [label.get_text() for label in early.get_yticklabels()] == ["left", "right"]
    assert early.get_xlim() == late.get_xlim()
    assert "early" in early.get_title(loc="left")
    assert [text.get_text() for text in early.texts] == ["p = 0.05", "p = 0.05"]


def test_other_genes_are_small_dots_within_their_band(adata, shift):
    (panel,) = fate_shift(adata, shift, groups="late", show=False)
    small = [part for part in panel.collections if part.get_sizes().size and part.get_sizes()[0] < 20]
    assert_allclose(small[0].get_offsets()[:, 0], shift.null[:, 1, 0])
    low, high = shift.null_interval()
    assert_allclose([panel.patches[0].get_x(), panel.patches[0].get_width()], [low[1, 0], high[1, 0] - low[1, 0]])


def test_colors_are_those_of_the_clusters(adata, shift):
    adata.uns["clusters_colors"] = ["#111111", "#222222", "#333333"]  # left, right, stem
    panel = fate_shift(adata, shift, alpha=0.1, show=False)[0]
    assert dots(panel)[1] == ["#111111", "#222222"]


def test_without_other_genes_there_are_neither_bands_nor_p(adata, shift):
    alone = FateShift.from_dict({**shift.to_dict(), "null": shift.null[:0], "null_genes": shift.null_genes[:0]})
    panel = fate_shift(adata, alone, show=False)[0]
    assert not panel.patches
    assert not panel.texts


def test_the_axes_of_the_caller_are_used(adata, shift):
    _, axes = plt.subplots(1, 2)
    assert fate_shift(adata, shift, ax=axes, show=False) == list(axes)
    with pytest.raises(ValueError, match="Expected `2` Axes"):
        fate_shift(adata, shift, ax=axes[0], show=False)


def test_a_file_is_written(adata, shift, tmp_path):
    assert fate_shift(adata, shift, save=tmp_path / "shift.png") is None
    assert (tmp_path / "shift.png").stat().st_size > 5000


def test_what_is_no_shift_is_refused(adata, shift):
    with pytest.raises(TypeError, match="to be a `FateShift`"):
        fate_shift(adata, "Pax4")
    with pytest.raises(KeyError, match="'never'"):
        fate_shift(adata, shift, groups="never")
    with pytest.raises(ValueError, match="`alpha`"):
        fate_shift(adata, shift, alpha=2.0)


# --------------------------------------------------------------------------------------------------------------- arrows
@pytest.fixture
def kernel(planted, adata):
    """What the plot asks of a kernel, with a velocity that points to where a cell is."""

    class Field:
        def on(self, _device):
            return lambda x, _time: x

    cells = SimpleNamespace(x=planted.x, time=planted.time, n_cells=planted.x.shape[0])
    return SimpleNamespace(
        adata=adata, cells=cells, connectivities=planted.graph, field=Field(), velocity=planted.x, backward=False
    )


@pytest.fixture
def upward(planted):
    """A gene that takes late cells up, in the second dimension, which the embedding shows."""
    values = np.where(planted.time > 0.3, 1.0, 0.0)[:, None]
    return compute_perturbation(values, np.eye(5)[:, [1]], {"a": ("scale", 1.5)})


@pytest.mark.parametrize("quantity", ["displacement", "response"])
def test_arrows_point_where_cells_are_taken(kernel, upward, quantity):
    panel = perturbation_arrows(kernel, upward, quantity=quantity, n_grid=15, show=False)
    (arrows,) = [part for part in panel.collections if isinstance(part, Quiver)]
    assert arrows.V.min() > 0
    assert np.abs(arrows.U).max() < np.abs(arrows.V).max()
    # Early cells are not perturbed, and have no arrow.
    assert arrows.X.min() > 0.5
    assert panel.get_title(loc="left") == f"a × 1.5: {quantity}"


def test_arrows_refuse_what_they_cannot_draw(kernel, upward, adata):
    with pytest.raises(TypeError, match="`OTVelocityKernel` itself"):
        perturbation_arrows(adata, upward)
    with pytest.raises(TypeError, match="to be a `Perturbation`"):
        perturbation_arrows(kernel, "Pax4")
    with pytest.raises(ValueError, match="`quantity`"):
        perturbation_arrows(kernel, upward, quantity="speed")
    kernel.field = None
    with pytest.raises(RuntimeError, match="fit_field"):
        perturbation_arrows(kernel, upward, quantity="response")
