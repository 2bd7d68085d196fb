"""The configuration of a run: one frozen dataclass for each group, ranges checked when built.

Every field declares its meaning, unit and range where it is declared (``metadata``); the same declaration drives the
checks, the messages and ``fed-diffmic options``. How files and ``key=value`` overrides become these objects is in
:mod:`fed_diffmic.config.compose`; the groups whose choices are code (data set, algorithm, partitioner) are in
:mod:`fed_diffmic.config.groups`. Symbols are those of docs/model.md: ``B`` images, ``C`` classes, ``K`` regions, ``D``
latent channels, ``T`` training timesteps, ``S`` sampling steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fed_diffmic.config import bounds as config_bounds
from fed_diffmic.config import precision as config_precision
from fed_diffmic.config.fields import Checked, option
from fed_diffmic.config.groups import DatasetConfig, PartitionConfig, StrategyConfig
from fed_diffmic.config.privacy import PrivacyConfig

__all__ = [
    "BASELINES",
    "SELECT_METRICS",
    "ConditionsConfig",
    "DatasetConfig",
    "ModelConfig",
    "PartitionConfig",
    "RunConfig",
    "SimulateConfig",
    "StageConfig",
    "StagesConfig",
    "StrategyConfig",
]

BASELINES = ("local", "pooled", "plain")
SELECT_METRICS = ("auroc_macro", "balanced_accuracy", "loss")


@dataclass(frozen=True)
class ModelConfig(Checked):
    """Group ``model``: the DiffMIC-v2 network (Yang et al. 2025); presets paper, compact, tiny."""

    name: str = option("compact", "preset this started from", choices=("paper", "compact", "tiny"))
    image_side: int = option(112, "input side H in pixels", ge=32, le=2048)
    regions: int = option(4, "regions of interest K (paper 6)", ge=2, le=64)
    crop: int = option(32, "side of a region's crop in pixels (paper 32)", ge=8, le=512)
    crop_channels: str = option(
        "all", "channels of a crop: all, or the first one repeated as in the paper's code", choices=("all", "first")
    )
    region_map: str = option(
        "sum",
        "where regions are sought: in the sum of all class maps as in the paper's code, or in maps weighed by their "
        "class's probability (global logits)",
        choices=("sum", "probable"),
    )
    latent: int = option(256, "latent channels D (paper 6144)", ge=8, le=65536)
    timesteps: int = option(1000, "diffusion timesteps T in training", ge=10, le=10000)
    sampling_steps: int = option(10, "DDIM steps S at inference", ge=1, le=1000)
    sampling_starts: int = option(
        1, "starts of the sampler that are averaged for each image (paper 1): one start is one sample", ge=1, le=1024
    )
    sampling_start: str = option(
        "own",
        "where an image's starts (sampling_starts of them) come from: draws of its own as in the paper, or the same "
        "draws for all, so that no draw ranks an image above another",
        choices=("own", "shared"),
    )
    denoiser: str = option(
        "noise",
        "the head predicts the noise as in the paper, or what the guidance network's probabilities leave of it "
        "(residual): then it starts as good as the guidance network; classifier: no diffusion, a linear classifier on "
        "the image prior (with stages.diffusion.blend an ensemble of two networks)",
        choices=("noise", "residual", "classifier"),
    )
    sampling: str = option(
        "chain",
        "how a residual head predicts: by a chain of sampling_steps from each start, or by the mean that it says in "
        "one evaluation where all is noise (no start, no spread)",
        choices=("chain", "mean"),
        sparse=True,
    )
    features: str = option(
        "raw",
        "what the guidance network's heads and the plain classifier see of frozen encoders: raw features, or features "
        "scaled to one length and centred by their mean over the sites, which a stage's first round finds",
        choices=("raw", "centred"),
    )
    top_percent: float = option(100.0, "per cent of saliency cells that make the global logit", gt=0, le=100)
    attention: int = option(128, "hidden width of the regions' attention (paper 128)", ge=1, le=4096)
    guidance_backbone: str = option("resnet18", "timm name: global encoder of the guidance network")
    local_backbone: str = option("resnet18", "timm name: crop encoder of the guidance network")
    prior_backbone: str = option(
        "resnet18", "timm name: global encoder of the image prior (paper: EfficientSAM's ViT-S)"
    )
    region_backbone: str = option("resnet18", "timm name: crop encoder of the image prior")
    feature_stride: int = option(32, "pixels a cell of the saliency grid covers (convolutional encoders)", ge=4, le=64)
    norm: str = option(
        "batch",
        "normalisation of what starts from scratch: batch, or group (per cell in the head)",
        choices=("batch", "group"),
    )
    encoder_norm: str = option(
        "frozen",
        "batch norm inside convolutional encoders: trained, frozen at its public statistics (affine too), "
        "or replaced by group norm",
        choices=("train", "frozen", "group"),
    )
    frozen_blocks: int = option(0, "leading blocks of each convolutional encoder that are not trained", ge=0, le=100)
    prior_init: str = option(
        "own",
        "encoders of the image prior start from their own weights, or from the trained guidance's (same backbone)",
        choices=("own", "guidance"),
    )
    pretrained: bool = option(False, "fetch timm's published weights (needs the network)")
    weights: str | None = option(
        None, "local weights file (safetensors or state dict) for every encoder that it fits", path=True
    )
    prior_weights: str | None = option(
        None,
        "local weights file for the prior's global encoder alone (EfficientSAM's checkpoint is recognised)",
        path=True,
    )


@dataclass(frozen=True)
class StageConfig(Checked):
    """One stage: how long, how each site's local update runs, how the best round is chosen."""

    rounds: int | None = option(
        3, "federated rounds; 0 skips the stage; none (stage plain only): guidance plus diffusion", ge=0, le=100_000
    )
    epochs: float = option(
        1.0,
        "passes over the site's training images in a local update, where steps is 0; 0.25 averages four times a pass",
        gt=0,
        le=1000,
    )
    steps: int = option(0, "optimizer steps in a local update; 0: count epochs instead", ge=0, le=1_000_000)
    batch_size: int = option(32, "images in a step", ge=1, le=65536)
    optimizer: str = option(
        "adamw",
        "local optimizer, started fresh each round unless strategy.keep_optimizer_state",
        choices=("adamw", "sgd"),
    )
    lr: float = option(1e-3, "peak learning rate", gt=0, le=100)
    encoder_lr_scale: float = option(1.0, "factor on lr for encoders (what may be pretrained)", ge=0, le=100)
    weight_decay: float = option(1e-2, "weight decay (not on norms, biases and tables)", ge=0, le=100)
    momentum: float = option(0.9, "momentum (sgd)", ge=0, lt=1)
    clip_norm: float = option(1.0, "largest norm of a step's gradient; 0: no clipping", ge=0)
    schedule: str = option("cosine", "learning rate over the stage's rounds", choices=("cosine", "constant"))
    loss: str = option(
        "cross_entropy",
        "cross_entropy as published, or balanced: in guidance and plain the site's label prior is added to the logits "
        "(balanced softmax: Ren et al. 2020, Menon et al. 2021), in diffusion images are weighted by prior^-balance",
        choices=("cross_entropy", "balanced"),
    )
    balance: float = option(
        1.0, "diffusion only, with loss=balanced: 1 weighs classes alike, 0 as often as the site has them", ge=0, le=1
    )
    encoders: str = option(
        "train",
        "train the encoders, or keep them frozen (in diffusion and plain features are computed once, without "
        "augmentation)",
        choices=("train", "frozen"),
    )
    draws: int = option(1, "diffusion only: independent noise draws for each image and step (paper 1)", ge=1, le=1024)
    alpha: float = option(10.0, "diffusion only: weight of hard images in the loss (paper 10)", ge=0)
    blend: bool = option(
        False,
        "diffusion only: the calibration mixes the second network's scores (the sampler's log-probabilities, or a "
        "classifier's logits) with the guidance network's logits, the share fitted on validation images; false "
        "(paper): the second network's alone",
    )
    crossfit: int = option(
        0,
        "diffusion only, in `experiment head` alone: the head is trained on what K further guidance networks say, of "
        "each image one that saw no image of its group; 0: on the word of the guidance network itself",
        ge=0,
        le=20,
        sparse=True,
    )
    gamma: float = option(1.0, "diffusion only: exponent of hard images in the loss (paper 1)", ge=0)
    augment: bool = option(True, "flip and rotate training images (by dataset.modality)")
    amp: bool = option(True, "compute in bfloat16 where run.precision says so; false: this stage in float32")
    ema: float = option(0.0, "decay a round of the averaged global weights used for evaluation; 0: none", ge=0, lt=1)
    select: str = option("auroc_macro", "validation metric that chooses the round", choices=SELECT_METRICS)
    init: str | None = option(None, "start this stage from the given safetensors file", path=True)

    def local_steps(self, images: int) -> int:
        """Optimizer steps of one local update of a site with that many training images (at least one)."""
        return self.steps or max(1, round(self.epochs * math.ceil(images / self.batch_size)))


