"""The local update of a site: one loop, read top to bottom.

Given the same module state, data, seeds and number of threads on the same build of torch and kind
of processor, its result is equal bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fed_diffmic.algorithms.base import Algorithm, Tensors
from fed_diffmic.config import StageConfig
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import augment, normalise
from fed_diffmic.models.diffmic import encoder_parameters
from fed_diffmic.seeding import numpy_generator, torch_generator
from fed_diffmic.training.bound import check_time
from fed_diffmic.training.features import FeatureStore, all_features, select
from fed_diffmic.training.losses import label_prior, prior_offset
from fed_diffmic.training.stages import Batch, StageModule, exchanged, to_array


@dataclass(frozen=True)
class LocalResult:
    """What a local update produced.

    Attributes:
        tensors: the exchanged tensors afterwards.
        num_examples: training images of the site.
        metrics: ``loss`` (mean over steps), ``steps``, ``seconds``.
        optimizer_state: the optimizer's moments by parameter, where the algorithm keeps them.
    """

    tensors: Tensors
    num_examples: int
    metrics: dict[str, float]
    optimizer_state: Tensors | None = None


def local_update(
    module: StageModule,
    train: Examples,
    algorithm: Algorithm,
    *,
    site: str,
    round_index: int,
    device: torch.device | str = "cpu",
    optimizer_state: Tensors | None = None,
    store: FeatureStore | None = None,
    store_key: Hashable = None,
) -> LocalResult:
    """Train ``module`` on a site's training images for one round, starting from its present weights.

    Args:
        module: with the round's global weights loaded; it is changed.
        train: the site's training examples (``n >= 1``).
        algorithm: adds its site half's penalty.
        site: name, part of every seed.
        round_index: from 1.
        device: where to compute.
        optimizer_state: moments kept from the site's previous round, or none to start fresh.
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
    names = (module.stage, site, round_index)
    offset = None
    if cfg.loss == "balanced":
        offset = prior_offset(label_prior(train.labels, spec.num_classes, spec.task), spec.task).to(device)
    reference = {n: p.detach().clone() for n, p in module.network.named_parameters() if p.requires_grad}
    penalty = algorithm.penalty(module.network, reference)
    optimizer = build_optimizer(module, cfg)
    if optimizer_state:
        load_optimizer_state(optimizer, module.network, optimizer_state)
    get_inputs = input_source(
        module, train, site=site, round_index=round_index, device=device, store=store, store_key=store_key
    )
    noise = torch_generator(spec.seed, "noise", *names, device=device)
    order = numpy_generator(spec.seed, "order", *names)
    steps = cfg.steps or max(1, round(cfg.epochs * math.ceil(len(train) / cfg.batch_size)))
    losses = torch.zeros((), device=device)
    parameters = [p for p in module.network.parameters() if p.requires_grad]
    autocast = cfg.amp and torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    for step, index in zip(range(steps), batches(len(train), cfg.batch_size, order), strict=False):
        check_time()
        set_learning_rate(optimizer, cfg, (round_index - 1 + step / steps) / max(cfg.rounds or 1, 1))
        labels = torch.from_numpy(train.labels[index]).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            loss = module.loss(Batch(get_inputs(index), labels, offset), noise)
            if penalty is not None:
                loss = loss + penalty()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if cfg.clip_norm:
            nn.utils.clip_grad_norm_(parameters, cfg.clip_norm)
        optimizer.step()
        losses += loss.detach()
    mean_loss = float(losses) / steps
    if not math.isfinite(mean_loss):
        raise ValueError("the training loss became infinite or not a number")
    state = module.network.state_dict()
    return LocalResult(
        tensors={name: to_array(state[name]) for name in exchanged(module)},
        num_examples=len(train),
        metrics={"loss": mean_loss, "steps": float(steps), "seconds": time.monotonic() - started},
        optimizer_state=optimizer_tensors(optimizer, module.network) if spec.strategy.keep_optimizer_state else None,
    )


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
