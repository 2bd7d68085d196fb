"""An append-only log that shows what was removed, changed or reordered: hash-chained and signed JSON lines.

A line holds ``n`` (from 1), ``time`` (UTC), ``kind``, ``facts``, ``previous`` (digest of the line before), ``digest``
(SHA-256 over those five) and ``signature`` (ECDSA over the digest, by the key of whoever keeps the log). A chain
alone cannot show that its end was cut off: so each payload carries the chain's head (:class:`Head`) to the other
side, whose own log keeps it (:func:`verify`'s anchors; :mod:`fed_diffmic.exchange.audit_compare`).

No fact names a file or a patient.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fed_diffmic.errors import FedDiffmicError, MachineError, ModelFileError
from fed_diffmic.files import append_line
from fed_diffmic.provision.keys import PrivateKey, PublicKey, decode_signature, fingerprint, sign, verifies

GENESIS = "0" * 64
LOCK_S = 30.0
_DOMAIN = b"fed_diffmic audit line\0"
_SIGNED = ("n", "time", "kind", "facts", "previous")
_FIELDS = {*_SIGNED, "digest", "signature"}
_TYPES = {"n": int, "time": str, "kind": str, "facts": dict, "previous": str, "digest": str, "signature": str}
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Head:
    """Where a chain stands.

    Attributes:
        length: number of lines.
        digest: of the last; :data:`GENESIS` before the first.
    """

    length: int = 0
    digest: str = GENESIS


@dataclass(frozen=True)
class Line:
    """One line that could be read."""

    n: int
    time: str
    kind: str
    facts: Mapping[str, Any]
    previous: str
    digest: str
    signature: str


@dataclass(frozen=True)
class Problem:
    """What is wrong with a log.

    Attributes:
        line: place in the file, from 1; 0 where it is the log as a whole.
        code: ``damaged``, ``changed``, ``signature``, ``removed``, ``reordered``, ``chain``, ``torn``, ``cut``,
            ``rewritten`` or ``empty``.
        text: for people.
    """

    line: int
    code: str
    text: str


class AuditLog:
    """Appends signed lines; safe for several threads and processes.

    A last line that a crash left torn is taken off when the log is next written, and a line ``recovered`` says so with
    its length and digest.

    Args:
        path: made (0600) if missing; ``<path>.lock`` lies beside it.
        signer: the private key of whoever keeps the log.
        owner: whose log it is (a site's name, or ``coordinator``).

    Raises:
        MachineError: it cannot be written, or is held by another process for too long.
        ModelFileError: its last whole line is not one of an audit log: it must not be continued.
    """

    def __init__(self, path: str | os.PathLike[str], signer: PrivateKey, *, owner: str) -> None:
        self.path = Path(path)
        self.owner = owner
        self._signer = signer
        self._head = Head()
        self._size = -1
        self._thread = threading.RLock()
        self._lock = FileLock(f"{self.path}.lock", timeout=LOCK_S, mode=0o600)
        self.append("opened", owner=owner, key=fingerprint(signer.public_key()))

    def append(self, kind: str, **facts: Any) -> Head:
        """Write one line and flush it to disk.

        Args:
            kind: what happened.
            facts: JSON values.

        Returns:
            The head behind the new line.

        Raises:
            MachineError, ModelFileError: see the class.
        """
        try:
            with self._thread, self._lock:
                self._follow()
                return self._write(kind, facts)
        except Timeout as error:
            raise MachineError(f"{self.path.name} is held by another process", "End the other process.") from error
        except OSError as error:
            self._size = -1
            raise MachineError(
                f"the audit log {self.path.name} in {self.path.parent} cannot be written: {error.strerror}",
                "Free space or restore the permission: nothing leaves without its line.",
            ) from error

    def head(self) -> Head:
        """Where the chain stands now, other processes' lines included.

        Raises:
            MachineError, ModelFileError: see the class.
        """
        try:
            with self._thread, self._lock:
                self._follow()
                return self._head
        except Timeout as error:
            raise MachineError(f"{self.path.name} is held by another process", "End the other process.") from error

    def _write(self, kind: str, facts: Mapping[str, Any]) -> Head:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"n": self._head.length + 1, "time": now, "kind": kind, "facts": dict(facts)}
        line["previous"] = self._head.digest
        line["digest"] = _digest(line)
        line["signature"] = base64.b64encode(sign(self._signer, _DOMAIN + line["digest"].encode())).decode()
        append_line(self.path, _canonical(line), mode=0o600)
        self._size = self.path.stat().st_size
        self._head = Head(line["n"], line["digest"])
        return self._head

    def _follow(self) -> None:
        """Take over what other processes wrote, or a crash left; called with the lock held."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        last, torn = _tail(self.path) if size else (b"", b"")
        if last:
            line = parse_line(last)
            if line is None or line.digest != _digest(vars(line)):
                raise ModelFileError(
                    f"the last line of the audit log {self.path} is damaged",
                    "Set the file aside, keep it, and start a new log; `fed-diffmic audit verify` says what is wrong.",
                )
            self._head = Head(line.n, line.digest)
        else:
            self._head = Head()
        if torn:
            os.truncate(self.path, size - len(torn))
            self._write("recovered", {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()})
        self._size = self.path.stat().st_size if self.path.exists() else 0


def verify(path: str | os.PathLike[str], public_key: PublicKey, anchors: Iterable[Head] = ()) -> list[Problem]:
    """Everything that is wrong with a log; an empty list: its lines are whole, in order and by that key.

    Args:
        path: the log.
        public_key: of whoever keeps it.
        anchors: heads that the other side saw: each must be a line of this log.

    Raises:
        ModelFileError: the file cannot be read.
    """
    problems: list[Problem] = []
    digests: dict[int, str] = {0: GENESIS}
    before = Head()
    for place, raw, whole in _raw_lines(path):
        line = parse_line(raw)
        if line is None:
            code, text = ("torn", "the last line is torn") if not whole else ("damaged", "not a line of an audit log")
            problems.append(Problem(place, code, text))
            continue
        problems.extend(_line_problems(place, line, before, public_key))
        before = Head(line.n, line.digest)
        digests.setdefault(line.n, line.digest)
    if len(digests) == 1:
        problems.append(Problem(0, "empty", "the log holds no line"))
    for head in sorted(set(anchors), key=lambda h: (h.length, h.digest)):
        if head.length not in digests:
            text = f"the other side saw line {head.length}, which is not here"
            problems.append(Problem(0, "cut" if head.length > max(digests) else "removed", text))
        elif digests[head.length] != head.digest:
            problems.append(Problem(0, "rewritten", f"the other side saw another line {head.length}"))
    return problems


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """The lines that can be read; whether they can be trusted is :func:`verify`'s to say.

    Raises:
        ModelFileError: the file cannot be read.
    """
    return [line for _, raw, _ in _raw_lines(path) if (line := parse_line(raw)) is not None]


def parse_line(raw: bytes) -> Line | None:
    """The line that these bytes are, or none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != _FIELDS:
        return None
    if any(type(value[name]) is not kind for name, kind in _TYPES.items()):
        return None
    return Line(**value)


def _line_problems(place: int, line: Line, before: Head, public_key: PublicKey) -> Iterator[Problem]:
    named = f"line {line.n}"
    if _digest(vars(line)) != line.digest:
        yield Problem(place, "changed", f"{named} was changed: its digest is another")
    else:
        try:
            signature = decode_signature(line.signature)
        except ValueError:
            signature = b""
        if not verifies(public_key, signature, _DOMAIN + line.digest.encode()):
            yield Problem(place, "signature", f"{named} is not signed by that key")
    if line.n > before.length + 1:
        yield Problem(place, "removed", f"{line.n - before.length - 1} lines before {named} are missing")
    elif line.n <= before.length:
        yield Problem(place, "reordered", f"{named} stands behind line {before.length}")
    elif line.previous != before.digest:
        yield Problem(place, "chain", f"{named} does not continue line {before.length} as it stands here")


def _digest(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical({name: line[name] for name in _SIGNED}).encode()).hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FedDiffmicError("a fact of an audit line is not JSON") from error


def _tail(path: Path) -> tuple[bytes, bytes]:
    """The last whole line without its end, and what stands torn behind it."""
    with path.open("rb") as stream:
        position, data = stream.seek(0, os.SEEK_END), b""
        while position and data.count(b"\n") < 2:
            step = min(position, max(_BLOCK, len(data)))
            position -= step
            stream.seek(position)
            data = stream.read(step) + data
    whole, end, torn = data.rpartition(b"\n")
    return (whole.rpartition(b"\n")[2], torn) if end else (b"", data)


def _raw_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes, bool]]:
    """Place, bytes and whether its end is there, of each line that is not empty."""
    try:
        with Path(path).open("rb") as stream:
            for place, raw in enumerate(stream, start=1):
                if raw.strip():
                    yield place, raw.rstrip(b"\n"), raw.endswith(b"\n")
    except OSError as error:
        raise ModelFileError(f"the audit log {path} cannot be read: {error.strerror}", "Check the path.") from error
