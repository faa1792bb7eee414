"""What the main job adds for real time points: descendants, ancestors and flows between clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from cellrank_velot import plotting
from cellrank_velot.dynamics import ProcessFates
from cellrank_velot.job.log import attempt
from cellrank_velot.job.options import SeriesResult
from cellrank_velot.job.report import Cell, Table
from cellrank_velot.plotting.descent import Relatives

__all__ = ["follow", "series_figures", "series_tables"]


def follow(kernel: Any, cluster_key: str | None, seed: int, missing: list[str]) -> SeriesResult:
    """Follow the clusters of the first time point forward, and those of the last one back."""
    if cluster_key is None:
        missing.append("No descendants and ancestors: there are no clusters. Name their column with `--cluster-key`")
        return SeriesResult()
    options = {"cluster_key": cluster_key, "group_by": cluster_key, "random_state": seed}
    return SeriesResult(
        descendants=attempt(missing, "No descendants", partial(kernel.fate_probabilities, **options)),
        ancestors=attempt(missing, "No ancestors", partial(kernel.ancestry, **options)),
        flows=attempt(missing, "No flows between clusters", kernel.cluster_flows, cluster_key),
    )


def series_figures(
    kernel: Any, result: SeriesResult, basis: str, cluster_key: str | None
) -> Iterator[tuple[str, Callable[..., object], str, str]]:
    """Yield the pictures of a time series: name, the plot with its arguments, title and caption."""
    yield (
        "growth",
        partial(plotting.growth_map, kernel, basis),
        "Growth",
        "Growth rate of the cells by time point, per unit of time and relative to the whole population: snapshots "
        "alone do not say how large it was.",
    )
    if result.flows is not None:
        yield (
            "sankey",
            partial(plotting.sankey, kernel, cluster_key),
            "From each time point to the next",
            "Clusters of each time point, and which cells of the next the transport pairs them with. Heights are in "
            "proportion to mass.",
        )
    relatives: tuple[tuple[Relatives, str], ...] = (("descendants", "on"), ("ancestors", "back"))
    for name, way in relatives:
        fates = getattr(result, name)
        if fates is not None:
            yield (
                name,
                partial(plotting.fate_heatmap, kernel, fates, of=name, cluster_key=cluster_key),
                name.capitalize(),
                f"Each row is a cluster; its cells are followed {way} through all time points. Shares of their {name}.",
            )
    yield (
        "landscape",
        lambda **figure: plotting.potential_landscape(kernel, kernel.compute_landscape(basis=basis), **figure),
        "Landscape",
        "Low where cells are many: valleys are where they gather, ridges are seldom crossed.",
    )


def series_tables(result: SeriesResult) -> list[Table]:
    """Return the tables of a report on descent."""
    tables = []
    for name, text in (
        ("descendants", "Share of the descendants of each cluster, at the last time point"),
        ("ancestors", "Share of the ancestors of each cluster, at the first time point"),
    ):
        fates: ProcessFates | None = getattr(result, name)
        if fates is None:
            continue
        grown = name == "descendants"
        rows = [
            [
                Cell(str(row)),
                *([Cell(f"{fates.growth[row]:.2f}")] if grown else []),
                *[Cell(f"{value:.2f}", share=float(value)) for value in fates.table.loc[row]],
            ]
            for row in fates.table.index
        ]
        columns = ["Cluster", *(["Descendants per cell"] if grown else []), *map(str, fates.table.columns)]
        tables.append(Table(name.capitalize(), f"{text}.", columns, rows))
    return tables
