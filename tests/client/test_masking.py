"""Real sites' rules around masked sums: nothing leaves but in a sum that the site's own policy and people allow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import site as client_site
from client.masked_rules import Clearance
from client.masking import site_masking
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.site import PolicyConfig, SiteConfig, SiteGroup
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import read_lines
from fed_diffmic.exchange.audit_compare import PROBLEM, compare
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import SitePolicy
from fed_diffmic.provision.keys import public_text
from fed_diffmic.provision.peers import Peer, _save
from server import replies as replies_module
from server.checkpoints import CheckpointStore
from server.observers import RoundObserver
from tests import site_rules, toy
from tests.client.masked import MASKED, NAMES, STRICT, accept, codes, consortium, left, log_of, run
from tests.seals import SITE_KEYS, sealed_hooks, sealed_rules


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


def test_sites_that_require_masks_train_and_nothing_else_of_them_leaves(tmp_path: Path) -> None:
    grid, _ = consortium(tmp_path)
    final, events = run(tmp_path, grid, rounds=2)
    assert not events.of("site_refused") and not events.of("site_failed")
    coordinator = read_lines(tmp_path / "coordinator.jsonl")
    sets = [line.facts["set"] for line in coordinator if line.kind == "masked_set"]
    assert len(sets) == 2 and all(json.loads(text)["summed"] == list(NAMES) for text in sets)
    for name in NAMES:
        lines = log_of(tmp_path, name)
        for kind in ("masked_set", "masked_shares"):
            assert [line.facts["set"] for line in lines if line.kind == kind] == sets
        payloads = [line for line in lines if line.kind == "payload"]
        told = {key: value for line in payloads for key, value in line.facts["figures"].items()}
        assert told == {"images": [12, None, None], "class_counts": [None] * 3}
        assert all("norm" not in line.facts for line in left(tmp_path, name)) and len(left(tmp_path, name)) == 2
        found = compare(lines, coordinator, site=name, run="toy")
        assert [one for one in found if one.level == PROBLEM] == []
    for row in final.history:
        assert row["sites"] == {name: {"num_examples": 12} for name in NAMES} and row["loss"] is None
        assert row["val"] == {} and row["mean"] == {} and "summed" not in row


def test_sealed_sites_are_summed_by_their_enrolled_keys(tmp_path: Path) -> None:
    """As real ones are: the coordinator knows their keys by its roster, they each other's by what people accepted."""
    names = ("a", "b", "c")
    state = {name: tmp_path / "sites" / name for name in names}
    rules = {name: sealed_rules(tmp_path / "log", name, state[name], **STRICT) for name in names}
    grid, source = site_rules.ruled_grid(tmp_path, rules)
    keys = {name: public_text(SITE_KEYS[name].public_key()) for name in names}

    def masking(context: Any, name: str) -> Any:
        config = SiteConfig(SiteGroup(name=name, folder=str(state[name])), policy=rules[name].policy.config)
        return site_masking(config, SITE_KEYS[name], rules[name].audit)(context, name)

    for name in names:
        others = {n: Peer(n, key, "2026-01-01T00:00:00+00:00") for n, key in keys.items() if n != name}
        _save(state[name], others)
    client_site.register_source(source, masking=masking)
    hooks, events = sealed_hooks(tmp_path / "coordinator", names), toy.Events([])
    toy.federate(
        grid, toy.toy_spec(rounds=1, strategy=MASKED), CheckpointStore(tmp_path / "run"), events, hooks=hooks,
        stages=["guidance"], sites=list(names), poll_s=0.001, join_s=120.0,
    )  # fmt: skip
    assert not events.of("site_refused") and not events.of("site_failed")
    sets = {name: {x.facts["set"] for x in log_of(tmp_path, name) if x.kind == "masked_shares"} for name in names}
    assert sets["a"] == sets["b"] == sets["c"] and json.loads(*sets["a"])["summed"] == list(names)


def test_sites_that_count_alike_say_no_weight(tmp_path: Path) -> None:
    """With ``strategy.weighting=equal`` the weight under masks is 1, and the number of images does not leave."""
    grid, _ = consortium(tmp_path)
    strategy = StrategyConfig(secure_aggregation="masked", weighting="equal")
    final, events = run(tmp_path, grid, strategy=strategy)
    assert not events.of("site_refused") and not events.of("site_failed") and final.states["guidance"]
    for name in NAMES:
        (line,) = left(tmp_path, name)
        assert line.facts["figures"] == {}


def test_a_log_that_names_another_set_than_the_site_agreed_to_is_a_problem(tmp_path: Path) -> None:
    grid, _ = consortium(tmp_path)
    run(tmp_path, grid)
    coordinator, mine = read_lines(tmp_path / "coordinator.jsonl"), log_of(tmp_path, "a")
    without = [line for line in coordinator if line.kind != "masked_set"]
    (said,) = [f.text for f in compare(mine, without, site="a", run="toy") if f.level == PROBLEM]
    assert "agreed to a set that the coordinator's log does not name" in said
    twice = [*mine, *(replace(x, facts={**x.facts, "set": "other"}) for x in mine if x.kind == "masked_set")]
    assert any("two sets" in f.text for f in compare(twice, coordinator, site="a", run="toy"))


