"""A local update's optimizer: which rate and decay each parameter has, the schedule, and its moments as arrays.

Both are torch's own. AdamW is its fused form, one pass over weights, gradients and moments in place of about ten
(``benchmarks/step.py``), whose weights differ from those of torch's loop by rounding; SGD is the loop, bit for bit.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.models.diffmic import encoder_parameters
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import to_array


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
    optimizer: torch.optim.Optimizer
    if cfg.optimizer == "sgd":
        optimizer = _Sgd(settings, lr=cfg.lr, momentum=cfg.momentum)
    else:
        optimizer = _AdamW(settings, lr=cfg.lr, fused=True)
    return optimizer


def _not_compiled(kind: type[torch.optim.Optimizer]) -> Any:
    """An optimizer's class as torch wrote it, without what torch wraps around it for its compiler.

    The wrappers import the compiler with its symbolic algebra the first time they are called, which is seconds of a
    start, to tell it to leave the function alone. Nothing here is compiled, so the functions below them are called.
    """
    names = ("add_param_group", "zero_grad", "step")
    plain: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    plain["step"] = torch.no_grad()(plain["step"])
    return type(kind.__name__, (kind,), plain)


_AdamW, _Sgd = _not_compiled(torch.optim.AdamW), _not_compiled(torch.optim.SGD)


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Scale all gradients so that their joint L2 norm is at most ``most``; 0: leave them.

    As :func:`torch.nn.utils.clip_grad_norm_`, bit for bit, but a step whose norm is within the bound on a processor
    writes nothing: there the factor is 1. (Elsewhere nothing asks for the norm, which would wait for the device.)
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not most or not gradients:
        return
    norm = nn.utils.get_total_norm(gradients)
    if norm.device.type == "cpu" and bool(most / (norm + 1e-6) >= 1):
        return
    nn.utils.clip_grads_with_norm_(parameters, most, norm)


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
            optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in moments.items()}
