"""A local update with differential privacy: Poisson sampling, clipping by unit, Gaussian noise (Abadi et al. 2016).

The number of steps, the sample rate, the noise and what the sum is divided by follow from the configuration and, unless
``privacy.nominal_units`` is given, from the number of units; nothing of it depends on what was drawn. A step that draws
nobody adds noise and counts like any other. What is added afterwards (what the algorithm's site half adds and corrects,
weight decay, the optimizer's moments) reads no data but through the noised gradients.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fed_diffmic.algorithms.base import Algorithm, SiteHalf
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import augment, normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.errors import BudgetError, ConfigError
from fed_diffmic.privacy.accounting import Mechanism, epsilon, noise_multiplier_for
from fed_diffmic.privacy.ghost.sum import summed
from fed_diffmic.privacy.modules import check_private
from fed_diffmic.privacy.per_sample import Units, clipped_sum, trained
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.privacy.shares import Allowance
from fed_diffmic.training.centring import seeks_centre
from fed_diffmic.training.features import FeatureStore, all_features
from fed_diffmic.training.local import begin_update
from fed_diffmic.training.losses import prior_offset
from fed_diffmic.training.optimizer import set_learning_rate
from fed_diffmic.training.parts import Team
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import centres, exchanged, set_tensors, to_array
from fed_diffmic.training.update import LocalResult, LocalRound, SiteMemory

LEAST = 0.1
"""A run that may spend less than this share of ``privacy.epsilon`` is refused before its first round."""

NOISE_AT_A_TIME = 1 << 18
"""Deviates; more would take memory that the system has to clear first, which costs more than to make them."""

GRANT = "A person at the site can raise the budget: `fed-diffmic ledger grant`."


@dataclass(frozen=True)
class Plan:
    """What one round of a stage does, and costs.

    Attributes:
        units: in the training set (or ``privacy.nominal_units``).
        sample_rate: probability that a unit takes part in a step.
        steps: of a round.
        noise_multiplier: over the clipping bound.
        expected_batch: what the noised sum is divided by.
    """

    units: int
    sample_rate: float
    steps: int
    noise_multiplier: float
    expected_batch: float

    @property
    def mechanism(self) -> Mechanism:
        """A round, for the accountant."""
        return Mechanism(self.sample_rate, self.noise_multiplier, self.steps)


def unit_members(examples: Examples, unit: str) -> list[np.ndarray]:
    """Positions of each unit's examples, in a stable order."""
    if unit == "image":
        return [np.array([i]) for i in range(len(examples))]
    _, of = np.unique(examples.groups, return_inverse=True)
    order = np.argsort(of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of[order])) + 1) if len(order) else []


def count_mechanism(privacy: PrivacyConfig) -> Mechanism | None:
    """The release of noised class counts, once a run; none where no counts leave."""
    return Mechanism(1.0, privacy.count_noise, 1) if privacy.count_noise else None


def count_sensitivity(spec: RunSpec) -> float:
    """L2 norm by which one unit can change the class counts, to which it adds its images' mean label: 1, or the root of
    the number of labels where an image may have several."""
    return math.sqrt(spec.num_classes) if spec.task == "multilabel" else 1.0


def noised_counts(train: Examples, spec: RunSpec, privacy: PrivacyConfig, random: Randomness) -> np.ndarray:
    """Units of each class ``(C,)`` with noise, not below zero; a patient with several classes counts in parts.

    So a unit weighs as much here as in the loss, and a patient's many images need no more noise than one. The noise has
    a standard deviation of ``count_noise`` times :func:`count_sensitivity`.
    """
    labels = np.asarray(train.labels, dtype=np.float64)
    if spec.task != "multilabel":
        labels = np.eye(spec.num_classes)[train.labels.astype(np.int64)]
    counts = np.zeros(spec.num_classes)
    for members in unit_members(train, privacy.unit):
        counts += labels[members].mean(axis=0)
    scale = privacy.count_noise * count_sensitivity(spec)
    return np.maximum(counts + scale * random.normal(spec.num_classes).numpy(), 0.0)


def check_delta(privacy: PrivacyConfig, units: int) -> None:
    """Refuse a probability of failure with which a whole unit could be given away.

    Raises:
        ConfigError: delta is more than one over the number of units.
    """
    if privacy.delta > 1 / units:
        raise ConfigError(
            "privacy.delta", privacy.delta, f"at most one over the {privacy.unit}s of the site, 1/{units}"
        )


