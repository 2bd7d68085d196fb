"""The model of a finished run, or one that a site made for itself, as what predicts."""

from __future__ import annotations

from pathlib import Path

from fed_diffmic.config.precision import FLOAT32
from fed_diffmic.inference.mixed import MixedPredictor
from fed_diffmic.inference.predictor import Predictor, last_stage
from fed_diffmic.provision.keys import PublicKey
from fed_diffmic.release.final import FinalModel, load_final, second_of
from fed_diffmic.release.made_at import MIXTURE, OWN
from fed_diffmic.release.personal import part_of_site


def final_predictor(
    run_dir: Path,
    site: str | None = None,
    key: PublicKey | None = None,
    device: str = "cpu",
    precision: str = FLOAT32,
) -> Predictor:
    """The last stage of a run's final model, verified against its digests.

    Args:
        key: of the coordinator; the model must be signed by it. None: by the one that the folder is pinned to, if any.
        site: whose own part of the model to use, where the sites kept some; none: the global model.
        device: where to compute.
        precision: what to compute in, ``float32`` or ``bfloat16``.

    Raises:
        UsageError: a site must be named, or the run has no such site.
        ModelFileError: the run did not end, or its files are torn or changed.
    """
    return predictor_of(load_final(run_dir, public_key=key), run_dir, site, device, precision)


def predictor_of(
    final: FinalModel, run_dir: Path, site: str | None = None, device: str = "cpu", precision: str = FLOAT32
) -> Predictor:
    """As :func:`final_predictor`, of a final model that was read from ``run_dir`` already.

    Raises:
        ModelFileError: the second model of a mixture is missing, or another one.
    """
    stage = last_stage(final)
    own = part_of_site(Path(run_dir), final, stage, site)
    sure = final.sureness.get(stage)
    found = Predictor(
        final.spec, stage, final.states[stage], final.calibration[stage], device, own, sure, final.signed_by
    )
    found.precision = precision
    if final.made_at is None or final.made_at.kind != MIXTURE:
        return found
    alone = predictor_of(second_of(final.made_at, Path(run_dir)), Path(run_dir) / OWN, None, device, precision)
    return MixedPredictor(alone, found, final.made_at.share, final.signed_by)
