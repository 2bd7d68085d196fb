"""From DICOM files to a table and 16-bit PNG that ``dataset=table`` reads, with identity left at the site.

The table is written last: a torn export has none, and the same command begins it afresh. The PNG hold pixels and
nothing else; the table holds keyed hashes, labels, and facts that are no free text. What was found wrong goes to the
site's own findings file.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from fed_diffmic.config.dicom import DicomConfig
from fed_diffmic.data.dicom.bounded import rendered
from fed_diffmic.data.dicom.burnt_in import lines_of_text
from fed_diffmic.data.dicom.choose import Chooser, Chosen, Seen, look_at
from fed_diffmic.data.dicom.identity import Names, keep
from fed_diffmic.data.dicom.labels import Labels
from fed_diffmic.data.dicom.look import FACTS, NAMED_FACTS, Look
from fed_diffmic.data.dicom.reasons import UnusableError
from fed_diffmic.data.dicom.sources import Item, read_file
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import DataError, UsageError
from fed_diffmic.files import atomic_write, hold, private_folder, write_json

TABLE, SUMMARY, IMAGES = "manifest.csv", "export.json", "images"
COLUMNS = (
    *("image", "label", "patient_id", "institution", "study", "series", "frame", "kind", *FACTS),
    *("window", "window_low", "window_high", "burnt_in", "text_lines"),
)
_NAME = re.compile(r"i-[0-9a-f]{32}\.png|\.i-[0-9a-f]{32}\.png\.\w+\.part")
_BESIDE = re.compile(r"export\.json|\.(export\.json|manifest\.csv)\.\w+\.part")
_CHUNK = 64
_MIB = 2**20
_SHORTEST = 4  # characters of a number that is looked for inside other values

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("looking" or "rendering"), how many are done, of how many."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Place:
    """Where an export goes.

    Attributes:
        out: folder of the table, new or empty.
        private: folder of the site's mapping file.
        institution: the site's name, or nothing.
    """

    out: Path
    private: Path
    institution: str = ""


@dataclass(frozen=True)
class Made:
    """What became of one frame."""

    chosen: Chosen
    row: dict[str, str] | None
    reason: str = ""
    text: bool = False
    narrow: bool = False
    how: str = ""


def export(
    items: Sequence[Item],
    config: DicomConfig,
    labels: Labels | None,
    names: Names,
    place: Place,
    findings: Findings,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Write the table, its images, a summary by counts, and the mapping.

    Returns:
        The summary; no name is in it.

    Raises:
        DataError: nothing is left; says why.
        UsageError: the packages that read DICOM are missing; the folder holds something, or is being written.
        MachineError: no space, no permission.
    """
    with _begun(place.out) as images:
        return _exported(items, config, labels, _Work(config, names, place, images), findings, progress)


def _exported(
    items: Sequence[Item],
    config: DicomConfig,
    labels: Labels | None,
    work: _Work,
    findings: Findings,
    progress: Progress | None,
) -> dict[str, object]:
    """As :func:`export`, into a folder that is its own."""
    names, place = work.names, work.place
    report = progress or (lambda what, done, total: None)
    most = config.max_file_mib * _MIB
    seen = list(_in_chunks(lambda item: look_at(item, most), items, lambda n: report("looking", n, len(items))))
    if any(one.reason == "dicom_not_installed" for one in seen):
        raise UsageError("the packages that read DICOM are not installed", "Run pip install 'fed-diffmic[dicom]'.")
    chooser = Chooser(config, labels, findings)
    chosen = chooser.choose(seen)
    made = list(_in_chunks(work, chosen, lambda n: report("rendering", n, len(chosen))))
    _say_made(made, chooser, config, findings)
    _say_identity([one.chosen.look for one in made if one.row], findings)
    rows = [one.row for one in made if one.row is not None]
    _hide_originals(rows, names, findings)
    if not rows:
        raise DataError(
            "\n".join(["no image is left of this export:", *(f"  {line}" for line in findings.lines())]),
            " ".join(dict.fromkeys(item.remedy for item in findings if item.remedy))
            or "Name the folder that holds the DICOM files; `dicom.kinds` says which kinds are taken.",
        )
    rows.sort(key=lambda row: (row["patient_id"], row["study"], row["series"], row["image"]))
    keep(names, place.private)
    summary = _summary(seen, rows, findings)
    write_json(place.out / SUMMARY, summary, mode=0o600)
    atomic_write(place.out / TABLE, _csv(rows), mode=0o600)
    return summary


