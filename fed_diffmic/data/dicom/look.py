"""What a header says, without a pixel: kind, identity, facts for the table, and what may tell who a patient is.

Identity (:attr:`Look.ids`) is for the site's own keyed hashes and mapping file. Facts are few, checked against a
pattern, and none of them is free text: a series description may hold a name. What passes the pattern and holds a part
of the patient's name is left empty.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.uid import UID

from fed_diffmic.data.dicom.frames import grey_of, spacing_of
from fed_diffmic.data.dicom.kinds import frames_of, kind_of, representative
from fed_diffmic.data.dicom.parse import number, parse
from fed_diffmic.data.dicom.reasons import UnusableError

IDS = {
    "patient": "PatientID",
    "issuer": "IssuerOfPatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "sop": "SOPInstanceUID",
    "accession": "AccessionNumber",
}
"""Identity by our word for it, and the attribute that holds it."""

_CODES = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view": "ViewPosition",
    "laterality": "ImageLaterality",
    "sex": "PatientSex",
    "photometric": "PhotometricInterpretation",
}
_DEVICES = {"manufacturer": "Manufacturer", "scanner": "ManufacturerModelName"}
NAMED_FACTS = (*_CODES, *_DEVICES)
"""Columns whose value a person or a device chose."""

FACTS = (
    *NAMED_FACTS,
    *("age_band", "rows", "columns", "bits_stored", "spacing", "row_mm", "column_mm", "transfer_syntax", "lossy"),
)
"""Columns of the table that the header fills; empty where it does not say."""

_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,39}")
_AGE = re.compile(r"(\d{3})([DWMY])")
_OLDEST = 90  # above it a decade alone may tell who somebody is (HIPAA's safe harbour)
_DATES = frozenset(("DA", "DT"))
_PEOPLE = frozenset(
    (
        "PatientName",
        "OtherPatientNames",
        "OtherPatientIDs",
        "PatientBirthName",
        "PatientMotherBirthName",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "MilitaryRank",
        "MedicalRecordLocator",
        "PatientInsurancePlanCodeSequence",
    )
)
_PATIENTS = ("PatientName", "OtherPatientNames", "PatientBirthName")
_LEAST_PART = 3  # letters: two are in every other word
_DEEPEST = 32


@dataclass(frozen=True)
class Look:
    """What a header says.

    Attributes:
        kind: of :mod:`fed_diffmic.data.dicom.kinds`.
        frames: number of frames.
        representative: the frame that stands for them.
        ids: identity, as written; empty where it is not said. Never leaves the site.
        facts: columns of the table.
        burnt_in: ``yes``, ``no`` or empty, as the header says.
        private: private elements, at any depth.
        dates: filled dates, at any depth.
        people: filled elements that name a person, at any depth.
        named: facts that held a part of the patient's name, and are left empty.
        overlays: overlay planes.
        window: what the header offers: ``voi_lut``, ``window``, ``invalid`` (a window that is none), or empty.
        claims_removed: the header claims that identity was removed.
    """

    kind: str
    frames: int
    representative: int
    ids: dict[str, str] = field(repr=False)
    facts: dict[str, str]
    burnt_in: str
    private: int
    dates: int
    people: int
    named: int
    overlays: int
    window: str
    claims_removed: bool


def look_at(data: bytes) -> Look:
    """Read a file's header.

    Raises:
        UnusableError: it is no DICOM file, or damaged.
    """
    ds = parse(data)
    try:
        kind = kind_of(ds)
        if kind == "no_picture" and "Rows" in ds:
            raise UnusableError("truncated")  # a header of pixels, and none of them
        count = frames_of(ds)
        shown = representative(ds)
        private, dates, people = _counted(ds, 0)
        facts = _facts(ds, shown)
        named = _naming(facts, ds)
        return Look(
            kind=kind,
            frames=count,
            representative=shown,
            ids={name: _text(ds.get(attribute)) for name, attribute in IDS.items()},
            facts=facts | dict.fromkeys(named, ""),
            burnt_in=_text(ds.get("BurnedInAnnotation")).lower(),
            private=private,
            dates=dates,
            people=people,
            named=len(named),
            overlays=sum(1 for element in ds if _is_overlay(element.tag)),
            window=_window(ds, shown),
            claims_removed=_text(ds.get("PatientIdentityRemoved")).upper() == "YES",
        )
    except UnusableError:
        raise
    except Exception:  # values of a wrong type in a damaged header
        raise UnusableError("unreadable") from None


def references(data: bytes) -> list[list[str]]:
    """The files that a DICOMDIR names, each as the parts of its path.

    Raises:
        UnusableError: it is no DICOMDIR, or damaged.
    """
    ds = parse(data)
    if kind_of(ds) != "directory":
        raise UnusableError("dicom_no_picture")
    try:
        found = []
        for record in ds.DirectoryRecordSequence:
            value = record.get("ReferencedFileID")
            if value:
                found.append([value] if isinstance(value, str) else [str(part) for part in value])
        return found
    except Exception:
        raise UnusableError("unreadable") from None


def _facts(ds: Dataset, frame: int) -> dict[str, str]:
    facts = {name: _matching(ds.get(attribute), _CODE) for name, attribute in _CODES.items()}
    facts |= {name: _matching(ds.get(attribute), _DEVICE) for name, attribute in _DEVICES.items()}
    said, between_rows, between_columns = spacing_of(ds, frame)
    facts |= {
        "age_band": _age_band(_text(ds.get("PatientAge"))),
        "rows": _whole(ds.get("Rows")),
        "columns": _whole(ds.get("Columns")),
        "bits_stored": _whole(ds.get("BitsStored")),
        "spacing": said,
        "row_mm": f"{between_rows:g}" if said else "",
        "column_mm": f"{between_columns:g}" if said else "",
        "transfer_syntax": str(UID(ds.file_meta.get("TransferSyntaxUID", ""))),
        "lossy": {"00": "no", "01": "yes"}.get(_text(ds.get("LossyImageCompression")), ""),
    }
    return facts


def _naming(facts: dict[str, str], ds: Dataset) -> list[str]:
    """Columns that a person or a device filled with a part of the patient's name, wherever in the value it stands."""
    said = _plain(" ".join(_text(ds.get(attribute)) for attribute in _PATIENTS))
    parts = [part for part in re.findall("[a-z]+", said) if len(part) >= _LEAST_PART]
    return [name for name in NAMED_FACTS if any(part in _plain(facts[name]) for part in parts)]


