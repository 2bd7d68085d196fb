"""What both sides' audit logs say of a request and of a payload, so that they can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.masking.session import MaskingError, Session
from fed_diffmic.exchange.payload import Payload, request_name, text_digest

LONGEST = 128
ANCHOR = "audit"


def request_facts(payload: Payload, digest: str, nbytes: int) -> dict[str, Any]:
    """A request: task, run, arm, stage, round, its name, digest of its header as it travelled, bytes of tensors.

    And what was asked: digests of the study, which holds every number, of the weights and of the frozen base, and of
    the calibration and the prediction sets under which metrics are asked for.
    """
    asked = {
        name: str(payload.header[name])[:LONGEST]
        for name in ("study", "weights", "base", "model")
        if name in payload.header
    }
    if "step" in payload.header:
        asked["step"] = str(payload.header["step"])[:LONGEST]
        asked |= summed_purpose(payload.header.get("session"))
    asked |= {
        name: value_digest(payload.header[name]) for name in ("calibration", "sureness") if name in payload.header
    }
    return {
        "task": payload.kind[:LONGEST],
        **place(payload.header),
        **asked,
        "request": request_name(payload.header),
        "digest": digest,
        "bytes": nbytes,
    }


def summed_purpose(session: object) -> dict[str, str]:
    """What a step of a masked sum is about, where that is not training: it names other weights then."""
    try:
        purpose = Session.parse(str(session)).purpose
    except MaskingError:
        return {}
    return {} if purpose == "train" else {"purpose": purpose}


def value_digest(value: Any) -> str:
    """Names a JSON value that came, or is about to travel."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def payload_facts(payload: Payload, digest: str) -> dict[str, Any]:
    """A payload from a site: kind, digest of the header that travelled (it names the tensors'), bytes of tensors."""
    return {"reply": payload.kind[:LONGEST], "digest": digest, "bytes": payload.tensor_bytes}


def place(header: Mapping[str, Any]) -> dict[str, Any]:
    """Run, arm, stage and round of a header, as far as they are there."""
    words = {name: str(header[name])[:LONGEST] for name in ("run", "arm", "stage") if name in header}
    return {**words, **({"round": header["round"]} if "round" in header else {})}


def anchored(payload: Payload, head: Head) -> Payload:
    """The payload with the head of its sender's chain in its header."""
    anchor = {"length": head.length, "digest": head.digest}
    return Payload(payload.kind, {**payload.header, ANCHOR: anchor}, payload.tensors, payload.metrics)


def anchor_of(header: Mapping[str, Any]) -> Head | None:
    """The head that a header carries, or none (there is none, or it is not one)."""
    value = header.get(ANCHOR)
    if not isinstance(value, dict) or set(value) != {"length", "digest"}:
        return None
    length, digest = value["length"], value["digest"]
    if type(length) is not int or not 0 <= length < 2**53 or type(digest) is not str or len(digest) != 64:
        return None
    return Head(length, digest)
