"""Faults planted one at a time, to see which of them the tests see: ``make planted``.

Each entry of ``planted.toml`` is a small, realistic fault: a text of one file, what stands in its place, and the tests
that should fail with it. Every fault is planted in a temporary copy of the tree, never in the tree itself, and taken
out again before the next one. First the tests named run; where they pass, the whole files that hold them. Slow tests
are left out, and nothing of this runs in CI: there ``tests/test_planted.py`` checks that the list still fits the tree.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "planted.toml"
LIMIT_S = 300.0
FOUND, ELSEWHERE, MISSED, BROKEN = "found", "found by another test", "missed", "broken"
"""By a test that is named; by another one of its file; by none; the tests cannot be run with the fault."""
PRELOADED = ["pytest", "torch", "timm", "flwr.serverapp", "flwr.clientapp", "sklearn.model_selection", "pandas"]
PRELOADED += ["matplotlib.figure", "hypothesis", "rich.table", "torchvision.transforms.v2", "hydra", "omegaconf"]
PRELOADED += ["scipy.stats", "cryptography.x509", "httpx", "starlette.applications"]
"""What others wrote is imported once; what is under test never before its fault is planted."""
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs", "*.egg-info", ".hypothesis")
Run = Callable[[Sequence[str], Path], int]


class ListError(Exception):
    """The list of faults does not fit the tree; says which entry and why."""


@dataclass(frozen=True)
class Fault:
    """One entry of the list.

    Attributes:
        file: that holds the text, from the tree's root.
        what: goes wrong.
        old, new: what stands there, and what is planted.
        tests: expected to see it: files, or single tests (``FILE::NAME``).
    """

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The test files that hold the tests."""
        return tuple(dict.fromkeys(test.partition("::")[0] for test in self.tests))


def read(path: Path = LIST) -> list[Fault]:
    """The list."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def planted(fault: Fault, root: Path = ROOT) -> str:
    """The file's text with the fault in it.

    Raises:
        ListError: the old text is not there exactly once, nothing changes, or the result is no Python.
    """
    path = root / fault.file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = text.count(fault.old)
    if found != 1:
        raise ListError(f"{fault.file} holds {fault.old!r} {found} times, not once ({fault.what})")
    if fault.old.split() == fault.new.split():
        raise ListError(f"{fault.new!r} changes nothing in {fault.file} ({fault.what})")
    changed = text.replace(fault.old, fault.new)
    try:
        if path.suffix == ".py":
            ast.parse(changed)
    except SyntaxError as error:
        raise ListError(f"{fault.file} cannot be read with {fault.new!r} in it ({fault.what})") from error
    return changed


def judge(fault: Fault, copy: Path, run: Run) -> str:
    """Plant a fault in a copy of the tree, run its tests, take it out again; what came of it."""
    path = copy / fault.file
    before = path.read_text(encoding="utf-8")
    _write(path, planted(fault, copy))
    try:
        code = run(fault.tests, copy)
        if code == 0 and set(fault.tests) != set(fault.files):
            return ELSEWHERE if run(fault.files, copy) == 1 else MISSED
        return {0: MISSED, 1: FOUND}.get(code, BROKEN)
    finally:
        _write(path, before)


def by_file(faults: Sequence[Fault]) -> list[list[str]]:
    """The named tests, those of one file together."""
    tests = sorted({test for fault in faults for test in fault.tests})
    return [list(group) for _, group in groupby(tests, key=lambda test: test.partition("::")[0])]


def _write(path: Path, text: str) -> None:
    """A text, and no bytecode of what stood there: that is looked up by size and whole seconds."""
    path.write_text(text, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def run_tests(tests: Sequence[str], copy: Path) -> int:
    """What pytest answers: 0 they pass, 1 one fails (or takes longer than :data:`LIMIT_S`), else they do not run."""
    process = multiprocessing.get_context("forkserver").Process(target=_pytest, args=(list(tests), str(copy)))
    process.start()
    process.join(LIMIT_S)
    if process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # with the processes that the tests started
        process.join()
        return 1
    return process.exitcode


def _pytest(tests: list[str], copy: str) -> None:
    """In a process of its own group, with the copy before the tree that is installed."""
    os.setsid()
    os.chdir(copy)
    sys.dont_write_bytecode = False  # else every run compiles the whole copy
    os.environ["PYTHONPATH"] = copy
    sys.path[:] = [copy, *(part for part in sys.path if not Path(part).is_relative_to(ROOT / "tests"))]
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    import pytest

    sys.exit(int(pytest.main(["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant every fault of the list, or those whose file or words hold a text; print what was found."""
    parser = argparse.ArgumentParser(prog="make planted", description=str(__doc__).partition("\n")[0])
    parser.add_argument("only", nargs="*", help="plant those whose file or description holds one of these texts")
    only = parser.parse_args(arguments).only
    faults = [f for f in read() if not only or any(text in f"{f.file} {f.what}" for text in only)]
    for fault in faults:
        planted(fault)
    os.environ.update(OMP_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    multiprocessing.set_forkserver_preload(PRELOADED)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=_LEFT_OUT, symlinks=True)
        for tests in by_file(faults):
            if run_tests(tests, copy):
                raise ListError(f"without any fault one of these fails, or cannot be run: {' '.join(tests)}")
        for number, fault in enumerate(faults, start=1):
            started = time.monotonic()
            outcomes.append(judge(fault, copy, run_tests))
            seconds = time.monotonic() - started
            print(f"{number}/{len(faults)} {outcomes[-1]}: {fault.file}: {fault.what} ({seconds:.0f} s)", flush=True)
    seen = sum(outcome in (FOUND, ELSEWHERE) for outcome in outcomes)
    share = 100 * seen / max(1, len(outcomes))
    named = outcomes.count(FOUND)
    print(f"{seen} of {len(outcomes)} faults were found ({share:.0f} %), {named} of them by the tests that are named")
    return int(seen < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
