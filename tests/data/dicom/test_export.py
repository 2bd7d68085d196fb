"""An export of mixed kinds becomes a table and images; identity stays at the site; what is left is counted."""

import csv
import json
import stat

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fed_diffmic.config.dicom import DicomConfig
from fed_diffmic.data.dicom import export as exporting
from fed_diffmic.data.dicom.choose import Chooser
from fed_diffmic.data.dicom.export import COLUMNS, Place, export, png
from fed_diffmic.data.dicom.identity import Names
from fed_diffmic.data.dicom.labels import Labels
from fed_diffmic.data.dicom.sources import items_of
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import DataError, MachineError, UsageError
from tests.data.dicom.written import content, header, ramp, saved, with_pixels

SECRET = b"s" * 32


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


def put(archive, name, ds, values=None, **more):
    """A file of the archive; its values differ by its name."""
    if values is None:
        values = ramp(12, seed=sum(name.encode()))
    (archive / name).write_bytes(content(with_pixels(ds, values, bits=12, **more)))


def run(archive, tmp_path, labels=None, out="out", **config):
    findings = Findings()
    names = Names(SECRET)
    place = Place(tmp_path / out, tmp_path / "site" / "dicom", "North")
    joined = None if labels is None else Labels("accession", labels, "labels.csv", frozenset())
    summary = export(items_of(archive, findings), DicomConfig(**config), joined, names, place, findings)
    with (tmp_path / out / "manifest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return (
        rows,
        {item.code + (f":{item.field}" if item.code == "kind-left" else ""): item for item in findings},
        summary,
    )


