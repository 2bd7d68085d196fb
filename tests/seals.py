"""Both halves of the seals, in one process: a coordinator and sites that know each other's keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message

from client.app import app
from client.seals import SiteSeals
from client.site import Rules
from fed_diffmic.exchange.audit import AuditLog, Head
from fed_diffmic.exchange.envelope import new_reply_key
from fed_diffmic.exchange.payload import Limits, Payload, Wire, decode, encode, request_name
from fed_diffmic.transport.identity import set_message_id
from fed_diffmic.transport.messages import task_message, wire_of
from server.hooks import Hooks
from server.seals import Seals
from tests import site_rules

COORDINATOR, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
SITE_KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("a", "b", "c")}
AMPLE = Limits(1 << 20)
TYPES = {
    "labels": "query.labels",
    "mask": "query.mask",
    "deliver": "query.deliver",
    "conform": "evaluate.conform",
    "assess": "evaluate.assess",
}


def key_of(name: str) -> Any:
    """The roster's keys."""
    return SITE_KEYS[name].public_key() if name in SITE_KEYS else None


def coordinator_seals(signer: Any = COORDINATOR) -> Seals:
    return Seals(signer, new_reply_key(), key_of)


def sealed_hooks(folder: Path, names: tuple[str, ...], **more: Any) -> Hooks:
    """Of a coordinator whose node 1 is the first of these sites, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    log = AuditLog(folder / "audit.jsonl", COORDINATOR, owner="coordinator")
    nodes = dict(enumerate(names, start=1))
    return Hooks(**{"names_of_nodes": lambda: nodes, "audit": log, "signer": COORDINATOR,
                    "seals": coordinator_seals(), **more})  # fmt: skip


def sealed_rules(folder: Path, name: str, state: Path, **more: Any) -> Rules:
    """A site's rules, with the coordinator's key pinned."""
    made = site_rules.rules(folder, name, key=SITE_KEYS[name], **more)
    return replace(made, seals=SiteSeals(name, COORDINATOR.public_key(), SITE_KEYS[name], state))


@dataclass
class Asker:
    """Somebody who sends requests to one site, as the coordinator does or nearly so."""

    seals: Seals = field(default_factory=coordinator_seals)
    length: int = 0

    def sealed(self, request: Payload, to: str = "a") -> Wire:
        """The request, sealed behind the next line of the log."""
        self.length += 1
        return self.seals.seal(encode(request), to=to, head=Head(self.length, f"{self.length:064x}"))

    def opened(self, reply: Message, request: Payload, site: str = "a") -> Payload:
        """The site's reply."""
        wire, _ = self.seals.open(
            wire_of(reply.content), request=request_name(request.header), site=site, limits=AMPLE
        )  # fmt: skip
        return decode(wire, AMPLE)


def deliver(wire: Wire, kind: str, context: Context, message_id: str = "1") -> Message:
    """What a site makes of something that came."""
    message = task_message(wire, node=1, message_type=TYPES.get(kind, kind), ttl=60.0, group="1")
    set_message_id(message, message_id)
    return app(message=message, context=context)


def facts_of(lines: list[Any], kind: str) -> list[Mapping[str, Any]]:
    """Facts of the lines of one kind."""
    return [line.facts for line in lines if line.kind == kind]
