"""A study in sentences that an ethics board can read: what a run will ask of the site, and what is new in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from fed_diffmic.config.policy_study import StudyRules
from fed_diffmic.config.shared_noise import NAME as SHARES_NOISE
from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.config.text import flattened
from fed_diffmic.exchange.policy_text import headed
from fed_diffmic.exchange.study import Study
from fed_diffmic.exchange.study_rules import BACKBONES, breaches, model_digest, preset_digests

_STAGES = {
    "guidance": "the network that finds salient regions",
    "diffusion": "the classifier itself",
    "plain": "a baseline classifier",
}
_IDENTITY = ("run", "code", "initial")  # differ in every study and say nothing of what is asked


@dataclass(frozen=True)
class Standing:
    """How a study stands at a site, in sentences.

    Attributes:
        rules: of the site.
        status: whether it is approved, and by whom.
        signed: whose signature it bears.
        before: the study that the site approved last, if any.
        approve: how it is approved; empty: a person did.
    """

    rules: StudyRules
    status: str
    signed: str
    before: Study | None = None
    approve: str = ""


def explain_study(study: Study, at: Standing | None = None) -> str:
    """A study as text: headings and sentences, differences, and every value at the end.

    Args:
        at: how it stands at the site that asks; none: the coordinator asks.

    Raises:
        ConfigError: the study's spec lies outside of what is allowed anywhere.
    """
    spec = study.spec()
    parts = [
        ("What it is", [f"Its digest is {study.digest}."]),
        ("What is trained", list(_model(spec))),
        ("How long, and what the site computes", [_stage(spec, stage) for stage in study.stages]),
        ("What is asked besides", list(_besides(study))),
    ]
    if at is not None:
        parts[0][1].extend(sentence for sentence in (at.signed, at.status, at.approve) if sentence)
        outside = breaches(spec, study.stages, at.rules)
        agreed = ["Its model is allowed and every value lies in its range."]
        parts.append(("What the rules in policy.study say of it", outside or agreed))
        parts.append(("What differs from the study approved last", differences(at.before, study)))
    parts.append(("Every value", [f"{key}: {value}" for key, value in sorted(_values(study).items())]))
    return headed(f"Study of the run {study.run}", parts)


def differences(before: Study | None, study: Study) -> list[str]:
    """Where two studies differ, a line for each value."""
    if before is None:
        return ["This site has approved no study of another run."]
    old, new = _values(before), _values(study)
    found = [
        f"{key}: {old.get(key, 'not there')} in {before.run}, {new.get(key, 'not there')} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key.split(".")[0] not in _IDENTITY and key != "spec.run_id"
    ]
    code = before.document["code"].get("version"), study.document["code"].get("version")
    if code[0] != code[1]:
        found.append(f"the coordinator's program: {code[0]} in {before.run}, {code[1]} here")
    return found or [f"Nothing: it asks for the same as {before.run}."]


def _model(spec: RunSpec) -> Iterator[str]:
    digest, model = model_digest(spec.model), spec.model
    same = preset_digests().get(model.name) == digest
    kind = f"exactly the preset `{model.name}`" if same else f"not a preset (it started from `{model.name}`)"
    yield f"The model is {kind}; the digest of its build is {digest}."
    yield f"Its encoders are {', '.join(sorted({getattr(model, name) for name in BACKBONES}))}."
    yield f"It sees images of {model.image_side} pixels a side, and {model.regions} regions of {model.crop}."
    yield f"It tells {len(spec.classes)} classes apart ({spec.task}): {', '.join(spec.classes)}."


def _stage(spec: RunSpec, stage: str) -> str:
    cfg: StageConfig = spec.stage(stage)
    local = f"{cfg.steps} steps" if cfg.steps else f"{cfg.epochs:g} passes over the training images"
    clip = f"gradients are clipped to {cfg.clip_norm:g}" if cfg.clip_norm else "gradients are not clipped"
    image = "image" if cfg.batch_size == 1 else "images"
    alone = " (the update of such a step shows a single image)" if cfg.batch_size == 1 else ""
    return (
        f"Stage {stage} ({_STAGES[stage]}): {cfg.rounds} rounds of {local}, {cfg.batch_size} {image} in a step{alone}, "
        f"by {cfg.optimizer} with learning rate {cfg.lr:g}; {clip}."
    )


def _besides(study: Study) -> Iterator[str]:
    spec = study.spec()
    yield "Once, how many images are in training, validation and test, and how many training images each class has."
    yield "After each round, metrics on the site's validation images; once a stage, sums for its calibration."
    yield "Once, at the end, how many validation images lie in each cell of the last model's scores (prediction sets)."
    if study.document["test"]:
        yield "Once, at the end, metrics of each stage's model on the site's test images."
    else:
        yield "No metrics on the site's test images."
    if spec.strategy.name == SHARES_NOISE:
        yield (
            "What leaves a site in a round is the sum of its drawn units' clipped gradients with its share of noise, "
            "under masks: sites have to share their noise (privacy.mechanism=distributed)."
        )
    elif spec.strategy.secure_aggregation == "masked":
        yield (
            "Updates leave under masks, each clipped at the site to the norm "
            f"{spec.strategy.masked_norm:g}: the coordinator learns their sum and none by itself. So it is of metrics "
            "of validation images, in sums over the same sites in every round."
        )
    else:
        yield "The coordinator sees each site's update by itself (no secure aggregation)."
    yield f"The sites' updates are put together by `{spec.strategy.name}`."
    if spec.strategy.personal:
        kinds = ", ".join(spec.strategy.personal)
        yield (
            f"The site's people may make models of its own of the finished one ({kinds}), on its own images"
            " (`fed-diffmic client model own`). Nobody is told, and nothing of it leaves."
        )
    sites = study.document["sites"]
    yield f"Sites expected: {', '.join(sites)}." if sites else "Sites expected: whoever is there."
    yield f"The coordinator's program is version {study.document['code'].get('version', 'unknown')}."


def _values(study: Study) -> dict[str, str]:
    """Every value of the document that has one number or word, by its dotted key."""
    spec = study.spec()
    trained = {"stages": {stage: asdict(spec.stage(stage)) for stage in study.stages}}
    document = {**study.document, "spec": {**asdict(spec), **trained}}
    return {key: json.dumps(value) for key, value in flattened(document).items()}
