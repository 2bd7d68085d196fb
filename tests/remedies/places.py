"""Every place of the program that makes an error which a user meets, and which of them has its remedy tried.

A place is a call of a class of ``fed_diffmic/errors.py`` (or of one derived from it) in the program's source. It is
named ``FILE::FUNCTION``, and where one function has several places with different remedies ``FILE::FUNCTION | WORDS``,
with words that stand in one remedy alone (in what is allowed, or in the cause, where there is none).
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fed_diffmic import errors
from fed_diffmic.errors import FedDiffmicError

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
PACKAGES = ("fed_diffmic", "server", "client", "simulations")
TRIED: set[str] = set()
"""Names of the places whose remedy a test of this folder applies; filled when its files are imported."""


@dataclass(frozen=True)
class Place:
    """Where an error is made.

    Attributes:
        file: from the root of the tree.
        function: qualified by its class.
        first, last: lines of the call.
        kind: the error's class.
        remedy: its text, with what fills it in braces; what is allowed, or the cause, where there is none.
    """

    file: str
    function: str
    first: int
    last: int
    kind: str
    remedy: str

    @property
    def spot(self) -> str:
        """File and function."""
        return f"{self.file}::{self.function}"


def text_of(node: ast.expr | None) -> str:
    """A text as it is written, with its expressions in braces."""
    match node:
        case None:
            return ""
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(map(text_of, node.values))
        case ast.FormattedValue():
            return f"{{{ast.unparse(node.value)}}}"
        case ast.BinOp(op=ast.Add()):
            return text_of(node.left) + text_of(node.right)
    return f"{{{ast.unparse(node)}}}"


@cache
def kinds() -> frozenset[str]:
    """Names of the classes of errors: those of ``errors.py``, and what is derived from them elsewhere."""
    found, count = {FedDiffmicError.__name__}, 0
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in files()]
    classes = [match for text in texts for match in re.findall(r"^class (\w+)\((\w+)\):", text, re.MULTILINE)]
    while count != len(found):
        count = len(found)
        found |= {name for name, above in classes if above in found}
    return frozenset(found)


@cache
def files() -> tuple[str, ...]:
    """Every file of the program."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return tuple(path.relative_to(ROOT).as_posix() for path in paths)


@cache
def in_file(file: str) -> tuple[Place, ...]:
    """The places of a file."""
    path = ROOT / file
    return tuple(_below(ast.parse(path.read_text(encoding="utf-8")), file, ())) if path.is_file() else ()


def places() -> Iterator[Place]:
    """Every place, in the order of the files."""
    return (place for file in files() for place in in_file(file))


def _below(node: ast.AST, file: str, names: tuple[str, ...]) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in kinds():
            kind, remedy = child.func.id, _remedy(child)
            yield Place(file, ".".join(names), child.lineno, child.end_lineno or child.lineno, kind, remedy)
        yield from _below(child, file, (*names, child.name) if named else names)  # type: ignore[attr-defined]


def _remedy(call: ast.Call) -> str:
    """The remedy of an error that is made, or what stands in for it."""
    keyword = next((k.value for k in call.keywords if k.arg == "remedy"), None)
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if not hasattr(errors, name):
        return f"{{{name}}}"  # it makes its own texts of what it is given
    position, instead = (3, 2) if name == "ConfigError" else (1, 0)
    given = call.args[position] if len(call.args) > position else keyword
    return text_of(given) or text_of(call.args[instead] if len(call.args) > instead else None)


def named(name: str) -> list[Place]:
    """The places of a name.

    Raises:
        ValueError: there is none, or they have different remedies.
    """
    spot, _, words = name.partition(" | ")
    found = [place for place in in_file(spot.partition("::")[0]) if place.spot == spot and words in place.remedy]
    found = [place for place in found if place.remedy == words] or found
    if not found:
        raise ValueError(f"no error is made at {name}")
    if len({place.remedy for place in found}) > 1:
        raise ValueError(f"{name} has several remedies: {sorted({place.remedy for place in found})}")
    return found


def table(name: str, *columns: str) -> list[Any]:
    """The rows of a table of this folder, each with the place whose error it causes and whose remedy it applies."""
    rows = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))["row"]
    TRIED.update(row["place"] for row in rows)
    return [
        pytest.param(
            *(row.get(column, "") for column in columns),
            marks=pytest.mark.tries(row["place"]),
            id=row["place"].removeprefix("fed_diffmic/").replace(" ", "-"),
        )
        for row in rows
    ]


def tries(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of a test that is not a table's: the places whose errors it causes and whose remedies it applies."""
    TRIED.update(names)
    mark: Callable[[Callable[..., None]], Callable[..., None]] = pytest.mark.tries(*names)
    return mark


def untried() -> dict[str, str]:
    """Places whose remedy no test of this folder applies, and why."""
    listed = tomllib.loads((FOLDER / "untried.toml").read_text(encoding="utf-8"))["untried"]
    return {name: entry["why"] for entry in listed for name in entry["places"]}


@contextmanager
def made() -> Iterator[list[tuple[str, int]]]:
    """File and line of every error that is made meanwhile."""
    found: list[tuple[str, int]] = []
    plain = FedDiffmicError.__init__

    def init(self: FedDiffmicError, *args: Any, **kwargs: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT):
                found.append((path.relative_to(ROOT).as_posix(), frame.f_lineno))
            if frame.f_code.co_name != "__init__":
                break
            frame = frame.f_back
        plain(self, *args, **kwargs)

    FedDiffmicError.__init__ = init  # type: ignore[method-assign]
    try:
        yield found
    finally:
        FedDiffmicError.__init__ = plain  # type: ignore[method-assign]


def was_made(name: str, at: list[tuple[str, int]]) -> bool:
    """Whether one of the errors was made at a place of that name."""
    return any(p.file == file and p.first <= line <= p.last for p in named(name) for file, line in at)


def remedy_in(action: Callable[[], Any], words: str) -> re.Match[str]:
    """Where the message of an action that must be refused has a remedy.

    Args:
        action: raises an error that users meet.
        words: pattern of the remedy; its groups are what is then applied.
    """
    with pytest.raises(FedDiffmicError) as caught:
        action()
    found = re.search(words, str(caught.value), re.DOTALL)
    assert found is not None, str(caught.value)
    return found