def make_plan(
    privacy: PrivacyConfig, spec: RunSpec, stage: str, train: Examples, most: Allowance | None = None
) -> Plan:
    """A round of a stage at a site.

    A noise multiplier that is not given is computed once for the whole run: with it all rounds of all stages in
    ``privacy.stages``, and the class counts, cost ``privacy.epsilon`` together, or what the run may take where that is
    less; and no round by itself costs more than a round may.

    Args:
        most: what the run may take of the site's budget; none: ``privacy.epsilon`` alone decides.

    Raises:
        ConfigError: nothing says how much noise, delta is too large for so few units, or no noise would do.
        BudgetError: nothing is left for the run.
    """
    units = privacy.nominal_units or len(unit_members(train, privacy.unit))
    if units == 0:
        raise ConfigError("privacy.nominal_units", 0, "a site with training images, or a public number of units")
    check_delta(privacy, units)
    rate = min(1.0, privacy.logical_batch / units)

    def steps(name: str) -> int:
        cfg = spec.stage(name)
        return cfg.steps or max(1, round(cfg.epochs / rate))

    sigma = privacy.noise_multiplier
    if sigma is None:
        rounds = {name: spec.stage(name).rounds or 0 for name in privacy.stages if name != "plain"}
        if stage == "plain":
            rounds = {stage: spec.stage(stage).rounds or 0}
        planned = [(rate, steps(name), count) for name, count in sorted(rounds.items()) if count]
        sigma = _planned_noise(privacy, planned, most)
    return Plan(units, rate, steps(stage), sigma, rate * units)


def _planned_noise(privacy: PrivacyConfig, planned: Sequence[tuple[float, int, int]], most: Allowance | None) -> float:
    """The noise multiplier with which rounds ``(sample rate, steps, how many)`` keep to what may be spent."""
    target = privacy.epsilon
    if target is None:
        raise ConfigError("privacy.noise_multiplier", None, "a number, or privacy.epsilon to compute it from")
    if most is not None and not most.run >= LEAST * target:
        raise BudgetError(
            f"this run may spend epsilon {most.run:.3f} of what is left of the site's privacy budget, less than a "
            f"tenth of privacy.epsilon={target:g}: its updates would be noise",
            GRANT,
        )
    counts = count_mechanism(privacy)
    fixed = [counts] if counts else []
    together = [(rate, steps * count) for rate, steps, count in planned]
    try:
        if most is None:
            return noise_multiplier_for(target, privacy.delta, together, fixed, privacy.accountant)
        sigma = noise_multiplier_for(min(target, most.run), privacy.delta, together, fixed, privacy.accountant)
        for rate, steps, _ in planned:
            alone = epsilon([Mechanism(rate, sigma, steps)], privacy.delta, privacy.accountant)
            if alone > most.round:
                least = noise_multiplier_for(most.round, privacy.delta, [(rate, steps)], [], privacy.accountant)
                sigma = max(sigma, least)
    except ValueError as error:
        if most is not None and most.run < target:
            raise BudgetError(f"what this run may spend, epsilon {most.run:.3f}, is not enough", GRANT) from error
        raise ConfigError(
            "privacy.epsilon", target, "more than the class counts alone cost (privacy.count_noise)"
        ) from error
    return sigma


