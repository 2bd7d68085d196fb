"""The local update of a site: one loop, read top to bottom.

Given the same module state, data, seeds and number of threads on the same build of torch and kind
of processor, its result is equal bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from fed_diffmic.algorithms.base import Algorithm, LocalContext, SiteHalf, Tensors
from fed_diffmic.config.precision import FLOAT32
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import augment, normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.seeding import numpy_generator, torch_generator
from fed_diffmic.training.centring import find_centre, seeks_centre
from fed_diffmic.training.features import CHUNK, all_features, chunks, normalised_images, select
from fed_diffmic.training.losses import label_prior, prior_offset
from fed_diffmic.training.optimizer import (
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
    optimizer_tensors,
    set_learning_rate,
)
from fed_diffmic.training.parts import Part, cut, part_loss, whole
from fed_diffmic.training.precision import casts, precision_of
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import exchanged, set_tensors, to_array
from fed_diffmic.training.update import LocalResult, LocalRound, SiteMemory

Penalty = torch.Tensor | None


def local_update(
    module: StageModule, train: Examples, algorithm: Algorithm, at: LocalRound, memory: SiteMemory | None = None
) -> LocalResult:
    """Train ``module`` on a site's training images for one round, starting from its present weights.

    Args:
        module: with the round's global weights loaded; it is changed.
        train: the site's training examples (``n >= 1``).
        algorithm: its site half takes part in every step.
        at: whose update it is, and of which round.
        memory: what it builds on beside the weights; none: nothing.

    Raises:
        ValueError: no training images, or the loss became infinite or not a number.
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    if len(train) == 0:
        raise ValueError("a site without training images cannot train")
    spec, cfg = module.spec, module.spec.stage(module.stage)
    started = time.monotonic()
    begun = begin_update(module, algorithm, at.device, memory or SiteMemory())
    offset, half = None, begun.half
    if cfg.loss == "balanced":
        offset = prior_offset(label_prior(train.labels, spec.num_classes, spec.task), spec.task).to(at.device)
    global_tensors = _tensors(module, begun.names) if half.personal else {}
    get_inputs = input_source(module, train, at)
    metrics = {}
    features = get_inputs if module.features_once else None
    if algorithm.needs_initial_loss:
        noise = torch_generator(spec.seed, "initial", module.stage, at.site, at.round_index, device=at.device)
        metrics["initial_loss"] = mean_loss(module, train, offset, noise, at.device, features)
    steps = max(1, round(at.pace * cfg.local_steps(len(train))))
    work = _Work(module, train, get_inputs, offset, at, steps)
    centring = seeks_centre(module, at.round_index)
    if centring:
        find_centre(module, train, at.device, features)
    else:
        if at.team is not None:
            at.team.begin(module)
        work = replace(work, precision=precision_of(module, at, work.trial))
        metrics["loss"] = work.run(begun.optimizer, half.penalty, half.correct)
    tensors = _tensors(module, begun.names)
    if half.personal:
        half.keep_personal(tensors if centring else _personal(work, half, global_tensors))
        set_tensors(module.network, tensors)
    metrics = {"steps": float(steps), "seconds": time.monotonic() - started, **metrics}
    return begun.result(tensors, len(train), metrics)


@dataclass(frozen=True)
class BegunUpdate:
    """A local update between its first step and its last, private or not.

    Attributes:
        module: that is trained.
        algorithm: whose site half takes part.
        names: tensors that the stage exchanges, with their kind.
        half: the site half, made from the round's weights.
        optimizer: with the moments that the site kept.
    """

    module: StageModule
    algorithm: Algorithm
    names: Mapping[str, str]
    half: SiteHalf
    optimizer: torch.optim.Optimizer

    def result(self, tensors: Tensors, num_examples: int, metrics: dict[str, float]) -> LocalResult:
        """The update as it ended.

        Args:
            tensors: those that the stage exchanges; what the algorithm keeps at the site is left out.
            num_examples: what the update weighs.
            metrics: its numbers.
        """
        network, keeps = self.module.network, self.module.spec.strategy.keep_optimizer_state
        algorithm_tensors, algorithm_state = self.half.finish()
        local = self.algorithm.kept(network, self.names)
        return LocalResult(
            tensors={name: value for name, value in tensors.items() if name not in local},
            num_examples=num_examples,
            metrics=metrics,
            optimizer_state=optimizer_tensors(self.optimizer, network) if keeps else None,
            algorithm_tensors=algorithm_tensors,
            algorithm_state=algorithm_state,
        )


