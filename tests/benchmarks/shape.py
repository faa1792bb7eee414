"""Measure the shape of a package: ``python tests/benchmarks/shape.py [folder ...]``, of this one where none is given.

Lines of code of a function are those without its docstring, blank lines and comments. Parameters are those of public
functions and methods, without ``self`` and ``cls``.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[2] / "cellrank_velot"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the numbers of the lines of all docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            found |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def is_public(path: Path, folder: Path, node: ast.AST) -> bool:
    """Return whether a function has no private name, nor its file or folder."""
    parts = [*path.relative_to(folder).with_suffix("").parts, getattr(node, "name", "")]
    return not any(part.startswith("_") and not part.startswith("__") for part in parts)


def measure(folder: Path) -> dict[str, str]:
    """Return the row of the table for a package."""
    codes, files, parameters = [], [], []
    kinds = {"code": 0, "docstring": 0, "comment": 0, "blank": 0}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        documented = docstring_lines(tree)
        kind = []
        for number, line in enumerate(lines, 1):
            bare = line.strip()
            is_code = "blank" if not bare else "comment" if bare.startswith("#") else "code"
            kind.append("docstring" if number in documented else is_code)
            kinds[kind[-1]] += 1
        files.append(len(lines))
        for node in ast.walk(tree):
            if not isinstance(node, FUNCTIONS):
                continue
            codes.append(kind[node.lineno - 1 : node.end_lineno].count("code"))
            if is_public(path, folder, node):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                parameters.append(len([a for a in arguments if a.arg not in ("self", "cls")]))

    def shown(values: list[int], *percentiles: int) -> str:
        return " / ".join(f"{np.percentile(values, p):.0f}" for p in percentiles)

    total = sum(kinds.values())
    return {
        "package": folder.name,
        "lines": f"{total} ({', '.join(f'{name} {n}' for name, n in kinds.items())})",
        "function code median / p90 / max": shown(codes, 50, 90, 100),
        "file median / p90": shown(files, 50, 90),
        "public parameters p90 / max": shown(parameters, 90, 100),
        "docstrings, % of lines": f"{100 * kinds['docstring'] / total:.0f}",
    }


def main() -> None:
    """Print the table."""
    rows = [measure(Path(folder)) for folder in sys.argv[1:] or [HERE]]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
