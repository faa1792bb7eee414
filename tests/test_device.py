"""The same numbers on a graphics card as on the processor; where there is none, its way of working on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cellrank_velot as cv
from cellrank_velot import _device, pairs, similarities
from cellrank_velot._device import as_tensor, float_on

QUIET = {"show_progress_bar": False}


@pytest.fixture(scope="module")
def adata():
    return cv.datasets.bifurcation(n_cells=600, n_genes=40)


def kernel_of(adata, device: str, **options) -> cv.OTVelocityKernel:
    kernel = cv.OTVelocityKernel(adata).compute_velocity(device=device, **QUIET)
    kernel.fit_field(n_steps=50, device="cpu", **QUIET)  # a card draws other numbers
    return kernel.compute_transition_matrix(device=device, **QUIET, **options)


def assert_close(found: cv.OTVelocityKernel, expected: cv.OTVelocityKernel) -> None:
    speed = np.sqrt(np.nanmean(expected.raw_velocity**2))
    np.testing.assert_allclose(found.raw_velocity, expected.raw_velocity, atol=1e-4 * speed, rtol=1e-4)
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
    difference = abs(found.transition_matrix - expected.transition_matrix).max()
    assert difference < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("options", [{}, {"similarity": "correlation"}, {"model": "monte_carlo", "smooth": False}])
def test_card_agrees_with_the_processor(adata, options):
    assert_close(kernel_of(adata, "cuda", **options), kernel_of(adata, "cpu", **options))


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"similarity": "correlation"}, {"model": "monte_carlo", "smooth": False}])
def test_way_of_a_card_agrees_with_loops(adata, monkeypatch, precision, options):
    expected = kernel_of(adata, "cpu", **options)

    def batched(problem, use, limit, reach, n_jobs, few_at_a_time, show_progress_bar):
        return pairs._sum_in_batches(problem, use, limit, reach, torch.device("cpu"), show_progress_bar)

    monkeypatch.setattr(pairs, "_sum_in_loops", batched)
    monkeypatch.setattr(similarities, "_has_loops", lambda device: False)
    monkeypatch.setattr(_device, "float_on", lambda device: precision)
    assert_close(kernel_of(adata, "cpu", **options), expected)


def test_numbers_of_a_device():
    assert float_on(torch.device("mps")) == torch.float32
    assert float_on(torch.device("cpu")) == float_on(torch.device("cuda")) == torch.float64


def test_array_is_read_not_copied(recwarn):
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    tensor = as_tensor(array, torch.device("cpu"))
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    assert not recwarn.list
