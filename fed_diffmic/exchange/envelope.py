"""Encryption of a reply to the coordinator's key: HPKE for a fresh content key, AES-256-GCM for what the reply holds.

HPKE (RFC 9180; X25519, HKDF-SHA256, AES-256-GCM) carries 32 random bytes, which encrypt this one reply only. So the
nonces may simply be counted: 0 is the text, each piece of a tensor the next number. A tensor larger than
:data:`PIECE` is cut, because no call of the cipher takes more than 2 GiB; what is associated with each piece (its
number, the header's digest, the tensor's name, dtype and shape) does not decrypt in another place. Outside stands
neither a name nor a shape: a carrier sees how many bytes there are, and to whom.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from fed_diffmic.exchange.payload import MAX_BODY, Limits, PayloadError, Wire, WireArray, text_digest

PIECE = 256 * 2**20
TAG = 16
MAX_TEXT = 2 * MAX_BODY
_KEY_BYTES = 32
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True)
class Opened:
    """The decrypted text of a reply.

    Attributes:
        heads: the lines before the table.
        table: JSON: name, dtype, shape and bytes of each tensor, not yet read.
        body: the reply's header.
        key: of the content.
    """

    heads: list[str]
    table: str
    body: str
    key: bytes


def new_reply_key() -> X25519PrivateKey:
    """A key to which replies are encrypted; one a run."""
    return X25519PrivateKey.generate()


def reply_key_text(key: X25519PrivateKey) -> str:
    """Its public half as base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def parse_reply_key(text: str) -> X25519PublicKey:
    """Inverse of :func:`reply_key_text`.

    Raises:
        PayloadError: it is not one.
    """
    try:
        raw = base64.b64decode(text, validate=True)
        if base64.b64encode(raw).decode() != text:
            raise ValueError("another spelling of the same bytes")
        return X25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise PayloadError("the key for replies is not one") from error


def encrypt(wire: Wire, heads: Sequence[str], to: X25519PublicKey, context: bytes) -> Wire:
    """A reply that only the holder of the private half of ``to`` can read.

    Args:
        wire: the encoded reply; its arrays are taken out one by one.
        heads: lines that travel with the header and are read before it.
        to: public half of the reply key.
        context: what both sides know of the exchange; another context does not decrypt.
    """
    content_key = os.urandom(_KEY_BYTES)
    cipher = AESGCM(content_key)
    arrays = wire.arrays if isinstance(wire.arrays, dict) else dict(wire.arrays)
    rows = [(name, array.dtype, list(array.shape), len(array.data)) for name, array in arrays.items()]
    text = "\n".join([*heads, _compact(rows), wire.body])
    body = base64.b64encode(cipher.encrypt(_nonce(0), text.encode(), context)).decode()
    pieces: dict[str, WireArray] = {}
    for name, dtype, shape, size in rows:
        data = memoryview(arrays.pop(name).data)
        for start in _starts(size):
            number = len(pieces) + 1
            plain = data[start : start + PIECE]
            sealed = cipher.encrypt(_nonce(number), plain, _associated(number, wire.digest, name, dtype, shape))
            pieces[str(number)] = WireArray("uint8", (len(sealed),), sealed)
    envelope = _compact({"key": base64.b64encode(_SUITE.encrypt(content_key, to, info=context)).decode(), "v": 1})
    return Wire(body, text_digest(body), pieces, envelope)


def decrypt_text(wire: Wire, heads: int, key: X25519PrivateKey, context: bytes) -> Opened:
    """Everything of a reply but its tensors.

    Args:
        wire: as it came.
        heads: how many lines stand before the table.
        key: private half of the reply key.
        context: as it was encrypted with.

    Raises:
        PayloadError: it was not encrypted to this key and in this context, or was changed.
    """
    _check(isinstance(wire.body, str) and isinstance(wire.seal, str), "the reply is not sealed")
    _check(len(wire.body) <= 2 * MAX_TEXT and 0 < len(wire.seal) <= 1024, "the reply is not sealed")
    try:
        envelope = json.loads(wire.seal)
        content_key = _SUITE.decrypt(base64.b64decode(envelope["key"], validate=True), key, info=context)
        plain = AESGCM(content_key).decrypt(_nonce(0), base64.b64decode(wire.body, validate=True), context)
        lines = plain.decode().split("\n", heads + 1)
    except Exception as error:  # whatever a peer may have put there; nothing of it matters
        raise PayloadError("the reply is not encrypted to this run's key") from error
    _check(envelope == {"key": envelope["key"], "v": 1} and len(lines) == heads + 2, "the reply is not sealed")
    return Opened(lines[:heads], lines[heads], lines[heads + 1], content_key)


def decrypt_arrays(wire: Wire, opened: Opened, limits: Limits) -> dict[str, WireArray]:
    """The tensors of a reply whose text is known to be genuine; taken out of ``wire`` one by one.

    Raises:
        PayloadError: they are not those of the table, or more than expected.
    """
    rows = _rows(opened.table, limits)
    pieces = wire.arrays if isinstance(wire.arrays, dict) else dict(wire.arrays)
    sizes = [min(PIECE, size - start) + TAG for *_, size in rows for start in _starts(size)]
    _check(list(pieces) == [str(n + 1) for n in range(len(sizes))], "the tensors are not those of the table")
    _check(all(isinstance(piece.data, bytes) for piece in pieces.values()), "a tensor is not raw bytes")
    _check([len(piece.data) for piece in pieces.values()] == sizes, "the tensors are not those of the table")
    cipher, digest, number = AESGCM(opened.key), text_digest(opened.body), 0
    found: dict[str, WireArray] = {}
    for name, dtype, shape, size in rows:
        parts = []
        for _ in _starts(size):
            number += 1
            associated = _associated(number, digest, name, dtype, shape)
            try:
                parts.append(cipher.decrypt(_nonce(number), pieces.pop(str(number)).data, associated))
            except Exception as error:  # the cipher's own exception, or data of another type
                raise PayloadError("a tensor was changed on its way") from error
        found[name] = WireArray(dtype, tuple(shape), parts[0] if len(parts) == 1 else b"".join(parts))
    return found


def _rows(table: str, limits: Limits) -> list[list[Any]]:
    """Name, dtype, shape and bytes of each tensor; that the shape is one, the decoder judges."""
    try:
        rows: Any = json.loads(table)
    except (ValueError, RecursionError) as error:
        raise PayloadError("the table of tensors is not one") from error
    _check(isinstance(rows, list) and len(rows) <= limits.tensors, "there are more tensors than expected")
    for row in rows:
        _check(isinstance(row, list) and len(row) == 4, "the table of tensors is not one")
        name, dtype, shape, size = row
        _check(isinstance(name, str) and isinstance(dtype, str), "the table of tensors is not one")
        _check(isinstance(shape, list) and len(shape) <= 32, "the table of tensors is not one")
        _check(type(size) is int and 0 <= size <= limits.tensor_bytes, "the tensors are larger than expected")
    _check(sum(row[3] for row in rows) <= limits.tensor_bytes, "the tensors are larger than expected")
    _check(len({row[0] for row in rows}) == len(rows), "the table of tensors is not one")
    return rows


def _starts(size: int) -> Iterator[int]:
    """Where the pieces of a tensor begin; one of no bytes is a piece too."""
    yield from range(0, max(size, 1), PIECE)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _associated(number: int, digest: str, name: str, dtype: str, shape: Sequence[Any]) -> bytes:
    return _compact(["fed_diffmic tensor", number, digest, name, dtype, list(shape)]).encode()


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise PayloadError(sentence)
