"""The contract of a codec, and how its bytes are packed: as they are, or by zstandard where that makes them fewer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import ClassVar

import numpy as np
import zstandard

from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.exchange.payload import PayloadError

LARGEST = 2.0**120
"""No codec takes a number beyond this: what is made of it stays finite."""
RAW, ZSTANDARD = 0, 1
LEVEL = 1
"""Of zstandard: higher levels take several times as long for under one percent."""
MAX_WINDOW = 2**27


class Codec(ABC):
    """One way to code the difference between two tensors.

    Bytes are decoded by whoever knows how many numbers they stand for: no length, shape or type travels, so a claimed
    one can reserve no memory.

    Args:
        config: the run's ``strategy`` group.
    """

    name: ClassVar[str]
    #: differences are coded; else tensors cross whole, in their own type
    lossy: ClassVar[bool] = True

    def __init__(self, config: StrategyConfig) -> None:
        self.config = config

    @abstractmethod
    def sizes(self, count: int) -> Collection[int]:
        """How many bytes ``count`` numbers (``>= 1``) may become, before they are packed."""

    @abstractmethod
    def encode(self, values: np.ndarray) -> bytes:
        """Bytes of ``values`` ``(count,)``, float32, finite, at most :data:`LARGEST`."""

    @abstractmethod
    def decode(self, data: bytes, count: int) -> np.ndarray:
        """The ``count`` numbers, float32, that bytes of one of :meth:`sizes` stand for.

        Raises:
            PayloadError: they are not such bytes.
        """


def packed(data: bytes) -> np.ndarray:
    """Bytes as they cross: one that says how, then they themselves or, where it is shorter, a frame of zstandard."""
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(data)
    chosen = bytes([ZSTANDARD]) + frame if len(frame) < len(data) else bytes([RAW]) + data
    return np.frombuffer(chosen, dtype=np.uint8)


def unpacked(array: np.ndarray, sizes: Collection[int]) -> bytes:
    """Inverse of :func:`packed`; what a frame claims to hold is one of ``sizes`` before anything is reserved for it.

    Raises:
        PayloadError: the bytes are not packed so, or become another number of bytes.
    """
    if array.dtype != np.uint8 or array.ndim != 1 or array.size < 1:
        raise PayloadError("a coded tensor is not bytes")
    how, data = int(array[0]), array[1:].tobytes()
    if how == RAW:
        if len(data) not in sizes:
            raise PayloadError("a coded tensor has another size than its numbers take")
        return data
    if how != ZSTANDARD:
        raise PayloadError("a coded tensor is packed in a way not known here")
    try:
        claimed = zstandard.get_frame_parameters(data).content_size
        if claimed not in sizes:
            raise PayloadError("a coded tensor has another size than its numbers take")
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        found = reader.decompress(data, max_output_size=claimed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError("a coded tensor cannot be unpacked") from error
    if len(found) != claimed:
        raise PayloadError("a coded tensor has another size than its numbers take")
    return found


def planes(values: np.ndarray) -> bytes:
    """Bytes of whole numbers, first all lowest ones, then all next: alike bytes stand together and pack better."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(values.size, values.dtype.itemsize).T).tobytes()


def joined(data: bytes, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Inverse of :func:`planes`."""
    size = np.dtype(dtype).itemsize
    columns = np.frombuffer(data, dtype=np.uint8).reshape(size, -1).T
    return np.ascontiguousarray(columns).view(np.dtype(dtype).newbyteorder("<")).reshape(-1).astype(dtype)


_REGISTRY: dict[str, type[Codec]] = {}


def register_codec(name: str) -> Callable[[type[Codec]], type[Codec]]:
    """Class decorator; a name used twice is a defect and raises at import."""

    def decorate(cls: type[Codec]) -> type[Codec]:
        if name in _REGISTRY:
            raise ValueError(f"codec {name!r} is registered twice")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return decorate


def codec_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_REGISTRY)


def build_codec(config: StrategyConfig) -> Codec:
    """The codec that ``strategy.codec`` names.

    Raises:
        ConfigError: there is none of that name.
    """
    if config.codec not in _REGISTRY:
        raise ConfigError("strategy.codec", config.codec, ", ".join(codec_names()))
    return _REGISTRY[config.codec](config)
