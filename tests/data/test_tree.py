"""Image files found by name in any subfolder."""

import os

import numpy as np
import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.tree import ImageTree, Located, NearNames, keep_found, root_folder
from fed_diffmic.errors import ConfigError
from tests.data.published import one


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())


def test_names_in_subfolders_several_of_a_name_and_litter(tmp_path):
    for name in ("a/1.png", "b/c/2.JPG", "b/1.png", ".hidden/3.png", "a/._4.png", "__MACOSX/2.JPG", "notes.txt"):
        touch(tmp_path / name)
    names = np.array(["1.png", "2.JPG", "3.png", "4.png", "notes.txt"], dtype=object)
    located = ImageTree.scan(tmp_path).locate(names, ending=True)
    paths, several = located.paths, located.several
    assert paths.tolist() == ["", str(tmp_path / "b/c/2.JPG"), "", "", ""]
    assert several.tolist() == [True, False, False, False, False]


def test_copies_of_the_same_bytes_are_one_image(tmp_path):
    for folder in ("HAM10000_images_part_1", "ham10000_images_part_1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"the same")
        (tmp_path / folder / "2.png").write_bytes(folder.encode())
    located = ImageTree.scan(tmp_path).locate(np.array(["1.png", "2.png"], dtype=object), ending=True)
    assert located.paths.tolist() == [str(tmp_path / "HAM10000_images_part_1/1.png"), ""]
    assert located.several.tolist() == [False, True]
    assert located.copies == 1
    findings = Findings()
    kept = keep_found(
        located,
        names=np.array(["1.png", "2.png"], dtype=object),
        lines=np.array([2, 3]),
        table="t",
        field="image",
        cfg=DatasetConfig(),
        findings=findings,
    )
    assert kept.tolist() == [True, False]
    assert one(findings, "copied-image").count == 1


def test_copies_that_cannot_be_read_are_told_apart(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"the same")

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr("filecmp.cmp", refused)
    located = ImageTree.scan(tmp_path).locate(np.array(["1.png"], dtype=object), ending=True)
    assert located.several.tolist() == [True]


@pytest.mark.parametrize(
    ("there", "named", "ending", "kind"),
    [
        ("1.PNG", "1.png", True, "other upper and lower case"),
        ("Cafe\u0301.png", "Caf\u00e9.png", True, "accents stored in another way"),
        ("1.jpg", "1.png", True, "another ending"),
        ("1.png", "1", True, "another ending"),
        ("ISIC_1.jpg", "isic_1", False, "other upper and lower case"),
    ],
)
def test_a_name_that_is_nearly_there_is_said_in_kind_and_number_only(tmp_path, there, named, ending, kind):
    touch(tmp_path / there)
    touch(tmp_path / "other.png")
    names = np.array([named, "other.png" if ending else "other", "nothing like it"], dtype=object)
    located = ImageTree.scan(tmp_path).locate(names, ending=ending)
    findings = Findings()
    keep_found(
        located,
        names=names,
        lines=np.array([2, 3, 4]),
        table="t",
        field="image",
        cfg=DatasetConfig(),
        findings=findings,
    )
    message = one(findings, "missing-image").message
    assert f"1 of them with {kind}" in message
    assert "ISIC" not in message and ".png" not in message
    assert len(one(findings, "missing-image").names) == 2


def test_names_without_ending(tmp_path):
    for name in ("ISIC_1.jpg", "ISIC_2.jpg", "ISIC_2.png", "ISIC_1_segmentation.png"):
        touch(tmp_path / name)
    located = ImageTree.scan(tmp_path).locate(np.array(["ISIC_1", "ISIC_2"], dtype=object), ending=False)
    paths, several = located.paths, located.several
    assert paths.tolist() == [str(tmp_path / "ISIC_1.jpg"), ""]
    assert several.tolist() == [False, True]


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "images")
    os.symlink(tmp_path / "root", tmp_path / "root" / "loop")
    located = ImageTree.scan(tmp_path / "root").locate(np.array(["1.png"], dtype=object), ending=True)
    paths, several = located.paths, located.several
    assert paths.tolist() == [str(tmp_path / "root/images/1.png")]
    assert not several.any()


@pytest.mark.parametrize(("mode", "severity"), [("error", "error"), ("skip", "warning")])
def test_missing_and_ambiguous_follow_on_bad_image(mode, severity):
    findings = Findings()
    names = np.array(["anna", "b", "c"], dtype=object)
    kept = keep_found(
        Located(np.array(["", "/d/b", ""], dtype=object), np.array([False, False, True]), NearNames()),
        names=names,
        lines=np.array([2, 3, 4]),
        table="t.csv",
        field="image",
        cfg=DatasetConfig(on_bad_image=mode),
        findings=findings,
    )
    assert kept.tolist() == [False, True, False]
    assert {f.severity for f in findings} == {severity}
    assert one(findings, "missing-image").rows == (2,)
    assert one(findings, "ambiguous-image").names == ("c",)
    assert "1 of 3 images" in str(one(findings, "missing-image"))
    assert "anna" not in "".join(findings.lines())


def test_not_one_image_found_is_an_error_even_when_skipping():
    findings = Findings()
    nothing = np.array(["", ""], dtype=object)
    keep_found(
        Located(nothing, np.zeros(2, bool), NearNames()),
        names=nothing,
        lines=np.array([2, 3]),
        table="t",
        field="image",
        cfg=DatasetConfig(on_bad_image="skip"),
        findings=findings,
    )
    assert one(findings, "no-images").severity == "error"


def test_root(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        root_folder(DatasetConfig(name="ham10000"))
    with pytest.raises(ConfigError) as caught:
        root_folder(DatasetConfig(name="ham10000", root=str(tmp_path / "none")))
    assert caught.value.exit_code == 2
    touch(tmp_path / "file.csv")
    with pytest.raises(ConfigError, match="this is a file"):
        root_folder(DatasetConfig(name="ham10000", root=str(tmp_path / "file.csv")))
    assert root_folder(DatasetConfig(name="table", root=str(tmp_path / "file.csv"))).is_file()
