"""Tables and file names of the published layouts, filled with phantoms."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fed_diffmic.data.phantoms import chest, dermoscopy

INSTITUTIONS = ("vidir_molemax", "vidir_modern", "rosendahl", "vienna_dias")
"""The institutions of HAM10000; phantoms of more sites go on as ``institution_5``."""


# Two of the published names hold a comma that is not quoted.
_CHEST_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


@dataclass(frozen=True)
class Phantom:
    """One image to write: its number, group (lesion, eye or patient), place in the group, site and labels.

    ``labels`` are what the table says: a class index, or for chest names of findings.
    """

    number: int
    group: int
    visit: int
    site: int
    labels: int | frozenset[str]


Pixels = Callable[[Phantom], np.ndarray]
"""Draws a phantom: (H, H, 3) uint8."""


def write_ham10000(folder: Path, phantoms: Sequence[Phantom], pixels: Pixels) -> None:
    """``HAM10000_metadata.csv``, ``images/ISIC_*.jpg`` and DiffMIC's kind of split file, by lesion."""
    (folder / "images").mkdir()
    rows, split = [], []
    for p in phantoms:
        name = f"ISIC_{9_000_000 + p.number:07d}"
        _save(folder / "images" / f"{name}.jpg", pixels(p))
        institution = INSTITUTIONS[p.site] if p.site < len(INSTITUTIONS) else f"institution_{p.site + 1}"
        sex, age = ("female", "male")[p.group % 2], 30 + 5 * (p.group % 11)
        dx = dermoscopy.CLASSES[_index(p)]
        rows.append((f"HAM_{9_000_000 + p.group:07d}", name, dx, "phantom", f"{age}.0", sex, "back", institution))
        split.append((name, _index(p), _part(p.group)))
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    _table(folder / "HAM10000_metadata.csv", header, rows)
    _table(folder / "diffmic_split.csv", "image_id,label,split", split)


def write_aptos2019(folder: Path, phantoms: Sequence[Phantom], pixels: Pixels) -> None:
    """``train.csv``, ``train_images/*.png`` named by twelve hexadecimal digits, and a split file."""
    (folder / "train_images").mkdir()
    rows, split = [], []
    for p in phantoms:
        name = hashlib.sha256(f"phantom {p.number}".encode()).hexdigest()[:12]
        _save(folder / "train_images" / f"{name}.png", pixels(p))
        rows.append((name, _index(p)))
        split.append((name, _index(p), _part(p.group)))
    _table(folder / "train.csv", "id_code,diagnosis", rows)
    _table(folder / "diffmic_split.csv", "id_code,label,split", split)


def write_chestxray14(folder: Path, phantoms: Sequence[Phantom], pixels: Pixels) -> None:
    """``Data_Entry_2017_v2020.csv``, grey PNGs over two subfolders (some RGBA, some 16 bit), the official lists."""
    for part in ("images_001", "images_002"):
        (folder / part / "images").mkdir(parents=True)
    rows: list[tuple[object, ...]] = []
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for p in phantoms:
        name = f"{p.group + 1:08d}_{p.visit:03d}.png"
        picture = pixels(p)
        grey = picture[..., 0]
        if p.number % 47 == 11:  # a few as they occur in the published set
            alpha = np.full((*grey.shape, 1), 255, np.uint8)
            picture = np.concatenate([picture, alpha], axis=2)
        elif p.number % 47 == 23:
            picture = grey.astype(np.uint16) * 257
        else:
            picture = grey
        _save(folder / f"images_00{1 + p.number % 2}" / "images" / name, picture)
        names = [label for label in chest.CLASSES if isinstance(p.labels, frozenset) and label in p.labels]
        labels = "|".join(names) or "No Finding"
        age, sex = 30 + p.group % 50, "FM"[p.group % 2]
        rows.append((name, labels, p.visit, p.group + 1, age, sex, "PA", *grey.shape, 0.143, 0.143))
        lists[_part(p.group)].append(name)
    _table(folder / "Data_Entry_2017_v2020.csv", _CHEST_HEADER, rows)
    for file, part in (("train_val_list.txt", "train"), ("test_list.txt", "test")):
        (folder / file).write_text("".join(f"{name}\n" for name in lists[part]), encoding="ascii")


def write_pmg2000(folder: Path, phantoms: Sequence[Phantom], pixels: Pixels) -> None:
    """``pmg2000.csv`` (image, grade) and ``images/*.png``."""
    (folder / "images").mkdir()
    rows = []
    for p in phantoms:
        name = f"images/placenta_{p.number + 1:05d}.png"
        _save(folder / name, pixels(p)[..., 0])
        rows.append((name, _index(p)))
    _table(folder / "pmg2000.csv", "image,label", rows)


LAYOUTS: dict[str, tuple[str, Callable[[Path, Sequence[Phantom], Pixels], None]]] = {
    "dermoscopy": ("ham10000", write_ham10000),
    "fundus": ("aptos2019", write_aptos2019),
    "chest": ("chestxray14", write_chestxray14),
    "ultrasound": ("pmg2000", write_pmg2000),
}
"""Modality -> name of the published layout (``dataset.name``) and what writes it."""


def _index(phantom: Phantom) -> int:
    if not isinstance(phantom.labels, int):
        raise TypeError("this layout holds one class for each image")
    return phantom.labels


def _part(group: int) -> str:
    """The published split: every fifth group is for testing."""
    return "test" if group % 5 == 4 else "train"


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, quality=92)  # PNG takes no notice of it


def _table(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(header + "\n")
        csv.writer(stream, lineterminator="\n").writerows(rows)
