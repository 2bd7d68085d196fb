"""A payload: a JSON header, flat numbers and named tensors, under one digest.

On the wire a payload is a :class:`Wire`: a JSON text (``body``), its SHA-256, and raw little-endian
arrays. ``body`` names the digest of the tensors, so the one digest covers everything. Decoding is
strict and allocates nothing before the sizes agree: malformed input of any kind raises
:class:`PayloadError` with a fixed sentence. Nothing is ever unpickled.

One meaning has one encoding: a body is taken only as :func:`encode` would write it again, byte for byte, and what
cannot be written again as it was meant (infinities, halves of characters, numbers beyond 64 bits, nesting without
end) is in no body, of a sender neither. What was decoded can therefore be named, logged and sent on without a failure.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.files import tensors_digest

if TYPE_CHECKING:
    from fed_diffmic.exchange.packing import Packing

Tensors = dict[str, np.ndarray]

SCHEMA = 1
HELD, REFERENCE = "held", "reference"
CARRIED = (HELD, REFERENCE)
"""Fields of a request's header that say how its weights came, not which they are: digests of sets that the site was
sent before, of which one is a part of the weights, and to the other the coded tensors are differences."""
NEED_BASE, NEED_WEIGHTS = "need_base", "need_weights"
"""What a site answers that lacks the base, or a set of weights that the request builds on."""
MAX_BODY = 16 * 1024 * 1024
_REMEMBERED, _MOST_GOOD = 64 * 1024, 256  # characters of a text, and how many of the texts last found good
_GOOD: dict[str, None] = {}
_good = threading.Lock()
MAX_METRICS = 10_000
MAX_DEPTH = 32
MAX_DIMS = 32
MAX_ELEMENTS = 2**40  # a tensor without any element may not be of a size that no array can have
MAX_INT = 2**63 - 1
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
_ORDERS: tuple[Literal["<", ">", "="], ...] = ("<", ">", "=")
_TRAVELLING = {name: np.dtype(name).newbyteorder("<") for name in DTYPES}
_KINDS = {np.dtype(name).newbyteorder(order): name for name in DTYPES for order in _ORDERS}
TENSOR_NAME = re.compile(r"(?:delta/)?(?:base/|algorithm/)?[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/.\-]{0,127}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BODY_KEYS = {"schema", "kind", "header", "metrics", "tensors"}


class PayloadError(FedDiffmicError):
    """Bytes that are not a payload. ``sentence`` is fixed: it holds nothing of what was sent."""

    code = "FD010"
    exit_code = 5


@dataclass(frozen=True)
class Payload:
    """One request or one reply.

    Attributes:
        kind: what it is, for example ``train`` or ``train.reply``.
        header: JSON values.
        tensors: named arrays.
        metrics: flat, finite numbers.
    """

    kind: str
    header: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors together: what ``bytes_sent`` counts."""
        return sum(value.nbytes for value in self.tensors.values())


