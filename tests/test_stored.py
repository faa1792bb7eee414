"""What is read from a file: damaged and crafted entries are named, nothing is run, and version 0.1 stays readable."""

import copy
import pickle
import sys
from contextlib import suppress
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData
from scipy.stats import norm

from cellrank_velot import OTVelocityKernel, read_trajectories
from cellrank_velot.storage import pack as storage
from cellrank_velot.storage.saved import SavedKernel

GOLDEN = Path(__file__).parent / "golden" / "velot_0_1.h5ad"
ERRORS = (KeyError, TypeError, ValueError)


@pytest.fixture(scope="module")
def golden() -> AnnData:
    if h5py.version.hdf5_version_tuple < (2, 0, 0):
        pytest.skip("it was written by HDF5 2, which earlier ones do not read")
    return anndata.read_h5ad(GOLDEN)


@pytest.fixture
def stored(golden) -> AnnData:
    """The golden file as one's own."""
    adata = golden.copy()
    adata.uns = copy.deepcopy(dict(golden.uns))
    return adata


# --------------------------------------------------------------------------------------------------- version 0.1
@pytest.mark.parametrize("key", ["T_fwd", "T_series"])
def test_version_0_1_is_read(stored, key):
    kernel = OTVelocityKernel.from_adata(stored, key)
    # The network is evaluated anew, in single precision and maybe on another processor.
    speed = np.abs(stored.obsm[f"expected_{key}"]).max()
    np.testing.assert_allclose(kernel.velocity, stored.obsm[f"expected_{key}"], atol=1e-5 * speed)
    np.testing.assert_allclose(kernel.raw_velocity, stored.obsm[f"expected_raw_{key}"], atol=1e-6)
    kernel.compute_transition_matrix(weighted=False, settle=False, show_progress_bar=False)  # what 0.1.0 did
    assert abs(kernel.transition_matrix - stored.obsp[key]).max() < 1e-5
    assert stored.uns["velot"][key]["version"] == "0.1.0"
    if key == "T_series":
        np.testing.assert_allclose(kernel.growth, stored.obs["expected_growth"], atol=1e-6)
    else:
        square = kernel.uncertainty.spread * np.exp(1.54 + 0.88 * norm.ppf(2 / 3))  # 0.1.0 widened its angles so
        then = np.degrees(2 * np.arcsin(np.minimum(np.sqrt(square) / 2, 1)))
        np.testing.assert_allclose(then, stored.obs["expected_uncertainty"], atol=1e-4)
        assert (kernel.velocity_uncertainty >= then).all()  # which is a bound by now
        assert kernel.settings["field"]["n_steps"] == 50


def test_version_0_1_neither_smoothed_nor_regressed(stored):
    """So its options say when they are read, and steps that are repeated with them do neither."""
    entry = stored.uns["velot"]["T_fwd"]["settings"]
    assert "n_smooth" not in entry["windows"]
    assert entry["velocity"]["relaxation"] == "auto"
    kernel = OTVelocityKernel.from_adata(stored, "T_fwd")
    assert kernel.settings["windows"]["n_smooth"] == 0
    assert kernel.settings["velocity"]["regression"] is False
    assert kernel.settings["velocity"]["relaxation"] == 0
    assert kernel.smoothed.x is kernel.cells.x
    np.testing.assert_array_equal(kernel.transport.fit_weight, kernel.confidence)
    found = kernel.reversed_velocity()
    assert np.isfinite(found).all()
    again = kernel.copy().compute_windows(**kernel.settings["windows"])
    again.compute_velocity(**kernel.settings["velocity"], show_progress_bar=False)
    assert again.transport.agreement is None


def test_the_basis_is_the_one_that_was_found(stored):
    init = stored.uns["T_fwd_params"]["init"]
    init["basis"] = init["basis"].removeprefix("X_")
    assert OTVelocityKernel.from_adata(stored, "T_fwd").basis == "X_pca"


def test_settings_may_be_arrays_of_one_value(stored):
    expected = OTVelocityKernel.from_adata(stored, "T_fwd").settings
    entry = stored.uns["velot"]["T_fwd"]
    del entry["checksum"]
    for values in entry["settings"].values():
        values.update({name: value if np.ndim(value) else np.array(value) for name, value in values.items()})
    assert OTVelocityKernel.from_adata(stored, "T_fwd").settings == expected


