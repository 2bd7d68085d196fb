"""What a header says of one frame's grey values, wherever it says it: at the top, or in functional groups.

An enhanced object has rescale, window and spacing in ``PerFrameFunctionalGroupsSequence`` or ``Shared...``; the
frame's own comes first, then what all share, then the top of the header.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from fed_diffmic.data.dicom.brightness import Grey, Lut, Window
from fed_diffmic.data.dicom.parse import number, whole
from fed_diffmic.data.dicom.reasons import UnusableError

SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""In the patient, at the detector, at the scanner's glass: the first that is there is taken, and named."""


def group_of(ds: Dataset, frame: int, name: str) -> Dataset:
    """The functional group of a frame that holds ``name``; the header itself where there is none."""
    for macros in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = ds.get(macros) or []
        place = frame if macros.startswith("Per") else 0
        if place < len(groups):
            inner = groups[place].get(name)
            if inner:
                return inner[0]
    return ds


def grey_of(ds: Dataset, frame: int) -> Grey:
    """What the header says of the grey values of a frame.

    Raises:
        UnusableError: a table or a number in it is damaged.
    """
    signed = whole(ds, "PixelRepresentation") == 1
    values = group_of(ds, frame, "PixelValueTransformationSequence")
    slope, intercept = number(values.get("RescaleSlope")), number(values.get("RescaleIntercept"))
    looks = group_of(ds, frame, "FrameVOILUTSequence")
    first = whole(ds, "PixelPaddingValue") if ds.get("PixelPaddingValue") is not None else None
    last = whole(ds, "PixelPaddingRangeLimit", first or 0)
    return Grey(
        bits=whole(ds, "BitsStored"),
        signed=signed,
        slope=1.0 if slope is None or slope == 0 else slope,
        intercept=intercept or 0.0,
        modality=_lut(ds, "ModalityLUTSequence", signed),
        voi=_lut(looks, "VOILUTSequence", signed),
        window=_window(looks),
        inverted=str(ds.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1",
        padding=None if first is None else (first, last),
    )


def _window(ds: Dataset) -> Window | None:
    centre, width = number(ds.get("WindowCenter")), number(ds.get("WindowWidth"))
    if centre is None or width is None:
        return None
    return Window(centre, width, str(ds.get("VOILUTFunction", "") or "LINEAR").strip().upper())


def _lut(ds: Dataset, name: str, signed: bool) -> Lut | None:
    items = ds.get(name)
    if not items:
        return None
    item = items[0]
    descriptor = [int(value) for value in item.LUTDescriptor]
    entries, first, bits = descriptor[0] or 65536, descriptor[1], descriptor[2]
    if first > 32767 and signed:  # read as US where SS was meant
        first -= 65536
    values = _words(item.LUTData, entries, bits)
    if not 1 <= bits <= 16 or len(values) < entries:
        raise UnusableError("unreadable")
    return Lut(values[:entries].astype(np.float64), first, bits)


def _words(data: Any, entries: int, bits: int) -> np.ndarray:
    if isinstance(data, bytes):
        packed = bits <= 8 and len(data) < 2 * entries  # 8-bit entries, two in a word
        return np.frombuffer(data[: len(data) // 2 * 2], dtype=np.uint8 if packed else "<u2")
    return np.atleast_1d(np.asarray(data, dtype=np.int64))


def spacing_of(ds: Dataset, frame: int) -> tuple[str, float, float]:
    """Where the spacing of pixels is said, and millimetres between rows and columns; ``("", 0, 0)``: nowhere."""
    measures = group_of(ds, frame, "PixelMeasuresSequence")
    for name in SPACINGS:
        value = measures.get(name) or ds.get(name)
        if value is not None and hasattr(value, "__len__") and len(value) == 2:
            rows, columns = number(value[0]), number(value[1])
            if rows and columns and rows > 0 and columns > 0:
                return name, rows, columns
    return "", 0.0, 0.0
