"""What watches a run's rounds, or ends a stage before its last round.

Observers are told after the round's checkpoint: what they say never goes before what is kept. A coordinator that dies
between the two tells them nothing of that round again; whether the stage goes on it asks them anew
(:meth:`RoundObserver.resumed`), so an observer that can stop a stage decides from what the checkpoint holds, and a run
that was killed ends at the same round as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fed_diffmic.config.spec import RunSpec
from server.replies import Events
from server.run_state import StageProgress

Facts = Mapping[str, Any]
"""A round's row of the history (:func:`server.history.round_row`)."""


@dataclass(frozen=True)
class Stop:
    """The stage ends with the round that was told.

    Attributes:
        reason: one sentence for people; names no site.
    """

    reason: str


class RoundObserver(Protocol):
    """Told of every round of every stage."""

    def after_round(self, facts: Facts, progress: StageProgress) -> Stop | None:
        """A round has ended and is kept.

        Args:
            facts: the round's row of the history; not to be changed.
            progress: of the stage, as the checkpoint holds it; not to be changed.

        Returns:
            why the stage shall end here, or none.
        """

    def resumed(self, progress: StageProgress) -> Stop | None:
        """What this observer would have said after the last round that is kept; asked before a stage goes on."""
        return None

    def may_stop(self, progress: StageProgress) -> bool:
        """Whether it might end the stage when it is told of the round that is under way.

        If not, the next round may be asked for before it is told (:mod:`server.judging`). Who does not say is asked to
        wait for, so that no round is trained in vain.
        """
        return True


class RoundEvents(RoundObserver):
    """Writes ``round_done``, which the console, the report and every viewer of a run are made of.

    Args:
        events: where facts go.
        spec: of the run.
    """

    def __init__(self, events: Events, spec: RunSpec) -> None:
        self._events, self._spec = events, spec

    def may_stop(self, progress: StageProgress) -> bool:
        """Never."""
        return False

    def after_round(self, facts: Facts, progress: StageProgress) -> Stop | None:
        """Emit the event."""
        rounds = self._spec.stage(progress.name).rounds or 0
        self._events.emit("round_done", arm=self._spec.arm, rounds=rounds, figures=facts["mean"], **facts)
        return None


class Patience(RoundObserver):
    """Early stopping: a stage ends when so many rounds in a row were no better than its best one.

    Better is what chooses the round (``stages.*.select``, :func:`server.selection.is_better`): the mean of the sites'
    validation metrics, or, where one site is to be withstood, the comparison that no single site turns. An equal round
    is no better one. A round of which no site says how good it is counts neither way, so a run whose sites keep their
    validation back has all its rounds. The stage's result is its best round, as without it (Goodfellow, Bengio and
    Courville 2016, algorithm 7.1, with one evaluation a round).

    Args:
        patience: rounds, at least 1.
        history: the run's rows, to which each round is added before it is told.
    """

    def __init__(self, patience: int, history: Sequence[Facts]) -> None:
        self._patience, self._history = patience, history

    def after_round(self, facts: Facts, progress: StageProgress) -> Stop | None:
        """Count the rounds since the best one."""
        return self.resumed(progress)

    def resumed(self, progress: StageProgress) -> Stop | None:
        """As after the last round that is kept: counted from the history, with nothing remembered beside it."""
        if self._since(progress) < self._patience:
            return None
        return Stop(f"no round was better than round {progress.best_round} for {self._patience} rounds (run.patience)")

    def may_stop(self, progress: StageProgress) -> bool:
        """Whether one more round that is no better would be enough."""
        return self._since(progress) + 1 >= self._patience

    def _since(self, progress: StageProgress) -> int:
        """Rounds since the best one of which somebody says how good they are."""
        later = [f for f in self._history if f["stage"] == progress.name and f["round"] > progress.best_round]
        return sum(bool(facts["mean"]) for facts in later)


def told(observers: Sequence[RoundObserver], rows: Iterable[Facts | None], progress: StageProgress) -> Stop | None:
    """Tell every observer of the rounds that are kept now; the first one's word that the stage shall end, or none."""
    said = [observer.after_round(facts, progress) for facts in rows if facts is not None for observer in observers]
    return next((stop for stop in said if stop is not None), None)


def stopped_before(observers: Iterable[RoundObserver], progress: StageProgress) -> Stop | None:
    """Whether the last round that is kept was to be the stage's last; before the first round nothing was."""
    said = [observer.resumed(progress) for observer in observers] if progress.round else []
    return next((stop for stop in said if stop is not None), None)
