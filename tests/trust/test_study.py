"""A hostile coordinator changes what a run asks after the site agreed to it; the site answers that alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client import site as client_site
from client.requests import FIELDS
from client.site import Rules
from client.studies import kept_study
from fed_diffmic.config.compose import compose, compose_site
from fed_diffmic.config.policy_study import StudyRules
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines, verify
from fed_diffmic.exchange.masking.session import Session
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.study import Study, contradiction
from fed_diffmic.exchange.study_rules import breaches
from fed_diffmic.files import tensors_digest
from fed_diffmic.transport.messages import failure_of, from_record
from tests import site_rules, studies, toy
from tests.client.enforcing import TYPES, Opened
from tests.client.test_app import AMPLE, context, send, task
from tests.studies import query, study_of

ONE_IMAGE = {"batch_size": 1, "steps": 1, "optimizer": "sgd", "clip_norm": 0.0, "momentum": 0.0, "lr": 0.05}


def one_image() -> RunSpec:
    """The toy run with a single image in each step, which batch norm would not stand."""
    spec = toy.toy_spec(**ONE_IMAGE)
    return replace(spec, model=replace(spec.model, norm="group"))


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """Puts the site ``a`` under rules; returns what counts how often its data were opened."""
    source = Opened({"a": toy.toy_site("a", 1)})

    def under(rules: StudyRules = studies.BY_RULE, **policy: Any) -> tuple[Rules, Opened]:
        found = studies.keeping(tmp_path, rules, **policy)
        client_site.register_source(source, rules=found)
        return found, source

    yield under
    client_site.register_source(source)


def code_of(tmp_path: Path, request: Payload) -> int:
    """Code with which the site refuses a request; 0: it answers."""
    failed = failure_of(send(request, TYPES.get(request.kind, request.kind), context(tmp_path)))
    return 0 if failed is None else failed[0]


def asked(study: Study, kind: str = "train", spec: RunSpec | None = None, **changes: Any) -> Payload:
    return task(kind, spec or toy.toy_spec(), study=study.digest, **changes)


def test_what_was_agreed_to_is_answered_and_both_logs_can_say_what_was_asked(tmp_path: Path, site: Any) -> None:
    site()
    study = study_of()
    assert code_of(tmp_path, query(study)) == 0
    for request in (asked(study), asked(study, "evaluate"), asked(study, "assess")):
        assert code_of(tmp_path, request) == 0
    path = tmp_path / "log" / "a.audit.jsonl"
    assert verify(path, site_rules.KEY.public_key()) == []
    tasks = [line.facts for line in read_lines(path) if line.kind == "task"]
    assert {facts["study"] for facts in tasks} == {study.digest}
    assert tasks[1]["weights"] == asked(study).header["weights"] and tasks[1]["base"] == asked(study).header["base"]
    kept = kept_study(tmp_path / "a", "toy")
    assert kept is not None and kept.document["spec"]["stages"]["guidance"]["batch_size"] == 4
    assert (tmp_path / "a" / "studies" / "toy.study.json").stat().st_mode & 0o077 == 0


CHANGES: dict[str, Callable[[], RunSpec]] = {
    "one image in a step": lambda: one_image(),
    "another number": lambda: toy.toy_spec(lr=0.0101),
    "another seed": lambda: replace(toy.toy_spec(), seed=4),
    "another stage's number": lambda: replace(
        toy.toy_spec(), stages=replace(toy.toy_spec().stages, plain=replace(toy.toy_spec().stages.plain, lr=0.5))
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["train", "evaluate", "assess"])
def test_no_number_changes_between_two_requests_of_a_run(tmp_path: Path, site: Any, name: str, kind: str) -> None:
    _, source = site()
    study, other = study_of(), CHANGES[name]()
    assert code_of(tmp_path, query(study)) == 0
    opened = source.count
    assert code_of(tmp_path, asked(study, kind, other)) == failures.STUDY_CHANGED
    assert code_of(tmp_path, asked(study_of(other), kind, other)) == failures.STUDY_CHANGED
    assert source.count == opened
    assert not list((tmp_path / "a").glob("answers/*"))
    assert code_of(tmp_path, asked(study, kind)) == 0  # the round is not used up


def test_a_run_has_one_study(tmp_path: Path, site: Any) -> None:
    _, source = site()
    study, second = study_of(), study_of(one_image())
    assert code_of(tmp_path, query(study)) == 0
    opened = source.count
    assert code_of(tmp_path, query(second)) == failures.STUDY_CHANGED
    # A document under the first one's name, and the first document beside another spec.
    assert code_of(tmp_path, query(second, study=study.digest)) == failures.STUDY_MISSING
    assert code_of(tmp_path, query(study, spec=one_image())) == failures.STUDY_CHANGED
    assert source.count == opened
    assert code_of(tmp_path, query(study)) == 0
    kept = kept_study(tmp_path / "a", "toy")
    assert kept is not None and kept.text == study.text


def test_a_study_that_may_be_anybodys_is_not_kept(tmp_path: Path, site: Any) -> None:
    _, source = site()
    study = study_of()
    stranger = study_of(key=ec.generate_private_key(ec.SECP256R1()))
    without_space = study.text[:-1] + " }"
    refused = [
        query(study_of(key=None)),
        query(stranger),
        query(study, signature=study_of(toy.toy_spec(lr=0.5)).signature),
        query(study, document=without_space),
        query(study, document=study.text.replace('"format":1', '"format":1,"format":1')),
        query(study, document="{}"),
        query(study, study=...),
        query(study, document=..., signature=...),
        asked(study),
        task("train"),
    ]
    assert {code_of(tmp_path, request) for request in refused} == {failures.STUDY_MISSING}
    assert source.count == 0 and kept_study(tmp_path / "a", "toy") is None


def test_the_study_of_a_run_that_the_policy_does_not_name_is_not_kept(tmp_path: Path, site: Any) -> None:
    site(runs=["other"])
    assert code_of(tmp_path, query(study_of())) == failures.POLICY_RUN
    assert kept_study(tmp_path / "a", "toy") is None


def test_stages_and_test_metrics_are_those_of_the_study(tmp_path: Path, site: Any) -> None:
    site(stages=["guidance", "plain"])
    study = study_of(test=False)
    assert code_of(tmp_path, query(study)) == 0
    assert code_of(tmp_path, asked(study, stage="plain")) == failures.STUDY_CHANGED
    assert code_of(tmp_path, asked(study, "assess")) == failures.STUDY_CHANGED
    assert code_of(tmp_path, asked(study)) == 0


def test_a_masked_sum_over_test_images_is_of_the_last_stage_alone(tmp_path: Path, site: Any) -> None:
    """One for each stage would be several, each of weights that the coordinator likes."""
    spec = toy.toy_spec(strategy=StrategyConfig(secure_aggregation="masked"))
    site(stages=["guidance", "diffusion"])

    def answers(study: Study, stage: str) -> list[int]:
        session = Session("toy", spec.arm, stage, "test", 0, 1, "ab" * 32, 64, 20, 7).text
        step = {"session": session, "step": "advertise", "given": {}}
        named = {n: v for n, v in asked(study, spec=spec, stage=stage, round=0).header.items() if n in FIELDS["mask"]}
        mask = Payload("mask", {**named, **step, "study": study.digest})
        words = asked(study, "assess", spec=spec, stage=stage, masked={"session": session, "sealed": {}})
        return [code_of(tmp_path, request) for request in (mask, words)]

    both = study_of(spec, stages=("guidance", "diffusion"))
    assert code_of(tmp_path, query(both)) == 0
    assert answers(both, "guidance") == [failures.STUDY_CHANGED] * 2
    assert failures.STUDY_CHANGED not in answers(both, "diffusion")
    other = study_of(replace(spec, run_id="other"), stages=("diffusion",), test=False)
    assert [
        contradiction(
            other,
            "mask",
            Payload(
                "mask",
                {
                    "spec": other.spec_text,
                    "stage": "diffusion",
                    "session": Session("other", spec.arm, "diffusion", "test", 0, 1, "ab" * 32, 64, 20, 7).text,
                },
            ),
        )
    ] == ["the study asks for no metrics over test images"]


def test_the_first_weights_and_the_frozen_part_are_those_of_the_study(tmp_path: Path, site: Any) -> None:
    site()
    good = task("train").header
    study = study_of(initial={"guidance": {"base": good["base"], "weights": good["weights"]}})
    assert code_of(tmp_path, query(study)) == 0
    first = asked(study)
    crafted = {**first.tensors, "head.bias": np.ones(3, np.float32)}
    plain = tensors_digest({name: value for name, value in crafted.items() if not name.startswith("base/")})
    assert code_of(tmp_path, replace(first, tensors=crafted, header={**first.header, "weights": plain})) == (
        failures.STUDY_CHANGED
    )
    frozen = {name: value + 1 for name, value in first.tensors.items() if name.startswith("base/")}
    base = tensors_digest({name.removeprefix("base/"): value for name, value in frozen.items()})
    for changed in (asked(study, round=2), asked(study, "evaluate")):
        crafted = replace(changed, tensors={**changed.tensors, **frozen}, header={**changed.header, "base": base})
        assert code_of(tmp_path, crafted) == failures.STUDY_CHANGED
    assert code_of(tmp_path, asked(study)) == 0


def test_weights_that_the_site_holds_already_are_judged_as_those_that_travel(tmp_path: Path, site: Any) -> None:
    """Made weights come with an evaluation, which no first weights bind; then they are named, and the agreed travel."""
    site()
    good = task("train").header
    study = study_of(initial={"guidance": {"base": good["base"], "weights": good["weights"]}})
    assert code_of(tmp_path, query(study)) == 0
    first, extra = asked(study), {"algorithm/x": np.zeros(1, np.float32)}
    sent = {name: value for name, value in first.tensors.items() if not name.startswith("base/")}
    made = {**sent, "head.bias": np.ones(3, np.float32), **extra}
    named = tensors_digest(made)
    judged = asked(study, "evaluate")
    frozen = {name: value for name, value in first.tensors.items() if name.startswith("base/")}
    kept = replace(judged, tensors={**made, **frozen}, header={**judged.header, "weights": named})
    code_of(tmp_path, kept)
    assert list((tmp_path / "a" / "weights").rglob("*"))
    trained = replace(first, tensors={**first.tensors, **extra}, header={**first.header, "weights": named})
    assert code_of(tmp_path, trained) == failures.STUDY_CHANGED


def test_a_person_approves_before_anything_is_done(tmp_path: Path, site: Any) -> None:
    rules, source = site(studies.BY_PERSON)
    study = study_of()
    assert code_of(tmp_path, query(study)) == failures.STUDY_WAITS
    assert code_of(tmp_path, asked(study)) == failures.STUDY_WAITS
    assert source.count == 0 and not list((tmp_path / "a").glob("answers/*"))
    rules.studies.approve("toy", "dr-who")
    assert (code_of(tmp_path, query(study)), code_of(tmp_path, asked(study))) == (0, 0)
    assert code_of(tmp_path, query(study_of(toy.toy_spec(lr=0.5)))) == failures.STUDY_CHANGED
    (line,) = [n.facts for n in read_lines(tmp_path / "log" / "a.audit.jsonl") if n.kind == "approval"]
    assert line == {"run": "toy", "study": study.digest, "how": "person", "by": "dr-who"}


def test_an_approval_of_another_study_or_by_another_key_stops_the_site(tmp_path: Path, site: Any) -> None:
    rules, _ = site(studies.BY_PERSON)
    assert code_of(tmp_path, query(study_of())) == failures.STUDY_WAITS
    rules.studies.approve("toy", "x")
    path = tmp_path / "a" / "studies" / "toy.approval.json"
    whole = json.loads(path.read_text())
    for changed in ({**whole, "study": "0" * 64}, {**whole, "by": "y"}, {"study": study_of().digest}):
        path.write_text(json.dumps(changed))
        assert code_of(tmp_path, asked(study_of())) == failures.MACHINE
    (tmp_path / "a" / "studies" / "toy.study.json").write_text("{")
    assert code_of(tmp_path, asked(study_of())) == failures.MACHINE


@pytest.mark.parametrize("name", ["toy.approval", "toy.study", "toy.approved", "toy.json"])
def test_no_runs_name_makes_its_study_anothers_approval(tmp_path: Path, site: Any, name: str) -> None:
    rules, _ = site(studies.BY_PERSON, runs=["*"])
    assert code_of(tmp_path, query(study_of())) == failures.STUDY_WAITS
    rules.studies.approve("toy", "x")
    other = study_of(replace(toy.toy_spec(), run_id=name))
    assert code_of(tmp_path, query(other)) == failures.STUDY_WAITS
    assert code_of(tmp_path, query(study_of())) == 0
    assert len(list((tmp_path / "a" / "studies").glob("*.json"))) == 3


def test_rules_that_were_tightened_count_from_the_next_request(tmp_path: Path, site: Any) -> None:
    site()
    study = study_of()
    assert code_of(tmp_path, query(study)) == 0
    site(replace(studies.BY_RULE, ranges={"stages.lr": [0.0, 1e-3]}))
    assert code_of(tmp_path, asked(study)) == failures.STUDY_RULES
    rules, _ = site(replace(studies.BY_RULE, ranges={"stages.lr": [0.0, 1e-3]}))
    rules.studies.approve("toy", "x")  # a person may agree to what the rules do not
    assert code_of(tmp_path, asked(study)) == 0


def spec_of(*settings: str) -> RunSpec:
    config = compose(None, ["dataset.classes=[a, b]", "dataset.task=multiclass", *settings])
    return make_spec(config, classes=["a", "b"], task="multiclass", run_id="r", arm="federated", device="cpu")


STANDARD = compose_site(None, ["policy=standard"]).policy.study
VIT = "model.guidance_backbone=vit_tiny_patch16_224"
EXTREME = {
    "a ViT under a preset's name": ["model=tiny", VIT, "model.prior_init=own"],
    "a model that calls itself another": ["model=compact", "model.name=tiny"],
    "a preset with one number changed": ["model=compact", "model.latent=96"],
    "nothing clipped": ["model=tiny", "stages.guidance.clip_norm=0"],
    "steps that show the images": ["model=tiny", "stages.guidance.lr=100"],
    "momentum that never ends": ["model=tiny", "stages.diffusion.momentum=0.999"],
    "pixels scaled out of range": ["model=tiny", "dataset.std=[1e-30, 0.5, 0.5]"],
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREME)
def test_standard_does_not_agree_to_extremes(tmp_path: Path, site: Any, name: str) -> None:
    spec = replace(spec_of(*EXTREME[name]), classes=toy.CLASSES, run_id="toy")
    if name == "a model that calls itself another":
        spec = replace(spec, model=replace(spec_of("model=compact").model, name="tiny"))
    site(STANDARD, stages=["guidance", "diffusion"], max_rounds=100, max_epochs=100.0)
    assert code_of(tmp_path, query(study_of(spec, stages=["guidance", "diffusion"]))) == failures.STUDY_RULES
    assert kept_study(tmp_path / "a", "toy") is not None  # for a person to look at


@pytest.mark.parametrize("preset", ["tiny", "compact", "paper"])
def test_standard_agrees_to_the_presets_with_their_stages(preset: str) -> None:
    assert breaches(spec_of(f"model={preset}"), ["guidance", "diffusion"], STANDARD) == []


def test_the_attack_that_reads_pixels_is_not_agreed_to(tmp_path: Path) -> None:
    settings = [f"stages.guidance.{key}={value}" for key, value in ONE_IMAGE.items()]
    spec = spec_of("model=tiny", VIT, "model.prior_init=own", *settings, "stages.guidance.augment=false")
    found = " ".join(breaches(spec, ["guidance"], STANDARD))
    assert "vit_tiny_patch16_224" in found and "stages.guidance.clip_norm is 0.0" in found


def test_query_answers_hold_what_they_held(tmp_path: Path, site: Any) -> None:
    site()
    reply = from_record(send(query(study_of()), "query", context(tmp_path)).content, AMPLE)
    assert reply.header["images"] == [12, 6, 6] and reply.header["site"] == "a"
