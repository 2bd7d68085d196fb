"""A site's privacy ledger: what was spent on whom, over all runs, written ahead and never forgotten.

One append-only file a site, hash-chained and signed (:mod:`fed_diffmic.exchange.audit`), in ``<site>/privacy/`` with
the keyed digests of the units it speaks of (:mod:`fed_diffmic.privacy.units`). A line ``reserve`` with the mechanism
and the steps *about to be taken* is flushed to disk before the first of them; ``settle`` says afterwards how many were
taken. A crash leaves the reservation, which then counts in full.

A chain cannot show that its end was cut off, and an empty file verifies too. So its head stands in two other places:
the site's folder (:data:`ANCHOR`, outside the ledger's) and every reply to the coordinator, which echoes the last one
it saw. A ledger that does not hold either is not continued: training stops until a person accepts it with a reason
(``fed-diffmic ledger accept``). An echo can only make the check stricter.

What counts for a unit: every line whose training set holds it (or, for a patient, any of its images), converted to the
site's unit (:func:`fed_diffmic.privacy.accounting.as_unit`). The worst unit of a training set decides.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from fed_diffmic.config_privacy import PrivacyConfig
from fed_diffmic.errors import BudgetError, LedgerError, MachineError, ModelFileError
from fed_diffmic.exchange.audit import AuditLog, Head, Line, Problem, read_lines, verify
from fed_diffmic.files import atomic_write, private_folder, read_json, sync_folder, write_json, write_new
from fed_diffmic.privacy.accounting import Mechanism, as_unit, epsilon
from fed_diffmic.privacy.units import UnitSet, load_units, save_units, shared_patterns
from fed_diffmic.provision.keys import PrivateKey

FOLDER, FILE, UNITS, SECRET = "privacy", "ledger.jsonl", "units", "secret"
ANCHOR = "privacy.anchor"
LOCK_S = 10.0
SLACK = 1e-9  # of a sum that was rounded otherwise when it was planned
REMEDY = "Find out what happened; then record it with `fed-diffmic ledger accept --reason TEXT --spent EPSILON`."


@dataclass(frozen=True)
class Entry:
    """A line that costs something.

    Attributes:
        n: number of the line.
        units: name of the unit set.
        unit: ``image`` or ``patient``: what the mechanism protects.
        mechanism: with the steps that count; none: training without privacy.
        images: most images of a patient in the set.
        run, arm, stage, round: what it was spent on.
        what: ``train`` or ``counts``.
        settled: whether the steps are those really taken.
    """

    n: int
    units: str
    unit: str
    mechanism: Mechanism | None
    images: int
    run: str
    arm: str
    stage: str
    round: int
    what: str
    settled: bool


@dataclass(frozen=True)
class Terms:
    """What the ledger was opened with, as grants changed it.

    Attributes:
        unit: ``image`` or ``patient``.
        delta: of every epsilon.
        budget: largest epsilon of a unit over all runs.
        accountant: ``rdp`` or ``prv``.
        unknown: epsilon that a person said was spent and no line shows (added to every unit's, at a delta of its own).
    """

    unit: str
    delta: float
    budget: float
    accountant: str
    unknown: float = 0.0


class Account:
    """What a ledger's lines add up to; reads, never writes.

    Args:
        folder: the ledger's (``<site>/privacy``), where the unit files are.
        lines: of the ledger.

    Raises:
        LedgerError: lines that cannot be read, or no terms.
    """

    def __init__(self, folder: Path, lines: Sequence[Line]) -> None:
        self.folder = folder
        self.terms = terms_of(lines)
        self._entries = entries(lines)
        self._sets: dict[str, UnitSet] = {}

    def spent(
        self, units: UnitSet, more: Iterable[Mechanism] = (), *, run: str | None = None, first: int | None = None
    ) -> float:
        """Epsilon of the worst unit of a training set.

        Args:
            units: the training set.
            more: what would be spent on every one of them besides, in the ledger's unit.
            run: count this run's lines alone (and nothing that a person stated).
            first: count no more than so many lines, the oldest.
        """
        counted = [e for e in self._entries[:first] if run is None or e.run == run]
        names = sorted({e.units for e in counted})
        sets = [self.units(name) for name in names]
        worst = 0.0
        for pattern in shared_patterns(units, sets, self.terms.unit):
            held = {name for name, inside in zip(names, pattern, strict=True) if inside}
            worst = max(worst, self._cost([e for e in counted if e.units in held], more))
        return worst + (self.terms.unknown if run is None else 0.0)

    def total(self, run: str | None = None, first: int | None = None) -> float:
        """Epsilon of the worst unit of all that the ledger knows; ``run`` and ``first`` as in :meth:`spent`."""
        names = {e.units for e in self._entries[:first] if run is None or e.run == run}
        unknown = self.terms.unknown if run is None else 0.0
        return max((self.spent(self.units(name), run=run, first=first) for name in names), default=unknown)

    def rounds_left(self, units: UnitSet, mechanism: Mechanism, most: int = 100_000) -> int:
        """How often a mechanism's steps fit into what is left of the budget, at most ``most``."""

        def fits(times: int) -> bool:
            steps = Mechanism(mechanism.sample_rate, mechanism.noise_multiplier, mechanism.steps * times)
            return self.spent(units, [steps]) <= self.terms.budget + SLACK

        low, high = 0, 1
        while high <= most and fits(high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle <= most and fits(middle) else (low, middle)
        return low

    def entries(self) -> list[Entry]:
        """Every line that costs something, in order."""
        return list(self._entries)

    def units(self, name: str) -> UnitSet:
        """A unit set that a line names.

        Raises:
            LedgerError: its file is missing or was changed.
        """
        if name not in self._sets:
            self._sets[name] = load_units(self.folder / UNITS, name)
        return self._sets[name]

    def _cost(self, counted: Iterable[Entry], more: Iterable[Mechanism]) -> float:
        parts = [*more]
        for entry in counted:
            if entry.mechanism is None:
                return math.inf
            parts.append(as_unit(entry.mechanism, entry.unit, self.terms.unit, entry.images))
        return epsilon(parts, self.terms.delta, self.terms.accountant)


class Ledger(Account):
    """A site's ledger, held by one process.

    Args:
        site: the site's folder.
        privacy: the site's configuration; a smaller budget or delta than the ledger's holds, a larger one does not.
        key: private key of the site, which signs every line.
        echoed: ``length:digest`` that the coordinator saw last, or nothing.

    Raises:
        LedgerError: missing, shorter, older, torn inside, changed, or of another key or unit.
        MachineError: another process holds it, or it cannot be written.
    """

    def __init__(self, site: Path, privacy: PrivacyConfig, key: PrivateKey, *, echoed: str = "") -> None:
        self.site, self.folder, self.path = site, site / FOLDER, site / FOLDER / FILE
        private_folder(self.folder)
        private_folder(self.folder / UNITS)
        sync_folder(self.folder)
        sync_folder(site)  # before anything else remembers that there is a ledger
        self._lock = FileLock(str(self.folder / "writer.lock"), timeout=LOCK_S, mode=0o600)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise MachineError("the privacy ledger is held by another process", "End the other process.") from error
        try:
            self._open(privacy, key, echoed)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, privacy: PrivacyConfig, key: PrivateKey, echoed: str) -> None:
        fresh = check(self.site, key, echoed)
        self._log = AuditLog(self.path, key, owner="privacy ledger")
        sync_folder(self.folder)
        if fresh or not any(line.kind == "terms" for line in read_lines(self.path)):
            self._log.append(
                "terms",
                unit=privacy.unit,
                delta=privacy.delta,
                budget=privacy.epsilon if privacy.budget is None else privacy.budget,
                accountant=privacy.accountant,
            )
        self._anchor()
        lines = read_lines(self.path)
        super().__init__(self.folder, lines)
        terms = self.terms
        if terms.unit != privacy.unit:
            raise LedgerError(
                f"the ledger counts units of {terms.unit}s and privacy.unit is {privacy.unit}",
                "Set privacy.unit back; a person can begin a new account with `fed-diffmic ledger accept`.",
            )
        budget = min(b for b in (terms.budget, privacy.budget) if b is not None)
        self.terms = Terms(terms.unit, min(terms.delta, privacy.delta), budget, terms.accountant, terms.unknown)

    @property
    def secret(self) -> bytes:
        """Key of the unit digests, made once (0600)."""
        return unit_secret(self.folder)

    def head(self) -> Head:
        """Where the chain stands."""
        return self._log.head()

    def reserve(
        self,
        units: UnitSet,
        mechanism: Mechanism,
        *,
        run: str,
        arm: str,
        stage: str,
        round_index: int,
        what: str = "train",
    ) -> int:
        """Write a cost down, durably, before it is incurred.

        Args:
            mechanism: in the ledger's unit, with the steps that are about to be taken.

        Returns:
            Number of the line, for :meth:`settle`.

        Raises:
            BudgetError: the worst unit would then have spent more than the budget; nothing is written.
            MachineError: it cannot be written.
        """
        before, after = self.spent(units), self.spent(units, [mechanism])
        if after > self.terms.budget + SLACK:
            raise BudgetError(
                f"epsilon would be {after:.3f} after this round (now {before:.3f}); the budget of this site is "
                f"{self.terms.budget:g} at delta {self.terms.delta:g}, for each {self.terms.unit}",
                "The data have given what they may. `fed-diffmic ledger project` says what fits; a person at the site "
                "can raise the budget with `fed-diffmic ledger grant`.",
            )
        save_units(self.folder / UNITS, units)
        facts = {
            "units": units.name,
            "unit": self.terms.unit,
            "images": units.most_images,
            "count": len(units),
            "sample_rate": mechanism.sample_rate,
            "noise_multiplier": mechanism.noise_multiplier,
            "steps": mechanism.steps,
            "run": run,
            "arm": arm,
            "stage": stage,
            "round": round_index,
            "what": what,
            "epsilon": None if math.isinf(after) else after,
        }
        return self._append("reserve", facts)

    def settle(self, number: int, steps: int) -> None:
        """Say how many of a reservation's steps were taken.

        Raises:
            ValueError: no such reservation, settled before, or more steps than reserved.
        """
        found = next((e for e in self._entries if e.n == number and not e.settled and e.mechanism), None)
        if found is None or found.mechanism is None or not 0 <= steps <= found.mechanism.steps:
            raise ValueError("only an open reservation can be settled, with no more steps than it has")
        self._append("settle", {"of": number, "steps": steps})

    def unprotected(self, units: UnitSet, *, run: str, arm: str, stage: str, round_index: int) -> None:
        """Write down that these units are trained on without privacy: no epsilon holds for them any more."""
        if any(e.mechanism is None and (e.units, e.run, e.stage) == (units.name, run, stage) for e in self._entries):
            return
        save_units(self.folder / UNITS, units)
        place = {"run": run, "arm": arm, "stage": stage, "round": round_index}
        facts = {"units": units.name, "unit": self.terms.unit, "images": units.most_images, "count": len(units)}
        self._append("unprotected", facts | place)

    def grant(self, budget: float, reason: str) -> None:
        """Set the budget from here on; a person's decision.

        Raises:
            ValueError: no finite, positive budget, or no reason.
        """
        if not 0 < budget < math.inf or not reason.strip():
            raise ValueError("a grant needs a finite budget above zero and a reason")
        self._append("grant", {"budget": budget, "reason": reason.strip()})
        self.terms = Terms(self.terms.unit, self.terms.delta, budget, self.terms.accountant, self.terms.unknown)

    def close(self) -> None:
        """Let another process have it."""
        self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, kind: str, facts: Mapping[str, Any]) -> int:
        head = self._log.append(kind, **facts)
        self._anchor()
        self._entries = entries(read_lines(self.path))
        return head.length

    def _anchor(self) -> None:
        head = self._log.head()
        write_json(self.site / ANCHOR, {"length": head.length, "digest": head.digest}, mode=0o600)


