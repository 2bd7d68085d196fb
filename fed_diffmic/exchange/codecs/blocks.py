"""Whole numbers with a scale for each block of a tensor: what ``int8`` and ``int4`` share."""

from __future__ import annotations

import numpy as np

from fed_diffmic.exchange.payload import PayloadError


def quantised(values: np.ndarray, block: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiples of a scale, nearest to the values: ``(count,)`` int8 in ``-levels..levels``, and the scales.

    A block is ``block`` numbers that follow each other in C order (the last may be shorter): a row would be nine
    numbers in a depthwise filter and tens of thousands in a dense layer. Its scale is its largest magnitude over
    ``levels``.
    """
    padded = _padded(values, block)
    scales = np.abs(padded).max(axis=1) / np.float32(levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(scales[:, None] > 0, padded / scales[:, None], np.float32(0))
    # Where the scale is so small that it lost digits, the ratio may pass the last level.
    whole = np.clip(np.rint(ratio), -levels, levels).astype(np.int8)
    return whole.reshape(-1)[: values.size], scales.astype(np.float32)


def multiplied(whole: np.ndarray, scales: np.ndarray, block: int) -> np.ndarray:
    """The numbers ``(count,)``, float32, that multiples ``(count,)`` of their blocks' scales stand for.

    Raises:
        PayloadError: a scale is negative or not finite, or a number becomes infinite.
    """
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise PayloadError("a scale of a coded tensor is negative or not finite")
    with np.errstate(over="ignore"):
        values = (_padded(whole, block).astype(np.float32) * scales[:, None]).reshape(-1)[: whole.size]
    if not np.isfinite(values).all():
        raise PayloadError("a coded number is not finite")
    return values


def blocks_of(count: int, block: int) -> int:
    """How many blocks ``count`` numbers are."""
    return -(-count // block)


def scales_of(data: bytes) -> np.ndarray:
    """Scales as they cross: little-endian float32."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _padded(values: np.ndarray, block: int) -> np.ndarray:
    """``(blocks, block)``, filled up with zeros."""
    full = np.zeros(blocks_of(values.size, block) * block, dtype=values.dtype)
    full[: values.size] = values
    return full.reshape(-1, block)
