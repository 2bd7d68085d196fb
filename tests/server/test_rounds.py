"""The federation over real messages in process: results, quorum, refusals, deadlines, what leaves a site."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client import tasks
from fed_diffmic.algorithms.base import SiteUpdate, weighted_average
from fed_diffmic.errors import ModelFileError, RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import save_tensors, tensors_digest
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.training import calibration
from fed_diffmic.training.evaluation import predict_scores
from fed_diffmic.training.local import local_update
from fed_diffmic.training.matrix import cell_from, matrix_cell
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.stages import build_module, exchanged, full_state, initial_state, load_state
from server import rounds
from server.checkpoints import CheckpointStore
from server.replies import Outcome
from server.rounds import run_federation
from server.run_state import RunState
from server.selection import selection_score, weighted_mean
from server.sites import ASSESS, Sites
from server.stage import moving_average
from simulations.grid import InProcessGrid
from tests import site_rules, toy

ALL_BUT_TEST = ("num_examples", "images", "class_counts", "loss", "steps", "seconds", "auroc_macro", "nll/*")


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def federate(folder: Path, grid: InProcessGrid, spec: Any = None, events: Any = None, **settings: Any) -> FinalModel:
    given = {"stages": ["guidance"], "sites": ["a", "b"], "poll_s": 0.001, "join_s": 5.0, **settings}
    return run_federation(grid, spec or toy.toy_spec(), CheckpointStore(folder), events or toy.Events([]), **given)


def test_the_federation_equals_the_same_rounds_by_hand(tmp_path: Path) -> None:
    spec = toy.toy_spec(ema=0.0)
    grid, source = toy.toy_grid(tmp_path)
    final = federate(tmp_path, grid, spec)

    module = build_module(spec, "guidance")
    state, kinds = initial_state(spec, "guidance"), exchanged(build_module(spec, "guidance"))
    figures = []
    candidates = []
    for index in (1, 2):
        updates = []
        for name in ("b", "a"):
            load_state(module.network, state)
            result = local_update(
                module, source.sites[name].train, tasks.site_algorithm(spec, "guidance"), site=name, round_index=index
            )
            updates.append(SiteUpdate(name, result.tensors, result.num_examples))
        state = state | weighted_average(updates, kinds, {"a": 0.5, "b": 0.5})
        candidates.append(state)
        figures.append(final.history[index - 1]["mean"]["auroc_macro"])
    best = candidates[int(np.argmax(figures))]
    assert tensors_digest(final.states["guidance"]) == tensors_digest(best)
    assert final.history[-1]["best_round"] == 1 + int(np.argmax(figures))


def test_bytes_count_tensors_both_ways_and_the_base_once(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    spec = toy.toy_spec()
    final = federate(tmp_path, grid, spec)
    state = initial_state(spec, "guidance")
    kinds = exchanged(build_module(spec, "guidance"))
    exchanged_bytes = sum(state[name].nbytes for name in kinds)
    base_bytes = sum(value.nbytes for name, value in state.items() if name not in kinds)
    assert base_bytes > 0
    train, evaluate = 2 * exchanged_bytes, exchanged_bytes
    assert [row["bytes_sent"] for row in final.history] == [2 * (train + evaluate + base_bytes), 2 * (train + evaluate)]
    # and two more with the result, to calibrate and for prediction sets
    assert final.bytes_sent == 2 * (2 * (train + evaluate) + base_bytes + 2 * evaluate)


def test_a_site_that_lost_its_base_is_sent_it_again(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    whole = federate(tmp_path / "whole", grid)
    grid, _ = toy.toy_grid(tmp_path / "again")

    class Forgetful(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            for file in (tmp_path / "again" / "sites" / "a" / "bases").glob("*"):
                file.unlink()
            return super().push_messages(messages)

    grid.__class__ = Forgetful
    final = federate(tmp_path / "run", grid)
    assert final.digests == whole.digests
    assert final.bytes_sent > whole.bytes_sent


def test_average_and_best_round_are_what_the_history_says(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    final = federate(tmp_path, grid, toy.toy_spec(ema=0.5, rounds=4))
    scores = [row["mean"]["auroc_macro"] for row in final.history]
    assert final.history[-1]["best_round"] == 1 + int(np.argmax(scores))
    by_loss_grid, _ = toy.toy_grid(tmp_path / "loss")
    by_loss = federate(tmp_path / "loss", by_loss_grid, toy.toy_spec(ema=0.5, rounds=4, select="loss"))
    losses = [row["mean"]["loss"] for row in by_loss.history]
    assert by_loss.history[-1]["best_round"] == 1 + int(np.argmin(losses))


def test_moving_average() -> None:
    first = {"w": np.array([1.0], np.float32), "n": np.array(1)}
    second = {"w": np.array([3.0], np.float32), "n": np.array(2)}
    assert moving_average({}, first, 0.0) == {}
    average = moving_average(moving_average({}, first, 0.75), second, 0.75)
    np.testing.assert_allclose(average["w"], [1.5])
    assert average["w"].dtype == np.float32
    assert average["n"] == 2


def test_selection_prefers_defined_figures_and_weights_by_images() -> None:
    figures = {
        "a": {"num_examples": 30.0, "auroc_macro": 0.9, "loss": 1.0},
        "b": {"num_examples": 10.0, "auroc_macro": 0.5, "loss": 2.0},
        "c": {"num_examples": 60.0, "loss": 3.0},
        "d": {"num_examples": 0.0},
    }
    assert weighted_mean(figures, "auroc_macro") == pytest.approx(0.8)
    assert selection_score(figures, "auroc_macro") == [2.0, pytest.approx(0.8)]
    undefined = selection_score({"c": figures["c"]}, "auroc_macro")
    assert undefined == [1.0, -3.0]
    assert selection_score({"c": figures["c"]}, "loss") == [2.0, -3.0]
    assert undefined < selection_score(figures, "auroc_macro")
    assert selection_score({"d": figures["d"]}, "loss") == [0.0, 0.0] < undefined


def test_the_calibration_equals_one_fitted_on_the_union(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path)
    spec = toy.toy_spec(lr=0.2, rounds=3)
    final = federate(tmp_path, grid, spec)
    module = build_module(spec, "guidance")
    load_state(module.network, final.states["guidance"])
    scores = np.concatenate([predict_scores(module, source.sites[name].val) for name in ("a", "b")])
    labels = np.concatenate([source.sites[name].val.labels for name in ("a", "b")])
    prior = calibration.class_prior(np.array([8, 8, 8]), 24, "multiclass")
    wanted = calibration.choose(calibration.nll_sums(scores, labels, prior, "multiclass"), 12, prior, "multiclass")
    assert final.calibration["guidance"] == wanted


def test_the_matrix_holds_what_the_sites_let_out(tmp_path: Path) -> None:
    given = {"a": site_rules.rules(tmp_path, "a"), "b": site_rules.rules(tmp_path, "b", metrics=list(ALL_BUT_TEST))}
    grid, source = site_rules.ruled_grid(tmp_path, given)
    events, spec = toy.Events([]), toy.toy_spec(lr=0.2, rounds=3)
    final = federate(tmp_path, grid, spec, events, test_s=60.0)
    module, fitted, test = build_module(spec, "guidance"), final.calibration["guidance"], source.sites["a"].test
    load_state(module.network, final.states["guidance"])
    probabilities = calibration.probabilities(predict_scores(module, test), fitted)
    decided = calibration.decide(probabilities, fitted, spec.stages.decision)
    scored = Scored(probabilities, decided, test.labels, test.groups, spec.task)
    cell = matrix_cell(
        scored, spec.classes, bootstrap=1000, seed=spec.seed, name="a", sureness=final.sureness["guidance"]
    )
    assert cell["coverage"]["lac"]["level"] == 0.9
    assert final.matrix == {"guidance": {"a": {**cell, "complete": True}, "b": cell_from({}, spec.classes)}}
    (assessed,) = events.of("assessed")
    assert assessed["sites"] == ["a"] and assessed["missing"] == {"b": failures.FAILURES[failures.POLICY_METRICS]}
    assert load_final(tmp_path).matrix == final.matrix


def test_nobody_is_asked_for_test_images_in_a_simulation(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    events = toy.Events([])
    assert federate(tmp_path, grid, events=events).matrix == {}
    assert events.of("assessed") == []


def test_a_site_that_is_gone_at_the_end_costs_its_cell_and_no_more(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)

    class Leaves(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = [m for m in messages if not (m.metadata.message_type == ASSESS and m.metadata.dst_node_id == leaver)]
            return super().push_messages(sent)

    grid.__class__, leaver = Leaves, sorted(grid.get_node_ids())[1]
    events = toy.Events([])
    final = federate(tmp_path, grid, events=events, stages=["guidance", "plain"], test_s=60.0)
    assert list(final.matrix) == ["plain", "guidance"]  # the model first
    for row in final.matrix.values():
        assert sorted(cell["n"] for cell in row.values()) == [0, 6]
    first, second = (event["missing"] for event in events.of("assessed"))
    assert len(first) == 1 and second == {}  # nobody waits twice for a site that is gone


# ---- starting points -------------------------------------------------------------------------
def test_no_rounds_and_a_file_use_the_file_as_given(tmp_path: Path) -> None:
    module = build_module(toy.toy_spec(), "guidance")
    given = {name: value + np.asarray(0.5, value.dtype) for name, value in full_state(module).items()}
    save_tensors(tmp_path / "given.safetensors", given)
    spec = toy.toy_spec(rounds=0, init=str(tmp_path / "given.safetensors"))
    grid, _ = toy.toy_grid(tmp_path)
    final = federate(tmp_path, grid, spec)
    assert final.digests["guidance"] == tensors_digest(given)
    assert final.history == []
    assert final.calibration["guidance"].n == 12


def test_a_file_that_does_not_fit_says_so(tmp_path: Path) -> None:
    save_tensors(tmp_path / "given.safetensors", {"head.weight": np.zeros((9, 9), np.float32)})
    grid, _ = toy.toy_grid(tmp_path)
    with pytest.raises(ModelFileError, match=r"stages\.guidance\.init"):
        federate(tmp_path, grid, toy.toy_spec(init=str(tmp_path / "given.safetensors")))


# ---- quorum, failures, refusals -----------------------------------------------------------------
def test_a_missed_quorum_names_the_site_and_the_run_can_go_on(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path / "whole")
    whole = federate(tmp_path / "whole", grid)
    grid, source = toy.toy_grid(tmp_path)
    store, seen = CheckpointStore(tmp_path), []

    class Failing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            seen.extend(m.metadata.message_type for m in messages)
            if seen.count("train") == 4:
                source.fail["b"] = OSError("/data/DOE_JANE_1957.png")
            return super().push_messages(messages)

    grid.__class__ = Failing
    with pytest.raises(RoundError, match=r"round 2: 1 of 2 sites replied well.*b: the site's machine") as caught:
        federate(tmp_path, grid)
    assert "DOE" not in str(caught.value)
    assert store.load().progress.round == 1  # type: ignore[union-attr]
    source.fail.clear()
    events = toy.Events([])
    grid.__class__ = InProcessGrid
    assert federate(tmp_path, grid, events=events).digests == whole.digests
    assert events.log[0] == {"kind": "federation_resumed", "arm": "federated", "stage": "guidance", "round": 1}


def test_with_half_the_quorum_the_run_ends_without_the_failing_site(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    spec, events = toy.toy_spec(), toy.Events([])

    class Failing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.message_type == "train":
                source.fail["b"] = ValueError("DOE_JANE")
            return super().push_messages(messages)

    grid.__class__ = Failing
    final = federate(tmp_path, grid, spec, events, sites=["a", "b", "c"], quorum=0.5)
    assert sorted(final.history[-1]["sites"]) == ["a", "c"]
    assert "b" in final.history[-1]["missing"]
    assert {e["site"] for e in events.of("site_failed")} == {"b"}


MUTATIONS: dict[str, tuple[str, Callable[[Payload], Payload]]] = {
    "not_finite": (
        "not_finite",
        lambda p: replace(p, tensors={k: v * np.nan for k, v in p.tensors.items()} | _counter(p)),
    ),
    "shape": (
        "shape",
        lambda p: replace(p, tensors={**p.tensors, "head.bias": np.zeros(4, np.float32)[1:].reshape(3, 1)}),
    ),
    "larger": ("malformed", lambda p: replace(p, tensors={**p.tensors, "head.bias": np.zeros(10_000, np.float32)})),
    "names": ("malformed", lambda p: replace(p, tensors={**p.tensors, "more": np.zeros(1, np.float32)})),
    "weight": ("weight", lambda p: replace(p, header={**p.header, "num_examples": -5})),
    "replay": ("replay", lambda p: replace(p, header={**p.header, "round": 7})),
    "other site": ("site", lambda p: replace(p, header={**p.header, "site": "b"})),
    "kind": ("kind", lambda p: replace(p, kind="evaluate.reply")),
    "need base twice": ("kind", lambda p: Payload("need_base")),
}


def _counter(payload: Payload) -> dict[str, np.ndarray]:
    return {k: v for k, v in payload.tensors.items() if v.dtype.kind == "i"}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_reply_is_refused_logged_and_kept_from_the_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, mutate = MUTATIONS[name]
    honest = tasks.train

    def train(site: Any, spec: Any, request: Payload) -> Payload:
        reply = honest(site, spec, request)
        return mutate(reply) if site.name == "a" else reply

    from client import app as app_module

    monkeypatch.setitem(
        app_module.app._registered_funcs,
        "train.default",
        lambda message, context: app_module.answer(message, context, "train", train),
    )
    grid, _ = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    events = toy.Events([])
    final = federate(tmp_path, grid, toy.toy_spec(), events, sites=["a", "b", "c"], quorum=0.6)
    refused = events.of("site_refused")
    assert {(e["site"], e["code"]) for e in refused} == {("a", code)}
    assert all(sorted(row["sites"]) == ["b", "c"] for row in final.history)


def test_two_nodes_that_claim_one_name_are_both_refused(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path, names=("a", "b", "c"))
    source.sites["c"] = replace(source.sites["c"], name="b")
    events = toy.Events([])
    with pytest.raises(RoundError, match="more than one node says"):
        federate(tmp_path, grid, events=events, sites=["a", "b"], join_s=0.2)
    assert {(e["site"], e["code"]) for e in events.of("site_refused")} == {("b", "duplicate")}


def test_a_site_with_other_classes_or_another_name_cannot_join(tmp_path: Path) -> None:
    grid, source = toy.toy_grid(tmp_path)
    source.sites["b"] = replace(source.sites["b"], classes=("x", "y", "z"))
    with pytest.raises(RoundError, match="classes or task are not those of the run"):
        federate(tmp_path, grid, join_s=0.2)
    source.sites["b"] = replace(source.sites["a"], name="stranger")
    grid, _ = toy.toy_grid(tmp_path)[0], None
    from client.site import register_source

    register_source(source)
    with pytest.raises(RoundError, match="b: it is not connected"):
        federate(tmp_path, grid, join_s=0.2)


class Silent(InProcessGrid):
    """A site that never answers once training begins."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = [i for i in message_ids if not self._mute(i)]
        return super().pull_messages(ids)

    def _mute(self, message_id: str) -> bool:
        message = self._waiting.get(message_id)
        return message is not None and message.metadata.message_type == "train" and message.metadata.dst_node_id == 2


