"""A hostile coordinator: what goes beyond the policy is refused with its code, before work, and written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.app import app
from client.enforce import patients_of_classes
from client.state import EVALUATIONS, SiteStore
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import MachineError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.payload import Payload, encode
from fed_diffmic.files import tensors_digest
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_of, from_record, task_message
from tests import toy
from tests.client.enforcing import SPEC, TYPES, lines, query, ruled, weights
from tests.client.test_app import AMPLE, context, send, task
from tests.site_rules import NO_FLOORS


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """Puts the site ``a`` under rules; returns how to change them."""
    yield from ruled(tmp_path)


# name: (rules of the site, what the coordinator asks, code of the refusal)
BEYOND: dict[str, tuple[dict[str, Any], Callable[[], Payload], int]] = {
    "a run not named": ({"runs": ["other", "to"]}, lambda: task("train"), failures.POLICY_RUN),
    "an arm to ask twice": ({}, lambda: task("train", replace(SPEC, arm="federated2")), failures.POLICY_RUN),
    "a dataset not named": ({"datasets": ["ham10000"]}, lambda: task("train"), failures.POLICY_DATASET),
    "a class not named": ({"classes": ["benign", "malig"]}, lambda: task("train"), failures.POLICY_CLASSES),
    "a stage not named": ({"stages": ["plain"]}, lambda: task("train"), failures.POLICY_STAGE),
    "an algorithm not named": ({"strategies": ["fedprox"]}, query, failures.POLICY_STRATEGY),
    "a package not named": (
        {"strategies": ["*"], "plugins": ["fed-other"]},
        lambda: query(strategy=StrategyConfig(name="halfway")),
        failures.POLICY_PLUGIN,
    ),
    "a codec not named": ({"codecs": ["int8"]}, lambda: task("train"), failures.POLICY_CODEC),
    "tensors not named": ({"tensors": ["head.*"]}, lambda: task("train"), failures.POLICY_TENSORS),
    "more tensors": (
        {"tensors": ["head.*", "norm.*"]},
        lambda: weights(task("train"), pixels=np.zeros((12, 3), np.float32)),
        failures.POLICY_TENSORS,
    ),
    "another type": ({"dtypes": ["float32"]}, lambda: task("train"), failures.POLICY_DTYPES),
    "no update at all": ({"max_update_norm": 0.0}, lambda: task("train"), failures.POLICY_NORM),
    "too many epochs": ({}, lambda: task("train", toy.toy_spec(epochs=4.0)), failures.POLICY_EPOCHS),
    "epochs said as steps": ({}, lambda: task("train", toy.toy_spec(steps=10)), failures.POLICY_EPOCHS),
    "too many steps": ({"max_steps": 2}, lambda: task("train"), failures.POLICY_STEPS),
    "too many rounds": ({}, lambda: task("train", toy.toy_spec(rounds=6)), failures.POLICY_ROUNDS),
    "a round beyond the last": ({}, lambda: task("train", round=3), failures.POLICY_ROUNDS),
    "training in round nought": ({}, lambda: task("train", round=0), failures.POLICY_ROUNDS),
    "a negative round": ({}, lambda: task("evaluate", round=-1), failures.POLICY_ROUNDS),
    "no time": ({"max_seconds": 0.0}, lambda: task("train"), failures.POLICY_SECONDS),
    "no hours": ({"hours": []}, lambda: task("evaluate"), failures.POLICY_HOURS),
    "sums kept back": ({"metrics": ["num_examples", "loss"]}, lambda: task("evaluate", sums=True),
                       failures.POLICY_METRICS),
    "metrics kept back": ({"metrics": []}, lambda: task("evaluate"), failures.POLICY_METRICS),
    "counts kept back": ({"metrics": ["loss"]}, query, failures.POLICY_METRICS),
    "test metrics kept back": ({"metrics": ["num_examples", "loss"]}, lambda: task("assess"), failures.POLICY_METRICS),
    "test images in a later round": ({}, lambda: task("assess", round=1), failures.POLICY_ROUNDS),
    "test images of a stage not named": ({"stages": ["plain"]}, lambda: task("assess"), failures.POLICY_STAGE),
    "a small site": ({"min_count": 13}, lambda: task("train"), failures.POLICY_COUNT),
    "an update as it is": ({"secure_aggregation": "required"}, query, failures.POLICY_MASKING),
    "masks": (
        {"secure_aggregation": "off"},
        lambda: query(strategy=StrategyConfig(secure_aggregation="masked")),
        failures.POLICY_MASKING,
    ),
    "an update as it is in a run that masks": (
        {},
        lambda: task("train", toy.toy_spec(strategy=StrategyConfig(secure_aggregation="masked"))),
        failures.POLICY_MASKING,
    ),
    "no privacy": ({"privacy": "required"}, query, failures.POLICY_PRIVACY),
    "more threads": ({}, lambda: query(threads=200), failures.LIMIT_SIZE),
}  # fmt: skip
NEEDS_DATA = {"epochs said as steps", "too many steps", "a small site"}


@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_the_policy_is_refused_before_any_work(tmp_path: Path, site: Any, name: str) -> None:
    changes, build, code = BEYOND[name]
    _, source = site(**changes)
    request = build()
    failed = failure_of(send(request, TYPES.get(request.kind, request.kind), context(tmp_path)))
    assert failed == (code, failures.FAILURES[code])
    assert source.count == (name in NEEDS_DATA)
    last = lines(tmp_path)[-1]
    assert (last.kind, last.facts["code"], last.facts["task"]) == ("refusal", code, request.kind)
    assert not list((tmp_path / "a").glob("updates/*"))


def test_every_rule_has_a_case_above() -> None:
    codes = {value for name, value in vars(failures).items() if name.startswith("POLICY_")}
    codes.add(failures.LIMIT_SIZE)  # what costs nothing to look at; the rest in tests/exchange/test_limits.py
    assert codes == {code for _, _, code in BEYOND.values()}


def test_the_closed_policy_refuses_everything(tmp_path: Path, site: Any) -> None:
    from fed_diffmic.config.site import PolicyConfig

    _, source = site(**{name: value for name, value in vars(PolicyConfig()).items() if name != "name"})
    for request, kind in ((task("train"), "train"), (task("evaluate"), "evaluate"), (query(), "query"),
                          (Payload("labels", {"run": "toy"}), "query.labels")):  # fmt: skip
        assert failure_of(send(request, kind, context(tmp_path))) is not None
    assert source.count == 0


def test_what_the_policy_allows_is_done(tmp_path: Path, site: Any) -> None:
    site()
    where = context(tmp_path)
    labels = from_record(send(Payload("labels", {"run": "toy"}), "query.labels", where).content, AMPLE)
    assert labels.header["classes"] == list(toy.CLASSES)
    assert from_record(send(query(), "query", where).content, AMPLE).header["images"] == [12, 6, 6]
    assert from_record(send(task("train"), "train", where).content, AMPLE).kind == "train.reply"
    metrics = from_record(send(task("evaluate", sums=True), "evaluate", where).content, AMPLE).metrics
    assert any(name.startswith("nll/") for name in metrics)
    assert [n.kind for n in lines(tmp_path)] == ["opened"] + ["task", "payload"] * 4


def test_flowers_copy_of_the_request_is_dropped_before_the_work(tmp_path: Path, site: Any) -> None:
    site()
    held = task_message(encode(task("train")), node=1, message_type="train", ttl=60.0, group="1")
    set_message_id(held, "1")
    assert set(held.content) == {"payload", "tensors"}
    assert from_record(app(message=held, context=context(tmp_path)).content, AMPLE).kind == "train.reply"
    assert list(held.content) == []


def test_an_update_larger_than_allowed_does_not_leave(tmp_path: Path, site: Any) -> None:
    site(max_update_norm=1e-6)
    failed = failure_of(send(task("train"), "train", context(tmp_path)))
    assert failed == (failures.POLICY_NORM, failures.FAILURES[failures.POLICY_NORM])
    assert "payload" not in [n.kind for n in lines(tmp_path)]


def test_metrics_over_few_images_do_not_leave(tmp_path: Path, site: Any) -> None:
    site(min_count=7, metrics=["images", "class_counts", "num_examples", "loss", "accuracy"])
    where = context(tmp_path)
    header = from_record(send(query(), "query", where).content, AMPLE).header
    assert (header["images"], header["class_counts"]) == ([12, None, None], [None, None, None])
    assert from_record(send(task("evaluate"), "evaluate", where).content, AMPLE).metrics == {}
    assert set(from_record(send(task("train"), "train", where).content, AMPLE).metrics) == {"loss"}


def test_counts_of_classes_of_few_patients_do_not_leave(tmp_path: Path, site: Any) -> None:
    """Four images of each class, each of a patient of its own."""
    for patients, told in ((4, [4, 4, 4]), (5, [None] * 3)):
        site(min_count=1, floors=replace(NO_FLOORS, figure_patients=patients))
        header = from_record(send(query(), "query", context(tmp_path)).content, AMPLE).header
        assert (header["images"][0], header["class_counts"]) == (12, told)
    one = toy.toy_site("a", 1).train
    several = np.eye(3, dtype=np.float32)[one.labels]
    assert patients_of_classes(one, 3) == patients_of_classes(replace(one, labels=several), 3) == (4, 4, 4)
    assert patients_of_classes(replace(one, groups=np.full(len(one), "p")), 3) == (1, 1, 1)


def test_metrics_over_few_test_images_and_small_classes_do_not_leave(tmp_path: Path, site: Any) -> None:
    site(min_count=7)
    where = context(tmp_path)
    assert from_record(send(task("assess"), "evaluate.assess", where).content, AMPLE).metrics == {}
    site(min_count=3)  # six images, two of each class
    metrics = from_record(send(task("assess"), "evaluate.assess", where).content, AMPLE).metrics
    assert metrics["test/n"] == 6 and metrics["test/complete"] == 0
    assert not any(name.startswith("test/positives/") for name in metrics)  # kept back, not 0
    site(min_count=2, metrics=["test/n", "test/auroc_macro"])
    metrics = from_record(send(task("assess"), "evaluate.assess", where).content, AMPLE).metrics
    assert set(metrics) == {"test/n", "test/auroc_macro"}


def test_test_images_are_asked_about_once_in_a_run(tmp_path: Path, site: Any) -> None:
    site()
    where = context(tmp_path)
    first = from_record(send(task("assess"), "evaluate.assess", where).content, AMPLE)
    again = from_record(send(task("assess"), "evaluate.assess", where).content, AMPLE)
    assert first.metrics == again.metrics != {}
    other = {**task("assess").header["calibration"], "scale": 2.0}
    failed = failure_of(send(task("assess", calibration=other), "evaluate.assess", where))
    assert failed == (failures.REPLAY, failures.FAILURES[failures.REPLAY])


def test_a_replayed_round_is_refused_and_the_same_request_answered_again(tmp_path: Path, site: Any) -> None:
    site()
    where = context(tmp_path)
    first = from_record(send(task("train", round=2), "train", where).content, AMPLE)
    again = from_record(send(task("train", round=2), "train", where).content, AMPLE)
    assert again.metrics == first.metrics  # seconds too: kept, not computed
    assert tensors_digest(again.tensors) == tensors_digest(first.tensors)
    other = weights(task("train", round=2), **{"head.bias": np.ones(3, np.float32)})
    for request in (other, task("train", round=1), task("train", toy.toy_spec(lr=0.5), round=2)):
        failed = failure_of(send(request, "train", where))
        assert failed == (failures.REPLAY, failures.FAILURES[failures.REPLAY])
    for path in (tmp_path / "a" / "updates").iterdir():  # purged: computed again, since it is the same
        path.unlink()
    assert tensors_digest(from_record(send(task("train", round=2), "train", where).content, AMPLE).tensors) == (
        tensors_digest(first.tensors)
    )


def test_metrics_of_a_few_models_a_round_and_no_more(tmp_path: Path, site: Any) -> None:
    site()
    where = context(tmp_path)
    requests = [weights(task("evaluate", round=1), **{"head.bias": np.full(3, i, np.float32)}) for i in range(5)]
    codes = [failure_of(send(request, "evaluate", where)) for request in requests]
    assert [code is None for code in codes] == [i < EVALUATIONS for i in range(5)]
    assert failure_of(send(requests[0], "evaluate", where)) is None  # the same as before
    assert failure_of(send(task("evaluate", round=2), "evaluate", where)) is None
    assert failure_of(send(requests[4], "evaluate", where)) is not None  # an earlier round
    assert failure_of(send(task("evaluate", round=0, sums=True), "evaluate", where)) is None  # the calibration


def test_what_was_answered_survives_a_purge_and_a_torn_record_stops_the_site(tmp_path: Path, site: Any) -> None:
    site()
    where = context(tmp_path)
    assert failure_of(send(task("train", round=2), "train", where)) is None
    store = SiteStore(tmp_path / "a")
    store.purge()
    assert failure_of(send(task("train", round=1), "train", where)) is not None
    (answers,) = (tmp_path / "a" / "answers").iterdir()
    answers.write_text("{")
    failed = failure_of(send(task("train", round=2), "train", where))
    assert failed == (failures.MACHINE, failures.FAILURES[failures.MACHINE])


def test_a_task_that_takes_too_long_is_stopped(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site(max_seconds=0.3, max_steps=10**6, max_epochs=1e6)
    request = task("train", toy.toy_spec(steps=200_000))
    started = time.monotonic()
    failed = failure_of(send(request, "train", context(tmp_path)))
    assert failed == (failures.POLICY_SECONDS, failures.FAILURES[failures.POLICY_SECONDS])
    assert time.monotonic() - started < 30.0


def test_work_ends_with_the_hours(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, _ = site(hours=["mon 08:00-09:00"])
    inside, late = datetime(2026, 11, 23, 8, 59, 30), datetime(2026, 11, 23, 9, 0)
    assert rules.policy.time_left(inside) == (pytest.approx(30.0), failures.POLICY_HOURS)
    assert rules.policy.time_left(late)[0] == 0.0
    assert rules.policy.time_left(datetime(2026, 11, 23, 8, 0))[1] == failures.POLICY_SECONDS


def test_a_paused_site_does_not_even_read_the_request(tmp_path: Path, site: Any) -> None:
    def gate(kind: str) -> None:
        raise SiteError(failures.PAUSED)

    _, source = site(gate)
    failed = failure_of(send(task("train"), "train", context(tmp_path)))
    assert (failed, source.count) == ((failures.PAUSED, failures.FAILURES[failures.PAUSED]), 0)
    assert [n.kind for n in lines(tmp_path)] == ["opened", "refusal"]


def test_nothing_leaves_without_its_line(tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, _ = site()
    append = rules.audit.append

    def full(kind: str, **facts: Any) -> Any:
        if kind == "payload":
            raise MachineError("no space left on device")
        return append(kind, **facts)

    monkeypatch.setattr(rules.audit, "append", full)
    reply = send(task("train"), "train", context(tmp_path))
    assert failure_of(reply) == (failures.MACHINE, failures.FAILURES[failures.MACHINE])
    assert not reply.has_content()


RAW: dict[str, Callable[[], Payload]] = {
    "another split": lambda: task("evaluate", split="test"),
    "predictions": lambda: task("evaluate", predictions=True),
    "images": lambda: task("evaluate", images=[0, 1, 2]),
    "no such kind": lambda: Payload("dump", {"run": "toy"}),
    "a path as a site": lambda: task("train", site="../../etc"),
    "a path as a run": lambda: task("train", run="../../etc"),
    "a path as a base": lambda: task("train", base="../../../etc/passwd"),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_data_and_paths_are_not_to_be_had(tmp_path: Path, site: Any, name: str) -> None:
    site()
    request = RAW[name]()
    kind = request.kind if request.kind in ("train", "evaluate") else "evaluate"
    reply = send(request, kind, context(tmp_path))
    assert failure_of(reply) == (failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "log"]
    assert lines(tmp_path)[-1].facts["code"] == failures.BAD_REQUEST
