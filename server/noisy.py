"""The :class:`server.exchange.Exchange` of noised sums: each site's words are added up, and the sum is read.

What the algorithm gets is the same for each site of the sum: the weights less the mean gradient over all of them, or in
a stage's centring round (``model.features=centred``) the mean of the features in its place, and the weights. Real
sites give their words under masks alone; of sites that are one process they may come as they are. Both are the same sum
of the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from fed_diffmic.algorithms import algorithm_class
from fed_diffmic.algorithms.base import SiteUpdate, Sums, Tensors
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import RoundError
from fed_diffmic.exchange.masking.fixed_point import add_words, sum_fits
from fed_diffmic.exchange.masking.requests import NOISED
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.distributed.step import mean_features, round_form
from server.exchange import TrainAnswer, TrainRequest
from server.masked import MaskedSites, is_masked, roster_of
from server.replies import Events
from server.sites import Question, Sites
from server.terms import RunTerms
from server.words import Words

TRAINED, MEAN = "parameter", "buffer"
"""Kinds of the tensors that such a run exchanges: no network that trains with privacy has statistics of batches, so the
means of features are its only buffers."""


class NoisySites(Sites):
    """Sites that answer a round with words of a noised sum."""

    def train(self, request: TrainRequest) -> TrainAnswer:
        """One noised sum over every site that takes part.

        Raises:
            RoundError: the quorum was missed, or words are so large that the sum could wrap around.
        """
        task, index = request.task, request.round_index
        form = form_of(self.spec, request)
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
                schema={NOISED: (f"int{form.bits}", (form.width,))},
                parcel=request.parcel,
                attach_base=index == 1,
            )
        )
        words = {name: unsigned(outcome.replies[name].tensors[NOISED], form) for name in sorted(outcome.replies)}
        units = {name: self.members[name].images[0] for name in words}
        return TrainAnswer(moved(summed(words, form), form, request, units), dict.fromkeys(words, ""), outcome)


class MaskedNoisySites(MaskedSites):
    """Sites that answer a round with words of a noised sum, under masks."""

    def written(self, request: TrainRequest, sites: int, kept: Mapping[str, Any] | None = None) -> Words:
        """How a round's noised sums are written: by the form alone, which a request need not describe.

        Raises:
            RoundError, ConfigError: as :func:`form_of`; or so many sites' words do not fit.
        """
        form = form_of(self.spec, request)
        form.room(sites)

        def read(total: np.ndarray, units: Mapping[str, int]) -> tuple[Sequence[SiteUpdate], Sums | None]:
            return moved(total, form, request, units), None

        return Words(form.digest, form.bits, 0, form.width, read)


def form_of(spec: RunSpec, request: TrainRequest) -> NoisyForm:
    """The form of a round's sum.

    Raises:
        RoundError: the algorithm takes none.
        ConfigError: as :func:`fed_diffmic.privacy.distributed.step.round_form`.
    """
    if not isinstance(request.algorithm, FedSgd):
        raise RoundError("noised sums are what strategy=fedsgd takes", "Choose strategy=fedsgd.")
    centring = is_centring(request)
    kind = MEAN if centring else TRAINED
    shapes = {name: value.shape for name, value in request.sent.items() if request.kinds[name] == kind}
    return round_form(spec, request.task.stage, request.round_index, request.algorithm, shapes, centring=centring)


def is_centring(request: TrainRequest) -> bool:
    """Whether the round finds the mean of the features: the stage's first one, and there is none yet.

    Sites see the same of the weights that they were sent (:func:`fed_diffmic.training.centring.seeks_centre`).
    """
    means = [value for name, value in request.sent.items() if request.kinds[name] == MEAN]
    return request.round_index == 1 and bool(means) and not any(value.any() for value in means)


def moved(total: np.ndarray, form: NoisyForm, request: TrainRequest, units: Mapping[str, int]) -> list[SiteUpdate]:
    """What the algorithm gets of a sum: for each site of it the weights less the mean gradient over all of them.

    Of a centring round the mean of the features, and the weights as they were.

    Args:
        units: that each site of the sum said it has.
    """
    found = {name: value.astype(np.float64) for name, value in request.sent.items()}
    if is_centring(request):
        found |= mean_features(form.sums(total))
    else:
        expected = request.algorithm.options.sample_rate * sum(units.values())
        found |= {name: found[name] - value for name, value in mean_gradient(total, form, expected).items()}
    return [SiteUpdate(name, found, 1) for name in sorted(units)]


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
    """Who asks the sites of a run: by the sums that its algorithm takes, plain or masked.

    Args:
        folder: of the run.
        more: as :class:`server.presence.Presence` takes it.
    """
    noised = algorithm_class(spec.strategy.name).gradient_sums
    if not is_masked(spec):
        return (NoisySites if noised else Sites)(grid, spec, events, terms, **more)
    kept: dict[str, Any] = {"folder": folder, "roster": roster_of(spec, terms, more["hooks"])}
    return (MaskedNoisySites if noised else MaskedSites)(grid, spec, events, terms, **kept, **more)
