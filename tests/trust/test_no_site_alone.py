"""One site of three says or sends whatever it likes: what it reaches, under every kind of strategy.

The coordinator's own code over real messages in process, with toy networks, as a coordinator that says nothing else is
configured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fed_diffmic.config.server import ServerRunConfig
from fed_diffmic.config.simulation import RunConfig, StrategyConfig
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import from_record, reply_message
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from tests import toy
from tests.trust.hostile import AMPLE, NAMES, STRATEGIES, Evil, Hostile, bias, federate, guard, refused, strategy

HUGE = 2**40


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What three honest sites make, by strategy; each trained once."""

    @functools.cache
    def of(chosen: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            toy.install_toy_networks(patch.setattr)
            patch.setattr("os.fsync", lambda _: None)
            more = STRATEGIES.get(chosen, {})
            cfg = StrategyConfig(name=chosen, **more)
            return federate(tmp_path_factory.mktemp("honest"), strategy=cfg)[0]

    return of


def inflated(count: int, weights: float | None = 7.0) -> Evil:
    """A site that says it has ``count`` images, all of the first class, and sends weights of its choice."""

    def evil(kind: str, p: Payload) -> Payload:
        if kind == "query":
            return replace(p, header={**p.header, "images": [count, count, 0], "class_counts": [count, 0, 0]})
        if kind == "train":
            sent = {} if weights is None else {"head.bias": np.full((3,), weights, np.float32)}
            metrics = {**p.metrics, **({"steps": min(count / 4, 1e9)} if "steps" in p.metrics else {})}
            return replace(
                p, header={**p.header, "num_examples": count}, tensors={**p.tensors, **sent}, metrics=metrics
            )
        if kind == "evaluate":
            return replace(p, metrics={**p.metrics, "num_examples": float(count)})
        return p

    return evil


# ---- counts ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "count"), [*((name, HUGE) for name in STRATEGIES), ("fedavg", 1000)])
def test_a_claim_of_images_is_neither_the_model_nor_the_prior(
    tmp_path: Path, honest: Any, name: str, count: int
) -> None:
    final, _ = federate(tmp_path / "evil", inflated(count), strategy=strategy(name))
    others = np.abs(bias(honest(name))).max()
    assert np.abs(bias(final)).max() < 0.25 + 6 * others, "not its own 7, nor near it"
    prior = np.array(final.calibration["guidance"].prior)
    fair = np.array(honest(name).calibration["guidance"].prior)
    assert prior.sum() == pytest.approx(1.0)
    assert np.abs(prior - fair).sum() / 2 <= 0.5 + 1e-9, "total variation: at most the largest share"
    assert prior.min() > 0.1


def test_a_claim_above_the_roster_is_refused_by_name(tmp_path: Path) -> None:
    final, events = federate(tmp_path, inflated(1000), hooks={"most_images": lambda: {"a": 24, "b": 24}})
    assert ("a", "claim") in refused(events)
    assert all(set(row["sites"]) == {"b", "c"} for row in final.history)


def test_a_claim_does_not_grow_within_a_run(tmp_path: Path) -> None:
    """The site's process comes back as another node and now says more."""
    later = 0

    def evil(kind: str, p: Payload) -> Payload:
        if kind == "query" and later:
            return inflated(HUGE)(kind, p)
        return inflated(HUGE, None)(kind, p) if kind == "train" and later else p

    grid, _ = toy.toy_grid(tmp_path, names=NAMES)
    grid.__class__ = Hostile
    assert isinstance(grid, Hostile)
    grid.evil = evil
    store, events = CheckpointStore(tmp_path / "run"), toy.Events([])
    given = {"stages": ["guidance"], "sites": NAMES, "quorum": 0.6, "poll_s": 0.001, "hooks": Hooks(**guard())}

    class Stops(toy.Events):
        def emit(self, kind: str, **facts: Any) -> None:
            super().emit(kind, **facts)
            if kind == "round_done":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.federate(grid, toy.toy_spec(ema=0.0), store, Stops([]), **given)
    later = 1
    final = toy.federate(grid, toy.toy_spec(ema=0.0), store, events, **given)
    assert refused(events) == {("a", "weight")}
    assert set(final.history[1]["sites"]) == {"b", "c"}
    assert {event["site"]: event["images"]["train"] for event in events.of("site_found")} == dict.fromkeys(NAMES, 12)


def test_a_site_that_keeps_back_how_much_it_trains_on_is_named(tmp_path: Path) -> None:
    def evil(kind: str, p: Payload) -> Payload:
        return replace(p, header={**p.header, "images": [None, 6, 6]}) if kind == "query" else p

    _, events = federate(tmp_path, evil)
    assert refused(events) == {("a", "suppressed")}


def test_counts_that_are_kept_back_are_not_zeros(tmp_path: Path) -> None:
    """12 images of which 4 and 4 are told: 4 are left over for the third class, as it is."""

    def evil(kind: str, p: Payload) -> Payload:
        if kind == "query":
            return replace(p, header={**p.header, "images": [12, None, None], "class_counts": [4, 4, None]})
        return p

    final, events = federate(tmp_path, evil)
    assert refused(events) == set()
    assert final.calibration["guidance"].prior == pytest.approx([1 / 3] * 3)


# ---- selection and calibration -----------------------------------------------------------------
def metrics_of_choice(first: float, later: float) -> Evil:
    def evil(kind: str, p: Payload) -> Payload:
        if kind == "evaluate" and p.header["round"]:
            value = first if p.header["round"] == 1 else later
            return replace(p, metrics={**p.metrics, "auroc_macro": value, "num_examples": 6.0})
        return p

    return evil


def test_one_site_does_not_choose_the_round(tmp_path: Path) -> None:
    """The others agree from round to round, and one site says 1 where it wants and 0 elsewhere."""

    class Improving(Hostile):
        """b and c improve every round."""

        def _run(self, message: Message) -> Message:
            reply = super()._run(message)
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            if kind != "evaluate" or node == 1:
                return reply
            p = from_record(reply.content, AMPLE)
            value = {**p.metrics, "auroc_macro": 0.5 + 0.1 * p.header["round"] + 0.05 * node}
            answer = reply_message(replace(p, metrics=value), message)
            set_message_id(answer, f"improved-{message.metadata.message_id}")
            return answer

    for case, evil in {"first": metrics_of_choice(1.0, 0.0), "never": metrics_of_choice(0.9, 0.1)}.items():
        grid, _ = toy.toy_grid(tmp_path / case, names=NAMES)
        grid.__class__ = Improving
        assert isinstance(grid, Improving)
        grid.evil, events = evil, toy.Events([])
        toy.federate(
            grid, toy.toy_spec(rounds=3, ema=0.0), CheckpointStore(tmp_path / case / "run"), events,
            stages=["guidance"], sites=NAMES, poll_s=0.001, hooks=Hooks(**guard()),
        )  # fmt: skip
        assert [event["best_round"] for event in events.of("stage_done")] == [3]


def sums_of_choice(cell: str, elsewhere: float) -> Evil:
    def evil(kind: str, p: Payload) -> Payload:
        if kind == "evaluate" and any(name.startswith("nll/") for name in p.metrics):
            changed = {
                n: (0.0 if n == cell else elsewhere) if n.startswith("nll/") else v for n, v in p.metrics.items()
            }
            return replace(p, metrics=changed)
        return p

    return evil


@pytest.mark.parametrize("elsewhere", [1e200, 1e5, 40.0])
def test_one_site_does_not_choose_the_calibration(tmp_path: Path, honest: Any, elsewhere: float) -> None:
    final, events = federate(tmp_path / "evil", sums_of_choice("nll/96/4", elsewhere))
    ours, fair = final.calibration["guidance"], honest("fedavg").calibration["guidance"]
    assert ours.scale < 64.0 and not math.isclose(ours.scale, 64.0)
    assert abs(math.log2(ours.scale / fair.scale)) <= 2.0
    assert (("a", "metrics") in refused(events)) == (elsewhere == 1e200)


# ---- updates -----------------------------------------------------------------------------------
def just_below(norm: float) -> Evil:
    def evil(kind: str, p: Payload) -> Payload:
        if kind != "train":
            return p
        floats = [v for n, v in p.tensors.items() if v.dtype.kind == "f" and "running" not in n]
        step = np.float32(norm / math.sqrt(sum(v.size for v in floats)))
        sent = {n: v + step if v.dtype.kind == "f" and "running" not in n else v for n, v in p.tensors.items()}
        return replace(p, tensors=sent)

    return evil


@pytest.mark.parametrize("name", [*STRATEGIES, "fedyogi", "feddyn", "fedavgm"])
def test_a_norm_just_below_the_absolute_bound_moves_no_bias_by_hundreds(tmp_path: Path, honest: Any, name: str) -> None:
    chosen = StrategyConfig(name=name, **STRATEGIES.get(name, {}))
    final, events = federate(tmp_path / "evil", just_below(9000.0), strategy=chosen)
    assert np.abs(bias(final) - bias(honest(name))).max() < 5.0
    assert {event["site"] for event in events.of("site_clipped")} == {"a"}


def test_such_an_update_can_be_refused_by_name(tmp_path: Path) -> None:
    bounds = replace(guard()["bounds"], norm_rule="refuse")
    final, events = federate(tmp_path, just_below(9000.0), hooks={"bounds": bounds})
    assert refused(events) == {("a", "outlier")}
    assert all(set(row["sites"]) == {"b", "c"} and set(row["missing"]) == {"a"} for row in final.history)
    with pytest.raises(RoundError, match="2 of 3 sites replied well, 3 needed.*a: the update is larger"):
        federate(tmp_path / "all", just_below(9000.0), hooks={"bounds": bounds}, quorum=1.0)


def tensors(change: Callable[[str, np.ndarray], np.ndarray]) -> Evil:
    def evil(kind: str, p: Payload) -> Payload:
        return replace(p, tensors={n: change(n, v) for n, v in p.tensors.items()}) if kind == "train" else p

    return evil


DOMAINS: dict[str, Callable[[str, np.ndarray], np.ndarray]] = {
    "a variance below zero": lambda n, v: np.full_like(v, -50.0) if n.endswith("running_var") else v,
    "a counter of 2^62": lambda n, v: np.full_like(v, 2**62) if v.dtype.kind == "i" else v,
    "a counter that went back": lambda n, v: v - 100 if v.dtype.kind == "i" else v,
}


@pytest.mark.parametrize("case", DOMAINS)
def test_what_no_training_can_leave_in_a_buffer_is_refused_by_name(tmp_path: Path, case: str) -> None:
    final, events = federate(tmp_path, tensors(DOMAINS[case]))
    assert refused(events) == {("a", "domain")}
    assert all(set(row["val"]) == set(NAMES) for row in final.history)


# ---- the same code on both sides -----------------------------------------------------------------
def test_a_simulation_has_the_same_keys_and_sets_nothing() -> None:
    ours, theirs = RunConfig(), ServerRunConfig()
    assert (ours.max_share, ours.norm_rule) == (1.0, "off")
    assert (theirs.max_share, theirs.norm_rule) == (0.5, "clip")
    assert ours.norm_multiple == theirs.norm_multiple


def test_the_guard_changes_no_bit_of_honest_sites_that_are_alike(tmp_path: Path) -> None:
    from server.bounds import Bounds

    plain, _ = federate(tmp_path / "plain", hooks={"bounds": Bounds()})
    guarded, events = federate(tmp_path / "guarded")
    assert events.of("site_clipped") == []
    one, two = (f.states["guidance"] for f in (plain, guarded))
    if plain.history[0]["best_round"] == guarded.history[0]["best_round"]:
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
