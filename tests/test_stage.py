"""Stages are frozen, survive pickle and copies, and come back from their fields; the shared checks of arguments."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cellrank_velot._utils.device import resolve_device, single_thread
from cellrank_velot._utils.stage import Stage
from cellrank_velot._utils.validation import check_choice, check_integer, check_known, check_number, first_names


@dataclass(frozen=True, slots=True, eq=False)
class Example(Stage):
    values: NDArray[np.float64]
    parts: dict[str, NDArray[np.float64]]
    count: int
    missing: NDArray[np.float64] | None


@pytest.fixture
def example() -> Example:
    return Example(np.arange(6.0).reshape(2, 3), {"a": np.ones(2)}, 3, None)


def test_fields_and_arrays_are_frozen(example: Example):
    with pytest.raises(FrozenInstanceError, match="count"):
        example.count = 4
    with pytest.raises(ValueError, match="read-only"):
        example.values[0, 0] = 7
    with pytest.raises(ValueError, match="read-only"):
        example.parts["a"][0] = 7


def test_takes_writeable_arrays_by_value():
    values, part = np.zeros(3), np.zeros(2)
    parts = {"a": part}
    stage = Example(values, parts, 0, None)
    values[0] = part[0] = 1
    parts["b"] = part
    assert stage.values[0] == stage.parts["a"][0] == 0
    assert list(stage.parts) == ["a"]
    assert values.flags.writeable
    assert part.flags.writeable


def test_read_only_view_of_a_writeable_array_cannot_change_the_stage():
    owner = np.zeros(3)
    view = owner.view()
    view.flags.writeable = False
    stage = Example(view, {}, 0, None)
    owner[0] = 1
    assert stage.values[0] == 0


def test_pickle_keeps_values_and_stays_frozen(example: Example):
    again = pickle.loads(pickle.dumps(example))
    assert type(again) is Example
    assert again.count == 3
    assert again.missing is None
    np.testing.assert_array_equal(again.values, example.values)
    with pytest.raises(ValueError, match="read-only"):
        again.values[0, 0] = 7
    with pytest.raises(ValueError, match="read-only"):
        again.parts["a"][0] = 7


def test_deep_copy_is_the_stage_itself(example: Example):
    assert copy.deepcopy(example) is example
    assert copy.deepcopy({"stage": example})["stage"] is example


def test_copy_stays_frozen(example: Example):
    again = copy.copy(example)
    np.testing.assert_array_equal(again.values, example.values)
    with pytest.raises(ValueError, match="read-only"):
        again.values[0, 0] = 7


def test_from_dict_inverts_to_dict(example: Example):
    again = Example.from_dict(example.to_dict())
    assert again.to_dict().keys() == {"values", "parts", "count", "missing"}
    np.testing.assert_array_equal(again.parts["a"], example.parts["a"])


@pytest.mark.parametrize("change", [{"extra": 1}, {"count": None}])
def test_from_dict_refuses_other_fields(example: Example, change: dict):
    values = {**example.to_dict(), **change}
    values = {key: value for key, value in values.items() if value is not None or key == "missing"}
    with pytest.raises(KeyError, match=r"Expected the fields .* of `Example`, found"):
        Example.from_dict(values)


# ------------------------------------------------------------------------------------------------- arguments
@pytest.mark.parametrize("choices", [Literal["a", "b"], ["a", "b"], ("a", "b")])
def test_check_choice(choices):
    assert check_choice("tail", "b", choices) == "b"
    with pytest.raises(ValueError, match=r"Expected `tail` to be one of \['a', 'b'\], found `'c'`"):
        check_choice("tail", "c", choices)
    with pytest.raises(ValueError, match=r"found `None`"):
        check_choice("tail", None, choices)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.25), np.int64(1)])
def test_check_number_returns_a_python_float(value):
    assert type(check_number("tol", value, low=0, high=1)) is float


@pytest.mark.parametrize("value", ["1", None, True, np.True_, 1j, [1.0], np.ones(1)])
def test_check_number_refuses_other_types(value):
    with pytest.raises(TypeError, match="Expected `tol` to be a number, found"):
        check_number("tol", value)


@pytest.mark.parametrize(
    ("value", "limits", "interval"),
    [
        (-1, {"low": 0}, r"\[0, inf\)"),
        (0, {"low": 0, "open_low": True}, r"\(0, inf\)"),
        (1, {"low": 0, "high": 1, "open_high": True}, r"\[0, 1\)"),
        (1.5, {"low": 0, "high": 1}, r"\[0, 1\]"),
        (np.nan, {}, r"\(-inf, inf\)"),
        (np.inf, {"low": 0}, r"\[0, inf\)"),
    ],
)
def test_check_number_refuses_what_is_outside(value, limits, interval):
    with pytest.raises(ValueError, match=rf"Expected `tol` to be in {interval}, found"):
        check_number("tol", value, **limits)


def test_check_integer():
    assert type(check_integer("n", np.int32(3))) is int
    with pytest.raises(ValueError, match="Expected `n` to be at least `2`, found `1`"):
        check_integer("n", 1, low=2)
    for value in (1.0, True, "1", None):
        with pytest.raises(TypeError, match="Expected `n` to be an integer, found"):
            check_integer("n", value)


def test_check_known_lists_what_is_there():
    check_known("adata.obs", "a", ["b", "a"])
    with pytest.raises(KeyError, match=r"Expected `adata.obs\['c'\]`, found the keys \['a', 'b'\]\. Compute it"):
        check_known("adata.obs", "c", iter(["b", "a"]), "Compute it.")


@pytest.mark.parametrize(
    ("bad", "text"), [([], ""), ([1], "'b'"), ([0, 1, 2], "'a', 'b', 'c'"), ([0, 1, 2, 3], "'a', 'b', 'c', ...")]
)
def test_first_names(bad, text):
    mask = np.zeros(5, dtype=bool)
    mask[bad] = True
    assert first_names(list("abcde"), mask) == text


# ---------------------------------------------------------------------------------------------------- device
def test_resolve_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="Expected `device` to be 'auto', 'cpu', 'cuda', ..., found `'abacus'`"):
        resolve_device("abacus")


def test_single_thread_gives_the_threads_back_after_an_error():
    def fail() -> None:
        with single_thread(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            raise ArithmeticError("not converged")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ArithmeticError, match="not converged"):
            fail()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
