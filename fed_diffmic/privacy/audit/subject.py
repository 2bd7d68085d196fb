"""What is audited: the update that sites run, on ``tiny`` and pictures of noise, with canaries among the units.

No patient's image is needed or read. Everything from the planning of the noise to the weights that leave is the code of
a real site (``make_plan``, ``private_update``); an attacker here sees those weights after each round of one step and
knows all else: the other images, the settings, the weights before, the run's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.compose import compose
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.data.site import Examples
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.dp_sgd import Plan, make_plan, private_update
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import build_module, exchanged, full_state, load_state, set_tensors
from fed_diffmic.training.update import LocalRound

CLASSES = ("a", "b", "c", "d")
_LR = 1e-2
_STRENGTH = 100.0  # a canary's gradient before clipping, in clipping bounds
_IMAGES = 3  # of a patient


class _Pictures:
    """Images in memory, behind the image cache's one method that training uses."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def images(self, rows: np.ndarray) -> Tensor:
        return self._images[torch.from_numpy(rows)]


class CanaryStage(StageModule):
    """A stage in which labels beyond the classes mean canaries: units whose gradient an attacker made up.

    Label ``C + i`` gives a loss whose gradient is ``strength`` in the single coordinate ``places[i]`` of one parameter
    and zero elsewhere, so canaries do not disturb each other. That is the worst case that clipping allows, and near
    what a coordinator can arrange that chooses the weights.

    Args:
        inner: the stage; its network is shared.
        parameter: name of the parameter.
        places: ``(m,)`` positions in it.
    """

    def __init__(self, inner: StageModule, parameter: str, places: np.ndarray, strength: float) -> None:
        super().__init__(inner.spec, inner.stage, inner.network)
        self._inner = (inner,)  # hidden from modules(): the network must not have two names
        self.features_once = inner.features_once
        self._parameter, self._places, self._strength = parameter, torch.from_numpy(places), strength

    def inputs(self, images: Tensor) -> Any:
        """As the inner stage's."""
        return self._inner[0].inputs(images)

    def draws(self, count: int, generator: torch.Generator, device: torch.device | str) -> tuple[Tensor, ...]:
        """As the inner stage's."""
        return self._inner[0].draws(count, generator, device)

    def losses(self, batch: Batch, draws: tuple[Tensor, ...]) -> Tensor:
        """The inner stage's for images, a straight line for canaries."""
        canary = batch.labels - len(self.spec.classes)
        labels = batch.labels.clamp(max=len(self.spec.classes) - 1)
        real = self._inner[0].losses(replace(batch, labels=labels), draws)
        # Not get_parameter: under torch.func the value is a tensor and no parameter.
        owner, _, name = self._parameter.rpartition(".")
        value = getattr(self.network.get_submodule(owner), name).flatten()
        line = self._strength * value[self._places[canary.clamp(min=0)]]
        return torch.where(canary >= 0, line, real)


@dataclass(frozen=True)
class Subject:
    """The mechanism in question and what surrounds the canaries.

    Attributes:
        privacy: as a site would have it; noise planned for ``rounds`` rounds of one step.
        spec: of a run of ``tiny``.
        stage: ``guidance``, ``diffusion`` or ``plain``.
        rounds: that are observed.
        ordinary: other units in the training set.
        claim: epsilon of all rounds at ``privacy.delta``, as the ledger would say.
        plan: of one round.
    """

    privacy: PrivacyConfig
    spec: RunSpec
    stage: str
    rounds: int
    ordinary: int
    claim: float
    plan: Plan

    @property
    def images_each(self) -> int:
        """Images of a unit."""
        return 1 if self.privacy.unit == "image" else min(_IMAGES, self.privacy.max_images)


