"""A round judged by the message that asks for the next one: weights, metrics and choices are those of two exchanges."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client import tasks
from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import AuditLog, read_lines, verify
from fed_diffmic.exchange.audit_compare import anchors, compare
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.transport.together import JUDGED
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from server.masked import MaskedSites
from server.noisy import NoisySites
from server.observers import RoundObserver, Stop
from server.sites import Sites
from server.terms import RunTerms
from simulations.grid import InProcessGrid
from tests import site_rules, toy

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


class Counting(InProcessGrid):
    """Counts what is pushed."""

    kinds: Counter[str]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.kinds.update(message.metadata.message_type for message in messages)
        return super().push_messages(messages)


def grid_of(folder: Path, names: tuple[str, ...] = NAMES, **node: Any) -> Any:
    grid, source = toy.toy_grid(folder, names=names, **node)
    grid.__class__ = Counting
    grid.kinds = Counter()  # type: ignore[attr-defined]
    return grid, source


def run(folder: Path, one: bool, spec: Any = None, names: tuple[str, ...] = NAMES, **settings: Any) -> Any:
    grid, _ = grid_of(folder, names)
    events = toy.Events([])
    given = {"sites": list(names), "one_exchange": one, **settings}
    final = toy.short_run(folder, grid, spec or toy.toy_spec(rounds=4), events, **given)
    return final, grid.kinds, events


def plain(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What tells neither of time nor of the logs."""
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "bytes_sent", "heads", "payloads")} for row in history
    ]
    return [
        {**row, "sites": {s: {k: v for k, v in n.items() if k != "seconds"} for s, n in row["sites"].items()}}
        for row in rows
    ]


