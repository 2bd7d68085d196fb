"""One difference between two logs, and where in a run a line belongs."""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.exchange.audit_lines import Line

PROBLEM, NOTE = "problem", "note"


@dataclass(frozen=True)
class Finding:
    """One difference.

    Attributes:
        level: ``problem`` or ``note``.
        text: for people.
    """

    level: str
    text: str


def where(line: Line) -> str:
    """Stage, round and task of a line, for people."""
    stage, index, task = (line.facts.get(name) for name in ("stage", "round", "task"))
    place = f"stage {stage}, round {index}" if stage else "at the start"
    return f"{place}, {task}" if task else place