@pytest.mark.parametrize("key", ["T_fwd", "T_series"])
def test_the_record_of_a_kernel_has_what_the_kernel_has(stored, key):
    kernel, record = OTVelocityKernel.from_adata(stored, key), SavedKernel.read(stored, key)
    for name in ("basis", "backward", "cluster_key", "params"):
        assert getattr(record, name) == getattr(kernel, name), name
    assert {step: options.to_dict() for step, options in record.options.items()} == kernel.settings
    np.testing.assert_array_equal(record.cells.x, kernel.cells.x)
    assert abs(record.connectivities - kernel.connectivities).max() == 0
    for name in storage.STAGES:
        stage, expected = getattr(record, name), getattr(kernel, f"_{name}")
        assert (stage is None) == (expected is None), name
        if stage is not None:
            assert storage.fingerprint(stage.to_dict()) == storage.fingerprint(expected.to_dict()), name


def test_the_record_refuses_what_the_kernel_refuses(stored):
    stored.uns["T_fwd_params"]["init"]["basis"] = "X_nothing"
    errors = [read(function, stored, "T_fwd")[1] for function in (OTVelocityKernel.from_adata, SavedKernel.read)]
    assert "do not give a kernel of these data: Expected `adata.obsm['X_nothing']`" in errors[0]
    assert errors[0] == errors[1]


def test_trajectories_of_version_0_1_are_read(stored):
    paths = read_trajectories(stored, "velot_trajectories")
    assert len(paths) == 3
    assert np.isfinite(paths.x).all()


def test_golden_file_is_small():
    assert GOLDEN.stat().st_size < 250_000


def test_newer_and_older_formats_are_refused_with_their_version(stored):
    entry = stored.uns["velot"]["T_fwd"]
    entry.update(format_version=storage.FORMAT_VERSION + 1, version="7.3")
    with pytest.raises(ValueError, match=r"format `1`, found `2`.*\(7.3\).*\['T_fwd'\]`. Update cellrank_velot, or"):
        OTVelocityKernel.from_adata(stored, "T_fwd")
    for old in (0, None, "os.system", True, np.zeros(2)):
        entry.update(format_version=old)
        with pytest.raises(ValueError, match=r"(?s)format `1`, found .*\(7.3\).*\['T_fwd'\]`. Compute it again"):
            OTVelocityKernel.from_adata(stored, "T_fwd")


def assert_same_kernel(kernel: OTVelocityKernel, golden: AnnData) -> None:
    """Compare with the kernel of the golden file, bit for bit."""
    whole = OTVelocityKernel.from_adata(golden, "T_fwd")
    assert kernel.settings.keys() == whole.settings.keys()
    for name in ("velocity", "raw_velocity", "confidence", "velocity_uncertainty"):
        np.testing.assert_array_equal(getattr(kernel, name), getattr(whole, name), err_msg=name)
    assert (kernel.transition_matrix != whole.transition_matrix).nnz == 0


def test_file_without_a_checksum_is_read(stored, golden):
    """As written before there was one."""
    del stored.uns["velot"]["T_fwd"]["checksum"], stored.uns["velot"]["T_fwd"]["version"]
    assert_same_kernel(OTVelocityKernel.from_adata(stored, "T_fwd"), golden)


def test_one_flipped_bit_is_found(stored):
    velocity = stored.uns["velot"]["T_fwd"]["transport"]["velocity"]
    velocity.view(np.uint64)[3, 1] ^= 1
    with pytest.raises(ValueError, match=r"\['T_fwd'\]` as it was written, found another checksum"):
        OTVelocityKernel.from_adata(stored, "T_fwd")


# ---------------------------------------------------------------------------------------------------- other cells
def test_subset_of_the_cells_is_refused(stored):
    with pytest.raises(ValueError, match=r"Expected the `60` cells that the kernel was saved with, found `30`"):
        OTVelocityKernel.from_adata(stored[:30].copy(), "T_fwd")


def test_cells_in_another_order_are_refused(stored):
    order = np.random.default_rng(0).permutation(stored.n_obs)
    with pytest.raises(ValueError, match=r"adata.obsp\['T_fwd'\].*found others, or cells in another order"):
        OTVelocityKernel.from_adata(stored[order].copy(), "T_fwd")
    with pytest.raises(ValueError, match="Expected trajectories of these `60` cells"):
        read_trajectories(stored[order].copy(), "velot_trajectories")