def check_free(out: Path) -> None:
    """Refuse a folder that holds anything but what an export left in it that was killed.

    Raises:
        UsageError: says so.
    """
    if not out.exists():
        return
    there = set(out.iterdir()) if out.is_dir() else {out}
    if _is_folder(out / IMAGES):
        there |= set((out / IMAGES).iterdir())
        there -= {out / IMAGES, *_left(out)}
    if there:
        raise UsageError(f"{out} exists and is not an empty folder", "Name a new folder.")


@contextmanager
def _begun(out: Path) -> Iterator[Path]:
    """The folder of images of an export that begins; one that ends early leaves nothing of itself.

    Raises:
        UsageError: the folder holds something, or another export writes into it.
        MachineError: it cannot be made.
    """
    check_free(out)
    made = [folder for folder in (out / IMAGES, out) if not folder.exists()]
    images = private_folder(private_folder(out) / IMAGES)
    with _alone(out):
        check_free(out)  # once more: from here on no other export can fill it
        try:
            _remove(_left(out))
            yield images
        except BaseException:
            _remove(_left(out))
            for folder in made:
                with suppress(OSError):  # somebody has put something into it
                    folder.rmdir()
            raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One export at a time writes into a folder: another would take what it finds for what was left.

    Raises:
        UsageError: one does.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems of a network lock no folder
            hold(
                folder,
                UsageError(
                    f"another export is being written into {out}", "Wait until it has ended, or name a new folder."
                ),
            )
        yield
    finally:
        os.close(folder)


def _left(out: Path) -> list[Path]:
    """The files of an export that has no table: they have names that nobody else gives."""
    if (out / TABLE).exists() or not _is_folder(out / IMAGES):
        return []
    return [
        path
        for folder, names in ((out / IMAGES, _NAME), (out, _BESIDE))
        for path in folder.iterdir()
        if names.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    ]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


class _Work:
    """Renders one frame and writes it."""

    def __init__(self, config: DicomConfig, names: Names, place: Place, images: Path) -> None:
        self.config, self.names, self.place, self.images = config, names, place, images

    def __call__(self, chosen: Chosen) -> Made:
        config = self.config
        try:
            data = read_file(chosen.item.path, config.max_file_mib * _MIB)
            pixels, stated = rendered(
                data,
                frame=chosen.frame,
                window=config.window,
                most_pixels=int(config.max_megapixels * 1e6),
                seconds=config.seconds,
            )
        except UnusableError as error:
            return Made(chosen, None, reason=error.reason)
        lines = lines_of_text(pixels)
        if lines and config.burnt_in == "leave":
            return Made(chosen, None, text=True)
        name = f"{self.names.of('image', chosen.key)}.png"
        atomic_write(self.images / name, png(pixels), mode=0o600)
        look, ids = chosen.look, chosen.look.ids
        study = self.names.of("study", ids["study"])
        row = {
            "image": f"{IMAGES}/{name}",
            "label": chosen.label,
            "patient_id": self.names.of("patient", ids["patient"]) or study or self._kept_with(chosen),
            "institution": self.place.institution,
            "study": study,
            "series": self.names.of("series", ids["series"]),
            "frame": str(chosen.frame),
            "kind": look.kind,
            **look.facts,
            "window": stated["how"],
            "window_low": f"{stated['low']:g}",
            "window_high": f"{stated['high']:g}",
            "burnt_in": look.burnt_in if look.burnt_in in ("yes", "no") else "",
            "text_lines": str(lines),
        }
        return Made(chosen, row, text=lines > 0, narrow=stated["narrow"], how=stated["how"])

    def _kept_with(self, chosen: Chosen) -> str:
        """What an image without a patient and a study is kept with: its series, its clip's other frames, or nothing."""
        series = self.names.of("series", chosen.look.ids["series"])
        return series or (self.names.of("image", chosen.file) if chosen.look.frames > 1 else "")


