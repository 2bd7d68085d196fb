"""Whether a privacy ledger may be continued: three other places remember it, and a person decides where they differ.

A chain cannot show that its end was cut off, and an empty file verifies too. So its head stands in the site's folder
(:data:`ANCHOR`, outside the ledger's), beside the site's key (:func:`witness_of`, so that another folder under the same
key is noticed), and in every reply to the coordinator, which keeps the last one it saw of that key over all runs and
sends it with its requests. A ledger that does not hold one of them is not continued until a person accepts it with a
reason (:func:`accept`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fed_diffmic.errors import LedgerError, ModelFileError
from fed_diffmic.exchange.audit import AuditLog, Head, Line, Problem, read_lines, verify
from fed_diffmic.files import atomic_write, private_folder, read_json, sync_folder, write_new
from fed_diffmic.privacy.account import FILE, FOLDER, SECRET, UNITS
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.privacy.ledger_lines import REMEDY, Seen, entries, parse_seen, terms_of
from fed_diffmic.provision.keys import PrivateKey

ANCHOR = "privacy.anchor"
ECHO = "privacy.echo"

logger = logging.getLogger(__name__)


def witness_of(key_file: Path) -> Path:
    """The file beside the site's key that remembers the ledger of that key, wherever ``site.folder`` points."""
    return key_file.with_name(key_file.name + ".ledger")


def check(site: Path, key: PrivateKey, echoed: str = "", witness: Path | None = None) -> bool:
    """Whether the ledger may be continued; nothing is written.

    Args:
        site: the site's folder.
        key: its private key.
        echoed: what the coordinator saw last (:class:`fed_diffmic.privacy.ledger_lines.Seen`), or nothing.
        witness: the file beside the key (:func:`witness_of`), if there is to be one.

    Returns:
        True: there was never one here, as far as anybody knows.

    Raises:
        LedgerError: it may not.
    """
    found = problems(site, key, echoed, witness)
    if found:
        shown = "; ".join(p.text for p in found[:3])
        raise LedgerError(f"the privacy ledger cannot be continued: {shown}", REMEDY)
    path = site / FOLDER / FILE
    return not path.exists() or path.stat().st_size == 0


def problems(site: Path, key: PrivateKey, echoed: str = "", witness: Path | None = None) -> list[Problem]:
    """What is wrong with a site's ledger; a torn last line is not (its reservation never began).

    Args:
        site, key, echoed, witness: as for :func:`check`.
    """
    path = site / FOLDER / FILE
    lines = read_lines(path) if path.exists() else []
    own = read_anchor(site)
    outside = [seen.head for seen in (parse_seen(echoed), read_witness(witness)) if seen is not None]
    heads = _not_accepted(lines, [*([] if own is None else [own]), *outside])
    if not lines:
        return [
            Problem(0, "missing", f"it is missing or empty, and its line {head.length} was seen before")
            for head in heads
            if head.length
        ][:1]
    found = [p for p in verify(path, key.public_key(), heads) if p.code != "torn"]
    if own is None and any(line.kind in ("reserve", "unprotected") for line in lines):
        found.append(Problem(0, "anchor", f"the file {ANCHOR}, which says how long it was, is missing"))
    return found


def _not_accepted(lines: Iterable[Line], heads: Iterable[Head]) -> list[Head]:
    accepted = {tuple(head) for line in lines if line.kind == "accepted" for head in line.facts.get("instead_of", [])}
    return [head for head in heads if (head.length, head.digest) not in accepted]


def read_witness(path: Path | None) -> Seen | None:
    """What the file beside the key remembers; none where there is none.

    Raises:
        LedgerError: it is there and cannot be read.
    """
    if path is None or not path.exists():
        return None
    try:
        return parse_seen(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError, LedgerError) as error:
        raise LedgerError(f"the file {path.name} beside the site's key is damaged", REMEDY) from error


def write_witness(path: Path | None, seen: Seen) -> None:
    """Remember a head beside the key (0600); where that folder cannot be written, nothing is (a mounted secret)."""
    if path is None:
        return
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        logger.debug("the ledger's head is not kept beside the site's key: the folder cannot be written")
        return
    atomic_write(path, (seen.text() + "\n").encode(), mode=0o600)


def keep_echo(site: Path, echoed: str) -> None:
    """Keep what the coordinator insists on, for the person who will look; nothing where it cannot be read."""
    try:
        parse_seen(echoed)
    except LedgerError:
        return
    atomic_write(site / ECHO, (echoed + "\n").encode(), mode=0o600)


def kept_echo(site: Path) -> str:
    """What the coordinator insisted on when the ledger was refused last; empty: nothing."""
    path = site / ECHO
    try:
        return path.read_text(encoding="ascii").strip() if path.exists() else ""
    except (OSError, ValueError) as error:
        raise LedgerError(f"the file {ECHO} is damaged", "Give the head with --echoed, or remove the file.") from error


