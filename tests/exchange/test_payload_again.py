"""A text that was found good is read without being looked through again; nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fed_diffmic.exchange import payload as payload_module
from fed_diffmic.exchange.payload import Limits, Payload, PayloadError, Wire, decode, encode, text_digest

LIMITS = Limits(tensor_bytes=2**20)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> dict[str, None]:
    known: dict[str, None] = {}
    monkeypatch.setattr(payload_module, "_GOOD", known)
    return known


def made(**header: Any) -> Wire:
    return encode(Payload("train", {"round": 3, "nested": {"a": [1, 2.5, None, "ä"]}, **header}, {}, {"loss": 0.25}))


def test_a_text_that_is_known_is_read_as_one_that_is_not(nothing_is_known: dict[str, None]) -> None:
    wire = made()
    assert wire.body in nothing_is_known  # the sender looks through what it writes
    known = decode(wire, LIMITS)
    nothing_is_known.clear()
    assert decode(wire, LIMITS) == known == Payload("train", known.header, {}, {"loss": 0.25})


def test_what_a_receiver_changes_in_a_header_is_in_no_other_reading() -> None:
    wire = made()
    first: Any = decode(wire, LIMITS)
    first.header["nested"]["a"].append(4)
    assert decode(wire, LIMITS).header["nested"]["a"] == [1, 2.5, None, "ä"]


def test_what_was_refused_is_refused_again(nothing_is_known: dict[str, None]) -> None:
    good = made().body
    nothing_is_known.clear()
    bad = [
        good.replace('"round":3', '"round":NaN'),
        good.replace('"round":3', '"round":3,"round":4'),
        good.replace('"round":3', '"round": 3'),
        good.replace('"round":3', '"round":' + "9" * 30),
        json.dumps(json.loads(good)),
    ]
    for text in bad:
        for _ in range(2):
            with pytest.raises(PayloadError):
                decode(Wire(text, text_digest(text), {}), LIMITS)
    assert not nothing_is_known


def test_few_texts_and_no_long_one_are_remembered(nothing_is_known: dict[str, None]) -> None:
    made(long="x" * payload_module._REMEMBERED)
    assert not nothing_is_known
    for number in range(payload_module._MOST_GOOD + 5):
        made(number=number)
    assert len(nothing_is_known) == payload_module._MOST_GOOD
