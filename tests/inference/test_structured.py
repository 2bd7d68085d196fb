"""Structured reports of predictions: read back, what they hold and refer to, and what they never hold."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from fed_diffmic.cli import main
from fed_diffmic.data.dicom.origin import IMAGE, PATIENT, STUDY, is_uid, origin_of
from fed_diffmic.data.dicom.reasons import UnusableError
from fed_diffmic.inference import structured
from fed_diffmic.inference.images import image_files
from fed_diffmic.inference.predictions import predict_files
from tests.data.dicom.written import content, header, ramp, with_pixels
from tests.inference.tiny import CLASSES, draw_images, write_tiny_run

ENHANCED = "1.2.840.10008.5.1.4.1.1.88.22"


def image(number: int, **more: Any) -> bytes:
    given = {"PatientName": "Müller^Änne", "PatientBirthDate": "19700101", "PatientSex": "F", "StudyDate": "20260101",
             "SpecificCharacterSet": "ISO_IR 192", "PatientComments": "cries", "PerformingPhysicianName": "Doe^Jo",
             **more}  # fmt: skip
    return content(with_pixels(header(number, **given), ramp(12, 40, number), bits=12))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two DICOM images and one that is none; the folder of the reports."""
    folder = tmp_path_factory.mktemp("structured")
    ward = folder / "ward"
    ward.mkdir()
    for number in (1, 2):
        (ward / f"Muster^{number}.dcm").write_bytes(image(number))
    draw_images(ward, 1)
    run = write_tiny_run(folder / "run", 'dataset.class_names={malignant: "Melanom, bösartig"}')
    assert main(["predict", "--run", str(run), str(ward), "--dicom-sr", str(folder / "out")]) == 0
    return ward, folder / "out"


def read(folder: Path) -> list[Dataset]:
    found = [dcmread(path) for path in sorted(folder.iterdir())]
    return sorted(found, key=lambda ds: int(ds.InstanceNumber))


