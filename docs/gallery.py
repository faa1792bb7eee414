"""Draw the figures of the gallery into docs/figures/gallery/, and the page docs/gallery.md.

From the pancreas of ``datasets.pancreas()`` (or the file in the folder ``CELLRANK_VELOT_DATA``) and from simulated
cells. Takes about a minute: ``python docs/gallery.py``.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import anndata as ad
import cellrank as cr
import matplotlib

matplotlib.use("agg")

import cellrank_velot as cv  # the backend comes first

HERE = Path(__file__).parent
FIGURES = HERE / "figures" / "gallery"
QUIET = {"show_progress_bar": False}
HORMONES = ["Alpha", "Beta", "Delta", "Epsilon"]
# Name of the figure, heading, and what a reader sees.
CAPTIONS: dict[str, tuple[str, str]] = {}


def draw(name: str, heading: str, caption: str, function: Any, *args: Any, suffix: str = "png", **kwargs: Any) -> None:
    """Draw one figure and note what it shows."""
    options = {"dpi": 80} if suffix == "png" else {"dpi": 60}
    function(*args, save=FIGURES / f"{name}.{suffix}", show=False, **{**options, **kwargs})
    matplotlib.pyplot.close("all")
    CAPTIONS[f"{name}.{suffix}"] = (heading, caption)
    print(name, flush=True)


def pancreas() -> ad.AnnData:
    """Return the prepared pancreas."""
    folder = Path(os.environ.get("CELLRANK_VELOT_DATA", HERE.parents[1] / "shared" / "data"))
    file = folder / "pancreas_739.h5ad"
    adata = ad.read_h5ad(file) if file.exists() else cv.datasets.pancreas()
    cv.pp.prepare(adata, root_cluster="Ductal")
    return adata


def estimator(kernel: cv.OTVelocityKernel, states: cv.fates.TerminalStates) -> cr.estimators.GPCCA:
    """Return macrostates and fate probabilities."""
    found = cr.estimators.GPCCA(kernel)
    found.compute_schur(n_components=10, method="brandts", verbose=False)
    found.compute_macrostates(n_states=8, n_cells=20, cluster_key="clusters")
    found.set_terminal_states(states)
    found.compute_fate_probabilities(use_petsc=False, solver="direct", show_progress_bar=False)
    return found


def velocity(kernel: cv.OTVelocityKernel) -> None:
    """Draw the velocity and what is known of it."""
    draw(
        "stream",
        "Velocity",
        "Streamlines of the velocity, projected by the transition matrix: `vk.plot_velocity()`.",
        kernel.plot_velocity,
    )
    draw(
        "grid",
        "Velocity on a grid",
        'The same velocity averaged on a grid: `vk.plot_velocity(style="grid")`.',
        kernel.plot_velocity,
        style="grid",
    )
    draw(
        "quiver",
        "Velocity of single cells",
        "Arrows at cells spread evenly, by the local linear map: "
        '`vk.plot_velocity(style="quiver", method="linear_map")`.',
        kernel.plot_velocity,
        style="quiver",
        method="linear_map",
    )
    draw(
        "comparison",
        "Raw and smooth",
        "Left the velocity that transport gave each cell, right that of the field: `vk.plot_comparison()`.",
        kernel.plot_comparison,
    )
    draw(
        "confidence",
        "Confidence",
        "The cosine to the true direction that is to be expected: `vk.plot_confidence()`.",
        kernel.plot_confidence,
    )
    kernel.compute_uncertainty(**QUIET)
    draw(
        "uncertainty",
        "Uncertainty",
        "Angle within which the true direction lies in at least two of three cells: "
        "`vk.compute_uncertainty().plot_uncertainty()`.",
        kernel.plot_uncertainty,
    )
    draw(
        "training",
        "Training of the field",
        "Error on held-out cells and on the batches of training: `vk.plot_training()`.",
        kernel.plot_training,
    )


def windows(kernel: cv.OTVelocityKernel) -> None:
    """Draw the windows and their transport."""
    draw(
        "clusters",
        "Spatial clusters",
        "Clusters that windows are made in: `vk.plot_spatial_clusters()`.",
        kernel.plot_spatial_clusters,
    )
    draw(
        "windows",
        "Pairs of windows",
        "Some of the pairs of windows that mass is transported between: `vk.plot_windows(max_pairs=6, n_columns=3)`.",
        kernel.plot_windows,
        max_pairs=6,
        n_columns=3,
    )
    draw(
        "transport",
        "Transport of one pair",
        f"The strongest arcs of one transport plan: `vk.plot_window_transport({kernel.windows.n_pairs // 2})`.",
        kernel.plot_window_transport,
        kernel.windows.n_pairs // 2,
    )


def motion(kernel: cv.OTVelocityKernel) -> None:
    """Draw trajectories and flow."""
    kernel.compute_trajectories(start_cluster="Ngn3 low EP", n_trajectories=20, **QUIET)
    draw(
        "forward",
        "Trajectories",
        "Forward from Ngn3 low EP, coloured by the cluster where they end: "
        '`vk.compute_trajectories(start_cluster="Ngn3 low EP"); vk.plot_trajectories()`.',
        kernel.plot_trajectories,
    )
    kernel.compute_trajectories(start_cluster=HORMONES, direction="backward", n_trajectories=30, **QUIET)
    draw(
        "backward",
        "Back in time",
        "Backward from the hormone-producing cells, coloured by time: "
        '`vk.compute_trajectories(start_cluster=[...], direction="backward"); '
        'vk.plot_trajectories(color_by="time")`.',
        kernel.plot_trajectories,
        color_by="time",
    )
    kernel.simulate_flow(source_cluster="Ngn3 low EP", terminal_clusters=HORMONES, n_particles=300, **QUIET)
    draw(
        "flow",
        "Flow",
        "Particles that drift and diffuse, at four times: "
        '`vk.simulate_flow(source_cluster="Ngn3 low EP", terminal_clusters=[...]); vk.plot_flow()`.',
        kernel.plot_flow,
    )
    draw(
        "flow",
        "Flow, animated",
        'The same particles: `vk.animate_flow(save="flow.gif")`.',
        kernel.animate_flow,
        suffix="gif",
        n_frames=40,
    )
    states = kernel.suggest_terminal_states("clusters", show_progress_bar=False)
    found = estimator(kernel, states)
    probabilities = cv.plotting.fates.fate_probabilities(found)
    source = (kernel.adata.obs["clusters"] == "Ngn3 low EP").to_numpy()
    compare = probabilities.loc[source].mean()
    draw(
        "fates",
        "Fates of the flow",
        "Shares of the fates with their intervals, beside CellRank's fate probabilities: `vk.plot_fates(compare=...)`.",
        kernel.plot_fates,
        terminal_clusters=HORMONES,
        compare=compare.rename("CellRank"),
    )
    draw(
        "terminal_states",
        "Terminal states",
        "The ends that the shape of the data and the flow show, and why others are none: "
        '`states = vk.suggest_terminal_states("clusters"); vk.plot_terminal_states(states)`.',
        kernel.plot_terminal_states,
        states,
    )
    draw(
        "macrostates",
        "Macrostates",
        "Macrostates of CellRank's GPCCA: `pl.macrostates(estimator)`.",
        cv.pl.macrostates,
        found,
    )
    draw(
        "fate_map",
        "Fate probabilities",
        "Fate probabilities of CellRank: `pl.fate_map(estimator)`.",
        cv.pl.fate_map,
        found,
    )


def trends(kernel: cv.OTVelocityKernel) -> None:
    """Draw genes along the lineages of the pancreas."""
    found = cv.estimators.GPCCA(kernel)
    found.set_terminal_states(kernel.suggest_terminal_states("clusters")).compute_fate_probabilities(**QUIET)
    drivers = found.compute_lineage_drivers(["Alpha", "Beta"])
    first = {fate: drivers[f"{fate}_corr"].nlargest(12).index.tolist() for fate in ("Alpha", "Beta")}
    computed = kernel.gene_trends(list(dict.fromkeys([*first["Alpha"], *first["Beta"]])), lineages=["Alpha", "Beta"])
    draw(
        "trend_heatmap",
        "Trends as a heat map",
        "Driver genes along two lineages, those that peak first on top, with the time and the clusters of the columns: "
        "`vk.plot_gene_trends(vk.gene_trends(genes))`.",
        kernel.plot_gene_trends,
        computed,
    )
    draw(
        "gene_trends",
        "Trends as lines",
        'The same as curves with their bands: `vk.plot_gene_trends(trends, "lines")`.',
        kernel.plot_gene_trends,
        computed,
        "lines",
        genes={fate: names[:4] for fate, names in first.items()},
        n_columns=2,
    )


def simulated() -> None:
    """Draw what is known of simulated cells, and a grid of parameters."""
    adata = cv.datasets.bifurcation(n_cells=600)
    kernel = cv.OTVelocityKernel(adata).compute_transition_matrix(**QUIET)
    draw(
        "simulated",
        "Simulated cells",
        "A gene circuit with two fates, and the velocity found: `vk.plot_velocity()`.",
        kernel.plot_velocity,
    )
    draw(
        "time",
        "Any column",
        'The time that gives the direction: `pl.embedding(adata, "dpt_pseudotime")`.',
        cv.pl.embedding,
        adata,
        "dpt_pseudotime",
    )
    table = cv.gridsearch(
        adata,
        {"epsilon": [0.02, 0.05, 0.1], "lambda_smooth": [0.3, 1.0, 3.0]},
        cluster_edges=[("Progenitor", "Transition"), ("Transition", "Fate A"), ("Transition", "Fate B")],
        cluster_key="clusters",
    )
    draw(
        "gridsearch",
        "Grid search",
        'A score over two parameters: `pl.gridsearch_heatmap(table, "epsilon", "lambda_smooth")`.',
        cv.pl.gridsearch_heatmap,
        table,
        "epsilon",
        "lambda_smooth",
    )


def resting() -> None:
    """Draw where the flow of a simulated tree comes to rest, and the way from one end to another."""
    kernel = cv.OTVelocityKernel(cv.datasets.tree()).fit_field(**QUIET)
    draw(
        "fixed_points",
        "Fixed points",
        "Where the flow of a simulated tree comes to rest, with the saddles between the ends: "
        "`vk.plot_fixed_points(vk.fixed_points())`.",
        kernel.plot_fixed_points,
        kernel.fixed_points(),
    )
    draw(
        "least_action_path",
        "Least action path",
        "The likeliest way from one end to another against the flow: "
        '`vk.plot_least_action_path(vk.least_action_path("Fate A1", "Fate B1"))`.',
        kernel.plot_least_action_path,
        kernel.least_action_path("Fate A1", "Fate B1"),
    )


def series() -> None:
    """Draw a time series: simulated cells that branch, divide and die."""
    adata = cv.datasets.birth_death(sigma=0.2)
    truth = adata.uns["birth_death"]
    kernel = cv.OTVelocityKernel(adata, time_key="day", time_kind="experimental")
    kernel.compute_velocity(mass=dict(zip(truth["times"], truth["mass"], strict=True)), **QUIET)
    kernel.fit_field(**QUIET).compute_transition_matrix(**QUIET)
    adata.obsm["X_plane"] = adata.obsm["X_state"]
    draw(
        "growth",
        "Growth",
        "Growth rate of the cells of a simulated time series, by time point: `vk.plot_growth()`.",
        kernel.plot_growth,
        "plane",
    )
    draw(
        "ancestry",
        "Ancestors",
        "Shares of the ancestors of the cells of the last day, with intervals: "
        '`vk.plot_ancestry(vk.ancestry(group_by="clusters"))`.',
        kernel.plot_ancestry,
        kernel.ancestry(group_by="clusters"),
    )
    draw(
        "process",
        "Stochastic paths",
        "Particles that follow the process forward: `vk.plot_process(vk.simulate_process())`.",
        kernel.plot_process,
        kernel.simulate_process(),
    )
    draw(
        "population",
        "Between time points",
        "The population at times that were not measured: `vk.plot_population([0.5, 1.5, 2.5])`.",
        kernel.plot_population,
        [0.5, 1.5, 2.5],
    )
    landscape = kernel.compute_landscape(basis="plane")
    draw(
        "landscape",
        "Landscape",
        "Quasi-potential by time point, with states and passes: `vk.plot_landscape(vk.compute_landscape())`.",
        kernel.plot_landscape,
        landscape,
    )
    draw(
        "landscape_surface",
        "Landscape as a surface",
        'Day 2, where the branches part: `vk.plot_landscape(landscape, times=[2], kind="surface")`.',
        kernel.plot_landscape,
        landscape,
        times=[2.0],
        kind="surface",
    )


def genes(kernel: cv.OTVelocityKernel) -> None:
    """Draw what the field says of genes."""
    names = ["Pdx1", "Ins2", "Gcg", "Iapp", "Isl1", "Pax4"]
    found = kernel.compute_regulation(names, "clusters", {"clusters": ["Alpha", "Beta"]})
    draw(
        "regulation",
        "Regulation",
        'Mean Jacobian between genes: `vk.compute_regulation([...], "clusters"); vk.plot_regulation()`.',
        kernel.plot_regulation,
        found,
    )
    draw(
        "network",
        "Regulation as a network",
        'The same as arrows and bars: `vk.plot_regulation(kind="network")`.',
        kernel.plot_regulation,
        found,
        kind="network",
    )
    screened = kernel.screen(source_cluster="Pre-endocrine", cluster_key="clusters", **QUIET)
    draw(
        "screen",
        "All genes changed, one by one",
        "Genes whose change shifts the fates of the pre-endocrine cells most; markers are among them, as the field knows "
        'no cause: `pl.screen(vk, vk.screen(source_cluster="Pre-endocrine"))`.',
        cv.pl.screen,
        kernel,
        screened,
        n_columns=2,
    )
    doses = kernel.dose_response(
        "Iapp", source_cluster="Pre-endocrine", terminal_clusters=HORMONES, cluster_key="clusters", **QUIET
    )
    draw(
        "dose_response",
        "A series of doses",
        'Fates of the same particles with less and more of a gene: `pl.dose_response(vk, vk.dose_response("Iapp", ...))`.',
        cv.pl.dose_response,
        kernel,
        doses,
    )


def conditions() -> None:
    """Draw two conditions with replicates."""
    adata = cv.datasets.two_conditions(n_cells=200, n_samples=4, shift=0.2, random_state=3)
    kernel = cv.OTVelocityKernel(adata).compute_transition_matrix(**QUIET)
    found = cv.estimators.GPCCA(kernel)
    found.set_terminal_states(kernel.suggest_terminal_states("clusters"))
    found.compute_fate_probabilities()
    compared = cv.compare_conditions(kernel, "condition", "sample", genes=list(adata.var_names))
    draw(
        "condition_fates",
        "Fates under each condition",
        "Simulated samples of two conditions, and the difference with its interval over samples: "
        '`found = cv.compare_conditions(vk, "condition", "sample"); cv.pl.condition_fates(found)`.',
        cv.pl.condition_fates,
        compared,
    )
    draw(
        "condition_velocity",
        "Velocity under each condition",
        "The one field at the cells of each condition, and the difference: `cv.pl.condition_velocity(vk, found)`.",
        cv.pl.condition_velocity,
        kernel,
        compared,
    )
    draw(
        "condition_trends",
        "Genes under each condition",
        "Means over samples with their bands; thin lines are samples: "
        '`cv.pl.condition_trends(found, ["Unrelated1", "FateA"])`.',
        cv.pl.condition_trends,
        compared,
        ["Unrelated1", "FateA"],
    )


def overview() -> None:
    """Draw the picture of the README: from a time to a velocity to a fate."""
    adata = cv.datasets.tree()
    kernel = cv.OTVelocityKernel(adata, cluster_key="clusters").compute_transition_matrix(**QUIET)
    found = cr.estimators.GPCCA(kernel)
    found.set_terminal_states(kernel.suggest_terminal_states("clusters"))
    found.compute_fate_probabilities(use_petsc=False, solver="direct", **QUIET)
    figure, axes = matplotlib.pyplot.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    cv.pl.embedding(kernel, "dpt_pseudotime", ax=axes[0])
    cv.pl.velocity_stream(kernel, ax=axes[1])
    fate = found.fate_probabilities.names[0]
    cv.pl.fate_map(found, lineages=fate, ax=axes[2])
    titles = ("from a pseudotime ...", "... to a velocity ...", f"... to fates, {fate}")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc="left")
    figure.savefig(FIGURES.parent / "overview.png", dpi=80)
    matplotlib.pyplot.close(figure)


def barcodes() -> None:
    """Draw what clones say of fates, from simulated cells with barcodes."""
    adata = cv.datasets.barcoded_lineages()
    kernel = cv.OTVelocityKernel(adata, time_key="pseudotime", cluster_key="clusters").compute_transition_matrix(
        **QUIET
    )
    last = adata.obs["day"] == adata.obs["day"].max()
    found = cv.estimators.GPCCA(0.8 * kernel + 0.2 * cr.kernels.ConnectivityKernel(adata).compute_transition_matrix())
    names = [name for name in adata.obs["clusters"].cat.categories if name != "Progenitor"]
    found.set_terminal_states({n: adata.obs_names[last & (adata.obs["clusters"] == n)].tolist() for n in names})
    found.compute_fate_probabilities()
    judged = kernel.judge_by_clones({"cellrank_velot": found}, "X_clone")
    draw(
        "clone_scores",
        "Judged by clones",
        "How far fates agree with what sisters became, beside CellRank's kernels without a velocity, with intervals "
        "over clones: `pl.clone_scores(vk.judge_by_clones(estimator))`.",
        cv.pl.clone_scores,
        judged,
    )
    draw(
        "clone_overlap",
        "Clones of two fates",
        "How far the clones of two fates are the same ones, and how far they would be if the fates were right: "
        "`pl.clone_overlap(vk.judge_by_clones(estimator))`.",
        cv.pl.clone_overlap,
        judged,
    )
    draw(
        "clone_calibration",
        "Calibration by clones",
        "What held-out sisters became where a fate was given some probability, before and after the other sisters were "
        "taken as evidence: `pl.clone_calibration(clones.update_by_clones(adata, estimator))`.",
        cv.pl.clone_calibration,
        cv.clones.update_by_clones(adata, found, split_key="well"),
    )


def main() -> None:
    """Draw all and write the page."""
    logging.getLogger("cellrank_velot").setLevel(logging.ERROR)
    FIGURES.mkdir(parents=True, exist_ok=True)
    adata = pancreas()
    kernel = cv.OTVelocityKernel(adata).compute_transition_matrix(**QUIET)
    overview()
    velocity(kernel)
    windows(kernel)
    motion(kernel)
    genes(kernel)
    trends(kernel)
    simulated()
    resting()
    series()
    conditions()
    barcodes()
    sections = [
        f"## {heading}\n\n{caption}\n\n![{heading}](figures/gallery/{file})\n"
        for file, (heading, caption) in CAPTIONS.items()
    ]
    intro = (
        "# Gallery\n\nEvery figure is drawn by `python docs/gallery.py`, from 739 cells of the pancreas and from "
        "simulated cells. Each method of the kernel calls the function of `cellrank_velot.pl` of the same purpose; "
        "`basis`, `figsize`, `dpi`, `save`, `show` and `ax` are as in CellRank's own plots.\n\n"
    )
    (HERE / "gallery.md").write_text(intro + "\n".join(sections))


if __name__ == "__main__":
    main()