def test_a_silent_site_ends_the_round_at_the_deadline(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    grid.__class__ = Silent
    started = time.monotonic()
    with pytest.raises(RoundError, match="b: it did not reply before the deadline"):
        federate(tmp_path, grid, deadline_s=2.0)
    assert time.monotonic() - started < 15.0


def test_waiting_for_sites_is_bounded(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RoundError, match="a: it is not connected"):
        federate(tmp_path, InProcessGrid(toy.app, []), join_s=0.3)
    with pytest.raises(RoundError, match="no site is connected"):
        federate(tmp_path, InProcessGrid(toy.app, []), sites=None, join_s=0.3)
    assert time.monotonic() - started < 15.0


class Noisy(InProcessGrid):
    """Delivers every reply twice: the second answers a request that is closed."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        return [*replies, *replies]


def test_duplicates_and_answers_to_nothing_change_nothing(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path / "whole")
    whole = federate(tmp_path / "whole", grid)
    grid, _ = toy.toy_grid(tmp_path)
    grid.__class__ = Noisy
    events = toy.Events([])
    assert federate(tmp_path, grid, events=events).digests == whole.digests
    assert {e["code"] for e in events.of("site_refused")} == {"duplicate"}


def test_the_order_of_nodes_does_not_matter(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path / "ab", names=("a", "b"))
    one = federate(tmp_path / "ab", grid)
    grid, source = toy.toy_grid(tmp_path / "ba", names=("b", "a"))
    source.sites = {"a": toy.toy_site("a", 1), "b": toy.toy_site("b", 2)}
    assert federate(tmp_path / "ba", grid).digests == one.digests


# ---- privacy of names -----------------------------------------------------------------------------
@pytest.mark.parametrize("when", ["query", "train", "evaluate"])
def test_a_name_in_an_exception_stays_at_the_site(
    tmp_path: Path, when: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "DOE_JANE_1957-03-02"
    grid, source = toy.toy_grid(tmp_path / "hospital")
    replies: list[Message] = []

    class Failing(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages[0].metadata.message_type == when:
                source.fail["b"] = FileNotFoundError(2, "No such file", f"/data/{secret}.png")
            return super().push_messages(messages)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            got = list(super().pull_messages(message_ids))
            replies.extend(got)
            return got

    grid.__class__ = Failing
    events = toy.Events([])
    with pytest.raises(RoundError) as caught:
        federate(tmp_path / "coordinator", grid, events=events, join_s=0.2)
    written = "".join(p.read_text("latin-1") for p in (tmp_path / "coordinator").rglob("*") if p.is_file())
    crossed = " ".join(str(m) for m in replies)
    printed = "".join(capfd.readouterr())
    for place in (str(caught.value), json.dumps(events.log), written, crossed, printed, caplog.text):
        assert secret not in place
    log = tmp_path / "hospital" / "sites" / "b" / "site.log"
    assert secret in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


# ---- resuming ------------------------------------------------------------------------------------
def test_other_settings_are_refused_on_resume(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    federate(tmp_path, grid)
    with pytest.raises(ModelFileError, match=r"spec\.seed"):
        federate(tmp_path, grid, replace(toy.toy_spec(), seed=4))
    with pytest.raises(ModelFileError, match="stages"):
        federate(tmp_path, grid, stages=["guidance", "plain"])


def test_a_finished_run_is_loaded_without_asking_anyone(tmp_path: Path) -> None:
    grid, _ = toy.toy_grid(tmp_path)
    final = federate(tmp_path, grid)
    again = federate(tmp_path, InProcessGrid(toy.app, []))
    assert again.digests == final.digests == load_final(tmp_path).digests


def test_a_kept_update_answers_the_same_request_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = toy.toy_grid(tmp_path / "whole")
    whole = federate(tmp_path / "whole", grid)
    grid, _ = toy.toy_grid(tmp_path)
    calls: list[int] = []
    honest = tasks.local_update
    monkeypatch.setattr(tasks, "local_update", lambda *a, **k: calls.append(1) or honest(*a, **k))

    class Crash(toy.Events):
        def emit(self, kind: str, **facts: Any) -> None:
            if kind == "site_evaluated" and facts["round"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(tmp_path, grid, events=Crash([]))
    assert len(calls) == 4  # both sites, both rounds; the second round reached no checkpoint
    assert federate(tmp_path, grid).digests == whole.digests
    assert len(calls) == 4


def test_the_average_is_judged_and_of_the_best_round_it_is_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that grow by one a round, and scripted figures: which tensors are asked about, and which are kept."""
    spec, asked = toy.toy_spec(ema=0.5, rounds=3), []
    scripted = iter([0.5, 0.9, 0.7])

    def train_round(members: Any, task: Any, progress: Any, *rest: Any) -> Any:
        progress.current = {name: value + value.dtype.type(1) for name, value in progress.current.items()}
        update = SiteUpdate("a", {}, 12)
        return [update], Outcome(
            replies={"a": Payload("train.reply", {"ledger": "head", "claim": ""}, metrics={"loss": 4.0, "steps": 3.0})}
        )

    class Members(Sites):
        def everyone(self) -> set[str]:
            return {"a"}

        def evaluate(self, task: Any, tensors: Any, own: Any, prior: Any, index: int, *_: Any) -> Any:
            asked.append((index, tensors["head.weight"], dict(own)))
            return {"a": {"num_examples": 6.0, "auroc_macro": next(scripted), "loss": 1.0}}, Outcome()

    monkeypatch.setattr(rounds, "train_round", train_round)
    store, state, events = CheckpointStore(tmp_path), RunState(settings={}), toy.Events([])
    members = Members(None, spec, events)
    begun = initial_state(spec, "plain")["head.weight"]
    with store.locked():
        rounds.run_stage(members, spec, state, store, events, "plain", np.full(3, 1 / 3), 60.0)
    for (index, tensor, own), grown in zip(asked, (1.0, 1.5, 2.25), strict=True):
        np.testing.assert_allclose(tensor, begun + grown, rtol=1e-5, err_msg=str(index))
        assert own == {}
    np.testing.assert_allclose(state.results["plain"]["head.weight"], begun + 1.5, rtol=1e-5)
    assert [row["round"] for row in state.history] == [1, 2, 3] == [index for index, _, _ in asked]
    assert [row["best_round"] for row in state.history] == [1, 2, 2]
    assert {row["loss"] for row in state.history} == {4.0}, "the training loss, not the validation loss"
    assert state.history[0]["mean"]["loss"] == 1.0 and state.ledgers == {"a": "head"}
