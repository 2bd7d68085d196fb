"""What a test of a remedy says it tries is what it causes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fed_diffmic import cli
from tests.remedies.places import made, was_made


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tries(*places): whose errors a test causes and whose remedies it applies")


@pytest.fixture(autouse=True)
def caused(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that did not cause the errors whose remedies it says it tries."""
    names = [name for mark in request.node.iter_markers("tries") for name in mark.args]
    with made() as found:
        yield
    missing = [name for name in names if not was_made(name, found)]
    assert not missing, f"no error was made at {missing}; errors were made at {found}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, and nobody at a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that must fail says, with its remedy and without a traceback."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = cli.main(list(map(str, arguments)))
        err = capsys.readouterr().err
        assert code not in (0, 1), err
        assert "error FD" in err
        assert "Traceback" not in err
        return err

    return call


@pytest.fixture
def works(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints that must succeed."""

    def call(*arguments: object) -> str:
        capsys.readouterr()
        code = cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert code == 0, err
        return out + err

    return call
