"""What to predict: files, folders or pixels in memory, decoded a batch at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fed_diffmic.data.cache import content_key
from fed_diffmic.data.decode import REASONS, BadImageError, decode, read_content, stretched
from fed_diffmic.data.dicom.reasons import is_dicom
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.tables import read_table
from fed_diffmic.data.tree import IMAGE_ENDINGS, files_under
from fed_diffmic.errors import UsageError
from fed_diffmic.inputs import check_file


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be used.

    Attributes:
        name: as it was given, or found below a folder that was given. For whoever gave it: never for a log.
        reason: a key of :data:`fed_diffmic.data.decode.REASONS`.
    """

    name: str
    reason: str

    @property
    def words(self) -> str:
        """Why not."""
        return REASONS[self.reason]


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """Images side by side.

    Attributes:
        names: of each.
        pixels: ``(n, 3, H, H)`` uint8.
        keys: ``(n,)`` uint64, from each image's content.
    """

    names: tuple[str, ...]
    pixels: np.ndarray
    keys: np.ndarray


STDIN = "-"
TABLES = (".csv", ".tsv")
DICOM_ENDINGS = (".dcm", ".dicom")
HEAD = 132  # bytes that tell a DICOM file


def image_files(
    given: Sequence[str | Path], names: Iterable[str] = (), said: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Files as given; of a folder every image below it, DICOM files too, by path, in the order of their names; of a
    table its column ``image``, paths relative to it.

    Args:
        given: files, folders, tables, or ``-`` for ``names``.
        names: lines of file names. What of them is not there is found when it is read, not before.
        said: told in a sentence what each folder holds.

    Raises:
        UsageError: nothing was given; one is not there; a folder or table holds no image.
        DataError: a table cannot be read.
        MachineError: a folder or a table may not be read.
    """
    if not given:
        raise UsageError("no image was given", "fed-diffmic predict --run DIR IMAGE [IMAGE ...]")
    files: list[str] = []
    for path in map(Path, given):
        if str(path) == STDIN:
            listed = _of_lines(names)
            if not listed:
                raise UsageError(
                    "- : no name came on standard input", "find DIR -name '*.png' | fed-diffmic predict - ..."
                )
            files += listed
        elif path.suffix.lower() in TABLES and path.is_file():
            files += _of_table(path)
        elif path.is_dir():
            files += _below(path, said)
        else:
            check_file("IMAGE", path)
            files.append(str(path))
    again = len(files) - len(set(files))
    if again:
        said(f"{again} rows are of an image that another row is of: it is predicted again, and counted twice")
    return files


def _of_lines(lines: Iterable[str]) -> list[str]:
    """Names, one a line.

    Raises:
        UsageError: they are separated by NUL, or it is a file's content that came.
    """
    found: list[str] = []
    for line in lines:
        if "\0" in line:
            raise UsageError(
                "- : what came on standard input is not one name a line: it holds NUL bytes",
                "Leave -print0 out; an image itself is not read from there: give its file, "
                "fed-diffmic predict --run DIR FILE.",
            )
        if name := line.rstrip("\r\n"):
            found.append(name)
    return found


def _below(folder: Path, said: Callable[[str], None]) -> list[str]:
    """Images by their ending; DICOM files by theirs, or, with another or none, by what they begin with."""
    found: list[str] = []
    dicom = others = 0
    for path in files_under(str(folder)):
        if path.lower().endswith(IMAGE_ENDINGS):
            found.append(path)
        elif path.lower().endswith(DICOM_ENDINGS) or begins_as_dicom(path):
            found.append(path)
            dicom += 1
        else:
            others += 1
    if not found:
        raise UsageError(
            f"{folder} holds no image: no file below it is DICOM, or ends in {', '.join(IMAGE_ENDINGS)}",
            "Give the folder of the images, or the files themselves, whatever their ending.",
        )
    if dicom or others:
        over = f"; {others} other files passed over" if others else ""
        said(f"{folder}: {len(found)} images, {dicom} of them DICOM{over}")
    return sorted(found)


def begins_as_dicom(path: str) -> bool:
    """Whether a file says that it is DICOM; one that cannot be read says nothing.

    A named pipe that lies among the images is none: to open it would wait for a writer without end.
    """
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as stream:
            return is_dicom(stream.read(HEAD))
    except OSError:  # what cannot be read is passed over, and counted
        return False


def _of_table(path: Path) -> list[str]:
    findings = Findings(None)
    table = read_table(path, findings, required=("image",))
    findings.raise_if_errors()
    files = [str(path.parent / name.replace("\\", "/")) for name in table["image"] if name]
    if not files:
        raise UsageError(f"{path}: its column 'image' is empty", "Write paths relative to the table's folder into it.")
    return files


def decoded_files(files: Sequence[str], side: int, batch: int, bad: list[Unreadable]) -> Iterator[DecodedBatch]:
    """Decode files in order, ``batch`` readable ones at a time; no more than these are held.

    Args:
        side: H, pixels.
        bad: what cannot be read is added here.
    """
    names: list[str] = []
    pixels: list[np.ndarray] = []
    keys: list[int] = []
    for name in files:
        try:
            content = read_content(name)
            pixels.append(decode(content.data, side))
        except BadImageError as error:
            bad.append(Unreadable(name, error.reason))
            continue
        names.append(name)
        keys.append(content_key(content.digest))
        if len(names) == batch:
            yield _batch(names, pixels, keys)
            names, pixels, keys = [], [], []
    if names:
        yield _batch(names, pixels, keys)


def decoded_arrays(
    images: Sequence[np.ndarray], side: int, batch: int, bad: list[Unreadable]
) -> Iterator[DecodedBatch]:
    """As :func:`decoded_files`, of pixels in memory, ``(h, w, 3)`` uint8 each; their names are their positions from 0.

    An image's number comes from its pixels here and from the file's bytes there, so under
    ``model.sampling_start=own`` the sampler starts elsewhere for the same image in a file.
    """
    for start in range(0, len(images), batch):
        names, pixels, keys = [], [], []
        for position in range(start, min(start + batch, len(images))):
            image = np.ascontiguousarray(images[position])
            try:
                pixels.append(stretched(image, side))
            except BadImageError as error:
                bad.append(Unreadable(str(position), error.reason))
                continue
            names.append(str(position))
            digest = hashlib.sha256(f"{image.shape}\0".encode())
            digest.update(image.data)
            keys.append(content_key(digest.hexdigest()))
        if names:
            yield _batch(names, pixels, keys)


def as_arrays(images: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """One image ``(h, w, 3)``, several ``(n, h, w, 3)`` or a list of images of any sizes, as a list.

    Raises:
        UsageError: another shape or type of number; says which.
    """
    several = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else list(images)
    for position, image in enumerate(several):
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UsageError(
                f"image {position} is {what}; an image in memory is uint8 (height, width, 3), red green blue",
                "Scale intensities to 0 to 255; repeat what is grey: np.repeat(grey[..., None], 3, axis=2).",
            )
    return several


def _batch(names: list[str], pixels: list[np.ndarray], keys: list[int]) -> DecodedBatch:
    return DecodedBatch(tuple(names), np.stack(pixels), np.array(keys, dtype=np.uint64))