def make_subject(
    privacy: PrivacyConfig,
    *,
    stage: str = "guidance",
    target: float = 4.0,
    rounds: int = 2,
    ordinary: int = 9,
    draws: int = 4,
    seed: int = 0,
) -> Subject:
    """A subject with a site's settings, its noise planned for ``target`` over the few rounds of an audit.

    Unit, clipping bound, delta, accountant, physical batch and ``test_seed`` are the site's. What sets how much noise a
    real run gets (rounds, batch, number of units) is the audit's, since attacks need thousands of runs.

    Args:
        draws: noise draws of an image in stage diffusion.

    Raises:
        ConfigError: the settings do not go together.
    """
    settings = {
        "rounds": rounds, "steps": 1, "optimizer": "sgd", "momentum": 0, "weight_decay": 0, "lr": _LR,
        "schedule": "constant", "augment": "false", "encoders": "train", "draws": draws,
    }  # fmt: skip
    config = compose(
        None,
        [
            f"seed={seed}",
            "model=tiny",
            "model.encoder_norm=group",
            *(f"stages.{stage}.{name}={value}" for name, value in settings.items()),
        ],
    )
    spec = make_spec(config, classes=CLASSES, task="multiclass", run_id="audit", arm="audit", device="cpu")
    privacy = replace(
        privacy,
        name="dp_sgd",
        stages=[stage],
        noise_multiplier=None,
        epsilon=target,
        budget=None,
        nominal_units=ordinary + 1,  # a sample rate near one: a higher one audits sharper, one itself no sampling
        logical_batch=ordinary,
        count_noise=0.0,
        weight=1,
    )
    examples = pictures(spec, ordinary, 1)
    plan = make_plan(privacy, spec, stage, examples)
    total = [Mechanism(plan.sample_rate, plan.noise_multiplier, plan.steps * rounds)]
    claim = epsilon(total, privacy.delta, privacy.accountant)
    return Subject(privacy, spec, stage, rounds, ordinary, claim, plan)


def pictures(spec: RunSpec, units: int, images_each: int, seed: int = 0) -> Examples:
    """``units`` units of noise pictures, each with one label."""
    rng = np.random.default_rng([spec.seed, seed])
    count = units * images_each
    side = spec.model.image_side
    cache: Any = _Pictures(torch.from_numpy(rng.integers(0, 256, (count, 3, side, side)).astype(np.uint8)))
    labels = np.repeat(rng.integers(0, len(CLASSES), units), images_each)
    groups = np.repeat(np.arange(units), images_each).astype(str)
    return Examples(np.arange(count), labels, groups, np.arange(count).astype(np.uint64), cache)


def with_labels(examples: Examples, units: Sequence[int], labels: Sequence[int]) -> Examples:
    """``examples`` with other labels for whole units."""
    changed = examples.labels.copy()
    for unit, label in zip(units, labels, strict=True):
        changed[examples.groups == str(unit)] = label
    return replace(examples, labels=changed)


class Observer:
    """Runs the subject and sees what leaves."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subject.spec.seed)
            self.module = build_module(subject.spec, subject.stage)
        self._base = full_state(self.module)
        self.names = sorted(exchanged(self.module))

    def begin(self) -> None:
        """The weights of round 1."""
        load_state(self.module.network, self._base)

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the weights that are exchanged."""
        state = self.module.network.state_dict()
        return {name: state[name].numpy().copy() for name in self.names}

    def put(self, weights: Mapping[str, np.ndarray]) -> None:
        """Go back to weights that :meth:`weights` gave."""
        set_tensors(self.module.network, weights)

    def round(self, module: StageModule, train: Examples, index: int) -> dict[str, np.ndarray]:
        """One round at the site: what was added to the sum over units, in clipping bounds, noise and all.

        The weights stay as the round left them.
        """
        subject = self.subject
        before = self.weights()
        result = private_update(
            module,
            train,
            build_algorithm(subject.spec.strategy),
            LocalRound("audited", index),
            privacy=subject.privacy,
            plan=subject.plan,
        )
        unit = subject.plan.expected_batch / (_LR * subject.privacy.max_grad_norm)
        return {name: (before[name].astype(np.float64) - result.tensors[name]) * unit for name in self.names}

    def canaries(self, count: int, rng: np.random.Generator) -> tuple[CanaryStage, str, np.ndarray]:
        """The stage with ``count`` canaries at random places of its largest parameter."""
        sizes = {name: self.module.network.get_parameter(name).numel() for name in self.names}
        largest = max(self.names, key=lambda name: sizes[name])
        places = rng.permutation(sizes[largest])[:count]
        strength = _STRENGTH * self.subject.privacy.max_grad_norm
        return CanaryStage(self.module, largest, places, strength), largest, places
