"""Selection of cells: each way to say which, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cellrank_velot.cells.select import cells_in_box, cells_in_cluster, cells_in_time, select_cells


@pytest.fixture
def cells() -> AnnData:
    """Return six cells in two clusters, one of them in none, with a time."""
    obs = pd.DataFrame(
        {
            "clusters": pd.Categorical(["a", "a", "b", "b", None, "b"]),
            "time": [0.0, 0.2, 0.4, 0.6, 0.8, np.nan],
            "stage": pd.Categorical([1, 2, 1, 2, 1, 2]),
            "flag": [True, False, True, False, True, False],
        },
        index=[f"cell_{i}" for i in range(6)],
    )
    return AnnData(np.zeros((6, 2)), obs=obs)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ([0, 2], [0, 2]),
        (np.array([5, 5, 1]), [1, 5]),
        (["cell_3", "cell_1"], [1, 3]),
        (pd.Index(["cell_4"]), [4]),
        (np.array([True, False, False, True, False, False]), [0, 3]),
        ([], []),
        ({"clusters": "b"}, [2, 3, 5]),
        ({"clusters": ["a", "b"]}, [0, 1, 2, 3, 5]),
        ({"time": [0.2, 0.6]}, [1, 2, 3]),
        ({"time": (None, 0.2)}, [0, 1]),
        ({"clusters": "b", "time": [0.5, 1]}, [3]),
        ({"stage": 2}, [1, 3, 5]),
        ({"flag": "True"}, [0, 2, 4]),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_each_way_to_say_which(cells, selector, expected):
    mask = select_cells(cells, selector)
    assert mask.dtype == bool
    np.testing.assert_array_equal(np.flatnonzero(mask), expected)


@pytest.mark.parametrize(
    ("selector", "error", "match"),
    [
        ("cell_1", TypeError, r"positions, names, a mask or a dictionary.*'cell_1'"),
        (3, TypeError, r"positions, names, a mask"),
        ([0.5, 1.0], TypeError, r"whole positions"),
        ([0, 6], ValueError, r"positions of cells in \[0, 5\], found `0` to `6`"),
        ([-1], ValueError, r"\[0, 5\], found `-1`"),
        (np.array([True, False]), ValueError, r"mask of `6` cells, found the shape `\(2,\)`"),
        (["cell_1", "nobody"], KeyError, r"names of cells, found \['nobody'\], which"),
        ({"louvain": "a"}, KeyError, r"adata\.obs\['louvain'\].*clusters"),
        ({"clusters": "c"}, KeyError, r"a cluster of `adata\.obs\['clusters'\]`, one of \['a', 'b'\], found 'c'"),
        ({"time": 0.3}, ValueError, r"two ends of an interval of `adata\.obs\['time'\]`"),
        ({"time": [0.3]}, ValueError, r"two ends"),
        ({"time": [0.6, 0.2]}, ValueError, r"from low to high"),
        ({"time": [np.nan, 0.2]}, ValueError, r"from low to high"),
    ],
)
def test_refuses(cells, selector, error, match):
    with pytest.raises(error, match=match):
        select_cells(cells, selector)


def test_the_mask_given_is_not_handed_back(cells):
    given = np.zeros(6, dtype=bool)
    select_cells(cells, given)[0] = True
    assert not given.any()


def test_a_cell_without_cluster_is_in_none(cells):
    assert not cells_in_cluster(cells, "clusters", ["a", "b"])[4]
    with pytest.raises(KeyError, match="found 'nan'"):
        cells_in_cluster(cells, "clusters", "nan")


def test_box_and_interval_take_their_ends_in():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_array_equal(cells_in_box(x, (0, 1), (None, None)), [True, True, True, False])
    np.testing.assert_array_equal(cells_in_box(x, (None, None), (1, None)), [False, False, True, True])
    np.testing.assert_array_equal(cells_in_time(x[:, 0], "x", (1, 3)), [False, True, True, True])
    with pytest.raises(ValueError, match="two ends of an interval of `source_y_lim`"):
        cells_in_box(x, (None, None), 3)
