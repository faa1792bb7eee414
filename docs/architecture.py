"""Draw the picture of the architecture from the imports of the package: ``python docs/architecture.py``.

A box is a room: a file or folder directly in the package. It stands one floor above the highest room that it imports.
A picture can only be drawn where imports go one way. The colour of a box says which of AnnData and CellRank it imports.
Imports within functions count, those for type checkers alone do not. Lines that follow from others are left out.
``tests/test_architecture.py`` reads the imports from here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "cellrank_velot"
FIGURE = HERE / "figures" / "architecture.svg"
GAP = " "  # begins the name of a place where a line passes a row
SHARED = "_utils"  # what every room may use: checks of arguments, devices, jobs, memory
COLORS = {
    "neither AnnData nor CellRank": "#e8e8e8",
    "AnnData": "#bfe0f5",
    "CellRank": "#f8d9a8",
}
WIDTH, HEIGHT, GAP_X, GAP_Y, TOP, MARGIN = 1080, 30, 12, 56, 12, 12


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of what a file imports, within its functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not for_types(node):
            yield from imported(node)


def for_types(node: ast.AST) -> bool:
    """Return whether a part of a file is read by type checkers alone."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def source(path: Path) -> ast.Module:
    """Return what a file says."""
    return ast.parse(path.read_text(encoding="utf-8"))


def handed_out() -> dict[str, str]:
    """Return the room of each name that the package hands out, such as ``pl``."""
    imports = [node for node in source(PACKAGE / "__init__.py").body if isinstance(node, ast.ImportFrom)]
    names = [(alias.asname or alias.name, f"{node.module}.{alias.name}") for node in imports for alias in node.names]
    return {name: full.split(".")[1] for name, full in names if full.startswith(f"{PACKAGE.name}.")}