def png(pixels: np.ndarray) -> bytes:
    """A picture as PNG: 16-bit grey or 8-bit RGB, with no texts in it."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=4)
    return stream.getvalue()


def _say_made(made: Sequence[Made], chooser: Chooser, config: DicomConfig, findings: Findings) -> None:
    for reason in sorted({one.reason for one in made if one.reason}):
        chooser.unusable([one.chosen.item.name for one in made if one.reason == reason], reason)
    said = (
        (
            "burnt-in-seen",
            [one for one in made if one.text],
            "images in which text seems to be burnt in"
            + ("; left out" if config.burnt_in == "leave" else "; taken, and marked in the table"),
            "Look at them; dicom.burnt_in=take takes them, marked in the table.",
        ),
        (
            "narrow-range",
            [one for one in made if one.narrow],
            "images state more than 12 bits and hold no value above 4,095: 12 bits in 16, or a dark picture",
            "With dicom.window=auto or percentile they are not dark; with header check what the archive exports.",
        ),
        (
            "window-of-the-image",
            [one for one in made if one.how == "percentile" and config.window == "auto"],
            "images whose header has no window: brightness by the percentiles of each, so that equal tissue may look "
            "different from image to image",
            "",
        ),
        (
            "window-invalid",
            [one for one in made if one.row and one.chosen.look.window == "invalid"],
            "images whose header holds a window that is none (a width below 1, an unknown function); passed over",
            "",
        ),
        (
            "overlay-left",
            [one for one in made if one.row and one.chosen.look.overlays],
            "images with overlays, which are not drawn into the picture",
            "",
        ),
    )
    for code, found, message, remedy in said:
        if found:
            names = [one.chosen.item.name for one in found]
            findings.add(code, "warning", f"{len(found)} {message}", count=len(found), names=names, remedy=remedy)


def _say_identity(looks: Sequence[Look], findings: Findings) -> None:
    """What of the headers tells who a patient is. None of it is in the table or in the PNG."""
    for code, count, message in (
        ("private-elements", sum(look.private > 0 for look in looks), "images had private elements in their header"),
        ("dates", sum(look.dates > 0 for look in looks), "images had dates in their header"),
        ("names", sum(look.people > 0 for look in looks), "images named people in their header"),
        ("name-in-facts", sum(look.named > 0 for look in looks), "images had a part of a patient's name in a code"),
        (
            "claims-removed",
            sum(look.claims_removed and (look.people > 0 or look.dates > 0) for look in looks),
            "images claim that identity was removed (PatientIdentityRemoved YES), and hold names or dates",
        ),
        (
            "burnt-in-unsaid",
            sum(look.burnt_in not in ("yes", "no") for look in looks),
            "images do not say whether text is burnt in; all were looked at, which does not find everything",
        ),
    ):
        if count:
            text = f"{count} {message}" + ("" if code.startswith("burnt") else "; nothing of it is in the export")
            findings.add(code, "warning", text, count=count)


def _hide_originals(rows: Sequence[dict[str, str]], names: Names, findings: Findings) -> None:
    """Empty the facts that hold a number of a patient, study or image after all, where a device put it."""
    originals = {original.casefold() for _, original in names.given if len(original) >= _SHORTEST}
    hidden = 0
    for row in rows:
        for column in NAMED_FACTS:
            value = row[column].casefold()
            if value and (value in originals or any(word in originals for word in value.split())):
                row[column] = ""
                hidden += 1
    if hidden:
        message = f"{hidden} values in columns of the table were a patient's or a study's number; they are left empty"
        findings.add("identity-in-facts", "warning", message, field=", ".join(NAMED_FACTS), count=hidden)


def _summary(seen: Sequence[Seen], rows: Sequence[dict[str, str]], findings: Findings) -> dict[str, object]:
    def counted(column: str) -> dict[str, int]:
        return dict(sorted(Counter(row[column] or "(not said)" for row in rows).items()))

    return {
        "files": len(seen),
        "images": len(rows),
        "patients": len({row["patient_id"] for row in rows if row["patient_id"]}),
        "studies": len({row["study"] for row in rows if row["study"]}),
        "by": {column: counted(column) for column in ("label", "kind", "modality", "photometric", "window", "spacing")},
        "findings": [{"code": f.code, "field": f.field, "count": f.count, "message": f.message} for f in findings],
    }


def _csv(rows: Sequence[dict[str, str]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _in_chunks(function: Callable[[T], R], items: Sequence[T], done: Callable[[int], None]) -> Iterator[R]:
    """Map in threads, in order; at most a chunk's results wait in memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for start in range(0, len(items), _CHUNK):
            results = list(pool.map(function, items[start : start + _CHUNK]))
            done(start + len(results))
            yield from results
