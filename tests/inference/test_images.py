"""Which files are meant by what was given."""

import os
import threading
from pathlib import Path

import pytest

from fed_diffmic.errors import UsageError
from fed_diffmic.inference.images import image_files
from tests.inference.tiny import draw_images


def test_folders_are_searched_in_order_and_hidden_files_left_alone(tmp_path):
    draw_images(tmp_path / "b", 1)
    draw_images(tmp_path / "a" / "z", 2)
    draw_images(tmp_path, 1, ending=".JPG")
    draw_images(tmp_path / ".hidden", 1)
    (tmp_path / "a" / "table.csv").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    names = [Path(name).relative_to(tmp_path).as_posix() for name in image_files([tmp_path])]
    assert names == ["a/z/image-000.png", "a/z/image-001.png", "b/image-000.png", "image-000.JPG"]


def test_files_are_taken_as_they_are_given(tmp_path):
    """Any ending, any order, and twice where it is asked for twice."""
    (tmp_path / "b").touch()
    (tmp_path / "a.dat").touch()
    given = [str(tmp_path / name) for name in ("b", "a.dat", "b")]
    assert image_files(given) == given


def test_nothing_missing_and_empty_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no image was given"):
        image_files([])
    with pytest.raises(UsageError, match="no such file"):
        image_files([tmp_path / "gone.png"])
    with pytest.raises(UsageError, match="holds no image"):
        image_files([tmp_path])


def test_dicom_files_of_a_folder_are_taken_by_ending_or_beginning_and_counted(tmp_path):
    draw_images(tmp_path, 1)
    (tmp_path / "a.DCM").touch()
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes.txt").write_text("x" * 200)
    said = []
    names = [Path(name).name for name in image_files([tmp_path], said=said.append)]
    assert names == ["IM0001", "a.DCM", "image-000.png"]
    assert said == [f"{tmp_path}: 3 images, 2 of them DICOM; 1 other files passed over"]
    said.clear()
    draw_images(tmp_path / "plain", 2)
    assert len(image_files([tmp_path / "plain"], said=said.append)) == 2 and said == []


def test_a_named_pipe_among_the_images_is_passed_over_and_not_waited_for(tmp_path):
    draw_images(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe")
    said, found = [], []
    thread = threading.Thread(target=lambda: found.extend(image_files([tmp_path], said=said.append)), daemon=True)
    thread.start()
    thread.join(10)
    waited = thread.is_alive()
    if waited:  # let it go, for what a thread holds open would outlive the test
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
        thread.join(10)
    assert not waited and [Path(name).name for name in found] == ["image-000.png"]
