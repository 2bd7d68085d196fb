"""Rounds in which weights and updates cross coded: what sites hold, what travels, and that nothing travels twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from client import tasks
from client.crossing import RESIDUAL
from client.state import SiteStore
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.codecs import DELTA, build_codec, codec_names, restore
from fed_diffmic.exchange.payload import HELD, REFERENCE, Payload
from fed_diffmic.files import load_tensors, tensors_digest
from fed_diffmic.transport.messages import from_record
from server.broadcast import Broadcast
from server.checkpoints import CheckpointStore
from server.run_state import StageProgress
from tests import toy

LOSSY = [name for name in codec_names() if name != "float32"]
HEAD = "head.weight"


def spec(codec: str, ema: float = 0.0, rounds: int = 3, **strategy: Any) -> Any:
    chosen = StrategyConfig(codec=codec, topk_share=0.3, **strategy)
    return toy.toy_spec(ema=ema, rounds=rounds, strategy=chosen)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Payload, Payload]]:
    """Every request that crossed, with its reply, in order: kind, request, reply."""
    from client import app as app_module
    from client.app import LIMITS

    found: list[tuple[str, Payload, Payload]] = []
    honest = app_module.answer

    def answer(message: Any, context: Any, kind: str, task: Any) -> Any:
        request = from_record(message.content, LIMITS)
        reply = honest(message, context, kind, task)
        found.append((kind, request, Payload("error") if reply.has_error() else from_record(reply.content, LIMITS)))
        return reply

    monkeypatch.setattr(app_module, "answer", answer)
    return found


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)


def run(folder: Path, codec: str, **settings: Any) -> Any:
    grid, _ = toy.toy_grid(folder)
    return toy.short_run(folder, grid, spec(codec, **settings))


def weights_at(folder: Path, site: str) -> dict[str, dict[str, np.ndarray]]:
    kept = (folder / "sites" / site / "weights").glob("*.safetensors")
    return {path.stem: load_tensors(path) for path in kept}


@pytest.mark.parametrize(("codec", "ema"), [*((name, 0.0) for name in codec_names()), ("int8", 0.5)])
def test_every_site_holds_the_bits_that_the_coordinator_means(tmp_path: Path, codec: str, ema: float) -> None:
    """What was judged and chosen, and what every site keeps, is one and the same decoded set."""
    final = run(tmp_path, codec, ema=ema)
    last = CheckpointStore(tmp_path)
    last._pointer = last._previous  # the state after the last round, before the stage's end
    progress = last.load().progress
    names = {tensors_digest(progress.best)} if progress.best_round == 3 else set()
    for site in ("a", "b"):
        assert names | ({tensors_digest(progress.current)} if not ema else set()) <= weights_at(tmp_path, site).keys()
    assert bool(progress.residual) == (codec != "float32")
    assert names <= {tensors_digest({n: final.states["guidance"][n] for n in progress.best})}


def test_the_same_seeds_give_the_same_bits_and_bits_of_the_codec(tmp_path: Path) -> None:
    digests = [run(tmp_path / str(n), codec, rounds=2).digests for n, codec in enumerate((*LOSSY, "topk", "float32"))]
    *several, again, exact = [found["guidance"] for found in digests]
    assert several[-1] == again and len({*several, exact}) == 5


def test_three_transfers_a_round_are_two(tmp_path: Path) -> None:
    """The weights of a round's evaluation are those of the next training: they cross once."""
    final = run(tmp_path, "float32")
    state = final.states["guidance"]
    base = sum(value.nbytes for name, value in state.items() if "frozen" in name)
    update = sum(value.nbytes for value in state.values()) - base
    assert [row["bytes_sent"] for row in final.history] == [2 * (3 * update + base), 2 * 2 * update, 2 * 2 * update]


def test_with_a_moving_average_what_is_judged_crosses_too(tmp_path: Path) -> None:
    final = run(tmp_path, "float32", ema=0.5)
    state = final.states["guidance"]
    base = sum(value.nbytes for name, value in state.items() if "frozen" in name)
    update = sum(value.nbytes for value in state.values()) - base
    assert [row["bytes_sent"] for row in final.history] == [2 * (3 * update + base)] + [2 * 3 * update] * 2


