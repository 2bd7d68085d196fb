"""Seals: who asks a site, and who answered, shown to each other past everybody who only carries messages.

A request carries the coordinator's **request seal**: canonical JSON ``{v, digest, to, head, reply_key}``, signed with
its signing key. It says which header (and, through it, which tensors) was asked of which site, where the coordinator's
audit log stood, and to which key the answer is to be encrypted. A reply carries the site's **reply seal**:
``{v, digest, request, from, head}``, signed with the key that the roster names. The reply's seal, header and tensors
travel encrypted (:mod:`fed_diffmic.exchange.envelope`): whoever carries them can neither read nor change nor invent
them. Texts are signed under a domain of their own, so that no signature stands for anything else.

Both seals are also facts of the audit logs (:meth:`Signed.facts`), where anybody can verify them later
(:func:`read_request_seal`, :func:`read_reply_seal`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.envelope import decrypt_arrays, decrypt_text, encrypt, parse_reply_key
from fed_diffmic.exchange.payload import Limits, PayloadError, Wire, text_digest
from fed_diffmic.provision.keys import PrivateKey, PublicKey, decode_signature, sign, verifies

VERSION = 1
LONGEST = 4096
UNSEALED, FORGED, FOREIGN = "unsealed", "forged", "foreign"
_REQUEST, _REPLY = b"fed_diffmic request seal\0", b"fed_diffmic reply seal\0"
_REQUEST_FIELDS = {"v", "digest", "to", "head", "reply_key"}
_REPLY_FIELDS = {"v", "digest", "request", "from", "head"}


class SealError(PayloadError):
    """A seal that is not there or does not hold.

    Args:
        reason: :data:`UNSEALED`, :data:`FORGED` or :data:`FOREIGN`.
        sentence: fixed; nothing of what was sent.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Signed:
    """A seal's text and the signature over it.

    Attributes:
        text: canonical JSON.
        signature: base64.
    """

    text: str
    signature: str

    def facts(self) -> dict[str, str]:
        """As they stand in an audit log."""
        return {"seal": self.text, "seal_signature": self.signature}


@dataclass(frozen=True)
class RequestSeal:
    """What the coordinator signed of a request.

    Attributes:
        digest: of the request's header.
        to: name of the site that is asked.
        head: of the coordinator's audit log when it asked.
        reply_key: base64 of the X25519 key to which the reply is encrypted.
        signed: its text and signature.
    """

    digest: str
    to: str
    head: Head
    reply_key: str
    signed: Signed


@dataclass(frozen=True)
class ReplySeal:
    """What a site signed of a reply.

    Attributes:
        digest: of the reply's header before it was encrypted.
        request: name of the request that it answers.
        site: name of the site.
        head: of the site's audit log, the line of this reply included.
        signed: its text and signature.
    """

    digest: str
    request: str
    site: str
    head: Head
    signed: Signed


def seal_request(wire: Wire, signer: PrivateKey, *, to: str, head: Head, reply_key: str) -> Wire:
    """The request under the coordinator's seal; nothing else of it changes.

    Args:
        wire: the encoded request.
        signer: the coordinator's signing key.
        to: the site's name in the roster.
        head: of the coordinator's audit log now.
        reply_key: of the run (:func:`fed_diffmic.exchange.envelope.reply_key_text`).
    """
    value = {"v": VERSION, "digest": wire.digest, "to": to, "head": _head_json(head), "reply_key": reply_key}
    signed = _signed(value, signer, _REQUEST)
    return replace(wire, seal=_canonical({"seal": signed.text, "signature": signed.signature}))


def check_request(wire: Wire, coordinator: PublicKey, site: str) -> RequestSeal:
    """The seal of a request, if it is the coordinator's, over this very request, for this site. Nothing is decoded.

    Args:
        wire: as it came.
        coordinator: the key that the site was given.
        site: its own name.

    Raises:
        SealError: it is not.
    """
    outer = _parse(wire.seal, {"seal", "signature"}) if isinstance(wire.seal, str) else None
    if outer is None or not all(isinstance(text, str) for text in outer.values()):
        raise SealError(UNSEALED, "the request has no seal")
    seal = read_request_seal(outer["seal"], outer["signature"], coordinator)
    if not isinstance(wire.body, str) or not seal.digest == wire.digest == text_digest(wire.body):
        raise SealError(FORGED, "the seal is that of another request")
    if seal.to != site:
        raise SealError(FOREIGN, "the request is sealed for another site")
    return seal


def read_request_seal(text: str, signature: str, coordinator: PublicKey) -> RequestSeal:
    """A request seal that the coordinator signed, as a request or an audit log holds it.

    Raises:
        SealError: it did not sign it, or it is not one.
    """
    value = _verified(text, signature, coordinator, _REQUEST, _REQUEST_FIELDS)
    if not _is_text(value["to"]) or not _is_text(value["reply_key"]):
        raise SealError(FORGED, "the seal is not one of a request")
    parse_reply_key(value["reply_key"])
    return RequestSeal(value["digest"], value["to"], _head(value), value["reply_key"], Signed(text, signature))


