"""The DiffMIC-v2 network: guidance, image prior and denoiser, and how it predicts.

An image's features are computed once; a training step and every sampling step work on them. When
sampling, all cells share a timestep, and both the guidance map and the start depend on a cell only
through ``|i - j|``: the head runs on the ``K`` distinct cells, which is exact (docs/model.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.deadline import check_time
from fed_diffmic.errors import ConfigError
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.checks import check_architecture, check_model_config, encoder_arguments, guidance_grid
from fed_diffmic.models.denoiser import Denoiser, PriorClassifier, ResidualDenoiser
from fed_diffmic.models.diffusion import alphas_cumprod, ddim_schedule, ddim_step
from fed_diffmic.models.guidance import GuidanceNetwork, cells_to_map, guidance_cells
from fed_diffmic.models.normalisation import live_batch_norms
from fed_diffmic.models.prior import ImagePrior
from fed_diffmic.models.regions import RegionSearch

__all__ = [
    "DiffMIC",
    "Features",
    "Prediction",
    "build_diffmic",
    "build_guidance",
    "check_model_config",
    "encoder_parameters",
]


class Features(NamedTuple):
    """All that the encoders say of ``B`` images; may be computed once and kept while they are frozen.

    Attributes:
        y_global, y_local: logits of the guidance network, ``(B, C)``.
        global_pooled: ``(B, Wg)``, the prior's encoder of the whole image.
        region_pooled: ``(B, K, Wr)``, the prior's encoder of the regions.
    """

    y_global: Tensor
    y_local: Tensor
    global_pooled: Tensor
    region_pooled: Tensor

    @property
    def fused(self) -> Tensor:
        """Fused logits of the guidance network, ``(B, C)``: what the loss weighs hard images by."""
        return (self.y_global + self.y_local) / 2


class Prediction(NamedTuple):
    """What sampling gives.

    Attributes:
        mean: mean over the grid, ``(B, C)``: the prediction (near 1 for the class, near 0 for the others).
        spread: standard deviation over the grid (all ``K * K`` cells), ``(B, C)``.
    """

    mean: Tensor
    spread: Tensor


class DiffMIC(nn.Module):
    """Guidance (frozen), image prior and denoiser.

    Runs at a site while it trains and wherever a prediction is made. The guidance network never
    trains here: no gradients, evaluation mode whatever ``train`` says.

    Args:
        guidance: trained in stage ``guidance``; attribute ``guidance``.
        prior: attribute ``prior``.
        denoiser: attribute ``denoiser``; a :class:`PriorClassifier` in its place classifies and cannot sample.
        timesteps: ``T``.
        sampling_steps: ``S``; 0: the mean that a residual denoiser says in one evaluation (``model.sampling=mean``).
    """

    alphas_cumprod: Tensor
    cell_weights: Tensor

    def __init__(
        self,
        guidance: GuidanceNetwork,
        prior: ImagePrior,
        denoiser: Denoiser | PriorClassifier,
        *,
        timesteps: int,
        sampling_steps: int,
    ) -> None:
        super().__init__()
        self.guidance = guidance.requires_grad_(False).eval()
        self.prior = prior
        self.denoiser = denoiser
        self.timesteps = timesteps
        self.sampling_steps = sampling_steps
        self.regions = guidance.regions.regions
        self.register_buffer("alphas_cumprod", alphas_cumprod(timesteps), persistent=False)
        k = self.regions
        counts = torch.tensor([k, *(2 * (k - m) for m in range(1, k))], dtype=torch.float32)
        self.register_buffer("cell_weights", counts / (k * k), persistent=False)

    def train(self, mode: bool = True) -> DiffMIC:
        """As in torch, but the guidance network stays in evaluation mode."""
        super().train(mode)
        self.guidance.eval()
        return self

    def init_prior_from_guidance(self) -> None:
        """Start the prior's encoders from the trained guidance encoders.

        Raises:
            ConfigError: the backbones differ.
        """
        for target, source in (
            (self.prior.global_encoder, self.guidance.global_encoder),
            (self.prior.region_encoder, self.guidance.local_encoder),
        ):
            if (target.name, target.index) != (source.name, source.index):
                raise ConfigError(
                    "model.prior_init",
                    "guidance",
                    f"own, because {target.name} is not the guidance network's {source.name}",
                )
            target.load_state_dict(source.state_dict())

    def freeze_encoders(self) -> None:
        """Freeze the prior's encoders for good (``stages.diffusion.encoders=frozen``)."""
        self.prior.global_encoder.freeze()
        self.prior.region_encoder.freeze()

    def features(self, images: Tensor) -> Features:
        """Normalised images ``(B, 3, H, H)`` to :class:`Features`; gradients reach the prior's encoders only."""
        with torch.no_grad():
            guidance = self.guidance(images)
        return Features(guidance.y_global, guidance.y_local, *self.prior.encode(images, guidance.crops))

    def condition(self, features: Features) -> tuple[Tensor, Tensor]:
        """The image prior ``F (B, D)`` and the guidance map ``M (B, C, K, K)``."""
        cells = guidance_cells(features.y_global, features.y_local, self.regions)
        return self.prior(features.global_pooled, features.region_pooled), cells_to_map(cells)

    def noise(self, guidance_map: Tensor, y_t: Tensor, t: Tensor, prior: Tensor) -> Tensor:
        """Predicted noise ``(B, C, K, K)`` from ``M``, ``y_t (B, C, K, K)``, ``t (B, K, K)`` and ``F (B, D)``."""
        predicted: Tensor = self.denoiser(guidance_map, y_t, t, prior)
        return predicted

    def classify(self, features: Features) -> Tensor:
        """Logits ``(B, C)`` of a :class:`PriorClassifier`, from the image prior."""
        logits: Tensor = self.denoiser(self.prior(features.global_pooled, features.region_pooled))
        return logits

    @torch.no_grad()
    def sample(self, features: Features, start_global: Tensor, start_local: Tensor) -> Prediction:
        """DDIM from a start map built of two uniform draws, on the ``K`` distinct cells (design sections 7 and 8).

        Args:
            features: of ``B`` images.
            start_global: uniform in [0, 1), ``(B, C)``.
            start_local: uniform in [0, 1), ``(B, C)``.

        Returns:
            mean and spread over the grid, each ``(B, C)`` float32.

        Raises:
            RuntimeError: a batch norm is in training mode (its statistics would mix the images): call ``eval()`` first;
                or there is no denoiser to sample with.
            OutOfTimeError: the task's time is over.
        """
        cells = self.sample_cells(features, start_global, start_local)
        weights = self.cell_weights[:, None]
        mean = (weights * cells).sum(dim=1)
        spread = (weights * (cells - mean.unsqueeze(1)).square()).sum(dim=1).sqrt()
        return Prediction(mean, spread)

    @torch.no_grad()
    def sample_cells(self, features: Features, start_global: Tensor, start_local: Tensor) -> Tensor:
        """The sampled map's distinct cells, ``(B, K, C)``; arguments and errors as :meth:`sample`."""
        if isinstance(self.denoiser, PriorClassifier):
            raise RuntimeError("model.denoiser=classifier has nothing to sample with: ask classify()")
        live = live_batch_norms(self.prior) + live_batch_norms(self.denoiser)
        if live:
            raise RuntimeError(
                f"{len(live)} batch norms are in training mode, the first is {live[0]}: call eval() before sampling"
            )
        guidance = guidance_cells(features.y_global, features.y_local, self.regions)
        prior = self.prior(features.global_pooled, features.region_pooled)
        y = guidance_cells(start_global, start_local, self.regions)
        if not self.sampling_steps:
            # All noise, at its own mean: what is predicted there is the mean of the label, whatever the start.
            last = self.timesteps - 1
            t = torch.full(y.shape[:2], last, dtype=torch.int64, device=y.device)
            noise = self.denoiser.cells(guidance, torch.zeros_like(y), t, prior).float()
            return ddim_step(torch.zeros_like(noise), noise, float(self.alphas_cumprod[last]), 1.0)
        products = self.denoiser.products(self.sampling_steps)
        for step, alpha_t, alpha_previous in ddim_schedule(self.timesteps, self.sampling_steps):
            check_time()  # a thousand steps of many starts for a batch may take minutes
            t = torch.full(y.shape[:2], step, dtype=torch.int64, device=y.device)
            noise = self.denoiser.cells(guidance, y, t, prior, products).float()
            y = ddim_step(y.float(), noise, alpha_t, alpha_previous)
        return y


