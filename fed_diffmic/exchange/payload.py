"""A payload: a JSON header, flat numbers and named tensors, under one digest.

On the wire a payload is a :class:`Wire`: a JSON text (``body``), its SHA-256, and raw little-endian
arrays. ``body`` names the digest of the tensors, so the one digest covers everything. Decoding is
strict and allocates nothing before the sizes agree: malformed input of any kind raises
:class:`PayloadError` with a fixed sentence. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.files import tensors_digest

Tensors = dict[str, np.ndarray]

SCHEMA = 1
MAX_BODY = 16 * 1024 * 1024
MAX_METRICS = 10_000
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
TENSOR_NAME = re.compile(r"(?:base/|algorithm/)?[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")
METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/.\-]{0,127}")
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


def pack(tensors: Tensors) -> Packed:
    """Tensors as they travel.

    Raises:
        PayloadError: a name or a dtype that :func:`decode` would refuse (a defect of the sender).
    """
    arrays, travelling = {}, {}
    for name, value in tensors.items():
        _check(TENSOR_NAME.fullmatch(name) is not None, "a tensor's name is not allowed")
        _check(value.dtype.name in DTYPES, "a tensor's dtype is not allowed")
        travelling[name] = little = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
        arrays[name] = WireArray(value.dtype.name, tuple(int(n) for n in value.shape), little.tobytes())
    return Packed(arrays, tensors_digest(travelling), sum(len(a.data) for a in arrays.values()))


def encode(payload: Payload, packed: Packed | None = None) -> Wire:
    """The payload as it travels.

    Args:
        packed: the payload's own tensors, already packed.

    Raises:
        PayloadError: it holds what :func:`decode` would refuse (a defect of the sender).
    """
    packed = packed or pack(payload.tensors)
    body = {
        "schema": SCHEMA,
        "kind": payload.kind,
        "header": dict(payload.header),
        "metrics": _metrics({k: float(v) for k, v in payload.metrics.items()}),
        "tensors": packed.digest,
    }
    try:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PayloadError("a header holds what JSON cannot") from error
    _check(len(text) <= MAX_BODY, "the header is too large")
    return Wire(text, text_digest(text), packed.arrays)


def decode(wire: Wire, limits: Limits) -> Payload:
    """The payload that travelled, with tensors in memory of their own.

    Raises:
        PayloadError: anything at all is wrong with it, or it is sealed: a seal is for who has the keys to check it.
    """
    _check(not wire.seal, "the payload is sealed")
    body = _read_body(wire)
    tensors = _read_arrays(wire.arrays, limits)
    _check(tensors_digest(tensors) == body["tensors"], "the digest of the tensors is wrong")
    return Payload(body["kind"], body["header"], tensors, _metrics(body["metrics"]))


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def request_name(header: Mapping[str, Any]) -> str:
    """Names a request by its header, which holds the digest of its weights; its reply must quote it.

    Whether a base came along does not change the name, so the same request sent again after a crash
    is recognised by the site.
    """
    return text_digest(json.dumps(dict(header), sort_keys=True, separators=(",", ":"), allow_nan=False))


def _read_body(wire: Wire) -> dict[str, Any]:
    _check(isinstance(wire.body, str) and isinstance(wire.digest, str), "the header is missing")
    _check(len(wire.body) <= MAX_BODY, "the header is too large")
    _check(text_digest(wire.body) == wire.digest, "the digest of the header is wrong")
    try:
        body = json.loads(wire.body, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise PayloadError("the header is not JSON") from error
    _check(isinstance(body, dict) and set(body) == _BODY_KEYS, "the header lacks fields or has others")
    _check(body["schema"] == SCHEMA and not isinstance(body["schema"], bool), "the schema is not one known here")
    _check(isinstance(body["kind"], str) and 0 < len(body["kind"]) <= 64, "the kind is not a word")
    _check(isinstance(body["header"], dict), "the header is not a mapping")
    _check(isinstance(body["tensors"], str), "the digest of the tensors is missing")
    return body


def _read_arrays(arrays: Mapping[str, WireArray], limits: Limits) -> Tensors:
    _check(len(arrays) <= limits.tensors, "there are more tensors than expected")
    _check(sum(len(a.data) for a in arrays.values()) <= limits.tensor_bytes, "the tensors are larger than expected")
    tensors: Tensors = {}
    for name, array in arrays.items():
        _check(isinstance(name, str) and TENSOR_NAME.fullmatch(name) is not None, "a tensor's name is not allowed")
        _check(array.dtype in DTYPES, "a tensor's dtype is not allowed")
        sizes = list(array.shape)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes)
        _check(whole and len(sizes) <= 32, "a tensor's shape is not one")
        dtype = np.dtype(array.dtype).newbyteorder("<")
        _check(math.prod(sizes) * dtype.itemsize == len(array.data), "a tensor's bytes do not fill its shape")
        if array.dtype == "bool":
            _check(not array.data.translate(None, b"\x00\x01"), "a tensor of booleans holds other values")
        tensors[name] = np.frombuffer(array.data, dtype=dtype).astype(np.dtype(array.dtype)).reshape(sizes)
    return tensors


def _metrics(value: object) -> dict[str, float]:
    _check(isinstance(value, dict) and len(value) <= MAX_METRICS, "the metrics are not a small mapping")
    assert isinstance(value, dict)
    for name, number in value.items():
        _check(METRIC_NAME.fullmatch(name) is not None, "a metric's name is not allowed")
        _check(isinstance(number, (int, float)) and not isinstance(number, bool), "a metric is not a number")
        _check(abs(number) <= 1e300, "a metric is not a finite number")
    return {name: float(number) for name, number in value.items()}


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