def seal_reply(wire: Wire, signer: PrivateKey, *, request: str, site: str, head: Head, reply_key: str) -> Wire:
    """The reply under the site's seal, encrypted to the run's reply key.

    The arrays are taken out of ``wire`` one by one as they are encrypted, so that one of them at most is there twice.

    Args:
        wire: the encoded reply; its arrays are gone afterwards.
        signer: the site's key.
        request: name of the request that it answers.
        site: the site's name.
        head: of the site's audit log now.
        reply_key: of the request's seal.

    Raises:
        PayloadError: ``reply_key`` is not one.
    """
    value = {"v": VERSION, "digest": wire.digest, "request": request, "from": site, "head": _head_json(head)}
    signed = _signed(value, signer, _REPLY)
    return encrypt(wire, [signed.text, signed.signature], parse_reply_key(reply_key), _context(request, site))


def open_reply(
    wire: Wire, reply_key: X25519PrivateKey, site_key: PublicKey, *, request: str, site: str, limits: Limits
) -> tuple[Wire, ReplySeal]:
    """A sealed reply as it was before it was encrypted, and its seal.

    The seal is verified before anything else of the content is parsed, and the arrays are taken out of ``wire`` one by
    one as they are decrypted.

    Args:
        wire: as it came; its arrays are gone afterwards.
        reply_key: private half of the run's reply key.
        site_key: the site's key in the roster.
        request: name of the request that was sent.
        site: whom it was sent to.
        limits: what is expected at most.

    Raises:
        SealError: it is not that site's answer to that request.
        PayloadError: anything else is wrong with it.
    """
    context = _context(request, site)
    try:
        opened = decrypt_text(wire, 2, reply_key, context)
    except PayloadError as error:
        raise SealError(UNSEALED, "the reply is not sealed") from error
    text, signature = opened.heads
    value = _verified(text, signature, site_key, _REPLY, _REPLY_FIELDS)
    if value["digest"] != text_digest(opened.body):
        raise SealError(FORGED, "the seal is that of another reply")
    if value["from"] != site or value["request"] != request:
        raise SealError(FOREIGN, "the reply is sealed as another site's, or as the answer to another request")
    seal = ReplySeal(value["digest"], request, site, _head(value), Signed(text, signature))
    return Wire(opened.body, seal.digest, decrypt_arrays(wire, opened, limits)), seal


def read_reply_seal(text: str, signature: str, site_key: PublicKey) -> ReplySeal:
    """A reply seal that a site signed, as the coordinator's audit log holds it.

    Raises:
        SealError: it did not sign it, or it is not one.
    """
    value = _verified(text, signature, site_key, _REPLY, _REPLY_FIELDS)
    if not _is_text(value["from"]) or not _is_text(value["request"]):
        raise SealError(FORGED, "the seal is not one of a reply")
    return ReplySeal(value["digest"], value["request"], value["from"], _head(value), Signed(text, signature))


def _signed(value: Mapping[str, Any], signer: PrivateKey, domain: bytes) -> Signed:
    text = _canonical(value)
    return Signed(text, base64.b64encode(sign(signer, domain + text.encode())).decode())


def _verified(text: str, signature: str, key: PublicKey, domain: bytes, names: set[str]) -> dict[str, Any]:
    """What ``key`` signed; the signature is verified before the text is read."""
    try:
        holds = len(text) <= LONGEST and verifies(key, decode_signature(signature), domain + text.encode())
    except (ValueError, TypeError):  # not base64, not text: no signature
        holds = False
    if not holds:
        raise SealError(FORGED, "the seal is not by the key that it should be by")
    value = _parse(text, names)
    if value is None or value["v"] != VERSION or type(value["v"]) is not int or not _is_digest(value["digest"]):
        raise SealError(FORGED, "the seal is of a form that is not known here")
    _head(value)
    return value


def _head(value: Mapping[str, Any]) -> Head:
    head = value["head"]
    if not isinstance(head, dict) or set(head) != {"length", "digest"} or not _is_digest(head["digest"]):
        raise SealError(FORGED, "the seal names no head of a log")
    if type(head["length"]) is not int or not 0 <= head["length"] < 2**53:
        raise SealError(FORGED, "the seal names no head of a log")
    return Head(head["length"], head["digest"])


def _head_json(head: Head) -> dict[str, Any]:
    return {"length": head.length, "digest": head.digest}


def _parse(text: str, names: set[str]) -> dict[str, Any] | None:
    """A small JSON object with exactly these names, written in the one canonical way; else none."""
    if len(text) > 2 * LONGEST:
        return None
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or set(value) != names or _canonical(value) != text:
            return None
    except (ValueError, RecursionError):
        return None
    return value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _context(request: str, site: str) -> bytes:
    """What an encrypted reply is bound to: whose it is, and what it answers."""
    return _canonical(["fed_diffmic reply", VERSION, request, site]).encode()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 512


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