def private_update(
    module: StageModule,
    train: Examples,
    algorithm: Algorithm,
    at: LocalRound,
    memory: SiteMemory | None = None,
    *,
    privacy: PrivacyConfig,
    plan: Plan,
    prior: np.ndarray | None = None,
) -> LocalResult:
    """Train for one round as :func:`fed_diffmic.training.local.local_update` does, with noise.

    Args:
        module, train, algorithm, at, memory: as there; the pace is not looked at, the plan says how many steps.
        privacy: how training is protected.
        plan: of this stage (:func:`make_plan`); its cost must be in the ledger before.
        prior: noised class shares ``(C,)`` for the balanced loss; none: classes count as equally frequent.

    A centring round (:mod:`fed_diffmic.training.centring`) is the same mechanism, as often: each step releases the
    noised sum of the drawn units' features in the place of their gradients, and the mean is that of the steps.

    Returns:
        tensors, 1 as the number of examples (the caller knows the public weight), and as metrics the number of steps
        alone: a loss, and even a time, would say something of the data.

    Raises:
        ConfigError: the network cannot be trained so (:func:`fed_diffmic.privacy.modules.check_private`).
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    spec, cfg = module.spec, module.spec.stage(module.stage)
    check_private(module, exchanged(module))
    begun = begin_update(module, algorithm, at.device, memory or SiteMemory())
    random = Randomness(privacy.test_seed, module.stage, at.site, at.round_index)
    offset = None
    if cfg.loss == "balanced" and prior is not None:
        offset = prior_offset(prior, spec.task).to(at.device)
    source = Source(module, train, privacy, at.site, at.round_index, at.device, offset, at.store, at.store_key)
    noisy = _Noisy(source, plan, random, at.device, at.team)
    if seeks_centre(module, at.round_index):
        set_tensors(module.network, {name: to_array(value) for name, value in noisy.centre().items()})
    else:
        if at.team is not None:
            at.team.begin(module)
        noisy.train(begun.optimizer, begun.half)
    begun.optimizer.zero_grad(set_to_none=True)
    state_dict = module.network.state_dict()
    tensors = {name: to_array(state_dict[name]) for name in begun.names}
    return begun.result(tensors, 1, {"steps": float(plan.steps)})


@dataclass(frozen=True)
class _Noisy:
    """The steps of a round: sums over drawn units, clipped and noised.

    Several devices (``team``) share the sums alone. Who is drawn and what the noise is, this process says.
    """

    source: Source
    plan: Plan
    random: Randomness
    device: torch.device | str
    team: Team | None = None

    def train(self, optimizer: torch.optim.Optimizer, half: SiteHalf) -> None:
        """Optimizer steps."""
        source, plan = self.source, self.plan
        module, bound = source.module, source.privacy.max_grad_norm
        cfg, parameters = module.spec.stage(module.stage), trained(module)
        for step in range(plan.steps):
            set_learning_rate(optimizer, cfg, (source.round_index - 1 + step / plan.steps) / max(cfg.rounds or 1, 1))
            sums = summed if self.team is None else self.team.summed
            total = sums(module, self._drawn(), bound)
            optimizer.zero_grad(set_to_none=True)
            term = half.penalty()
            if term is not None:
                term.backward()
            for name, parameter in sorted(parameters.items()):
                noised = self._noised(total.pop(name)).to(parameter.dtype)  # no sum is held beside its gradient
                pull = parameter.grad
                parameter.grad = noised if pull is None else pull + noised
            half.correct()  # sees noised gradients only
            optimizer.step()

    @torch.no_grad()
    def centre(self) -> dict[str, torch.Tensor]:
        """Means of the units' features, each ``(W,)``: of every step the noised sum over the expected batch."""
        module, bound = self.source.module, self.source.privacy.max_grad_norm
        buffers = dict(module.network.named_buffers())
        means = {name: torch.zeros_like(buffers[name], dtype=torch.float64) for name in centres(module)}
        # No unit's features together are longer than the root of their number: no image's root mean square is above 1.
        scale = bound / math.sqrt(sum(value.numel() for value in means.values()))
        for _ in range(self.plan.steps):
            total = {name: torch.zeros_like(value) for name, value in means.items()}
            for units in self._drawn():
                scaled = {name: rows * scale for name, rows in unit_features(module, units).items()}
                for name, value in clipped_sum(scaled, bound).items():
                    total[name] += value.double()
            for name in sorted(means):
                means[name] += self._noised(total[name]) / (scale * self.plan.steps)
        return means

    def _drawn(self) -> Iterator[Units]:
        """Chunks of the units of one step."""
        members = self.source.members
        drawn = [members[i] for i in self.random.included(len(members), self.plan.sample_rate)]
        return self.source.chunks(drawn, self.random, 1 if self.team is None else self.team.size)

    def _noised(self, total: torch.Tensor) -> torch.Tensor:
        """The sum, which is used up, with its noise over the expected batch."""
        deviation = self.plan.noise_multiplier * self.source.privacy.max_grad_norm
        flat = total.double().reshape(-1)
        for start in range(0, len(flat), NOISE_AT_A_TIME):
            part = flat[start : start + NOISE_AT_A_TIME]
            part.add_(self.random.normal(len(part), self.device).to(flat), alpha=deviation)
        return (flat / self.plan.expected_batch).view(total.shape)


