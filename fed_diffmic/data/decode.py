"""One image file to one square RGB array, or to a reason why not; the content digest of a file.

Images come from hospitals and from the public internet: every byte is treated as hostile. Only
formats with a decoder in process are opened (never EPS, which starts another program), the number of
pixels is bounded before any is decoded, and whatever a decoder raises becomes a reason code.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fed_diffmic.data.dicom import reasons

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
MAX_PIXELS = 89_478_485
"""Most pixels an image may have (Pillow's own limit, about 9,459 squared); more is taken for a bomb."""

DECODE_VERSION = 3
"""Part of the cache key: raised when the same file would give other pixels."""

_ORIENTATION = 0x0112
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag, and its value where 0 is white
_PNG, _PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt")

REASONS = {
    "missing": "there is no such file",
    "not_a_file": "the path is a folder or a special file",
    "permission": "the file may not be read",
    "empty": "the file has no content",
    "unknown_format": "the content is not an image in a known format",
    "truncated": "the image ends before its last row",
    "too_large": f"the image has more than {MAX_PIXELS:,} pixels",
    "unknown_range": "intensities are floating point or 32 bit, so that black and white are not known",
    "unreadable": "the image is damaged",
    **reasons.REASONS,
}
"""Reason codes of images that cannot be used, in words."""


class BadImageError(Exception):
    """An image that cannot be used; ``reason`` is a key of :data:`REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Content:
    """What a file holds: its bytes and their SHA-256 (hex)."""

    data: bytes
    digest: str


def read_content(path: str) -> Content:
    """Read a whole file and name its content.

    Raises:
        BadImageError: the file cannot be read, or is empty.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise BadImageError("not_a_file")
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        raise BadImageError("missing") from None
    except PermissionError:
        raise BadImageError("permission") from None
    except (OSError, ValueError):  # ValueError: a null byte in the path
        raise BadImageError("unreadable") from None
    if not data:
        raise BadImageError("empty")
    return Content(data, hashlib.sha256(data).hexdigest())


def decode(data: bytes, side: int) -> np.ndarray:
    """Decode an image and resize it to a square, antialiased.

    - EXIF orientation is applied. Colour profiles are ignored.
    - Grey and palette images become RGB; CMYK is converted.
    - Transparent pixels are composited on black: what lies under full transparency is undefined, and
      black is the background of every modality read here. An opaque alpha channel changes nothing.
    - 16-bit grey is scaled from its full range, 0 to 65,535: a range taken from the image itself would
      make equal tissue look different from image to image. (12-bit intensities in a 16-bit file come
      out almost black: rescale them when exporting; :mod:`fed_diffmic.data.checks` warns of them.)
    - A TIFF in which 0 is white is turned back, whatever its depth.
    - What stands beside the pixels never makes an image unusable: orientation that cannot be read is none, and texts
      in a PNG are passed over, however long.
    - The whole image is stretched to the square, as the paper's pipelines do; nothing is cut away.
    - Of several frames the first is taken.
    - DICOM is rendered as :mod:`fed_diffmic.data.dicom` does it (docs/dicom.md), in a process of its own.

    Args:
        data: content of the file.
        side: H, pixels.

    Returns:
        (3, H, H) uint8, RGB.

    Raises:
        BadImageError: the content is not an image that can be used.
    """
    if reasons.is_dicom(data):
        pixels = dicom_pixels(data)
        return stretched(pixels, side) if pixels.ndim == 3 else _square_of_grey(pixels, side)
    try:
        return _decode(_without_texts(data), side)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("unknown_format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError("too_large") from None
    except OSError as error:
        raise BadImageError("truncated" if "truncated" in str(error) else "unreadable") from None
    except Exception:  # decoders raise SyntaxError, struct.error, ValueError, MemoryError and more on damaged bytes
        raise BadImageError("unreadable") from None


def dicom_pixels(data: bytes) -> np.ndarray:
    """A DICOM file's picture at its own size: ``(h, w)`` uint16, 0 black, or ``(h, w, 3)`` uint8 RGB.

    Brightness is made in one way everywhere, in training and in use: that of ``dicom.window=auto``.

    Raises:
        BadImageError: it holds none, or none that can be used.
        MachineError: no process can be started to open it.
    """
    from fed_diffmic.data.dicom.bounded import rendered

    try:
        return rendered(data, window="auto", most_pixels=MAX_PIXELS)[0]
    except reasons.UnusableError as error:
        raise BadImageError(error.reason) from None


def stretched(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pixels that are decoded already, resized to a square as :func:`decode` resizes those of a lossless file.

    Args:
        pixels: (h, w, 3) uint8, RGB, upright.
        side: H, pixels.

    Returns:
        (3, H, H) uint8, RGB.

    Raises:
        BadImageError: nothing in it, or more pixels than a file may have.
    """
    if pixels.size == 0:
        raise BadImageError("empty")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise BadImageError("too_large")
    square = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _decode(data: bytes, side: int) -> np.ndarray:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError("too_large")
    whole = None
    if image.format == "JPEG":  # let the decoder shrink very large ones on the way, to no less than twice the target
        drafted = image.draft(None, (2 * side, 2 * side))
        whole = drafted[1] if drafted else None  # a shrunk image ends within its last pixel
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float32)
        if _white_is_zero(image):  # Pillow turns 1 and 8 bits back itself, not 16
            values = np.float32(65535) - values
        square = _square(values, side)
    elif image.mode in ("I", "F"):
        raise BadImageError("unknown_range")
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        square = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=whole)
    square.info.pop("exif", None)  # what was read of it is all that is used
    square.getexif()[_ORIENTATION] = orientation  # after the stretch: on a square it comes to the same
    return np.ascontiguousarray(np.asarray(ImageOps.exif_transpose(square)).transpose(2, 0, 1))


def _square(values: np.ndarray, side: int) -> Image.Image:
    """Grey of 0 to 65,535, ``(h, w)``, as a square of 8-bit RGB."""
    scaled = Image.fromarray(values.astype(np.float32) * np.float32(255 / 65535))
    grey = np.asarray(scaled.resize((side, side), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8)).convert("RGB")


def _square_of_grey(values: np.ndarray, side: int) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(_square(values, side)).transpose(2, 0, 1))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's readers of EXIF raise what they like on damaged bytes
        return 1
    return value if type(value) is int and 1 <= value <= 8 else 1


def _white_is_zero(image: Image.Image) -> bool:
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts, which Pillow refuses to pass over when they are long; anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, start = [data[: len(_PNG)]], len(_PNG)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        if data[start + 4 : start + 8] not in _PNG_TEXTS:
            kept.append(data[start:end])
        start = end
    kept.append(data[start:])
    return b"".join(kept)
