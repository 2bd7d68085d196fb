"""A site's and a coordinator's log of one small run, line by line as the product writes them, and how to forge them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fed_diffmic.exchange.audit import AuditLog, read_lines
from fed_diffmic.exchange.audit_lines import DOMAIN, GENESIS, Head, canonical, line_digest
from fed_diffmic.exchange.envelope import new_reply_key, reply_key_text
from fed_diffmic.exchange.payload import Limits, Wire, text_digest
from fed_diffmic.exchange.seal import ReplySeal, open_reply, seal_reply, seal_request
from fed_diffmic.provision.keys import PrivateKey, load_private, make_site_key, sign

RUN, ARM, STAGE = "pilot", "federated", "plain"


def digest_of(*words: Any) -> str:
    """A digest that stands for something."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


@dataclass
class Logs:
    """Both sides' logs of a run of two rounds, and the keys."""

    folder: Path
    sealed: bool = True
    names: tuple[str, ...] = ("a", "b")
    sites: dict[str, AuditLog] = field(default_factory=dict)
    keys: dict[str, PrivateKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (*self.names, "coordinator"):
            make_site_key(self.folder / f"{name}.key")
            self.keys[name] = load_private(self.folder / f"{name}.key")
        self.reply_key = new_reply_key()
        self.coordinator = AuditLog(self.path("coordinator"), self.keys["coordinator"], owner="coordinator")
        self.sites = {name: AuditLog(self.path(name), self.keys[name], owner=name) for name in self.names}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def ask(self, task: str, index: int, weights: str, *, times: str = "") -> dict[str, str]:
        """One exchange with every site; the digests of the payloads that came."""
        return {name: self._ask(name, task, index, weights, times) for name in self.names}

    def _ask(self, name: str, task: str, index: int, weights: str, times: str) -> str:
        place = {"run": RUN, "arm": ARM, "stage": STAGE, "round": index}
        body = canonical({"task": task, **place, "site": name, "weights": weights, "times": times})
        facts = {"task": task, **place, "request": digest_of(body), "digest": text_digest(body), "bytes": 5}
        facts |= {"study": digest_of("study"), "weights": weights, "base": digest_of("base")}
        self.coordinator.append("request", site=name, **facts)
        wire, proof = Wire(body, text_digest(body), {}), {}
        if self.sealed:
            head, key = self.coordinator.head(), reply_key_text(self.reply_key)
            sealed = seal_request(wire, self.keys["coordinator"], to=name, head=head, reply_key=key)
            outer = json.loads(sealed.seal)
            proof = {"seal": outer["seal"], "seal_signature": outer["signature"]}
        log = self.sites[name]
        log.append("task", **facts, **proof)
        before = log.head()
        answer = canonical({"answer": task, **place, "site": name, "times": times})
        payload = {"reply": f"{task}.reply", "digest": text_digest(answer), "bytes": 7}
        log.append("payload", task=task, **place, request=facts["request"], **payload, figures={})
        proof = {}
        if self.sealed:
            seal = self._reply_seal(name, answer, str(facts["request"]), log.head())
            proof = {"seal": seal.signed.text, "seal_signature": seal.signed.signature}
        anchor = {"length": before.length, "digest": before.digest}
        said = {"site": name, **place, "request": facts["request"], **payload}
        self.coordinator.append("reply", **said, anchor=anchor, **proof)
        return str(payload["digest"])

    def _reply_seal(self, name: str, answer: str, request: str, head: Head) -> ReplySeal:
        wire = Wire(answer, text_digest(answer), {})
        key = reply_key_text(self.reply_key)
        sent = seal_reply(wire, self.keys[name], request=request, site=name, head=head, reply_key=key)
        public = self.keys[name].public_key()
        return open_reply(sent, self.reply_key, public, request=request, site=name, limits=Limits(100))[1]

    def run(self) -> Logs:
        """Two rounds, the choice of the second, its metrics at the end."""
        place = {"run": RUN, "arm": ARM, "stage": STAGE}
        for name in self.names:
            self.coordinator.append("site", run=RUN, site=name, key="", label="")
        self.coordinator.append("begun", **place, base=digest_of("base"), sent=digest_of("sent", 0))
        for index in (1, 2):
            payloads = self.ask("train", index, digest_of("sent", index - 1))
            made = {name: digest_of(name, index) for name in ("weights", "candidate", "sent")}
            self.coordinator.append("aggregate", **place, round=index, payloads=payloads, **made)
            self.ask("evaluate", index, digest_of("candidate", index))
            self.coordinator.append("checkpoint", **place, round=index)
        chosen = {"candidate": digest_of("candidate", 2), "base": digest_of("base")}
        self.coordinator.append("chosen", **place, round=2, **chosen)
        self.ask("evaluate", 0, digest_of("candidate", 2))
        self.ask("assess", 0, digest_of("candidate", 2))
        return self

    def forge(self, name: str, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Write a log anew with its keeper's key: every line through ``edit``, a line of none left out."""
        forge(self.path(name), self.keys[name], edit)


def forge(path: Path, key: PrivateKey, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Write a log anew, chained and signed as if it had always been so."""
    previous, made = GENESIS, []
    for line in read_lines(path):
        value = edit({"time": line.time, "kind": line.kind, "facts": json.loads(json.dumps(line.facts))})
        if value is None:
            continue
        value |= {"n": len(made) + 1, "previous": previous}
        value["digest"] = previous = line_digest(value)
        value["signature"] = base64.b64encode(sign(key, DOMAIN + value["digest"].encode())).decode()
        made.append(canonical(value))
    path.write_text("\n".join(made) + "\n")
