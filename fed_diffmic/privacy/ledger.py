"""A site's privacy ledger: what was spent on whom, over all runs, written ahead and never forgotten.

One append-only file a site, hash-chained and signed (:mod:`fed_diffmic.exchange.audit`), in ``<site>/privacy/`` with
the keyed digests of the units it speaks of (:mod:`fed_diffmic.privacy.units`). A line ``reserve`` with the mechanism
and the steps *about to be taken* is flushed to disk before the first of them; ``settle`` says afterwards how many were
taken. A crash leaves the reservation, which then counts in full.

Its head stands in three other places too: the site's folder, a file beside the site's key, and the coordinator's
memory, over all runs; a ledger that does not hold one of them is not continued
(:mod:`fed_diffmic.privacy.continuity`). An echo can only make the check stricter.

A run, and a round by itself, may take a share of what was left when the run began (:mod:`fed_diffmic.privacy.shares`).

Of noise that several sites share there are two numbers: what was spent if so many others are honest as the site
assumes, and what was spent if nobody else adds noise. Each has its budget and its hard stop.

What counts for a unit: every line whose training set holds it (or, for a patient, any of its images), converted to the
site's unit (:func:`fed_diffmic.privacy.accounting.as_unit`). The worst unit of a training set decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from fed_diffmic.config.policy_budget import BudgetRules
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import BudgetError, LedgerError, MachineError, RoundShareError, RunShareError
from fed_diffmic.exchange.audit import AuditLog, Head, read_lines
from fed_diffmic.files import private_folder, sync_folder, write_json
from fed_diffmic.privacy.account import FILE, FOLDER, SLACK, UNITS, Account
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.continuity import ANCHOR, ECHO, check, keep_echo, read_witness, unit_secret, write_witness
from fed_diffmic.privacy.ledger_lines import REMEDY, Seen, entries, narrowed
from fed_diffmic.privacy.shares import Allowance, allowance
from fed_diffmic.privacy.units import UnitSet, save_units
from fed_diffmic.provision.keys import PrivateKey

LOCK_S = 10.0


class Ledger(Account):
    """A site's ledger, held by one process.

    Args:
        site: the site's folder.
        privacy: the site's configuration; a smaller budget or delta than the ledger's holds, a larger one does not.
        key: private key of the site, which signs every line.
        echoed: what the coordinator saw last (:class:`fed_diffmic.privacy.ledger_lines.Seen`), or nothing.
        witness: file beside the site's key that remembers the head as well; none: a virtual site.
        rules: what a run and a round may take; none: a virtual site, whose run may take all that is left.

    Raises:
        LedgerError: missing, shorter, older, torn inside, changed, or of another key or unit.
        MachineError: another process holds it, or it cannot be written.
    """

    def __init__(
        self,
        site: Path,
        privacy: PrivacyConfig,
        key: PrivateKey,
        *,
        echoed: str = "",
        witness: Path | None = None,
        rules: BudgetRules | None = None,
    ) -> None:
        self._privacy, self._witness, self._rules = privacy, witness, rules
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
        except LedgerError:
            if echoed:
                keep_echo(site, echoed)
            self._lock.release()
            raise
        except BaseException:
            self._lock.release()
            raise

    def _open(self, privacy: PrivacyConfig, key: PrivateKey, echoed: str) -> None:
        seen = read_witness(self._witness)
        fresh = check(self.site, key, echoed, self._witness)
        if echoed:
            (self.site / ECHO).unlink(missing_ok=True)  # what was insisted on before is settled
        self._peak = 0.0 if seen is None else seen.spent
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
        testing = privacy.test_seed is not None
        super().__init__(self.folder, read_lines(self.path), testing=testing)
        if privacy.mechanism == "distributed" and not self.counts_alone:
            self._log.append("alone", budget_alone=privacy.budget_alone)
            super().__init__(self.folder, read_lines(self.path), testing=testing)
        self.terms = narrowed(self.terms, privacy)
        if seen is None and self._witness is not None:
            self._peak = max(self.total(), self.total(alone=True))
        self._anchor()

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
        alone: Mechanism | None = None,
    ) -> int:
        """Write a cost down, durably, before it is incurred.

        Args:
            mechanism: in the ledger's unit, with the steps that are about to be taken.
            alone: of distributed noise, the same steps if nobody else adds a share; none: the noise is the site's own.

        Returns:
            Number of the line, for :meth:`settle`.

        Raises:
            BudgetError: the worst unit would then have spent more than the budget, its run more than a run may, or
                the round by itself costs more than a round may; nothing is written.
            LedgerError: another folder under the same key went on meanwhile.
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
        apart = self._check_alone(units, alone or mechanism)
        self._check_shares(units, mechanism, run, what)
        save_units(self.folder / UNITS, units)
        self._peak = math.inf if self._testing else max(self._peak, after, apart)
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
        if self._testing:
            facts["tested"] = True
        if alone is not None:
            facts["noise_alone"] = alone.noise_multiplier
            facts["epsilon_alone"] = None if math.isinf(apart) else apart
        return self._append("reserve", facts)

    def _check_alone(self, units: UnitSet, mechanism: Mechanism) -> float:
        """Epsilon after the round if no other site added noise, ever; within its own budget, where there is one."""
        budget = self.terms.budget_alone
        if budget is None:
            return 0.0
        before, after = self.spent(units, alone=True), self.spent(units, [mechanism], alone=True)
        if after > budget + SLACK:
            raise BudgetError(
                f"if no other site added noise, epsilon would be {after:.3f} after this round (now {before:.3f}); the "
                f"budget for that is {budget:g} at delta {self.terms.delta:g}, for each {self.terms.unit}",
                "Ask for fewer rounds or larger shares of noise; a person at the site can raise it with `fed-diffmic "
                "ledger grant --alone`.",
            )
        return after

    def allowance(self, units: UnitSet, run: str) -> Allowance:
        """What the run may take of these units' budget, as it stood before its first line."""
        return allowance(self, units, run, self._privacy, self._rules)

    def _check_shares(self, units: UnitSet, mechanism: Mechanism, run: str, what: str) -> None:
        if self._rules is None:
            return
        most = self.allowance(units, run)
        alone = epsilon([mechanism], self.terms.delta, self.terms.accountant)
        if what == "train" and alone > most.round + SLACK:
            raise RoundShareError(
                f"one round would cost epsilon {alone:.3f} by itself; a round may take {most.round:.3f}, "
                f"{self._rules.round_share:.3g} of what was left ({most.left:.3f}) when the run began",
                "Ask for more rounds, each of fewer steps, or set more noise; policy.budget.round_share is the site's.",
            )
        after = self.spent(units, [mechanism], run=run)
        if after > most.run + SLACK:
            raise RunShareError(
                f"the run would have spent epsilon {after:.3f}; a run may take {most.run:.3f} of what was left "
                f"({most.left:.3f}) when it began",
                "Ask for fewer rounds, or set more noise; policy.budget.run_share is the site's.",
            )

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
        self._peak = math.inf
        place = {"run": run, "arm": arm, "stage": stage, "round": round_index}
        facts = {"units": units.name, "unit": self.terms.unit, "images": units.most_images, "count": len(units)}
        self._append("unprotected", facts | place)

    def grant(self, budget: float | None, reason: str, alone: float | None = None) -> None:
        """Set a budget, or both, from here on; a person's decision.

        Args:
            budget: none: it stays.
            alone: budget for what is spent if no other site adds noise; none: it stays.

        Raises:
            ValueError: nothing that is finite and positive to set, or no reason.
        """
        given = {n: b for n, b in (("budget", budget), ("budget_alone", alone)) if b is not None}
        if not given or not all(0 < b < math.inf for b in given.values()) or not reason.strip():
            raise ValueError("a grant needs a finite budget above zero and a reason")
        self._append("grant", {**given, "reason": reason.strip()})
        self.terms = replace(
            self.terms,
            budget=given.get("budget", self.terms.budget),
            budget_alone=given.get("budget_alone", self.terms.budget_alone),
        )

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
        if read_witness(self._witness) != self._seen:  # a copy of this folder is in use beside it, under the same key
            raise LedgerError("the privacy ledger of this site's key was continued elsewhere meanwhile", REMEDY)
        head = self._log.append(kind, **facts)
        self._anchor()
        self._entries = entries(read_lines(self.path))
        return head.length

    def _anchor(self) -> None:
        head = self._log.head()
        write_json(self.site / ANCHOR, {"length": head.length, "digest": head.digest}, mode=0o600)
        write_witness(self._witness, Seen(head, self._peak))
        self._seen = read_witness(self._witness)  # as it stands there: not every folder of a key can be written to
