"""The :class:`server.exchange.Exchange` of noised sums: each site's words are added up, and the sum is read.

What the algorithm gets is the same for each site of the sum: the weights less the mean gradient over all of them. The
words come as they are here, which is for sites that are one process; under masks it is the same sum of the same words
(``tests/server/test_noisy.py`` adds both).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from fed_diffmic.algorithms import algorithm_class
from fed_diffmic.algorithms.base import SiteUpdate, Tensors
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.fixed_point import add_words, sum_fits
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.distributed.step import round_form
from server.exchange import TrainAnswer, TrainRequest
from server.masked import sites_of as plain_or_masked
from server.replies import Events
from server.sites import Question, Sites
from server.terms import RunTerms

WORDS = "words"


class NoisySites(Sites):
    """Sites that answer a round with words of a noised sum."""

    def train(self, request: TrainRequest) -> TrainAnswer:
        """One noised sum over every site that takes part.

        Raises:
            RoundError: the quorum was missed, or words are so large that the sum could wrap around.
        """
        algorithm = request.algorithm
        if not isinstance(algorithm, FedSgd):
            raise RoundError("noised sums are what strategy=fedsgd takes", "Choose strategy=fedsgd.")
        task, index = request.task, request.round_index
        shapes = {name: value.shape for name, value in request.sent.items()}
        form = round_form(self.spec, task.stage, index, algorithm, shapes)
        outcome = self._exchange(
            Question(
                MessageType.TRAIN,
                task,
                request.sent,
                index,
                request.deadline,
                header=self.train_header(request),
                metrics=lambda site: {},
                fields={"state": str, "ledger": str, "claim": str},
                schema={WORDS: (f"int{form.bits}", (form.width,))},
                parcel=request.parcel,
                attach_base=index == 1,
            )
        )
        words = {name: unsigned(outcome.replies[name].tensors[WORDS], form) for name in sorted(outcome.replies)}
        total = summed(words, form)
        units = sum(self.members[name].images[0] for name in words)
        mean = mean_gradient(total, form, algorithm.options.sample_rate * units)
        moved = {name: value.astype(np.float64) - mean[name] for name, value in request.sent.items()}
        updates = [SiteUpdate(name, moved, 1) for name in words]
        return TrainAnswer(updates, dict.fromkeys(words, ""), outcome)


def unsigned(words: np.ndarray, form: NoisyForm) -> np.ndarray:
    """A reply's numbers as the words that they are."""
    return words.astype(f"<i{form.bits // 8}", copy=False).view(form.dtype)


def summed(words: Mapping[str, np.ndarray], form: NoisyForm) -> np.ndarray:
    """The sum of the sites' words.

    Raises:
        RoundError: one site's are so large that the sum could wrap around.
    """
    total = np.zeros(form.width, form.dtype)
    for name, own in words.items():
        if not sum_fits(own, len(words)):
            raise RoundError(f"the words of {name} leave no room for the others'", "Set strategy.wide_words=true.")
        add_words(total, own)
    return total


def mean_gradient(total: np.ndarray, form: NoisyForm, expected: float) -> Tensors:
    """What a sum of words says of the gradient of one unit.

    Args:
        expected: number of units that were drawn, in expectation: what was really drawn nobody knows.
    """
    return {name: value / expected for name, value in form.sums(total).items()}


def sites_of(grid: Grid, spec: RunSpec, events: Events, terms: RunTerms, folder: Path, **more: Any) -> Sites:
    """Who asks the sites of a run: by the sums that its algorithm takes, else plain or masked.

    Args:
        folder: of the run.
        more: as :class:`server.presence.Presence` takes it.
    """
    if algorithm_class(spec.strategy.name).gradient_sums:
        return NoisySites(grid, spec, events, terms, **more)
    return plain_or_masked(grid, spec, events, terms, folder, **more)
