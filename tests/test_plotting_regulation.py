"""Pictures of regulation: signs by colour and ending, widths by strength, groups by panel, files, errors."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from cellrank_velot.plotting.regulation import ACTIVATION, REPRESSION, regulation_heatmap, regulation_network
from cellrank_velot.regulation.matrix import Regulation

pytestmark = pytest.mark.usefixtures("_close_figures")


@pytest.fixture
def _close_figures():
    plt.close("all")  # of a test before, in the same process
    yield
    plt.close("all")


def planted(jacobian, names, groups=("all",), width=0.01, stability=1.0) -> Regulation:
    jacobian = np.broadcast_to(np.asarray(jacobian, dtype=float), (len(groups), len(names), len(names)))
    return Regulation(
        jacobian=jacobian,
        std=np.full(jacobian.shape, width),
        lower=jacobian - width,
        upper=jacobian + width,
        stability=np.broadcast_to(stability, jacobian.shape),
        held=np.ones(jacobian.shape[:2]),
        n_cells=np.full(len(groups), 30),
        groups=np.array(groups),
        names=np.array(names),
        degradation=np.zeros(len(names)),
        level=0.95,
    )


SWITCH = np.array([[0.5, -2.0], [-1.0, 0.25]])


@pytest.fixture
def switch() -> Regulation:
    return planted(SWITCH, ["Gata1", "Spi1"])


def arrows(panel) -> list[FancyArrowPatch]:
    return [patch for patch in panel.patches if isinstance(patch, FancyArrowPatch)]


def written(panel) -> list[str]:
    return [text.get_text() for text in panel.texts]


# ---------------------------------------------------------------------------------------------------- heat map
def test_heat_map_has_effects_with_targets_below_each_other(switch):
    panel = regulation_heatmap(switch, show=False)
    image = panel.images[0]
    np.testing.assert_array_equal(image.get_array(), SWITCH)
    assert image.get_clim() == (-2.0, 2.0)  # white is zero
    assert to_hex(image.to_rgba(np.array([[0.0]]))[0, 0]) == "#ffffff"
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["Gata1", "Spi1"]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Source", "Target")
    assert written(panel) == ["+0.5", "-2", "-1", "+0.25"]
    assert panel.get_title(loc="left") == ""


def test_heat_map_has_a_panel_for_each_group_with_the_same_colours():
    regulation = planted(3 * SWITCH, ["a", "b"], ("one", "two"))
    panels = regulation_heatmap(regulation, show=False)
    assert [panel.get_title(loc="left") for panel in panels] == ["one (30)", "two (30)"]
    assert {panel.images[0].get_clim() for panel in panels} == {(-6.0, 6.0)}
    alone = regulation_heatmap(regulation, "two", limit=1, show=False)
    assert alone.images[0].get_clim() == (-1.0, 1.0)


def test_heat_map_hatches_effects_of_either_sign():
    panel = regulation_heatmap(planted(SWITCH, ["a", "b"], width=0.6), show=False)
    boxes = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
    assert sorted((box.get_x() + 0.5, box.get_y() + 0.5) for box in boxes) == [(0, 0), (1, 1)]


def test_heat_map_of_many_genes_writes_no_numbers():
    names = [f"gene_{i}" for i in range(30)]
    panel = regulation_heatmap(planted(np.eye(30), names), show=False)
    assert written(panel) == []
    assert len(panel.get_yticklabels()) == 30


def test_heat_map_of_nothing_is_white():
    panel = regulation_heatmap(planted(np.zeros((2, 2)), ["a", "b"]), show=False)
    assert panel.images[0].get_clim() == (-1.0, 1.0)


# ----------------------------------------------------------------------------------------------------- network
def test_network_draws_signs_by_colour_and_ending_and_strength_by_width(switch):
    panel = regulation_network(switch, show=False)
    drawn = sorted(arrows(panel), key=lambda arrow: -arrow.get_linewidth())
    assert [to_hex(arrow.get_edgecolor()).upper() for arrow in drawn] == [REPRESSION] * 2 + [ACTIVATION] * 2
    endings = [type(arrow.get_arrowstyle()).__name__ for arrow in drawn]
    assert endings == ["BarAB"] * 2 + ["CurveFilledB"] * 2
    widths = np.array([arrow.get_linewidth() for arrow in drawn])
    np.testing.assert_allclose(widths, 0.8 + 3.2 * np.array([2, 1, 0.5, 0.25]) / 2)
    assert sum(isinstance(patch, Circle) for patch in panel.patches) == 2
    assert written(panel) == ["Gata1", "Spi1"]
    assert [text.get_text() for text in panel.get_legend().get_texts()][:2] == ["activates", "represses"]


def ends_of(arrow: FancyArrowPatch) -> tuple[np.ndarray, np.ndarray]:
    points = arrow.get_path().vertices  # of the shaft first, a curve of three points
    return points[0], points[2]


def test_an_edge_runs_from_source_to_target():
    jacobian = np.zeros((3, 3))
    jacobian[2, 0] = 1.0  # the first gene drives the third
    place = {"a": (0.0, 0.0), "b": (4.0, 0.0), "c": (0.0, 4.0)}
    panel = regulation_network(planted(jacobian, list("abc")), layout=place, min_stability=0, n_edges=1, show=False)
    panel.figure.canvas.draw()
    centre = {text.get_text(): np.array(text.get_position()) for text in panel.texts}
    start, stop = ends_of(arrows(panel)[0])
    assert min(centre, key=lambda name: np.linalg.norm(centre[name] - start)) == "a"
    assert min(centre, key=lambda name: np.linalg.norm(centre[name] - stop)) == "c"


def test_loops_stay_within_the_panel_and_leave_the_other_nodes():
    names = list("abcdef")
    panel = regulation_network(planted(np.eye(6), names), show=False)
    panel.figure.canvas.draw()
    low, high = np.array([panel.get_xlim(), panel.get_ylim()]).T
    circles = [patch for patch in panel.patches if isinstance(patch, Circle)]
    assert len(arrows(panel)) == 6
    for arrow in arrows(panel):
        points = np.concatenate(arrow.get_path().to_polygons(closed_only=False))
        assert (points > low).all()
        assert (points < high).all()
        touched = [
            circle for circle in circles if (np.linalg.norm(points - circle.center, axis=1) < circle.radius).any()
        ]
        assert len(touched) <= 1


def test_network_leaves_out_what_is_weak_or_unstable(switch):
    assert len(arrows(regulation_network(switch, n_edges=3, show=False))) == 3
    assert len(arrows(regulation_network(switch, self_loops=False, show=False))) == 2
    unstable = planted(SWITCH, ["a", "b"], stability=0.9)
    panel = regulation_network(unstable, show=False)
    assert arrows(panel) == []
    assert "no edge of a stable sign" in written(panel)
    assert len(arrows(regulation_network(unstable, min_stability=0.9, show=False))) == 4


def test_network_draws_twenty_edges_where_no_number_is_asked_for():
    panel = regulation_network(planted(np.random.default_rng(0).normal(size=(9, 9)), list("abcdefghi")), show=False)
    assert len(arrows(panel)) == 20


@pytest.mark.parametrize("layout", ["circular", "near"])
def test_nodes_do_not_lie_on_each_other(layout):
    jacobian = np.random.default_rng(0).normal(size=(14, 14))
    panel = regulation_network(planted(jacobian, [f"g{i}" for i in range(14)]), layout=layout, n_edges=9, show=False)
    circles = [patch for patch in panel.patches if isinstance(patch, Circle)]
    at = np.array([circle.center for circle in circles])
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)[~np.eye(14, dtype=bool)]
    assert apart.min() > 2 * circles[0].radius


def test_panels_share_places_and_widths():
    both = np.stack([SWITCH, SWITCH / 4])
    regulation = planted(both, ["a", "b"], ("one", "two"))
    one, two = regulation_network(regulation, show=False)
    assert max(arrow.get_linewidth() for arrow in arrows(one)) == pytest.approx(4.0)
    assert max(arrow.get_linewidth() for arrow in arrows(two)) == pytest.approx(0.8 + 3.2 / 4)
    assert [t.get_position() for t in one.texts] == [t.get_position() for t in two.texts]


def test_network_of_one_gene():
    assert len(arrows(regulation_network(planted([[1.0]], ["a"]), show=False))) == 1


# --------------------------------------------------------------------------------------------- files and errors
@pytest.mark.parametrize("draw", [regulation_heatmap, regulation_network])
def test_files_and_axes_of_the_caller(switch, draw, tmp_path):
    assert draw(switch, save=tmp_path / "figure.png", dpi=50) is None
    assert (tmp_path / "figure.png").stat().st_size > 1000
    _, ax = plt.subplots()
    assert draw(switch, ax=ax, show=False) is ax
    with pytest.raises(ValueError, match="Expected `1` Axes in `ax`, found `2`"):
        draw(switch, ax=plt.subplots(1, 2)[1])


@pytest.mark.parametrize("draw", [regulation_heatmap, regulation_network])
def test_wrong_input_is_refused(switch, draw):
    with pytest.raises(TypeError, match="compute_regulation"):
        draw(np.eye(2))
    with pytest.raises(KeyError, match=r"groups\['none'\].*all"):
        draw(switch, "none")
    with pytest.raises(ValueError, match="groups to draw"):
        draw(switch, [])


def test_wrong_options_are_refused(switch):
    with pytest.raises(ValueError, match="`limit`"):
        regulation_heatmap(switch, limit=0)
    with pytest.raises(ValueError, match="`n_edges` to be at least `1`"):
        regulation_network(switch, n_edges=0)
    with pytest.raises(ValueError, match="`layout` to be one of"):
        regulation_network(switch, layout="nice")
    with pytest.raises(KeyError, match=r"layout\['Spi1'\]"):
        regulation_network(switch, layout={"Gata1": (0, 0)})
