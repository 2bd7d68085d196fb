"""The list of planted faults fits the tree; and what plants them finds what it should, in a tree of two files."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.planted import (
    BROKEN,
    ELSEWHERE,
    FOUND,
    MISSED,
    ROOT,
    Fault,
    ListError,
    judge,
    planted,
    read,
    run_tests,
)

FAULTS = read()


def test_each_fault_still_has_its_place_and_its_tests() -> None:
    """A list that is not kept up says nothing: whoever changes a line or a test's name changes its entry too."""
    known = cache(lambda file: set(re.findall(r"^def (\w+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)))
    wrong = []
    for fault in FAULTS:
        try:
            planted(fault)
        except ListError as error:
            wrong.append(str(error))
        named = [test.partition("::") for test in fault.tests]
        wrong += [f"no test {file}::{name}" for file, _, name in named if name and name not in known(file)]
        wrong += [f"{fault.what}: no test is named"] * (not named)
    assert wrong == []


def test_no_fault_stands_there_twice() -> None:
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS) >= 31


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text("def less(a, b):\n    return a - b\n")
    (tmp_path / "test_code.py").write_text(
        "from code import less\n\n\ndef test_kind():\n    assert isinstance(less(3, 2), int)\n\n\n"
        "def test_value():\n    assert less(3, 2) == 1\n"
    )
    return tmp_path


FAULT = Fault("code.py", "the sign", "a - b", "b - a", ("test_code.py::test_value",))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("a + b", "b", "0 times"),
        ("a", "b", "2 times"),
        ("a - b", "a -", "cannot be read"),
        ("a - b", "a  - b", "nothing"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(tree: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(ListError, match=words):
        planted(replace(FAULT, old=old, new=new), tree)
    with pytest.raises(ListError, match="0 times"):
        planted(replace(FAULT, file="gone.py"), tree)


@pytest.mark.parametrize(
    ("codes", "outcome"), [([1], FOUND), ([0, 1], ELSEWHERE), ([0, 0], MISSED), ([2], BROKEN), ([0, 2], MISSED)]
)
def test_what_came_of_a_fault(tree: Path, codes: list[int], outcome: str) -> None:
    """The tests named first, then their files; the fault is there while they run, and gone afterwards."""
    ran = []

    def run(tests: tuple[str, ...], copy: Path) -> int:
        ran.append((tests, (copy / "code.py").read_text()))
        return codes[len(ran) - 1]

    before = (tree / "code.py").read_text()
    assert judge(FAULT, tree, run) == outcome
    assert [tests for tests, _ in ran] == [FAULT.tests, ("test_code.py",)][: len(codes)]
    assert all("b - a" in text for _, text in ran) and (tree / "code.py").read_text() == before
    with pytest.raises(ZeroDivisionError):
        judge(FAULT, tree, lambda *_: 1 // 0)
    assert (tree / "code.py").read_text() == before


def test_real_tests_run_on_the_tree_with_the_fault(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it passes, once it fails: planted within a second of each other, and no bytecode of the other is used."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert judge(replace(FAULT, tests=("test_code.py::test_kind",)), tree, run_tests) == ELSEWHERE
    assert run_tests(["test_code.py"], tree) == 0
    assert run_tests(["test_gone.py"], tree) not in (0, 1)
