"""The process that opens DICOM files: ``python -m fed_diffmic.data.dicom.child``, one request after the other.

Decoders of compressed pixels are C and C++ code that meets hostile bytes. What they do wrong ends this process and not
the one that trains: it has a bound on memory, an alarm that ends it wherever it hangs, no output but its answers, and
no core dump. A request is a length, a JSON head and the file's bytes; an answer is a JSON head and the picture's bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

LENGTH = 8
MEMORY = 4 * 2**30
"""Bytes of address space, the libraries' own among them."""


def main() -> None:
    """Answer until the other end is closed."""
    out = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # decoders print what they like
    os.dup2(silent, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS knows no such bound
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    while True:
        request = receive(sys.stdin.buffer)
        if request is None:
            return
        head, data = request
        signal.setitimer(signal.ITIMER_REAL, float(head["seconds"]))
        answer, body = _answer(head, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(out, answer, body)


def _answer(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    from fed_diffmic.data.dicom.look import look_at, references
    from fed_diffmic.data.dicom.picture import picture_of
    from fed_diffmic.data.dicom.reasons import UnusableError

    try:
        if head["what"] == "look":
            return {"look": asdict(look_at(data))}, b""
        if head["what"] == "references":
            return {"references": references(data)}, b""
        found = picture_of(data, frame=head["frame"], window=head["window"], most_pixels=head["most_pixels"])
        shape = {"shape": found.pixels.shape, "dtype": found.pixels.dtype.str}
        return {**shape, "stated": asdict(found.stated), "narrow": found.narrow}, found.pixels.tobytes()
    except UnusableError as error:
        return {"reason": error.reason}, b""
    except MemoryError:
        return {"reason": "too_large"}, b""


def send(stream: BinaryIO, head: dict[str, Any], body: bytes) -> None:
    """Write one message."""
    stream.write(packed(head, body))
    stream.write(body)
    stream.flush()


def packed(head: dict[str, Any], body: bytes) -> bytes:
    """What goes before the body: length of the head, the head, which says how long the body is."""
    text = json.dumps({**head, "bytes": len(body)}).encode()
    return len(text).to_bytes(LENGTH, "big") + text


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None at the end."""
    length = stream.read(LENGTH)
    if len(length) < LENGTH:
        return None
    head = json.loads(stream.read(int.from_bytes(length, "big")))
    return head, stream.read(head["bytes"])


if __name__ == "__main__":
    main()
