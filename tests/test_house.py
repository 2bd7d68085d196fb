"""The house as its imports draw it: few rooms, few floors, no circle."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.house import ROOT, circles, file_arrows, floors, room_arrows, room_of

MOST_ROOMS, MOST_FLOORS = 25, 11
MOST_PARAMETERS, MOST_LINES = 9, 60
STILL_LONG = {("fed_diffmic/config/fields.py", "option")}
"""Functions that take more: the declaration of a setting, in words by name. This list never gets longer."""
SPINES = {
    "server/rounds.py": ("run_federation", "run_stage"),
    "client/app.py": ("run_task",),
    "client/tasks.py": ("train", "update"),
    "fed_diffmic/training/local.py": ("local_update",),
}
"""What reads top to bottom in the paper's words."""


def test_rooms_and_floors_are_few_and_no_circle_leads_through_them() -> None:
    arrows = room_arrows(file_arrows())
    assert circles(arrows) == []
    assert len(arrows) <= MOST_ROOMS, sorted(arrows)
    height = floors(arrows)
    assert max(height.values()) <= MOST_FLOORS, sorted(height.items(), key=lambda item: -item[1])


def test_no_module_of_a_side_leads_back_to_itself() -> None:
    """Between files of one room too, but for annotations that a checker alone reads."""
    assert circles(file_arrows(types=False)) == []


def test_using_a_model_needs_neither_side_nor_simulation() -> None:
    arrows, seen = file_arrows(), set()
    waiting = [name for name in arrows if name.startswith(("fed_diffmic.release", "fed_diffmic.inference"))]
    assert waiting
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(arrows[name])
    assert not {room_of(name) for name in seen} & {"server", "client", "simulations", "fed_diffmic.commands"}


def test_a_circle_and_a_climb_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    for package, text in {
        "fed_diffmic/low": "",
        "fed_diffmic/high": "def f():\n    from fed_diffmic.low import x\n",
        "fed_diffmic/types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fed_diffmic.high\n",
    }.items():
        folder = tmp_path / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(text)
    rooms = room_arrows(file_arrows(tmp_path))
    assert rooms["fed_diffmic.high"] == {"fed_diffmic.low"} and rooms["fed_diffmic.types"] == {"fed_diffmic.high"}
    assert file_arrows(tmp_path, types=False)["fed_diffmic.types"] == set()


def functions(path: Path) -> list[ast.FunctionDef]:
    """Every function and method of a file."""
    return [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> int:
    """How many a caller may give."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_no_function_takes_a_crowd_of_parameters() -> None:
    crowded = set()
    for room in ("server", "client", "fed_diffmic", "simulations"):
        for path in sorted((ROOT / room).rglob("*.py")):
            many = {f.name for f in functions(path) if parameters(f) > MOST_PARAMETERS}
            crowded |= {(str(path.relative_to(ROOT)), name) for name in many}
    assert crowded == STILL_LONG


def test_the_spines_are_read_at_a_glance() -> None:
    for path, names in SPINES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert len(text.splitlines()) < 300, path
        lines = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(ROOT / path)}
        assert {name: lines[name] for name in names if lines[name] > MOST_LINES} == {}, path


def test_a_round_reads_in_the_order_of_the_algorithm() -> None:
    """Train, aggregate, evaluate, choose, checkpoint, observers: calls of `run_stage` in the order of their lines."""
    (loop,) = [f for f in functions(ROOT / "server" / "rounds.py") if f.name == "run_stage"]
    calls = [n for n in ast.walk(loop) if isinstance(n, ast.Call)]
    named = sorted((n.lineno, n.func.attr if isinstance(n.func, ast.Attribute) else ast.unparse(n.func)) for n in calls)
    steps = ["train", "aggregate", "log_aggregate", "evaluate", "choose", "ledger_heads", "save", "told"]
    assert [name for _, name in named if name in steps] == steps


def chain_of_a_round() -> list[tuple[int, str, str]]:
    """The lines of the figure in docs/architecture.md: how far in, file, function."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    figure = text.split("```text\n")[1].split("```")[0].strip("\n").split("\n")
    return [((len(line) - len(line.lstrip())) // 2, *line.strip().split(": ")) for line in figure]  # type: ignore[misc]


def names_in(path: str, function: str) -> set[str]:
    """Everything that a function's body names."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    (body,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function]
    names = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute)}


def test_the_chain_of_a_round_is_what_the_code_does() -> None:
    """Each function names those one step further in; from `ask` on it is a message that leads to the site."""
    chain = chain_of_a_round()
    assert len(chain) > 12
    for place, (depth, path, function) in enumerate(chain):
        names = names_in(path, function)  # there is exactly one function of that name in that file
        for further, file, inner in chain[place + 1 :]:
            if further <= depth:
                break
            if further == depth + 1 and function != "ask":
                assert inner in names, f"{path}: {function} does not call {inner} of {file}"
