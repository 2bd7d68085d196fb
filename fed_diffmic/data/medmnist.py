"""MedMNIST+ (Yang et al. 2023) as a table of images: real data in one command for whoever is online.

The ``.npz`` holds ``{train,val,test}_images`` ``(N, H, W)`` or ``(N, H, W, 3)`` uint8 and ``..._labels`` ``(N, 1)``, or
``(N, C)`` 0/1 for several labels. It names no patients: nothing can keep images of one patient together.
"""

from __future__ import annotations

import csv
import importlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fed_diffmic.data.labels import SEPARATOR
from fed_diffmic.data.manifest import SPLITS
from fed_diffmic.errors import DataError, MachineError, UsageError
from fed_diffmic.files import atomic_write

SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class Kind:
    """What is known of one of its data sets.

    Attributes:
        python_class: its class in the package ``medmnist``.
        task: as ``dataset.task``.
        modality: as ``dataset.modality``.
        classes: names in the order of the label numbers, as the package has them, without commas.
        about: what a user should know before reading metrics.
    """

    python_class: str
    task: str
    modality: str
    classes: tuple[str, ...]
    about: str


KINDS = {
    "dermamnist": Kind(
        "DermaMNIST",
        "multiclass",
        "dermoscopy",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        "HAM10000 without its lesions: images of one lesion lie on both sides of any split, so metrics are optimistic "
        "(CC BY-NC 4.0)",
    ),
    "chestmnist": Kind(
        "ChestMNIST",
        "multilabel",
        "chest",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        "ChestX-ray14 without its patients: only the published split (--published-split) keeps each on one side "
        "(CC BY 4.0)",
    ),
    "retinamnist": Kind(
        "RetinaMNIST",
        "ordinal",
        "fundus",
        ("0", "1", "2", "3", "4"),
        "DeepDRiD's grades of diabetic retinopathy, without its patients (CC BY 4.0)",
    ),
    "breastmnist": Kind(
        "BreastMNIST",
        "multiclass",
        "ultrasound",
        ("malignant", "normal or benign"),
        "breast ultrasound, without its patients (CC BY 4.0)",
    ),
}


def write_medmnist(name: str, out: Path, *, size: int = 64, file: Path | None = None, split: bool = False) -> list[str]:
    """Write a data set as ``out/manifest.csv`` and ``out/images/*.png``; the table last, so a torn one is none.

    Args:
        name: a key of :data:`KINDS`.
        out: folder to write, new or empty.
        size: side in pixels, one of :data:`SIZES`, where the package fetches the file.
        file: the ``.npz``, if it is here already.
        split: keep the published train, validation and test as the table's own.

    Returns:
        The settings that train on it.

    Raises:
        UsageError: the package that fetches it is not installed.
        DataError: the file is not that data set's.
        MachineError: it cannot be fetched, read or written.
    """
    kind = KINDS[name]
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    arrays = _read(file if file is not None else _fetch(kind, size, out), kind)
    (out / "images").mkdir(mode=0o700, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", *(["split"] if split else [])])
    for part in SPLITS:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            relative = f"images/{part}_{number:06d}.png"
            try:
                Image.fromarray(pixels).save(out / relative)
            except OSError as error:
                raise MachineError(
                    f"{out} cannot be written: {error.strerror}", "Make room, or name another."
                ) from None
            words = SEPARATOR.join(kind.classes[i] for i in _indices(label, kind))
            writer.writerow([relative, words, *([part] if split else [])])
    atomic_write(out / "manifest.csv", text.getvalue().encode())
    return [
        "dataset=table",
        f"dataset.root={out}",
        f"dataset.task={kind.task}",
        f"dataset.modality={kind.modality}",
        f"dataset.classes=[{','.join(kind.classes)}]",
    ]


def _indices(label: np.ndarray, kind: Kind) -> list[int]:
    return np.flatnonzero(label).tolist() if kind.task == "multilabel" else [int(label[0])]


def _fetch(kind: Kind, size: int, out: Path) -> Path:
    """Let the package download the file (it compares checksums); where it lies then."""
    try:
        package: Any = importlib.import_module("medmnist")
    except ImportError:
        raise UsageError(
            "fetching MedMNIST needs the package medmnist, which is not installed",
            "Install it with: pip install medmnist (or give --file NPZ).",
        ) from None
    try:
        getattr(package, kind.python_class)(split="train", download=True, size=size, root=str(out))
    except Exception as error:  # the package raises what its own downloader raises
        raise MachineError(
            f"{kind.python_class} cannot be fetched: {type(error).__name__}",
            "Check the network and its proxy, or fetch the .npz elsewhere and give it with --file.",
        ) from error
    return out / f"{kind.python_class.lower()}{'' if size == SIZES[0] else f'_{size}'}.npz"


def _read(path: Path, kind: Kind) -> dict[str, np.ndarray]:
    """The six arrays, checked.

    Raises:
        DataError: says which array does not fit, and why.
        MachineError: the file cannot be read.
    """
    remedy = "Give the .npz of this data set as MedMNIST publishes it."
    try:
        with np.load(path) as stored:  # numpy refuses pickled arrays unless it is told to read them
            names = [f"{part}_{what}" for part in SPLITS for what in ("images", "labels")]
            missing = [name for name in names if name not in stored]
            if missing:
                raise DataError(f"{path.name} holds no {', '.join(missing)}", remedy)
            arrays = {name: np.asarray(stored[name]) for name in names}
    except OSError as error:
        raise MachineError(f"{path.name} cannot be read: {error.strerror or 'not a file of numpy'}", remedy) from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise DataError(f"{path.name} is not a readable .npz file", remedy) from None
    width = len(kind.classes) if kind.task == "multilabel" else 1
    highest = 1 if kind.task == "multilabel" else len(kind.classes) - 1
    for part in SPLITS:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise DataError(f"{path.name}: {part}_images is {images.dtype} {images.shape}, not images", remedy)
        if labels.shape != (len(images), width) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{path.name}: {part}_labels is {labels.dtype} {labels.shape}, expected whole numbers "
                f"({len(images)}, {width})",
                remedy,
            )
        if labels.size and not (labels.min() >= 0 and labels.max() <= highest):
            raise DataError(f"{path.name}: {part}_labels holds numbers outside 0 to {highest}", remedy)
    return arrays
