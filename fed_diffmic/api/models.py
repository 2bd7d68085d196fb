"""``fd.load_model``: what a run left, to predict with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import UsageError
from fed_diffmic.inference.finished import final_predictor
from fed_diffmic.inference.images import as_arrays, image_files
from fed_diffmic.inference.predictions import BATCH, Predictions, predict_arrays, predict_files
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.provision.keys import PublicKey, load_public

Images = str | Path | np.ndarray | Sequence[str | Path] | Sequence[np.ndarray]


_WHAT = "Give paths, or arrays uint8 (height, width, 3); of a Pillow image np.array(image.convert('RGB'))."


def _listed(images: Images) -> Any:
    """One path as a list of it; anything else that can be gone through, as it is or as a list.

    Raises:
        UsageError: it cannot be gone through, such as an image of another library.
    """
    if isinstance(images, (str, Path)):
        return [images]
    try:
        return images if isinstance(images, np.ndarray) else list(images)
    except TypeError as error:
        raise UsageError(f"images are {type(images).__name__}", _WHAT) from error


class Model:
    """A finished run's model. For research, not a medical device.

    Args:
        predictor: its last stage with its calibration.

    Examples:
        >>> import fed_diffmic as fd
        >>> model = fd.load_model("first")
        >>> model
        <fed_diffmic model of run first: ordinal, classes 0, 1, 2, 3, 4>
        >>> model.spec.model.image_side
        32
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __repr__(self) -> str:
        spec = self.spec
        return f"<fed_diffmic model of run {spec.run_id}: {spec.task}, classes {', '.join(spec.classes)}>"

    @property
    def spec(self) -> RunSpec:
        """What the run's sites had in common: classes, task, image side, normalisation, every setting of the model."""
        return self._predictor.spec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the probabilities."""
        return tuple(self.spec.classes)

    def predict(self, images: Images, *, batch: int = BATCH) -> Predictions:
        """Calibrated probabilities, and the class that the run's rule decides.

        Memory does not grow with the number of images. What cannot be read has no row: it is in
        ``Predictions.unreadable``, and a :class:`UserWarning` says how many there are. The number of torch threads is
        the run's while it predicts, and yours again after.

        Args:
            images: a file, a folder (every image below it), a list of these; or pixels: uint8 ``(h, w, 3)`` red green
                blue, ``(n, h, w, 3)``, or a list of images of any sizes.
            batch: images at a time; with 16 or more a probability depends on it by no more than rounding.

        Raises:
            UsageError: neither of these; a file that is not there; a folder without images.

        Examples:
            >>> import numpy as np
            >>> import fed_diffmic as fd
            >>> grey = np.full((48, 64, 3), 128, dtype=np.uint8)
            >>> fd.load_model("first").predict([grey, grey[:40]]).probabilities.shape
            (2, 5)
        """
        given = _listed(images)
        threads = torch.get_num_threads()
        try:
            if len(given) and isinstance(given[0], np.ndarray):
                found = predict_arrays(self._predictor, as_arrays(given), batch)
            elif all(isinstance(item, (str, Path)) for item in given):
                found = predict_files(self._predictor, image_files(given), batch)
            else:
                odd = next(item for item in given if not isinstance(item, (str, Path)))
                raise UsageError(f"an image is {type(odd).__name__}", _WHAT)
        finally:
            torch.set_num_threads(threads)
        if found.unreadable:
            warnings.warn(
                f"{len(found.unreadable)} images cannot be read and have no row; Predictions.unreadable names them",
                stacklevel=2,
            )
        return found


def load_model(
    path: str | Path, key: PublicKey | str | Path | None = None, *, site: str | None = None, device: str = "cpu"
) -> Model:
    """The final model of a run's folder, every file checked against its digest and signature.

    Args:
        path: folder of a finished run, of a coordinator's, or the model that a site took over.
        key: the coordinator's public key, or its file: the model must be signed by it. None: by the one that the
            folder is pinned to, if any.
        site: whose own part of the model to use, where the sites kept some (fedbn, ditto).
        device: where to compute: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UsageError: a site must be named, or the run has no such site.
        ModelFileError: the run did not end; files are torn, changed or not signed as they must be.
        CredentialError: the key cannot be read.

    Examples:
        >>> import fed_diffmic as fd
        >>> len(fd.load_model("first").classes)
        5
        >>> fd.load_model("first", key="coordinator.pub")
        Traceback (most recent call last):
        fed_diffmic.errors.CredentialError: ...coordinator.pub...
    """
    public = load_public(Path(key)) if isinstance(key, (str, Path)) else key
    return Model(final_predictor(Path(path), site, public, device))
