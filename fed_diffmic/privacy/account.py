"""What a privacy ledger's lines add up to, for the worst unit of a training set; reads, never writes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fed_diffmic.errors import LedgerError
from fed_diffmic.exchange.audit import Line, read_lines
from fed_diffmic.privacy.accounting import Mechanism, as_unit, epsilon
from fed_diffmic.privacy.ledger_lines import Entry, entries, terms_of
from fed_diffmic.privacy.units import UnitSet, load_units, shared_patterns

FOLDER, FILE, UNITS, SECRET = "privacy", "ledger.jsonl", "units", "secret"
SLACK = 1e-9  # of a sum that was rounded otherwise when it was planned


class Account:
    """What a ledger's lines add up to; reads, never writes.

    Args:
        folder: the ledger's (``<site>/privacy``), where the unit files are.
        lines: of the ledger.
        testing: count noise from ``privacy.test_seed`` as if nobody knew it; else it counts as none.

    Raises:
        LedgerError: lines that cannot be read, or no terms.
    """

    def __init__(self, folder: Path, lines: Sequence[Line], *, testing: bool = False) -> None:
        self.folder, self._testing = folder, testing
        self.terms = terms_of(lines)
        self._entries = entries(lines)
        self._sets: dict[str, UnitSet] = {}
        self._patterns: dict[tuple[str, int], tuple[list[str], np.ndarray]] = {}

    def spent(
        self,
        units: UnitSet,
        more: Iterable[Mechanism] = (),
        *,
        run: str | None = None,
        first: int | None = None,
        alone: bool = False,
    ) -> float:
        """Epsilon of the worst unit of a training set.

        Args:
            units: the training set.
            more: what would be spent on every one of them besides, in the ledger's unit.
            run: count this run's lines alone (and nothing that a person stated).
            first: count no more than so many lines, the oldest.
            alone: as if no other site had added any noise; else as the site's own word on who is honest has it.
        """
        counted, more = [e for e in self._entries[:first] if run is None or e.run == run], list(more)
        names, patterns = self._shared(units)
        kept = np.isin(names, [e.units for e in counted])
        worst = 0.0
        for row in np.unique(patterns[:, kept], axis=0).tolist():
            times = dict(zip(np.asarray(names)[kept].tolist(), row, strict=True))
            worst = max(worst, self._cost([(e, times[e.units]) for e in counted if times[e.units]], more, alone))
        return worst + (self.terms.unknown if run is None else 0.0)

    def total(self, run: str | None = None, first: int | None = None, *, alone: bool = False) -> float:
        """Epsilon of the worst unit of all that the ledger knows; ``run``, ``first``, ``alone`` as in :meth:`spent`."""
        names = {e.units for e in self._entries[:first] if run is None or e.run == run}
        unknown = self.terms.unknown if run is None else 0.0
        spent = (self.spent(self.units(name), run=run, first=first, alone=alone) for name in names)
        return max(spent, default=unknown)

    @property
    def counts_alone(self) -> bool:
        """Whether there is a second number beside the first: what was spent if no other site added noise."""
        return self.terms.budget_alone is not None

    def rounds_left(
        self, units: UnitSet, mechanism: Mechanism, most: int = 100_000, *, alone: Mechanism | None = None
    ) -> int:
        """How often a mechanism's steps fit into what is left of the budgets, at most ``most``.

        Args:
            alone: what the same steps cost if no other site adds noise; none: the same.
        """

        def fits(times: int) -> bool:
            steps = replace(mechanism, steps=mechanism.steps * times)
            apart = replace(alone or mechanism, steps=steps.steps)
            held = self.terms.budget_alone is None or (
                self.spent(units, [apart], alone=True) <= self.terms.budget_alone + SLACK
            )
            return held and self.spent(units, [steps]) <= self.terms.budget + SLACK

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

    def _shared(self, units: UnitSet) -> tuple[list[str], np.ndarray]:
        """Names of all sets that a line names, and as how many patients the units of this one were in each.

        All of them, whatever is counted: a patient who was renumbered in one run and exported anew in the next is
        found by what links them in a third.
        """
        names = sorted({e.units for e in self._entries})
        key = (units.name, len(self._entries))
        if key not in self._patterns:
            self._patterns = {key: (names, shared_patterns(units, [self.units(name) for name in names]))}
        return self._patterns[key]

    def _cost(self, counted: Iterable[tuple[Entry, int]], more: Iterable[Mechanism], alone: bool) -> float:
        """Epsilon of lines, each with the number of patients that a unit was in its set, and of ``more``."""
        parts = [*more]
        for entry, times in counted:
            mechanism = entry.under(alone)
            if mechanism is None or (entry.tested and not self._testing):
                return math.inf
            parts.append(as_unit(mechanism, entry.unit, self.terms.unit, entry.images, times))
        return epsilon(parts, self.terms.delta, self.terms.accountant)


def read_account(site: Path) -> Account:
    """What a site's ledger adds up to, without holding it: it may be written meanwhile.

    Raises:
        LedgerError: there is none, or it cannot be read.
    """
    path = site / FOLDER / FILE
    if not path.exists():
        raise LedgerError("there is no privacy ledger in this folder", "A site gets one with its first private round.")
    return Account(site / FOLDER, read_lines(path))