def begin_update(
    module: StageModule, algorithm: Algorithm, device: torch.device | str, memory: SiteMemory
) -> BegunUpdate:
    """What private and plain updates do first: the module in training mode, the site half, the optimizer."""
    torch.set_num_threads(module.spec.threads)
    module.to(device).train()
    names = exchanged(module)
    half = algorithm.site_half(local_context(module, names, memory))
    optimizer = build_optimizer(module, module.spec.stage(module.stage))
    if memory.optimizer:
        load_optimizer_state(optimizer, module.network, memory.optimizer)
    return BegunUpdate(module, algorithm, names, half, optimizer)


@dataclass(frozen=True)
class _Work:
    """One pass of a round's steps over a site's images, for whichever model is in the module."""

    module: StageModule
    train: Examples
    inputs: Callable[[np.ndarray], object]
    offset: torch.Tensor | None
    at: LocalRound
    steps: int
    precision: str = FLOAT32

    def trial(self, precision: str) -> None:
        """Forward and backward pass of a step in a precision, to see how long they take."""
        index = np.arange(min(len(self.train), self.module.spec.stage(self.module.stage).batch_size))
        noise = torch_generator(self.module.spec.seed, "trial", device=self.at.device)
        self._loss(index, noise, precision).backward()

    def _loss(self, index: np.ndarray, noise: torch.Generator, precision: str) -> torch.Tensor:
        with casts(self.at.device, precision):
            if self.at.team is not None:
                return part_loss(self.module, self._part(index, noise))
            labels = torch.from_numpy(self.train.labels[index]).to(self.at.device)
            return self.module.loss(Batch(self.inputs(index), labels, self.offset), noise)

    def _part(self, index: np.ndarray, noise: torch.Generator) -> Part:
        labels = torch.from_numpy(self.train.labels[index]).to(self.at.device)
        return whole(self.module, self.inputs(index), labels, self.offset, noise)

    def _backward(self, index: np.ndarray, noise: torch.Generator, penalty: Callable[[], Penalty]) -> torch.Tensor:
        """A step's loss with the algorithm's term; its gradient is added to the parameters'."""
        team = self.at.team
        if team is None:
            loss, term = self._loss(index, noise, self.precision), penalty()
            if term is not None:
                loss = loss + term
            loss.backward()
            return loss
        loss = team.gradients(self.module, cut(self._part(index, noise), team.size), self.precision)
        term = penalty()
        if term is not None:
            term.backward()
        return loss if term is None else loss + term

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        penalty: Callable[[], Penalty],
        correct: Callable[[], None] | None,
        *purpose: str,
    ) -> float:
        """All steps; the mean loss. ``purpose`` separates the random draws of several passes in one round.

        Raises:
            ValueError: the loss became infinite or not a number.
        """
        module, spec, cfg = self.module, self.module.spec, self.module.spec.stage(self.module.stage)
        device = self.at.device
        names: tuple[str | int, ...] = (*purpose, module.stage, self.at.site, self.at.round_index)
        noise = torch_generator(spec.seed, "noise", *names, device=device)
        order = numpy_generator(spec.seed, "order", *names)
        losses = torch.zeros((), device=device)
        parameters = [p for p in module.network.parameters() if p.requires_grad]
        count = len(self.train)
        for step, index in zip(range(self.steps), batches(count, cfg.batch_size, order), strict=False):
            check_time()
            set_learning_rate(optimizer, cfg, (self.at.round_index - 1 + step / self.steps) / max(cfg.rounds or 1, 1))
            optimizer.zero_grad(set_to_none=True)
            loss = self._backward(index, noise, penalty)
            if correct is not None:
                correct()
            clip_gradients(parameters, cfg.clip_norm)
            optimizer.step()
            losses += loss.detach()
        optimizer.zero_grad(set_to_none=True)  # the module stays for the next task; its gradients need not
        mean = float(losses) / self.steps
        if not math.isfinite(mean):
            raise ValueError("the training loss became infinite or not a number")
        return mean


