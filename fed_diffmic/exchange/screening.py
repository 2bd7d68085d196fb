"""Screening: what the coordinator checks of a reply before any algorithm sees it.

Flower's own strategies take NaN, negative weights and any shape as they come. Here a reply passes
only if it answers the very request that was sent, in the agreed schema, with finite numbers. A
refusal is a code and a fixed sentence, nothing of what the site sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fed_diffmic.exchange.audit_facts import ANCHOR, anchor_of
from fed_diffmic.exchange.codecs import DELTA, Codec, coded_schema, most_bytes, restore
from fed_diffmic.exchange.codecs.sets import VARIANCES
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, Tensors

MAX_EXAMPLES = 2**40
LONGEST_FIELD = 16_384
"""Characters of a text in a reply's header: some are sent back with the next request, which has a bound of its own."""
MAX_METRIC = 1e9
"""The largest loss, number of steps or of seconds that is taken: sums and powers of such numbers stay finite."""
COUNTS_A_STEP = 64
"""How often one optimizer step may move a counter (``num_batches_tracked``): the layer is called once, or once for each
of a few parts of a batch."""

REFUSALS: dict[str, str] = {
    "malformed": "the reply is not a payload",
    "seal": "the reply is not sealed by the site that was asked, as its answer to this request",
    "kind": "the reply is not the kind that was asked for",
    "header": "the reply's header lacks fields, has others, or has wrong types",
    "replay": "the reply answers another request",
    "codec": "the reply's tensors are not coded as agreed, or cannot be decoded",
    "names": "the reply lacks tensors or has others",
    "dtype": "a tensor has another dtype than agreed",
    "shape": "a tensor has another shape than agreed",
    "not_finite": "a tensor holds infinities or not-a-number",
    "weight": "the number of images is not a positive whole number, or larger than the site said at the start",
    "norm": "the update is larger than the coordinator takes",
    "domain": "a tensor holds values that it cannot have (a negative variance, a counter that went back or too far)",
    "metrics": "a figure is not one agreed or lies outside its range",
    "duplicate": "the same reply came before",
    "late": "the reply came after the deadline",
    "unexpected": "the reply answers no request that is open",
    "site": "the reply speaks for another site",
    "roster": "the coordinator's roster no longer names the site",
    "claim": "the site says that it has more images than its entry in the roster allows",
    "suppressed": "the site keeps back how many training images it has, without which it cannot be weighted",
    "outlier": "the update is larger than run.norm_multiple times the median of the round",
    "breaks": "the round cannot be aggregated with the site's update, and can without it",
    "name": "the node says that it is another site than its key's in the roster",
}


@dataclass(frozen=True)
class Refusal:
    """Why a reply was refused.

    Attributes:
        code: a key of :data:`REFUSALS`.
    """

    code: str

    @property
    def sentence(self) -> str:
        """The fixed sentence."""
        return REFUSALS[self.code]


@dataclass(frozen=True)
class Expected:
    """What a good reply to one request looks like.

    Attributes:
        kind: its kind.
        header: fields whose values are known (run, arm, stage, round, site, request).
        fields: further header fields that must be there, with their type.
        optional: header fields that may be there, with their type.
        schema: dtype and shape of each tensor; no tensor more, none less.
        weighted: whether ``num_examples`` in the header must be a positive whole number.
        max_examples: the largest that it may be.
        reference: the tensors that were sent, from which the size of an update is measured.
        max_norm: the largest L2 norm that an update may have.
        max_steps: the most optimizer steps that the site can have made, which bounds its counters.
        metrics: range of each figure that may come; a name ending in ``/`` stands for all that start so.
        codec: how tensors are coded, as differences to ``reference``; none: they come as they are.
    """

    kind: str
    header: Mapping[str, Any]
    fields: Mapping[str, type] = field(default_factory=dict)
    optional: Mapping[str, type] = field(default_factory=lambda: {ANCHOR: dict})
    schema: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    weighted: bool = False
    max_examples: int = MAX_EXAMPLES
    reference: Tensors = field(default_factory=dict)
    max_norm: float = math.inf
    max_steps: int = MAX_EXAMPLES
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    codec: Codec | None = None

    @property
    def limits(self) -> Limits:
        """The most that the decoder needs to accept."""
        if self.codec is not None:
            return Limits(tensor_bytes=most_bytes(self.codec, self.schema), tensors=len(self.schema))
        sizes = (np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.schema.values())
        return Limits(tensor_bytes=sum(sizes), tensors=len(self.schema))


