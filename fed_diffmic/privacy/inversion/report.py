"""An audit as a whole: every attack on a batch, against chance, and which floor refuses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.floors import Exposure, check_exposure
from fed_diffmic.privacy.inversion.craft import PIXELS, imprint, imprinted_patches, mask_all_but_one_class
from fed_diffmic.privacy.inversion.linear import positions_of, solve_patches
from fed_diffmic.privacy.inversion.matching import match_gradients
from fed_diffmic.privacy.inversion.subject import Subject, make_subject
from fed_diffmic.privacy.isolation import measure_isolation
from fed_diffmic.training.stages import full_state

INVERTED, CHANCE = "inverted", "at chance"
WORDS = {
    INVERTED: "INVERTED: an attack that these floors allow saw more of an image than chance does. Raise "
    "policy.floors, or train with privacy.",
    CHANCE: "AT CHANCE: no attack that these floors allow saw more of an image than chance does. That is evidence, not "
    "proof: other attacks may; only differential privacy bounds them all.",
}
ABOUT = {
    "linear": "positions and patches solved",
    "matching": "gradient matching",
    "mask": "made weights: one class alone",
    "imprint": "made weights: imprint",
}
MARGIN_DB = 3.0
LEAST_STEPS = 20


@dataclass(frozen=True)
class Attempt:
    """One attack on one batch.

    Attributes:
        attack: one of :data:`ABOUT`.
        batch: images in the step.
        refused: what would refuse the request; empty: nothing.
        psnr: best over the batch, dB of 255 (imprint: the median patch); what a coordinator would have got if nothing
            had refused it. None: the attack does not exist for this network.
        chance: the same figure for as many guesses among public images, and their mean.
        label: whether the label of the best image was right; none where nothing is guessed.
    """

    attack: str
    batch: int
    refused: str
    psnr: float | None
    chance: float
    label: bool | None

    @property
    def succeeded(self) -> bool:
        """Whether it is allowed and saw more than chance does."""
        return not self.refused and self.psnr is not None and self.psnr > self.chance + MARGIN_DB


@dataclass(frozen=True)
class Report:
    """All attempts, with the settings."""

    attempts: list[Attempt]
    settings: dict[str, Any]

    @property
    def verdict(self) -> str:
        """One of :data:`WORDS`."""
        return INVERTED if any(attempt.succeeded for attempt in self.attempts) else CHANCE

    def to_json(self) -> dict[str, Any]:
        """As a file holds it."""
        attempts = [asdict(attempt) for attempt in self.attempts]
        return {"verdict": self.verdict, "attempts": attempts, "settings": self.settings}

    def lines(self) -> list[str]:
        """A table and the verdict, for people."""
        rows = [f"{'attack':32}{'batch':>6}{'best PSNR':>11}{'chance':>8}{'label':>7}  refused by"]
        for a in self.attempts:
            best = "none" if a.psnr is None else f"{a.psnr:.1f}"
            label = {None: "-", True: "right", False: "wrong"}[a.label]
            rows.append(f"{ABOUT[a.attack]:32}{a.batch:>6}{best:>11}{a.chance:>8.1f}{label:>7}  {a.refused or '-'}")
        return [*rows, WORDS[self.verdict]]


def audit_inversion(
    config: Any,
    floors: Floors,
    *,
    stage: str = "guidance",
    batches: Sequence[int] = (1, 8, 32),
    steps: int = 200,
    seed: int = 0,
    tell: Callable[[str, int], None] = lambda attack, batch: None,
) -> Report:
    """Attack batches of phantoms in all ways.

    Args:
        config: of ``simulate``; its model is attacked.
        floors: of the site.
        steps: of gradient matching for one image; more images get fewer, in proportion, at least 20.
        seed: of phantoms and guesses.
        tell: called before each attack.

    Raises:
        ConfigError: the configuration describes no network.
        OutOfTimeError: a bound on the time that the caller set is over.
    """
    attempts = []
    for batch in batches:
        refused = _refused_for(floors, batch)
        for attack, run in (("linear", _linear), ("matching", _matching), ("mask", _mask), ("imprint", _imprint)):
            tell(attack, batch)
            subject = make_subject(config, stage=stage, batch=batch, seed=seed)
            found = run(subject, max(LEAST_STEPS, steps // batch))
            made = attack in ("mask", "imprint") and found.psnr is not None
            isolated = "isolation" if made and floors.isolation and _isolated(subject) else ""
            attempts.append(replace(found, refused=", ".join(part for part in (refused, isolated) if part)))
    facts = {"model": config.model.name, "image_side": config.model.image_side, "stage": stage}
    facts |= {"encoder": config.model.guidance_backbone, "steps": steps, "seed": seed, "floors": asdict(floors)}
    return Report(attempts, facts)


def _refused_for(floors: Floors, batch: int) -> str:
    """The first floor below which a step of so many images, each of a patient of its own, would be."""
    try:
        check_exposure(floors, Exposure(np.ones(batch, np.int64), 1, batch, batch, batch, batch))
    except SiteError as error:
        return str(error).rsplit("policy.floors.", 1)[1].split()[0]
    return ""


def _isolated(subject: Subject) -> bool:
    """Whether the site's own test refuses the weights that the attack made."""
    return measure_isolation(subject.module, subject.site, "cpu", np.random.default_rng(subject.seed)).found