@dataclass(frozen=True)
class WireArray:
    """Raw little-endian bytes of one array in C order, with what they mean."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Wire:
    """A payload as it travels; ``seal`` (JSON text, empty: none) belongs to :mod:`fed_diffmic.exchange.seal`."""

    body: str
    digest: str
    arrays: Mapping[str, WireArray]
    seal: str = ""


@dataclass(frozen=True)
class Packed:
    """Tensors ready to travel, so that what many sites receive is packed and hashed once."""

    arrays: Mapping[str, WireArray]
    digest: str
    nbytes: int


@dataclass(frozen=True)
class Limits:
    """The most that a receiver is ready to take.

    Attributes:
        tensor_bytes: bytes of all tensors together.
        tensors: number of tensors.
    """

    tensor_bytes: int
    tensors: int = 100_000


def pack(tensors: Tensors, digest: str = "") -> Packed:
    """Tensors as they travel.

    Args:
        digest: of the tensors, where it is known.

    Raises:
        PayloadError: a name or a dtype that :func:`decode` would refuse (a defect of the sender).
    """
    arrays, travelling = {}, {}
    for name, value in tensors.items():
        _check(TENSOR_NAME.fullmatch(name) is not None, "a tensor's name is not allowed")
        kind = _KINDS.get(value.dtype, "")
        _check(bool(kind), "a tensor's dtype is not allowed")
        _check(_is_shape(value.shape), "a tensor's shape is not one")
        travelling[name] = little = np.asarray(value, dtype=_TRAVELLING[kind], order="C")
        arrays[name] = WireArray(kind, tuple(int(n) for n in value.shape), little.tobytes())
    return Packed(arrays, digest or tensors_digest(travelling), sum(len(a.data) for a in arrays.values()))


def encode(payload: Payload, packed: Packed | Packing | None = None) -> Wire:
    """The payload as it travels.

    Args:
        packed: the payload's own tensors, already packed.

    Raises:
        PayloadError: it holds what :func:`decode` would refuse (a defect of the sender).
    """
    packed = packed or pack(payload.tensors)
    text = body_of(payload, packed.digest)
    return Wire(text, text_digest(text), packed.arrays)


def body_of(payload: Payload, tensors: str) -> str:
    """The text that travels of a payload.

    Args:
        tensors: digest of its tensors.

    Raises:
        PayloadError: it holds what :func:`decode` would refuse (a defect of the sender).
    """
    try:
        body = {
            "schema": SCHEMA,
            "kind": payload.kind,
            "header": dict(payload.header),
            "metrics": {k: float(v) for k, v in payload.metrics.items()},
            "tensors": tensors,
        }
        text = _dumps(body)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError("a header holds what JSON cannot") from error
    _read_text(text)
    return text


def decode(wire: Wire, limits: Limits, own: bool = True) -> Payload:
    """The payload that travelled.

    Args:
        own: with tensors in memory of their own; else they are the bytes that came, and cannot be written.

    Raises:
        PayloadError: anything at all is wrong with it, or it is sealed: a seal is for who has the keys to check it.
    """
    _check(not wire.seal, "the payload is sealed")
    body = _read_body(wire)
    tensors = _read_arrays(wire.arrays, limits, own)
    _check(tensors_digest(tensors) == body["tensors"], "the digest of the tensors is wrong")
    return Payload(body["kind"], body["header"], tensors, body["metrics"])


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def request_name(header: Mapping[str, Any]) -> str:
    """Names a request by its header, which holds the digest of its weights; its reply must quote it.

    How the weights came (:data:`CARRIED`) and whether a base came along does not change the name, so the same request
    sent again, after a crash or because the site lacked something, is recognised by the site.
    """
    return text_digest(_dumps({name: value for name, value in header.items() if name not in CARRIED}))


def _dumps(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read_body(wire: Wire) -> dict[str, Any]:
    _check(isinstance(wire.body, str) and isinstance(wire.digest, str), "the header is missing")
    _check(len(wire.body) <= MAX_BODY, "the header is too large")
    _check(text_digest(wire.body) == wire.digest, "the digest of the header is wrong")
    return _read_text(wire.body)


def _read_text(text: str) -> dict[str, Any]:
    """The body that a text holds, for both directions, so that neither takes what the other refuses.

    What was found good is not looked through again: a text that this process wrote a moment ago it can read.
    """
    if len(text) > _REMEMBERED:
        return _examined(text)
    known = text in _GOOD
    body: dict[str, Any] = json.loads(text) if known else _examined(text)
    if not known:
        with _good:
            _GOOD[text] = None
            while len(_GOOD) > _MOST_GOOD:
                del _GOOD[next(iter(_GOOD))]
    return body


def _examined(text: str) -> dict[str, Any]:
    _check(len(text) <= MAX_BODY, "the header is too large")
    try:
        body = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PayloadError("the header is not JSON") from error
    _check(isinstance(body, dict) and set(body) == _BODY_KEYS, "the header lacks fields or has others")
    _check_values(body)
    _check(_dumps(body) == text, "the header is not written as headers are")
    _check(type(body["schema"]) is int and body["schema"] == SCHEMA, "the schema is not one known here")
    _check(isinstance(body["kind"], str) and 0 < len(body["kind"]) <= 64, "the kind is not a word")
    _check(isinstance(body["header"], dict), "the header is not a mapping")
    _check(isinstance(body["tensors"], str), "the digest of the tensors is missing")
    _check_metrics(body["metrics"])
    return body


def _check_values(body: Mapping[str, Any]) -> None:
    """Every value is one that JSON, a log and another sender can hold; the walk itself does not nest."""
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _check(value.isascii() or not _SURROGATE.search(value), "the header holds halves of characters")
            elif isinstance(value, float):
                _check(math.isfinite(value), "a number is not finite")
            elif isinstance(value, int):
                _check(-MAX_INT <= value <= MAX_INT, "a number is larger than 64 bits")
        level = inner
    _check(not level, "the header is nested too deeply")


def _read_arrays(arrays: Mapping[str, WireArray], limits: Limits, own: bool) -> Tensors:
    _check(len(arrays) <= limits.tensors, "there are more tensors than expected")
    _check(sum(len(a.data) for a in arrays.values()) <= limits.tensor_bytes, "the tensors are larger than expected")
    tensors: Tensors = {}
    for name, array in arrays.items():
        _check(isinstance(name, str) and TENSOR_NAME.fullmatch(name) is not None, "a tensor's name is not allowed")
        _check(array.dtype in DTYPES, "a tensor's dtype is not allowed")
        sizes = list(array.shape)
        whole = len(sizes) <= MAX_DIMS and all(type(n) is int and 0 <= n <= MAX_INT for n in sizes)
        _check(whole, "a tensor's shape is not one")
        dtype = _TRAVELLING[array.dtype]
        _check(math.prod(sizes) * dtype.itemsize == len(array.data), "a tensor's bytes do not fill its shape")
        _check(_is_shape(sizes), "a tensor's shape is not one")
        if array.dtype == "bool":
            _check(not array.data.translate(None, b"\x00\x01"), "a tensor of booleans holds other values")
        found = np.frombuffer(array.data, dtype=dtype).astype(np.dtype(array.dtype), copy=own)
        tensors[name] = found.reshape(sizes)
    return tensors


def _is_shape(sizes: Sequence[int]) -> bool:
    """Whether an array may have these sides; one of no elements has a size too, computed without its zeros."""
    return len(sizes) <= MAX_DIMS and math.prod(max(n, 1) for n in sizes) <= MAX_ELEMENTS


def _check_metrics(value: object) -> None:
    _check(isinstance(value, dict) and len(value) <= MAX_METRICS, "the metrics are not a small mapping")
    assert isinstance(value, dict)
    for name, number in value.items():
        _check(METRIC_NAME.fullmatch(name) is not None, "a metric's name is not allowed")
        _check(type(number) is float and abs(number) <= 1e300, "a metric is not a finite number")


def _refuse_constant(_: str) -> None:
    raise ValueError("NaN and infinities are not JSON")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError("a key is there twice")
        result[key] = value
    return result


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise PayloadError(sentence)
