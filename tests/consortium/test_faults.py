"""The fault matrix over real processes. What is struck, when, how, and what must come: :mod:`tests.consortium.faults`.

In every run of the tests about ten cells, with short intervals of Flower's heartbeats; all of them, with its
own intervals, as ``slow``. With ``FED_DIFFMIC_RELIABILITY`` naming a file, outcomes are appended to it, of which
``benchmarks/reliability.py`` makes the table of docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.transport.heartbeats import STOCK_S
from tests.consortium.faults import MATRIX, Cell, Stand, run_cell

SHORT_S = 4.0
ROUNDS = {SHORT_S: 30, STOCK_S: 95}
Rounds = Callable[[int], list[str]]


class Stands:
    """One stand for each interval, made when it is first needed, and anew after a cell failed on it."""

    def __init__(self, folder: Path, data: Path, common: dict[str, Any], rounds: Rounds) -> None:
        self._folder, self._data, self._common, self._rounds = folder, data, common, rounds
        self._made: dict[float, Stand] = {}
        self._count = 0

    def get(self, heartbeat_s: float) -> Stand:
        if heartbeat_s not in self._made:
            self.close()
            self._count += 1
            reference = self._rounds(ROUNDS[heartbeat_s])
            stand = Stand(self._folder / str(self._count), self._data, self._common, heartbeat_s, reference)
            self._made[heartbeat_s] = stand
        return self._made[heartbeat_s]

    def drop(self, heartbeat_s: float) -> None:
        self._made.pop(heartbeat_s).close()

    def close(self) -> None:
        """Stop everybody as an operator would; nobody may be there any more."""
        while self._made:
            _, stand = self._made.popitem()
            try:
                stand.stop()
            finally:
                left = stand.close()
            assert not left, f"processes outlived their supervisor: {left}"


@pytest.fixture(scope="module")
def stands(
    tmp_path_factory: pytest.TempPathFactory, data: Path, long_run: dict[str, Any], undisturbed_rounds: Rounds
) -> Iterator[Stands]:
    made = Stands(tmp_path_factory.mktemp("stands"), data, long_run, undisturbed_rounds)
    yield made
    made.close()


def happen(stands: Stands, cell: Cell, heartbeat_s: float) -> None:
    stand = stands.get(heartbeat_s)
    try:
        run_cell(stand, cell)
    except pytest.skip.Exception:
        raise
    except BaseException as error:
        error.add_note(stand.made.tails())
        stands.drop(heartbeat_s)
        raise


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in MATRIX if cell.normal])
def test_a_fault(stands: Stands, cell: Cell) -> None:
    happen(stands, cell, SHORT_S)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in MATRIX])
def test_a_fault_at_flowers_own_intervals(stands: Stands, cell: Cell) -> None:
    happen(stands, cell, STOCK_S)


def test_the_matrix_names_each_cell_once() -> None:
    names = [cell.name for cell in MATRIX]
    assert len(set(names)) == len(names)
    assert 4 <= sum(cell.normal for cell in MATRIX) <= 8