def read_anchor(site: Path) -> Head | None:
    """The head that the site's folder remembers; none before the first.

    Raises:
        LedgerError: the file is there and cannot be read.
    """
    path = site / ANCHOR
    if not path.exists():
        return None
    try:
        value = read_json(path)
        head = Head(value["length"], value["digest"])
    except (ModelFileError, KeyError, TypeError) as error:
        raise LedgerError(f"the file {ANCHOR} is damaged", REMEDY) from error
    if type(head.length) is not int or type(head.digest) is not str:
        raise LedgerError(f"the file {ANCHOR} is damaged", REMEDY)
    return head


def unit_secret(folder: Path) -> bytes:
    """Key of the unit digests, made once (0600). Without it earlier units would not be recognised.

    Raises:
        LedgerError: it is lost or damaged while unit files are there.
    """
    path = folder / SECRET
    if not path.exists():
        if any((folder / UNITS).glob("*.safetensors")):
            raise LedgerError("the file with the secret of the unit digests is missing", "Restore it from a backup.")
        with contextlib.suppress(FileExistsError):
            write_new(path, os.urandom(32).hex().encode(), mode=0o600)
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise LedgerError("the secret of the unit digests cannot be read", "Restore it from a backup.") from error
    if len(secret) != 32:
        raise LedgerError("the secret of the unit digests is damaged", "Restore it from a backup.")
    return secret


def accept(
    site: Path, key: PrivateKey, *, reason: str, spent: float, echoed: str = "", witness: Path | None = None
) -> float:
    """Let a ledger that was refused be continued; a person says why, and what was spent as far as is known.

    A file that does not verify by itself is set aside (never deleted) and a new one begun. Its readable reservations
    count: what they cost, as one group of units, is carried over if it is more than ``spent``. So does what the
    coordinator, or the file beside the key, says of a head that is not here: lines that are lost cost at most that.

    Args:
        site, key, witness: as for :func:`check`.
        reason: in words.
        spent: epsilon that every unit is taken to have spent besides what the continued file shows.
        echoed: what the coordinator insists on; empty: what it insisted on when the ledger was refused last.

    Returns:
        Epsilon that is counted for every unit besides what the continued file shows.

    Raises:
        ValueError: no reason, or a negative or infinite ``spent``.
        LedgerError: nothing is wrong with it.
    """
    if not reason.strip() or not 0 <= spent < math.inf:
        raise ValueError("accepting a ledger needs a reason and what was spent, a number not below zero")
    path = site / FOLDER / FILE
    echoed = echoed or kept_echo(site)
    outside, damaged = [parse_seen(echoed)], False
    own: Head | None = None
    try:
        outside.append(read_witness(witness))
        own = read_anchor(site)
    except LedgerError:
        damaged = True
    if not damaged and not problems(site, key, echoed, witness):
        raise LedgerError("nothing is wrong with the privacy ledger", "Nothing needs to be accepted.")
    lines = read_lines(path) if path.exists() else []
    seen = [s for s in outside if s is not None]
    spent = max([spent, *(s.spent for s in seen if not _holds(lines, s.head))])
    whole = bool(lines) and not [p for p in verify(path, key.public_key()) if p.code != "torn"]
    terms: dict[str, Any] | None = None
    if lines and not whole:
        spent, terms = _set_aside(path, lines, spent)
    private_folder(site / FOLDER)
    log = AuditLog(path, key, owner="privacy ledger")
    sync_folder(path.parent)
    if terms is not None:
        log.append("terms", **terms)
    heads = [[h.length, h.digest] for h in (own, *(s.head for s in seen)) if h is not None]
    stated = None if math.isinf(spent) else spent
    head = log.append("accepted", reason=reason.strip(), spent=stated, instead_of=heads)
    atomic_write(site / ANCHOR, json.dumps({"length": head.length, "digest": head.digest}).encode(), mode=0o600)
    write_witness(witness, Seen(head, max([spent, *(s.spent for s in seen)])))
    (site / ECHO).unlink(missing_ok=True)
    return spent


def _holds(lines: Sequence[Line], head: Head) -> bool:
    return not head.length or any((line.n, line.digest) == (head.length, head.digest) for line in lines)


def _set_aside(path: Path, lines: Sequence[Line], spent: float) -> tuple[float, dict[str, Any] | None]:
    """Put a file that does not verify aside; what is counted for it, and its terms if they can be read."""
    known = terms_of(lines) if any(line.kind == "terms" for line in lines) else None
    terms = None
    if known is not None:
        readable = entries(lines)
        parts = [e.mechanism for e in readable if e.mechanism is not None]
        cost = math.inf if len(parts) < len(readable) else epsilon(parts, known.delta, known.accountant)
        spent = max(spent, known.unknown + cost)
        terms = {name: getattr(known, name) for name in ("unit", "delta", "budget", "accountant")}
    place = next(n for n in range(1, 1000) if not path.with_name(f"set-aside-{n}.jsonl").exists())
    os.replace(path, path.with_name(f"set-aside-{place}.jsonl"))
    sync_folder(path.parent)
    return spent, terms
