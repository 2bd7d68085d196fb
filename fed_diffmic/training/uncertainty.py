"""How unsure a prediction is, and whether that tells errors from right answers better than a coin.

**Measures**, each from 0 (sure) to 1 (unsure) for each image:

- ``entropy``: Shannon entropy of the calibrated probabilities over its largest value (multi-label: the mean over the
  labels' own);
- ``disagreement``: half the absolute difference between what the guidance network and the second one say, each for
  itself (total variation; multi-label: the mean absolute difference);
- ``spread``: mean over the classes of the standard deviation of the sampler's starts; a classifier in the diffusion
  head's place (``model.denoiser=classifier``) has none.

None of them is shown to anybody until a **test on images that the model was not trained on** shows that it ranks errors
above chance: sites count, for wrong and for right predictions apart, how many images lie in each cell of a fixed grid
(as in :mod:`fed_diffmic.training.conformal`); of the sums the coordinator computes the area under the ROC curve of
finding errors, with the interval of DeLong et al. (1988) widened for images of one patient. A measure is **offered** if
the lower end of that interval is above one half and there are :data:`LEAST` wrong and right predictions or more.

From the same counts: the risk-coverage curve and its area (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017), and
**operating points of referral**: above which cell an image is referred to a person so that no more than a share of all
are, and how often the rest are wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fed_diffmic.training.binomial import clopper_pearson
from fed_diffmic.training.conformal import CELLS

MEASURES = ("entropy", "disagreement", "spread")
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
LEAST = 10
RIGHT, WRONG = 0, 1


def entropy(probabilities: np.ndarray, task: str) -> np.ndarray:
    """Entropy of each image's probabilities ``(N, C)`` over the largest that it can have, ``(N,)``."""
    p = np.asarray(probabilities, dtype=np.float64)
    if task == "multilabel":
        return np.asarray((_plogp(p) + _plogp(1 - p)).mean(axis=1) / np.log(2))
    return np.clip(_plogp(p).sum(axis=1) / np.log(p.shape[1]), 0, 1)


def _plogp(p: np.ndarray) -> np.ndarray:
    return -p * np.log(np.where(p > 0, p, 1.0))


