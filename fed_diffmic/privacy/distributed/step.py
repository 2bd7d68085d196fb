"""A site's part in one round: the sum of its drawn units' gradients with its share of noise, as words.

Nothing of it depends on what was drawn but the sum itself; a round that draws nobody sends noise, and costs the same.

In a stage's centring round (``model.features=centred``; :mod:`fed_diffmic.training.centring`) the units' features are
summed in the place of their gradients, and a constant for each unit, whose sum says how many they are: by the same
mechanism, at the same cost. Coordinator and sites find from the round's number and weights which of the two it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.dp_sgd import Source, unit_features
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.per_sample import Units, clipped, trained, unit_gradients
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.seeding import derive_seed
from fed_diffmic.training.centring import seeks_centre
from fed_diffmic.training.losses import prior_offset
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import centres, exchanged
from fed_diffmic.training.update import LocalRound

UNITS = "units"
"""In a centring round's sum, beside the means: the drawn units, each :func:`unit_weight`, noised like the rest."""


def round_form(
    spec: RunSpec,
    stage: str,
    round_index: int,
    algorithm: FedSgd,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    centring: bool = False,
) -> NoisyForm:
    """The form of a round's sum, from what coordinator and sites both know.

    Args:
        shapes: of the tensors that are summed, by name: those that are trained, or the means of a centring round.
        centring: no gradient is bounded but a unit's features, whose mean square is at most 1, and its constant.

    Raises:
        ConfigError: the share of noise is not given, or not one that can be added as whole numbers.
    """
    own = algorithm.options
    seed = derive_seed(spec.seed, "flattening", spec.arm, stage, round_index)
    norm = own.clip_norm
    if centring:
        width = sum(math.prod(shape) for shape in shapes.values())
        shapes, norm = {**shapes, UNITS: (1,)}, math.sqrt(width + unit_weight(width) ** 2)
    return NoisyForm(shapes, norm, algorithm.share, seed, 64 if own.wide_words else 32)


def form_at_site(module: StageModule, algorithm: FedSgd, round_index: int) -> NoisyForm:
    """The form of a round, by the network that the site itself built.

    Raises:
        ConfigError: as :func:`round_form`, or the network's gradients cannot be bounded by unit.
    """
    check_private(module, exchanged(module))
    centring = seeks_centre(module, round_index)
    tensors = dict(module.network.named_buffers()) if centring else trained(module)
    shapes = {name: tuple(tensors[name].shape) for name in (centres(module) if centring else tensors)}
    return round_form(module.spec, module.stage, round_index, algorithm, shapes, centring=centring)


def noised_words(
    module: StageModule,
    train: Examples,
    at: LocalRound,
    form: NoisyForm,
    rate: float,
    *,
    privacy: PrivacyConfig,
    prior: np.ndarray | None = None,
    room: int | None = None,
) -> np.ndarray:
    """The words of one round, ``(d,)``; their cost must be in the ledger before.

    Args:
        module: with the round's weights; it stays as it is.
        train: the site's training images.
        at: whose sum it is, and of which round.
        form: of the round.
        rate: probability with which a unit takes part.
        privacy: how training is protected.
        prior: noised class shares ``(C,)`` for the balanced loss; none: classes count as equally frequent.
        room: what no number of the sum exceeds before noise is added (:meth:`NoisyForm.room`); none: whoever adds words
            looks whether they fit.

    Raises:
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    spec, device = module.spec, at.device
    torch.set_num_threads(spec.threads)
    module.to(device).train()
    offset = None
    if spec.stage(module.stage).loss == "balanced" and prior is not None:
        offset = prior_offset(prior, spec.task).to(device)
    random = Randomness(privacy.test_seed, module.stage, at.site, at.round_index)
    source = Source(module, train, privacy, at.site, at.round_index, device, offset, at.store, at.store_key)
    drawn = [source.members[i] for i in random.included(len(source.members), rate)]
    total = np.zeros(form.width, dtype=np.int64)
    of_units = counted_features if seeks_centre(module, at.round_index) else unit_gradients
    for units in source.chunks(drawn, random):
        rows = form.rows(clipped(of_units(module, units), form.clip_norm), random)
        total += rows.sum(dim=0).cpu().numpy()
    if room is not None:
        np.clip(total, -room, room, out=total)
    return form.words(total + form.noise(random))


def unit_weight(width: int) -> float:
    """What stands for one unit beside ``width`` numbers of its features: its square is an eighth of their largest.

    Noise is as long as the whole vector. With a plain 1 the number of units would have ``sqrt(width)`` times the noise
    that is meant for one unit; so it has three times, and the features have 6 % more.
    """
    return math.sqrt(width / 8)


def counted_features(module: StageModule, units: Units) -> dict[str, torch.Tensor]:
    """What a centring round sums: each unit's features, ``(U, W)`` by the mean's name, and its constant, ``(U, 1)``."""
    features = unit_features(module, units)
    weight = unit_weight(sum(rows.shape[1] for rows in features.values()))
    some = units.mask.sum(dim=1, keepdim=True) > 0
    return {**features, UNITS: weight * some.to(units.mask.dtype)}


def mean_features(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean of the features that a centring round's sums say, each ``(W,)`` of a root mean square of at most 1.

    Divided by the noised number of units that were drawn, not by an expected one: that rests on what sites said of
    themselves. No mean of features is longer than they are, so one that noise, or a site, made longer is brought back:
    a stage keeps it for all of its rounds.
    """
    features = {name: value for name, value in sums.items() if name != UNITS}
    weight = unit_weight(sum(value.size for value in features.values()))
    means = {name: value / max(1.0, float(sums[UNITS][0]) / weight) for name, value in features.items()}
    return {name: mean / max(1.0, float(np.sqrt(np.square(mean).mean()))) for name, mean in means.items()}