STRATEGIES: dict[str, dict[str, Any]] = {
    "int8 and average": {"strategy": StrategyConfig(codec="int8")},
    "topk, moments kept": {"ema": 0.0, "keep": True, "strategy": StrategyConfig(codec="topk", topk_share=0.3)},
    "scaffold": {"ema": 0.0, "strategy": StrategyConfig(name="scaffold")},
    "fedbn": {"strategy": StrategyConfig(name="fedbn")},
    "ditto": {"ema": 0.0, "strategy": StrategyConfig(name="ditto")},
    "half are drawn": {"ema": 0.0, "strategy": StrategyConfig(participation=0.5)},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_run_comes_to_the_same(tmp_path: Path, name: str) -> None:
    spec = toy.toy_spec(rounds=3, **STRATEGIES[name])
    two, asked, _ = run(tmp_path / "two", False, spec)
    one, joined, events = run(tmp_path / "one", True, spec)
    assert one.digests == two.digests and one.personal == two.personal
    assert plain(one.history) == plain(two.history)
    assert one.calibration == two.calibration
    trained = asked["train"]
    assert asked[JUDGED] == 0 and joined[JUDGED] >= 2 * (trained // 3)
    if name != "half are drawn":  # of whom some are asked to judge alone, and some have to ask for weights
        assert one.bytes_sent == two.bytes_sent
        assert sum(row["bytes_sent"] for row in one.history) == sum(row["bytes_sent"] for row in two.history)
        assert joined == asked - Counter(train=6, evaluate=6) + Counter({JUDGED: 6})
    assert [e["round"] for e in events.of("site_evaluated") if e["site"] == "a"][:3] == [1, 2, 3]


@pytest.mark.parametrize("terms", [{"metrics_every": 2}, {"metrics_share": 0.5}])
def test_with_fewer_judgements_too(tmp_path: Path, terms: dict[str, Any]) -> None:
    spec = toy.toy_spec(ema=0.0, rounds=3, strategy=StrategyConfig(codec="int8"))
    two, _, _ = run(tmp_path / "two", False, spec, **terms)
    one, joined, _ = run(tmp_path / "one", True, spec, **terms)
    assert one.digests == two.digests and plain(one.history) == plain(two.history) and joined[JUDGED]


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_a_stage_at_the_same_round_and_nothing_is_trained_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    scores = {1: 0.5, 2: 0.6, 3: 0.55, 4: 0.6, 5: 0.7, 6: 0.1, 7: 0.1, 8: 0.1, 9: 0.1}
    trained: list[int] = []
    honest, learn = tasks.evaluate, tasks.train

    def evaluate(site: Any, spec: Any, request: Any) -> Any:
        reply = honest(site, spec, request)
        index = request.header["round"]
        return replace(reply, metrics={**reply.metrics, "auroc_macro": scores[index]}) if index else reply

    def train(site: Any, spec: Any, request: Any) -> Any:
        trained.append(request.header["round"])
        return learn(site, spec, request)

    monkeypatch.setattr(tasks, "evaluate", evaluate)
    monkeypatch.setattr(tasks, "train", train)
    spec, found = toy.toy_spec(ema=0.0, rounds=9), []
    for one in (False, True):
        trained.clear()
        final, kinds, events = run(tmp_path / str(one), one, spec, patience=patience)
        stops = [(e["round"], e["reason"]) for e in events.of("stage_stopped")]
        found.append((final.digests, plain(final.history), stops, max(trained), len(final.history)))
        assert bool(kinds[JUDGED]) == (one and patience > 1)
    assert found[0] == found[1] and found[0][2]
    assert found[1][3] == found[1][4]


class Stopping(RoundObserver):
    """Ends a stage with a round, whatever it said of that before."""

    def __init__(self, last: int, may: bool) -> None:
        self.last, self.may = last, may

    def after_round(self, facts: Any, progress: Any) -> Stop | None:
        return Stop("enough") if facts["round"] == self.last else None

    def may_stop(self, progress: Any) -> bool:
        return self.may


@pytest.mark.parametrize(("may", "rounds"), [(True, 2), (False, 3)])
def test_who_may_end_a_stage_is_waited_for(tmp_path: Path, may: bool, rounds: int) -> None:
    """One that ends it although it said that it would not leaves no round without its metrics."""
    grid, _ = grid_of(tmp_path)
    final = toy.federate(
        grid, toy.toy_spec(rounds=5), CheckpointStore(tmp_path), toy.Events([]), stages=["guidance"],
        sites=list(NAMES), poll_s=0.001, one_exchange=True, observers=[Stopping(2, may)],
    )  # fmt: skip
    assert [bool(row["val"]) for row in final.history] == [True] * rounds


def fail_at(monkeypatch: pytest.MonkeyPatch, kind: str, index: int, code: int, times: int = 99) -> None:
    """Site ``c`` cannot do one of the two in a round."""
    honest, left = getattr(tasks, kind), [times]

    def failing(site: Any, spec: Any, request: Any) -> Any:
        if site.name == "c" and request.header["round"] == index and left[0]:
            left[0] -= 1
            raise SiteError(code)
        return honest(site, spec, request)

    monkeypatch.setattr(tasks, kind, failing)


@pytest.mark.parametrize(("kind", "index"), [("evaluate", 2), ("train", 3)])
def test_a_site_that_does_one_of_the_two_is_missing_from_the_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, index: int
) -> None:
    fail_at(monkeypatch, kind, index, failures.DIVERGED)
    spec, found = toy.toy_spec(ema=0.0, rounds=4), []
    for one in (False, True):
        final, _, events = run(tmp_path / str(one), one, spec, quorum=0.6)
        named = [(e["site"], e["code"], e["round"]) for e in events.of("site_failed")]
        found.append((final.digests, plain(final.history), named))
    assert found[0] == found[1] and found[0][2] == [("c", failures.DIVERGED, index)]


@pytest.mark.parametrize(("kind", "index", "named"), [("evaluate", 2, "round 2"), ("train", 3, "round 3")])
def test_each_question_has_its_quorum_and_the_run_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, index: int, named: str
) -> None:
    spec = toy.toy_spec(ema=0.5, rounds=4)
    whole = run(tmp_path / "whole", False, spec)[0]
    with monkeypatch.context() as patch:
        fail_at(patch, kind, index, failures.DIVERGED)
        with pytest.raises(RoundError, match=f"{named}: 2 of 3 sites replied well"):
            run(tmp_path / "run", True, spec)
    kept = CheckpointStore(tmp_path / "run").load().progress  # type: ignore[union-attr]
    assert kept.round == 2 and kept.waiting["round"] == 2 and kept.candidate
    for folder, one in (("again", True), ("other", False))[: 1 + (index == 2)]:  # how the rest is asked for is free
        shutil.copytree(tmp_path / "run", tmp_path / folder)
        final = run(tmp_path / folder, one, spec)[0]
        assert final.digests == whole.digests and plain(final.history) == plain(whole.history)


def test_patience_over_one_of_the_two_asks_for_that_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.replies.AGAIN_S", 0.01)
    spec = toy.toy_spec(ema=0.0, rounds=3)
    whole = run(tmp_path / "whole", False, spec)[0]
    with monkeypatch.context() as patch:
        fail_at(patch, "train", 2, failures.PAUSED, times=2)
        final, kinds, events = run(tmp_path / "train", True, spec)
    assert final.digests == whole.digests and kinds["train"] == 3 + 2
    assert [e["code"] for e in events.of("site_waits")] == [failures.PAUSED] * 2
    with monkeypatch.context() as patch:
        fail_at(patch, "evaluate", 1, failures.PAUSED, times=1)
        fail_at(patch, "train", 2, failures.PAUSED, times=1)
        final, kinds, events = run(tmp_path / "both", True, spec)
    assert final.digests == whole.digests and kinds[JUDGED] == 2 * 3 + 1  # both at once again


