"""Names that look like one name written in several ways: upper and lower case, accents, spaces, leading zeros.

Nothing here changes a name: what is found is reported, and a person decides.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from fed_diffmic.data.findings import Findings

_NUMBER = re.compile(r"[+-]?0*(\d+)(?:[.,](\d*?)0*)?")
_JOINTS = re.compile(r"[\s_\-]+")
PLACEHOLDERS = frozenset(
    (
        *("na", "n/a", "#n/a", "n.a.", "nan", "none", "null", "nil", "unknown", "unbekannt", "inconnu"),
        *("-", "--", "?", ".", "anonymous", "anonymized", "anonymised", "anonym", "anon"),
    )
)
"""What spreadsheets, people and programs that remove names write where a value is not known."""


def spelling_key(text: str) -> str:
    """The same for two spellings of what may be one name.

    Compatibility forms are unified (Unicode NFKC), invisible characters dropped, case folded, and spaces, underscores
    and hyphens passed over; a number is its value (``0007``, ``7`` and ``7.0`` are one).
    """
    plain = unicodedata.normalize("NFKC", text)
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace()).strip()
    number = _NUMBER.fullmatch(plain)
    if number is not None:
        sign = "-" if plain.startswith("-") else ""
        return sign + number[1] + (f".{number[2]}" if number[2] else "")
    return _JOINTS.sub("", plain.casefold())


def alike(names: Iterable[str]) -> list[list[str]]:
    """Sets of different names that have one spelling key, each sorted, in order."""
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        if name:
            found.setdefault(spelling_key(name), []).append(name)
    return [group for group in found.values() if len(group) > 1]


def is_placeholder(text: str) -> bool:
    """Whether a name reads like "not known" (:data:`PLACEHOLDERS`)."""
    return text.strip().casefold() in PLACEHOLDERS


def report_groups(
    groups: np.ndarray, *, lines: np.ndarray, table: str, field: str, unit: str, findings: Findings
) -> None:
    """Say where numbers of patients (or lesions) seem to be one written two ways, or to stand for "not known".

    Args:
        groups: ``(N,)`` object, as written; empty where not known.
        lines: ``(N,)`` int64.
        unit: what a group is, in the singular.
    """
    twice = {name for names in alike(groups.tolist()) for name in names}
    if twice:
        rows = np.isin(groups, sorted(twice))
        findings.add(
            "group-spelt-twice",
            "warning",
            f"{len(twice)} {unit}s differ from another only in how they are written (leading zeros, '.0', upper and "
            f"lower case, spaces): each spelling counts as a {unit} of its own, and images of one {unit} may be on "
            "both sides of a split",
            table=table,
            rows=lines[rows],
            field=field,
            count=len(twice),
            remedy=f"Write each {unit} in one way (in a spreadsheet: format the column as text).",
            names=groups[rows],
        )
    unknown = np.array([is_placeholder(str(name)) for name in groups], dtype=bool)
    if unknown.any():
        written = len({str(name) for name in groups[unknown]})
        findings.add(
            "group-placeholder",
            "warning",
            f"{int(unknown.sum())} of {len(groups)} images have a {unit} that reads like 'not known'; they count as "
            f"{written} {unit}(s), all images of one on one side of a split and at one site",
            table=table,
            rows=lines[unknown],
            field=field,
            remedy=f"Leave the field empty where the {unit} is not known: each such image then counts for itself.",
        )
