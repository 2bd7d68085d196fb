"""What an image file decodes to, as a digest: the same picture in another encoding has the same one.

It is taken of the whole picture, upright, in 8-bit RGB (16-bit grey stays as it is), so that it depends neither on the
side that a run asks for nor on how a file was compressed without loss. A lossy copy (JPEG again, another size) has
another digest; :func:`difference_hash` is alike for those, and is only ever reported.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from fed_diffmic.data.decode import FORMATS, MAX_PIXELS, BadImageError, dicom_pixels, read_content
from fed_diffmic.data.dicom.reasons import is_dicom
from fed_diffmic.errors import MachineError
from fed_diffmic.files import private_folder, write_json

MEMO = "pixels.json"
_VERSION = "1"
_THREADS = 2  # a picture is decoded whole: few at a time, for the memory

logger = logging.getLogger(__name__)


def pixel_digest(data: bytes) -> str:
    """SHA-256 (hex) of what a file's content decodes to; empty where it cannot be decoded."""
    if is_dicom(data):
        try:
            return _digest(dicom_pixels(data))  # the same as of the PNG that `data from-dicom` writes
        except BadImageError:
            return ""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            return ""
        image.load()
        image = ImageOps.exif_transpose(image) or image
        if not image.mode.startswith("I"):
            if image.has_transparency_data:  # as for training: on black
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
            image = image.convert("RGB")
        pixels = np.ascontiguousarray(np.asarray(image))
    except Exception:  # decoders raise anything on damaged bytes; such an image is not trained on
        return ""
    return _digest(pixels)


def _digest(pixels: np.ndarray) -> str:
    named = f"{_VERSION} {pixels.dtype.kind} {pixels.shape}\0".encode()
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        pixels = pixels.astype("<u2")
    return hashlib.sha256(named + pixels.tobytes()).hexdigest()


def pixel_digests(paths: Sequence[str], contents: Sequence[str], folder: Path) -> list[str]:
    """The digest of each file, computed once for each content.

    Args:
        paths: image files.
        contents: SHA-256 (hex) of each file's content.
        folder: where the site allows what derives from its images; what was computed is kept there (0600).

    Returns:
        One for each path; that of the content itself where nothing can be decoded or the file changed meanwhile.

    Raises:
        MachineError: no space or no permission.
    """
    memo = private_folder(folder) / MEMO
    known = _read(memo)
    where = {content: path for path, content in zip(paths, contents, strict=True) if content not in known}
    if where:
        logger.info("reading the pixels of %d images, once", len(where))
        with ThreadPoolExecutor(_THREADS) as pool:
            known |= dict(zip(where, pool.map(_of_file, where.values(), where), strict=True))
        try:
            write_json(memo, {"version": _VERSION, "pixels": known}, mode=0o600)
        except OSError as error:
            raise MachineError(f"the digests of the images cannot be kept: {error.strerror}", "Free space.") from error
    return [known[content] or content for content in contents]


def _of_file(path: str, content: str) -> str:
    try:
        found = read_content(path)
    except BadImageError:
        return ""
    return pixel_digest(found.data) if found.digest == content else ""


def _read(memo: Path) -> dict[str, str]:
    """What was computed before; nothing where it cannot be read or is of another version."""
    try:
        value = json.loads(memo.read_bytes())
        return dict(value["pixels"]) if value["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def difference_hash(images: torch.Tensor) -> np.ndarray:
    """``(n,)`` uint64: whether each of 8 x 8 places of the shrunk grey image is brighter than the next (dHash).

    Args:
        images: ``(n, 3, H, H)`` uint8.
    """
    grey = images.to(torch.float32).mean(dim=1, keepdim=True)
    small = torch.nn.functional.interpolate(grey, size=(8, 9), mode="area").squeeze(1)
    bits = (small[:, :, 1:] > small[:, :, :-1]).flatten(1).numpy()
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


def alike(hashes: np.ndarray, most: int = 2, chunk: int = 512) -> np.ndarray:
    """``(m, 2)`` positions of pairs whose hashes differ in at most ``most`` of 64 bits."""
    found = []
    for start in range(0, len(hashes), chunk):
        apart = np.bitwise_count(hashes[start : start + chunk, None] ^ hashes[None, :])
        first, second = np.nonzero(apart <= most)
        keep = first + start < second
        found.append(np.stack([first[keep] + start, second[keep]], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
