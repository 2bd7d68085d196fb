"""``fed-diffmic data from-dicom`` as a radiographer's engineer uses it, with mistakes; then training on the table."""

import csv
import shlex
import subprocess
import sys

import numpy as np
import pytest

from fed_diffmic.cli import main
from fed_diffmic.data.dicom.identity import Names
from fed_diffmic.privacy.account import FOLDER, SECRET
from tests.data.dicom.archive import Archive
from tests.data.dicom.written import content, header, ramp, saved, with_pixels
from tests.proxy import serving

SYNTAXES = ("explicit", "implicit", "big_endian", "rle", "jpeg_ls", "jpeg2000", "jpeg_lossless", "deflated")


@pytest.fixture
def at(tmp_path, monkeypatch):
    """An export of 30 files of mixed kinds, and its table of labels."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "export"
    folder.mkdir()
    labels = ["accession,label"]
    for number in range(1, 25):
        values = ramp(12, seed=number) // (1 + number % 2)
        ds = with_pixels(
            header(number, f"P{(number - 1) // 2}", PatientName="Doe^Jane", PatientBirthDate="19610312"),
            values,
            bits=12,
            photometric="MONOCHROME1" if number % 3 == 0 else "MONOCHROME2",
        )
        if number % 2:
            ds.WindowCenter, ds.WindowWidth = 2048, 4096
        (folder / f"im{number}").write_bytes(content(ds, SYNTAXES[number % len(SYNTAXES)]))
        labels.append(f"A{number:05d},{'bright' if number % 2 else 'dim'}")
    for number, part in enumerate(("88.11", "11.1", "88.59", "104.1")):
        (folder / f"object{number}").write_bytes(
            saved(header(50 + number, sop_class=f"1.2.840.10008.5.1.4.1.1.{part}"))
        )
    (folder / "torn").write_bytes(content(with_pixels(header(60), ramp(12), bits=12))[:-9])
    (folder / "notes.txt").write_text("from the archive\n")
    (tmp_path / "labels.csv").write_text("\n".join([*labels, "A00060,dim", "A99999,dim", "A00001,bright"]) + "\n")
    return tmp_path


def said(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["data", "from-dicom", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    for name in ("Doe", "P3", "A00003", "im3"):
        assert name not in out + err
    return out if code == 0 else err


def test_an_export_becomes_a_table_that_trains(at, capsys):
    out = said(capsys, "export", "out", "--labels", "labels.csv", "site.folder=site", "site.name=North")
    assert "24 images of 12 patients from 30 files" in out
    for code in (
        "kind-left",
        "not-dicom",
        "unreadable-image",
        "duplicate-row",
        "label-without-image",
        "dates",
        "names",
    ):
        assert f"[{code}]" in out
    assert "dataset.root=out/manifest.csv" in out
    with open("out/manifest.csv") as stream:
        rows = list(csv.DictReader(stream))
    secret = bytes.fromhex((at / "site" / FOLDER / SECRET).read_text())
    assert {row["patient_id"] for row in rows} == {Names(secret).of("patient", f"P{n}") for n in range(12)}
    findings = at / "site" / "dicom" / "out-findings.csv"
    assert "notes.txt" in findings.read_text() and findings.stat().st_mode & 0o077 == 0
    fast = ["model=tiny", "model.image_side=32", "model.sampling_steps=2", "model.sampling_starts=1"]
    fast += ["stages.guidance.rounds=1", "stages.diffusion.rounds=1", "stages.guidance.epochs=1"]
    fast += [
        "stages.diffusion.epochs=1",
        "partition.sites=2",
        "partition=iid",
        "dataset.cache_dir=cache",
        "run.dir=run",
    ]
    assert main(["simulate", "dataset=table", "dataset.root=out/manifest.csv", "run.dir=run", *fast]) == 0


def test_the_same_patient_is_the_same_in_the_next_export(at, capsys):
    found = []
    for out in ("one", "two"):
        said(capsys, "export", out, "--labels", "labels.csv", "site.folder=site", "dicom.window=percentile")
        with open(f"{out}/manifest.csv") as stream:
            found.append({row["patient_id"] for row in csv.DictReader(stream)})
    assert found[0] == found[1] and len(found[0]) == 12


@pytest.mark.parametrize(
    ("arguments", "code", "what", "remedy"),
    [
        (["exprot", "out", "site.folder=site"], 2, "no such folder or DICOMDIR", "current folder"),
        (["export", "out"], 2, "site.folder is not set", "site.folder=DIR"),
        (["export", "out", "site.folder=site", "--labels", "label.csv"], 2, "no such file", "--labels"),
        (["export", "export", "site.folder=site"], 2, "lies in the export itself", "folder outside"),
        (["export", "labels.csv", "site.folder=site"], 2, "not an empty folder", "new folder"),
        (["export", "out", "site.folder=site", "dicom.windwo=header"], 2, "dicom.windwo", "dicom.window"),
        (
            ["export", "out", "site.folder=site", "dicom.window=heder"],
            2,
            "auto, header, percentile",
            "dicom.window=heder",
        ),
        (["export", "out", "site.folder=site", "--lables", "labels.csv"], 2, "--lables", "--help"),
        (["export", "site.folder=site"], 2, "OUT is missing", "FOLDER and OUT first"),
        (["export"], 2, "required: OUT", "--help"),
        (["export/notes.txt", "out", "site.folder=site"], 3, "cannot be read as a DICOMDIR", "Name the folder"),
        (["http://pacs.example.org/x", "out", "site.folder=site"], 2, "dicom.web.insecure", "https://"),
    ],
)
def test_each_mistake_says_what_where_and_what_to_do(at, capsys, arguments, code, what, remedy):
    err = said(capsys, *arguments, code=code)
    assert what in err and remedy in err
    assert not (at / "out" / "manifest.csv").exists()


def test_a_table_without_its_column_and_a_folder_without_dicom(at, capsys):
    (at / "wrong.csv").write_text("accession,diagnosis\nA00001,x\n")
    err = said(capsys, "export", "out", "site.folder=site", "--labels", "wrong.csv", code=3)
    assert "missing column(s): label" in err and "dicom.label_column=NAME" in err
    (at / "other").mkdir()
    (at / "other" / "a.txt").write_text("x")
    err = said(capsys, "other", "out", "site.folder=site", code=3)
    assert "not DICOM" in err and "Name the folder that holds the DICOM files" in err


@pytest.mark.parametrize("out", ["out", "out d é"])
def test_after_a_failure_the_same_command_works_and_so_does_what_it_prints(at, capsys, out):
    wrong = at / "labels.csv"
    good = wrong.read_text()
    wrong.write_text("accession,label\nZ1,x\n")
    command = ["export", out, "--labels", "labels.csv", "site.folder=site"]
    assert "no image is left" in said(capsys, *command, code=3)
    assert not (at / out).exists()
    wrong.write_text(good)
    printed = said(capsys, *command)
    program, *words = shlex.split(printed.partition("train on it with: ")[2])
    assert program == "fed-diffmic"
    assert main([*words, "--plan", "model=tiny", "model.image_side=32", "partition.sites=2", "partition=iid"]) == 0


def test_an_export_that_is_interrupted_or_killed_is_begun_again_by_the_same_command(at, capsys):
    """In a process of its own, which is stopped while it writes images."""
    program = (
        "import os, signal, sys, time\n"
        "from fed_diffmic.cli import main\n"
        "from fed_diffmic.data.dicom import export\n"
        "def stop(*a):\n"
        "    os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n"
        "    while True: time.sleep(0.01)\n"  # another thread may get the signal: Python sees to it between two sleeps
        "export._say_made = stop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "sys.exit(main(sys.argv[2:]))\n"
    )
    command = ["export", "out", "--labels", "labels.csv", "site.folder=site"]
    for name, code, left in (("SIGINT", 130, False), ("SIGKILL", -9, True), ("SIGTERM", 143, False)):
        given = [sys.executable, "-c", program, name, "data", "from-dicom", *command]
        assert subprocess.run(given, timeout=120, capture_output=True).returncode == code
        assert any((at / "out").glob("images/*.png")) == left
    assert "24 images of 12 patients" in said(capsys, *command)
    assert len(list((at / "out" / "images").iterdir())) == 24


def test_what_an_interrupted_export_of_an_archive_says_is_true(at, capsys, monkeypatch):
    """Nothing is fetched twice, and the folder is free."""
    from fed_diffmic.data.dicom import export

    files = {("1.4", "1.5", f"1.3.{n}"): (at / "export" / f"im{n}").read_bytes() for n in (1, 2)}
    server = type("Server", (Archive,), {"files": files, "asked": []})

    def stop(*arguments):
        raise KeyboardInterrupt

    with serving(server) as address:
        command = [f"http://{address}/dicom-web", "out", "site.folder=site"]
        with monkeypatch.context() as patched:
            patched.setattr(export, "_say_made", stop)
            assert "the same command goes on with the rest" in said(capsys, *command, code=130)
        assert len([path for path in server.asked if "/series/" in path]) == 2
        server.asked.clear()
        assert "2 images of" in said(capsys, *command)
        assert not [path for path in server.asked if "/series/" in path]


def test_an_archive_is_a_source_like_a_folder(at, capsys):
    files = {("1.4", "1.5", f"1.3.{n}"): (at / "export" / f"im{n}").read_bytes() for n in (1, 2, 3)}
    server = type("Server", (Archive,), {"files": files, "asked": []})
    with serving(server) as address:
        url = f"http://{address}/dicom-web"
        out = said(capsys, url, "out", "site.folder=site", "--labels", "labels.csv", "dicom.web.query=[Modality=DX]")
    assert "3 images of 2 patients" in out and "fetched files are kept in" in out
    kept = list((at / "site" / "dicom" / "downloads").glob("*/*.dcm"))
    assert len(kept) == 3 and all(path.stat().st_mode & 0o077 == 0 for path in kept)


def test_rows_of_a_table_may_name_dicom_files(at):
    from fed_diffmic.config.simulation import DatasetConfig
    from fed_diffmic.data.open import open_dataset

    lines = ["image,label"] + [f"export/im{n},{'bright' if n % 2 else 'dim'}" for n in range(1, 9)]
    (at / "manifest.csv").write_text("\n".join([*lines, "export/object0,dim"]) + "\n")
    cfg = DatasetConfig(name="table", root=str(at / "manifest.csv"), cache_dir=str(at / "cache"), on_bad_image="skip")
    data = open_dataset(cfg, 32, findings_path=None)
    assert len(data.manifest) == 8
    assert np.ptp(data.cache.images([0]).numpy()) > 100
    (bad,) = [item for item in data.findings if item.code == "unreadable-image"]
    assert "holds no picture" in bad.message