def _plain(text: str) -> str:
    """Small letters without accents, as a keyboard that has none would write them."""
    return unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()


def _age_band(age: str) -> str:
    """The decade of an age in years, ``90+`` from there on; empty where it is not said."""
    found = _AGE.fullmatch(age)
    if found is None:
        return ""
    years = int(found[1]) if found[2] == "Y" else 0 if found[2] != "M" else int(found[1]) // 12
    return f"{_OLDEST}+" if years >= _OLDEST else f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def _window(ds: Dataset, frame: int) -> str:
    try:
        grey = grey_of(ds, frame)
    except UnusableError:
        return "invalid"
    if grey.voi is not None:
        return "voi_lut"
    if grey.window is None:
        return ""
    return "window" if grey.window.usable else "invalid"


def _counted(ds: Dataset, depth: int) -> tuple[int, int, int]:
    """Private elements, dates and names of people that hold something, at any depth."""
    private = dates = people = 0
    for element in ds:
        if element.VR == "SQ" and depth < _DEEPEST:
            for item in element.value or ():
                inner = _counted(item, depth + 1)
                private, dates, people = private + inner[0], dates + inner[1], people + inner[2]
        if element.tag.is_private:
            private += 1
        elif element.value not in (None, ""):
            dates += element.VR in _DATES
            people += element.VR == "PN" or element.keyword in _PEOPLE
    return private, dates, people


def _is_overlay(tag: object) -> bool:
    group, element = tag.group, tag.element  # type: ignore[attr-defined]
    return 0x6000 <= group <= 0x601E and group % 2 == 0 and element == 0x0010  # its rows: one for each plane


def _text(value: object) -> str:
    return "" if value is None else str(value).strip().strip("\0")


def _matching(value: object, pattern: re.Pattern[str]) -> str:
    text = _text(value)
    return text if pattern.fullmatch(text) else ""


def _whole(value: object) -> str:
    found = number(value)
    return "" if found is None else str(int(found))