def test_a_table_of_keyed_hashes_and_16_bit_images(archive, tmp_path):
    for number, patient in ((1, "4711"), (2, "4711"), (3, "0815")):
        put(
            archive,
            f"{number}.dcm",
            header(number, patient, PatientName="Doe^Jane", WindowCenter=2000, WindowWidth=900),
        )
    rows, findings, summary = run(archive, tmp_path, {"A00001": "x", "A00002": "y", "A00003": "x"})
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 3 and summary["patients"] == 2
    assert sorted(row["label"] for row in rows) == ["x", "x", "y"]
    by_hand = Names(SECRET).of("patient", "4711")
    assert sum(row["patient_id"] == by_hand for row in rows) == 2
    image = Image.open(tmp_path / "out" / rows[0]["image"])
    assert image.mode == "I;16" and not image.text
    for path in (tmp_path / "out").rglob("*"):
        assert not path.stat().st_mode & 0o077
    text = "".join(p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*.*") if p.suffix != ".png")
    for original in ("4711", "0815", "Doe", "1.2.3.1", "1.2.4.1", "A00001", "1.dcm"):
        assert original not in text
    mapping = tmp_path / "site" / "dicom" / "mapping.csv"
    assert f"patient,{by_hand},4711" in mapping.read_text() and stat.S_IMODE(mapping.stat().st_mode) == 0o600
    assert findings["names"].count == 3 and rows[0]["window"] == "window" and rows[0]["window_low"] == "1550"


def test_the_same_patient_is_the_same_in_another_export(archive, tmp_path):
    put(archive, "1.dcm", header(1, "4711"))
    first, _, _ = run(archive, tmp_path, out="one")
    put(archive, "1.dcm", header(9, "4711"))
    again, _, _ = run(archive, tmp_path, out="two")
    assert first[0]["patient_id"] == again[0]["patient_id"]
    assert first[0]["study"] != again[0]["study"]


def test_every_kind_is_taken_or_left_by_its_rule_and_counted(archive, tmp_path):
    put(archive, "image.dcm", header(1))
    put(archive, "scout.dcm", header(2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    put(archive, "raw.dcm", header(3, PresentationIntentType="FOR PROCESSING"))
    put(archive, "cine.dcm", header(4), np.stack([ramp(12, seed=i) for i in range(3)]))
    storage = "1.2.840.10008.5.1.4.1.1."
    for number, (name, part) in enumerate((("sr", "88.11"), ("pr", "11.1"), ("ko", "88.59"), ("pdf", "104.1"))):
        (archive / name).write_bytes(saved(header(10 + number, sop_class=storage + part)))
    (archive / "notes.txt").write_text("x")
    put(archive, "torn.dcm", header(20))
    (archive / "torn.dcm").write_bytes((archive / "torn.dcm").read_bytes()[:-100])
    rows, findings, _ = run(archive, tmp_path)
    assert sorted(row["kind"] for row in rows) == ["frames", "image"]
    left = {code.partition(":")[2] for code in findings if code.startswith("kind-left")}
    assert left == {"localizer", "unprocessed", "report", "presentation", "key_objects", "document"}
    assert findings["not-dicom"].count == 1 and findings["not-dicom"].names == ("notes.txt",)
    assert findings["unreadable-image"].count == 1
    rows, _, _ = run(archive, tmp_path, out="all", frames="all", kinds=["frames"])
    assert sorted(row["frame"] for row in rows) == ["0", "1", "2"] and len({row["image"] for row in rows}) == 3
    with pytest.raises(DataError, match="more than 2 frames"):
        run(archive, tmp_path, out="none", frames="all", kinds=["frames"], max_frames=2)


def test_copies_count_once_and_differing_ones_not_at_all(archive, tmp_path):
    put(archive, "a.dcm", header(1))
    (archive / "b.dcm").write_bytes((archive / "a.dcm").read_bytes())
    put(archive, "c.dcm", header(2))
    put(archive, "d.dcm", header(2))
    rows, findings, _ = run(archive, tmp_path)
    assert len(rows) == 1
    assert findings["copied-image"].names == ("b.dcm",) and findings["instance-differs"].names == ("c.dcm", "d.dcm")


def test_labels_that_find_no_image_and_images_that_find_no_label_are_counted(archive, tmp_path):
    for number in (1, 2, 3):
        put(archive, f"{number}.dcm", header(number))
    rows, findings, _ = run(archive, tmp_path, {"A00001": "x", "A00009": "y"})
    assert len(rows) == 1
    assert findings["image-without-label"].count == 2 and findings["label-without-image"].names == ("A00009",)
    with pytest.raises(DataError, match="found no label by accession"):
        run(archive, tmp_path, {"other": "x"}, out="none")


def test_an_image_that_says_that_text_is_burnt_in_is_left_unless_it_is_asked_for(archive, tmp_path):
    put(archive, "1.dcm", header(1, BurnedInAnnotation="YES"))
    put(archive, "2.dcm", header(2, BurnedInAnnotation="NO"))
    rows, findings, _ = run(archive, tmp_path)
    assert [row["burnt_in"] for row in rows] == ["no"] and findings["burnt-in-stated"].names == ("1.dcm",)
    rows, _, _ = run(archive, tmp_path, out="two", burnt_in="take")
    assert sorted(row["burnt_in"] for row in rows) == ["no", "yes"]


def test_an_image_in_which_text_is_seen_is_left_unless_it_is_asked_for(archive, tmp_path):
    plain = np.full((256, 256), 900, dtype=np.uint16)
    stamped = stamp(plain.copy())
    put(archive, "text.dcm", header(1, WindowCenter=2048, WindowWidth=4096), stamped)
    put(archive, "plain.dcm", header(2, WindowCenter=2048, WindowWidth=4096), plain)
    rows, findings, _ = run(archive, tmp_path)
    assert len(rows) == 1 and rows[0]["text_lines"] == "0" and findings["burnt-in-seen"].names == ("text.dcm",)
    rows, _, _ = run(archive, tmp_path, out="two", burnt_in="take")
    assert sorted(int(row["text_lines"]) > 0 for row in rows) == [False, True]


def stamp(values):
    """One line of text of twelve letters in the corner of ``(h, w)`` uint16."""
    mask = Image.new("L", values.shape[::-1], 0)
    ImageDraw.Draw(mask).text((8, 8), "DOE 19610312", fill=255, font=ImageFont.load_default(20))
    values[np.asarray(mask) > 128] = 4000
    return values


def test_a_number_that_a_device_wrote_into_a_fact_is_taken_out(archive, tmp_path):
    put(archive, "1.dcm", header(1, "PAT4711", Manufacturer="ACME PAT4711", BodyPartExamined="CHEST"))
    rows, findings, _ = run(archive, tmp_path)
    assert rows[0]["manufacturer"] == "" and rows[0]["body_part"] == "CHEST"
    assert findings["identity-in-facts"].count == 1


def test_patients_that_are_not_named_or_written_in_two_ways_are_said(archive, tmp_path):
    for number, patient in ((1, ""), (2, "7"), (3, "007"), (4, "8")):
        put(archive, f"{number}.dcm", header(number, patient, IssuerOfPatientID=f"H{number}"))
    put(archive, "5.dcm", header(5, "8", IssuerOfPatientID="H9"))
    rows, findings, _ = run(archive, tmp_path)
    assert findings["no-groups"].count == 1 and findings["group-spelt-twice"].count == 2
    assert findings["several-issuers"].count == 1
    (bare,) = [row for row in rows if row["patient_id"].startswith("s-")]
    assert bare["patient_id"] == bare["study"]


def test_the_frames_of_one_file_are_of_one_patient_whatever_the_header_lacks(archive, tmp_path):
    """Neither patient nor study nor series: frames of one clip would else be on both sides of a split."""
    clip = np.stack([ramp(8, seed=n) for n in range(4)]).astype(np.uint8)
    for number, lacks in ((1, ("StudyInstanceUID",)), (2, ("StudyInstanceUID", "SeriesInstanceUID"))):
        ds = header(number, patient="")
        for name in lacks:
            delattr(ds, name)
        (archive / f"{number}.dcm").write_bytes(content(with_pixels(ds, clip + np.uint8(number))))
    single = header(3, patient="")
    del single.StudyInstanceUID, single.SeriesInstanceUID
    put(archive, "3.dcm", single)
    rows, findings, _ = run(archive, tmp_path, frames="all", burnt_in="take")
    patients = [row["patient_id"] for row in rows]
    assert sorted(patients.count(one) for one in set(patients)) == [1, 4, 4]
    assert {one[:2] for one in patients} == {"", "r-", "i-"} and findings["no-groups"].count == 3


def test_a_patient_that_is_none_is_said_before_it_is_a_hash_like_any_other(archive, tmp_path):
    for number, patient in enumerate(("ANONYMOUS", "Anonymous ", "n/a", "4711", "0")):
        put(archive, f"{number}.dcm", header(number, patient))
    _, findings, _ = run(archive, tmp_path)
    said = findings["group-placeholder"]
    assert said.count == 3 and said.names == ("0.dcm", "1.dcm", "2.dcm") and said.remedy
    assert "3 of 5 files" in said.message and "3 patient" in said.message


def test_twelve_bits_in_sixteen_and_percentiles_are_warned_of(archive, tmp_path):
    (archive / "1.dcm").write_bytes(content(with_pixels(header(1), ramp(12))))
    rows, findings, _ = run(archive, tmp_path)
    assert findings["narrow-range"].count == 1 and findings["window-of-the-image"].count == 1
    assert rows[0]["window"] == "percentile"
    rows, _, _ = run(archive, tmp_path, out="header", window="header")
    assert rows[0]["window"] == "range"


def test_nothing_usable_says_what_there_was(archive, tmp_path):
    (archive / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="not DICOM") as caught:
        run(archive, tmp_path)
    assert caught.value.remedy and not (tmp_path / "out" / "manifest.csv").exists()


def laid(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def broken(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [[], ["out"], ["out", "out/images"]])
@pytest.mark.parametrize("where", ["keep", "write_json", "atomic_write", "_say_made"])
def test_what_ends_early_leaves_nothing_of_itself(archive, tmp_path, monkeypatch, where, there):
    """A folder that was there stays, and the same call works."""
    for number in (1, 2):
        put(archive, f"{number}.dcm", header(number))
    for name in there:
        (tmp_path / name).mkdir(mode=0o700)
    with monkeypatch.context() as patched:
        if where == "atomic_write":  # all images are there, and the summary: the table is not
            usual = exporting.atomic_write
            patched.setattr(
                exporting, where, lambda path, *a, **k: broken() if path.suffix == ".csv" else usual(path, *a, **k)
            )
        else:
            patched.setattr(exporting, where, broken)
        with pytest.raises(KeyboardInterrupt):
            run(archive, tmp_path)
    assert sorted(path for path in laid(tmp_path) if path.startswith("out")) == there
    assert len(run(archive, tmp_path)[0]) == 2


def test_what_others_put_there_meanwhile_stays(archive, tmp_path, monkeypatch):
    put(archive, "1.dcm", header(1))

    def busy(*arguments):
        assert any(name.startswith("images/i-") for name in laid(tmp_path / "out"))
        (tmp_path / "out" / "images" / "mine.png").write_text("mine")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        raise MachineError("no space", "Free some.")

    monkeypatch.setattr(exporting, "_say_made", busy)
    with pytest.raises(MachineError):
        run(archive, tmp_path)
    assert laid(tmp_path / "out") == ["images", "images/mine.png", "notes.txt"]
    with pytest.raises(UsageError, match="not an empty folder"):
        run(archive, tmp_path)


def test_what_a_killed_export_left_is_begun_afresh(archive, tmp_path):
    put(archive, "1.dcm", header(1))
    (tmp_path / "out" / "images").mkdir(parents=True, mode=0o700)
    (tmp_path / "out").chmod(0o700)
    name = f"i-{'0' * 32}.png"
    for left in (f"images/{name}", f"images/.{name}.a_b1c2d3.part", "export.json", ".manifest.csv.x1.part"):
        (tmp_path / "out" / left).write_text("torn")
    rows, _, _ = run(archive, tmp_path)
    assert laid(tmp_path / "out") == ["export.json", "images", rows[0]["image"], "manifest.csv"]


@pytest.mark.parametrize(
    "names", [["manifest.csv"], ["export.json"], ["images/a.png"], ["images/", "notes.txt"], [f"i-{'0' * 32}.png"]]
)
def test_a_folder_with_something_else_is_left_as_it_is(archive, tmp_path, names):
    put(archive, "1.dcm", header(1))
    out = tmp_path / "out"
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).mkdir() if name.endswith("/") else (out / name).write_text("mine")
    before = laid(out)
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        run(archive, tmp_path)
    assert laid(out) == before


def test_a_finished_export_is_never_taken_for_a_torn_one(archive, tmp_path, monkeypatch):
    """Nor one that is interrupted when its table has just been written."""
    put(archive, "1.dcm", header(1))
    usual = exporting.atomic_write

    def write(path, *arguments, **options):
        usual(path, *arguments, **options)
        if path.suffix == ".csv":
            raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "atomic_write", write)
    with pytest.raises(KeyboardInterrupt):
        run(archive, tmp_path)
    before = laid(tmp_path / "out")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        run(archive, tmp_path)
    assert laid(tmp_path / "out") == before and len(before) == 4


def test_the_summary_holds_counts_and_no_name(archive, tmp_path):
    put(archive, "jane_doe.dcm", header(1, "4711"))
    run(archive, tmp_path, {"A00001": "x"})
    text = (tmp_path / "out" / "export.json").read_text()
    assert json.loads(text)["images"] == 1 and "jane" not in text and "4711" not in text


def test_a_directory_of_a_medium_names_files_below_it_alone(tmp_path):
    from pathlib import Path

    import pydicom.data

    medium = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests"
    findings = Findings()
    items = items_of(medium / "DICOMDIR", findings)
    assert len(items) == 31 and all(item.path.is_file() for item in items) and not len(findings)
    with pytest.raises(DataError, match="cannot be read as a DICOMDIR"):
        items_of(items[0].path, findings)
    with pytest.raises(UsageError, match="no such folder"):
        items_of(tmp_path / "nowhere", findings)


def test_a_directory_that_leads_out_is_not_followed(tmp_path):
    from pydicom.dataset import Dataset

    ds = header(1, sop_class="1.2.840.10008.1.3.10")
    records = []
    medium, elsewhere = tmp_path / "medium", tmp_path / "elsewhere"
    for folder in (medium / "images", elsewhere):
        folder.mkdir(parents=True)
        (folder / "im").write_bytes(saved(header(3)))
    (medium / "LINK").symlink_to("../elsewhere")
    (medium / "loose").symlink_to("../elsewhere/im")
    (medium / "within").symlink_to("images")
    for parts in (
        *(["..", "secret.dcm"], ["/etc", "passwd"], ["gone"], ["there"]),
        *(["LINK", "im"], ["loose"], ["within", "im"]),
    ):
        record = Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", parts
        records.append(record)
    ds.DirectoryRecordSequence = records
    (medium / "DICOMDIR").write_bytes(saved(ds))
    (medium / "there").write_bytes(saved(header(2)))
    findings = Findings()
    assert [item.name for item in items_of(medium / "DICOMDIR", findings)] == ["there", "within/im"]
    assert {item.code: item.count for item in findings} == {"path-outside": 4, "missing-image": 1}


def test_png_holds_pixels_and_nothing_else():
    data = png(ramp(16))
    kinds = [data[place + 4 : place + 8] for place in chunks(data)]
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def chunks(data):
    place = 8
    while place < len(data):
        yield place
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def test_labels_are_not_asked_for_twice(archive):
    """Without a table of labels every image is taken, and that it has no label is said."""
    findings = Findings()
    assert Chooser(DicomConfig(), None, findings).choose([]) == []
    assert [item.code for item in findings] == ["no-label"]
