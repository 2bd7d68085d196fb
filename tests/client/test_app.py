"""The ClientApp refuses what is not a request, and lets nothing out but what it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client import site as client_site
from client.app import app
from fed_diffmic.config.spec import without_paths
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import Limits, Payload, encode, request_name
from fed_diffmic.files import tensors_digest
from fed_diffmic.training import calibration
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.matrix import AT_SPECIFICITY, METRICS, cell_from, matrix_cell
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.stages import build_module, exchanged, initial_state, load_state
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_of, from_record, task_message
from tests import toy

AMPLE = Limits(1 << 20)
CALIBRATION = Calibration("multiclass", 1.0, 0.5, (0.3, 0.3, 0.4), 6, 1.0).to_json()
KINDS: dict[str, dict[str, Any]] = {
    "train": {"keep": "", "ledger": ""},
    "evaluate": {"prior": [0.3, 0.3, 0.4], "sums": False, "split": "val"},
    "conform": {"round": 0, "calibration": CALIBRATION},
    "assess": {"round": 0, "calibration": CALIBRATION},
}


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)


@pytest.fixture
def source() -> toy.ToySource:
    source = toy.ToySource({"a": toy.toy_site("a", 1)})
    client_site.register_source(source)
    return source


def context(tmp_path: Path, **node: Any) -> Context:
    config = {"site": "a", "site-dir": str(tmp_path / "a"), **node}
    return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})


def send(payload: Payload, kind: str, where: Context) -> Message:
    message = task_message(encode(payload), node=1, message_type=kind, ttl=60.0, group="1")
    set_message_id(message, "1")
    return app(message=message, context=where)


def task(kind: str, made_for: Any = None, attach: bool = True, **changes: Any) -> Payload:
    spec = made_for or toy.toy_spec()
    module, state = build_module(spec, "guidance"), initial_state(spec, "guidance")
    kinds = exchanged(module)
    frozen = {name: value for name, value in state.items() if name not in kinds}
    weights = {name: state[name] for name in kinds}
    header = {
        "spec": without_paths(spec).to_json(),
        "run": spec.run_id,
        "arm": spec.arm,
        "stage": "guidance",
        "round": 1,
        "site": "a",
        "base": tensors_digest(frozen),
        "weights": tensors_digest(weights),
        "state": "",
        "guidance": "",
    }
    header |= KINDS[kind]
    header = {name: value for name, value in {**header, **changes}.items() if value is not ...}
    sent = {f"base/{name}": value for name, value in frozen.items()} if attach else {}
    return Payload(kind, header, {**weights, **sent})


def test_a_site_describes_itself(tmp_path: Path, source: toy.ToySource) -> None:
    spec = toy.toy_spec()
    header = {"spec": spec.to_json(), "run": spec.run_id, "arm": spec.arm, "ledger": ""}
    reply = from_record(send(Payload("query", header), "query", context(tmp_path)).content, AMPLE)
    assert reply.header == {
        "run": "toy",
        "arm": "federated",
        "request": request_name(header),
        "site": "a",
        "images": [12, 6, 6],
        "class_counts": [4, 4, 4],
    }
    assert reply.tensors == {}


def test_training_returns_the_exchanged_tensors_and_nothing_else(tmp_path: Path, source: toy.ToySource) -> None:
    request = task("train")
    reply = from_record(send(request, "train", context(tmp_path)).content, AMPLE)
    assert set(reply.tensors) == {name for name in request.tensors if not name.startswith("base/")}
    assert reply.header["request"] == request_name(request.header)
    assert reply.header["num_examples"] == 12
    assert set(reply.metrics) == {"loss", "steps", "seconds"}


def test_an_evaluation_lets_out_metrics_only(tmp_path: Path, source: toy.ToySource) -> None:
    reply = from_record(send(task("evaluate"), "evaluate", context(tmp_path)).content, AMPLE)
    assert reply.tensors == {}
    assert set(reply.metrics) == {"loss", "num_examples", "auroc_macro", "balanced_accuracy", "accuracy"}
    sums = from_record(send(task("evaluate", sums=True), "evaluate", context(tmp_path)).content, AMPLE)
    assert sum(name.startswith("nll/") for name in sums.metrics) > 20


def test_a_site_judges_a_finished_model_on_its_test_images(tmp_path: Path, source: toy.ToySource) -> None:
    """What leaves is a cell of the matrix, the same that is computed here by hand."""
    reply = from_record(send(task("assess"), "evaluate.assess", context(tmp_path)).content, AMPLE)
    assert reply.kind == "assess.reply" and reply.tensors == {}
    assert {name.partition("/")[0] for name in reply.metrics} == {"test", "points"}
    spec, test = toy.toy_spec(), source.sites["a"].test
    module, fitted = build_module(spec, "guidance"), Calibration.from_json(CALIBRATION)
    load_state(module.network, initial_state(spec, "guidance"))
    probabilities = calibration.probabilities(predict_scores(module, test), fitted)
    decided = calibration.decide(probabilities, fitted, spec.stages.decision)
    scored = Scored(probabilities, decided, test.labels, test.groups, spec.task)
    wanted = matrix_cell(scored, spec.classes, bootstrap=1000, seed=spec.seed, name="a")
    found = cell_from(reply.metrics, spec.classes)
    assert found == {**wanted, "complete": True}
    assert found["n"] == 6 and all(found[name]["low"] is not None for name in (*METRICS, AT_SPECIFICITY))


def test_a_base_is_asked_for_once_and_kept(tmp_path: Path, source: toy.ToySource) -> None:
    where = context(tmp_path)
    assert from_record(send(task("train", attach=False), "train", where).content, AMPLE).kind == "need_base"
    assert from_record(send(task("train"), "train", where).content, AMPLE).kind == "train.reply"
    assert from_record(send(task("evaluate", attach=False), "evaluate", where).content, AMPLE).kind == "evaluate.reply"


def test_the_same_request_gives_the_same_answer_with_and_without_kept_updates(
    tmp_path: Path, source: toy.ToySource
) -> None:
    spec = toy.toy_spec(keep=True)
    kept = context(tmp_path / "kept")
    fresh = context(tmp_path / "fresh", **{"keep-updates": False})
    request = task("train", spec)
    replies = [from_record(send(request, "train", where).content, AMPLE) for where in (kept, kept, fresh, fresh)]
    assert len({tensors_digest(reply.tensors) for reply in replies}) == 1
    assert len({reply.header["state"] for reply in replies}) == 1
    assert replies[0].metrics == replies[1].metrics  # seconds too: it was not computed again
    assert not list((tmp_path / "fresh" / "a" / "updates").iterdir())


BAD: dict[str, tuple[int, Callable[[], Payload]]] = {
    "field missing": (failures.BAD_REQUEST, lambda: task("train", round=...)),
    "field more": (failures.BAD_REQUEST, lambda: task("train", more=1)),
    "wrong type": (failures.BAD_REQUEST, lambda: task("train", round=True)),
    "wrong kind": (failures.BAD_REQUEST, lambda: task("evaluate")),
    "another run": (failures.BAD_REQUEST, lambda: task("train", run="other")),
    "no such stage": (failures.BAD_REQUEST, lambda: task("train", stage="../x")),
    "another site": (failures.BAD_REQUEST, lambda: task("train", site="b")),
    "other weights": (failures.BAD_REQUEST, lambda: task("train", weights="0" * 64)),
    "other base": (failures.BAD_REQUEST, lambda: task("train", base="0" * 64)),
    "path as base": (failures.BAD_REQUEST, lambda: task("train", base="../../../etc/passwd")),
    "unknown state": (failures.NO_STATE, lambda: task("train", state="0" * 64)),
    "path as state": (failures.NO_STATE, lambda: task("train", state="../../x")),
    "spec is no spec": (failures.SETTINGS, lambda: task("train", spec="{}")),
    "other classes": (
        failures.LABELS,
        lambda: task("train", replace(toy.toy_spec(), classes=("benign", "other", "malignant"))),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_good_request_is_refused_with_a_code(tmp_path: Path, source: toy.ToySource, name: str) -> None:
    code, build = BAD[name]
    payload = build()
    assert failure_of(send(payload, "train", context(tmp_path))) == (code, failures.FAILURES[code])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_weights_of_another_model_are_refused(tmp_path: Path, source: toy.ToySource) -> None:
    request = task("train")
    more = {**request.tensors, "extra.weight": np.zeros(2, np.float32)}
    plain = {name: value for name, value in more.items() if not name.startswith("base/")}
    payload = replace(request, tensors=more, header={**request.header, "weights": tensors_digest(plain)})
    assert failure_of(send(payload, "train", context(tmp_path))) == (
        failures.BAD_MODEL,
        failures.FAILURES[failures.BAD_MODEL],
    )


def test_only_the_validation_split_is_evaluated(tmp_path: Path, source: toy.ToySource) -> None:
    for changes in ({"split": "test"}, {"split": "train"}, {"prior": [0.5, 0.5]}, {"prior": [1, 1, 1]}):
        failed = failure_of(send(task("evaluate", **changes), "evaluate", context(tmp_path)))
        assert failed == (failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST])


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": {}},
        {"calibration": {**CALIBRATION, "prior": [0.5, 0.5]}},
        {"calibration": {**CALIBRATION, "task": "multilabel"}},
        {"calibration": [CALIBRATION]},
        {"site": "b"},
        {"split": "train"},
    ],
)
def test_no_other_question_about_test_images_is_answered(
    tmp_path: Path, source: toy.ToySource, changes: dict[str, Any]
) -> None:
    failed = failure_of(send(task("assess", **changes), "evaluate.assess", context(tmp_path)))
    assert failed == (failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST])


def test_a_site_without_test_images_says_nothing_of_them(tmp_path: Path, source: toy.ToySource) -> None:
    data = source.sites["a"]
    source.sites = {"a": replace(data, test=data.test.subset(np.zeros(0, np.int64)))}
    reply = from_record(send(task("assess"), "evaluate.assess", context(tmp_path)).content, AMPLE)
    assert reply.kind == "assess.reply" and reply.metrics == {}


def test_what_is_no_payload_is_refused(tmp_path: Path, source: toy.ToySource) -> None:
    message = task_message(encode(task("train")), node=1, message_type="train", ttl=60.0, group="1")
    message.content = RecordDict({"config": ConfigRecord({"lr": 0.1})})
    failed = failure_of(app(message=message, context=context(tmp_path)))
    assert failed == (failures.BAD_REQUEST, failures.FAILURES[failures.BAD_REQUEST])


def test_diverged_training_has_its_own_code(tmp_path: Path, source: toy.ToySource) -> None:
    spec = toy.toy_spec(lr=100.0, optimizer="sgd", clip_norm=0.0, steps=60)
    request = task("train", spec)
    huge = {n: v * np.float32(1e30) if n == "head.weight" else v for n, v in request.tensors.items()}
    plain = {name: value for name, value in huge.items() if not name.startswith("base/")}
    payload = replace(request, tensors=huge, header={**request.header, "weights": tensors_digest(plain)})
    failed = failure_of(send(payload, "train", context(tmp_path)))
    assert failed == (failures.DIVERGED, failures.FAILURES[failures.DIVERGED])


def test_the_detail_of_a_failure_stays_in_the_sites_log(
    tmp_path: Path, source: toy.ToySource, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source.fail["a"] = OSError(5, "Input/output error", "/data/DOE_JANE_1957.png")
    reply = send(task("train"), "train", context(tmp_path))
    assert failure_of(reply) == (failures.MACHINE, failures.FAILURES[failures.MACHINE])
    assert "DOE" not in str(reply) + caplog.text + "".join(capfd.readouterr())
    (line,) = (tmp_path / "a" / "site.log").read_text().splitlines()
    facts = json.loads(line)
    assert facts["code"] == failures.MACHINE
    assert "DOE_JANE_1957.png" in facts["detail"]


def test_without_a_source_or_a_folder_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_site, "_REGISTERED", client_site._Registered())
    where = context(tmp_path)
    assert failure_of(send(task("train"), "train", where)) is not None
    del where.node_config["site-dir"]
    failed = failure_of(send(task("train"), "train", where))
    assert failed == (failures.SETTINGS, failures.FAILURES[failures.SETTINGS])
