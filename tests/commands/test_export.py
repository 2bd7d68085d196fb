"""``export`` before and after the graph, which is not made here (tests/inference/test_export.py makes it)."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from fed_diffmic.cli import main
from fed_diffmic.files import read_json, write_json
from fed_diffmic.inference import export
from fed_diffmic.release import final
from tests.commands.using import fails
from tests.inference.tiny import write_tiny_run


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A finished run."""
    folder = write_tiny_run(tmp_path_factory.mktemp("export") / "run")
    write_json(folder / "summary.json", {"n": 7})
    return folder


@pytest.fixture
def made(ended, tmp_path, monkeypatch):
    """The run in the current folder; a graph is four bytes. What was made of it."""
    found = []

    def graph(predictor, out, facts):
        found.append(out)
        out.write_bytes(b"onnx")
        return SimpleNamespace(difference=0.0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "export_onnx", graph)
    shutil.copytree(ended, "run")
    return found


def contents():
    return {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("run/final/model.onnx", "among the run's own files"),
        ("run/summary.onnx", "among the run's own files"),
        ("run/new.onnx", "among the run's own files"),
        ("link/model.onnx", "among the run's own files"),
        ("notes.onnx", "notes.json, which is no card of an export"),
        ("list.onnx", "list.json, which is no card of an export"),
        ("folder.onnx", "--out folder.onnx is a folder"),
        ("card.onnx", "card.json is a folder"),
        ("signed.onnx", "signed.provenance.json is a folder"),
        ("notes.json/m.onnx", "notes.json is no folder"),
    ],
)
def test_what_would_be_lost_or_cannot_be_written_is_refused_before_any_work(made, capsys, out, words):
    Path("link").symlink_to("run/final")
    Path("notes.json").write_text('{"mine": 1}')
    Path("list.json").write_text("[1")
    for name in ("folder.onnx", "card.json", "signed.provenance.json"):
        Path(name).mkdir()
    before = contents()
    assert words in fails(capsys, "export", "--run", "run", "--out", out)
    assert contents() == before and made == []


def test_a_graph_is_exported_again_over_its_own_card(made):
    Path("model.provenance.json").write_text("of a model that was signed")
    before = contents()
    del before[Path("model.provenance.json")]
    for _ in range(2):
        assert main(["export", "--run", "run", "--out", "model.onnx"]) == 0
    card = read_json("model.json")
    assert card["largest_difference"] == 0.0 and len(made) == 2
    after = contents()
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {Path("model.onnx"), Path("model.json")}


def test_who_signed_stands_beside_the_graph(made, monkeypatch):
    unsigned = final.load_final("run")
    monkeypatch.setattr(final, "load_final", lambda *_, **__: unsigned)  # what is signed here is no statement
    Path("run/final/provenance.json").write_text("signed")
    Path("model.provenance.json").write_text("of another model")
    assert main(["export", "--run", "run", "--out", "model.onnx"]) == 0
    assert Path("model.provenance.json").read_text() == "signed"