def test_other_names_of_cells_do_not_matter(stored, golden):
    stored.obs_names = [f"other_{i}" for i in range(stored.n_obs)]
    kernel = OTVelocityKernel.from_adata(stored, "T_fwd")
    assert list(kernel.adata.obs_names) == list(stored.obs_names)
    assert_same_kernel(kernel, golden)


# ------------------------------------------------------------------------------------------------------ corruption
def leaves(entry: dict, path: tuple = ()) -> list[tuple]:
    """Return the places of all entries, dictionaries included."""
    found = []
    for name, value in entry.items():
        found.append((*path, name))
        if isinstance(value, dict):
            found += leaves(value, (*path, name))
    return found


def corruptions(value) -> dict:
    """Return what may stand in the place of an entry."""
    wrong = {"nothing": None, "a word": "os.system", "minus one": -1, "not a number": np.nan, "huge": 10**18}
    wrong |= {"objects": np.array([b"\x80\x04", None], dtype=object), "a dictionary": {"__reduce__": "os.system"}}
    wrong |= {"empty": np.empty(0), "bytes": np.frombuffer(pickle.dumps(print), dtype=np.uint8), "a matrix": np.eye(3)}
    if isinstance(value, float | np.floating) and np.isnan(value):
        del wrong["not a number"]
    if isinstance(value, np.ndarray) and value.size:
        wrong |= {"one less": value[:-1], "one more": np.concatenate([value, value[:1]]), "turned": value.T[..., None]}
        wrong |= {"words": value.astype(str), "complex": value.astype(complex)}
        if value.dtype.kind in "if":
            wide = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
            wrong |= {"negative": -np.abs(wide) - 1, "shifted": wide + 10**6}
        if value.dtype.kind == "f":
            wrong |= {"all NaN": np.full_like(value, np.nan), "infinite": np.full_like(value, np.inf)}
            wrong |= {"whole": np.nan_to_num(value).astype(np.int64)}
    return wrong


def finite(kernel: OTVelocityKernel) -> None:
    """Use what was read."""
    assert np.isfinite(kernel.velocity).all()
    assert (kernel.confidence >= 0).all()
    assert (kernel.confidence <= 1).all()
    assert kernel.ends.shape == (kernel.adata.n_obs,)
    assert np.isfinite(kernel.transition_matrix.data).all()
    if kernel.uncertainty is not None:
        assert np.isfinite(kernel.velocity_uncertainty).all()
    if kernel.cells.is_series:
        assert np.isfinite(kernel.growth).all()
        assert np.isfinite(kernel.interpolate(0.5).x).all()


def read(function, *arguments):
    """Return what a function returns, or else the message of its error, of a documented kind."""
    try:
        return function(*arguments), ""
    except (*ERRORS, RuntimeError, AssertionError, IndexError) as error:
        kind = "" if isinstance(error, (*ERRORS, RuntimeError)) else f"{type(error).__name__}: "
        return None, kind + str(error)


def put(adata: AnnData, place: tuple, value, *, remove: bool = False) -> None:
    holder = adata.uns
    for name in place[:-1]:
        holder = holder[name]
    if remove:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value


def cases(adata: AnnData, key: str) -> list[tuple]:
    """Return place, name and value of every corruption of a kernel."""
    found = []
    for root in (("velot", key), (f"{key}_params",)):
        entry = adata.uns
        for name in root:
            entry = entry[name]
        for place in leaves(entry, root):
            holder = adata.uns
            for name in place:
                holder = holder[name]
            found.append((place, "removed", None))
            found += [(place, name, value) for name, value in corruptions(holder).items()]
    return found


