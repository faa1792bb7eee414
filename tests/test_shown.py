"""How kernels and results show themselves: in one short line, and as a table in a notebook."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cellrank_velot import OTTimeSeriesKernel, OTVelocityKernel, datasets
from cellrank_velot._utils.shown import as_table, extent
from cellrank_velot._utils.stage import Stage

QUIET = {"show_progress_bar": False}


def text_of(html: str) -> str:
    """Return the text of HTML, in which every element that begins also ends."""
    open_now, text = [], []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_now.append(tag)

        def handle_endtag(self, tag):
            assert open_now.pop() == tag

        def handle_data(self, data):
            text.append(data)

    Parser().feed(html)
    assert not open_now
    return " ".join(text)


def test_a_kernel_shows_of_what_it_is_and_which_steps_are_done(adata):
    adata.obs["<b>"] = adata.obs["clusters"]
    vk = OTVelocityKernel(adata, cluster_key="<b>")
    shown = text_of(vk._repr_html_())
    for part in ("OTVelocityKernel[n=240]", "240, in 5 dimensions of obsm['X_pca']", "obs['dpt_pseudotime'], 0 to 1"):
        assert part in shown
    assert "obs['<b>']" in shown
    assert shown.count("not yet") == 5
    vk.compute_windows(min_window_size=10)
    shown = text_of(vk._repr_html_())
    assert shown.count("not yet") == 4
    assert f"windows={vk.windows.n_windows}, pairs={vk.windows.n_pairs}" in shown
    assert "backward" in text_of((~vk)._repr_html_())


def test_a_kernel_of_time_points_shows_its_own_steps():
    sk = OTTimeSeriesKernel(datasets.birth_death(n_cells=120), time_key="day")
    shown = text_of(sk._repr_html_())
    assert "0 to 3" in shown
    assert ".compute_uncertainty()" not in shown
    sk.compute_velocity(**QUIET)
    assert "times=[0.0, 1.0, 2.0, 3.0]" in repr(sk.couplings)


def test_results_are_shown_in_one_line(computed):
    computed.compute_uncertainty(2, **QUIET)
    paths = computed.compute_trajectories(n_trajectories=3, n_steps=5, **QUIET)
    results = [computed.cells, computed.windows, computed.transport, computed.field, computed.uncertainty, paths]
    results += [computed.smoothed, computed.current_field(), computed.suggest_terminal_states("clusters", n_halves=0)]
    for result in results:
        name = type(result).__name__
        line = repr(result)
        assert re.fullmatch(rf"{name}\[.+\]", line), line
        assert len(line) < 220
        assert "array(" not in line
        if isinstance(result, Stage):
            assert name in text_of(result._repr_html_())
    assert "hidden=[16, 16]" in repr(computed.field)
    assert "cells=240, dims=5" in repr(computed.transport)


def test_terminal_states_show_their_cells_and_the_evidence(computed):
    states = computed.suggest_terminal_states("clusters", n_halves=0)
    for name, cells in states.items():
        assert f"{name}={len(cells)} cells" in repr(states)
    shown = text_of(states._repr_html_())
    assert "verdict" in shown
    assert f"{next(iter(states))}" in shown
    assert text_of(type(states)({"<i>": ["a"]})._repr_html_()).count("<i>") == 1


@pytest.mark.parametrize(
    ("values", "shown"), [([1.0, 2.5], "1 to 2.5"), ([3, 3], "3"), ([], "none"), ([np.nan, 1.0], "1")]
)
def test_extent_of_numbers(values, shown):
    assert extent(values) == shown


def test_names_are_escaped():
    html = as_table("<script>", {"<a>": "<b>"})
    assert "<script>" not in html
    assert text_of(html).split() == ["<script>", "<a>", "<b>"]
