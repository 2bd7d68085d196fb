"""A site's part in one round: the sum of its drawn units' gradients with its share of noise, as words.

Nothing of it depends on what was drawn but the sum itself; a round that draws nobody sends noise, and costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.dp_sgd import Source
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.per_sample import clipped, trained, unit_gradients
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.seeding import derive_seed
from fed_diffmic.training.losses import prior_offset
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import exchanged
from fed_diffmic.training.update import LocalRound


def round_form(
    spec: RunSpec, stage: str, round_index: int, algorithm: FedSgd, shapes: Mapping[str, tuple[int, ...]]
) -> NoisyForm:
    """The form of a round's sum, from what coordinator and sites both know.

    Args:
        shapes: of the tensors that are trained, by name.

    Raises:
        ConfigError: the share of noise is not given, or not one that can be added as whole numbers.
    """
    own = algorithm.options
    seed = derive_seed(spec.seed, "flattening", spec.arm, stage, round_index)
    return NoisyForm(shapes, own.clip_norm, algorithm.share, seed, 64 if own.wide_words else 32)


def form_at_site(module: StageModule, algorithm: FedSgd, round_index: int) -> NoisyForm:
    """The form of a round, by the network that the site itself built.

    Raises:
        ConfigError: as :func:`round_form`, or the network's gradients cannot be bounded by unit.
    """
    check_private(module, exchanged(module))
    shapes = {name: tuple(parameter.shape) for name, parameter in trained(module).items()}
    return round_form(module.spec, module.stage, round_index, algorithm, shapes)


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
    for units in source.chunks(drawn, random):
        rows = form.rows(clipped(unit_gradients(module, units), form.clip_norm), random)
        total += rows.sum(dim=0).cpu().numpy()
    if room is not None:
        np.clip(total, -room, room, out=total)
    return form.words(total + form.noise(random))
