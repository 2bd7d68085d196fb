"""One frame of a DICOM file as a picture: ``(h, w)`` uint16, 0 black, or ``(h, w, 3)`` uint8 RGB.

Everything that the picture depends on is said in docs/dicom.md. The plug-in that decodes is always the same one, so
that equal files are equal pixels at every site.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from fed_diffmic.data.dicom.brightness import Grey, Stated, brightness
from fed_diffmic.data.dicom.frames import grey_of
from fed_diffmic.data.dicom.kinds import frames_of, kind_of, representative
from fed_diffmic.data.dicom.parse import check_codestream, check_sizes, parse, whole
from fed_diffmic.data.dicom.reasons import UnusableError

PLUGIN = "pylibjpeg"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SEGMENTED_LUT = 65536
_NO_PICTURE = frozenset(
    ("report", "presentation", "key_objects", "radiotherapy", "waveform", "document", "directory", "no_picture")
)


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame that can be looked at.

    Attributes:
        pixels: ``(h, w)`` uint16 or ``(h, w, 3)`` uint8.
        stated: how brightness was made.
        narrow: the header says 13 bits or more, and no value needs more than 12.
    """

    pixels: np.ndarray
    stated: Stated
    narrow: bool = False


def picture_of(data: bytes, *, frame: int | None = None, window: str = "auto", most_pixels: int) -> Picture:
    """Render one frame.

    Args:
        data: content of the file.
        frame: from 0; None: the representative one.
        window: auto, header or percentile.
        most_pixels: of a frame.

    Raises:
        UnusableError: the file holds no picture, or none that can be used.
    """
    ds = parse(data)
    kind = kind_of(ds)
    if kind in _NO_PICTURE:
        raise UnusableError("dicom_no_picture")
    if kind in ("segmentation", "video") or "PixelData" not in ds:
        raise UnusableError("dicom_unsupported")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _render(ds, representative(ds) if frame is None else frame, window, most_pixels)
    except UnusableError:
        raise
    except MemoryError:
        raise UnusableError("too_large") from None
    except Exception:  # values of a wrong type, tables too short, ...: damaged headers raise what they like
        raise UnusableError("unreadable") from None


def _render(ds: Dataset, frame: int, window: str, most_pixels: int) -> Picture:
    rows, columns, samples = check_sizes(ds, most_pixels)
    photometric = str(ds.get("PhotometricInterpretation", "")).strip()
    if not 0 <= frame < frames_of(ds):
        raise UnusableError("dicom_contradiction")
    if (photometric in _COLOUR) != (samples == 3) or photometric not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise UnusableError("dicom_unsupported")
    bits, allocated = whole(ds, "BitsStored"), whole(ds, "BitsAllocated")
    if allocated not in (1, 8, 16) or (photometric in _COLOUR and allocated == 1):
        raise UnusableError("unknown_range" if allocated in (32, 64) else "dicom_unsupported")
    if not 1 <= bits <= allocated or whole(ds, "HighBit", bits - 1) != bits - 1:
        raise UnusableError("dicom_contradiction")
    check_codestream(ds, frame, rows, columns)
    values = _decoded(ds, frame)
    if values.shape[:2] != (rows, columns) or values.ndim != (3 if samples == 3 else 2):
        raise UnusableError("dicom_contradiction")
    if photometric in _GREY:
        return _grey(ds, values, grey_of(ds, frame), window)
    if photometric == "PALETTE COLOR":
        return _colour(_with_palette(ds, values), _palette_bits(ds))
    return _colour(values, bits)


def _decoded(ds: Dataset, frame: int) -> np.ndarray:
    """Stored values of a frame, colour in RGB.

    Raises:
        UnusableError: they cannot be decoded.
    """
    syntax = UID(ds.file_meta.get("TransferSyntaxUID", ""))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnusableError("dicom_unsupported") from None
    plugin = PLUGIN if syntax.is_encapsulated else ""
    try:
        values, _ = decoder.as_array(
            ds,
            index=frame,
            decoding_plugin=plugin,
            correct_unused_bits=False,  # type: ignore[arg-type]  # pydicom's annotation is of all options together
        )
    except MemoryError:
        raise UnusableError("too_large") from None
    except Exception as error:
        short = not syntax.is_encapsulated and "less than expected" in str(error)
        raise UnusableError("truncated" if short else "unreadable") from None
    return values


def _grey(ds: Dataset, values: np.ndarray, grey: Grey, window: str) -> Picture:
    whole_numbers = values.astype(np.int64)
    if _overlay_in_pixels(ds):  # older overlays lie in the bits above the picture's
        whole_numbers &= (1 << grey.bits) - 1
        if grey.signed:
            sign = 1 << (grey.bits - 1)
            whole_numbers = (whole_numbers ^ sign) - sign
    places = whole_numbers - grey.lowest
    if places.min() < 0 or places.max() >= 1 << grey.bits:
        raise UnusableError("dicom_contradiction")
    counts = np.bincount(places.ravel(), minlength=1 << grey.bits)
    table, stated = brightness(grey, window, counts)
    # Twelve bits in sixteen, with no word of it. Signed values (CT) say their range by their rescale.
    narrow = grey.bits > 12 and not grey.signed and int(places.max()) < 4096
    return Picture(table[places], stated, narrow)


def _colour(values: np.ndarray, bits: int) -> Picture:
    top = (1 << bits) - 1
    if int(values.max()) > top or int(values.min()) < 0:
        raise UnusableError("dicom_contradiction")
    if bits >= 8:  # the highest eight: what has more is mostly 8 bits moved up, and 255 stays white either way
        pixels = (values >> (bits - 8)).astype(np.uint8)
    else:
        pixels = ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    return Picture(np.ascontiguousarray(pixels), Stated("colour", 0.0, float(top)))


def _with_palette(ds: Dataset, values: np.ndarray) -> np.ndarray:
    for colour in ("Red", "Green", "Blue"):
        descriptor = ds.get(f"{colour}PaletteColorLookupTableDescriptor")
        if descriptor is None:
            raise UnusableError("dicom_unsupported")
        entries = int(descriptor[0]) or _SEGMENTED_LUT
        if not 0 < entries <= _SEGMENTED_LUT:
            raise UnusableError("unreadable")
    return apply_color_lut(values, ds)[..., :3]


def _palette_bits(ds: Dataset) -> int:
    return int(ds.RedPaletteColorLookupTableDescriptor[2])


def _overlay_in_pixels(ds: Dataset) -> bool:
    return any(
        0x6000 <= element.tag.group <= 0x601E and element.tag.element == 0x0102 and int(element.value or 0) > 0
        for element in ds
        if not element.tag.is_private
    )
