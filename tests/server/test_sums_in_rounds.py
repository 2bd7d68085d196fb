"""Rounds whose updates are folded as they come: who answers when, what breaks on the way, and what is left of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from fed_diffmic.algorithms import SiteUpdate
from fed_diffmic.algorithms.base import Algorithm
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.payload import Limits, Payload, encode
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import failure_message, from_record, reply_message, to_record
from server import aggregation, keeping
from server.bounds import Bounds
from server.checkpoints import CheckpointStore
from server.fold import Fold
from server.hooks import Hooks
from simulations.grid import InProcessGrid
from tests import toy

NAMES = ("a", "b", "c")
AMPLE = Limits(1 << 22)


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each round's training came to."""
    found: list[Any] = []
    honest = aggregation.aggregate

    def aggregate(run: Any, work: Any, answer: Any, noise: Any) -> Any:
        found.append(answer)
        return honest(run, work, answer, noise)

    monkeypatch.setattr("server.rounds.aggregate", aggregate)
    return found


class Tampered(InProcessGrid):
    """Replies of one kind pass through a function on their way."""

    def change(self, reply: Message, message: Message) -> Message:
        return reply

    def _run(self, message: Message) -> Message:
        reply = super()._run(message)
        if message.metadata.message_type != "train" or reply.has_error():
            return reply
        changed = self.change(reply, message)
        set_message_id(changed, f"changed-{message.metadata.message_id}")
        return changed


class Backwards(InProcessGrid):
    """The last site that was asked answers first."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages(list(message_ids)[::-1])


def federate(folder: Path, grid: type = InProcessGrid, change: Any = None, **settings: Any) -> tuple[Any, toy.Events]:
    made, _ = toy.toy_grid(folder, names=NAMES)
    made.__class__ = grid
    if change is not None:
        made.change = change  # type: ignore[attr-defined]
    strategy, bounds = settings.pop("strategy", StrategyConfig()), settings.pop("bounds", Bounds())
    events, spec = toy.Events([]), toy.toy_spec(rounds=settings.pop("rounds", 2), strategy=strategy)
    given = {"stages": ["guidance"], "sites": NAMES, "poll_s": 0.001, "hooks": Hooks(bounds=bounds), **settings}
    return toy.federate(made, spec, CheckpointStore(folder / "run"), events, **given), events


def test_no_update_is_left_of_a_round_but_its_sum(tmp_path: Path, answers: list[Any]) -> None:
    federate(tmp_path)
    for answer in answers:
        assert answer.updates == [] and answer.sums.count == 3
        assert all(not reply.tensors for reply in answer.outcome.replies.values())
        assert all(not site.tensors and site.num_examples == 12 for site in answer.sums.sites)
    assert len(answers) == 2
    kept = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not {name for name in kept if "safetensors" not in name and "json" not in name and name != "lock"}


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fednova", "median"])
def test_the_order_of_answers_changes_no_bit(tmp_path: Path, name: str) -> None:
    strategy = StrategyConfig(name=name)
    first, _ = federate(tmp_path / "1", strategy=strategy)
    other, _ = federate(tmp_path / "2", Backwards, strategy=strategy)
    assert first.digests == other.digests


def test_rules_that_nobody_breaks_change_no_bit(tmp_path: Path, answers: list[Any]) -> None:
    """With a cap or a bound on norms updates are set aside and folded in the end: the same integers."""
    plain, _ = federate(tmp_path / "0", rounds=1)
    assert answers.pop().sums is not None
    for number, bounds in enumerate((Bounds(0.5), Bounds(1.0, "clip", 1e6)), start=1):
        bounded, events = federate(tmp_path / str(number), bounds=bounds, rounds=1)
        assert plain.digests == bounded.digests and not events.of("site_clipped")
        answer = answers.pop()
        assert answer.sums is None and len(answer.updates) == 3


def test_what_is_set_aside_lies_in_no_memory_and_has_no_name(tmp_path: Path, answers: list[Any]) -> None:
    federate(tmp_path, strategy=StrategyConfig(name="median"), rounds=1)
    (answer,) = answers
    for update in answer.updates:
        assert all(isinstance(value.base, np.ndarray) for value in update.tensors.values())
        assert isinstance(update.tensors["head.weight"], np.memmap)
    assert {p.suffix for p in (tmp_path / "run" / "checkpoints").iterdir()} <= {".json", ".jsonl", ".safetensors", ""}


def wrong_piece(which: int) -> Any:
    """One byte of one tensor of a's reply is another than its digest says."""

    def change(reply: Message, message: Message) -> Message:
        if message.metadata.dst_node_id == 1:
            wire = encode(from_record(reply.content, AMPLE))
            name = list(wire.arrays)[which]
            data = bytearray(wire.arrays[name].data)
            data[0] ^= 1
            reply.content = to_record(
                replace(wire, arrays={**wire.arrays, name: replace(wire.arrays[name], data=bytes(data))})
            )
        return reply

    return change


def lost(reply: Message, message: Message) -> Message:
    """Site a fails for good in the middle of its answer."""
    return failure_message(2004, message) if message.metadata.dst_node_id == 1 else reply


def base_of_another_round(reply: Message, message: Message) -> Message:
    """Site a's update is to the weights that it was sent in the round before."""
    payload = from_record(reply.content, AMPLE)
    if message.metadata.dst_node_id != 1 or payload.header["round"] == 1:
        return reply
    return reply_message(replace(payload, header={**payload.header, "round": 1}), message)


