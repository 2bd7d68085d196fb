"""The model card of a finished run: what the model is, who stands for it, and what nobody has shown of it."""

from __future__ import annotations

from typing import Any

from fed_diffmic.inference.predictor import NOTICE, last_stage
from fed_diffmic.release.final import FinalModel

NOT_SHOWN = (
    "whether it helps anybody's care: it was never tried in one",
    "how it does on images of another scanner, hospital, country or year than those it was trained and tested on",
    "how it does on images that show none of its classes: it always names one of them"
    " (of several labels: says something of each)",
)


def model_card(final: FinalModel) -> dict[str, Any]:
    """Facts of a final model for whoever uses it, every number from the run's own files.

    Returns:
        ``run``, ``stage``, ``task``, ``classes``, ``image_side``, ``signed_by`` (empty: nobody), ``digest``,
        ``strategy``, ``rounds``, ``chosen_round``, ``sites`` (names of those in the stage's last round), ``prior``
        (share of the training images that have each class), ``calibrated_on`` (images), ``validation`` (mean metrics
        of the chosen round), ``not_shown``, ``notice``.
    """
    stage, spec = last_stage(final), final.spec
    rows = [row for row in final.history if row["stage"] == stage]
    chosen = int(rows[-1]["best_round"]) if rows else 0
    best = next((row for row in rows if row["round"] == chosen), None)
    fitted = final.calibration[stage]
    return {
        "run": spec.run_id,
        "stage": stage,
        "task": spec.task,
        "classes": list(spec.classes),
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
    }