def disagreement(one: np.ndarray, other: np.ndarray, task: str) -> np.ndarray:
    """How far two predictions ``(N, C)`` of the same images lie apart, ``(N,)`` from 0 to 1."""
    apart = np.abs(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    return np.asarray(apart.mean(axis=1) if task == "multilabel" else np.clip(apart.sum(axis=1) / 2, 0, 1))


def spread(starts: np.ndarray) -> np.ndarray:
    """Mean over the classes of the standard deviation over the starts, of ``(N, starts, C)``; ``(N,)`` from 0 to 1."""
    return np.clip(np.asarray(starts, dtype=np.float64).std(axis=1).mean(axis=1), 0, 1)


def wrong(decided: np.ndarray, labels: np.ndarray, task: str) -> np.ndarray:
    """Whether each decision is wrong, ``(N,)`` bool; multi-label: whether any label is."""
    different = np.asarray(decided) != (np.asarray(labels) > 0 if task == "multilabel" else np.asarray(labels))
    return np.asarray(different.any(axis=1) if task == "multilabel" else different)


def error_auroc(table: np.ndarray) -> tuple[float, float] | None:
    """Area under the ROC curve of finding errors, and its variance (DeLong et al. 1988); none without either kind.

    Args:
        table: ``(2, CELLS + 1)`` counts of right and wrong predictions by cell. Two in the same cell count a half.
    """
    right, bad = table[RIGHT].astype(np.float64), table[WRONG].astype(np.float64)
    n, m = right.sum(), bad.sum()
    if n == 0 or m == 0:
        return None
    below = (np.cumsum(right) - right / 2) / n  # of each cell: share of right ones that an error there lies above
    above = (m - np.cumsum(bad) + bad / 2) / m
    area = float((bad * below).sum() / m)
    variance = 0.0
    if m > 1:
        variance += float((bad * (below - area) ** 2).sum() / (m - 1) / m)
    if n > 1:
        variance += float((right * (above - area) ** 2).sum() / (n - 1) / n)
    return area, variance


def risk_coverage(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and risk if only images up to each cell are answered, both ``(points,)``, cells without images left out.

    Args:
        table: ``(2, CELLS + 1)`` counts of right and wrong predictions.
    """
    total = table.sum(axis=0)
    kept, bad = np.cumsum(total)[total > 0], np.cumsum(table[WRONG])[total > 0]
    return kept / max(1, total.sum()), bad / np.maximum(kept, 1)


def aurc(table: np.ndarray) -> float | None:
    """Area under the risk-coverage curve, by trapezoids; up to the first cell the risk is that cell's."""
    coverage, risk = risk_coverage(table)
    if not len(coverage):
        return None
    return float((np.diff(coverage, prepend=0.0) * (risk + np.concatenate([risk[:1], risk[:-1]])) / 2).sum())


@dataclass(frozen=True)
class Referral:
    """One operating point.

    Attributes:
        share: of the images, that was not to be exceeded.
        cell: images above it are referred.
        referred: share of the validation images that were.
        kept: validation images that were not.
        risk, low, high: share of wrong ones among these, with its 95 % interval.
    """

    share: float
    cell: int
    referred: float
    kept: int
    risk: float
    low: float
    high: float


def referral(table: np.ndarray, share: float, effect: float = 1.0) -> Referral | None:
    """The lowest cell above which no more than ``share`` of the images lie; none of no image.

    Args:
        table: ``(2, CELLS + 1)`` counts of right and wrong predictions.
        effect: the design effect of images of one patient (:func:`fed_diffmic.training.binomial.design_effect`).
    """
    total = table.sum(axis=0)
    n = int(total.sum())
    if n == 0:
        return None
    above = n - np.cumsum(total)
    cell = int(np.argmax(above <= share * n + 1e-9))
    kept, bad = int(total[: cell + 1].sum()), int(table[WRONG, : cell + 1].sum())
    risk = bad / kept if kept else 0.0
    low, high = clopper_pearson(bad / effect, kept / effect)
    return Referral(share, cell, (n - kept) / n, kept, risk, low, high)


@dataclass(frozen=True)
class Measured:
    """What a test on held-out images says of a measure.

    Attributes:
        measure: a name of :data:`MEASURES`.
        n, errors: validation images, and wrong predictions among them.
        auroc, low, high: of finding errors, with its 95 % interval; none where there is nothing to rank.
        aurc: area under the risk-coverage curve; none of no image.
        referrals: operating points.
    """

    measure: str
    n: int
    errors: int
    auroc: float | None
    low: float | None
    high: float | None
    aurc: float | None
    referrals: tuple[Referral, ...]

    @property
    def offered(self) -> bool:
        """Whether the test showed that the measure ranks errors above chance."""
        return self.low is not None and self.low > 0.5 and LEAST <= self.errors <= self.n - LEAST

    def at(self, share: float) -> Referral | None:
        """The operating point of a share, or none."""
        return next((point for point in self.referrals if point.share == share), None)

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, and :meth:`from_json` reads."""
        return {**asdict(self), "referrals": [asdict(point) for point in self.referrals]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: another measure, a key missing or unknown, a value of another type or out of range.
        """
        _check_keys(value, cls)
        points = value["referrals"]
        if value["measure"] not in MEASURES or not isinstance(points, list):
            raise ValueError("a measure is not one that this version knows")
        for point in points:
            _check_keys(point, Referral)
        whole = [value["n"], value["errors"], *(point[key] for point in points for key in ("cell", "kept"))]
        shares = [value[key] for key in ("auroc", "low", "high", "aurc")]
        parts = [point[key] for point in points for key in ("share", "referred", "risk", "low", "high")]
        if not all(type(n) is int and n >= 0 for n in whole) or any(point["cell"] > CELLS for point in points):
            raise ValueError("a measure's counts are not whole numbers")
        if not all(v is None or _is_share(v) for v in shares) or not all(_is_share(v) for v in parts):
            raise ValueError("a measure's shares lie outside of 0 and 1")
        return cls(**{**value, "referrals": tuple(Referral(**point) for point in points)})


def _check_keys(value: object, kind: type) -> None:
    names = {f.name for f in fields(kind)}
    if not isinstance(value, Mapping) or set(value) != names:
        raise ValueError(f"a {kind.__name__.lower()} holds exactly the keys {', '.join(sorted(names))}")


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def measured(measure: str, table: np.ndarray, effect: float = 1.0) -> Measured:
    """The test of one measure on the sites' counts.

    Args:
        table: ``(2, CELLS + 1)`` counts of right and wrong predictions, summed over sites.
        effect: the design effect of images of one patient.
    """
    n, errors = int(table.sum()), int(table[WRONG].sum())
    found, low, high = error_auroc(table), None, None
    if found is not None:
        reach = 1.959964 * float(np.sqrt(found[1] * effect))
        low, high = max(0.0, found[0] - reach), min(1.0, found[0] + reach)
    points = [referral(table, share, effect) for share in SHARES]
    area = None if found is None else found[0]
    return Measured(measure, n, errors, area, low, high, aurc(table), tuple(p for p in points if p is not None))