def _linear(subject: Subject, steps: int) -> Attempt:
    gradient = subject.gradient()
    solved = _solved(gradient)
    return _attempt(subject, "linear", solved, lambda best: _label_of(gradient) == int(subject.train.labels[best]))


def _matching(subject: Subject, steps: int) -> Attempt:
    labels = torch.from_numpy(subject.train.labels)
    guess, _ = match_gradients(subject, subject.gradient(), labels, steps=steps, seed=subject.seed)
    return _attempt(subject, "matching", guess, None)


def _mask(subject: Subject, steps: int) -> Attempt:
    if not mask_all_but_one_class(subject):
        return _attempt(subject, "mask", None, None)
    subject.start.update(full_state(subject.module))
    gradient = subject.gradient()
    solved = _solved(gradient)
    last = len(subject.spec.classes) - 1
    if solved is None:
        # What the heads get comes from all images; what the encoders get from one alone.
        inner = {name: value for name, value in gradient.items() if "encoder" in name}
        size = float(len(subject.train))  # the mean's share of one image
        inner = {name: value * size for name, value in inner.items()}
        solved, _ = match_gradients(subject, inner, torch.tensor([last]), steps=max(steps, 100), seed=subject.seed)
    return _attempt(subject, "mask", solved, lambda best: int(subject.train.labels[best]) == last)


def _imprint(subject: Subject, steps: int) -> Attempt:
    prefix = next(iter(positions_of(subject.gradient())), None)
    if prefix is None or imprint(subject, prefix) is None:
        return _attempt(subject, "imprint", None, None)
    subject.start.update(full_state(subject.module))
    guess = imprinted_patches(subject.gradient(), prefix).numpy()
    net: Any = subject.module.network.get_submodule(prefix.removesuffix("."))
    patch = int(net.patch_embed.proj.kernel_size[0])
    real, public = (_grey_patches(subject, images, patch) for images in (subject.images, subject.public))
    public = public[np.random.default_rng(subject.seed).permutation(len(public))[: len(guess)]]
    return Attempt(
        "imprint", len(subject.train), "", _median_psnr(subject, guess, real), _median_psnr(subject, public, real), None
    )


def _solved(gradient: Mapping[str, Tensor]) -> Tensor | None:
    for prefix in positions_of(gradient):
        solved = solve_patches(gradient, prefix)
        if solved is not None and bool(torch.isfinite(solved).all()):
            return solved
    return None


def _label_of(gradient: Mapping[str, Tensor]) -> int:
    """The class whose row of the head moves most: that of the image, where there is one (its share is ``p - 1``)."""
    name = next(n for n in ("saliency.weight", "classifier.weight") if n in gradient)
    return int(gradient[name].flatten(1).norm(dim=1).argmax())


def _attempt(subject: Subject, attack: str, guess: Tensor | None, right: Callable[[int], bool] | None) -> Attempt:
    real = subject.images.double().numpy()
    count = 1 if guess is None else len(guess)
    public = subject.public.double().numpy()
    order = np.random.default_rng(subject.seed).permutation(len(public))[:count]
    chance = best_psnr(np.concatenate([public.mean(axis=0)[None], public[order]]), real)[0]
    if guess is None:
        return Attempt(attack, len(real), "", None, chance, None)
    psnr, _, at = best_psnr(subject.pixels(guess), real)[0:3]
    return Attempt(attack, len(real), "", psnr, chance, None if right is None else right(at))


def best_psnr(guesses: np.ndarray, real: np.ndarray) -> tuple[float, int, int]:
    """Best peak signal-to-noise ratio over all pairs, dB of 255; which guess and which image."""
    errors = np.stack([((real - guess) ** 2).mean(axis=(1, 2, 3)) for guess in guesses])
    guess, image = (int(k) for k in np.unravel_index(int(errors.argmin()), errors.shape))
    return _decibel(float(errors[guess, image])), guess, image


def _decibel(error: float, peak: float = 255.0) -> float:
    return 10 * math.log10(peak**2 / max(error, 1e-10))


def _median_psnr(subject: Subject, guesses: np.ndarray, real: np.ndarray) -> float:
    """Median over the batch's patches of the best guess's figure."""
    if not len(guesses):
        return 0.0
    errors = np.stack([((guesses - patch) ** 2).mean(axis=(1, 2)).min() for patch in real])
    return _decibel(float(np.median(errors)), 1 / float(np.mean(subject.spec.std)))


def _grey_patches(subject: Subject, images: Tensor, patch: int) -> np.ndarray:
    """All patches as an imprint sees them: ``(N, PIXELS, PIXELS)`` normalised."""
    grey = subject.normalised(images).mean(dim=1)
    step, grid = patch // PIXELS, grey.shape[1] // patch
    cells = grey.reshape(len(grey), grid, PIXELS, step, grid, PIXELS, step).mean(dim=(3, 6))
    return cells.permute(0, 1, 3, 2, 4).reshape(-1, PIXELS, PIXELS).numpy()