@pytest.mark.parametrize("settings", [{"ema": 0.0}, {"ema": 0.5, "strategy": StrategyConfig(codec="int8")}])
def test_a_site_that_lost_its_folder_gets_what_it_lacks_and_no_weights_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    spec = toy.toy_spec(rounds=3, **settings)
    whole = run(tmp_path / "whole", False, spec, names=("a", "b"))[0]
    learn = tasks.train

    def train(site: Any, spec: Any, request: Any) -> Any:
        reply = learn(site, spec, request)
        if site.name == "b" and request.header["round"] == 1:
            for part in ("weights", "bases"):
                for path in (site.folder / part).glob("*"):
                    path.unlink()
        return reply

    monkeypatch.setattr(tasks, "train", train)
    final, kinds, events = run(tmp_path / "run", True, spec, names=("a", "b"))
    assert final.digests == whole.digests and not events.of("site_refused")
    # With an average both weights are differences to what is lacking; else the second are the first, which came whole.
    assert kinds[JUDGED] == 2 * 2 + (2 if settings["ema"] else 1)
    if not settings["ema"]:
        everything = sum(value.nbytes for value in final.states["guidance"].values())
        assert final.bytes_sent - whole.bytes_sent == everything  # weights and base, once, to one site


# ---- real sites' rules ------------------------------------------------------------------------------
def audited_run(folder: Path, one: bool, gate: Any = None) -> Any:
    ruled = {name: site_rules.rules(folder / "logs", name, gate if name == "b" else None) for name in ("a", "b")}
    grid, _ = site_rules.ruled_grid(folder, ruled)
    (folder / "run").mkdir()
    audit = AuditLog(folder / "run" / "audit.jsonl", site_rules.KEY, owner="coordinator")
    return toy.short_run(folder / "run", grid, toy.toy_spec(rounds=3), one_exchange=one, hooks=Hooks(audit=audit),
                         quorum=0.5)  # fmt: skip


def test_both_logs_name_both_requests_and_agree(tmp_path: Path) -> None:
    two, one = (audited_run(tmp_path / str(way), way) for way in (False, True))
    assert one.digests == two.digests
    for site in ("a", "b"):
        logs = {way: read_lines(tmp_path / str(way) / "logs" / f"{site}.audit.jsonl") for way in (False, True)}
        there = read_lines(tmp_path / "True" / "run" / "audit.jsonl")
        assert compare(logs[True], there, site=site, run="toy") == []
        seen = anchors(there, site=site)
        assert verify(tmp_path / "True" / "logs" / f"{site}.audit.jsonl", site_rules.KEY.public_key(), seen) == []
        of_both = [[(n.kind, n.facts.get("task"), n.facts.get("round")) for n in log] for log in logs.values()]
        assert of_both[0] == of_both[1]  # at the site the same happens, in the same order


def test_a_site_whose_rules_refuse_one_of_the_two_refuses_that_one(tmp_path: Path) -> None:
    """Each request is judged by the site's rules as if it had come alone."""

    def gate(kind: str) -> None:
        if kind == "evaluate":
            raise SiteError(failures.POLICY_METRICS)

    ways = [audited_run(tmp_path / str(way), way, gate=gate) for way in (False, True)]
    assert ways[0].digests == ways[1].digests and plain(ways[0].history) == plain(ways[1].history)
    assert all(sorted(row["sites"]) == ["a", "b"] and sorted(row["val"]) == ["a"] for row in ways[1].history)


def test_where_a_round_is_several_requests_none_is_joined(tmp_path: Path) -> None:
    """A masked round that were asked for as a plain one would leave unmasked."""
    given = toy.toy_grid(tmp_path)[0], toy.toy_spec(), toy.Events([]), RunTerms(["guidance"], NAMES)
    assert Sites(*given).one_message and not NoisySites(*given).one_message
    masked = MaskedSites(*given, folder=tmp_path, roster={})
    assert not masked.one_message
    with pytest.raises(ValueError, match="more than one request"):
        masked.judge_and_train(None, None)  # type: ignore[arg-type]


def test_one_by_name_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"run\.exchanges.*auto or two with strategy\.secure_aggregation=masked"):
        compose(None, ["strategy.secure_aggregation=masked", "run.exchanges=one"])
    compose(None, ["strategy.secure_aggregation=masked", "run.exchanges=auto"])
