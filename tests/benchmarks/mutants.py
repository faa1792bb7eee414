"""Mutation testing of couplings, windows and transitions: mutmut changes one place of the code, and tests must fail.

Prints a table of how many of the drawn mutants were killed, and those that were not; half an hour on two cores.
`--all` tries every mutant, which takes three times as long.
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
    "transport": 160,
    "windows": 160,
    "transitions": 160,
    "similarities": 130,
    "monte_carlo": 130,
    "edge_rows": None,
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
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    args = parser.parse_args()
    mutate(["cellrank_velot.graph.rows.*"])  # this makes those of the other files, too
    drawn = {}
    for module, n in DRAWN.items():
        names = sorted(outcomes(module))
        drawn[module] = names if args.all or n is None else random.Random(args.seed).sample(names, n)
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