def read_account(site: Path) -> Account:
    """What a site's ledger adds up to, without holding it: it may be written meanwhile.

    Raises:
        LedgerError: there is none, or it cannot be read.
    """
    path = site / FOLDER / FILE
    if not path.exists():
        raise LedgerError("there is no privacy ledger in this folder", "A site gets one with its first private round.")
    return Account(site / FOLDER, read_lines(path))


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


def head_text(head: Head) -> str:
    """``length:digest``, as it crosses."""
    return f"{head.length}:{head.digest}"


def parse_head(text: str) -> Head | None:
    """Inverse of :func:`head_text`; none for nothing.

    Raises:
        LedgerError: it is something else.
    """
    if not text:
        return None
    length, _, digest = text.partition(":")
    if not length.isascii() or not length.isdigit() or len(length) > 12 or len(digest) != 64:
        raise LedgerError("the coordinator's echo of the privacy ledger cannot be read")
    return Head(int(length), digest)


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


def entries(lines: Iterable[Line]) -> list[Entry]:
    """What costs something, with settled steps; damaged facts raise.

    Raises:
        LedgerError: a line's facts are not those of its kind.
    """
    lines = list(lines)
    try:
        settled = {line.facts["of"]: line.facts["steps"] for line in lines if line.kind == "settle"}
        found = []
        for line in lines:
            if line.kind not in ("reserve", "unprotected"):
                continue
            f = line.facts
            mechanism = None
            if line.kind == "reserve":
                steps = min(f["steps"], settled.get(line.n, f["steps"]))
                mechanism = Mechanism(f["sample_rate"], f["noise_multiplier"], steps)
            place = (f["run"], f["arm"], f["stage"], f["round"], f.get("what", "train"))
            found.append(Entry(line.n, f["units"], f["unit"], mechanism, f["images"], *place, line.n in settled))
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError("a line of the privacy ledger cannot be read", REMEDY) from error
    return found


def terms_of(lines: Iterable[Line]) -> Terms:
    """The terms as the last lines left them.

    Raises:
        LedgerError: there are none, or they cannot be read.
    """
    terms: Terms | None = None
    unknown = 0.0
    try:
        for line in lines:
            f = line.facts
            if line.kind == "terms":
                terms = Terms(f["unit"], f["delta"], float(f["budget"]), f["accountant"])
            elif line.kind == "grant" and terms is not None:
                terms = Terms(terms.unit, terms.delta, float(f["budget"]), terms.accountant)
            elif line.kind == "accepted":
                unknown += math.inf if f["spent"] is None else float(f["spent"])
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError("a line of the privacy ledger cannot be read", REMEDY) from error
    if terms is None:
        raise LedgerError("the privacy ledger does not say its terms", REMEDY)
    return Terms(terms.unit, terms.delta, terms.budget, terms.accountant, unknown)
