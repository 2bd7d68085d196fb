"""One DICOM file from bytes to a dataset, hostile until proven otherwise; its sizes bounded before any pixel exists."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import _read_command_set_elements, _read_file_meta_info, read_preamble
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from fed_diffmic.data.dicom.kinds import frames_of
from fed_diffmic.data.dicom.reasons import UnusableError, is_dicom

MOST_INFLATED = 2**30
"""Bytes that a deflated file may become."""

_STEP = 2**20  # bytes that are inflated at a time
_SOF = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7))
_COD, _SOT = 0x52, 0x90  # of JPEG 2000: the style of coding, and where the main header ends
_TURNED_IN_FRAME = ("YBR_ICT", "YBR_RCT")
_TURNED_BEHIND = ("YBR_FULL", "YBR_FULL_422")
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))


def parse(data: bytes) -> Dataset:
    """Read a file of DICOM part 10.

    Raises:
        UnusableError: it is none, damaged, or inflates to more than :data:`MOST_INFLATED`.
    """
    if not is_dicom(data):
        raise UnusableError("unknown_format")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stream = io.BytesIO(data)
            _check_inflated(stream)
            stream.seek(0)
            ds = pydicom.dcmread(stream)
    except UnusableError:
        raise
    except EOFError:
        raise UnusableError("truncated") from None
    except Exception:  # a parser on damaged bytes raises what it likes: struct.error, ValueError, RecursionError, ...
        raise UnusableError("unreadable") from None
    return ds


def check_sizes(ds: Dataset, most_pixels: int) -> tuple[int, int, int]:
    """Rows, columns and samples of a pixel, as the header says, within bounds.

    Raises:
        UnusableError: not said, not whole, none at all or too many.
    """
    rows, columns = whole(ds, "Rows"), whole(ds, "Columns")
    samples = whole(ds, "SamplesPerPixel", 1)
    if rows < 1 or columns < 1 or frames_of(ds) < 1:
        raise UnusableError("unreadable")
    if samples not in (1, 3):
        raise UnusableError("dicom_unsupported")
    if rows * columns > most_pixels:
        raise UnusableError("too_large")
    return rows, columns, samples


def check_codestream(ds: Dataset, frame: int, rows: int, columns: int) -> None:
    """Compare the size and the colours that a compressed frame announces with the header's, before it is decoded.

    A decoder of JPEG 2000 turns colours back by what the frame says, and what calls it by what the header says
    (PS3.5, 8.2.4): where the two are not one, they would be turned twice, or never.

    Raises:
        UnusableError: they differ, or there is no such frame.
    """
    if not UID(ds.file_meta.TransferSyntaxUID).is_encapsulated:
        return
    offsets = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        offsets = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    try:
        stream = get_frame(ds.PixelData, frame, number_of_frames=frames_of(ds), extended_offsets=offsets)
    except Exception:  # damaged fragments and offset tables
        raise UnusableError("truncated") from None
    size = announced_size(stream)
    if size is not None and size != (rows, columns):
        raise UnusableError("dicom_contradiction")
    photometric = str(ds.get("PhotometricInterpretation", "")).strip()
    turned = colour_transform(stream)
    if turned is not None and (photometric in _TURNED_IN_FRAME, photometric in _TURNED_BEHIND)[turned]:
        raise UnusableError("dicom_contradiction")


def announced_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns in the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None where none is found."""
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 24:  # SOC, SIZ
        width, height, left, top = struct.unpack(">4I", stream[8:24])
        return height - top, width - left
    if stream[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 4 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _WITHOUT_LENGTH:
            place += 2
        elif marker in _SOF and place + 9 <= len(stream):
            rows, columns = struct.unpack(">2H", stream[place + 5 : place + 9])
            return rows, columns
        else:
            place += 2 + max(2, int.from_bytes(stream[place + 2 : place + 4], "big"))
    return None


def colour_transform(stream: bytes) -> bool | None:
    """Whether a JPEG 2000 codestream holds its colours transformed (ISO/IEC 15444-1, A.6.1); None: it is none."""
    if stream[:4] != b"\xff\x4f\xff\x51":
        return None
    place = 2
    while place + 9 <= len(stream) and stream[place] == 0xFF and stream[place + 1] != _SOT:
        if stream[place + 1] == _COD:
            return stream[place + 8] != 0  # behind its length, style, progression and number of layers
        place += 2 + max(2, int.from_bytes(stream[place + 2 : place + 4], "big"))
    return None


def whole(ds: Dataset, name: str, default: int = 0) -> int:
    """A whole number of the header; ``default`` where it is not there.

    Raises:
        UnusableError: something else stands there.
    """
    value = ds.get(name)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UnusableError("unreadable") from None


def number(value: Any) -> float | None:
    """A decimal of a header, or its first one; None where there is none that is a number."""
    if isinstance(value, (list, tuple)) or (hasattr(value, "__iter__") and not isinstance(value, (str, bytes))):
        value = next(iter(value), None)
    if value is None or value == "":
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if abs(found) < float("inf") else None


def _check_inflated(stream: io.BytesIO) -> None:
    """Inflate with an end in sight: pydicom would make room for whatever comes out.

    Where the deflated part begins is found with pydicom's own functions. Whoever looks for it in another way, by the
    length that the file's own group states or in its first bytes, checks another part than the one that is inflated.
    """
    read_preamble(stream, False)
    if _read_file_meta_info(stream).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    _read_command_set_elements(stream)
    try:
        inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflater.eof and (left := stream.read(_STEP)):
            while left and not inflater.eof:  # what stands after the end stays in unconsumed_tail
                total += len(inflater.decompress(left, _STEP))
                left = inflater.unconsumed_tail
                if total > MOST_INFLATED:
                    raise UnusableError("too_large")
    except zlib.error:
        raise UnusableError("unreadable") from None
