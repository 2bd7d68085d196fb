"""When a round is judged: before it ends, or by the message that asks for the next round's training.

Both judge the same weights (:func:`server.broadcast.Broadcast.settle`: with a moving average that average, else the
round's weights), and a site does the same things in the same order, so weights, choices and metrics are equal. In the
second way a round costs one exchange instead of two, and its metrics come with the next round's updates: until then its
row waits in the stage's progress, and in every checkpoint. A round is judged before it ends all the same where

- it is its stage's last one;
- its metrics could end the stage (``run.patience``): no round is ever trained that would have to be thrown away;
- a round is more than one request to a site (masked sums, shared noise).
"""

from __future__ import annotations

from fed_diffmic.algorithms.base import Tensors
from server.exchange import EvaluateRequest, MetricsAnswer, Parcel, TrainAnswer, TrainRequest
from server.federation import Federation
from server.history import Row, judged_row, metrics_of_round
from server.judges import judges
from server.observers import told
from server.stage import StageWork, choose


class Judging:
    """How the rounds of one stage are judged.

    Args:
        run: the run.
        work: the stage; a round that was not judged when the run was ended is judged first.
    """

    def __init__(self, run: Federation, work: StageWork) -> None:
        self._run, self._work = run, work
        self._parcel: Parcel | None = None  # a resumed run no longer has it: the weights are sent whole then

    def train(self, request: TrainRequest) -> tuple[TrainAnswer, Row | None]:
        """Ask for a round's training, and for the metrics of the round before where it waits for them.

        Returns:
            the training, and the row of the round before if it was judged now; it stands in the history.

        Raises:
            RoundError: a quorum was missed.
        """
        exchange, waits = self._run.exchange, bool(self._work.progress.waiting)
        if waits and exchange.one_message:
            evaluated, trained = exchange.judge_and_train(self._waiting(request.deadline), request)
            return trained, self._settle(evaluated)
        before = self.catch_up(request.deadline)
        return exchange.train(request), before

    def catch_up(self, deadline: float) -> Row | None:
        """Judge by itself the round that waits, if one does; its row."""
        if not self._work.progress.waiting:
            return None
        return self._settle(self._run.exchange.evaluate(self._waiting(deadline)))

    def waits(self, index: int) -> bool:
        """Whether the metrics of the round that is under way come with the next one's training."""
        run, progress = self._run, self._work.progress
        if not run.terms.one_exchange or not run.exchange.one_message or index >= self._work.rounds:
            return False
        return not any(observer.may_stop(progress) for observer in run.observers)

    def keep(self, row: Row, candidate: Tensors, parcel: Parcel) -> None:
        """Let a round wait: written into the stage's progress, for the checkpoint."""
        progress = self._work.progress
        progress.waiting = row
        progress.candidate = {} if candidate is progress.current else candidate
        self._parcel = parcel

    def judge(self, candidate: Tensors, index: int, deadline: float, parcel: Parcel | None) -> EvaluateRequest:
        """What asks for the metrics of a round's weights."""
        work, asked = self._work, judges(self._run, self._work.progress.name)
        prior = self._run.prior.tolist()
        return EvaluateRequest(work.task, candidate, prior, index, deadline, work.own_states, False, parcel, asked)

    def evaluate(self, candidate: Tensors, index: int, deadline: float, parcel: Parcel) -> MetricsAnswer:
        """Judge the round that is under way before it ends."""
        return self._run.exchange.evaluate(self.judge(candidate, index, deadline, parcel))

    def choose(self, candidate: Tensors, index: int, evaluated: MetricsAnswer) -> None:
        """Make a round the stage's best one so far if its metrics say so."""
        best = metrics_of_round(self._run.run_state, self._work.progress.name, self._work.progress.best_round)
        choose(self._work, candidate, index, evaluated, best)

    def finish(self, deadline: float) -> None:
        """The stage is over; a round that still waits is judged, and told."""
        told(self._run.observers, [self.catch_up(deadline)], self._work.progress)

    def _waiting(self, deadline: float) -> EvaluateRequest:
        progress = self._work.progress
        candidate = progress.candidate or progress.current
        parcel, self._parcel = self._parcel, None
        return self.judge(candidate, progress.round, deadline, parcel)

    def _settle(self, evaluated: MetricsAnswer) -> Row:
        progress, run_state = self._work.progress, self._run.run_state
        self.choose(progress.candidate or progress.current, progress.round, evaluated)
        row = judged_row(self._work, progress.waiting, evaluated, self._run.hooks)
        run_state.bytes_sent += evaluated.outcome.bytes_sent
        run_state.history.append(row)
        progress.waiting, progress.candidate = {}, {}
        return row
