"""A consortium of three in one process, of whose sites one says and sends what it likes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

from fed_diffmic.config.server import ServerRunConfig
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.exchange.payload import Limits, Payload, Wire
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import from_record, reply_message, to_record
from server.checkpoints import CheckpointStore
from server.hooks import Hooks
from simulations.grid import InProcessGrid
from tests import toy

AMPLE = Limits(1 << 22)
NAMES = ("a", "b", "c")
Evil = Callable[[str, Payload], Payload | Wire]
STRATEGIES = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"trim": 0.34},
    "krum": {"false_sites": 0},
    "qfedavg": {},
    "fednova": {},
    "fedadam": {"server_lr": 0.01},
    "scaffold": {},
}


def guard() -> dict[str, Any]:
    """What a coordinator that says nothing has; nothing where it is not known."""
    try:
        from server.bounds import Bounds
    except ImportError:
        return {}
    run = ServerRunConfig()
    return {"bounds": Bounds(run.max_share, run.norm_rule, run.norm_multiple)}


class Hostile(InProcessGrid):
    """The first site's good replies are changed on their way out."""

    evil: Evil

    def _run(self, message: Message) -> Message:
        reply = super()._run(message)
        if message.metadata.dst_node_id != 1 or reply.has_error():
            return reply
        payload = from_record(reply.content, AMPLE)
        changed = self.evil(message.metadata.message_type, payload)
        if changed is payload:
            return reply
        if isinstance(changed, Wire):
            reply.content = to_record(changed)
            return reply
        answer = reply_message(changed, message)
        set_message_id(answer, f"evil-{message.metadata.message_id}")
        return answer


def federate(
    folder: Path, evil: Evil | None = None, *, names: tuple[str, ...] = NAMES, hooks: dict[str, Any] | None = None,
    quorum: float = 0.6, join_s: float = 1.0, **spec: Any,
) -> tuple[Any, toy.Events]:  # fmt: skip
    grid, _ = toy.toy_grid(folder, names=names)
    if evil is not None:
        grid.__class__ = Hostile
        assert isinstance(grid, Hostile)
        grid.evil = evil
    events = toy.Events([])
    final = toy.federate(
        grid, toy.toy_spec(**{"rounds": 2, "ema": 0.0, **spec}), CheckpointStore(folder / "run"), events,
        stages=["guidance"], sites=names, quorum=quorum, poll_s=0.001, join_s=join_s,
        hooks=Hooks(max_update_norm=10_000.0, **{**guard(), **(hooks or {})}),
    )  # fmt: skip
    return final, events


def strategy(name: str) -> StrategyConfig:
    return StrategyConfig(name=name, **STRATEGIES[name])


def bias(final: Any) -> np.ndarray:
    return np.asarray(final.states["guidance"]["head.bias"])


def refused(events: toy.Events) -> set[tuple[str, str]]:
    return {(event["site"], event["code"]) for event in events.of("site_refused")}