def items(ds: Dataset, kind: str) -> list[Dataset]:
    """Content items of a value type, at any depth."""
    found = [ds] if ds.get("ValueType") == kind else []
    return found + [inner for item in ds.get("ContentSequence", []) for inner in items(item, kind)]


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def test_a_report_for_each_dicom_image_readable_by_its_owner_alone(written: tuple[Path, Path]) -> None:
    _, out = written
    paths = sorted(out.iterdir())
    assert len(paths) == 2 and out.stat().st_mode & 0o777 == 0o700
    for path in paths:
        ds = dcmread(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.name == f"{ds.SOPInstanceUID}.dcm" and is_uid(str(ds.SOPInstanceUID))
        assert (ds.SOPClassUID, ds.Modality, ds.CompletionFlag) == (ENHANCED, "SR", "COMPLETE")
        assert (ds.PreliminaryFlag, ds.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert len({ds.SeriesInstanceUID for ds in read(out)}) == 1


def test_it_says_what_predict_says_of_that_image(written: tuple[Path, Path]) -> None:
    ward, out = written
    run = ward.parent / "run"
    from fed_diffmic.inference.finished import final_predictor

    predictor = final_predictor(run)
    found = predict_files(predictor, image_files([ward / "Muster^1.dcm"]))
    first = read(out)[0]
    numbers = {meaning(item): float(item.MeasuredValueSequence[0].NumericValue) for item in items(first, "NUM")}
    names = {"malignant": "Melanom, bösartig"}
    wanted = {f"Probability: {names.get(c, c)}": p for c, p in zip(CLASSES, found.probabilities[0], strict=True)}
    assert numbers == pytest.approx(wanted, abs=1e-6)
    codes = [(meaning(item), item.ConceptCodeSequence[0].CodeMeaning) for item in items(first, "CODE")]
    decided = found.decided_names()[0][0]
    assert ("Class decided by the run's rule", names.get(decided, decided)) in codes
    texts = [item.TextValue for item in items(first, "TEXT")]
    assert "For research, not a medical device." in texts
    assert f"weights SHA-256 {predictor.digest}" in texts and "signed by nobody" in texts
    assert any(text.startswith("Nothing is known of how sure this model is;") for text in texts)


def test_it_refers_to_the_very_image_and_its_study(written: tuple[Path, Path]) -> None:
    ward, out = written
    for number, ds in enumerate(read(out), start=1):
        source = dcmread(ward / f"Muster^{number}.dcm")
        (named,) = {str(i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) for i in items(ds, "IMAGE")}
        assert named == source.SOPInstanceUID and ds.StudyInstanceUID == source.StudyInstanceUID
        (study,) = ds.CurrentRequestedProcedureEvidenceSequence
        (series,) = study.ReferencedSeriesSequence
        assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (source.StudyInstanceUID, source.SeriesInstanceUID)
        assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_of_the_patient_it_holds_what_the_image_says_and_no_more(written: tuple[Path, Path]) -> None:
    ward, out = written
    for number, ds in enumerate(read(out), start=1):
        source = dcmread(ward / f"Muster^{number}.dcm")
        assert str(ds.PatientName) == "Müller^Änne" and (ds.PatientID, ds.PatientSex) == ("4711", "F")
        assert ds.AccessionNumber == source.AccessionNumber
        text = str(ds)
        assert not [word for word in ("cries", "Doe^Jo", "Muster", "ward") if word in text]


def test_codes_are_the_same_in_every_document(written: tuple[Path, Path]) -> None:
    one, two = ({(c.CodeValue, c.CodingSchemeDesignator) for i in items(ds, "NUM") for c in i.ConceptNameCodeSequence}
                for ds in read(written[1]))  # fmt: skip
    assert one == two and {scheme for _, scheme in one} == {structured.SCHEME}
    assert all(len(value) <= 16 for value, _ in one)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_a_validator_finds_nothing_wrong(written: tuple[Path, Path]) -> None:
    for path in written[1].iterdir():
        said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60, check=False).stderr
        assert "EnhancedSR" in said and "Error" not in said, said


def test_what_is_no_dicom_or_names_no_image_is_counted_and_not_reported_on(tmp_path: Path, capsys: Any) -> None:
    nameless = header(5)
    del nameless.StudyInstanceUID
    (tmp_path / "a.dcm").write_bytes(content(with_pixels(nameless, ramp(), bits=12)))
    run = write_tiny_run(tmp_path / "run")
    [drawn] = draw_images(tmp_path, 1)
    given = [str(tmp_path / "a.dcm"), str(drawn)]
    assert main(["predict", "--run", str(run), *given, "--dicom-sr", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "0 structured reports" in said and "No report on 1 images: they are no DICOM files." in said
    assert "No report on 1 images: they are without the UIDs" in said and not list((tmp_path / "out").iterdir())


def test_a_file_that_was_exchanged_since_it_was_predicted_gets_no_report(
    written: tuple[Path, Path], tmp_path: Path
) -> None:
    """The numbers of one patient's image must not stand in another's document."""
    from fed_diffmic.inference.finished import final_predictor

    path = tmp_path / "a.dcm"
    path.write_bytes(image(1))
    found = predict_files(final_predictor(written[0].parent / "run"), [str(path)])
    path.write_bytes(image(2))
    made = structured.write_reports(tmp_path / "out", found, structured.Author("tiny", "ab", "", {}))
    assert made == structured.Reports(changed=1) and "they changed while" in made.sentences(tmp_path)[-1]


def test_of_several_frames_the_one_that_was_predicted_is_named() -> None:
    ds = with_pixels(header(3), np.stack([ramp(side=8)] * 3), bits=12)
    assert origin_of(content(ds))["frame"] == 2
    assert origin_of(image(1))["frame"] == 0


def test_only_named_elements_leave_the_process_that_reads() -> None:
    found = origin_of(image(1))["elements"]
    tags = {Dataset.from_json(found)[tag].keyword for tag in found}
    assert tags == {*IMAGE, *PATIENT, "StudyDate", "AccessionNumber"} and set(STUDY) > {"StudyDate"}
    with pytest.raises(UnusableError):
        origin_of(b"\0" * 200)


@pytest.mark.parametrize("text", ["", "1", "1..2", "01.2", "1.02", "1.2.", "a.b", "1." + "2" * 63])
def test_what_is_no_uid_is_none(text: str) -> None:
    assert not is_uid(text) and is_uid("1.2.840.10008") and is_uid("2.25.0")
