"""Rooms, floors and arrows of the house, counted from the imports of every module.

A room is a folder or a loose file of the library, or one of the packages beside it. An arrow leads from a room to a
room that it imports, wherever the import stands (also inside a function, or for types only). A room's floor is one
above the highest room that it imports. Run it to see the house: ``python tests/house.py``.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = "fed_diffmic"
BESIDE = ("server", "client", "simulations", "configs")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package in (LIBRARY, *BESIDE):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: set[str], types: bool = True) -> set[str]:
    """The known modules that a file imports; without ``types`` not those that stand below ``if TYPE_CHECKING``."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = {
        inner
        for node in ast.walk(tree)
        if not types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in unread:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module for name in inside}
    return {name for name in names if name in known}


def file_arrows(root: Path = ROOT, types: bool = True) -> dict[str, set[str]]:
    """Which module imports which; ``types``: also where only a type checker reads it."""
    found = modules(root)
    return {name: imported(path, set(found), types) - {name} for name, path in found.items()}


def room_of(module: str) -> str:
    """The room that a module stands in; the library's own face (its version) is none."""
    first, _, rest = module.partition(".")
    if first != LIBRARY:
        return first
    return f"{LIBRARY}.{rest.partition('.')[0]}" if rest else ""


def room_arrows(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Which room imports which."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in arrows.items():
        room = room_of(module)
        if room:
            found[room] |= {room_of(other) for other in others} - {room, ""}
    return dict(found)


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Sets of names that reach each other (strongly connected, more than one; Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return found


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Each room's floor, from 1; the rooms must have no circle."""
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((floor(other) for other in arrows.get(room, ())), default=0)
        return found[room]

    for room in arrows:
        floor(room)
    return found


def main() -> None:
    """Print the house from the top."""
    arrows = room_arrows(file_arrows())
    height = floors(arrows)
    print(f"{len(arrows)} rooms, {max(height.values())} floors, {sum(map(len, arrows.values()))} arrows")
    for room in sorted(height, key=lambda r: (-height[r], r)):
        print(f"{height[room]:3d}  {room}: {', '.join(sorted(arrows[room]))}")


if __name__ == "__main__":
    main()
