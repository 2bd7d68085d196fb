"""A stranger's pickle: plain values come through, nothing else is ever looked up, called or allocated."""

import io
import os
import pickle
import struct
import sys
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.data import plain_pickle
from fed_diffmic.data.plain_pickle import PlainPickleError, load_plain

PLAIN = [
    {"img_root": "a.png", "label": 3, "w": 0.5, "t": (1, (2,), ()), "n": None, "b": [True, False], "big": 2**70}
] * 3


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(protocol):
    assert load_plain(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_strings_of_python_2():
    assert load_plain(b"\x80\x02]q\x00}q\x01(U\x05imageq\x02U\x05a.pngq\x03U\x05labelq\x04K\x01ua.") == [
        {"image": "a.png", "label": 1}
    ]


class Runs:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Builds:
    """Its pickle builds an object and sets its state."""

    def __init__(self):
        self.x = 1


class Slots:
    """Its pickle calls ``__new__`` with arguments."""

    def __new__(cls, *_):
        return super().__new__(cls)

    def __getnewargs__(self):
        return ("x",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_runs_code_is_refused_and_does_not_run(tmp_path, protocol):
    victim = tmp_path / "made"
    for value in (Runs(victim), [{"image": Runs(victim)}], {"a": [(Runs(victim),)]}):
        data = pickle.dumps(value, protocol)
        with pytest.raises(PlainPickleError, match="more than plain values"):
            load_plain(data)
        assert not victim.exists()
    pickle.loads(pickle.dumps(Runs(victim), protocol))  # the pickle does what it is refused for
    assert victim.exists()


@pytest.mark.parametrize(
    "value",
    [
        Builds(),
        Slots(),
        OrderedDict(a=1),
        {1, 2},
        frozenset({1}),
        b"bytes",
        bytearray(b"x"),
        Path("x"),
        np.float64(1),
        np.arange(3),
        os.getcwd,
        1j,
        object,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_other_objects_are_refused(value, protocol):
    with pytest.raises(PlainPickleError):
        load_plain(pickle.dumps([{"image": value}], protocol))


HANDMADE = {
    "GLOBAL": b"cos\nsystem\n.",
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'true'\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "PERSID": b"Pabc\n.",
    "BINPERSID": b"K\x01Q.",
    "EXT1": b"\x82\x01.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "memo of gigabytes": b"]r" + struct.pack("<I", 2**31 - 1) + b".",
    "memo of gigabytes in text": b"]p2000000000\n.",
    "number in text": b"I" + b"9" * 4000 + b"\n.",
    "number of kilobytes": b"\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000 + b".",
    "string longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "frame longer than the file": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"].",
    "no end": b"]",
    "empty": b"",
    "empty stack": b".",
    "unknown protocol": b"\x80\x63].",
    "unhashable key": b"}]K\x01s.",
}


@pytest.mark.parametrize("name", ["memo of gigabytes", "memo of gigabytes in text", "number of kilobytes"])
def test_what_would_fill_the_memory_is_refused_before_it_is_run(name, monkeypatch):
    monkeypatch.setattr(plain_pickle, "_PlainUnpickler", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(PlainPickleError, match="out of all proportion"):
        load_plain(HANDMADE[name])


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_attacks(name):
    with pytest.raises(PlainPickleError):
        load_plain(HANDMADE[name])


def test_each_guard_holds_alone(monkeypatch):
    """The unpickler refuses a class even if the walk over the opcodes were blind."""
    monkeypatch.setattr(plain_pickle, "_check_opcodes", lambda data: None)
    for name in ("GLOBAL", "INST", "OBJ", "STACK_GLOBAL", "BINPERSID"):
        with pytest.raises(PlainPickleError):
            load_plain(HANDMADE[name])


def test_size_and_number_of_instructions_are_bounded(monkeypatch):
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 100)
    with pytest.raises(PlainPickleError, match="larger"):
        load_plain(b"N" * 101)
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 10_000)
    monkeypatch.setattr(plain_pickle, "MAX_OPCODES", 50)
    with pytest.raises(PlainPickleError, match="instructions"):
        load_plain(pickle.dumps(list(range(60))))


def test_messages_quote_nothing_of_the_file():
    for data in (b"canna\nmueller\n.", b"Panna\n.", b"Ianna\n.", pickle.dumps(["anna"])[:-3]):
        with pytest.raises(PlainPickleError) as caught:
            load_plain(data)
        assert "anna" not in str(caught.value)
        assert caught.value.__cause__ is None


@cache
def looked_up():
    """Classes that any unpickler of this process has looked up since the first call.

    An audit hook stays for the life of a process and sees every event, ``id()`` included: one hook, and a short one.
    """
    seen = []
    sys.addaudithook(lambda event, args: seen.append(event) if event == "pickle.find_class" else None)
    return seen


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_pickle_is_plain_or_refused(protocol, flips):
    data = bytearray(pickle.dumps(PLAIN, protocol))
    for position, value in flips:
        data[position % len(data)] = value
    before = len(looked_up())
    try:
        value = load_plain(bytes(data))
    except PlainPickleError:
        value = None
    assert len(looked_up()) == before
    stack = [value]
    while stack:
        item = stack.pop()
        assert type(item) in (list, dict, tuple, str, int, float, bool, type(None))
        if isinstance(item, dict):
            stack.extend([*item.keys(), *item.values()])
        elif isinstance(item, (list, tuple)):
            stack.extend(x for x in item if x is not item)


def test_the_hook_above_can_see():
    """The audit event exists: an ordinary unpickler raises it."""
    before = len(looked_up())
    pickle.Unpickler(io.BytesIO(pickle.dumps(OrderedDict))).load()
    assert looked_up()[before:] == ["pickle.find_class"]
