"""Stages go through h5ad bit for bit, and what comes back damaged or foreign is refused."""

import copy

import anndata
import numpy as np
import pytest
from anndata import AnnData

from cellrank_velot._utils.stage import Stage
from cellrank_velot.storage import pack as storage


def stages_of(kernel) -> dict[str, Stage | None]:
    return {"windows": kernel.windows, "transport": kernel.transport, "field": kernel.field}


def assert_equal(first, second) -> None:
    """Compare fields bit for bit and type for type."""
    assert type(first) is type(second)
    if isinstance(first, Stage):
        assert_equal(first.to_dict(), second.to_dict())
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_equal(value, second[key])
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    else:
        assert first == second


@pytest.fixture
def packed(computed) -> dict:
    return storage.pack(stages_of(computed))


def through_h5ad(packed: dict, tmp_path) -> dict:
    adata = AnnData(np.zeros((3, 2), dtype=np.float32), uns={"velot": {"T_fwd": packed}})
    adata.write_h5ad(tmp_path / "stages.h5ad")
    return anndata.read_h5ad(tmp_path / "stages.h5ad").uns["velot"]["T_fwd"]


def test_unpack_inverts_pack(computed, packed: dict):
    for name, stage in storage.unpack(packed).items():
        assert_equal(stage, stages_of(computed)[name])


def test_every_bit_survives_h5ad(computed, packed: dict, tmp_path):
    again = storage.unpack(through_h5ad(packed, tmp_path))
    assert again.keys() == {"windows", "transport", "field"}
    for name, stage in again.items():
        assert_equal(stage, stages_of(computed)[name])
    assert np.isnan(again["transport"].velocity).any() == np.isnan(computed.raw_velocity).any()
    np.testing.assert_array_equal(again["field"](computed.cells.x, 0.3), computed.field(computed.cells.x, 0.3))


def test_packed_arrays_are_the_receivers_own(computed, packed: dict):
    before = computed.transport.velocity.copy()
    packed["transport"]["velocity"][:] = 7
    packed["field"]["weights"]["0.weight"][:] = 7
    np.testing.assert_array_equal(computed.transport.velocity, before)
    assert (computed.field.weights["0.weight"] != 7).any()


def test_unpacked_stages_do_not_follow_the_receiver(packed: dict):
    stages = storage.unpack(packed)
    packed["transport"]["velocity"][:] = 7
    assert not (stages["transport"].velocity == 7).any()
    with pytest.raises(ValueError, match="read-only"):
        stages["transport"].velocity[0] = 1


def test_missing_stages_are_left_out(computed, tmp_path):
    packed = storage.pack({"windows": computed.windows, "transport": None, "field": None})
    assert storage.unpack(through_h5ad(packed, tmp_path)).keys() == {"windows"}
    nothing = storage.pack({"windows": None, "transport": None, "field": None})
    assert storage.unpack(through_h5ad(nothing, tmp_path)) == {}


def test_nothing_but_plain_values_is_stored(packed: dict):
    def check(value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str)
                check(item)
        else:
            assert isinstance(value, np.ndarray | bool | int | float | str)
            assert not isinstance(value, np.ndarray) or value.dtype.kind in "bif"

    check(packed)


@pytest.mark.parametrize("version", [None, 0, storage.FORMAT_VERSION + 1])
def test_other_versions_are_refused(packed: dict, version):
    packed["format_version"] = version
    with pytest.raises(ValueError, match=rf"Expected an entry of format `{storage.FORMAT_VERSION}`, found `{version}`"):
        storage.unpack(packed)


@pytest.mark.parametrize(
    ("stage", "damage"),
    [
        ("windows", lambda entry: entry.pop("pairs")),
        ("windows", lambda entry: entry.update(unknown=1)),
        ("windows", lambda entry: entry.update(pairs=np.zeros(3))),
        ("windows", lambda entry: entry.update(indices=entry["indices"] + 10_000)),
        ("transport", lambda entry: entry.pop("velocity")),
        ("field", lambda entry: entry.pop("weights")),
    ],
)
def test_damage_is_named(packed: dict, stage: str, damage):
    damage(packed[stage])
    with pytest.raises(ValueError, match=rf"`packed\['{stage}'\].*damaged"):
        storage.unpack(packed)


def test_entry_that_is_no_dictionary_is_damaged(packed: dict):
    packed["windows"] = "nothing"
    with pytest.raises(ValueError, match=r"Expected `packed\['windows'\]` to be a dictionary, found `str`"):
        storage.unpack(packed)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(2.5), 2.5),
        (np.bool_(True), True),
        (np.int32(3), 3),
        (np.array(4), 4),
        ("text", "text"),
        (None, None),
        ({"a": np.float32(0.5), "b": {"c": np.int64(1)}}, {"a": 0.5, "b": {"c": 1}}),
    ],
)
def test_plain(value, expected):
    found = storage.plain(value)
    assert found == expected
    assert type(found) is type(expected)


def test_fingerprint_tells_contents_apart(packed: dict):
    same = copy.deepcopy(packed)
    reordered = {name: same[name] for name in reversed(same)}
    assert storage.fingerprint(packed) == storage.fingerprint(same) == storage.fingerprint(reordered)
    seen = {storage.fingerprint(packed)}
    for change in (
        lambda p: p["transport"]["velocity"].__setitem__((0, 0), 1e-300),
        lambda p: p["windows"].update(n_skipped=5),
        lambda p: p["windows"].update(dt=p["windows"]["dt"].astype(np.float32)),
        lambda p: p.pop("field"),
    ):
        other = copy.deepcopy(packed)
        change(other)
        seen.add(storage.fingerprint(other))
    assert len(seen) == 5
