"""What this package and its neighbours can do: writes docs/comparison.md and the table of the README.

Each answer of CellRank, scVelo and VelOT is tried on their own packages here, by a call or by the names that they have;
DiffusionOT is no package that can be installed, its answers are those of its documentation. Each "yes" of ours names a
test. `pip install ".[bench]"` first; takes half a minute.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import cellrank as cr
import numpy as np
import scvelo as scv
from common import quiet

import cellrank_velot as cv

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "comparison.md", ROOT / "README.md"
HEAD = """# Comparison

What each package can do. `python tests/benchmarks/peers.py` made the table; it tries each answer for CellRank
{cellrank}, scVelo {scvelo} and VelOT {velot} on these packages. The answers for DiffusionOT, which cannot be installed
as a package, are from its documentation. How well each does it is another question: see [Accuracy](accuracy.md),
[Time series](time_series.md) and [Trajectories and flow](dynamics.md).

"""


@dataclass(frozen=True)
class Row:
    """A question, the five answers, tests of ours, and what must hold of the peers."""

    question: str
    ours: str
    cellrank: str
    scvelo: str
    velot: str
    diffusionot: str
    tests: tuple[str, ...]
    holds: Callable[[Peers], bool]


@dataclass(frozen=True)
class Peers:
    """Simulated cells without splicing, with the results of each peer on them."""

    adata: ad.AnnData
    velot: ad.AnnData
    functions: dict[str, set[str]]

    def has(self, peer: str, *words: str) -> bool:
        """Return whether a function or kernel of a peer has one of these words in its name."""
        return any(word in name.lower() for word in words for name in self.functions[peer])

    def none_has(self, *words: str) -> bool:
        return not any(self.has(peer, *words) for peer in self.functions)


def works(function: Callable[..., object], *args: object, **kwargs: object) -> bool:
    try:
        function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises
        print(f"  {type(error).__name__}: {str(error)[:110]}")
        return False
    return True


def functions_of(*modules: object) -> set[str]:
    return {name for found in modules for name in dir(found) if name[0] != "_" and callable(getattr(found, name))}


def peers() -> Peers:
    import velot

    adata = cv.datasets.bifurcation(n_cells=300)
    adata.obs["pseudotime"] = adata.obs["dpt_pseudotime"]
    other = adata.copy()
    velot.tl.velocity(other, n_epochs=5, verbose=False)
    names = {
        "CellRank": functions_of(cr.kernels, cr.kernels.VelocityKernel, cr.estimators.GPCCA, cr.pl, cr.models),
        "scVelo": functions_of(scv.tl, scv.utils, scv.pl),
        "VelOT": functions_of(velot.tl, velot.pl, velot.metrics),
    }
    return Peers(adata, other, names)


def can_be_asked_anywhere(found: Peers) -> bool:
    import velot

    away = np.asarray(found.velot.obsm["X_pca"]) + 0.1
    return bool(np.isfinite(velot.tl.query_velocity(found.velot, away)).all()) and not (
        found.has("CellRank", "query") or found.has("scVelo", "query")
    )


def is_written(found: Peers, adata: ad.AnnData) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return works(adata.write_h5ad, Path(folder) / "cells.h5ad")


def takes_own_velocities(found: Peers) -> bool:
    kernel = cr.kernels.VelocityKernel(found.adata, attr="obsm", xkey="X_pca", vkey="true_velocity_pca")
    return works(kernel.compute_transition_matrix, show_progress_bar=False)


def without_counts(found: Peers) -> bool:
    of_time = cr.kernels.PseudotimeKernel(found.adata, time_key="pseudotime")
    return (
        works(of_time.compute_transition_matrix, show_progress_bar=False)
        and not works(scv.tl.velocity, found.adata.copy())
        and "velot_velocity_pca" in found.velot.obsm
    )


def models_of_velocity(found: Peers) -> bool:
    models = inspect.getsource(inspect.getmodule(cr.kernels.VelocityKernel))
    in_the_matrix = "MONTE_CARLO" in models.upper()
    return in_the_matrix and found.has("scVelo", "confidence") and "velot_confidence" in found.velot.obs


ROWS = (
    Row(
        "direction comes from", "pseudotime or real time", "velocities, pseudotime, real time: a kernel each",
        "splicing", "pseudotime", "real time",
        ("test_kernel.py::test_reversed_time_reverses_the_flow",),
        lambda found: found.has("CellRank", "pseudotimekernel") and found.has("CellRank", "realtimekernel"),
    ),
    Row(
        "needs no spliced and unspliced counts", "yes", "yes, but for velocities of splicing", "no", "yes", "yes",
        ("test_kernel.py::test_default_chain_flows_with_time",), without_counts,
    ),
    Row(
        "needs neither a root nor a time", "no", "yes, with velocities or CytoTRACE", "yes", "no", "no", (),
        lambda found: found.has("CellRank", "cytotracekernel"),
    ),
    Row(
        "in a batch-corrected or latent embedding", "yes", "with velocities that you bring", "no, on genes", "yes",
        "yes", ("test_kernel.py::test_basis_of_any_kind",), takes_own_velocities,
    ),
    Row(
        "velocity at any position", "yes", "no", "no", "yes", "yes",
        ("test_kernel.py::test_query_anywhere_is_finite",), can_be_asked_anywhere,
    ),
    Row(
        "transition matrix, kernel algebra, GPCCA", "yes", "yes", "transition matrix", "no", "no",
        ("test_kernel_contract.py::test_combines_with_other_kernels",
         "test_kernel_contract.py::test_gpcca_finds_the_planted_fates"),
        lambda found: found.has("scVelo", "transition_matrix") and not found.has("VelOT", "transition"),
    ),
    Row(
        "trajectories forward and back", "yes", "random walks from cell to cell", "steps from cell to cell", "yes",
        "yes",
        ("test_kernel_dynamics.py::test_forward_ends_in_the_fates_and_backward_in_their_origin",),
        lambda found: found.has("CellRank", "random_walks") and found.has("VelOT", "trajectories")
        and found.has("scVelo", "cell_transitions"),
    ),
    Row(
        "shares of fates", "yes, with intervals", "yes", "no", "yes", "yes",
        ("test_dynamics.py::test_a_symmetric_fork_leads_to_either_fate_alike",
         "test_process.py::test_intervals_hold_the_truth_as_often_as_they_say"),
        lambda found: found.has("CellRank", "fate_probabilities") and found.has("VelOT", "fate")
        and not found.has("scVelo", "fate"),
    ),
    Row(
        "real time points, with growth", "yes", "with couplings of moscot or Waddington-OT", "no", "no", "yes",
        ("test_time_series_data.py::test_growth_is_found",),
        lambda found: not found.has("VelOT", "growth", "snapshot") and not found.has("scVelo", "growth", "snapshot"),
    ),
    Row(
        "populations between time points", "yes", "no", "no", "no", "yes",
        ("test_kernel_timeseries.py::test_interpolation_between_and_at_time_points",),
        lambda found: found.none_has("interpol"),
    ),
    Row(
        "landscape, regulation, perturbation", "yes", "no", "no", "no", "yes",
        ("test_landscape.py::test_kernel_interpolates_between_time_points",
         "test_regulation.py::test_toggle_switch_has_its_four_signs",
         "test_perturbation.py::test_a_gene_that_pushes_to_a_fate_is_found"),
        lambda found: found.none_has("landscape", "regulat", "jacobian", "perturb", "knock"),
    ),
    Row(
        "how sure is the velocity of a cell", "calibrated angle", "`monte_carlo` in the matrix",
        "agreement of neighbours", "number of windows", "not documented",
        ("test_uncertainty.py::test_the_true_direction_lies_within_the_angle",),
        models_of_velocity,
    ),
    Row(
        "test of direction", "yes", "no", "no", "no", "not documented",
        ("test_direction.py::test_a_course_in_counts_is_found",), lambda found: found.none_has("permut", "shuffl"),
    ),
    Row(
        "conditions with replicates", "fates, shares, velocities and genes, over samples", "no", "no", "no",
        "not documented",
        ("test_conditions.py::test_a_planted_shift_is_found_where_it_is",
         "test_conditions.py::test_samples_hold_the_level_where_cells_do_not"),
        lambda found: found.none_has("conditions", "replicate"),
    ),
    Row(
        "results survive h5ad", "yes, the field too", "yes", "yes", "no, as long as the network is in `uns`",
        "no, a checkpoint", ("test_kernel_contract.py::test_adata_brings_everything_back",),
        lambda found: is_written(found, found.adata) and not is_written(found, found.velot),
    ),
)  # fmt: skip


def page(rows: tuple[Row, ...]) -> tuple[str, str]:
    """Return the table, and the tests of each row."""
    columns = ("cellrank_velot", "CellRank's kernels", "scVelo", "VelOT", "DiffusionOT")
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    tests = ["| | tests of this package |", "|---|---|"]
    for row in rows:
        answers = (row.ours, row.cellrank, row.scvelo, row.velot, row.diffusionot)
        lines.append(f"| {row.question} | " + " | ".join(answers) + " |")
        if row.tests:
            tests.append(f"| {row.question} | " + ", ".join(f"`{name}`" for name in row.tests) + " |")
    return "\n".join(lines) + "\n", "\n".join(tests) + "\n"


def main() -> None:
    quiet()
    warnings.simplefilter("ignore")
    found = peers()
    for row in ROWS:
        holds = row.holds(found)
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {row.question}")
        if not holds:
            raise SystemExit(f"Not true any more of a peer: {row.question}")
    table, tests = page(ROWS)
    versions = {name: version(name) for name in ("cellrank", "scvelo", "velot")}
    PAGE.write_text(HEAD.format(**versions) + table + "\n## What tests our answers\n\n" + tests)
    head, _, rest = README.read_text().partition("<!-- comparison -->")
    tail = rest.partition("<!-- end of comparison -->")[2]
    README.write_text(f"{head}<!-- comparison -->\n\n{table}\n<!-- end of comparison -->{tail}")


if __name__ == "__main__":
    main()
