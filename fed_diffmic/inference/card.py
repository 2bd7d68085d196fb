"""The model card of a finished run: what the model is, who stands for it, and what nobody has shown of it."""

from __future__ import annotations

from typing import Any

from fed_diffmic.inference.predictor import NOTICE, last_stage
from fed_diffmic.release.final import FinalModel
from fed_diffmic.reporting.untested import NOT_SHOWN
from fed_diffmic.reporting.view import plain_names
from fed_diffmic.training.calibration import Calibration


def model_card(final: FinalModel, fitted: Calibration | None = None) -> dict[str, Any]:
    """Facts of a final model for whoever uses it, every number from the run's own files.

    Args:
        final: the model.
        fitted: what its probabilities are made with, where that is not its own calibration (a mixture).

    Returns:
        ``run``, ``stage``, ``task``, ``classes``, ``class_names`` (what they are called for people, where that is
        known), ``image_side``, ``signed_by`` (empty: nobody), ``digest``,
        ``strategy``, ``rounds``, ``chosen_round``, ``sites`` (names of those in the stage's last round), ``prior``
        (share of the training images that have each class), ``calibrated_on`` (images), ``validation`` (mean metrics
        of the chosen round), ``not_shown``, ``notice``; ``made_at``, if a site made it for itself (``site``, ``kind``).
    """
    stage, spec = last_stage(final), final.spec
    rows = [row for row in final.history if row["stage"] == stage]
    chosen = int(rows[-1]["best_round"]) if rows else 0
    best = next((row for row in rows if row["round"] == chosen), None)
    fitted = fitted or final.calibration[stage]
    return {
        "run": spec.run_id,
        "stage": stage,
        "task": spec.task,
        "classes": list(spec.classes),
        "class_names": plain_names(spec.classes, spec.plain_names),
        "image_side": spec.model.image_side,
        "signed_by": final.signed_by,
        "digest": final.digests[stage],
        "strategy": spec.strategy.name,
        "rounds": len(rows),
        "chosen_round": chosen,
        "sites": sorted(rows[-1]["sites"]) if rows else [],
        "prior": dict(zip(spec.classes, map(float, fitted.prior), strict=True)),
        "calibrated_on": fitted.n,
        "validation": dict(best["mean"]) if best else {},
        "not_shown": list(NOT_SHOWN),
        "notice": NOTICE,
        **({} if final.made_at is None else {"made_at": final.made_at.to_json()}),
    }
