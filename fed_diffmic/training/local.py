"""The local update of a site: one loop, read top to bottom.

Given the same module state, data, seeds and number of threads on the same build of torch and kind
of processor, its result is equal bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fed_diffmic.algorithms.base import Algorithm, LocalContext, SiteHalf, Tensors
from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import augment, normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.models.diffmic import encoder_parameters
from fed_diffmic.seeding import numpy_generator, torch_generator
from fed_diffmic.training.centring import find_centre, seeks_centre
from fed_diffmic.training.features import CHUNK, FeatureStore, all_features, chunks, normalised_images, select
from fed_diffmic.training.losses import label_prior, prior_offset
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import exchanged, set_tensors, to_array


@dataclass(frozen=True)
class LocalResult:
    """What a local update produced.

    Attributes:
        tensors: the exchanged tensors afterwards, less those that the algorithm keeps at the site.
        num_examples: training images of the site.
        metrics: ``loss`` (mean over steps; none in a centring round), ``steps``, ``seconds``; ``initial_loss`` where
            the algorithm needs it.
        optimizer_state: the optimizer's moments by parameter, where the algorithm keeps them.
        algorithm_tensors: the algorithm's own tensors for the server.
        algorithm_state: what the algorithm's site half keeps until the next round.
    """

    tensors: Tensors
    num_examples: int
    metrics: dict[str, float]
    optimizer_state: Tensors | None = None
    algorithm_tensors: Tensors = field(default_factory=dict)
    algorithm_state: Tensors = field(default_factory=dict)


def local_update(
    module: StageModule,
    train: Examples,
    algorithm: Algorithm,
    *,
    site: str,
    round_index: int,
    device: torch.device | str = "cpu",
    optimizer_state: Tensors | None = None,
    received: Tensors | None = None,
    algorithm_state: Tensors | None = None,
    pace: float = 1.0,
    store: FeatureStore | None = None,
    store_key: Hashable = None,
) -> LocalResult:
    """Train ``module`` on a site's training images for one round, starting from its present weights.

    Args:
        module: with the round's global weights loaded; it is changed.
        train: the site's training examples (``n >= 1``).
        algorithm: its site half takes part in every step.
        site: name, part of every seed.
        round_index: from 1.
        device: where to compute.
        optimizer_state: moments kept from the site's previous round, or none to start fresh.
        received: the algorithm's own tensors of this round.
        algorithm_state: what its site half kept after the site's previous round.
        pace: share of the round's steps that the site manages (simulated stragglers); at least one step is done.
        store, store_key: where features that nothing trains are kept from round to round.

    Raises:
        ValueError: no training images, or the loss became infinite or not a number.
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    if len(train) == 0:
        raise ValueError("a site without training images cannot train")
    spec, cfg = module.spec, module.spec.stage(module.stage)
    torch.set_num_threads(spec.threads)
    started = time.monotonic()
    module.to(device).train()
    offset = None
    if cfg.loss == "balanced":
        offset = prior_offset(label_prior(train.labels, spec.num_classes, spec.task), spec.task).to(device)
    names = exchanged(module)
    half = algorithm.site_half(local_context(module, names, received, algorithm_state))
    before = _tensors(module, names) if half.personal else {}
    get_inputs = input_source(
        module, train, site=site, round_index=round_index, device=device, store=store, store_key=store_key
    )
    metrics = {}
    features = get_inputs if module.features_once else None
    if algorithm.needs_initial_loss:
        noise = torch_generator(spec.seed, "initial", module.stage, site, round_index, device=device)
        metrics["initial_loss"] = mean_loss(module, train, offset, noise, device, features)
    optimizer = build_optimizer(module, cfg)
    if optimizer_state:
        load_optimizer_state(optimizer, module.network, optimizer_state)
    steps = max(1, round(pace * cfg.local_steps(len(train))))
    work = _Work(module, train, get_inputs, offset, device, site, round_index, steps)
    centring = seeks_centre(module, round_index)
    if centring:
        find_centre(module, train, device, features)
    else:
        metrics["loss"] = work.run(optimizer, half.penalty, half.correct)
    tensors = _tensors(module, names)
    if half.personal:
        half.keep_personal(tensors if centring else _personal(work, half, before))
        set_tensors(module.network, tensors)
    algorithm_tensors, kept = half.finish()
    local = algorithm.kept(module.network, names)
    return LocalResult(
        tensors={name: value for name, value in tensors.items() if name not in local},
        num_examples=len(train),
        metrics={"steps": float(steps), "seconds": time.monotonic() - started, **metrics},
        optimizer_state=optimizer_tensors(optimizer, module.network) if spec.strategy.keep_optimizer_state else None,
        algorithm_tensors=algorithm_tensors,
        algorithm_state=kept,
    )