@dataclass(frozen=True)
class StagesConfig(Checked):
    """Group ``stages``: guidance, then diffusion with the guidance frozen; plain is the baseline."""

    guidance: StageConfig = field(default_factory=StageConfig)
    diffusion: StageConfig = field(default_factory=StageConfig)
    plain: StageConfig = field(default_factory=StageConfig)
    decision: str = option(
        "probability",
        "class decided: highest probability (multi-label: > 0.5), or 'balanced': highest probability over class prior "
        "(multi-label: above the prior)",
        choices=("probability", "balanced"),
    )


@dataclass(frozen=True)
class ConditionsConfig(Checked):
    """Group ``conditions``: what goes wrong in a simulated consortium; a real one has its own."""

    name: str = option("none", "preset this started from", choices=("none", "unreliable"))
    dropout: float = option(
        0.0, "chance that a site does not answer in a round, drawn by the run's seed for each", ge=0, lt=1
    )
    absent: list[str] = option(
        doc="sites that are away in given rounds of every stage: SITE:ROUND or SITE:FIRST-LAST, for example site-2:3-5",
        factory=list,
    )
    slow: list[str] = option(
        doc="sites that are slower: SITE:TIMES, for example site-1:4 does a quarter of a round's steps (at least one)",
        factory=list,
    )


