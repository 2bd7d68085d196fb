"""Whose a DICOM image is and where it belongs, for a document that refers to it: named elements of its header alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fed_diffmic.data.dicom.reasons import UnusableError

IMAGE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_LONGEST = 64


@dataclass(frozen=True)
class Origin:
    """Named elements of an image's header.

    Attributes:
        elements: DICOM JSON of :data:`IMAGE`, :data:`PATIENT` and :data:`STUDY`, those that are there; no other.
        frame: from 1, the one that is predicted; 0: the image has one frame.
    """

    elements: dict[str, Any]
    frame: int


def origin_of(data: bytes) -> dict[str, Any]:
    """What :class:`Origin` holds, read from a file; called in a process of its own.

    Raises:
        UnusableError: it is no DICOM file, damaged, or does not say which image it is.
    """
    from pydicom.dataset import Dataset

    from fed_diffmic.data.dicom.kinds import frames_of, representative
    from fed_diffmic.data.dicom.parse import parse

    ds, kept = parse(data), Dataset()
    try:
        for name in (*IMAGE, *PATIENT, *STUDY):
            if name in ds:
                setattr(kept, name, ds[name].value)
        whole = all(is_uid(str(kept.get(name, ""))) for name in IMAGE)
        elements = kept.to_json_dict()
        frame = representative(ds) + 1 if frames_of(ds) > 1 else 0
    except Exception:  # values of a wrong type in a damaged header
        raise UnusableError("unreadable") from None
    if not whole:
        raise UnusableError("unreadable")
    return {"elements": elements, "frame": frame}


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID."""
    return len(text) <= _LONGEST and _UID.fullmatch(text) is not None