@pytest.mark.parametrize("sealed", [True, False], ids=["crafted", "damaged"])
@pytest.mark.parametrize("key", ["T_fwd", "T_series"])
def test_every_corruption_is_named_or_harmless(golden, key: str, sealed: bool):
    """With a checksum made to fit, as someone would who knows how, and with the one that was written."""
    adata = golden.copy()
    original = dict(golden.uns)
    n_refused = n_read = 0
    wrong = []
    # The checksum sees any change alike. Seven is less than there are corruptions of a place: each has one of them.
    for place, what, value in cases(golden, key)[:: 1 if sealed else 7]:
        adata.uns = copy.deepcopy({name: original[name] for name in ("velot", f"{key}_params")})
        put(adata, place, value, remove=what == "removed")
        entry = adata.uns["velot"].get(key)
        if sealed and isinstance(entry, dict) and "checksum" not in place:
            entry.pop("checksum", None)
            with suppress(TypeError, ValueError):  # objects have no bytes
                adata.uns["velot"][key] = storage.sealed(entry)
        kernel, text = read(OTVelocityKernel.from_adata, adata, key)
        if kernel is None:
            n_refused += 1
            named = [name for name in place if name in text]
            if "adata." not in text or len(named) < min(2, len(place)):
                wrong.append((place, what, text))
            continue
        n_read += 1
        _, text = read(finite, kernel)
        # A whole stage that is missing was not run.
        if text and not (what == "removed" and "first, as" in text):
            wrong.append((place, what, text))
        if place[0] == "velot" and not sealed and place[2:] != ("checksum",):
            wrong.append((place, what, "not found out"))
    assert wrong == [], wrong
    assert n_refused > (400 if sealed else 60)
    assert n_read < n_refused / 3


def test_every_corruption_of_trajectories_is_named_or_harmless(golden):
    adata, original = golden.copy(), dict(golden.uns["velot_trajectories"])
    for name, stored_value in original.items():
        for what, value in {"removed": None, **corruptions(stored_value)}.items():
            entry = copy.deepcopy(original)
            entry.pop(name) if what == "removed" else entry.update({name: value})
            adata.uns = {"velot_trajectories": entry}
            paths, text = read(read_trajectories, adata, "velot_trajectories")
            assert paths is not None or "adata.uns['velot_trajectories']" in text, (name, what, text)
            if paths is None:
                continue
            assert np.isfinite(paths.x).all()
            assert len(paths.statuses) == len(paths)
            assert len(paths.to_frame()) == len(paths)


# -------------------------------------------------------------------------------------------------- nothing is run
class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


WATCHED = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "marshal.loads")
_heard: list[str] = []
_listening = False


def _listen(event: str, _arguments) -> None:
    if _listening and event in WATCHED:
        _heard.append(event)


sys.addaudithook(_listen)


def test_crafted_file_runs_nothing(golden, tmp_path):
    global _listening  # an audit hook cannot be taken away
    marker = tmp_path / "was_run"
    code = pickle.dumps(Payload(marker))
    adata = golden.copy()
    adata.uns = copy.deepcopy(dict(golden.uns))
    entry = adata.uns["velot"]["T_fwd"]
    entry["windows"]["indices"] = np.frombuffer(code, dtype=np.uint8)
    entry["field"]["weights"]["0.weight"] = np.array([code.hex(), "cos\nsystem\n(S'touch x'\ntR."], dtype=object)
    entry["settings"]["field"]["hidden"] = "__import__('os').system('touch x')"
    entry["type"] = "os.system"
    adata.uns["T_fwd_params"]["params"]["similarity"] = "os.system"
    adata.uns["T_series_params"]["init"]["time_kind"] = "os.system"
    adata.uns["velot_trajectories"]["x"] = np.array([code.hex()], dtype=object)
    adata.write_h5ad(tmp_path / "crafted.h5ad")
    adata = anndata.read_h5ad(tmp_path / "crafted.h5ad")
    for key in ("T_fwd", "T_series"):  # what is imported at the first use of compiled loops is no concern here
        OTVelocityKernel.from_adata(golden.copy(), key)
    try:
        _listening = True
        for key in ("T_fwd", "T_series"):
            with pytest.raises(ERRORS):
                OTVelocityKernel.from_adata(adata, key)
        with pytest.raises(ValueError, match="velot_trajectories"):
            read_trajectories(adata, "velot_trajectories")
    finally:
        _listening = False
    assert _heard == []
    assert not marker.exists()


def test_no_part_of_the_package_unpickles():
    """Neither the word nor what hides it: files are read as arrays."""
    folder = Path(storage.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for call in ("pickle.load", "torch.load", "joblib.load", "allow_pickle", " eval(", " exec(", "__import__("):
            assert call not in text, f"{path.name} has {call}"
