"""Words with a share of noise under masks, at sites under rules: what leaves, what is charged, what is refused before.

Faults seen: words that leave as they are, a sum over fewer than the claim counts on, another form of words, two inputs
in one attempt, a budget that a malformed request takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import site as client_site
from client.distributed import check_company
from client.masking import site_masking
from client.site import Protection
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.masking.shamir import most_dishonest
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from fed_diffmic.exchange.masking.virtual import VirtualRoster, virtual_key
from fed_diffmic.privacy.account import read_account
from fed_diffmic.privacy.statement import last_claims
from fed_diffmic.training import stages
from server import masked as masked_module
from server import noisy as noisy_module
from server import replies as replies_module
from server.checkpoints import CheckpointStore
from tests import site_rules, toy
from tests.client.masked import accept, codes, left, log_of
from tests.server.test_masked import KilledError, die, lose
from tests.server.test_noisy import PRIVACY, RATE, SHARE, PrivateNet

NAMES = ("a", "b", "c", "d")
OWN = replace(PRIVACY, test_seed=5, honest_sites=2)
MASKED = {"strategies": ["fedsgd"], "secure_aggregation": "required", "min_sites": 2, "privacy": "required"}


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stages, "build_plain", lambda *_: PrivateNet())
    monkeypatch.setattr("os.fsync", lambda _: None)
    stages._KEPT.clear()
    yield
    stages._KEPT.clear()


def spec(rounds: int = 1, masks: str = "masked", **options: Any) -> RunSpec:
    chosen = {"sample_rate": RATE, "noise_share": SHARE, "clip_norm": 1.0, "step_size": 0.05, **options}
    strategy = StrategyConfig(name="fedsgd", options=chosen, secure_aggregation=masks)
    return toy.toy_spec(rounds=rounds, ema=0.0, steps=1, loss="cross_entropy", strategy=strategy)


def sites(folder: Path, privacy: PrivacyConfig = OWN, **changes: Any) -> Any:
    """Sites under rules, each of which accepted all others and protects its stage with shared noise."""
    rules: dict[str, Any] = {}
    for name in NAMES:
        own = site_rules.rules(folder / "log", name, key=virtual_key(3, name), **{**MASKED, **changes})
        own.policy.protected = frozenset(privacy.stages)
        rules[name] = own
    grid, source = site_rules.ruled_grid(folder, rules)
    for name in NAMES:
        accept(folder, name, *NAMES)

    def masking(context: Any, name: str) -> MaskingSite:
        config = SiteConfig(SiteGroup(name=name, folder=str(folder / "sites" / name)), policy=rules[name].policy.config)
        return site_masking(config, virtual_key(3, name), rules[name].audit)(context, name)

    def protection(context: Any) -> Protection:
        return Protection(privacy, virtual_key(3, str(context.node_config["site"])))

    client_site.register_source(source, masking=masking, protection=protection)
    return grid


def run(folder: Path, grid: Any, made: RunSpec, **settings: Any) -> Any:
    events = toy.Events([])
    given = {"stages": ["plain"], "sites": list(NAMES), "poll_s": 0.001, "join_s": 120.0, "quorum": 0.75, **settings}
    return toy.federate(grid, made, CheckpointStore(folder / "run"), events, **given), events


def simulated(folder: Path, made: RunSpec) -> Any:
    """Virtual sites with the same seeds of noise."""
    grid, source = toy.toy_grid(folder, NAMES)

    def masking(context: Any, name: str) -> MaskingSite:
        store = FileStore(folder / "sites" / name / "masking", lambda kind, facts: None)
        return MaskingSite(name, virtual_key(3, name), VirtualRoster(3), store)

    client_site.register_source(source, masking=masking, protection=lambda context: Protection(OWN))
    return run(folder, grid, made)[0]


def charged(folder: Path, name: str) -> list[tuple[int, bool]]:
    """Rounds in a site's ledger, and whether each was settled; none: it has no ledger."""
    kept = folder / "sites" / name
    if not (kept / "privacy").exists():
        return []
    return [(e.round, e.settled) for e in read_account(kept).entries()]