def build_guidance(cfg: ModelConfig, num_classes: int) -> GuidanceNetwork:
    """The guidance network with fresh weights (torch's global generator: seed it first).

    Args:
        cfg: the model.
        num_classes: ``C``.

    Raises:
        ConfigError: the configuration describes no possible network.
    """
    check_architecture(cfg)
    return GuidanceNetwork(
        _encoder(cfg, "guidance_backbone"),
        _encoder(cfg, "local_backbone"),
        RegionSearch(
            regions=cfg.regions,
            crop=cfg.crop,
            side=cfg.image_side,
            grid=guidance_grid(cfg),
            channels=cfg.crop_channels,
        ),
        num_classes=num_classes,
        top_percent=cfg.top_percent,
        attention=cfg.attention,
        region_map=cfg.region_map,
        centred=cfg.features == "centred",
    )


def build_diffmic(cfg: ModelConfig, num_classes: int, task: str = "multiclass") -> DiffMIC:
    """The whole network with fresh weights (torch's global generator: seed it first).

    Args:
        cfg: the model.
        num_classes: ``C``.
        task: what the guidance network's logits mean (``model.denoiser=residual``).

    Raises:
        ConfigError: the configuration describes no possible network.
    """
    guidance = build_guidance(cfg, num_classes)
    prior = ImagePrior(
        _encoder(cfg, "prior_backbone"),
        _encoder(cfg, "region_backbone"),
        latent=cfg.latent,
        regions=cfg.regions,
        norm=cfg.norm,
    )
    sizes = (num_classes, cfg.latent, cfg.timesteps, cfg.norm)
    denoiser: Denoiser | PriorClassifier
    if cfg.denoiser == "classifier":
        denoiser = PriorClassifier(num_classes, cfg.latent)
    elif cfg.denoiser == "residual":
        denoiser = ResidualDenoiser(*sizes, multilabel=task == "multilabel")
    else:
        denoiser = Denoiser(*sizes)
    steps = 0 if cfg.sampling == "mean" else cfg.sampling_steps
    return DiffMIC(guidance, prior, denoiser, timesteps=cfg.timesteps, sampling_steps=steps)


def _encoder(cfg: ModelConfig, key: str) -> Encoder:
    return Encoder(getattr(cfg, key), **encoder_arguments(cfg, key))


def encoder_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that lie inside encoders (what may be pretrained), frozen ones included."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, encoder in module.named_modules()
        if isinstance(encoder, Encoder)
        for name, _ in encoder.named_parameters()
    }
