"""Whole sets of tensors as they cross: differences to a named set coded, everything that must stay exact as it is.

Coded are float32 tensors of two dimensions and more with at least :data:`LEAST` numbers: the weights of layers, more
than 98 in 100 numbers of every model here. Counters and other integers, vectors (norms, biases, statistics), and
variances, which may not become negative, cross exactly. What is coded crosses as bytes (uint8) under :data:`DELTA` and
its own name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fed_diffmic.exchange.codecs.base import LARGEST, Codec, packed, unpacked
from fed_diffmic.exchange.payload import PayloadError, Tensors

DELTA = "delta/"
LEAST = 16
VARIANCES = ("running_var", "variance")
"""What a buffer's name ends with if no number in it can be negative."""

Schema = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Coded:
    """A set of tensors, coded.

    Attributes:
        travels: what crosses.
        decoded: what whoever decodes it holds, by the set's own names.
        residual: what was left out, by the names of the coded tensors: to be added next time.
    """

    travels: Tensors
    decoded: Tensors
    residual: Tensors


def is_coded(codec: Codec, name: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of that name, type and shape is coded; else it crosses exactly."""
    return (
        codec.lossy
        and dtype == "float32"
        and len(shape) >= 2
        and math.prod(shape) >= LEAST
        and not name.endswith(VARIANCES)
    )


def code(codec: Codec, tensors: Tensors, reference: Tensors, residual: Tensors | None = None) -> Coded:
    """Code ``tensors`` as differences to ``reference``, which the receiver holds.

    Args:
        residual: what was left out the last time (:attr:`Coded.residual`); a name that is not there: nothing.

    Raises:
        ValueError: a difference is not finite, or too large to be coded (:data:`LARGEST`).
    """
    travels, decoded, left = {}, {}, {}
    for name, value in tensors.items():
        known = reference.get(name)
        if known is None or not is_coded(codec, name, value.dtype.name, value.shape):
            travels[name] = decoded[name] = value
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = (value - known).reshape(-1)
            if residual and name in residual:
                wanted += residual[name].reshape(-1)
        if not np.abs(wanted).max() <= LARGEST:
            raise ValueError(f"the change of {name} is not a number that {codec.name} can code")
        data = codec.encode(wanted)
        found = codec.decode(data, wanted.size)
        travels[DELTA + name] = packed(data)
        decoded[name] = known + found.reshape(value.shape)
        left[name] = (wanted - found).reshape(value.shape)
    return Coded(travels, decoded, left)


def restore(codec: Codec, travelled: Tensors, reference: Tensors) -> Tensors:
    """The tensors that what travelled stands for.

    Args:
        reference: the set to which differences were taken.

    Raises:
        PayloadError: it was not coded by ``codec`` against such a set.
    """
    found: Tensors = {}
    for name, value in travelled.items():
        bare = name.removeprefix(DELTA)
        if bare in found:
            raise PayloadError("a tensor is there twice")
        if bare == name:
            found[name] = value
            continue
        known = reference.get(bare)
        if known is None or not is_coded(codec, bare, known.dtype.name, known.shape):
            raise PayloadError("a tensor is coded that cannot be")
        changes = codec.decode(unpacked(value, codec.sizes(known.size)), known.size)
        with np.errstate(over="ignore"):
            restored = known + changes.reshape(known.shape)
        if not np.isfinite(restored).all():
            raise PayloadError("a coded number is not finite")
        found[bare] = restored
    return found


def coded_schema(codec: Codec, schema: Schema) -> dict[str, str]:
    """The names under which tensors of a schema cross, coded, each with its own."""
    return {DELTA + name if is_coded(codec, name, *kind) else name: name for name, kind in schema.items()}


def most_bytes(codec: Codec, schema: Schema) -> int:
    """The most bytes that tensors of a schema take when they cross, coded."""
    total = 0
    for name, (dtype, shape) in schema.items():
        count = math.prod(shape)
        coded = is_coded(codec, name, dtype, shape)
        total += 1 + max(codec.sizes(count)) if coded else np.dtype(dtype).itemsize * count
    return total