def test_what_travels_is_coded_both_ways_and_counted(tmp_path: Path, asked: Any) -> None:
    final = run(tmp_path, "int8")
    trains = [(request, reply) for kind, request, reply in asked if kind == "train"]
    judges = [request for kind, request, _ in asked if kind == "evaluate" and request.header["round"]]
    assert not trains[0][0].header.keys() & {HELD, REFERENCE} and "base/frozen.weight" in trains[0][0].tensors
    for request, reply in trains[2:]:
        assert request.header[HELD] == request.header["weights"] and not request.tensors
        assert DELTA + HEAD in reply.tensors and HEAD not in reply.tensors
    for request in judges:
        assert request.header[REFERENCE] != request.header["weights"]
        assert DELTA + HEAD in request.tensors and HEAD not in request.tensors
        assert request.tensors["norm.num_batches_tracked"].dtype == np.int64
    crossed = sum(request.tensor_bytes + reply.tensor_bytes for _, request, reply in asked)
    assert final.bytes_sent == crossed


def test_a_site_that_lacks_weights_gets_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any) -> None:
    whole = run(tmp_path / "whole", "int4").digests
    honest = tasks.evaluate

    def losing(site: Any, *args: Any) -> Any:
        reply = honest(site, *args)
        if site.name == "b":
            shutil.rmtree(site.folder / "weights")
        return reply

    from client import app as app_module

    monkeypatch.setattr(app_module.tasks, "evaluate", losing)
    asked.clear()
    assert run(tmp_path / "lost", "int4").digests == whole
    lacking = [request for kind, request, reply in asked if reply.kind == "need_weights" and request.header["round"]]
    assert {request.header["site"] for request in lacking} == {"b"} and len(lacking) == 2  # rounds 2 and 3
    sent = [r for kind, r, _ in asked if kind == "train" and r.header["site"] == "b" and r.header["round"] > 1]
    assert [sorted(r.tensors.keys() & {HEAD}) for r in sent] == [[], [HEAD], [], [HEAD]]


def test_a_site_that_lacks_weights_and_base_gets_both(tmp_path: Path, asked: Any) -> None:
    """A folder that is emptied between two rounds, as a new disk would be: one question more, and the round goes on."""
    grid, _ = toy.toy_grid(tmp_path)
    toy.short_run(tmp_path, grid, spec("float32", rounds=1))
    for part in ("weights", "bases"):
        shutil.rmtree(tmp_path / "sites" / "b" / part)
    store = SiteStore(tmp_path / "sites" / "b")
    assert store.weights("0" * 64) is None
    asked.clear()
    (tmp_path / "final").rename(tmp_path / "before")
    state = CheckpointStore(tmp_path).load()
    assert state is not None and state.progress is None
    toy.short_run(tmp_path, grid, spec("float32", rounds=1))
    kinds = [reply.kind for _, request, reply in asked if request.header.get("site") == "b"]
    assert kinds == ["need_weights", "need_base", "evaluate.reply", "conform.reply"]


def test_scaffold_sends_its_control_exactly_down_and_coded_up(tmp_path: Path, asked: Any) -> None:
    run(tmp_path, "int8", name="scaffold")
    trains = [(request, reply) for kind, request, reply in asked if kind == "train"]
    control = "algorithm/control.head.weight"
    for request, reply in trains[2:]:
        assert request.tensors[control].dtype == np.float32 and HEAD not in request.tensors
        assert DELTA + control in reply.tensors


@pytest.mark.parametrize("name", ["feddyn", "ditto", "fedadam", "median"])
def test_every_algorithm_takes_coded_updates(tmp_path: Path, name: str) -> None:
    final = run(tmp_path, "int8", name=name, rounds=2)
    assert all(np.isfinite(value).all() for value in final.states["guidance"].values())


def test_what_coding_left_out_is_the_sites_declared_state(tmp_path: Path, asked: Any) -> None:
    run(tmp_path, "int4")
    trains = [(request, reply) for kind, request, reply in asked if kind == "train" and request.header["site"] == "a"]
    for (_, earlier), (request, _) in pairwise(trains):
        assert request.header["state"] == earlier.header["state"] != ""
    (path,) = (tmp_path / "sites" / "a" / "states").glob("*/*" + trains[-1][1].header["state"] + "*")
    assert set(load_tensors(path)) == {RESIDUAL + HEAD}


