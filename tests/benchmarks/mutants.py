"""Mutation testing of the numerical core: mutmut changes one place of the code, and a test must fail.

Prints a table of how many of the drawn mutants were killed, and those that were not. `--only` takes some of the files,
`--all` tries every mutant of them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from common import table

ROOT = Path(__file__).parents[2]
# Mutants drawn of each file; none for all.
DRAWN = {
    "transport/sinkhorn": 120,
    "transport/windows": 120,
    "transport/velocity": 120,
    "timeseries/batch": 60,
    "timeseries/couplings": 60,
    "field/network": 80,
    "field/training": 120,
    "field/matching": 120,
    "fates/states": 120,
    "transitions/matrix": 120,
    "transitions/similarities": 100,
    "transitions/monte_carlo": 100,
    "graph/rows": None,
}
# What mutmut writes down of a mutant: no test failed, or no test runs the function.
SURVIVED, UNTESTED = 0, 33


def mutate(names: Sequence[str]) -> None:
    """Try mutants of these names, or patterns of names."""
    subprocess.run([sys.executable, "-m", "mutmut", "run", *names], cwd=ROOT, check=True)


def outcomes(module: str) -> dict[str, int | None]:
    """Return what the tests of each mutant of a file returned; none where it was not tried."""
    path = ROOT / "mutants" / "cellrank_velot" / f"{module}.py.meta"
    return json.loads(path.read_text())["exit_code_by_key"]


def main() -> None:
    """Draw, try and count mutants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="try every mutant")
    parser.add_argument("--only", nargs="+", choices=list(DRAWN), default=list(DRAWN), help="files to try")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    args = parser.parse_args()
    mutate(["cellrank_velot.graph.rows.*"])  # this makes those of the other files, too
    drawn = {}
    for module in args.only:
        n = DRAWN[module]
        names = sorted(outcomes(module))
        drawn[module] = names if args.all or n is None else random.Random(args.seed).sample(names, min(n, len(names)))
    mutate([name for names in drawn.values() for name in names])
    rows, alive = [], []
    for module, names in drawn.items():
        found = outcomes(module)
        left = [name for name in names if found[name] in (SURVIVED, UNTESTED)]
        killed = len(names) - len(left)
        share = f"{100 * killed / len(names):.0f} %"
        rows.append(
            {"file": f"`{module}`", "mutants": len(found), "tried": len(names), "killed": killed, "share": share}
        )
        alive += left
    print(table(pd.DataFrame(rows)))
    print("\nStill alive, see `mutmut show NAME`:", *alive, sep="\n")


if __name__ == "__main__":
    main()
