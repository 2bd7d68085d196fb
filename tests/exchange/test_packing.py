"""What is sent to many: the bytes and the digest are those of packing it at once, and go when they are released."""

from __future__ import annotations

import numpy as np
import pytest

from fed_diffmic.exchange import packing
from fed_diffmic.exchange.packing import Packing
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, decode, encode, pack
from fed_diffmic.files import tensors_digest

TENSORS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(3, np.int64),
    "e": np.zeros((0, 2), np.int8),
}


def test_it_stands_for_what_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = Packing(TENSORS), []
    at_once = pack(TENSORS)

    def counted(tensors: dict[str, np.ndarray], digest: str = "") -> object:
        calls.append(digest)
        return pack(tensors, digest)

    monkeypatch.setattr(packing, "pack", counted)
    payload = Payload("train", {"run": "r"}, TENSORS)
    assert encode(payload, made) == encode(payload) and made.arrays == at_once.arrays
    assert (made.digest, made.nbytes) == (at_once.digest, at_once.nbytes) == (tensors_digest(TENSORS), 32)
    made.release()
    assert made.nbytes == 32 and calls == [""]  # without the bytes
    assert encode(payload, made) == encode(payload) and calls == ["", at_once.digest]  # nothing is hashed again


def test_bytes_that_came_are_the_tensors_unless_they_are_asked_for_as_ones_own() -> None:
    wire, limits = encode(Payload("train.reply", {}, TENSORS)), Limits(32)
    for own in (True, False):
        found = decode(wire, limits, own)
        assert all(np.array_equal(found.tensors[name], value) for name, value in TENSORS.items())
        assert found.tensors["w"].flags.writeable is own
    with pytest.raises(PayloadError):
        decode(wire, Limits(31), own=False)