def _personal(work: _Work, half: SiteHalf, global_tensors: Tensors) -> Tensors:
    """The site's own model after as many steps; the module is left with it."""
    module = work.module
    set_tensors(module.network, {**global_tensors, **half.personal_start()})
    own = build_optimizer(module, module.spec.stage(module.stage))
    work.run(own, half.personal_penalty, None, "personal")
    return _tensors(module, global_tensors)


def local_context(module: StageModule, names: Mapping[str, str], memory: SiteMemory) -> LocalContext:
    """What an algorithm's site half is made from, before the first step.

    A copy of the weights goes with it; it is freed at once where the algorithm does not keep it.
    """
    reference = {name: p.detach().clone() for name, p in module.network.named_parameters() if p.requires_grad}
    return LocalContext(module.network, reference, names, memory.received, memory.algorithm)


def _tensors(module: StageModule, names: Iterable[str]) -> Tensors:
    state = module.network.state_dict()
    return {name: to_array(state[name]) for name in names}


@torch.no_grad()
def mean_loss(
    module: StageModule,
    train: Examples,
    offset: torch.Tensor | None,
    noise: torch.Generator,
    device: torch.device | str,
    features: Callable[[np.ndarray], object] | None = None,
) -> float:
    """Mean training loss of the present weights over all images, unaugmented, in evaluation mode.

    Args:
        features: inputs of a batch where they were computed once; none: they are computed here.
    """
    was_training = module.training
    module.eval()
    total = 0.0
    for index in chunks(len(train), CHUNK):
        inputs = module.inputs(normalised_images(module, train, index, device)) if features is None else features(index)
        labels = torch.from_numpy(train.labels[index]).to(device)
        total += float(module.loss(Batch(inputs, labels, offset), noise)) * len(index)
    module.train(was_training)
    return total / len(train)


def batches(count: int, batch_size: int, order: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless passes in random order, cut into nearly equal batches; none of one image: batch norm cannot take it."""
    parts = min(math.ceil(count / batch_size), count if batch_size == 1 else max(1, count // 2))
    while True:
        yield from np.array_split(order.permutation(count), parts)


def input_source(module: StageModule, train: Examples, at: LocalRound) -> Callable[[np.ndarray], object]:
    """How a batch's inputs are made: augmented images each time, or features computed once.

    Where nothing in front of the features is trained (``stages.diffusion.encoders=frozen``), those
    of the unaugmented images are indexed. Several devices each make the inputs of their own images.
    """
    spec, cfg = module.spec, module.spec.stage(module.stage)
    if module.features_once:
        features = all_features(module, train, at.device, at.store, at.store_key)
        return lambda index: select(features, index)

    inputs_of: Callable[..., object] = module.inputs_of if at.team is None else lambda images, _: images

    def images(index: np.ndarray) -> object:
        pixels, keys = train.images(index), train.keys[index]
        if cfg.augment:
            pixels = augment(pixels, keys, modality=spec.modality, seed=spec.seed, site=at.site, round=at.round_index)
        return inputs_of(normalise(pixels.to(at.device), spec.mean, spec.std), keys)

    return images