def update_norm(tensors: Tensors, reference: Tensors) -> float:
    """L2 norm of the difference over all floating-point tensors, summed in float64; counters do not count.

    Infinite where a shape is another; not a number or infinite where a tensor is.
    """
    total = 0.0
    for name, value in tensors.items():
        if value.dtype.kind == "f":
            if value.shape != reference[name].shape:
                return math.inf
            difference = value.astype(np.float64) - reference[name].astype(np.float64)
            total += float(np.vdot(difference, difference))
    return math.sqrt(total) if total >= 0 else math.nan


def in_domain(name: str, value: np.ndarray, reference: np.ndarray, steps: int) -> bool:
    """Whether a buffer's values are some that training can give it, from ``reference`` in at most ``steps`` steps."""
    if value.dtype.kind in "iu":
        # Python's integers: a difference of 64-bit counters may need 65 bits.
        moved = [int(new) - int(old) for new, old in zip(value.flat, reference.flat, strict=True)]
        return all(0 <= difference <= COUNTS_A_STEP * steps for difference in moved)
    return not name.endswith(VARIANCES) or bool((value >= 0).all())


def schema_of(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each tensor."""
    return {name: (value.dtype.name, tuple(value.shape)) for name, value in tensors.items()}


def decoded(reply: Payload, expected: Expected) -> tuple[Payload, Refusal | None]:
    """The reply with its tensors as whoever trusts it will see them, or as they came with the reason to refuse them.

    Every tensor that the codec codes must have come so, under no name but its own.
    """
    if expected.codec is None or not reply.tensors:
        return reply, None
    wanted = coded_schema(expected.codec, expected.schema)
    if set(reply.tensors) != set(wanted):
        bare = {name.removeprefix(DELTA) for name in reply.tensors}
        return reply, Refusal("codec" if bare == set(wanted.values()) else "names")
    try:
        return replace(reply, tensors=restore(expected.codec, reply.tensors, expected.reference)), None
    except PayloadError:
        return reply, Refusal("codec")


def screen(reply: Payload, expected: Expected) -> Refusal | None:
    """The first reason to refuse the reply, or none."""
    if reply.kind != expected.kind:
        return Refusal("kind")
    return (
        _screen_header(reply.header, expected)
        or _screen_tensors(reply.tensors, expected)
        or _screen_metrics(reply.metrics, expected)
    )


def _screen_header(header: Mapping[str, Any], expected: Expected) -> Refusal | None:
    weight = {"num_examples"} if expected.weighted else set()
    if set(header) - set(expected.optional) != set(expected.header) | set(expected.fields) | weight:
        return Refusal("header")
    for name, value in expected.header.items():
        if type(header[name]) is not type(value):
            return Refusal("header")
        if header[name] != value:
            return Refusal("site" if name == "site" else "replay")
    for name, kind in [*expected.fields.items(), *((n, k) for n, k in expected.optional.items() if n in header)]:
        if type(header[name]) is not kind or (kind is str and len(header[name]) > LONGEST_FIELD):
            return Refusal("header")
    if ANCHOR in header and anchor_of(header) is None:
        return Refusal("header")
    if expected.weighted:
        count = header["num_examples"]
        if type(count) is not int or not 0 < count <= expected.max_examples:
            return Refusal("weight")
    return None


def _screen_tensors(tensors: Tensors, expected: Expected) -> Refusal | None:
    if set(tensors) != set(expected.schema):
        return Refusal("names")
    for name, (dtype, shape) in expected.schema.items():
        value = tensors[name]
        if value.dtype.name != dtype:
            return Refusal("dtype")
        if tuple(value.shape) != shape:
            return Refusal("shape")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return Refusal("not_finite")
        if name in expected.reference and not in_domain(name, value, expected.reference[name], expected.max_steps):
            return Refusal("domain")
    if expected.max_norm < math.inf and not update_norm(tensors, expected.reference) <= expected.max_norm:
        return Refusal("norm")
    return None


def _screen_metrics(metrics: Mapping[str, float], expected: Expected) -> Refusal | None:
    for name, value in metrics.items():
        prefix = name.split("/", 1)[0] + "/"
        bounds = expected.metrics.get(name) or (expected.metrics.get(prefix) if "/" in name else None)
        if bounds is None or not bounds[0] <= value <= bounds[1]:
            return Refusal("metrics")
    return None
