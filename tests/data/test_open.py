"""Opening a data set: images decoded, bad ones found, duplicates settled, everything reported together."""

import csv
import os
import stat

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.open import cache_folder, open_dataset, open_table
from fed_diffmic.errors import ConfigError, DataError
from tests.data.published import codes, one, write_image, write_table

HEADER = ["image", "label", "patient_id", "split"]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def config(root, **options):
    return DatasetConfig(name="table", root=str(root), cache_dir=str(root.parent / "cache"), **options)


def write(root, rows, header=HEADER):
    """Rows of (image, label, patient, split, seed of the pixels or None for no file)."""
    for row in rows:
        if row[-1] is not None:
            write_image(root / row[0], row[-1])
    write_table(root / "manifest.csv", header, [row[: len(header)] for row in rows])


GOOD = [(f"{i}.png", "xy"[i % 2], f"p{i // 2}", "", i) for i in range(6)]


def test_rows_and_keys_are_filled_and_point_to_the_right_pixels(root, tmp_path):
    write(root, GOOD)
    data = open_dataset(config(root), 32, findings_path=tmp_path / "findings.csv")
    t = data.manifest.table
    assert (t["row"] >= 0).all()
    assert t["key"].nunique() == 6
    for path, row in zip(t["image"], t["row"], strict=True):
        expected = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.array_equal(data.cache.images(np.array([row]))[0].numpy(), expected)
    assert len(data.findings) == 0
    with open(tmp_path / "findings.csv", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 0


def test_keys_do_not_depend_on_the_order_of_rows_or_on_the_folder(root, tmp_path):
    write(root, GOOD)
    one_way = open_dataset(config(root), 32, findings_path=None).manifest.table
    other = tmp_path / "elsewhere" / "data"
    write(other, GOOD[::-1])
    reverse = open_dataset(config(other), 32, findings_path=None).manifest.table
    assert one_way["key"].tolist() == reverse["key"].tolist()[::-1]
    assert one_way["group"].tolist() == reverse["group"].tolist()[::-1]


def spoil(root):
    write(
        root,
        [
            *GOOD,
            ("anna_gone.png", "x", "p9", "", None),
            ("anna_cut.png", "y", "p9", "", 50),
            ("anna_text.jpg", "x", "p8", "", 51),
            ("anna_void.png", "x", "p7", "", 52),
            ("6.png", "q", "p6", "", 53),
        ],
    )
    os.truncate(root / "anna_cut.png", 1500)
    (root / "anna_text.jpg").write_text("not an image")
    (root / "anna_void.png").write_bytes(b"")


def test_missing_unreadable_and_unknown_are_reported_together(root, tmp_path):
    spoil(root)
    with pytest.raises(DataError) as caught:
        open_dataset(config(root, classes=["x", "y"]), 32, findings_path=tmp_path / "findings.csv")
    text = str(caught.value)
    for part in ("missing-image", "row 8", "unreadable-image", "row 9", "row 10", "row 11", "unknown-label", "row 12"):
        assert part in text
    assert "anna" not in text
    assert "dataset.on_bad_image=skip" in text
    with open(tmp_path / "findings.csv", encoding="utf-8") as stream:
        names = {os.path.basename(row["image"]) for row in csv.DictReader(stream)}
    assert {"anna_gone.png", "anna_cut.png", "anna_text.jpg", "anna_void.png"} <= names
    assert stat.S_IMODE((tmp_path / "findings.csv").stat().st_mode) == 0o600


def test_skip_leaves_out_bad_images_and_says_how_many(root):
    spoil(root)
    with pytest.raises(DataError, match="unknown-label"):
        open_dataset(config(root, classes=["x", "y"], on_bad_image="skip"), 32, findings_path=None)
    data = open_dataset(config(root, classes=["x", "y", "q"], on_bad_image="skip"), 32, findings_path=None)
    assert data.manifest.table["line"].tolist() == [2, 3, 4, 5, 6, 7, 12]
    assert not data.findings.errors
    assert sum(f.count for f in data.findings if f.code in ("missing-image", "unreadable-image")) == 4
    assert data.cache.images(data.manifest.table["row"].to_numpy()).shape == (7, 3, 32, 32)


def test_the_same_pixels_in_another_file_are_a_duplicate(root):
    write(root, [*GOOD, ("again.png", "x", "p9", "", None)])
    info = PngImagePlugin.PngInfo()
    info.add_text("exported", "later")
    Image.open(root / "0.png").save(root / "again.png", pnginfo=info)
    assert (root / "again.png").read_bytes() != (root / "0.png").read_bytes()
    data = open_dataset(config(root), 32, findings_path=None)
    assert one(data.findings, "duplicate-images").rows == (2, 8)
    t = data.manifest.table.set_index("line")
    assert t.loc[8, "group"] == t.loc[2, "group"] == t.loc[3, "group"] == "p0"


def test_contradicting_duplicates_are_left_out_with_a_warning(root):
    write(root, [*GOOD, ("again.png", "y", "p9", "", 0)])
    data = open_dataset(config(root), 32, findings_path=None)
    assert data.manifest.table["line"].tolist() == [3, 4, 5, 6, 7]
    assert codes(data.findings) == {"contradicting-labels": "warning"}


def test_a_duplicate_and_a_group_across_the_tables_own_split(root):
    rows = [
        ("a.png", "x", "p1", "train", 1),
        ("b.png", "x", "p2", "test", 1),
        ("c.png", "y", "p3", "train", 3),
        ("d.png", "y", "p3", "val", 4),
    ]
    write(root, rows)
    with pytest.raises(DataError) as caught:
        open_dataset(config(root), 32, findings_path=None)
    assert "duplicate-across-splits" in str(caught.value)
    assert "group-across-splits" in str(caught.value)
    assert "p3" not in str(caught.value)
    data = open_dataset(config(root), 32, findings_path=None, raise_errors=False)
    assert [f.code for f in data.findings.errors] == ["group-across-splits", "duplicate-across-splits"]


def test_every_image_bad_or_under_two_labels(root):
    write(root, [("a.png", "x", "p", "", 1), ("b.png", "y", "q", "", 1)])
    with pytest.raises(DataError, match="nothing is left"):
        open_dataset(config(root), 32, findings_path=None)
    for name in ("a.png", "b.png"):
        (root / name).write_text("no image")
    with pytest.raises(DataError, match="none of the images can be read"):
        open_dataset(config(root, on_bad_image="skip"), 32, findings_path=None)


def test_an_error_of_the_reader_reaches_the_findings_file(root, tmp_path):
    write(root, GOOD)
    (root / "manifest.csv").write_bytes("image,label\nå.png,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="encoding"):
        open_dataset(config(root), 32, findings_path=tmp_path / "findings.csv")
    assert "encoding" in (tmp_path / "findings.csv").read_text()


def test_an_unwritable_findings_file_does_not_hide_the_error(root, tmp_path):
    spoil(root)
    with pytest.raises(DataError) as caught:
        open_dataset(config(root), 32, findings_path=tmp_path / "no" / "findings.csv")
    assert any("findings.csv" in note for note in caught.value.__notes__)


def test_the_second_opening_gives_the_same_and_decodes_nothing(root, monkeypatch):
    write(root, GOOD)
    first = open_dataset(config(root), 32, findings_path=None)
    monkeypatch.setattr("fed_diffmic.data.cache.decode", lambda *args: pytest.fail("decoded again"))
    second = open_dataset(config(root), 32, findings_path=None)
    assert first.manifest.digest() == second.manifest.digest()


def test_open_table_takes_the_models_classes_and_every_row(root, tmp_path):
    write(
        root, [("a.png", "y", "p1", "train", 1), ("b.png", "y", "p1", "test", 2), ("c.png", "z", "p3", "whenever", 3)]
    )
    data = open_table(root / "manifest.csv", ("z", "y", "never"), "multiclass", 32, tmp_path / "cache")
    assert data.manifest.classes == ("z", "y", "never")
    assert data.manifest.labels.tolist() == [1, 1, 0]
    assert one(data.findings, "empty-class").severity == "warning"
    with pytest.raises(DataError, match="unknown-label"):
        open_table(root / "manifest.csv", ("z", "x"), "multiclass", 32, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"dataset\.root"):
        open_table(root / "none.csv", ("z", "x"), "multiclass", 32, tmp_path / "cache")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(DatasetConfig()) == tmp_path / ".cache" / "fed_diffmic"
    assert cache_folder(DatasetConfig(cache_dir="~/c")) == tmp_path / "c"
