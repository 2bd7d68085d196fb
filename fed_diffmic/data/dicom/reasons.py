"""Why a DICOM file cannot be used, in words; one code, whoever found it. Imports nothing that reads DICOM."""

from __future__ import annotations

import functools
import importlib.metadata

REASONS = {
    "dicom_not_installed": "a DICOM file, and the packages that read it are missing: pip install 'fed-diffmic[dicom]'",
    "dicom_no_picture": "a DICOM file that holds no picture (a report, a plan, ... or one cut off before it)",
    "dicom_unsupported": "a DICOM file whose compression or kind of pixels is not read",
    "dicom_contradiction": "pixels that contradict what their DICOM header says of them",
    "dicom_too_slow": "a DICOM file that took longer to decode than is allowed",
    "dicom_crashed": "a DICOM file on which the decoder broke down: it is damaged",
}
"""Reason codes beside those of :mod:`fed_diffmic.data.decode`."""

PACKAGES = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")
_PREAMBLE, _MAGIC = 128, b"DICM"


class UnusableError(Exception):
    """A DICOM file that cannot be used; ``reason`` is a key of :data:`REASONS` or of the decoder's."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_dicom(data: bytes) -> bool:
    """Whether a file is one of DICOM part 10: 128 bytes, then ``DICM``."""
    return data[_PREAMBLE : _PREAMBLE + len(_MAGIC)] == _MAGIC


@functools.cache
def readers() -> str:
    """Name and version of the packages that decode DICOM, as one text; empty where one of them is missing."""
    try:
        return " ".join(f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES)
    except importlib.metadata.PackageNotFoundError:
        return ""
