"""From scores to probabilities: a calibration that the sites fit together without sending a single score.

The model's scores are logits (guidance network, plain classifier) or the logarithm of the sampler's mean output
(diffusion; multi-label: its log-odds): the mean lies near a probability, but is none. Both become probabilities through
one family:

- multiclass, ordinal: ``p ~ exp(scale * score + prior_weight * log(prior))``, normalised over the C classes;
- multilabel: ``p = sigmoid(scale * score + prior_weight * logit(prior))``, label by label.

where ``score`` is the stage's own score or, where the stage gives two (``stages.diffusion.blend``: the sampler's, and
the guidance network's logits), ``(1 - blend) * first + blend * second``: a logarithmic opinion pool (Hinton 2002,
section 2) whose share is fitted with the rest.

``prior`` is the share of each class among all sites' training images (Laplace-smoothed). ``prior_weight`` near 1 gives
back the prior that a balanced loss took out (Ren et al. 2020). ``scale`` is the inverse of a temperature (Guo et al.
2017).

The fit: every site evaluates the same fixed grid of parameters on its validation images and sends, for each point,
the *sum* of its negative log-likelihoods. The coordinator adds the sums and takes the lowest. Each image's value is
rounded to a multiple of 2^-20 nats, which makes the sums exact whatever the order: the federated fit **equals** the
pooled one. What leaves a site is a table of sums over its validation images, nothing for one image; with very few
validation images such a sum still says something about them (docs/metrics.md).

Letters: ``B`` images, ``C`` classes, ``I`` scales, ``J`` pairs of a blend and a prior weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

import numpy as np
from scipy.special import expit, log_expit, logit, softmax

from fed_diffmic.config.simulation import StageConfig
from fed_diffmic.errors import ModelFileError

DECISIONS = ("probability", "balanced")
_UNIT = 2.0**20  # a validation image's negative log-likelihood is rounded to 1 / _UNIT nats
_AT_ONCE = 1 << 17  # numbers of the grid that are computed in one go: a megabyte
_PRIOR_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
_KEYS = ("scale", "prior_weight", "blend")
TASKS = ("multiclass", "ordinal", "multilabel")


@dataclass(frozen=True)
class Calibration:
    """A fitted map from scores to probabilities.

    Attributes:
        task: multiclass, ordinal or multilabel.
        scale: factor on the scores, > 0.
        prior_weight: how much of the prior is added, 0 to 1.
        prior: ``(C,)`` share of images that have each class, inside (0, 1).
        n: validation images that the fit rests on; 0: not fitted.
        nll: mean negative log-likelihood at the fit, nats an image (multilabel: summed over labels); None: not fitted.
        at_edge: the best scale was the smallest or largest of the grid: the scores say nothing of the class, or the
            validation images are separated perfectly. Probabilities are then to be taken with care.
        blend: share of the second score where the stage gives two, 0 to 1.

    Raises:
        ValueError: a value outside its range.
    """

    task: str
    scale: float
    prior_weight: float
    prior: tuple[float, ...]
    n: int = 0
    nll: float | None = None
    at_edge: bool = False
    blend: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.scale, self.prior_weight, self.blend, *self.prior, *(() if self.nll is None else (self.nll,)))
        if self.task not in TASKS or not all(math.isfinite(v) for v in numbers):
            raise ValueError("a calibration needs a known task and finite numbers")
        if self.scale <= 0 or not 0 <= self.prior_weight <= 1 or not 0 <= self.blend <= 1 or self.n < 0:
            raise ValueError("a calibration needs scale > 0, prior_weight and blend within 0 and 1, and n >= 0")
        if not self.prior or not all(0 < share < 1 for share in self.prior):
            raise ValueError("a calibration needs a prior within 0 and 1 for each class")

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` reads."""
        return {**asdict(self), "prior": list(self.prior)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_json` wrote; a model of a version that knew no ``blend`` has none.

        Raises:
            ModelFileError: a key missing or unknown, a value of another type or out of range.
        """
        names = [f.name for f in fields(cls)]
        value = {"blend": 0.0, **value} if isinstance(value, Mapping) else {}
        if sorted(value) != sorted(names):
            raise ModelFileError(f"a calibration holds exactly the keys {', '.join(names)}")
        prior = value["prior"]
        good = (
            isinstance(value["task"], str)
            and all(_is_number(value[key]) for key in _KEYS)
            and isinstance(prior, Sequence)
            and not isinstance(prior, str)
            and all(_is_number(share) for share in prior)
            and isinstance(value["n"], int)
            and not isinstance(value["n"], bool)
            and (value["nll"] is None or _is_number(value["nll"]))
            and isinstance(value["at_edge"], bool)
        )
        if not good:
            raise ModelFileError("a calibration holds a value of the wrong type")
        try:
            return cls(**{**value, "prior": tuple(float(share) for share in prior)})
        except ValueError as error:
            raise ModelFileError(f"a calibration is out of range: {error}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Grid:
    """Where every site evaluates its sums: ``scales`` (I,) by every pair of ``blends`` and ``prior_weights`` (J,)."""

    scales: tuple[float, ...]
    prior_weights: tuple[float, ...]
    blends: tuple[float, ...] = (0.0,)

    @property
    def columns(self) -> list[tuple[float, float]]:
        """The ``J`` pairs of a blend and a prior weight; the prior weight changes first."""
        return list(product(self.blends, self.prior_weights))

    @property
    def shape(self) -> tuple[int, int]:
        """``(I, J)``."""
        return len(self.scales), len(self.columns)


def grid(task: str, *, blended: bool = False) -> Grid:
    """The fixed grid of a task: part of the protocol between coordinator and sites.

    Scales run from 2^-6 (scores that hardly matter) to 2^6 in steps of an eighth of a doubling (a probability
    near 0.9 is then within 0.01 of its best): over-confident scores want 0.1 to 1, timid ones more than 1.

    Args:
        blended: the stage gives two scores.

    Raises:
        ValueError: no such task.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    scales = tuple(2.0 ** (step / 8) for step in range(-48, 49))
    return Grid(scales, _PRIOR_WEIGHTS, _BLENDS if blended else (0.0,))


def class_prior(counts: np.ndarray, n: int, task: str) -> np.ndarray:
    """Share of each class, ``(C,)``, Laplace-smoothed so that no class is impossible.

    Args:
        counts: ``(C,)`` training images that have each class, summed over sites; noised ones may exceed ``n``.
        n: training images in all.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if task == "multilabel":
        return np.asarray((np.clip(counts, 0, n) + 1) / (n + 2))
    return np.asarray((counts + 1) / (counts.sum() + len(counts)))


def _checked(scores: np.ndarray, classes: int) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[1:] not in ((classes,), (2, classes)):
        raise ValueError(f"scores have shape {scores.shape}; expected (B, {classes}) or (B, 2, {classes})")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite: the model has diverged")
    return scores


def _blended(scores: np.ndarray, blend: float) -> np.ndarray:
    """``(B, C)`` of ``(B, C)``, where there is nothing to blend, or of ``(B, 2, C)``."""
    if scores.ndim == 2:
        return scores
    return np.asarray((1 - blend) * scores[:, 0] + blend * scores[:, 1])


def _offset(prior: np.ndarray, task: str) -> np.ndarray:
    return np.asarray(logit(prior) if task == "multilabel" else np.log(prior))


def _exponent(scores: np.ndarray, prior: np.ndarray, task: str, scale: float, weight: float) -> np.ndarray:
    return scale * scores + weight * _offset(prior, task)


def _log_likelihood(exponent: np.ndarray, labels: np.ndarray, task: str) -> np.ndarray:
    """Of each image, ``(..., B)``, from exponents ``(..., B, C)``, which are written over."""
    if task == "multilabel":
        return np.asarray(log_expit(np.where(labels > 0, exponent, -exponent)).sum(axis=-1))
    highest = exponent.max(axis=-1, keepdims=True)
    exponent -= np.where(np.isfinite(highest), highest, 0.0)
    own = exponent[..., np.arange(len(labels)), labels.astype(np.int64)]
    return np.asarray(own - np.log(np.exp(exponent, out=exponent).sum(axis=-1)))


def nll_sums(scores: np.ndarray, labels: np.ndarray, prior: np.ndarray, task: str) -> np.ndarray:
    """A site's half of the fit: summed negative log-likelihood at every point of the grid.

    Args:
        scores: ``(B, C)`` of the site's validation images, or ``(B, 2, C)`` where the stage gives two.
        labels: ``(B,)`` class index; multilabel ``(B, C)`` 0/1.
        prior: ``(C,)``, the same for all sites.

    Returns:
        ``(I, J)`` float64 in nats, exact multiples of 2^-20.

    Raises:
        ValueError: shapes that do not fit, scores that are not finite.
    """
    prior = np.asarray(prior, dtype=np.float64)
    scores, labels = _checked(scores, len(prior)), np.asarray(labels)
    points = grid(task, blended=scores.ndim == 3)
    if labels.shape != ((len(scores), len(prior)) if task == "multilabel" else (len(scores),)):
        raise ValueError(f"labels have shape {labels.shape}, scores {scores.shape}: they do not fit for {task}")
    sums, offset = np.zeros(points.shape), _offset(prior, task)
    columns = [(_blended(scores, blend), weight * offset) for blend, weight in points.columns]
    mixed, added = np.stack([column for column, _ in columns]), np.stack([more for _, more in columns])
    # Few images: many scales at once, since a call costs more than its numbers; many images: one at a time.
    some = max(1, _AT_ONCE // max(1, mixed.size))
    for first in range(0, len(points.scales), some):
        scales = np.asarray(points.scales[first : first + some])
        exponent = scales[:, None, None, None] * mixed + added[:, None, :]
        each = -_log_likelihood(exponent, labels, task)
        sums[first : first + some] = np.rint(each * _UNIT).sum(axis=2)
    return sums / _UNIT


def choose(
    sums: np.ndarray, n: int, prior: np.ndarray, task: str, *, blended: bool = False, taken: float = 0.0
) -> Calibration:
    """The coordinator's half: the point of the grid with the lowest sum over all sites.

    Of equally good points the first in the grid's order is taken (smaller scale, then less of the second score, then
    less prior).

    Args:
        sums: ``(I, J)``, the sites' :func:`nll_sums` added up.
        n: validation images in all; 0: nothing can be fitted.
        blended: the stage gives two scores.
        taken: how much of the prior the stage's loss took out of the scores, which is given back where nothing can be
            fitted (:func:`prior_taken`).

    Raises:
        ValueError: a table of another shape or with values that cannot be sums of negative log-likelihoods.
    """
    points, sums = grid(task, blended=blended), np.asarray(sums, dtype=np.float64)
    if n == 0:
        return uncalibrated(prior, task, taken)
    if sums.shape != points.shape or not np.isfinite(sums).all() or sums.min() < 0:
        raise ValueError(f"calibration sums must be a finite, non-negative table of shape {points.shape}")
    i, j = (int(k) for k in np.unravel_index(int(sums.argmin()), sums.shape))
    # Perfectly separated images reach the lowest value before the largest scale: a tie with an edge is an edge too.
    edge = bool(min(sums[0].min(), sums[-1].min()) <= sums[i, j])
    blend, weight = points.columns[j]
    nll = float(sums[i, j] / n)
    return Calibration(task, points.scales[i], weight, _tuple(prior), int(n), nll, edge, blend)


def uncalibrated(prior: np.ndarray, task: str, prior_weight: float = 0.0) -> Calibration:
    """Softmax (multilabel: sigmoid) of the scores as they are, with what the loss took out of them given back.

    Without it the probabilities would be those of classes that are equally frequent, and the decision ``balanced``
    would divide by a prior that is not in them.
    """
    return Calibration(task, 1.0, prior_weight, _tuple(prior))


def prior_taken(cfg: StageConfig, stage: str) -> float:
    """How much of the class prior a stage's loss takes out of its scores: all, or in ``diffusion`` ``balance``."""
    if cfg.loss != "balanced":
        return 0.0
    return cfg.balance if stage == "diffusion" else 1.0


def _tuple(prior: np.ndarray) -> tuple[float, ...]:
    return tuple(float(share) for share in np.asarray(prior, dtype=np.float64))


def probabilities(scores: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Calibrated probabilities ``(B, C)`` float64; rows sum to 1 unless multilabel.

    Args:
        scores: ``(B, C)``, or ``(B, 2, C)`` where the stage gives two.

    Raises:
        ValueError: another number of classes, scores that are not finite.
    """
    prior = np.asarray(calibration.prior)
    scores = _blended(_checked(scores, len(prior)), calibration.blend)
    exponent = _exponent(scores, prior, calibration.task, calibration.scale, calibration.prior_weight)
    return expit(exponent) if calibration.task == "multilabel" else softmax(exponent, axis=1)


def decide(probabilities: np.ndarray, calibration: Calibration, rule: str) -> np.ndarray:
    """The class decided for each image: ``(B,)`` int64, multilabel ``(B, C)`` bool.

    Args:
        probabilities: ``(B, C)``, calibrated.
        rule: ``probability``: the most probable class (multilabel: above one half), fewest errors over all images;
            ``balanced``: highest probability over prior (multilabel: above the prior), fewest errors averaged over
            classes, which gives rare classes the same voice.

    Raises:
        ValueError: no such rule.
    """
    if rule not in DECISIONS:
        raise ValueError(f"decision {rule!r} is not one of {', '.join(DECISIONS)}")
    p, prior = np.asarray(probabilities, dtype=np.float64), np.asarray(calibration.prior)
    if calibration.task == "multilabel":
        return p > (0.5 if rule == "probability" else prior)
    return np.asarray((p if rule == "probability" else p / prior).argmax(axis=1), dtype=np.int64)