@dataclass(frozen=True)
class _Work:
    """One pass of a round's steps over a site's images, for whichever model is in the module."""

    module: StageModule
    train: Examples
    inputs: Callable[[np.ndarray], object]
    offset: torch.Tensor | None
    device: torch.device | str
    site: str
    round_index: int
    steps: int

    def run(
        self,
        optimizer: torch.optim.Optimizer,
        penalty: Callable[[], torch.Tensor | None],
        correct: Callable[[], None] | None,
        *purpose: str,
    ) -> float:
        """All steps; the mean loss. ``purpose`` separates the random draws of several passes in one round.

        Raises:
            ValueError: the loss became infinite or not a number.
        """
        module, spec, cfg = self.module, self.module.spec, self.module.spec.stage(self.module.stage)
        names: tuple[str | int, ...] = (*purpose, module.stage, self.site, self.round_index)
        noise = torch_generator(spec.seed, "noise", *names, device=self.device)
        order = numpy_generator(spec.seed, "order", *names)
        losses = torch.zeros((), device=self.device)
        parameters = [p for p in module.network.parameters() if p.requires_grad]
        kind = torch.device(self.device).type
        autocast = cfg.amp and kind == "cuda" and torch.cuda.is_bf16_supported()
        count = len(self.train)
        for step, index in zip(range(self.steps), batches(count, cfg.batch_size, order), strict=False):
            check_time()
            set_learning_rate(optimizer, cfg, (self.round_index - 1 + step / self.steps) / max(cfg.rounds or 1, 1))
            labels = torch.from_numpy(self.train.labels[index]).to(self.device)
            with torch.autocast(kind, torch.bfloat16, enabled=autocast):
                loss = module.loss(Batch(self.inputs(index), labels, self.offset), noise)
                term = penalty()
                if term is not None:
                    loss = loss + term
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if correct is not None:
                correct()
            if cfg.clip_norm:
                nn.utils.clip_grad_norm_(parameters, cfg.clip_norm)
            optimizer.step()
            losses += loss.detach()
        optimizer.zero_grad(set_to_none=True)  # the module stays for the next task; its gradients need not
        mean = float(losses) / self.steps
        if not math.isfinite(mean):
            raise ValueError("the training loss became infinite or not a number")
        return mean


def _personal(work: _Work, half: SiteHalf, before: Tensors) -> Tensors:
    """The site's own model after as many steps; the module is left with it. ``before``: the round's global weights."""
    module = work.module
    set_tensors(module.network, {**before, **half.personal_start()})
    own = build_optimizer(module, module.spec.stage(module.stage))
    work.run(own, half.personal_penalty, None, "personal")
    return _tensors(module, before)


def local_context(
    module: StageModule, names: Mapping[str, str], received: Tensors | None, state: Tensors | None
) -> LocalContext:
    """What an algorithm's site half is made from, before the first step.

    A copy of the weights goes with it; it is freed at once where the algorithm does not keep it.
    """
    reference = {name: p.detach().clone() for name, p in module.network.named_parameters() if p.requires_grad}
    return LocalContext(module.network, reference, names, received or {}, state or {})


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
    """Endless passes in random order, each cut into nearly equal batches (none of a single straggler)."""
    parts = math.ceil(count / batch_size)
    while True:
        yield from np.array_split(order.permutation(count), parts)


def input_source(
    module: StageModule,
    train: Examples,
    *,
    site: str,
    round_index: int,
    device: torch.device | str,
    store: FeatureStore | None,
    store_key: Hashable,
) -> Callable[[np.ndarray], object]:
    """How a batch's inputs are made: augmented images each time, or features computed once.

    Where nothing in front of the features is trained (``stages.diffusion.encoders=frozen``), those
    of the unaugmented images are indexed.
    """
    spec, cfg = module.spec, module.spec.stage(module.stage)
    if module.features_once:
        features = all_features(module, train, device, store, store_key)
        return lambda index: select(features, index)

    def images(index: np.ndarray) -> object:
        pixels = train.images(index)
        if cfg.augment:
            keys = train.keys[index]
            pixels = augment(pixels, keys, modality=spec.modality, seed=spec.seed, site=site, round=round_index)
        return module.inputs(normalise(pixels.to(device), spec.mean, spec.std))

    return images


def build_optimizer(module: StageModule, cfg: StageConfig) -> torch.optim.Optimizer:
    """AdamW or SGD; encoders at their own rate; no decay on vectors (norms, biases) and timestep tables."""
    encoders = encoder_parameters(module.network)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.network.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and "timestep_table" not in name
            groups.setdefault((name in encoders, decay), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "scale": cfg.encoder_lr_scale if encoder else 1.0,
            "lr": cfg.lr,
            "weight_decay": cfg.weight_decay if decay else 0.0,
        }
        for (encoder, decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=cfg.lr, momentum=cfg.momentum)
    return torch.optim.AdamW(settings, lr=cfg.lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, cfg: StageConfig, progress: float) -> None:
    """Cosine over the stage's rounds (``progress`` in [0, 1) of the whole stage), or constant."""
    factor = 0.5 * (1.0 + math.cos(math.pi * progress)) if cfg.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = cfg.lr * group["scale"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> Tensors:
    """The optimizer's moments as ``<moment>/<parameter>`` arrays."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    result: Tensors = {}
    for parameter, moments in optimizer.state.items():
        for moment, value in moments.items():
            if isinstance(value, torch.Tensor):
                result[f"{moment}/{names[parameter]}"] = to_array(value)
    return result


def load_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Tensors) -> None:
    """Inverse of :func:`optimizer_tensors`; moments of parameters that are not trained are ignored."""
    for name, parameter in network.named_parameters():
        moments = {
            key.split("/", 1)[0]: torch.from_numpy(value.copy())
            for key, value in tensors.items()
            if key.split("/", 1)[1] == name
        }
        if moments and parameter.requires_grad:
            optimizer.state[parameter] = {
                moment: value if moment == "step" else value.to(parameter.device) for moment, value in moments.items()
            }
