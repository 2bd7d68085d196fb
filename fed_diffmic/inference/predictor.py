"""A trained stage with its calibration, and the final model of a run as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fed_diffmic.algorithms import Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.files import tensors_digest
from fed_diffmic.provision.keys import PublicKey
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.release.personal import part_of_site
from fed_diffmic.training.calibration import Calibration, decide, probabilities
from fed_diffmic.training.evaluation import judged, predict_scores, score_images
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.stages import build_module, exchanged, load_state

NOTICE = "For research, not a medical device."


class Predictor:
    """A trained stage with its calibration.

    Args:
        spec: of the arm.
        stage: ``guidance``, ``diffusion`` or ``plain``.
        state: its full state.
        fitted: its calibration.
        device: where to compute.
        own: what of the state is a site's own.
    """

    def __init__(
        self,
        spec: RunSpec,
        stage: str,
        state: Tensors,
        fitted: Calibration,
        device: str = "cpu",
        own: Tensors | None = None,
    ) -> None:
        self.spec = spec
        self.fitted = fitted
        self.device = device
        self.module = build_module(spec, stage)
        whole = {**state, **(own or {})}
        load_state(self.module.network, whole, f"stage {stage}")
        kinds = exchanged(self.module)
        self.base = tensors_digest({name: value for name, value in whole.items() if name not in kinds})

    def predict(self, examples: Examples) -> Scored:
        """Calibrated probabilities and the decisions of the run's rule (``stages.decision``), ``N >= 1`` examples."""
        key = feature_key(self.spec, self.module.stage, self.base, examples)
        scores = predict_scores(self.module, examples, torch.device(self.device), SHARED, key)
        return judged(scores, examples, self.fitted, self.spec)

    def predict_pixels(self, pixels: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`predict`, for one batch of images that have no labels and lie in no cache.

        Args:
            pixels: ``(n, 3, H, H)`` uint8, ``H`` the model's ``image_side``, ``n >= 1``.
            keys: ``(n,)`` uint64, each image's number from its content.

        Returns:
            Probabilities ``(n, C)`` float64, and what is decided: ``(n,)`` int64, multi-label ``(n, C)`` bool.
        """
        scores = score_images(self.module, torch.from_numpy(pixels), keys, self.device)
        found = probabilities(scores, self.fitted)
        return found, decide(found, self.fitted, self.spec.stages.decision)


def final_predictor(
    run_dir: Path, site: str | None = None, key: PublicKey | None = None, device: str = "cpu"
) -> Predictor:
    """The last stage of a run's final model, verified against its digests.

    Args:
        key: of the coordinator; the model must be signed by it. None: by the one that the folder is pinned to, if any.
        site: whose own part of the model to use, where the sites kept some; none: the global model.
        device: where to compute.

    Raises:
        UsageError: a site must be named, or the run has no such site.
        ModelFileError: the run did not end, or its files are torn or changed.
    """
    return predictor_of(load_final(run_dir, public_key=key), run_dir, site, device)


def predictor_of(final: FinalModel, run_dir: Path, site: str | None = None, device: str = "cpu") -> Predictor:
    """As :func:`final_predictor`, of a final model that was read from ``run_dir`` already."""
    stage = last_stage(final)
    own = part_of_site(Path(run_dir), final, stage, site)
    return Predictor(final.spec, stage, final.states[stage], final.calibration[stage], device, own)


def last_stage(final: FinalModel) -> str:
    """The stage that is the model."""
    return next(stage for stage in ("diffusion", "guidance", "plain") if stage in final.states)
