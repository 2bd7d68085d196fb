"""Kinds by their stated rules, facts without free text, and what may tell who a patient is."""

import pytest
from pydicom.dataset import Dataset

from fed_diffmic.data.dicom.look import FACTS, look_at
from tests.data.dicom.written import header, ramp, saved, with_pixels

_STORAGE = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        (f"{_STORAGE}88.33", "report"),
        (f"{_STORAGE}88.59", "key_objects"),
        (f"{_STORAGE}11.1", "presentation"),
        (f"{_STORAGE}66.4", "segmentation"),
        (f"{_STORAGE}30", "segmentation"),
        (f"{_STORAGE}481.2", "radiotherapy"),
        (f"{_STORAGE}9.1.1", "waveform"),
        (f"{_STORAGE}104.1", "document"),
        (f"{_STORAGE}7", "captured"),
        (f"{_STORAGE}7.2", "captured"),
        (f"{_STORAGE}1.1", "image"),
        (f"{_STORAGE}77.1.4", "image"),
    ],
)
def test_the_kind_of_a_storage_class(sop_class, kind):
    assert look_at(saved(with_pixels(header(sop_class=sop_class), ramp(), bits=12))).kind == kind


def test_kinds_by_other_words_of_the_header():
    def kind(**more):
        return look_at(saved(with_pixels(header(**more), ramp(), bits=12))).kind

    assert kind(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]) == "localizer"
    assert kind(PresentationIntentType="FOR PROCESSING") == "unprocessed"
    assert kind(PresentationIntentType="FOR PRESENTATION") == "image"
    assert look_at(saved(header())).kind == "no_picture"


def test_facts_are_codes_numbers_and_bands():
    more = {"PatientAge": "063Y", "PatientSex": "F", "PixelSpacing": [0.5, 0.25], "Manufacturer": "ACME", "Rows": 1}
    facts = look_at(saved(with_pixels(header(**more), ramp(), bits=12))).facts
    assert tuple(facts) == FACTS
    assert facts["age_band"] == "60-69" and facts["sex"] == "F" and facts["modality"] == "DX"
    assert (facts["spacing"], facts["row_mm"], facts["column_mm"]) == ("PixelSpacing", "0.5", "0.25")
    at_detector = look_at(saved(header(ImagerPixelSpacing=[0.1, 0.1]))).facts
    assert at_detector["spacing"] == "ImagerPixelSpacing"


@pytest.mark.parametrize(("age", "band"), [("093Y", "90+"), ("018M", "0-9"), ("007D", "0-9"), ("", "")])
def test_age_bands(age, band):
    assert look_at(saved(header(PatientAge=age))).facts["age_band"] == band


def test_what_is_no_code_is_no_fact():
    facts = look_at(saved(header(Manufacturer="Jane Doe; born 1961", BodyPartExamined="doe^jane"))).facts
    assert facts["manufacturer"] == facts["body_part"] == ""


@pytest.mark.parametrize(
    ("patient", "facts", "left"),
    [
        ("Doe^Jane", {"BodyPartExamined": "DOE JOHN", "ManufacturerModelName": "Jane Doe"}, {}),
        ("Doe^Jane", {"BodyPartExamined": "JDOE", "Manufacturer": "ACME"}, {"manufacturer": "ACME"}),
        ("Müller-Strauß^Zoë", {"Manufacturer": "Muller", "ManufacturerModelName": "STRAUSS 2"}, {}),
        (
            "Li^Bo",
            {"BodyPartExamined": "LIVER", "Manufacturer": "Bodor"},
            {"body_part": "LIVER", "manufacturer": "Bodor"},
        ),
        ("", {"BodyPartExamined": "CHEST"}, {"body_part": "CHEST"}),
    ],
)
def test_a_part_of_the_patients_name_is_no_fact(patient, facts, left):
    look = look_at(saved(header(PatientName=patient, SpecificCharacterSet="ISO_IR 192", **facts)))
    columns = ("body_part", "manufacturer", "scanner")
    assert {name: look.facts[name] for name in columns if look.facts[name]} == left
    assert look.named == len(facts) - len(left) and look.facts["modality"] == "DX"


def test_names_that_a_patient_had_count_as_well():
    more = {"PatientName": "Doe^Jane", "OtherPatientNames": ["Roe^Jane", "Poe^J"], "BodyPartExamined": "POE"}
    assert look_at(saved(header(**more))).facts["body_part"] == ""


def test_private_elements_dates_and_people_are_counted_at_any_depth():
    inner = Dataset()
    inner.PatientBirthDate, inner.ReferringPhysicianName = "19610312", "Dr^X"
    inner.add_new(0x00091010, "LO", "secret")
    ds = header(PatientName="Doe^Jane", StudyDate="20240101", ContentDate="", BurnedInAnnotation="YES")
    ds.RequestAttributesSequence = [inner]
    ds.add_new(0x00111010, "LO", "x")
    ds.add_new(0x60000010, "US", 10)
    look = look_at(saved(ds))
    assert (look.private, look.dates, look.people, look.overlays) == (2, 2, 2, 1)
    assert look.burnt_in == "yes" and not look.claims_removed


def test_a_window_that_is_none_is_said():
    for window, expected in (({}, ""), ({"WindowWidth": 0.2}, "invalid"), ({"WindowWidth": 20}, "window")):
        more = {"WindowCenter": 5, **window} if window else {}
        assert look_at(saved(with_pixels(header(**more), ramp(), bits=12))).window == expected
