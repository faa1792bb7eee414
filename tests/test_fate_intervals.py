"""Intervals of fates: closed forms of absorption, the formula of the interval, and what the kernel refuses."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import norm

from cellrank_velot import OTVelocityKernel, datasets
from cellrank_velot.fates import IntervalOptions, absorption_probabilities, fate_intervals

QUIET = {"show_progress_bar": False}


def ruin(n: int, up: float) -> sp.csr_matrix:
    """Return the chain of a gambler with 0 to ``n`` coins, who wins one with the probability ``up``."""
    matrix = np.diag(np.full(n, up), 1) + np.diag(np.full(n, 1 - up), -1)
    return sp.csr_matrix(matrix / matrix.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("up", [0.5, 0.6, 0.3])
def test_absorption_is_that_of_the_ruin(up):
    coins, odds = np.arange(21), (1 - up) / up
    expected = coins / 20 if up == 0.5 else (1 - odds**coins) / (1 - odds**20)
    found = absorption_probabilities(ruin(20, up), [np.array([0]), np.array([20])])
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-9)


def test_cells_without_a_way_to_a_state_have_zeros():
    matrix = sp.block_diag([ruin(4, 0.5), ruin(3, 0.5)], format="csr")
    found = absorption_probabilities(matrix, [np.array([0]), np.array([4])])
    np.testing.assert_allclose(found[:5].sum(axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(found[5:], 0, atol=1e-6)


def test_interval_is_the_formula():
    matrix, labels = ruin(20, 0.5), np.repeat(["low", "high"], [10, 11])
    states = {"ruin": np.array([0]), "rich": np.array([20])}
    table = fate_intervals(matrix, [matrix, matrix], states, labels, IntervalOptions(level=0.9))
    # Without the cells of states: 1 to 9 and 10 to 19 coins.
    np.testing.assert_allclose(table.loc[("low", "rich"), "probability"], np.arange(1, 10).mean() / 20)
    assert table.loc["high", "cells"].tolist() == [10, 10]
    y = np.arcsin(np.sqrt(0.25))
    ends = np.sin(y + np.array([-1, 1]) * norm.ppf(0.95) * 0.15) ** 2
    np.testing.assert_allclose(table.loc[("low", "rich"), ["low", "high"]], ends)
    # Two outcomes: what one loses the other wins.
    np.testing.assert_allclose(table.xs("rich", level=1)["low"], 1 - table.xs("ruin", level=1)["high"])
    wider = fate_intervals(matrix, [ruin(20, 0.55), ruin(20, 0.45)], states, labels, IntervalOptions(level=0.9))
    assert (wider["high"] - wider["low"] > table["high"] - table["low"] + 0.01).all()
    np.testing.assert_array_equal(wider["probability"], table["probability"])


@pytest.fixture(scope="module")
def kernel() -> OTVelocityKernel:
    return OTVelocityKernel(datasets.bifurcation(n_cells=400)).compute_transition_matrix(**QUIET)


def test_equal_fates_are_inside_and_all_is_left_as_it_was(kernel):
    states = kernel.suggest_terminal_states("clusters", **QUIET)
    before, params = kernel.transition_matrix, dict(kernel.params)
    table = kernel.fate_intervals(states, "clusters", n_members=2, **QUIET)
    assert kernel.transition_matrix is before
    assert kernel.params == params
    start = table.loc["Progenitor"]
    assert ((start["low"] < 0.5) & (start["high"] > 0.5)).all()
    assert table.loc[("Fate A", "Fate A"), "low"] > table.loc[("Fate A", "Fate B"), "high"]
    np.testing.assert_allclose(table.groupby("group")["probability"].sum(), 1, atol=1e-6)
    narrow = kernel.fate_intervals(states, "clusters", n_members=2, level=0.5, **QUIET)
    assert (narrow["high"] - narrow["low"] < table["high"] - table["low"]).all()
    one = kernel.fate_intervals(states, n_members=2, **QUIET)
    assert one.index.get_level_values("group").unique().tolist() == ["all"]


@pytest.mark.parametrize(
    ("states", "options", "error", "message"),
    [
        ({}, {}, ValueError, "at least one state.*found none"),
        (["c"], {}, ValueError, "at least one state.*found `list`"),
        ({"A": []}, {}, ValueError, "state 'A', found none"),
        ({"A": ["no cell"]}, {}, KeyError, "state 'A', found 1 that it lacks, as 'no cell'"),
        (None, {"level": 1.0}, ValueError, "level"),
        (None, {"n_members": 3}, ValueError, "an even `n_members`"),
        (None, {"weight": 0}, ValueError, "weight"),
        (None, {"cluster_key": "nothing"}, KeyError, "nothing"),
    ],
)
def test_refuses(kernel, states, options, error, message):
    with pytest.raises(error, match=message):
        kernel.fate_intervals({"A": [kernel.adata.obs_names[0]]} if states is None else states, **options, **QUIET)


def test_refuses_a_matrix_that_cannot_be_made_again(kernel):
    states = {"A": [kernel.adata.obs_names[0]]}
    with pytest.raises(RuntimeError, match="found a backward one"):
        (~kernel).fate_intervals(states)
    other = kernel.copy().compute_transition_matrix(lambda v, d: (v * d).sum(axis=1), **QUIET)
    with pytest.raises(RuntimeError, match="similarity by name"):
        other.fate_intervals(states)
    with pytest.raises(RuntimeError, match="compute_transition_matrix"):
        OTVelocityKernel(kernel.adata).fate_intervals(states)
