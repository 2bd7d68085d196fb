"""Whether a privacy ledger may be continued: two other places remember it, and a person decides where they differ.

A chain cannot show that its end was cut off, and an empty file verifies too. So its head stands in the site's folder
(:data:`ANCHOR`, outside the ledger's) and in every reply to the coordinator, which echoes the last one it saw. A ledger
that does not hold either is not continued until a person accepts it with a reason (:func:`accept`).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from fed_diffmic.errors import LedgerError, ModelFileError
from fed_diffmic.exchange.audit import AuditLog, Head, Problem, read_lines, verify
from fed_diffmic.files import atomic_write, private_folder, read_json, sync_folder, write_new
from fed_diffmic.privacy.account import FILE, FOLDER, SECRET, UNITS
from fed_diffmic.privacy.accounting import epsilon
from fed_diffmic.privacy.ledger_lines import REMEDY, entries, parse_head, terms_of
from fed_diffmic.provision.keys import PrivateKey

ANCHOR = "privacy.anchor"


def check(site: Path, key: PrivateKey, echoed: str = "") -> bool:
    """Whether the ledger may be continued; nothing is written.

    Returns:
        True: there was never one here, as far as anybody knows.

    Raises:
        LedgerError: it may not.
    """
    found = problems(site, key, echoed)
    if found:
        shown = "; ".join(p.text for p in found[:3])
        raise LedgerError(f"the privacy ledger cannot be continued: {shown}", REMEDY)
    path = site / FOLDER / FILE
    return not path.exists() or path.stat().st_size == 0


def problems(site: Path, key: PrivateKey, echoed: str = "") -> list[Problem]:
    """What is wrong with a site's ledger; a torn last line is not (its reservation never began)."""
    path = site / FOLDER / FILE
    lines = read_lines(path) if path.exists() else []
    accepted = {tuple(head) for line in lines if line.kind == "accepted" for head in line.facts.get("instead_of", [])}
    own = read_anchor(site)
    heads = [
        head for head in (own, parse_head(echoed)) if head is not None and (head.length, head.digest) not in accepted
    ]
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


def accept(site: Path, key: PrivateKey, *, reason: str, spent: float, echoed: str = "") -> None:
    """Let a ledger that was refused be continued; a person says why, and what was spent as far as is known.

    A file that does not verify by itself is set aside (never deleted) and a new one begun. Its readable reservations
    count: what they cost, as one group of units, is carried over if it is more than ``spent``.

    Args:
        reason: in words.
        spent: epsilon that every unit is taken to have spent besides what the continued file shows.
        echoed: head that the coordinator insists on.

    Raises:
        ValueError: no reason, or a negative or infinite ``spent``.
        LedgerError: nothing is wrong with it.
    """
    if not reason.strip() or not 0 <= spent < math.inf:
        raise ValueError("accepting a ledger needs a reason and what was spent, a number not below zero")
    path = site / FOLDER / FILE
    try:
        own, damaged_anchor = read_anchor(site), False
    except LedgerError:
        own, damaged_anchor = None, True
    if not damaged_anchor and not problems(site, key, echoed):
        raise LedgerError("nothing is wrong with the privacy ledger", "Nothing needs to be accepted.")
    lines = read_lines(path) if path.exists() else []
    whole = bool(lines) and not [p for p in verify(path, key.public_key()) if p.code != "torn"]
    terms: dict[str, Any] | None = None
    if lines and not whole:
        known = terms_of(lines) if any(line.kind == "terms" for line in lines) else None
        if known is not None:
            readable = entries(lines)
            parts = [e.mechanism for e in readable if e.mechanism is not None]
            cost = math.inf if len(parts) < len(readable) else epsilon(parts, known.delta, known.accountant)
            spent = max(spent, known.unknown + cost)
            terms = {name: getattr(known, name) for name in ("unit", "delta", "budget", "accountant")}
        place = next(n for n in range(1, 1000) if not path.with_name(f"set-aside-{n}.jsonl").exists())
        os.replace(path, path.with_name(f"set-aside-{place}.jsonl"))
        sync_folder(path.parent)
    private_folder(site / FOLDER)
    log = AuditLog(path, key, owner="privacy ledger")
    sync_folder(path.parent)
    if terms is not None:
        log.append("terms", **terms)
    heads = [[h.length, h.digest] for h in (own, parse_head(echoed)) if h is not None]
    stated = None if math.isinf(spent) else spent
    head = log.append("accepted", reason=reason.strip(), spent=stated, instead_of=heads)
    atomic_write(site / ANCHOR, json.dumps({"length": head.length, "digest": head.digest}).encode(), mode=0o600)