@dataclass(frozen=True)
class RunConfig(Checked):
    """Group ``run``: where results go and how this machine is used."""

    dir: str | None = option(None, "folder of the run; none: runs/<date>-<dataset>-<digest>", path=True)
    backend: str = option("inprocess", "simulation engine", choices=("inprocess", "ray"))
    threads_per_site: int = option(1, "torch threads of a local update (part of what makes bits equal)", ge=1, le=256)
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = config_precision.precision()
    quorum: float = option(1.0, "share of sites whose good replies a round needs", gt=0, le=1)
    deadline_s: float = option(86400.0, "seconds a round may take", gt=0, le=7 * 86400)
    max_share: float = config_bounds.max_share(1.0)
    norm_rule: str = config_bounds.norm_rule("off")
    norm_multiple: float = config_bounds.norm_multiple()
    patience: int = config_bounds.patience()
    exchanges: str = config_bounds.exchanges("two")
    metrics_every: int = option(
        1,
        "ask for validation metrics every so many rounds, and in a stage's last; a round that is not judged cannot be "
        "the stage's best",
        ge=1,
        le=100_000,
        sparse=True,
    )
    metrics_share: float = option(
        1.0,
        "share of the sites with validation images that are asked for metrics of the rounds, the same ones in all; in "
        "a masked run all are asked, for sums",
        gt=0,
        le=1,
        sparse=True,
    )
    bootstrap: int = option(1000, "resamples of groups for the 95 % intervals; 0: none", ge=0, le=100_000)
    examples: int | None = option(
        None,
        "test images of each class that the report shows with saliency and regions; null: 2 of drawn data, else 0. They"
        " are then in report.html: only for data that everybody may see, never with dataset=table",
        ge=0,
        le=16,
    )
    lr_scales: list[float] = option(
        doc="grid of factors on every lr; each method takes the best on its own validation sets",
        factory=lambda: [1.0],
        gt=0,
        le=1000,
    )
    optimizers: list[str] = option(
        doc="optimizers that each method tries beside the learning rates, the better on its own validation sets (sgd "
        "has 100 times adamw's rate); []: the stage's",
        factory=list,
        choices=("adamw", "sgd"),
        sparse=True,
    )
    local_optimizers: list[str] = option(
        doc="the same for each site alone, where it is to try others than the rest; []: run.optimizers",
        factory=list,
        choices=("adamw", "sgd"),
        sparse=True,
    )
    tracking: str = option(
        "none", "extra log for a viewer (extra 'tracking' or 'mlflow')", choices=("none", "tensorboard", "mlflow")
    )


@dataclass(frozen=True)
class SimulateConfig(Checked):
    """Everything that ``fed-diffmic simulate`` needs; saved resolved as config.yaml in the run."""

    seed: int = option(0, "seed of partition, split, initial weights, batches, noise", ge=0, lt=2**31)
    baselines: list[str] = option(
        doc="what else to train under the same budget, plainly whatever the strategy", factory=list, choices=BASELINES
    )
    external: dict[str, str] = option(
        doc="tables of images from elsewhere (image,label[,patient_id]) by name, as external.NAME=FILE: judged once, "
        "when everything has been trained and chosen",
        factory=dict,
        sparse=True,
    )
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    conditions: ConditionsConfig = field(default_factory=ConditionsConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    run: RunConfig = field(default_factory=RunConfig)