def test_sites_under_rules_end_with_the_weights_of_a_simulation_masked_or_in_the_clear(tmp_path: Path) -> None:
    final, events = run(tmp_path / "real", sites(tmp_path / "real"), spec(2))
    assert not events.of("site_refused") and not events.of("site_failed")
    assert final.digests == simulated(tmp_path / "masked", spec(2)).digests
    plain = simulated(tmp_path / "plain", spec(2, "off"))
    assert {n: v.tobytes() for n, v in final.states["plain"].items()} == {
        n: v.tobytes() for n, v in plain.states["plain"].items()
    }
    for name in NAMES:
        assert charged(tmp_path / "real", name) == [(1, True), (2, True)]
        lines = left(tmp_path / "real", name)
        assert [line.facts["tensors"] for line in lines] == [[["masked", "int32", [32]]]] * 2
        assert all(line.facts["figures"] == {} and "norm" not in line.facts for line in lines)
        told = [n for line in log_of(tmp_path / "real", name) for n in line.facts.get("figures", {})]
        assert set(told) <= {"images", "class_counts"}  # public numbers
    assert final.history[-1]["loss"] is None
    claims = last_claims(final.history)
    assert {claim["honest_sites"] for claim in claims.values()} == {2}
    assert all(claim["alone_total"] > claim["epsilon_total"] > 0 for claim in claims.values())


def test_the_ledger_is_written_before_words_are_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = MaskingSite.mask, []

    def watched(self: MaskingSite, *given: Any) -> Any:
        found = read_account(tmp_path / "sites" / self.name).entries()
        seen.extend((e.round, e.alone is not None and e.mechanism != e.alone) for e in found)
        return real(self, *given)

    monkeypatch.setattr(MaskingSite, "mask", watched)
    run(tmp_path, sites(tmp_path), spec())
    assert seen == [(1, True)] * len(NAMES)


def test_a_plain_exchange_gets_no_words_though_the_policy_allows_plain_updates(tmp_path: Path) -> None:
    grid = sites(tmp_path, secure_aggregation="allowed")
    with pytest.raises(RoundError, match=r"privacy\.mechanism=distributed"):
        run(tmp_path, grid, spec(masks="off"))
    for name in NAMES:
        assert codes(tmp_path, name) == {failures.UNSHARED}
        assert not left(tmp_path, name) and charged(tmp_path, name) == []


def test_a_site_whose_policy_masks_nothing_takes_no_part(tmp_path: Path) -> None:
    with pytest.raises(RoundError):
        run(tmp_path, sites(tmp_path, secure_aggregation="off"), spec(), join_s=3.0)  # it is waited for in vain
    assert codes(tmp_path, "a") == {failures.POLICY_MASKING} and charged(tmp_path, "a") == []


