"""Print the oldest versions that pyproject.toml allows, as constraints for pip: ``make test-oldest`` calls this.

Depends on the standard library only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("dask", "interactive", "test")  # what the tests need


def oldest() -> Iterator[str]:
    """Yield ``name==version`` for each requirement with a lower bound, of the package and of what its tests need."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + [one for extra in EXTRAS for one in extras[extra]]:
        bound = re.fullmatch(r"([\w-]+)\s*>=([\w.]+)[^;]*", requirement)
        if bound:
            yield f"{bound[1]}=={bound[2]}"


if __name__ == "__main__":
    print(*oldest(), sep="\n")
