"""Reading a pickle that can hold nothing but lists, dicts, tuples, strings, numbers, booleans and None.

A pickle is a program: unpickling a stranger's file runs what its author wrote. PMG2000's lists are published as
pickles, so they are read in two passes that each suffice. First every opcode is looked at without running it: only
those that build plain values are let through, in bounded number and with bounded arguments (an index of the memo can
otherwise ask for gigabytes). Then an unpickler that refuses to look up any class does the rest.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

MAX_BYTES = 64 << 20
MAX_OPCODES = 2_000_000
_MAX_DIGITS = 32

_MEMO = frozenset({"GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT"})
_WHOLE = frozenset({"INT", "LONG", "LONG1", "LONG4"})
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "NEWTRUE", "NEWFALSE", "NONE"}) | _WHOLE
_TEXT = frozenset(
    {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
)
_LISTS = frozenset({"EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_DICTS = frozenset({"EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"})
_FRAME = frozenset({"PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE"})
_PLAIN = _MEMO | _NUMBERS | _TEXT | _LISTS | _DICTS | _FRAME


class PlainPickleError(ValueError):
    """The pickle is damaged, too large, or would build what is not plain; says which, quoting nothing of it."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise PlainPickleError("it names a class or a function")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise PlainPickleError("it refers to an object outside itself")


def load_plain(data: bytes) -> Any:
    """Build the plain value that a pickle holds.

    Raises:
        PlainPickleError: it holds anything else, is damaged, or exceeds the bounds.
    """
    if len(data) > MAX_BYTES:
        raise PlainPickleError(f"it is larger than {MAX_BYTES >> 20} MiB")
    _check_opcodes(data)
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except PlainPickleError:
        raise
    except Exception as error:  # the unpickler raises almost anything on damaged bytes; its text may quote the content
        raise PlainPickleError(f"it is damaged ({type(error).__name__})") from None


def _check_opcodes(data: bytes) -> None:
    """Walk through the program without running it."""
    count = 0
    try:
        for opcode, found, position in pickletools.genops(data):
            argument: Any = found
            count += 1
            if count > MAX_OPCODES:
                raise PlainPickleError(f"it has more than {MAX_OPCODES:,} instructions")
            if opcode.name not in _PLAIN:
                raise PlainPickleError(f"it would build more than plain values ({opcode.name} at byte {position})")
            if opcode.name in _MEMO and int(argument) > len(data):
                raise PlainPickleError(f"an index is out of all proportion (at byte {position})")
            if opcode.name in _WHOLE and abs(argument) >= 10**_MAX_DIGITS:
                raise PlainPickleError(f"a number is out of all proportion (at byte {position})")
    except PlainPickleError:
        raise
    except Exception as error:  # genops raises ValueError, IndexError, UnicodeDecodeError, ... quoting the content
        raise PlainPickleError(f"it is damaged ({type(error).__name__})") from None
