"""Which of several models should a site take? One rule, the same in a simulation's report and at a hospital.

The first candidate is the default. Another takes its place only where the 95 % interval of its paired difference to the
present choice, on the site's own test patients, lies above zero. Where nothing is shown, the default stays: the rule
asks for evidence to change, not to keep. The metric of a model that was chosen so is a little too good on the images
by which it was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """A candidate against the choice so far.

    Attributes:
        candidate, against: names of the models.
        value, low, high: paired difference candidate minus the other, and its interval; none where it is undefined.
    """

    candidate: str
    against: str
    value: float | None
    low: float | None
    high: float | None

    @property
    def taken(self) -> bool:
        """The candidate is shown to be better, and became the choice."""
        return self.low is not None and self.low > 0

    @property
    def worse(self) -> bool:
        """The candidate is shown to be worse."""
        return self.high is not None and self.high < 0


@dataclass(frozen=True)
class Choice:
    """The model to take, and every comparison that led there.

    Attributes:
        model: name.
        steps: in the order in which they were made.
    """

    model: str
    steps: tuple[Step, ...]


def choose_model(candidates: Sequence[str], gap: Callable[[str, str], Mapping[str, Any]]) -> Choice:
    """Apply the rule.

    Args:
        candidates: names, the default first.
        gap: paired difference first minus second as ``{value, low, high}``; larger is better.

    Raises:
        ValueError: no candidate.
    """
    if not candidates:
        raise ValueError("no model to choose from")
    chosen, steps = candidates[0], []
    for candidate in candidates[1:]:
        found = gap(candidate, chosen)
        step = Step(candidate, chosen, found.get("value"), found.get("low"), found.get("high"))
        steps.append(step)
        if step.taken:
            chosen = candidate
    return Choice(chosen, tuple(steps))
