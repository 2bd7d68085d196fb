"""Outputs are looked at before the work: folders, links, devices, and what the command itself reads."""

import os
from pathlib import Path

import pytest

from fed_diffmic.commands.outputs import check_output, check_output_folder, check_outside, check_spares
from fed_diffmic.errors import MachineError, UsageError


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("lost").symlink_to("nowhere/o.csv")
    Path("gone").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("folder", "--csv folder is a folder"),
        ("new/o.csv", "new/o.csv: its folder does not exist"),
        ("lost", "lost: its folder does not exist"),
        ("file/o.csv", "/file is no folder"),
        ("file/new/o.csv", "/file is no folder"),
        ("gone/o.csv", "/gone is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(target, words):
    with pytest.raises(UsageError, match=words):
        check_output("--csv", target)


def test_what_can_be_written_is_not_refused():
    os.mkfifo("pipe")
    Path("link").symlink_to("folder/new.csv")
    for target in ("new.csv", "file", "folder/o.csv", "link", "pipe", "/dev/null", "-", Path("new.onnx")):
        check_output("--csv", target)
    check_output_folder("--dicom-sr", Path("folder"))
    check_output_folder("--dicom-sr", Path("new/below/it"))
    assert not Path("new").exists()


def test_a_folder_that_cannot_be_written_is_refused():
    for folder, said in (
        ("file", "file is a file"),
        ("file/sub", "/file is no folder"),
        ("file/a/b", "/file is no folder"),
    ):
        with pytest.raises(UsageError, match=said):
            check_output_folder("--dicom-sr", Path(folder))
    Path("folder").chmod(0o777)
    with pytest.raises(MachineError, match="others may write"):
        check_output_folder("--dicom-sr", Path("folder"))


def test_where_nothing_may_be_written_is_refused(monkeypatch):
    """As another user than root meets it."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "folder")
    for check, target in ((check_output, "folder/o.csv"), (check_output, "folder/new/o.csv")):
        with pytest.raises(MachineError, match="nothing may be written in .*/folder"):
            check("--csv", target)
    with pytest.raises(MachineError, match="nothing may be written in .*/folder"):
        check_output_folder("--dicom-sr", Path("folder/new"))


def test_what_is_read_is_not_written_over_by_any_name():
    Path("link").symlink_to("file")
    os.link("file", "twin")
    for target in ("file", "./folder/../file", "link", "twin"):
        with pytest.raises(UsageError, match="is also --manifest, which would be written over"):
            check_spares("--csv", target, [("--key", None), ("--reference", "nowhere"), ("--manifest", Path("file"))])
    check_spares("--csv", "new.csv", [("--manifest", Path("file"))])
    check_spares("--csv", "/dev/null", [("--manifest", Path("/dev/null"))])


def test_a_runs_folder_is_left_alone_whatever_leads_there():
    Path("run/final").mkdir(parents=True)
    Path("model.onnx").symlink_to("run/final/model.onnx")
    for target in ("run/a.onnx", "run/final/model.onnx", "folder/../run/a.onnx", "model.onnx"):
        with pytest.raises(UsageError, match="among the run's own files"):
            check_outside("--out", target, Path("run"))
    check_outside("--out", "runs.onnx", Path("run"))
    with pytest.raises(UsageError, match="among the run's own files"):
        check_outside("--json", "run/final/new.json", Path("run"), ("final",))
    check_outside("--json", "run/answers.json", Path("run"), ("final",))