def test_a_reply_that_is_not_coded_as_agreed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tasks.train
    from client import app as app_module

    def mutations(reply: Payload) -> list[Payload]:
        coded, others = reply.tensors[DELTA + HEAD], {k: v for k, v in reply.tensors.items() if k != DELTA + HEAD}
        worse = coded.copy()
        worse[1:5] = 255  # its first scale is not a number
        return [
            replace(reply, tensors={**others, DELTA + HEAD: worse}),
            replace(reply, tensors={**others, DELTA + HEAD: coded[:-1]}),
            replace(reply, tensors={**others, HEAD: np.zeros((3, 2), np.float32)}),
        ]

    for which in range(3):
        events = toy.Events([])

        def train(site: Any, *args: Any, which: int = which) -> Payload:
            reply = honest(site, *args)
            return mutations(reply)[which] if site.name == "b" else reply

        monkeypatch.setattr(app_module.tasks, "train", train)
        folder = tmp_path / str(which)
        grid, _ = toy.toy_grid(folder)
        final = toy.short_run(folder, grid, spec("int8", rounds=1), events, quorum=0.5)
        assert final.history[-1]["sites"].keys() == {"a"}
        assert [(e["site"], e["code"]) for e in events.of("site_refused")] == [("b", "codec")]


def test_screening_sees_decoded_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coded update beyond the coordinator's bound is refused for its norm, not for its bytes."""
    from client import app as app_module
    from server.hooks import Hooks

    honest = tasks.train

    def train(site: Any, *args: Any) -> Payload:
        reply = honest(site, *args)
        coded = reply.tensors[DELTA + HEAD].copy()
        coded[1:5] = np.frombuffer(np.float32(10.0).tobytes(), dtype=np.uint8)
        return replace(reply, tensors={**reply.tensors, DELTA + HEAD: coded}) if site.name == "b" else reply

    monkeypatch.setattr(app_module.tasks, "train", train)
    events, (grid, _) = toy.Events([]), toy.toy_grid(tmp_path)
    toy.short_run(tmp_path, grid, spec("int8", rounds=1), events, quorum=0.5, hooks=Hooks(max_update_norm=100.0))
    assert [(e["site"], e["code"]) for e in events.of("site_refused")] == [("b", "norm")]


def test_what_the_sites_hold_is_what_the_deltas_say(tmp_path: Path, asked: Any) -> None:
    """The weights of a round, decoded here from what crossed, are those that the next request names."""
    run(tmp_path, "int4", rounds=2)
    held = asked_weights(asked)
    codec = build_codec(StrategyConfig(codec="int4"))
    for kind, request, _ in asked:
        if kind == "evaluate" and request.header["round"] and request.header["site"] == "a":
            held = restore(codec, request.tensors, held)
            assert tensors_digest(held) == request.header["weights"]


def asked_weights(asked: Any) -> dict[str, np.ndarray]:
    first = next(request for kind, request, _ in asked if kind == "train")
    return {name: value for name, value in first.tensors.items() if not name.startswith("base/")}


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_weights_come_to_what_was_meant(ema: float) -> None:
    """Aggregates that move by little each round: with what was left out added, the sum of the steps arrives."""
    rng = np.random.default_rng(0)
    sent = {"w": rng.standard_normal((20, 30)).astype(np.float32)}
    progress = StageProgress("guidance", frozen={}, current=sent)
    work: Any = SimpleNamespace(progress=progress, config=SimpleNamespace(ema=ema))
    broadcast, meant = Broadcast(build_codec(StrategyConfig(codec="int4"))), sent["w"].astype(np.float64)
    for _ in range(40):
        step = (rng.standard_normal((20, 30)) * 0.01 + 0.003).astype(np.float32)
        before, meant = progress.current, meant + step
        progress.current = {"w": before["w"] + step}
        judged, parcel = broadcast.settle(work, before)
        assert parcel.reference == tensors_digest(before) and set(parcel.tensors) == {DELTA + "w"}
        held = restore(build_codec(StrategyConfig(codec="int4")), parcel.tensors, before)
        assert tensors_digest(held) == tensors_digest(judged)
        assert (tensors_digest(judged) == tensors_digest(progress.current)) == (ema == 0.0)
    np.testing.assert_allclose(progress.current["w"], meant, atol=0.01)