def room(name: str) -> str | None:
    """Return the room of a full name of this package."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name or len(parts) == 1:
        return None
    known = (PACKAGE / f"{parts[1]}.py").exists() or (PACKAGE / parts[1]).is_dir()
    return parts[1] if known else handed_out().get(parts[1])


def room_of(path: Path) -> str:
    """Return the room of a file."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def read_package() -> tuple[dict[str, set[str]], dict[str, str]]:
    """Return what each room imports of the others, and which of AnnData and CellRank it imports."""
    imports: dict[str, set[str]] = {}
    hosts: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = room_of(path)
        if name in ("__init__", "__main__"):  # the door
            continue
        names = list(imported(source(path)))
        used = {found for found in map(room, names) if found}
        imports.setdefault(name, set()).update(used - {name})
        hosts.setdefault(name, set()).update(n.split(".")[0] for n in names)
    kinds = {
        name: "CellRank" if "cellrank" in used else "AnnData" if "anndata" in used else "neither AnnData nor CellRank"
        for name, used in hosts.items()
    }
    return imports, kinds


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each room, counted from the ground: one above the highest that it imports.

    Raises
    ------
    ValueError
        If rooms import each other in a circle.
    """
    found: dict[str, int] = {}

    def climb(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError("Imports go in a circle: " + " -> ".join([*above[above.index(name) :], name]))
        if name not in found:
            found[name] = 1 + max((climb(used, (*above, name)) for used in sorted(imports[name])), default=-1)
        return found[name]

    for name in sorted(imports):
        climb(name, ())
    return found


def reachable(name: str, imports: dict[str, set[str]]) -> set[str]:
    """Return all that a box depends on."""
    found: set[str] = set()
    for other in imports[name]:
        found |= {other} | reachable(other, imports)
    return found


def reduced(imports: dict[str, set[str]]) -> dict[str, list[str]]:
    """Return the imports that do not follow from others; of what every box may use, none."""
    far = {name: reachable(name, imports) for name in imports}
    return {
        name: sorted(o for o in others if o != SHARED and not any(o in far[third] for third in others))
        for name, others in imports.items()
    }


def chains(rows: dict[str, int], lines: dict[str, list[str]]) -> list[list[str]]:
    """Return each line as the points that it goes through: its boxes, and between them a gap in every row."""
    found = []
    for name, others in lines.items():
        for other in others:
            gaps = [f"{GAP}{name} {other} {row}" for row in range(rows[name] + 1, rows[other])]
            rows.update(zip(gaps, range(rows[name] + 1, rows[other]), strict=True))
            found.append([name, *gaps, other])
    return found


def places(rows: dict[str, int], chains: list[list[str]]) -> dict[str, float]:
    """Return the middle of each box and gap: in turn, as near to what it is joined to as its row allows."""
    joined: dict[str, list[str]] = {name: [] for name in rows}
    for chain in chains:
        for one, other in pairwise(chain):
            joined[one].append(other)
            joined[other].append(one)
    x = dict.fromkeys(rows, WIDTH / 2)
    for sweep in range(60):
        for row in sorted(set(rows.values()), reverse=bool(sweep % 2)):
            here = [name for name in rows if rows[name] == row]
            wanted = {name: sum(x[other] for other in joined[name]) / (len(joined[name]) or 1) for name in here}
            names = sorted(here, key=lambda name: (wanted[name], name))
            edge = float(MARGIN)
            for name in names:  # from the left: not on each other
                x[name] = max(wanted[name], edge + width(name) / 2)
                edge = x[name] + width(name) / 2 + GAP_X
            edge = float(WIDTH - MARGIN)
            for name in reversed(names):  # and back from the right
                x[name] = min(x[name], edge - width(name) / 2)
                edge = x[name] - width(name) / 2 - GAP_X
    left = min(x[name] - width(name) / 2 for name in rows)
    right = max(x[name] + width(name) / 2 for name in rows)
    return {name: middle + (WIDTH - left - right) / 2 for name, middle in x.items()}


def width(name: str) -> float:
    """Return the width of a box or gap."""
    return 2 if name.startswith(GAP) else 7.6 * len(name) + 22


def draw() -> str:
    """Return the picture."""
    imports, kinds = read_package()
    names = [name for name in imports if name != SHARED]
    lines = {name: others for name, others in reduced(imports).items() if name != SHARED}
    floor = floors({name: imports[name] - {SHARED} for name in names})
    rows = {name: max(floor.values()) - floor[name] for name in names}
    paths = chains(rows, lines)
    x, y = places(rows, paths), {name: TOP + GAP_Y * row for name, row in rows.items()}
    bottom = max(y.values()) + GAP_Y
    shared = ", ".join(sorted(path.stem for path in (PACKAGE / SHARED).glob("*.py") if path.stem[0] != "_"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + HEIGHT + MARGIN}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14" text-anchor="middle">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for path in paths:
        line = f"M{x[path[0]]:.0f} {y[path[0]] + HEIGHT}"
        for one, other in pairwise(path):
            start, end, bend = y[one] + HEIGHT, y[other], (GAP_Y - HEIGHT) / 2
            line += f" C{x[one]:.0f} {start + bend:.0f} {x[other]:.0f} {end - bend:.0f} {x[other]:.0f} {end}"
            line += f" V{end + HEIGHT}" if other.startswith(GAP) else ""
        parts.append(f'<path d="{line}" fill="none" stroke="#808080"/>')
    boxes = [(name, x[name], y[name], width(name), COLORS[kinds[name]]) for name in names]
    boxes.append((f"for all: {shared}", WIDTH / 2, bottom, WIDTH - 2 * MARGIN, COLORS["neither AnnData nor CellRank"]))
    left = MARGIN
    for kind, color in COLORS.items():
        label = f"imports {kind}"
        boxes.append((label, left + width(label) / 2, MARGIN, width(label), color))
        left += width(label) + GAP_X
    for name, middle, top, wide, color in boxes:
        parts.append(
            f'<rect x="{middle - wide / 2:.0f}" y="{top}" width="{wide:.0f}" height="{HEIGHT}" rx="5" '
            f'fill="{color}" stroke="#505050"/><text x="{middle:.0f}" y="{top + 20}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
