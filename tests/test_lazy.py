"""Large libraries are imported where they are first used."""

import pickle
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from cellrank_velot._utils import jit, lazy

LATE = ("torch", "torchdiffeq", "ot", "pyamg", "networkx", "pynndescent", "umap", "xarray", "IPython")


@pytest.mark.process
def test_the_import_loads_no_large_library_that_cellrank_does_not_load():
    code = (
        "import sys, cellrank\n"
        "before = set(sys.modules)\n"
        "import cellrank_velot\n"
        "cellrank_velot.OTVelocityKernel, cellrank_velot.estimators.GPCCA, cellrank_velot.pl.velocity_stream\n"
        "dir(cellrank_velot), repr(cellrank_velot.metrics)\n"
        f"print('late:', *[name for name in {LATE} if name in sys.modules and name not in before])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1].strip() == "late:"


def test_a_late_module_is_the_module_itself_once_it_is_used():
    assert lazy.torch.Tensor is torch.Tensor
    assert lazy.torch.nn.Linear is torch.nn.Linear
    assert pickle.loads(pickle.dumps(lazy.torch)) is torch
    assert isinstance(lazy.torch.from_numpy(np.zeros(2)), torch.Tensor)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lazy.torch.no_such_name


def test_compiling_is_told_once_and_only_that_of_ours(monkeypatch, caplog):
    def loop(x):
        return x + 1

    monkeypatch.setattr(jit, "TELL_AFTER", -1.0)
    caplog.set_level("INFO", "cellrank_velot")
    told, found = jit._Told(), []
    with jit.event.install_listener("numba:compile", told):
        for module in ("elsewhere", "cellrank_velot.a", "cellrank_velot.b"):
            loop.__module__ = module
            numba.njit(loop)(1)
            found.append(told.seconds == -jit.math.inf)
    assert found == [False, True, True]
    assert "Compiling loops" in caplog.text
