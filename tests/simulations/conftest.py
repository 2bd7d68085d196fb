"""Whole runs, over images that are drawn once, whose reports are written without pictures but in ``test_run.py``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.undrawn import draw_once, undraw


@pytest.fixture(scope="session")
def phantoms_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture(scope="module", autouse=True)
def _undrawn(request: pytest.FixtureRequest, phantoms_once: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_once(patch, phantoms_once)
        if request.module.__name__.rpartition(".")[2] != "test_run":
            undraw(patch)
        yield
