"""What is attacked: the update that sites run, on phantoms, with the worst settings that a coordinator may ask for.

No patient's image is needed or read. The update is :func:`fed_diffmic.training.local.local_update`, one step of plain
SGD without clipping and augmentation, because a coordinator would ask for that: then the update is a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fed_diffmic.algorithms import build_algorithm
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.phantoms import draw
from fed_diffmic.data.phantoms.canvas import site_style
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.models.weights import load_pretrained
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training.local import local_update
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import build_module, full_state, load_state
from fed_diffmic.training.update import LocalRound

CLASSES = ("a", "b", "c", "d")
MODALITY = "ultrasound"
LEAST_SITE = 16
PUBLIC = 48  # images that the attacker has: of the same kind, of other patients
_LR = 1.0  # a gradient is read off more exactly from a long step


class _Pictures:
    """Images in memory, behind the image cache's one method that training uses."""

    def __init__(self, images: Tensor) -> None:
        self.pixels = images

    def images(self, rows: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(rows)]


@dataclass(frozen=True, eq=False)
class Subject:
    """A site with one batch of phantoms, and what an attacker knows besides.

    Attributes:
        spec: of the run, its stage asked for at its worst.
        stage: ``guidance`` or ``plain``.
        module: with the weights that are sent; :attr:`start` puts them back.
        train: the batch: ``B`` images, each of a patient of its own; the last image alone has the last class.
        site: the site's images, of which the batch is a part.
        public: ``(P, 3, H, H)`` uint8, other phantoms.
        seed: of the phantoms.
    """

    spec: RunSpec
    stage: str
    module: StageModule
    train: Examples
    site: Examples
    public: Tensor
    seed: int = 0
    start: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def images(self) -> Tensor:
        """The batch ``(B, 3, H, H)`` uint8: what is to be guessed."""
        return self.train.images(np.arange(len(self.train)))

    def normalised(self, images: Tensor) -> Tensor:
        """As the network takes them."""
        return normalise(images, self.spec.mean, self.spec.std)

    def pixels(self, images: Tensor) -> np.ndarray:
        """Normalised images as 0 to 255, cut off there, ``(N, 3, H, H)`` float64."""
        mean, std = (torch.tensor(v, dtype=images.dtype).view(1, 3, 1, 1) for v in (self.spec.mean, self.spec.std))
        return ((images.detach() * std + mean) * 255).clamp(0, 255).double().numpy()

    def gradient(self) -> dict[str, Tensor]:
        """What an attacker makes of the update: the gradient, by parameter. The module is as it was afterwards."""
        load_state(self.module.network, self.start)
        algorithm = build_algorithm(self.spec.strategy)
        result = local_update(self.module, self.train, algorithm, LocalRound("attacked", 1))
        load_state(self.module.network, self.start)
        scale = self.spec.stage(self.stage).lr
        names = {name for name, p in self.module.network.named_parameters() if p.requires_grad}
        found = {n: (self.start[n].astype(np.float64) - result.tensors[n]) / scale for n in names}
        return {name: torch.from_numpy(value).float() for name, value in found.items()}


def make_subject(config: Any, *, stage: str, batch: int, seed: int = 0) -> Subject:
    """A subject with the model of a configuration.

    Args:
        config: of ``simulate``: its model is attacked.
        batch: images in the step.

    Raises:
        ConfigError: the settings describe no network.
    """
    cfg = StageConfig(
        rounds=1, steps=1, batch_size=batch, optimizer="sgd", momentum=0.0, lr=_LR, weight_decay=0.0, clip_norm=0.0,
        schedule="constant", augment=False, amp=False, encoders="train",
    )  # fmt: skip
    stages = replace(config.stages, **{stage: cfg})
    spec = RunSpec(
        run_id="inversion", arm="federated", seed=seed, task="multiclass", classes=CLASSES,
        mean=tuple(config.dataset.mean), std=tuple(config.dataset.std), modality="none", model=config.model,
        stages=stages, strategy=StrategyConfig(),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_module(spec, stage)
    load_pretrained(module.network, config.model)
    numbers = np.arange(max(batch, LEAST_SITE))
    labels = numbers % (len(CLASSES) - 1)
    labels[batch - 1] = len(CLASSES) - 1
    side = config.model.image_side
    cache: Any = _Pictures(_phantoms(seed, "private", labels, side))
    site = Examples(numbers, labels.astype(np.int64), numbers.astype(str), numbers.astype(np.uint64), cache)
    train = site.subset(np.arange(batch))
    public = _phantoms(seed, "public", np.arange(PUBLIC) % len(CLASSES), side)
    return Subject(spec, stage, module, train, site, public, seed, full_state(module))


def _phantoms(seed: int, what: str, labels: np.ndarray, side: int) -> Tensor:
    pictures = [
        draw(
            MODALITY, int(label) % 3, site_style(number % 3),
            numpy_generator(seed, "inversion", what, number, "subject"),
            numpy_generator(seed, "inversion", what, number, "view"), side,
        )
        for number, label in enumerate(labels)
    ]  # fmt: skip
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
