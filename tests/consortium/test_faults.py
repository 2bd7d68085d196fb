"""The fault matrix over real processes. What is struck, when, how, and what must come: :mod:`tests.consortium.faults`.

In every run of the tests about ten cells, with short intervals of Flower's heartbeats; all of them, with its
own intervals, as ``slow``. With ``FED_DIFFMIC_RELIABILITY`` naming a file, outcomes are appended to it, of which
``benchmarks/reliability.py`` makes the table of docs/reliability.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.transport.heartbeats import STOCK_S
from tests.consortium.faults import MATRIX, SITES, Cell, Stand, run_cell

SHORT_S = 4.0


class Stands:
    """One stand for each interval, made when it is first needed, and anew after a cell failed on it."""

    def __init__(self, folder: Path, data: Path, common: dict[str, Any]) -> None:
        self._folder, self._data, self._common = folder, data, common
        self._made: dict[float, Stand] = {}
        self._count = 0

    def get(self, heartbeat_s: float) -> Stand:
        if heartbeat_s not in self._made:
            self._count += 1
            folder = self._folder / str(self._count)
            self._made[heartbeat_s] = Stand(folder, self._data, self._common, heartbeat_s)
        return self._made[heartbeat_s]

    def drop(self, heartbeat_s: float) -> None:
        self._made.pop(heartbeat_s).close()

    def close(self) -> list[int]:
        """Stop every site as its people would; pids that are still there."""
        left = []
        try:
            for stand in self._made.values():
                for site in SITES:
                    stand.stop(site)
        finally:
            for stand in self._made.values():
                left += stand.close()
        return left


@pytest.fixture(scope="module")
def stands(tmp_path_factory: pytest.TempPathFactory, data: Path, common: dict[str, Any]) -> Iterator[Stands]:
    made = Stands(tmp_path_factory.mktemp("stands"), data, common)
    yield made
    assert made.close() == []


def happen(stands: Stands, cell: Cell, heartbeat_s: float, reference: dict[str, bytes], folder: Path) -> None:
    stand = stands.get(heartbeat_s)
    try:
        run_cell(stand, cell, reference, folder)
    except BaseException as error:
        error.add_note(stand.made.tails())
        stands.drop(heartbeat_s)
        raise


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in MATRIX if cell.normal])
def test_a_fault(stands: Stands, cell: Cell, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    happen(stands, cell, SHORT_S, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.name) for cell in MATRIX])
def test_a_fault_at_flowers_own_intervals(
    stands: Stands, cell: Cell, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    happen(stands, cell, STOCK_S, undisturbed, tmp_path)


def test_the_matrix_names_each_cell_once() -> None:
    names = [cell.name for cell in MATRIX]
    assert len(set(names)) == len(names)
    assert 8 <= sum(cell.normal for cell in MATRIX) <= 12
