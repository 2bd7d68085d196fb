"""An append-only log that shows what was removed, changed or reordered: hash-chained and signed JSON lines.

The form of a line is in :mod:`fed_diffmic.exchange.audit_lines`. A chain alone can show neither that its end was cut
off nor that its keeper wrote all of it anew: so each message carries the chain's head (:class:`Head`), signed, to the
other side, whose own log keeps it (:func:`verify`'s anchors; :mod:`fed_diffmic.exchange.audit_heads`).

No fact names a file or a patient.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.exchange.audit_lines import (
    DOMAIN,
    GENESIS,
    REKEYED,
    Head,
    Line,
    canonical,
    line_digest,
    parse_line,
    read_lines,
    tail,
)
from fed_diffmic.exchange.audit_verify import Problem, verify
from fed_diffmic.files import append_line
from fed_diffmic.provision.keys import PrivateKey, fingerprint, public_text, sign

__all__ = ["GENESIS", "AuditLog", "Head", "Line", "Problem", "parse_line", "read_lines", "verify"]

LOCK_S = 30.0


class AuditLog:
    """Appends signed lines; safe for several threads and processes.

    A last line that a crash left torn is taken off when the log is next written, and a line ``recovered`` says so with
    its length and digest. A log is continued with the key that kept it; a new key takes it over by a line ``rekeyed``,
    which the old key signs, or, where that is gone, the new one by a person's decision.

    Args:
        path: made (0600) if missing; ``<path>.lock`` lies beside it.
        signer: the private key of whoever keeps the log.
        owner: whose log it is (a site's name, or ``coordinator``).
        old: the key that kept it before; it signs the line that hands the log over.
        accept: take it over without the old key.

    Raises:
        MachineError: it cannot be written, or is held by another process for too long.
        ModelFileError: its last whole line is not one of an audit log, or it is kept by another key: it must not be
            continued.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        signer: PrivateKey,
        *,
        owner: str,
        old: PrivateKey | None = None,
        accept: bool = False,
    ) -> None:
        self.path = Path(path)
        self.owner = owner
        self._signer = signer
        self._key = fingerprint(signer.public_key())
        self._opened = False
        self._head = Head()
        self._size = -1
        self._thread = threading.RLock()
        self._lock = FileLock(f"{self.path}.lock", timeout=LOCK_S, mode=0o600)
        if old is not None or accept:
            self._take_over(old)
        self.append("opened", owner=owner, key=self._key)

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
                return self._write(kind, facts, self._signer)
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

    def _write(self, kind: str, facts: Mapping[str, Any], signer: PrivateKey) -> Head:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"n": self._head.length + 1, "time": now, "kind": kind, "facts": dict(facts)}
        line["previous"] = self._head.digest
        line["digest"] = line_digest(line)
        line["signature"] = base64.b64encode(sign(signer, DOMAIN + line["digest"].encode())).decode()
        append_line(self.path, canonical(line), mode=0o600)
        self._size = self.path.stat().st_size
        self._head = Head(line["n"], line["digest"])
        return self._head

    def _follow(self) -> None:
        """Take over what other processes wrote, or a crash left; called with the lock held."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        line, torn = self._last(size)
        if line is not None:
            self._check_key(line)  # before anything is written: a log of another key stays as it is
        self._head = Head() if line is None else Head(line.n, line.digest)
        if torn:
            os.truncate(self.path, size - len(torn))
            self._write("recovered", {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}, self._signer)
        self._opened = True
        self._size = self.path.stat().st_size if self.path.exists() else 0

    def _last(self, size: int) -> tuple[Line | None, bytes]:
        """The last whole line, or none in an empty log; and what stands torn behind it."""
        last, torn = tail(self.path) if size else (b"", b"")
        line = parse_line(last) if last else None
        if last and (line is None or not line.complete):
            raise ModelFileError(
                f"the last line of the audit log {self.path} is damaged",
                "Set the file aside, keep it, and start a new log; `fed-diffmic audit verify` says what is wrong.",
            )
        return line, torn

    def _check_key(self, line: Line) -> None:
        """Whether the log may be continued with this key, judged by its last line.

        The signature is checked when the log is opened; from then on only a key that took over meanwhile matters.
        """
        if line.kind == REKEYED:
            ours = line.facts.get("to") == self._key
        else:
            ours = self._opened or line.signed_by(self._signer.public_key())
        if not ours:
            raise ModelFileError(
                f"the audit log {self.path} is kept by another key than {self._key}",
                f"If the key was changed, say so in the log: `fed-diffmic audit rekey {self.path} --key NEW_KEY --old "
                "OLD_KEY` (or `--accept`, where the old key is gone). If not, configure the key that kept it.",
            )

    def _take_over(self, old: PrivateKey | None) -> None:
        """Write the line ``rekeyed``, unless this key keeps the log already.

        Raises:
            ModelFileError: there is no log, or ``old`` is not the key that keeps it.
        """
        try:
            with self._thread, self._lock:
                size = self.path.stat().st_size if self.path.exists() else 0
                line, torn = self._last(size)
                if line is None:
                    raise ModelFileError(f"{self.path} holds no line that a key could take over", "Check the path.")
                if line.signed_by(self._signer.public_key()) or line.facts.get("to") == self._key:
                    return
                if old is not None and not line.signed_by(old.public_key()):
                    raise ModelFileError(
                        f"the audit log {self.path} is not kept by the key {fingerprint(old.public_key())}",
                        "Give the key that signed its last line, or `--accept` where that is gone.",
                    )
                if torn:
                    os.truncate(self.path, size - len(torn))
                self._head = Head(line.n, line.digest)
                facts = {"from": key_in_force(self.path), "to": self._key, "accepted": old is None, "owner": self.owner}
                facts["public_key"] = public_text(self._signer.public_key())
                self._write(REKEYED, facts, old or self._signer)
        except Timeout as error:
            raise MachineError(f"{self.path.name} is held by another process", "End the other process.") from error


def key_in_force(path: str | os.PathLike[str]) -> str:
    """Fingerprint of the key that a log says keeps it; empty: it does not say."""
    for line in reversed(read_lines(path)):
        if line.kind == REKEYED:
            return str(line.facts.get("to", ""))
        if line.kind == "opened":
            return str(line.facts.get("key", ""))
    return ""