def huge(reply: Message, message: Message) -> Message:
    """A running mean beyond every form of the sum; nothing else bounds it in a simulation."""
    payload = from_record(reply.content, AMPLE)
    if message.metadata.dst_node_id == 1:
        payload.tensors["norm.running_mean"][-1] = 1e30
    return reply_message(payload, message)


@pytest.mark.parametrize(("change", "code"), [(wrong_piece(2), "malformed"), (huge, "norm")])
def test_a_reply_that_is_wrong_anywhere_leaves_the_sum_untouched(tmp_path: Path, change: Any, code: str) -> None:
    """The round comes to what it comes to when the site is lost in the middle of its answer."""
    without, said = federate(tmp_path / "1", Tampered, lost, quorum=0.6, rounds=1)
    assert {e["site"] for e in said.of("site_failed")} == {"a"}
    final, events = federate(tmp_path / "2", Tampered, change, quorum=0.6, rounds=1)
    assert [(e["site"], e["code"]) for e in events.of("site_refused")] == [("a", code)]
    assert final.digests == without.digests and sorted(final.history[0]["sites"]) == ["b", "c"]


def test_an_update_to_the_base_of_another_round_has_no_part(tmp_path: Path) -> None:
    final, events = federate(tmp_path, Tampered, base_of_another_round, quorum=0.6)
    assert [(e["site"], e["code"], e["round"]) for e in events.of("site_refused")] == [("a", "replay", 2)]
    assert [sorted(row["sites"]) for row in final.history] == [["a", "b", "c"], ["b", "c"]]


class KilledError(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(0.5, "clip", 5.0)])
def test_a_coordinator_that_dies_with_half_a_sum_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: Bounds
) -> None:
    """Once two of round two's three updates are in."""
    whole, _ = federate(tmp_path / "1", bounds=bounds)
    taken = []

    def dying(honest: Any) -> Any:
        def take(self: Any, update: Any) -> None:
            taken.append(update.site)
            if len(taken) == 6:
                raise KilledError
            honest(self, update)

        return take

    with monkeypatch.context() as patch:
        for kept in (keeping.FoldedIn, keeping.SetAside):
            patch.setattr(kept, "take", dying(kept.take))
        with pytest.raises(KilledError):
            federate(tmp_path / "2", bounds=bounds)
    again, events = federate(tmp_path / "2", bounds=bounds)
    assert events.of("federation_resumed") and again.digests == whole.digests
    named = {path.suffix for path in (tmp_path / "2" / "run" / "checkpoints").iterdir()}
    assert named <= {".json", ".jsonl", ".safetensors", ""}


def far(reply: Message, message: Message) -> Message:
    """Site a's running mean moves by 1e5: more than the finest form of the sum takes."""
    payload = from_record(reply.content, AMPLE)
    if message.metadata.dst_node_id == 1:
        payload.tensors["norm.running_mean"][-1] += np.float32(1e5)
    return reply_message(payload, message)


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(0.9, "off")])
def test_a_tensor_that_is_summed_in_coarse_quanta_is_named(tmp_path: Path, bounds: Bounds) -> None:
    _, events = federate(tmp_path, Tampered, far, rounds=1, bounds=bounds)
    assert [(e["quanta"], e["round"]) for e in events.of("sum_coarse")] == [({"norm.running_mean": 2.0**-18}, 1)]


def test_a_late_site_that_is_heavier_than_all_fits_the_sum() -> None:
    """Its share is above 1; what it moves is in a coarser form if need be, never cut off."""
    before, kinds = {"w": np.zeros(3, np.float32)}, {"w": "parameter"}
    fold = Fold(before, kinds, 10.0)
    fold.add(SiteUpdate("a", {"w": np.full(3, 0.5, np.float32)}, 10), 10.0)
    fold.add(SiteUpdate("b", {"w": np.full(3, 0.25, np.float32)}, 990), 990.0)
    assert fold.coarse == {"w": 2.0**-34}
    np.testing.assert_allclose(fold.sums().mean("w"), 0.2525, rtol=1e-7)


def test_sums_that_an_algorithm_cannot_use_end_the_round_and_name_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflows(self: Any, current: Any, *_: Any) -> Any:
        return {name: value * value.dtype.type(0) / 0 for name, value in current.items()}, {}

    monkeypatch.setattr(Algorithm, "from_sums", overflows)
    with pytest.raises(RoundError, match=r"aggregation made .* infinite or not a number"):
        federate(tmp_path / "1", rounds=1)

    def divides(self: Any, *_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Algorithm, "from_sums", divides)
    with pytest.raises(RoundError, match="the sum of the updates of a, b, c cannot be aggregated"):
        federate(tmp_path / "2", rounds=1)


def test_the_weights_are_the_mean_in_float64_of_what_the_sites_sent(tmp_path: Path) -> None:
    """From the replies as they crossed: to one rounding of float32, and to the bit nearly everywhere."""
    sent: list[Payload] = []

    def watch(reply: Message, message: Message) -> Message:
        sent.append(from_record(reply.content, AMPLE))
        return reply

    federate(tmp_path, Tampered, watch, rounds=1)
    state = CheckpointStore(tmp_path / "run").load()
    assert state is not None and len(sent) == 3
    compared = [name for name, value in sent[0].tensors.items() if value.dtype.kind == "f"]
    for name in compared:
        twin = sum(p.tensors[name].astype(np.float64) for p in sent) / 3
        np.testing.assert_allclose(state.results["guidance"][name], twin.astype(np.float32), rtol=2e-7, atol=1e-9)
    assert len(compared) == 6
