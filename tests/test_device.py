"""The same numbers on a graphics card as on the processor; where there is none, its way of working on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cellrank_velot as cv
from cellrank_velot._utils import device as _device
from cellrank_velot._utils import parallel
from cellrank_velot._utils.device import as_tensor, float_on, in_parts, with_halves
from cellrank_velot.field import evaluation, training
from cellrank_velot.transitions import similarities
from cellrank_velot.transport import batches as pair_batches
from cellrank_velot.transport import sums as pairs

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

    def batched(problem, use, limit, reach, run):
        return pairs._sum_in_batches(problem, use, limit, reach, torch.device("cpu"), run.show_progress_bar)

    monkeypatch.setattr(pairs, "_sum_in_loops", batched)
    monkeypatch.setattr(similarities, "_in_loops", lambda options, device: False)
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


# ----------------------------------------------------------------------------------------------- no memory is left
def small_card(monkeypatch, module, name: str, limit: int, size) -> list[int]:
    """Let a function run out of memory above a size, as a card does; return the sizes that it was called with."""
    function, sizes = getattr(module, name), []

    def limited(*args, **kwargs):
        sizes.append(size(*args))
        if sizes[-1] > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, limited)
    return sizes


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_parts_are_halved_until_they_fit(limit, caplog):
    def work(part):
        if len(part) > limit:
            raise RuntimeError("MPS backend out of memory")
        return sum(part)

    found = list(in_parts(work, [range(20), range(20, 25), np.arange(25, 40)], "the test"))
    assert [int(i) for part, _ in found for i in part] == list(range(40))
    assert sum(value for _, value in found) == sum(range(40))
    assert max(len(part) for part, _ in found) <= limit
    assert len([r for r in caplog.records if "no memory left" in r.message]) == 1


def test_parts_that_cannot_be_halved_say_what_to_set():
    def work(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="for the test, even in the smallest parts: set `device='cpu'`"):
        list(in_parts(work, [range(20)], "the test"))
    with pytest.raises(MemoryError, match="set `device='cpu'`"):
        with_halves(work, 100, "the test")
    with pytest.raises(RuntimeError, match="another"):
        list(in_parts(lambda _: (_ for _ in ()).throw(RuntimeError("another")), [range(2)], "the test"))


def test_small_card_gives_the_same(adata, monkeypatch, caplog):
    """Transport, field and matrix go on in halves, and nothing is added twice."""
    expected = kernel_of(adata, "cpu")

    def batched(problem, use, limit, reach, run):
        return pairs._sum_in_batches(problem, use, limit, reach, torch.device("cpu"), run.show_progress_bar)

    monkeypatch.setattr(pairs, "_sum_in_loops", batched)
    monkeypatch.setattr(similarities, "_in_loops", lambda options, device: False)
    # At the second side of a batch, when the first one is done.
    of_transport = small_card(monkeypatch, pair_batches, "sinkhorn", 5, lambda cost, *_: cost.shape[0])
    of_edges = small_card(monkeypatch, similarities, "_compare", 1000, lambda v, *_: v.shape[0])
    of_field = small_card(monkeypatch, evaluation, "as_tensor", 100, lambda array, _: array.shape[0])
    found = kernel_of(adata, "cpu")
    assert_close(found, expected)
    for sizes, limit in ((of_transport, 5), (of_edges, 1000), (of_field, 100)):
        assert sum(size > limit for size in sizes) < 20 < sum(size <= limit for size in sizes) + 15
    for step in ("transport", "the transition matrix", "the values of the field"):
        assert any(f"at a time of {step}: taking fewer" in r.message for r in caplog.records)


def test_training_takes_smaller_batches(adata, monkeypatch, caplog):
    kernel = cv.OTVelocityKernel(adata).compute_velocity(**QUIET)
    sizes = small_card(monkeypatch, training, "smoothness_loss", 100, lambda here, _: here.shape[0])
    kernel.fit_field(n_steps=30, batch_size=256, **QUIET)
    assert sizes[:4] == [256, 128, 64, 64]
    assert np.isfinite(kernel.velocity).all()
    assert len([r for r in caplog.records if "batches of" in r.message]) == 2


@pytest.mark.parametrize("step", ["compute_velocity", "fit_field", "compute_transition_matrix"])
def test_card_without_any_memory_says_what_to_set(adata, monkeypatch, step):
    kernel = cv.OTVelocityKernel(adata).compute_velocity(**QUIET)
    before = kernel.transport

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for module, name in ((pairs, "as_tensor"), (training, "as_tensor"), (similarities, "as_tensor"), (parallel, "run")):
        monkeypatch.setattr(module, name, full)
    options = {"smooth": False, "variance_stabilize": True} if step == "compute_transition_matrix" else {}
    with pytest.raises(MemoryError, match=r"no memory left for .*set `device='cpu'`"):
        getattr(kernel, step)(**QUIET, **options)
    assert kernel.transport is before
