"""A site's own reference for a model, from its own labelled images: prediction sets of its own, and what it has seen.

The model's prediction sets are promised for the images of all its sites together; a site that wants the promise for
images like its own alone makes thresholds from its own (:func:`make_reference`), of images that the model was not
trained on. The same images tell what is usual there, so that an image of another kind is warned of
(:mod:`fed_diffmic.training.familiar`). The file is made at the site and stays there, mode 0600.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fed_diffmic.config.precision import FLOAT32
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import load_tensors, save_tensors
from fed_diffmic.inference.evaluate import TableSettings, read_examples
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.training.familiar import Familiar, familiar, image_features
from fed_diffmic.training.features import CHUNK, chunks
from fed_diffmic.training.few import without_owners
from fed_diffmic.training.precision import casts
from fed_diffmic.training.sureness import Sureness, counts_from, fit, site_counts

FORMAT = 1
OWN = "this site"


@dataclass(frozen=True, eq=False)
class Reference:
    """What a site's own images say of a model.

    Attributes:
        model: digest of the model's weights.
        precision: what the model computed in.
        sureness: sets and test of uncertainty from these images alone.
        familiar: what they look like.
    """

    model: str
    sureness: Sureness
    familiar: Familiar
    precision: str = FLOAT32

    def save(self, path: Path) -> Path:
        """Write it, mode 0600.

        Raises:
            MachineError: no space, no permission.
        """
        facts = {
            "format": FORMAT,
            "model": self.model,
            "precision": self.precision,
            "sureness": self.sureness.to_json(),
            "threshold": self.familiar.threshold,
            "level": self.familiar.level,
            "n": self.familiar.n,
        }
        tensors = {"means": self.familiar.means, "precision": self.familiar.precision}
        return save_tensors(path, tensors, {"reference": json.dumps(facts)}, mode=0o600)


def make_reference(predictor: Predictor, manifest_file: Path, settings: TableSettings) -> Reference:
    """What a table of labelled images that the model was not trained on says of it.

    Args:
        manifest_file: ``image,label[,patient_id,...]``, image paths relative to it, labels by name.
        settings: how it is read.

    Raises:
        DataError: what is wrong with the table; too few images.
        MachineError: no space, no permission.
    """
    spec = predictor.spec
    examples, _ = read_examples(spec, manifest_file, settings)
    pixels = (examples.images(index) for index in chunks(len(examples), CHUNK))
    with casts(predictor.device, predictor.precision):  # as the images that are held against them
        features = np.concatenate([image_features(predictor.module, part, predictor.device) for part in pixels])
    usual = familiar(features, examples.labels, examples.groups, spec.task, spec.seed)
    scores, others = predictor.scores(examples)
    metrics = site_counts(scores, others, examples.labels, examples.groups, predictor.fitted, spec)
    counts = counts_from(without_owners(metrics), spec.task, spec.num_classes)
    if counts is None:
        raise ValueError("a site's own counts must be whole")
    sure = fit({OWN: counts}, [], spec.task, spec.num_classes, guarded=False)
    return Reference(predictor.digest, sure, usual, predictor.precision)


def load_reference(path: Path, predictor: Predictor) -> Reference:
    """A reference that was made for this model, in the precision that it computes in.

    Raises:
        ModelFileError: it is none, is torn, or of another model or precision.
    """
    remedy = "Make it again with `fed-diffmic reference`, from the site's own labelled images."
    try:
        tensors = load_tensors(path)
        with safe_open(path, framework="numpy") as stream:
            facts: dict[str, Any] = json.loads((stream.metadata() or {})["reference"])
        if facts["format"] != FORMAT:
            raise ModelFileError(f"{path} was written by another version", remedy)
        numbers = [facts["threshold"], facts["level"], facts["n"]]
        width = tensors["means"].shape[1]
        if tensors["precision"].shape != (width, width) or not np.isfinite(numbers).all():
            raise ModelFileError(f"{path} is not whole", remedy)
        usual = Familiar(tensors["means"], tensors["precision"], *numbers)
        made_in = str(facts.get("precision", FLOAT32))  # an earlier version wrote down none
        found = Reference(str(facts["model"]), Sureness.from_json(facts["sureness"]), usual, made_in)
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
        raise ModelFileError(f"{path} is not a site's reference ({type(error).__name__})", remedy) from error
    if found.model != predictor.digest:
        raise ModelFileError(f"{path} was made for another model, or another site's part of it", remedy)
    if found.precision != predictor.precision:
        raise ModelFileError(
            f"{path} was made in {found.precision}, and the model is to compute in {predictor.precision}: its "
            "thresholds are not those of these numbers",
            f"Predict with `--precision {found.precision}`, or make the reference again with `fed-diffmic reference "
            f"--precision {predictor.precision}`.",
        )
    return found