@pytest.mark.parametrize(
    ("accepted", "changes", "code", "named"),
    [
        (("b", "c"), {}, failures.PEERS, "'d'"),
        (NAMES, {"min_sites": 4}, failures.FEW_PEERS, "fewer than 4"),
        ((), {}, failures.PEERS, "'b'"),
    ],
    ids=["a stranger", "too few", "no roster"],
)
def test_a_site_gives_nothing_in_company_that_it_did_not_accept(
    tmp_path: Path, accepted: tuple[str, ...], changes: Any, code: int, named: str
) -> None:
    grid, rules = consortium(tmp_path)
    accept(tmp_path, "a", *accepted)
    rules["a"].policy.config = replace(rules["a"].policy.config, **changes)
    _, events = run(tmp_path, grid)
    assert {row["site"]: row["code"] for row in events.of("site_failed")} == {"a": code}
    assert codes(tmp_path, "a") == {code} and not left(tmp_path, "a")
    assert named in (tmp_path / "sites" / "a" / "site.log").read_text(encoding="utf-8")
    assert [len(left(tmp_path, name)) for name in "bcd"] == [1, 1, 1]


def test_a_peer_that_was_removed_counts_no_more_from_the_next_round_on(tmp_path: Path) -> None:
    class Removes(RoundObserver):
        """Between two rounds somebody takes d out at a."""

        def after_round(self, facts: Any, progress: Any) -> None:
            accept(tmp_path, "a", "b", "c")

    grid, _ = consortium(tmp_path)
    _, events = run(tmp_path, grid, rounds=2, observers=[Removes()])
    assert [(row["site"], row["round"], row["code"]) for row in events.of("site_failed")] == [("a", 2, failures.PEERS)]
    assert [len(left(tmp_path, name)) for name in NAMES] == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"max_update_norm": 1e-6}, failures.POLICY_NORM), ({"min_count": 12}, failures.POLICY_COUNT)],
)
def test_an_update_is_judged_before_it_is_masked(
    tmp_path: Path, changes: Any, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every rule on what leaves: under masks nobody could."""
    grid, rules = consortium(tmp_path)
    if code == failures.POLICY_COUNT:  # passes what is asked beforehand, and not what would leave
        monkeypatch.setattr(SitePolicy, "check_images", lambda *given, **more: None)
        changes = {"min_count": 13}
    rules["b"].policy.config = replace(rules["b"].policy.config, **changes)
    if code == failures.POLICY_COUNT:
        monkeypatch.setattr(SitePolicy, "_counts", lambda self, header, patients: {"images": [12, None, None]})
    _, events = run(tmp_path, grid)
    assert {row["site"]: row["code"] for row in events.of("site_failed")} == {"b": code}
    assert not left(tmp_path, "b") and codes(tmp_path, "b") == {code}


def test_words_that_nobody_judged_do_not_leave() -> None:
    request = Payload("train", {"masked": {}})
    words = Payload("train.reply", {"stage": "guidance"}, {"masked": np.zeros(3, "int32")})
    clearance = Clearance(SitePolicy(PolicyConfig()))
    with pytest.raises(SiteError):
        clearance.check(words, request)
    clearance.given = True
    clearance.check(words, request)
    with pytest.raises(SiteError):  # as it is, where masks were asked for
        clearance.check(replace(words, tensors={"head": np.zeros(3, "float32")}), request)


def test_a_coordinator_that_asks_again_gets_the_same_words_and_no_second_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, _ = consortium(tmp_path)
    sent: list[Any] = []
    send = replies_module.Asking.send

    def watched(self: Any, request: Any, packed: Any = None) -> None:
        sent.append((request, self))
        send(self, request, packed)

    monkeypatch.setattr(replies_module.Asking, "send", watched)
    run(tmp_path, grid)
    asked = {(r.payload.kind, r.payload.header.get("step")): (r, a) for r, a in sent if r.site.name == "c"}

    def again(step: str, given: Any) -> tuple[dict[str, Any], Any]:
        request, asking = asked["mask", step]
        header = {**request.payload.header, "given": given}
        expected = replace(request.expected, header={**request.expected.header})
        other = replace(request, payload=replace(request.payload, header=header), expected=expected)
        fresh = replies_module.Asking(
            replies_module.Channel(grid, toy.Events([])), "query.mask", asking.deadline + 60, {}
        )
        send(fresh, other)
        for reply in grid.pull_messages(list(fresh.open)):
            fresh.take(reply)
        return fresh.outcome.codes, fresh.outcome

    signed = json.loads(asked["mask", "commit"][0].payload.header["given"]["set"])
    other = json.dumps({**signed, "summed": ["a", "b", "c"], "dropped": ["d"]}, sort_keys=True, separators=(",", ":"))
    assert again("commit", {"set": other})[0] == {"c": failures.MASKING}  # by a part made anew, as after a restart
    assert "another set" in (tmp_path / "sites" / "c" / "site.log").read_text(encoding="utf-8")
    sets = {line.facts["set"] for line in log_of(tmp_path, "c") if line.kind in ("masked_set", "masked_shares")}
    assert sets == {asked["mask", "commit"][0].payload.header["given"]["set"]}


def test_too_few_are_left_and_nothing_is_unmasked(tmp_path: Path) -> None:
    grid, _ = consortium(tmp_path, names=("a", "b", "c"), min_sites=3)
    with pytest.raises(RoundError, match="0 sites gave keys, 3 are needed; nothing was unmasked"):
        run(tmp_path, grid, sites=["a", "b", "c"], quorum=1.0)
    assert all(not left(tmp_path, name) for name in "abc")
