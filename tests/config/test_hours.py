"""Hours of the week, against a minute-by-minute twin."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.hours import DAY, DAYS, WEEK, Span, minutes_left, parse_hours
from fed_diffmic.errors import ConfigError

MONDAY = datetime(2026, 11, 23)
SPANS = st.builds(
    lambda days, start, length: Span(tuple(sorted(days)), start, start + length),
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, DAY - 1),
    st.integers(1, DAY),
)


def slow_minutes_left(spans: list[Span], now: datetime) -> float:
    def at_work(minute: int) -> bool:
        minute %= WEEK
        return any(
            start <= minute + shift < start + span.end - span.start
            for span in spans
            for start in (day * DAY + span.start for day in span.days)
            for shift in (0, WEEK)
        )

    first = now.weekday() * DAY + now.hour * 60 + now.minute
    left = next((n for n in range(WEEK) if not at_work(first + n)), None)
    return float("inf") if left is None else float(left)


@given(st.lists(SPANS, max_size=3), st.integers(0, WEEK - 1))
@settings(max_examples=40, deadline=None)
def test_minutes_left_equal_the_slow_twin(spans: list[Span], minute: int) -> None:
    now = MONDAY + timedelta(minutes=minute)
    assert minutes_left(spans, now) == slow_minutes_left(spans, now)


@pytest.mark.parametrize(
    ("entry", "when", "minutes"),
    [
        ("always", "2026-11-25 03:00", float("inf")),
        ("mon-fri 18:00-07:00", "2026-11-28 06:00", 60),  # the night that began on Friday
        ("mon-fri 18:00-07:00", "2026-11-23 06:00", 0),  # Sunday's night is not meant
        ("mon-fri 18:00-07:00", "2026-11-23 17:59", 0),
        ("MON-FRI  18:00-07:00", "2026-11-23 18:00", 13 * 60),
        ("sat,sun 00:00-24:00", "2026-11-28 00:00", 2 * DAY),
        ("sun-mon 22:00-24:00", "2026-11-29 23:00", 60),
        ("tue 08:00-09:00", "2026-11-24 09:00", 0),
    ],
)
def test_spans(entry: str, when: str, minutes: float) -> None:
    assert minutes_left(parse_hours([entry]), datetime.fromisoformat(when)) == minutes


@pytest.mark.parametrize(
    "entry",
    ["", "sometimes", "mon 18:00", "mon 18-19", "mon 24:00-25:00", "mon 18:00-18:00", "mon 18:60-19:00",
     "monday 18:00-19:00", "foo-fri 18:00-19:00", "mon 24:00-07:00", "mon 24:30-07:00", "mon;tue 18:00-19:00"],
)  # fmt: skip
def test_what_is_not_hours_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.hours"):
        parse_hours([entry])


def test_sentences_name_days_and_the_next_morning() -> None:
    (night,), (day,) = parse_hours(["fri,sat 22:00-06:00"]), parse_hours(["mon-sun 08:00-24:00"])
    assert night.sentence() == "Friday, Saturday from 22:00 to 06:00 of the next day"
    assert day.sentence() == "every day from 08:00 to 24:00"
    assert len(DAYS) == 7