@pytest.mark.parametrize(
    ("min_sites", "sites_in", "most", "honest"),
    [(2, 3, 2, 1), (2, 4, 1, 1), (2, 5, 2, 1), (2, 10, 3, 3), (9, 10, 3, 6), (2, 50, 17, 16)],
)
def test_a_claim_needs_a_sum_over_enough_and_masks_that_bear_the_rest(
    min_sites: int, sites_in: int, most: int, honest: int
) -> None:
    """``honest``: the fewest that may be assumed above none, by hand: others in the smallest set, less those borne."""
    assert most_dishonest(sites_in) == most

    def check(number: int) -> None:
        check_company(replace(OWN, honest_sites=number), min_sites, sites_in)

    others = max(min_sites, 2 * sites_in // 3)
    for number in (0, honest, others):
        check(number)
    for number in (*range(1, honest), others + 1):
        with pytest.raises(SiteError) as refused:
            check(number)
        assert refused.value.code == failures.UNTRUSTED


def test_a_site_that_counts_on_more_than_the_session_holds_is_charged_nothing(tmp_path: Path) -> None:
    """Its own program refuses, whatever its configuration was checked for: three of four may be a set."""
    with pytest.raises(RoundError):
        run(tmp_path, sites(tmp_path, replace(OWN, honest_sites=3)), spec())
    for name in NAMES:
        assert codes(tmp_path, name) == {failures.UNTRUSTED} and charged(tmp_path, name) == []


@pytest.mark.parametrize(
    ("changed", "code"),
    [({"noise_share": 3.0}, failures.MASKING), ({"clip_norm": 2.0}, failures.MASKING)],
    ids=["share", "norm"],
)
def test_another_form_of_words_is_refused_before_the_ledger(
    tmp_path: Path, changed: dict[str, float], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator whose words are scaled otherwise than the settings say, as all sites would have been told."""
    real = noisy_module.form_of
    monkeypatch.setattr(
        noisy_module,
        "form_of",
        lambda spec, request: replace(
            real(spec, request), **{{"noise_share": "share"}.get(name, name): value for name, value in changed.items()}
        ),
    )
    with pytest.raises(RoundError, match="0 sites gave masked updates"):
        run(tmp_path, sites(tmp_path), spec())
    for name in NAMES:
        assert codes(tmp_path, name) == {code} and charged(tmp_path, name) == []
    assert "another form of words" in (tmp_path / "sites" / "a" / "site.log").read_text(encoding="utf-8")


def test_an_updates_form_is_none_of_a_sum_with_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that asks for what it would ask of an update."""
    monkeypatch.setattr(noisy_module.MaskedNoisySites, "written", masked_module.MaskedSites.written)
    with pytest.raises(RoundError, match="0 sites gave masked updates"):
        run(tmp_path, sites(tmp_path), spec())
    assert codes(tmp_path, "a") == {failures.BAD_REQUEST} and charged(tmp_path, "a") == []


def test_a_second_question_in_one_attempt_draws_nothing_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New noise under the same masks would tell the difference of two sums of one site."""
    grid, told = sites(tmp_path), []
    send = replies_module.Asking.send

    def twice(self: Any, request: Any, packed: Any = None) -> None:
        send(self, request, packed)
        if request.payload.kind != "train" or request.site.name != "c" or told:
            return
        for changed in ({}, {}, {"keep": "0" * 64}):
            header = {**request.payload.header, **changed}
            asking = replies_module.Asking(replies_module.Channel(grid, toy.Events([])), "train", self.deadline, {})
            send(asking, replace(request, payload=replace(request.payload, header=header)), packed)
            while asking.open:
                for reply in grid.pull_messages(list(asking.open)):
                    asking.take(reply)
            told.append(asking.outcome)

    monkeypatch.setattr(replies_module.Asking, "send", twice)
    run(tmp_path, grid, spec())
    assert charged(tmp_path, "c") == [(1, True)]
    *same, other = told
    assert other.codes == {"c": failures.MASKING}
    first, second = (outcome.replies["c"].tensors["masked"].tobytes() for outcome in same)
    assert first == second


def test_a_lost_attempt_is_paid_for_and_the_next_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = sites(tmp_path)
    with monkeypatch.context() as patch:
        lose(patch, "b", "train")
        lose_too(patch, "c", "mask")
        with pytest.raises(RoundError, match="nothing was unmasked"):
            run(tmp_path, grid, spec())
    assert {name: charged(tmp_path, name) for name in NAMES} == {name: [(1, True)] for name in NAMES}
    run(tmp_path, grid, spec())
    assert {name: charged(tmp_path, name) for name in NAMES} == {name: [(1, True)] * 2 for name in NAMES}
    sets = [line.facts["attempt"] for line in log_of(tmp_path, "a") if line.kind == "masked_shares"]
    assert sets == [2]  # one sum of the round was opened


def test_a_coordinator_that_is_ended_behind_the_set_goes_on_and_nothing_is_charged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = sites(tmp_path / "real")
    with monkeypatch.context() as patch:
        die(patch, "commit")
        with pytest.raises(KilledError):
            run(tmp_path / "real", grid, spec())
    resumed, _ = run(tmp_path / "real", grid, spec())
    assert {name: charged(tmp_path / "real", name) for name in NAMES} == {name: [(1, True)] for name in NAMES}
    assert resumed.digests == simulated(tmp_path / "whole", spec()).digests


def lose_too(monkeypatch: pytest.MonkeyPatch, name: str, step: str) -> None:
    """As :func:`lose`, of one more site."""
    real = getattr(MaskingSite, step)

    def failing(self: MaskingSite, *given: Any) -> Any:
        if self.name == name:
            raise OSError("gone")
        return real(self, *given)

    monkeypatch.setattr(MaskingSite, step, failing)


def test_a_dropout_leaves_the_sum_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(monkeypatch, "b", "train")
    final, _ = run(tmp_path, sites(tmp_path, replace(OWN, honest_sites=1)), spec())
    assert sorted(final.history[0]["sites"]) == ["a", "c", "d"]
    sets = [json.loads(line.facts["set"]) for line in log_of(tmp_path, "a") if line.kind == "masked_set"]
    assert [(one["summed"], one["dropped"]) for one in sets] == [(["a", "c", "d"], ["b"])]
