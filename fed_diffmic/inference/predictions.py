"""Predictions of images without labels, and the forms in which they go to a file or to pandas."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fed_diffmic.data.cache import content_key
from fed_diffmic.data.decode import decode
from fed_diffmic.errors import UsageError
from fed_diffmic.inference.images import DecodedBatch, Unreadable, decoded_arrays, decoded_files
from fed_diffmic.inference.predictor import NOTICE, Opinion, Predictor
from fed_diffmic.inference.reference import Reference
from fed_diffmic.inference.sure import Sure, Wanted, sure
from fed_diffmic.training.features import CHUNK

if TYPE_CHECKING:
    import pandas as pd

BATCH = CHUNK
"""Images at a time: as many as an evaluation takes, so that both say the same, bit for bit."""
MOST_BATCH = 4096
JOINED = "|"
Progress = Callable[[int], None]


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
        sure: how sure the model is of each image.

    Examples:
        >>> import fed_diffmic as fd
        >>> found = fd.load_model("first").predict("first/phantoms/train_images")
        >>> len(found), found.probabilities.shape, found.unreadable
        (48, (48, 5), ())
        >>> list(found.to_pandas().columns)[:7]
        ['image', 'decided', 'p_0', 'p_1', 'p_2', 'p_3', 'p_4']
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    decided: np.ndarray
    classes: tuple[str, ...]
    task: str
    rule: str
    unreadable: tuple[Unreadable, ...] = ()
    sure: Sure | None = None

    def __len__(self) -> int:
        return len(self.names)

    def decided_names(self) -> list[tuple[str, ...]]:
        """For each image the classes decided: one, or in multi-label any number."""
        if self.task == "multilabel":
            return [tuple(c for c, yes in zip(self.classes, row, strict=True) if yes) for row in self.decided]
        return [(self.classes[int(index)],) for index in self.decided]

    def to_json(self) -> dict[str, Any]:
        """For a JSON file; ``decided`` is a name, in multi-label a list of names."""
        several, sure = self.task == "multilabel", self.sure
        return {
            "classes": list(self.classes),
            "task": self.task,
            "decision": self.rule,
            **({} if sure is None else sure.facts()),
            "images": [
                {
                    "image": name,
                    "decided": list(decided) if several else decided[0],
                    "probabilities": dict(zip(self.classes, map(float, row), strict=True)),
                    **({} if sure is None else sure.row(place)),
                }
                for place, (name, decided, row) in enumerate(
                    zip(self.names, self.decided_names(), self.probabilities, strict=True)
                )
            ],
            "unreadable": [{"image": bad.name, "reason": bad.reason} for bad in self.unreadable],
            "notice": NOTICE,
        }

    def to_csv(self) -> str:
        """``image,decided,unreadable,p_CLASS,...``, then, as far as they are known, ``set``, ``u_MEASURE``,
        ``referred``, ``unfamiliar``; classes joined by ``|``; an unreadable image has no numbers."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        more = self._more()
        writer.writerow(["image", "decided", "unreadable", *(f"p_{name}" for name in self.classes), *more])
        for place, (name, decided) in enumerate(zip(self.names, self.decided_names(), strict=True)):
            numbers = map(repr, map(float, self.probabilities[place]))
            writer.writerow([name, JOINED.join(decided), "", *numbers, *(column[place] for column in more.values())])
        for bad in self.unreadable:
            writer.writerow([bad.name, "", bad.reason, *[""] * (len(self.classes) + len(more))])
        return stream.getvalue()

    def _more(self) -> dict[str, list[Any]]:
        """Further columns: how sure each prediction is."""
        sure, columns = self.sure, {}
        if sure is None:
            return {}
        if sure.sets is not None:
            columns["set"] = [_one_cell(sure.set_of(place)) for place in range(len(self))]
        columns |= {f"u_{name}": [repr(float(v)) for v in values] for name, values in sure.doubts.items()}
        for name, flags in (("referred", sure.referred), ("unfamiliar", sure.unfamiliar)):
            if flags is not None:
                columns[name] = ["true" if flag else "false" for flag in flags]
        return columns

    def to_pandas(self) -> pd.DataFrame:
        """One row an image that was read: ``image``, ``decided`` (joined by ``|``), ``p_CLASS`` for each class, and the
        further columns of :meth:`to_csv`."""
        import pandas as pd

        columns: dict[str, Any] = {"image": list(self.names), "decided": [*map(JOINED.join, self.decided_names())]}
        columns |= {f"p_{name}": self.probabilities[:, c] for c, name in enumerate(self.classes)}
        more = self._more()
        columns |= {name: values if name == "set" else [_value(v) for v in values] for name, values in more.items()}
        return pd.DataFrame(columns)


