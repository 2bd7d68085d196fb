"""Predictions of images without labels, and the forms in which they go to a file or to pandas."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_diffmic.data.cache import content_key
from fed_diffmic.data.decode import decode
from fed_diffmic.errors import UsageError
from fed_diffmic.inference.images import DecodedBatch, Unreadable, decoded_arrays, decoded_files
from fed_diffmic.inference.predictor import NOTICE, Predictor
from fed_diffmic.training.features import CHUNK

if TYPE_CHECKING:
    import pandas as pd

BATCH = CHUNK
"""Images at a time: as many as an evaluation takes, so that both say the same, bit for bit."""
MOST_BATCH = 4096
JOINED = "|"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of ``N`` images.

    Attributes:
        names: of each image: its path, or its position among arrays.
        probabilities: ``(N, C)`` float64, calibrated; rows sum to 1 unless multi-label.
        decided: by the run's rule (``stages.decision``): ``(N,)`` int64, multi-label ``(N, C)`` bool.
        classes: the C names, in the order of the columns.
        task: multiclass, ordinal or multilabel.
        rule: the run's rule.
        unreadable: what could not be read, and so has no row.

    Examples:
        >>> import fed_diffmic as fd
        >>> found = fd.load_model("first").predict("first/phantoms/train_images")
        >>> len(found), found.probabilities.shape, found.unreadable
        (48, (48, 5), ())
        >>> list(found.to_pandas().columns)
        ['image', 'decided', 'p_0', 'p_1', 'p_2', 'p_3', 'p_4']
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    decided: np.ndarray
    classes: tuple[str, ...]
    task: str
    rule: str
    unreadable: tuple[Unreadable, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def decided_names(self) -> list[tuple[str, ...]]:
        """For each image the classes decided: one, or in multi-label any number."""
        if self.task == "multilabel":
            return [tuple(c for c, yes in zip(self.classes, row, strict=True) if yes) for row in self.decided]
        return [(self.classes[int(index)],) for index in self.decided]

    def to_json(self) -> dict[str, Any]:
        """For a JSON file; ``decided`` is a name, in multi-label a list of names."""
        several = self.task == "multilabel"
        return {
            "classes": list(self.classes),
            "task": self.task,
            "decision": self.rule,
            "images": [
                {
                    "image": name,
                    "decided": list(decided) if several else decided[0],
                    "probabilities": dict(zip(self.classes, map(float, row), strict=True)),
                }
                for name, decided, row in zip(self.names, self.decided_names(), self.probabilities, strict=True)
            ],
            "unreadable": [{"image": bad.name, "reason": bad.reason} for bad in self.unreadable],
            "notice": NOTICE,
        }

    def to_csv(self) -> str:
        """``image,decided,unreadable,p_CLASS,...``; classes joined by ``|``; an unreadable image has no numbers."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", "decided", "unreadable", *(f"p_{name}" for name in self.classes)])
        for name, decided, row in zip(self.names, self.decided_names(), self.probabilities, strict=True):
            writer.writerow([name, JOINED.join(decided), "", *map(repr, map(float, row))])
        for bad in self.unreadable:
            writer.writerow([bad.name, "", bad.reason, *[""] * len(self.classes)])
        return stream.getvalue()

    def to_pandas(self) -> pd.DataFrame:
        """One row an image that was read: ``image``, ``decided`` (joined by ``|``) and ``p_CLASS`` for each class."""
        import pandas as pd

        columns: dict[str, Any] = {"image": list(self.names), "decided": [*map(JOINED.join, self.decided_names())]}
        columns |= {f"p_{name}": self.probabilities[:, c] for c, name in enumerate(self.classes)}
        return pd.DataFrame(columns)


def predict_files(predictor: Predictor, files: Sequence[str], batch: int = BATCH) -> Predictions:
    """Predict image files, ``batch`` at a time: memory does not grow with their number.

    With the usual ``batch`` the probabilities are those that an evaluation of the same images in the same order gives,
    bit for bit. Another ``batch``, or an image more or less, changes how the processor orders its sums: from 16 images
    at a time on nothing moved where it was measured; 1, 2 or 7 at a time moved a probability by up to 3e-5.

    Args:
        files: from :func:`fed_diffmic.inference.images.image_files`.
        batch: 1 to :data:`MOST_BATCH`.

    Raises:
        UsageError: ``batch`` is out of range.
    """
    bad: list[Unreadable] = []
    return _predicted(predictor, decoded_files(files, predictor.spec.model.image_side, _checked(batch), bad), bad)


def predict_arrays(predictor: Predictor, images: Sequence[np.ndarray], batch: int = BATCH) -> Predictions:
    """As :func:`predict_files`, of pixels in memory, ``(h, w, 3)`` uint8 each."""
    bad: list[Unreadable] = []
    return _predicted(predictor, decoded_arrays(images, predictor.spec.model.image_side, _checked(batch), bad), bad)


def predict_content(predictor: Predictor, data: bytes, name: str) -> Predictions:
    """One image whose file's content is in memory, by itself: as ``predict_files`` of that one file, bit for bit.

    Args:
        data: of a file.
        name: what it is called in the result.

    Raises:
        BadImageError: it cannot be read.
    """
    pixels = decode(data, predictor.spec.model.image_side)
    keys = np.array([content_key(hashlib.sha256(data).hexdigest())], dtype=np.uint64)
    return _predicted(predictor, [DecodedBatch((name,), pixels[None], keys)], [])


def _checked(batch: int) -> int:
    if not 1 <= batch <= MOST_BATCH:
        raise UsageError(f"batch {batch} is not allowed; allowed: 1 to {MOST_BATCH}")
    return batch


def _predicted(predictor: Predictor, batches: Iterable[DecodedBatch], bad: list[Unreadable]) -> Predictions:
    spec = predictor.spec
    names: list[str] = []
    probabilities = [np.zeros((0, spec.num_classes))]
    several = spec.task == "multilabel"
    decided = [np.zeros((0, spec.num_classes), dtype=bool) if several else np.zeros(0, dtype=np.int64)]
    for batch in batches:
        found, classes = predictor.predict_pixels(batch.pixels, batch.keys)
        names += batch.names
        probabilities.append(found)
        decided.append(classes)
    return Predictions(
        tuple(names),
        np.concatenate(probabilities),
        np.concatenate(decided),
        tuple(spec.classes),
        spec.task,
        spec.stages.decision,
        tuple(bad),
    )
