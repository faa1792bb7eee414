"""How long the first import takes, beside CellRank's alone: ``python tests/benchmarks/import_time.py``.

Seconds of the processor in a fresh process, the least of several, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

PACKAGES = ("cellrank", "cellrank_velot")


def seconds(package: str) -> float:
    """Return the seconds of the processor that an import takes in a process of its own."""
    code = f"import time\nimport {package}\nprint(time.process_time())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def main() -> None:
    """Print the seconds of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    times = [[seconds(package) for package in PACKAGES] for _ in range(parser.parse_args().repeats)]
    host, ours = (min(column) for column in zip(*times, strict=True))
    print(f"cellrank {host:.2f} s, cellrank_velot {ours:.2f} s: {ours / host:.2f} times")


if __name__ == "__main__":
    main()