def _one_cell(found: list[str] | dict[str, str] | None) -> str:
    if isinstance(found, dict):
        return JOINED.join(f"{name}={said}" for name, said in found.items())
    return JOINED.join(found or [])


def _value(text: str) -> bool | float:
    return text == "true" if text in ("true", "false") else float(text)


def predict_files(
    predictor: Predictor,
    files: Sequence[str],
    batch: int = BATCH,
    *,
    wanted: Wanted | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Predict image files, ``batch`` at a time: memory does not grow with their number but by what is said of each.

    An image's numbers are the same whatever it is predicted with: batches of fewer than
    :data:`fed_diffmic.inference.predictor.LEAST_ROWS` images are filled up, and from there on nothing moved, bit for
    bit, where it was measured. An evaluation of the same images in batches of 16 or more says the same.

    Args:
        files: from :func:`fed_diffmic.inference.images.image_files`.
        batch: 1 to :data:`MOST_BATCH`.
        wanted: beside probabilities; none: the usual.
        reference: of the site; its prediction sets are used in place of the model's, and what is unlike its images is
            told.
        progress: called with the number of images done after each batch.

    Raises:
        UsageError: ``batch`` is out of range; what is wanted, this model cannot say.
    """
    bad: list[Unreadable] = []
    batches = decoded_files(files, predictor.spec.model.image_side, _checked(batch), bad)
    return _predicted(predictor, batches, bad, wanted or Wanted(), reference, progress)


def predict_arrays(
    predictor: Predictor,
    images: Sequence[np.ndarray],
    batch: int = BATCH,
    *,
    wanted: Wanted | None = None,
    reference: Reference | None = None,
) -> Predictions:
    """As :func:`predict_files`, of pixels in memory, ``(h, w, 3)`` uint8 each."""
    bad: list[Unreadable] = []
    batches = decoded_arrays(images, predictor.spec.model.image_side, _checked(batch), bad)
    return _predicted(predictor, batches, bad, wanted or Wanted(), reference, None)


def predict_content(predictor: Predictor, data: bytes, name: str, wanted: Wanted | None = None) -> Predictions:
    """One image whose file's content is in memory, by itself: as ``predict_files`` of that one file, bit for bit.

    Args:
        data: of a file.
        name: what it is called in the result.
        wanted: beside probabilities; none: the usual.

    Raises:
        BadImageError: it cannot be read.
        UsageError: what is wanted, this model cannot say.
    """
    pixels = decode(data, predictor.spec.model.image_side)
    keys = np.array([content_key(hashlib.sha256(data).hexdigest())], dtype=np.uint64)
    return _predicted(predictor, [DecodedBatch((name,), pixels[None], keys)], [], wanted or Wanted(), None, None)


def _checked(batch: int) -> int:
    if not 1 <= batch <= MOST_BATCH:
        raise UsageError(f"batch {batch} is not allowed; allowed: 1 to {MOST_BATCH}")
    return batch


def _predicted(
    predictor: Predictor,
    batches: Iterable[DecodedBatch],
    bad: list[Unreadable],
    wanted: Wanted,
    reference: Reference | None,
    progress: Progress | None,
) -> Predictions:
    spec = predictor.spec
    known = predictor.sureness if reference is None else reference.sureness
    sure((np.zeros((0, spec.num_classes))), {}, spec.classes, spec.task, known, wanted)  # before hours of work
    names: list[str] = []
    said: list[Opinion] = []
    unlike: list[np.ndarray] = []
    for batch in batches:
        found = predictor.predict_pixels(batch.pixels, batch.keys, features=reference is not None)
        if reference is not None and found.features is not None:
            unlike.append(reference.familiar.unfamiliar(found.features))
        names += batch.names
        said.append(replace(found, features=None))
        if progress is not None:
            progress(len(names) + len(bad))
    several = spec.task == "multilabel"
    empty = np.zeros((0, spec.num_classes), dtype=bool) if several else np.zeros(0, dtype=np.int64)
    probabilities = np.concatenate([np.zeros((0, spec.num_classes)), *(one.probabilities for one in said)])
    doubts = {name: np.concatenate([one.doubts[name] for one in said]) for name in (said[0].doubts if said else ())}
    unfamiliar = None if reference is None else np.concatenate([np.zeros(0, dtype=bool), *unlike])
    return Predictions(
        tuple(names),
        probabilities,
        np.concatenate([empty, *(one.decided for one in said)]),
        tuple(spec.classes),
        spec.task,
        spec.stages.decision,
        tuple(bad),
        sure(probabilities, doubts, spec.classes, spec.task, known, wanted, unfamiliar),
    )
