"""What each stage trains: its network, its loss, its scores and the tensors it exchanges.

``guidance`` trains the guidance network (DIFFMIC-v2, stage 1); ``diffusion`` trains the prior and
the latent head with the guidance frozen (stage 2); ``plain`` is the baseline classifier. A stage's
full state at its start is its **base**: sent once, named by digest and kept by the sites. After
that only :func:`exchanged` tensors cross the boundary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.config.features import check_centred
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ModelFileError
from fed_diffmic.models.centre import centre_names
from fed_diffmic.models.denoiser import ResidualDenoiser
from fed_diffmic.models.diffmic import DiffMIC, Features, build_diffmic, build_guidance
from fed_diffmic.models.diffusion import forward_diffusion, weighted_squares
from fed_diffmic.models.guidance import GuidanceNetwork
from fed_diffmic.models.plain import PlainClassifier, build_plain
from fed_diffmic.models.weights import load_pretrained
from fed_diffmic.seeding import derive_seed
from fed_diffmic.training.ensemble import EnsembleStage
from fed_diffmic.training.guided import GuidedStage
from fed_diffmic.training.losses import balancing_weights, classification_loss, classification_losses
from fed_diffmic.training.stage import Batch, StageModule

GUIDANCE_PREFIX = "guidance."
LEAST = 1e-3  # the sampler's mean of few starts says no more about what is rarer


class Pooled(NamedTuple):
    """What the plain classifier's encoder makes of images, where it is frozen.

    Attributes:
        features: ``(B, width)``.
    """

    features: torch.Tensor


class ClassifierStage(StageModule):
    """Guidance network (fused logits) or plain classifier, trained on the task's cross-entropy."""

    def logits(self, inputs: Any) -> torch.Tensor:
        """``(B, C)`` for images, or for :class:`Pooled` features of them."""
        if isinstance(inputs, Pooled):
            assert isinstance(self.network, PlainClassifier)
            return self.network.classify(inputs.features)
        output = self.network(inputs)
        return output if isinstance(output, torch.Tensor) else output.fused

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Cross-entropy on the (fused) logits."""
        return classification_loss(self.logits(batch.inputs), batch.labels, self.spec.task, batch.offset)

    def losses(self, batch: Batch, draws: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Cross-entropy of each image; nothing is random."""
        return classification_losses(self.logits(batch.inputs), batch.labels, self.spec.task, batch.offset)

    def scores(self, inputs: Any, starts: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.logits(inputs)


class Encoded(NamedTuple):
    """What the guidance network's encoders make of images, where they are frozen.

    Attributes:
        grid: ``(B, W, G, G)``.
        regions: ``(B, K, W')``, of the regions that the saliency's weights choose now.
    """

    grid: torch.Tensor
    regions: torch.Tensor


class FrozenGuidanceStage(ClassifierStage):
    """The guidance network on encoders that are not trained: saliency and local head alone.

    Which regions are cut out depends on the saliency, so features cannot be computed once; but no gradient flows
    through that choice, so the encoders run outside of what is differentiated (for each unit, under privacy).
    """

    inputs_apart = True
    network: GuidanceNetwork

    def __init__(self, spec: RunSpec, stage: str, network: GuidanceNetwork) -> None:
        super().__init__(spec, stage, network)
        network.freeze_encoders()

    def inputs(self, images: torch.Tensor) -> Encoded:
        """What the encoders say."""
        return Encoded(*self.network.encoded(images))

    def to_centre(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Mean features of the image, and of its regions."""
        if self.network.global_centre is None:
            return {}
        return {
            "global_centre.mean": inputs.grid.mean(dim=(2, 3)),
            "local_centre.mean": inputs.regions.mean(dim=1),
        }

    def logits(self, inputs: Any) -> torch.Tensor:
        """``(B, C)`` for images, or for what was made of them."""
        return self.network.fused(*inputs) if isinstance(inputs, Encoded) else super().logits(inputs)


class FrozenPlainStage(ClassifierStage):
    """The plain classifier on an encoder that is not trained: a linear classifier on features computed once."""

    features_once = True
    network: PlainClassifier

    def __init__(self, spec: RunSpec, stage: str, network: PlainClassifier) -> None:
        super().__init__(spec, stage, network)
        network.freeze_encoder()

    @torch.no_grad()
    def inputs(self, images: torch.Tensor) -> Pooled:
        """The encoder's features."""
        return Pooled(self.network.encoder(images))

    def to_centre(self, inputs: Any) -> dict[str, torch.Tensor]:
        """The encoder's features."""
        return {} if self.network.centre is None else {"centre.mean": self.network.centre(inputs.features)}


class DiffusionStage(GuidedStage):
    """Prior and latent diffusion head; the guidance network inside is frozen."""

    sampled = True

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Section 6, with ``draws`` independent timesteps and noises for each image."""
        return self._terms(batch, self.draws(len(batch.labels), generator, batch.labels.device)).mean()

    def draws(self, count: int, generator: torch.Generator, device: torch.device | str) -> tuple[torch.Tensor, ...]:
        """Timesteps ``(count, draws, K, K)`` int64 and noises ``(count, draws, C, K, K)``."""
        cells = (self.network.regions, self.network.regions)
        shape = (count, self.spec.stages.diffusion.draws)
        t = torch.randint(self.spec.model.timesteps, (*shape, *cells), generator=generator, device=device)
        noise = torch.randn((*shape, self.spec.num_classes, *cells), generator=generator, device=device)
        return t, noise

    def losses(self, batch: Batch, draws: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Section 6 for each image, its draws averaged."""
        return self._terms(batch, draws).flatten(1).mean(dim=1).unflatten(0, draws[0].shape[:2]).mean(dim=1)

    def _terms(self, batch: Batch, draws: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Weighted squared errors ``(B * draws, C, K, K)``; a residual denoiser's in units of what it is to predict."""
        features: Features = batch.inputs
        cfg = self.spec.stages.diffusion
        t, noise = (drawn.flatten(0, 1) for drawn in draws)
        count = draws[0].shape[1]
        prior, guidance_map = self.network.condition(features)
        if self.spec.task == "multilabel":
            target = batch.labels
        else:
            # Not one_hot: it looks at its values, which torch.func.vmap does not allow.
            classes = torch.arange(guidance_map.shape[1], device=guidance_map.device)
            target = (batch.labels.unsqueeze(1) == classes).to(guidance_map.dtype)
        target, prior, guidance_map = (x.repeat_interleave(count, dim=0) for x in (target, prior, guidance_map))
        noisy = forward_diffusion(target, t, noise, self.network.alphas_cumprod)
        predicted = self.network.noise(guidance_map, noisy, t, prior)
        if isinstance(self.network.denoiser, ResidualDenoiser):
            unit = self.network.denoiser.deviation(guidance_map, t)
            predicted, noise = predicted / unit, noise / unit
        logits = features.fused.repeat_interleave(count, dim=0)
        weight = None
        if batch.offset is not None:
            weight = balancing_weights(batch.labels, batch.offset, self.spec.task, cfg.balance)
            weight = weight.repeat_interleave(count, dim=0)
        return weighted_squares(predicted, noise, target, logits, cfg.alpha, cfg.gamma, self.spec.task, weight)

    def scores(self, inputs: Any, starts: torch.Tensor) -> torch.Tensor:
        """Logarithm (multi-label: log-odds) of the sampler's mean over the grid (section 7) and over the starts.

        One start gives one sample of the label; where an image is ambiguous, the mean over several is nearer to the
        probability (``model.sampling_starts``). The mean lies near a probability, so its logarithm is what a
        temperature and a prior act on, as they do on logits; it is taken no nearer to 0 (and 1) than ``LEAST``.

        With ``stages.diffusion.blend`` the guidance network's fused logits are the second score.
        """
        return self._mixed(self._sampled(inputs, starts), inputs)

    def opinions(
        self, inputs: Any, starts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Scores, the sampler's mean over the grid from each start, and the guidance network's fused logits."""
        samples = self._sampled(inputs, starts)
        return self._mixed(samples, inputs), samples, inputs.fused

    def _sampled(self, inputs: Any, starts: torch.Tensor) -> torch.Tensor:
        """The sampler's mean over the grid from each start, ``(B, N, C)``; one where no start matters."""
        starts = starts if self.network.sampling_steps else starts[:, :1]
        count = starts.shape[1]
        features: Features = type(inputs)(*(column.repeat_interleave(count, dim=0) for column in inputs))
        flat = starts.flatten(0, 1)
        return self.network.sample(features, flat[:, 0], flat[:, 1]).mean.unflatten(0, (-1, count))

    def _mixed(self, samples: torch.Tensor, inputs: Any) -> torch.Tensor:
        mean = samples.mean(dim=1)
        own = torch.logit(mean, eps=LEAST) if self.spec.task == "multilabel" else mean.clamp_min(LEAST).log()
        return torch.stack([own, inputs.fused.to(own.dtype)], dim=1) if self.blended else own


def build_module(spec: RunSpec, stage: str) -> StageModule:
    """The stage's module with unspecified weights: load a base or an initial state into it.

    Raises:
        ConfigError: the configuration describes no possible network, or would centre features of encoders that train.
    """
    frozen = spec.stage(stage).encoders == "frozen"
    if stage != "diffusion":
        check_centred(spec.model.features, stage, frozen)
    if stage == "guidance":
        guidance = build_guidance(spec.model, spec.num_classes)
        return (FrozenGuidanceStage if frozen else ClassifierStage)(spec, stage, guidance)
    if stage == "plain":
        kind = FrozenPlainStage if frozen else ClassifierStage
        return kind(spec, stage, build_plain(spec.model, spec.num_classes))
    network = build_diffmic(spec.model, spec.num_classes, spec.task)
    return (EnsembleStage if spec.model.denoiser == "classifier" else DiffusionStage)(spec, stage, network)


_KEPT: OrderedDict[Hashable, StageModule] = OrderedDict()
_MOST_KEPT = 2


def loaded_module(spec: RunSpec, stage: str, state: Mapping[str, np.ndarray]) -> StageModule:
    """The stage's module with a full state in it, built once a process and used again.

    Every parameter and persistent buffer is overwritten, so nothing of an earlier use is left; building the
    encoders anew would cost more than a short local update. One caller at a time.

    Raises:
        ModelFileError: the state does not fit.
    """
    key = (build_guidance, build_plain, build_diffmic, spec.to_json(), stage)
    module = _KEPT.pop(key, None) or build_module(spec, stage)
    load_state(module.network, state, f"stage {stage}")
    module.zero_grad(set_to_none=True)
    _KEPT[key] = module
    while len(_KEPT) > _MOST_KEPT:
        _KEPT.popitem(last=False)
    return module


def initial_state(spec: RunSpec, stage: str, guidance: Tensors | None = None) -> Tensors:
    """The stage's base: seeded weights, published weights where configured, the frozen guidance.

    Args:
        guidance: result of the guidance stage (needed by ``diffusion``).

    Raises:
        ModelFileError: a weights file does not fit, or the guidance does not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "weights", stage))
        module = build_module(spec, stage)
    load_pretrained(module.network, spec.model)
    if stage == "diffusion":
        if guidance is None:
            raise ModelFileError(
                "stage diffusion needs a trained guidance network and was given none",
                "Give what the stage guidance came to.",
            )
        network = module.network
        assert isinstance(network, DiffMIC)
        load_state(network.guidance, guidance, "guidance network")
        if spec.model.prior_init == "guidance":
            network.init_prior_from_guidance()
    return full_state(module)


def full_state(module: StageModule) -> Tensors:
    """Copy of every parameter and buffer of the stage's network as arrays."""
    return {name: to_array(value) for name, value in module.network.state_dict().items()}


def load_state(network: nn.Module, tensors: Mapping[str, np.ndarray], what: str = "model") -> None:
    """Load a full state; names, shapes and dtypes must agree exactly.

    Raises:
        ModelFileError: says how many and which of them do not fit.
    """
    own = network.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [n for n in own if n in tensors and tuple(own[n].shape) != tuple(tensors[n].shape)]
    if missing or unknown or shapes:
        raise ModelFileError(
            f"{what}: {len(missing)} tensors missing ({', '.join(missing[:3])}), {len(unknown)} unknown "
            f"({', '.join(unknown[:3])}), {len(shapes)} of another shape ({', '.join(shapes[:3])})",
            "Use the configuration (model group, classes) that the weights were made with.",
        )
    _overwrite(own, tensors)


def set_tensors(network: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Overwrite the named parameters and buffers (a subset is fine) with the given values."""
    _overwrite(network.state_dict(), tensors)


@torch.no_grad()
def _overwrite(own: Mapping[str, torch.Tensor], tensors: Mapping[str, np.ndarray]) -> None:
    for name, value in tensors.items():
        own[name].copy_(torch.from_numpy(np.asarray(value)))


def exchanged(module: StageModule) -> dict[str, str]:
    """Names that cross the boundary each round, sorted, with their kind.

    ``parameter``: trainable; ``buffer``: floating statistics that training updates, and means of features
    (:func:`centres`); ``counter``: integers that training updates. What is frozen never crosses again after the base.
    """
    kinds = {name: "parameter" for name, p in module.network.named_parameters() if p.requires_grad}
    kinds |= dict.fromkeys(centres(module), "buffer")
    if module not in _STATISTICS:
        _STATISTICS[module] = _statistics(module)
    return dict(sorted({**kinds, **_STATISTICS[module]}.items()))


def centres(module: StageModule) -> list[str]:
    """Names of the means of features that the stage finds (``model.features=centred``); stage diffusion finds none."""
    return [] if module.stage == "diffusion" else centre_names(module.network)


_STATISTICS: WeakKeyDictionary[StageModule, dict[str, str]] = WeakKeyDictionary()


def _statistics(module: StageModule) -> dict[str, str]:
    """What training mode updates besides parameters; a module's builder decides that once."""
    kinds: dict[str, str] = {}
    was_training = module.training
    module.train()
    for prefix, layer in module.network.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.track_running_stats:
            for name, buffer in layer.named_buffers(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                kinds[full] = "buffer" if buffer.is_floating_point() else "counter"
    module.train(was_training)
    return kinds


def to_array(value: torch.Tensor) -> np.ndarray:
    """A contiguous copy on the host."""
    return np.array(value.detach().cpu().contiguous().numpy(), order="C", copy=True)
