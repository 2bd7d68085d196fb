"""Whatever one site replies or sends is that site's loss: the round is made by the others, and the run goes on.

The coordinator's own code over real messages in process, with toy networks.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import FedDiffmicError, RoundError
from fed_diffmic.exchange.payload import Payload, Wire, WireArray, encode, text_digest
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from tests import toy
from tests.trust.hostile import NAMES, Evil, Hostile, bias, federate, refused, strategy


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


# ---- what breaks a round -------------------------------------------------------------------------
def says(**metrics: float) -> Evil:
    def evil(kind: str, p: Payload) -> Payload:
        return replace(p, metrics={**p.metrics, **metrics}) if kind == "train" else p

    return evil


def lacks(figure: str) -> Evil:
    def evil(kind: str, p: Payload) -> Payload:
        return replace(p, metrics={n: v for n, v in p.metrics.items() if n != figure}) if kind == "train" else p

    return evil


@pytest.mark.parametrize(
    ("q", "loss"), [(1.0, 1e300), (1.03, 1e300), (20.0, 1e150), (20.0, 1e9), (1.0, 1e9), (0.1, 0.0), (1.0, 1e-300)]
)
def test_no_loss_of_one_site_ends_or_decides_qfedavg(tmp_path: Path, q: float, loss: float) -> None:
    chosen = StrategyConfig(name="qfedavg", q=q)
    honest, _ = federate(tmp_path / "honest", strategy=chosen, rounds=1)
    final, events = federate(tmp_path / "evil", says(initial_loss=loss), strategy=chosen, rounds=1)
    assert (("a", "metrics") in refused(events)) == (loss > 1e9)
    assert np.isfinite(bias(final)).all() and np.abs(bias(final) - bias(honest)).max() < 0.1
    moved = np.abs(final.states["guidance"]["head.weight"] - honest.states["guidance"]["head.weight"]).max()
    assert moved < 0.1


@pytest.mark.parametrize("steps", [1e-300, 0.0, 3.0])
def test_no_number_of_steps_decides_fednova(tmp_path: Path, steps: float) -> None:
    honest, _ = federate(tmp_path / "honest", strategy=strategy("fednova"), rounds=1)
    final, _ = federate(tmp_path / "evil", says(steps=steps), strategy=strategy("fednova"), rounds=1)
    assert np.abs(bias(final) - bias(honest)).max() < 0.05


@pytest.mark.parametrize(("name", "figure"), [("fednova", "steps"), ("qfedavg", "initial_loss")])
def test_a_site_that_does_not_say_what_the_algorithm_needs_is_left_out(tmp_path: Path, name: str, figure: str) -> None:
    final, events = federate(tmp_path, lacks(figure), strategy=strategy(name))
    assert refused(events) == {("a", "breaks")}
    assert all(set(row["sites"]) == {"b", "c"} and "a" in row["missing"] for row in final.history)
    with pytest.raises(RoundError, match="2 of 3 sites replied well.*a: the round cannot be aggregated"):
        federate(tmp_path / "all", lacks(figure), strategy=strategy(name), quorum=1.0)


def test_an_update_that_overflows_the_sum_is_left_out(tmp_path: Path) -> None:
    """Without any bound on norms: numbers that float32 holds, and momentum that it does not."""
    from server.bounds import Bounds

    def evil(kind: str, p: Payload) -> Payload:
        sent = {**p.tensors, "head.bias": np.full((3,), 3e38, np.float32)}
        return replace(p, tensors=sent) if kind == "train" else p

    chosen = StrategyConfig(name="fedavgm", server_lr=1000.0, server_momentum=0.0)
    hooks = {"max_update_norm": math.inf, "bounds": Bounds()}
    grid, _ = toy.toy_grid(tmp_path, names=NAMES)
    grid.__class__ = Hostile
    assert isinstance(grid, Hostile)
    grid.evil, events = evil, toy.Events([])
    final = toy.federate(
        grid, toy.toy_spec(rounds=1, ema=0.0, strategy=chosen, lr=1e-5), CheckpointStore(tmp_path / "run"), events,
        stages=["guidance"], sites=NAMES, quorum=0.6, poll_s=0.001, hooks=Hooks(**hooks),
    )  # fmt: skip
    assert refused(events) == {("a", "norm")}  # it fits no sum, and nothing of it is added
    assert set(final.history[0]["sites"]) == {"b", "c"}


# ---- replies that are none -----------------------------------------------------------------------
def shaped(shape: tuple[int, ...]) -> Evil:
    def evil(kind: str, p: Payload) -> Payload | Wire:
        if kind != "train":
            return p
        wire = encode(p)
        return replace(wire, arrays={**wire.arrays, "head.bias": WireArray("float32", shape, b"")})

    return evil


def bodied(before: str, after: str) -> Evil:
    def evil(kind: str, p: Payload) -> Payload | Wire:
        if kind != "train":
            return p
        wire = encode(replace(p, metrics={**p.metrics, "loss": 0.5}))
        text = wire.body.replace(before, after, 1)
        assert text != wire.body
        return Wire(**{**vars(wire), "body": text, "digest": text_digest(text)})

    return evil


REPLIES: dict[str, Evil] = {
    "no elements of a size that no array has": shaped((0, 2**62, 2**62)),
    "a side beyond 64 bits": shaped((0, 2**63)),
    "a figure of 400 digits": bodied('"loss":0.5', '"loss":' + "9" * 400),
    "a schema of 1.0": bodied('"schema":1', '"schema":1.0'),
    "an infinite round": bodied('"round":', '"x":1e999,"round":'),
    "nesting": bodied('"round":', '"audit":' + "[" * 900 + "]" * 900 + ',"round":'),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_that_is_none_costs_its_site_the_round(tmp_path: Path, case: str) -> None:
    final, events = federate(tmp_path, REPLIES[case], rounds=1)
    assert refused(events) == {("a", "malformed")}
    assert set(final.history[0]["sites"]) == {"b", "c"}


def test_a_text_that_would_not_fit_into_the_next_request_is_refused(tmp_path: Path) -> None:
    for field in ("state", "ledger", "claim"):

        def evil(kind: str, p: Payload, field: str = field) -> Payload:
            return replace(p, header={**p.header, field: "x" * 15_000_000}) if kind == "train" else p

        final, events = federate(tmp_path / field, evil)
        assert refused(events) == {("a", "header")}
        assert len(final.history) == 2


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("decode", OverflowError), ("decode", ValueError), ("decode", MemoryError),
        ("screen", RecursionError), ("payload_facts", KeyError), ("failure_of", TypeError),
    ],
)  # fmt: skip
def test_whatever_reading_a_reply_raises_is_that_sites_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: type[Exception]
) -> None:
    from server import reading

    honest: Any = getattr(reading, where)
    evil_replies: list[Any] = []

    def fails(*arguments: Any, **more: Any) -> Any:
        if evil_replies and inspect.currentframe().f_back.f_locals.get("site") == "a":  # type: ignore[union-attr]
            raise error("DOE_JANE")
        return honest(*arguments, **more)

    def evil(kind: str, p: Payload) -> Payload:
        if kind == "train":
            evil_replies.append(p)
        return p

    monkeypatch.setattr(reading, where, fails)
    final, events = federate(tmp_path, evil, rounds=1)
    assert refused(events) == {("a", "malformed")} and "DOE" not in str(events.log)
    assert set(final.history[0]["sites"]) == {"b", "c"}


def test_a_disk_that_is_full_is_not_a_sites_doing(tmp_path: Path) -> None:
    class Full:
        def append(self, kind: str, **facts: Any) -> None:
            if kind == "reply":
                raise FedDiffmicError("no space")

        def head(self) -> None:
            return None

    with pytest.raises(FedDiffmicError, match="no space"):
        federate(tmp_path, hooks={"audit": Full()})
