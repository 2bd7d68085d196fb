"""What a privacy ledger's lines say: costs, terms, and the head as it crosses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import LedgerError
from fed_diffmic.exchange.audit import Head, Line
from fed_diffmic.privacy.accounting import Mechanism

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
        alone: of distributed noise, what the line costs if nobody else adds a share, with the same steps; none: the
            noise was the site's own, and ``mechanism`` says it all.
        tested: its noise came from ``privacy.test_seed``: whoever knows that takes it away.
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
    alone: Mechanism | None = None
    tested: bool = False

    def under(self, alone: bool) -> Mechanism | None:
        """What the line costs if nobody else adds noise, or if the others do that the site counts on."""
        return self.alone if alone and self.alone is not None else self.mechanism


@dataclass(frozen=True)
class Terms:
    """What the ledger was opened with, as grants changed it.

    Attributes:
        unit: ``image`` or ``patient``.
        delta: of every epsilon.
        budget: largest epsilon of a unit over all runs.
        accountant: ``rdp`` or ``prv``.
        unknown: epsilon that a person said was spent and no line shows (added to every unit's, at a delta of its own).
        budget_alone: the same if no other site adds noise; none: there was no distributed noise yet.
    """

    unit: str
    delta: float
    budget: float
    accountant: str
    unknown: float = 0.0
    budget_alone: float | None = None


def narrowed(terms: Terms, privacy: PrivacyConfig) -> Terms:
    """The ledger's terms as they hold under a site's configuration: a smaller budget or delta does, a larger does not.

    Raises:
        LedgerError: the configuration protects another unit.
    """
    if terms.unit != privacy.unit:
        raise LedgerError(
            f"the ledger counts units of {terms.unit}s and privacy.unit is {privacy.unit}",
            "Set privacy.unit back: what one unit spent says little of another, so a ledger keeps its unit.",
        )
    budget = min(b for b in (terms.budget, privacy.budget) if b is not None)
    alone = min((b for b in (terms.budget_alone, privacy.budget_alone) if b is not None), default=None)
    return replace(terms, delta=min(terms.delta, privacy.delta), budget=budget, budget_alone=alone)


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
            mechanism = alone = None
            if line.kind == "reserve":
                steps = min(f["steps"], settled.get(line.n, f["steps"]))
                whole = "noise_alone" in f
                mechanism = Mechanism(f["sample_rate"], f["noise_multiplier"], steps, discrete=whole)
                if whole:
                    alone = Mechanism(f["sample_rate"], f["noise_alone"], steps, discrete=True)
            place = (f["run"], f["arm"], f["stage"], f["round"], f.get("what", "train"))
            kept = (*place, line.n in settled, alone, f.get("tested", False))
            found.append(Entry(line.n, f["units"], f["unit"], mechanism, f["images"], *kept))
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
                alone = float(f["budget_alone"]) if "budget_alone" in f else None
                terms = Terms(f["unit"], f["delta"], float(f["budget"]), f["accountant"], budget_alone=alone)
            elif line.kind in ("alone", "grant") and terms is not None:  # a grant names the budgets that it sets
                alone = float(f["budget_alone"]) if "budget_alone" in f else terms.budget_alone
                terms = replace(terms, budget=float(f.get("budget", terms.budget)), budget_alone=alone)
            elif line.kind == "accepted":
                unknown += math.inf if f["spent"] is None else float(f["spent"])
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError("a line of the privacy ledger cannot be read", REMEDY) from error
    if terms is None:
        raise LedgerError(
            "the privacy ledger does not say its terms",
            "The site's next private round writes them; `fed-diffmic ledger verify` says whether lines are missing.",
        )
    return replace(terms, unknown=unknown)


def head_text(head: Head) -> str:
    """``length:digest``, as it crosses."""
    return f"{head.length}:{head.digest}"


@dataclass(frozen=True)
class Seen:
    """What somebody outside of the ledger saw of it last.

    Attributes:
        head: the line.
        spent: epsilon that had been spent by then, as far as was said; infinity: none held any more.
    """

    head: Head
    spent: float = 0.0

    def text(self) -> str:
        """``length:digest:spent``, as it crosses."""
        return f"{head_text(self.head)}:{self.spent!r}"


def parse_seen(text: str) -> Seen | None:
    """Inverse of :meth:`Seen.text` and of :func:`head_text`; none for nothing.

    Raises:
        LedgerError: it is something else.
    """
    if not text:
        return None
    length, _, rest = text.partition(":")
    digest, _, spent = rest.partition(":")
    try:
        number = float(spent or 0) if len(spent) <= 32 else math.nan
    except ValueError:
        number = math.nan
    if not length.isascii() or not length.isdigit() or len(length) > 12 or len(digest) != 64 or not number >= 0:
        raise LedgerError("the coordinator's echo of the privacy ledger cannot be read")
    return Seen(Head(int(length), digest), number)
