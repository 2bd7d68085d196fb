"""How large a run's network is and how much memory it needs, found without allocating any of it.

The network is built on torch's meta device, where tensors have shapes and no contents, and a step is carried out
there: what autograd keeps for the backward pass is counted by storage, so the metrics follow the real code and need no
formula for each of timm's architectures.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fed_diffmic.config.simulation import ModelConfig, StageConfig, StagesConfig, StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.models.diffmic import build_diffmic, build_guidance
from fed_diffmic.models.plain import build_plain
from fed_diffmic.models.without_compiler import shapes_only
from fed_diffmic.training.ensemble import EnsembleStage
from fed_diffmic.training.features import CHUNK
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import (
    ClassifierStage,
    DiffusionStage,
    FrozenGuidanceStage,
    FrozenPlainStage,
    exchanged,
)

BYTES = 4
COPIES = 10
"""Copies of the exchanged tensors that live at once: as received, in the module, gradient, two moments, the reference
of an algorithm and its correction, a personal model, the reply and its serialised form."""
FROZEN_COPIES = 3
"""Copies of what is never trained: as received, as kept, in the module."""
STEP_FACTOR = 2.0
"""What a step has at its peak over what autograd keeps: gradients of activations and an operator's own working space
(a convolution's on a processor is about as large as its input)."""
LIVE = 4
"""Tensors as large as the largest that live at once without gradients: in, out, a residual and working space."""
_PROBE = 2
_CACHE = 64


@dataclass(frozen=True)
class Size:
    """What a stage of a run needs.

    Attributes:
        parameters: of the whole network, trained or not.
        trained: elements that are exchanged.
        fixed: elements that are not (frozen parameters and buffers).
        image: bytes that autograd keeps of each image of a batch until the backward pass.
        forward: bytes that an image needs without gradients.
        draw: bytes of one image and one start in the sampler.
    """

    parameters: int
    trained: int
    fixed: int
    image: int
    forward: int
    draw: int

    def training(self, batch: int) -> int:
        """Upper estimate of the bytes that a local update needs; features computed once come in pieces."""
        return self._weights() + max(round(STEP_FACTOR * self.image * batch), CHUNK * self.forward)

    def evaluation(self, starts: int) -> int:
        """Upper estimate of the bytes that predictions need (:data:`fed_diffmic.training.features.CHUNK` at a time)."""
        return self._weights() + CHUNK * (self.forward + starts * self.draw)

    def _weights(self) -> int:
        return BYTES * (COPIES * self.trained + FROZEN_COPIES * self.fixed)


def stage_size(spec: RunSpec, stage: str) -> Size:
    """What a stage needs; remembered by everything that decides it.

    Raises:
        ConfigError: the specification describes no possible network.
    """
    cfg = spec.stage(stage)
    decides = (cfg.encoders, cfg.draws)
    return _size(spec.model, spec.num_classes, spec.task, stage, decides)


def whole_parameters(spec: RunSpec) -> int:
    """Parameters of the largest network that a specification describes: guidance, prior and denoiser together.

    Raises:
        ConfigError: the specification describes no possible network.
    """
    return _parameters(spec.model, spec.num_classes, spec.task)


@functools.lru_cache(maxsize=_CACHE)
def _parameters(model: ModelConfig, classes: int, task: str) -> int:
    with shapes_only():
        return sum(p.numel() for p in build_diffmic(model, classes, task).parameters())


@functools.lru_cache(maxsize=_CACHE)
def _size(model: ModelConfig, classes: int, task: str, stage: str, decides: tuple[str, int]) -> Size:
    cfg = StageConfig(rounds=1, encoders=decides[0], draws=decides[1])
    spec = RunSpec(
        run_id="", arm="", seed=0, task=task, classes=tuple(str(i) for i in range(classes)), mean=(0.5,) * 3,
        std=(0.5,) * 3, modality="none", model=replace(model, weights=None, prior_weights=None, pretrained=False),
        stages=StagesConfig(cfg, cfg, cfg), strategy=StrategyConfig(),
    )  # fmt: skip
    with shapes_only():
        module = _module(spec, stage).train()
        kept, largest = _activations(module)
        state = module.network.state_dict()
    names = exchanged(module)
    trained = sum(state[name].numel() for name in names)
    whole = sum(value.numel() for value in state.values())
    # The sampler's widest tensors: a cell's latent row in, after the table, after the norm, and out; prior and guidance
    # are repeated for each start.
    draw = BYTES * model.regions * (4 * model.latent + 4 * classes) if stage == "diffusion" else BYTES * 4 * classes
    parameters = sum(p.numel() for p in module.network.parameters())
    return Size(parameters, trained, whole - trained, kept // _PROBE, LIVE * largest // _PROBE, draw)


def _module(spec: RunSpec, stage: str) -> StageModule:
    """The stage's module as :func:`fed_diffmic.training.stages.build_module` makes it."""
    frozen = spec.stage(stage).encoders == "frozen"
    if stage == "diffusion":
        kind = EnsembleStage if spec.model.denoiser == "classifier" else DiffusionStage
        return kind(spec, stage, build_diffmic(spec.model, spec.num_classes, spec.task))
    if stage == "guidance":
        guidance = build_guidance(spec.model, spec.num_classes)
        return (FrozenGuidanceStage if frozen else ClassifierStage)(spec, stage, guidance)
    plain = build_plain(spec.model, spec.num_classes)
    return (FrozenPlainStage if frozen else ClassifierStage)(spec, stage, plain)


def _loss(module: StageModule) -> torch.Tensor:
    """A step's forward pass over a few images without contents."""
    spec = module.spec
    images = torch.empty(_PROBE, 3, spec.model.image_side, spec.model.image_side)
    shape, kind = ((_PROBE, spec.num_classes), torch.float32) if spec.task == "multilabel" else ((_PROBE,), torch.int64)
    noise: Any = None  # torch's own generator: a tensor without contents uses none
    return module.loss(Batch(module.inputs(images), torch.zeros(shape, dtype=kind)), noise)


def _activations(module: StageModule) -> tuple[int, int]:
    """Bytes of what autograd keeps for the backward pass, and of the largest activation; weights left out."""
    weights = {p.untyped_storage()._cdata for p in module.network.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors are held, so that no storage's number is used twice

    def pack(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value), _Largest(weights) as largest:
        _loss(module)
    return sum(v.untyped_storage().nbytes() for key, v in kept.items() if key not in weights), largest.found


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator gives.

    Args:
        weights: storages that do not count, though they are transposed or reshaped.
    """

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.found = 0
        self._weights = weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry the operator out."""
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in self._weights:
                self.found = max(self.found, value.numel() * value.element_size())
        return result
