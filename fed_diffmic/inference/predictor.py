"""A trained stage with its calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.algorithms import Tensors
from fed_diffmic.config.precision import FLOAT32
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.files import tensors_digest
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training.calibration import Calibration, decide
from fed_diffmic.training.evaluation import judged, predict_doubts, predict_scores, score_images
from fed_diffmic.training.familiar import image_features
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.precision import casts
from fed_diffmic.training.stages import build_module, exchanged, full_state, load_state
from fed_diffmic.training.sureness import Sureness, unsure_of

NOTICE = "For research, not a medical device."
LEAST_ROWS = 16
"""Images that are computed together at least: with fewer the processor orders its sums in another way."""


@dataclass(frozen=True, eq=False)
class Opinion:
    """What a model says of a batch of images.

    Attributes:
        probabilities: ``(n, C)`` float64, calibrated.
        decided: by the run's rule: ``(n,)`` int64, multi-label ``(n, C)`` bool.
        doubts: ``(n,)`` of each measure of uncertainty that there is.
        features: ``(n, W)`` of the encoder, where it was asked for.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    doubts: Mapping[str, np.ndarray]
    features: np.ndarray | None = None


class Predictor:
    """A trained stage with its calibration.

    Args:
        spec: of the arm.
        stage: ``guidance``, ``diffusion`` or ``plain``.
        state: its full state.
        fitted: its calibration.
        device: where to compute.
        own: what of the state is a site's own.
        sureness: prediction sets and the test of uncertainty; none: nothing is known.
        signed_by: fingerprint of the key whose signature was verified; empty: nobody's was.

    Attributes:
        precision: what it computes in: float32 as it was judged, unless somebody asks for bfloat16.
    """

    precision: str = FLOAT32

    def __init__(
        self,
        spec: RunSpec,
        stage: str,
        state: Tensors,
        fitted: Calibration,
        device: str = "cpu",
        own: Tensors | None = None,
        sureness: Sureness | None = None,
        signed_by: str = "",
    ) -> None:
        self.signed_by = signed_by
        self.spec = spec
        self.fitted = fitted
        self.device = device
        self.sureness = sureness
        self.module = build_module(spec, stage)
        whole = {**state, **(own or {})}
        load_state(self.module.network, whole, f"stage {stage}")
        kinds = exchanged(self.module)
        self.base = tensors_digest({name: value for name, value in whole.items() if name not in kinds})

    @property
    def digest(self) -> str:
        """Of the whole state, the site's own part included."""
        return tensors_digest(full_state(self.module))

    def predict(self, examples: Examples) -> Scored:
        """Calibrated probabilities and the decisions of the run's rule (``stages.decision``), ``N >= 1`` examples."""
        with casts(self.device, self.precision):
            scores = predict_scores(self.module, examples, torch.device(self.device), SHARED, self._key(examples))
        return judged(scores, examples, self.fitted, self.spec)

    def opinion(self, examples: Examples) -> Opinion:
        """Probabilities, decisions and doubts of examples, whose labels are not looked at."""
        return self._opinion(*self.scores(examples))

    def scores(self, examples: Examples) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What :attr:`fitted` makes probabilities of, and what the model itself says of its doubts."""
        with casts(self.device, self.precision):
            return predict_doubts(self.module, examples, torch.device(self.device), SHARED, self._key(examples))

    def predict_pixels(self, pixels: np.ndarray, keys: np.ndarray, *, features: bool = False) -> Opinion:
        """What is said of one batch of images that have no labels and lie in no cache.

        An image's numbers do not depend on the others: fewer than :data:`LEAST_ROWS` are filled up with the last one.

        Args:
            pixels: ``(n, 3, H, H)`` uint8, ``H`` the model's ``image_side``, ``n >= 1``.
            keys: ``(n,)`` uint64, each image's number from its content.
            features: also the encoder's features.
        """
        n, rows = len(pixels), np.minimum(np.arange(max(len(pixels), LEAST_ROWS)), len(pixels) - 1)
        images = torch.from_numpy(pixels[rows])
        with casts(self.device, self.precision):
            scores, others = score_images(self.module, images, keys[rows], self.device)
            encoded = image_features(self.module, images, self.device)[:n] if features else None
        return self._opinion(scores[:n], {name: value[:n] for name, value in others.items()}, encoded)

    def _key(self, examples: Examples) -> tuple[str, ...]:
        return (*feature_key(self.spec, self.module.stage, self.base, examples), self.precision)

    def _opinion(
        self, scores: np.ndarray, others: Mapping[str, np.ndarray], features: np.ndarray | None = None
    ) -> Opinion:
        found, doubts = unsure_of(scores, others, self.fitted)
        return Opinion(found, decide(found, self.fitted, self.spec.stages.decision), doubts, features)


def last_stage(final: FinalModel) -> str:
    """The stage that is the model."""
    return next(stage for stage in ("diffusion", "guidance", "plain") if stage in final.states)
