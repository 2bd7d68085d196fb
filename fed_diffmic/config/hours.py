"""Hours of the week at which a site works: ``always``, or days and times such as ``mon-fri 18:00-07:00``.

Times are the site's local wall clock. A span that ends before it begins runs into the next morning and belongs to the
day on which it begins: ``fri 18:00-07:00`` ends on Saturday at seven. Spans may touch or overlap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fed_diffmic.errors import ConfigError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ALWAYS = "always"
DAY, WEEK = 24 * 60, 7 * 24 * 60
_FORM = re.compile(r"(?P<days>[a-z]{3}(?:-[a-z]{3})?(?:,[a-z]{3}(?:-[a-z]{3})?)*) (?P<start>\S+?)-(?P<end>\S+)")
_TIME = re.compile(r"([01]\d|2[0-4]):([0-5]\d)")
_ALLOWED = "always, or days and times such as mon-fri 18:00-07:00 or sat,sun 00:00-24:00"


@dataclass(frozen=True)
class Span:
    """One entry: on which days (0 is Monday) work may begin, and from which minute of that day to which.

    ``end`` is larger than a day's minutes where the span runs into the next morning.
    """

    days: tuple[int, ...]
    start: int
    end: int

    def sentence(self) -> str:
        """For people: ``Monday, Tuesday from 18:00 to 07:00 of the next day``."""
        days = "every day" if len(self.days) == len(DAYS) else ", ".join(NAMES[day] for day in self.days)
        after = " of the next day" if self.end > DAY else ""
        return f"{days} from {_clock(self.start)} to {_clock(self.end - DAY if after else self.end)}{after}"


def parse_hours(entries: Sequence[str], key: str = "policy.hours") -> tuple[Span, ...]:
    """The spans that a configuration names.

    Raises:
        ConfigError: an entry is not one of the two forms.
    """
    return tuple(_span(entry, key) for entry in entries)


def minutes_left(spans: Sequence[Span], now: datetime) -> float:
    """Minutes from ``now`` until work must stop: 0 outside all spans, infinity where the week is covered."""
    covered = sorted(
        (day * DAY + span.start + shift, day * DAY + span.end + shift)
        for span in spans
        for day in span.days
        for shift in (-WEEK, 0, WEEK)
    )
    minute = now.weekday() * DAY + now.hour * 60 + now.minute + now.second / 60
    reach = minute
    for start, end in covered:
        if start <= reach < end:
            reach = end
    return float("inf") if reach - minute >= WEEK else reach - minute


def _span(entry: str, key: str) -> Span:
    if entry.strip().lower() == ALWAYS:
        return Span(tuple(range(len(DAYS))), 0, DAY)
    found = _FORM.fullmatch(" ".join(entry.lower().split()))
    if found is None:
        raise ConfigError(key, entry, _ALLOWED)
    days: set[int] = set()
    for part in found["days"].split(","):
        names = part.split("-")
        if not set(names) <= set(DAYS):
            raise ConfigError(key, entry, _ALLOWED, f"Days are {', '.join(DAYS)}.")
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        days |= {(first + n) % len(DAYS) for n in range((last - first) % len(DAYS) + 1)}
    start, end = _minute(found["start"], entry, key), _minute(found["end"], entry, key)
    if start in (end, DAY):
        raise ConfigError(key, entry, _ALLOWED, "A span needs a beginning before 24:00 and another end.")
    return Span(tuple(sorted(days)), start, end if end > start else end + DAY)


def _minute(text: str, entry: str, key: str) -> int:
    found = _TIME.fullmatch(text)
    if found is None or (found[1] == "24" and found[2] != "00"):
        raise ConfigError(key, entry, _ALLOWED, "Times are 00:00 to 24:00, two digits each.")
    return int(found[1]) * 60 + int(found[2])


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
