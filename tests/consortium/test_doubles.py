"""Two faults at once over real processes: :mod:`tests.consortium.doubles`. Another seed: ``FED_DIFFMIC_DOUBLES=7``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.consortium.doubles import OF_EACH_PAIR, PROCESSES, Double, drawn, run_double
from tests.consortium.faults import Stand

SEED = int(os.environ.get("FED_DIFFMIC_DOUBLES", "16"))
HEARTBEAT_S = 4.0
ROUNDS = 60
Rounds = Callable[[int], list[str]]


class Stands:
    """The stand on which one after the other happens; after one that failed, another."""

    def __init__(self, make: Callable[[], Stand]) -> None:
        self._make = make
        self._made: Stand | None = None

    def get(self) -> Stand:
        self._made = self._made or self._make()
        return self._made

    def drop(self) -> list[int]:
        made, self._made = self._made, None
        return [] if made is None else made.close()


@pytest.fixture(scope="module")
def stands(
    tmp_path_factory: pytest.TempPathFactory, data: Path, long_run: dict[str, Any], undisturbed_rounds: Rounds
) -> Iterator[Stands]:
    def make() -> Stand:
        return Stand(tmp_path_factory.mktemp("doubles"), data, long_run, HEARTBEAT_S, undisturbed_rounds(ROUNDS))

    made = Stands(make)
    yield made
    left = made.drop()
    assert not left, f"processes outlived their supervisor: {left}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("double", [pytest.param(double, id=double.name) for double in drawn(SEED)])
def test_two_faults_at_once(stands: Stands, double: Double) -> None:
    stand = stands.get()
    try:
        run_double(stand, double)
    except BaseException as error:
        error.add_note(stand.made.tails())
        stands.drop()
        raise


def test_what_is_drawn_is_of_each_pair_and_the_same_again() -> None:
    found = drawn(SEED)
    assert found == drawn(SEED)
    assert drawn(SEED) != drawn(SEED + 1)
    pairs = [frozenset((double.first.who, double.second.who)) for double in found]
    assert all(pairs.count(pair) == OF_EACH_PAIR for pair in pairs) and len(set(pairs)) == 6
    assert {who for pair in pairs for who in pair} == set(PROCESSES)
    assert len({double.name for double in found}) == len(found) == 12
