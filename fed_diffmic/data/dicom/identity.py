"""Who an image is of, as keyed hashes; what they stand for stays in one file at the site.

A pseudonym is HMAC-SHA256 under the secret of the site's privacy ledger, cut to 16 bytes: the same patient has the same
one in every export of a site, and so is the same unit in its ledger; without the secret nobody can tell whether a known
number is among them, and another site gives another. The issuer of a patient's number does not enter: two people of one
number are then kept together, which is safe, and said.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from fed_diffmic.errors import DataError, MachineError
from fed_diffmic.files import atomic_write, private_folder

MAPPING = "mapping.csv"
_HEADER = ["kind", "pseudonym", "original"]
_PREFIX = {"patient": "p", "study": "s", "series": "r", "image": "i"}
_BYTES = 16
_LEAST_SECRET = 16
LOCK_S = 120.0
"""Seconds to wait for another export that adds to the mapping."""


@dataclass(frozen=True)
class Names:
    """Gives pseudonyms, and remembers what they stand for.

    Args:
        secret: the site's own, at least 16 bytes.
    """

    secret: bytes = field(repr=False)
    given: dict[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < _LEAST_SECRET:
            raise ValueError("the secret of the pseudonyms is too short")

    def of(self, kind: str, original: str) -> str:
        """The pseudonym of a patient, study, series or image; empty for nothing."""
        if not original:
            return ""
        name = (kind, original)
        if name not in self.given:
            message = f"fed_diffmic dicom\0{kind}\0{original}".encode()
            digest = hmac.new(self.secret, message, hashlib.sha256).digest()[:_BYTES]
            self.given[name] = f"{_PREFIX[kind]}-{digest.hex()}"
        return self.given[name]


def keep(names: Names, folder: Path, kinds: Sequence[str] = ("patient", "study", "series", "image")) -> Path:
    """Add what was given to the site's mapping file (0600), which keeps that of earlier exports.

    Exports that end at the same time add one after the other: none takes away what another has added.

    Raises:
        DataError: the file that is there is not such a file.
        MachineError: it cannot be written, or another export does not let go of it.
    """
    path = private_folder(folder) / MAPPING
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_S, mode=0o600):
            return _add(path, names, kinds)
    except Timeout:
        raise MachineError(
            f"another export has held {path} for {LOCK_S:g} s", "Wait until it has ended, then export again."
        ) from None


def _add(path: Path, names: Names, kinds: Sequence[str]) -> Path:
    rows = {tuple(row) for row in _read(path)}
    rows |= {(kind, given, original) for (kind, original), given in names.given.items() if kind in kinds}
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(sorted(rows))
    return atomic_write(path, stream.getvalue().encode(errors="backslashreplace"), mode=0o600)


def _read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        if rows[0] != _HEADER or any(len(row) != len(_HEADER) for row in rows):
            raise ValueError("columns")
    except (OSError, ValueError, IndexError, csv.Error):
        raise DataError(
            f"{path} is not a mapping of pseudonyms, or cannot be read",
            "Restore it from a backup, or move it away: a new one is then begun.",
        ) from None
    return rows[1:]