def unit_features(module: StageModule, units: Units) -> dict[str, torch.Tensor]:
    """What a centring round sums: each unit's mean over its images, ``(U, W)`` by the name of the network's mean."""
    columns = (column.flatten(0, 1) for column in units.inputs)
    rows = module.to_centre(type(units.inputs)(*columns))
    mask = units.mask.unsqueeze(2)
    # where, not a product: a padded place must not bring in 0 * inf.
    return {
        name: torch.where(mask > 0, value.unflatten(0, units.mask.shape), 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        for name, value in rows.items()
    }


@dataclass
class Source:
    """Makes chunks of units: augmented images, or rows of features that were computed once."""

    module: StageModule
    train: Examples
    privacy: PrivacyConfig
    site: str
    round_index: int
    device: torch.device | str
    offset: torch.Tensor | None
    store: FeatureStore | None = None
    store_key: Hashable = None

    def __post_init__(self) -> None:
        once = self.module.features_once and len(self.train) > 0
        self._features = (
            all_features(self.module, self.train, self.device, self.store, self.store_key) if once else None
        )
        self.members = unit_members(self.train, self.privacy.unit)

    def chunks(self, drawn: list[np.ndarray], random: Randomness, devices: int = 1) -> Iterator[Units]:
        """``drawn`` units, ``privacy.physical_batch`` at a time; what is random is drawn before the first is used.

        So the same stream gives the same update whatever the chunks are. Where there are several devices, chunks are no
        larger than an equal share of the units.
        """
        most = 1 if self.privacy.unit == "image" else self.privacy.max_images
        generator = torch.Generator().manual_seed(random.seed())
        chosen, draws = [], []
        for unit in drawn:
            order = torch.randperm(len(unit), generator=generator).numpy() if len(unit) > most else np.arange(len(unit))
            chosen.append(unit[order[:most]])
            draws.append(torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator))))
        size = max(1, min(self.privacy.physical_batch, -(-len(chosen) // devices)))
        for start in range(0, len(chosen), size):
            check_time()
            part = slice(start, start + size)
            yield self.units(chosen[part], draws[part])

    def units(self, chosen: list[np.ndarray], generators: list[torch.Generator]) -> Units:
        """A chunk as tensors on the device; places beyond a unit's images repeat its first one."""
        places = max(len(unit) for unit in chosen)
        index = np.stack([np.concatenate([u, np.repeat(u[:1], places - len(u))]) for u in chosen])
        mask = np.stack([np.arange(places) < len(u) for u in chosen]).astype(np.float32)
        most = 1 if self.privacy.unit == "image" else self.privacy.max_images
        # For as many places as there can be: what a unit draws must not depend on who else is in the chunk.
        draws = [self.module.draws(most, generator, "cpu") for generator in generators]
        labels = torch.from_numpy(self.train.labels[index.ravel()]).to(self.device)
        return Units(
            inputs=self._inputs(index),
            labels=labels.unflatten(0, index.shape),
            draws=tuple(torch.stack(column)[:, :places].to(self.device) for column in zip(*draws, strict=True)),
            mask=torch.from_numpy(mask).to(self.device),
            offset=self.offset,
        )

    def _inputs(self, index: np.ndarray) -> object:
        spec, cfg, flat = self.module.spec, self.module.spec.stage(self.module.stage), index.ravel()
        if self._features is not None:
            rows = (
                column[torch.from_numpy(flat).to(column.device)].unflatten(0, index.shape) for column in self._features
            )
            return type(self._features)(*rows)
        pixels = self.train.images(flat)
        if cfg.augment:
            keys = self.train.keys[flat]
            pixels = augment(
                pixels, keys, modality=spec.modality, seed=spec.seed, site=self.site, round=self.round_index
            )
        images = normalise(pixels.to(self.device), spec.mean, spec.std)
        if self.module.inputs_apart:  # no unit's gradient passes through it, so it need not run unit by unit
            made = self.module.inputs(images)
            return type(made)(*(column.unflatten(0, index.shape) for column in made))
        return images.unflatten(0, index.shape)
