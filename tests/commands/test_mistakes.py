"""Mistakes of radiographers and engineers: each is told what it is, and what to do instead works."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from fed_diffmic.cli import main
from fed_diffmic.commands import serve
from tests.commands.using import fails
from tests.inference.tiny import draw_images, write_tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_run(tmp_path_factory.mktemp("mistakes") / "run")
    draw_images(folder / "images", 2)
    return folder


def test_names_that_are_separated_by_nul_or_an_image_itself_are_no_list(
    run: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = run / "images" / "image-000.png"
    for came in (f"{image}\0{image}\0".encode(), image.read_bytes()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(came), errors="surrogateescape"))
        err = fails(capsys, "predict", "--run", run, "-")
        assert "NUL bytes" in err and "-print0" in err and "predict --run DIR FILE" in err
        assert err.isascii(), "no byte of an image reaches the terminal"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{image}\r\n"))
    assert main(["predict", "--run", str(run), "-"]) == 0


def test_an_image_that_is_named_twice_is_said(run: Path, capsys: Any, tmp_path: Path) -> None:
    table, image = tmp_path / "t.csv", run / "images" / "image-000.png"
    table.write_text(f"image,label\n{image},a\n{image},b\n")
    assert main(["predict", "--run", str(run), str(table)]) == 0
    assert "1 rows are of an image that another row is of" in capsys.readouterr().err


def test_the_folder_inside_a_run_names_the_run(run: Path, capsys: Any) -> None:
    err = fails(capsys, "predict", "--run", run / "final", run / "images", code=4)
    assert f"Name the folder that it lies in: {run}." in err


def test_a_file_as_the_folder_of_reports_is_refused_before_any_work(run: Path, capsys: Any) -> None:
    err = fails(capsys, "predict", "--run", run, run / "images", "--dicom-sr", run / "images" / "image-000.png")
    assert "is a file" in err and "Name a folder" in err


def test_an_export_is_not_written_into_itself(run: Path, capsys: Any, tmp_path: Path) -> None:
    err = fails(capsys, "data", "from-dicom", run, run / "out", f"site.folder={tmp_path}")
    assert "Name a folder outside" in err and not (run / "out").exists()


@pytest.mark.parametrize("host", ["[::1]", "::1", "127.0.0.1"])
def test_loopback_is_loopback_however_it_is_written(run: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(serve, "_listen", lambda app, arguments, *_: heard.append(arguments.host) or 0)
    assert main(["serve", "--model", str(run), "--unsigned", "--host", host]) == 0
    assert heard == [host.strip("[]")]


@pytest.mark.parametrize("host", ["http://localhost", "127.0.0.1:8600", "localhost/"])
def test_an_address_of_a_page_is_no_host(run: Path, capsys: Any, host: str) -> None:
    err = fails(capsys, "serve", "--model", run, "--unsigned", "--host", host)
    assert "is no name and no address" in err and "--host 127.0.0.1" in err


def test_a_token_is_called_a_token(run: Path, capsys: Any, tmp_path: Path) -> None:
    err = fails(capsys, "serve", "--model", run, "--unsigned", "--token-file", tmp_path / "none")
    assert "there is no token file" in err
    (tmp_path / "open").write_text("x" * 40)
    (tmp_path / "open").chmod(0o644)
    err = fails(capsys, "serve", "--model", run, "--unsigned", "--token-file", tmp_path / "open")
    assert "the token file" in err and "make a new one" in err
