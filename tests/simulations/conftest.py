"""Whole runs, whose reports are written without pictures but in ``test_run.py``."""

from collections.abc import Iterator

import pytest

from tests.undrawn import undraw


@pytest.fixture(scope="module", autouse=True)
def _undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] != "test_run":
            undraw(patch)
        yield
