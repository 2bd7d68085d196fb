"""What noised steps cost: epsilon of any sequence of Poisson-subsampled Gaussian mechanisms.

Adjacency throughout: one unit (an image or a patient) more or less ("add or remove"). A :class:`Mechanism` adds noise
of standard deviation ``sigma C`` to a sum to which each unit contributes, with probability ``q``, a vector of norm at
most ``C``. Composition and conversion to epsilon are Opacus's: Renyi (RDP; Mironov, Talwar and Zhang 2019, conversion
of Balle et al. 2020) or the numerical PRV accountant (Gopi, Lee and Wutschitz 2021), whose upper bound is taken, where
it is reliable and not too large to compute; elsewhere the Renyi bound stands. Noise of whole numbers, of which several
sites add a share, costs what :mod:`fed_diffmic.privacy.distributed.divergence` proves, by Renyi divergence alone.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ACCOUNTANTS = ("rdp", "prv")
ORDERS = (
    *(1 + x / 20 for x in range(1, 20)),
    *(1 + x / 10 for x in range(10, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 384, 512, 768, 1024),
)
"""Renyi orders: the least over them is an upper bound whatever they are; finer ones only tighten it."""

TOLERANCE = 1e-3
"""The noise multiplier that is searched is at most this share above the smallest that would do."""

_PRV_ERROR, _PRV_DELTA_SHARE = 0.01, 1e-3
_PRV_MOST_EPSILON = 100.0  # beyond it the numerical accountant's exponentials overflow, to values far too small
_PRV_MOST_POINTS = 1 << 20  # of its grids together: some hundred MB, and a second or two
_LEAST_SIGMA, _MOST_SIGMA = 0.05, 1e6


@dataclass(frozen=True)
class Mechanism:
    """Steps that add the same noise.

    Attributes:
        sample_rate: ``q``, probability in (0, 1] that a unit takes part in a step.
        noise_multiplier: ``sigma``, standard deviation of the noise over what one unit can change; 0: no noise.
        steps: how often.
        images: 1: the unit itself is drawn. More: it is a patient with so many images, each drawn by itself with
            ``sample_rate``; ``sigma`` is over what one image can change.
        discrete: the noise is a sum of discrete Gaussians on whole numbers.

    Raises:
        ValueError: out of range.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int = 1
    images: int = 1
    discrete: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1 or not 0 <= self.noise_multiplier < math.inf or self.steps < 0:
            raise ValueError("a mechanism needs 0 < sample_rate <= 1, a finite noise_multiplier >= 0 and steps >= 0")
        if self.images < 1:
            raise ValueError("a mechanism needs images >= 1")

    def dominating(self) -> Mechanism:
        """A mechanism that draws the unit as a whole and costs at least as much: itself, or ``(1 - (1-q)^k, sigma/k)``.

        With ``J`` of ``k`` images drawn the sum moves by at most ``J C``. Let ``j`` be drawn as ``J`` given ``J > 0``;
        the channel ``x -> (j/k) x + sqrt(1 - (j/k)^2) z`` with ``z ~ N(0, sigma^2)`` keeps ``N(0, sigma^2)`` and turns
        ``N(k, sigma^2)`` into ``N(j, sigma^2)``. So the pair (nobody; patient) is a post-processing of
        ``N(0, sigma^2)`` against the mixture of it with ``N(k, sigma^2)`` at weight ``P(J > 0)``. Of discrete noise
        too: the divergence is jointly quasi-convex, so the worst of the ``j`` stands for the mixture of them, in both
        directions, and its bound grows with ``j``.
        """
        if self.images == 1:
            return self
        q, k = self.sample_rate, self.images
        rate = -math.expm1(k * math.log1p(-q)) if q < 1 else 1.0
        return Mechanism(rate, self.noise_multiplier / k, self.steps, discrete=self.discrete)


def merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal rates and noises as one mechanism with the sum of the steps, in a fixed order; none without steps."""
    steps: Counter[tuple[float, float, int, bool]] = Counter()
    for m in mechanisms:
        steps[(m.sample_rate, m.noise_multiplier, m.images, m.discrete)] += m.steps
    return tuple(Mechanism(q, sigma, n, images, whole) for (q, sigma, images, whole), n in sorted(steps.items()) if n)


def epsilon(mechanisms: Iterable[Mechanism], delta: float, accountant: str = "rdp") -> float:
    """Smallest epsilon known for which all of them together are (epsilon, delta)-differentially private.

    Args:
        mechanisms: in any order; composition does not depend on it.
        delta: in (0, 1).
        accountant: one of :data:`ACCOUNTANTS`.

    Returns:
        0 for nothing, infinity where a step adds no noise.

    Raises:
        ValueError: delta out of range, or no such accountant.
    """
    if not 0 < delta < 1 or accountant not in ACCOUNTANTS:
        raise ValueError("delta must lie between 0 and 1 and the accountant be one of " + ", ".join(ACCOUNTANTS))
    parts = merged(mechanisms)
    if not parts:
        return 0.0
    if any(m.noise_multiplier == 0 for m in parts):
        return math.inf
    renyi = _renyi(parts, delta)
    if accountant == "rdp" or renyi > _PRV_MOST_EPSILON or any(m.discrete for m in parts):
        return renyi
    return min(renyi, _prv(parts, delta))


@functools.lru_cache(maxsize=4096)
def _renyi(parts: tuple[Mechanism, ...], delta: float) -> float:
    import numpy as np  # with Opacus only when something is computed: a command's help need not wait for torch
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders = list(ORDERS)
    total = np.zeros(len(orders))
    for m in parts:
        total += m.steps * _step_rdp(m)
    finite = np.isfinite(total)
    if not finite.any():
        return math.inf
    with warnings.catch_warnings():
        # "Expand the range of alphas": a finer range could only tighten what is a bound already.
        warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
        value, _ = get_privacy_spent(
            orders=np.asarray(orders)[finite].tolist(), rdp=total[finite].tolist(), delta=delta
        )
    # The conversion can fall below zero where delta alone covers the mechanism.
    return max(0.0, float(value))


def _step_rdp(mechanism: Mechanism) -> np.ndarray:
    """Renyi divergence of one step at each of :data:`ORDERS`."""
    if mechanism.discrete:
        from fed_diffmic.privacy.distributed.divergence import discrete_rdp

        whole = mechanism.dominating()
        return discrete_rdp(whole.sample_rate, whole.noise_multiplier, ORDERS)
    return _one_step(mechanism.sample_rate, mechanism.noise_multiplier, mechanism.images)


@functools.lru_cache(maxsize=4096)
def _one_step(rate: float, sigma: float, images: int) -> np.ndarray:
    """Renyi divergence of one step of Gaussian noise; of a patient's images the smaller of two bounds."""
    import numpy as np
    from opacus.accountants.analysis.rdp import compute_rdp

    whole = Mechanism(rate, sigma, 1, images).dominating()
    orders = list(ORDERS)
    found = np.asarray(
        compute_rdp(q=whole.sample_rate, noise_multiplier=whole.noise_multiplier, steps=1, orders=orders)
    )
    if images > 1:
        from fed_diffmic.privacy.mixtures import mixture_rdp

        found = np.fmin(found, mixture_rdp(rate, sigma, images, ORDERS))
    return found


@functools.lru_cache(maxsize=4096)
def _prv(parts: tuple[Mechanism, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    parts = merged(m.dominating() for m in parts)
    allowed = delta * _PRV_DELTA_SHARE
    if _prv_points(parts, allowed) > _PRV_MOST_POINTS:
        return math.inf  # the caller's Renyi bound stands
    accountant = PRVAccountant()
    accountant.history = [(m.noise_multiplier, m.sample_rate, m.steps) for m in parts]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(accountant.get_epsilon(delta=delta, eps_error=_PRV_ERROR, delta_error=allowed))
    except (ArithmeticError, ValueError, RuntimeError, MemoryError):
        return math.inf
    # Below zero where delta alone covers the mechanism; not a number where something overflowed after all.
    return math.inf if math.isnan(value) else max(0.0, value)


def _prv_points(parts: Sequence[Mechanism], delta_error: float) -> float:
    """How large the numerical accountant's grids are together: as it sets them (Gopi et al., remark 5.6)."""
    steps = sum(m.steps for m in parts)
    reach = max(
        _renyi(tuple(parts), delta_error / 4),
        *(_renyi((Mechanism(m.sample_rate, m.noise_multiplier),), delta_error / (8 * steps)) for m in parts),
    )
    mesh = _PRV_ERROR / math.sqrt(steps * math.log(12 / delta_error) / 2)
    return math.inf if reach > 3 * _PRV_MOST_EPSILON else len(parts) * 2 * (reach + 3) / mesh


def noise_multiplier_for(
    target: float,
    delta: float,
    planned: Sequence[tuple[float, int]],
    fixed: Sequence[Mechanism] = (),
    accountant: str = "rdp",
) -> float:
    """Noise multiplier with which the planned steps, with what is fixed, cost at most ``target``.

    Args:
        target: epsilon, > 0.
        planned: ``(sample_rate, steps)`` of what shares this noise.
        fixed: what is spent besides, whatever the answer.

    Returns:
        At most :data:`TOLERANCE` (relative) above the smallest, and never below it.

    Raises:
        ValueError: what is fixed alone costs the target, or no noise would do.
    """

    def cost(sigma: float) -> float:
        return epsilon([*fixed, *(Mechanism(q, sigma, n) for q, n in planned)], delta, accountant)

    if epsilon(fixed, delta, accountant) >= target or cost(_MOST_SIGMA) > target:
        raise ValueError("the target is spent before the first step")
    low, high = _LEAST_SIGMA, 1.0
    while cost(high) > target:
        low, high = high, high * 2
    while high / low > 1 + TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > target else (low, middle)
    return high


def as_unit(mechanism: Mechanism, recorded: str, wanted: str, images: int, patients: int = 1) -> Mechanism:
    """What a mechanism that protects one unit costs another: a dominating mechanism.

    - *image to patient* with at most ``k`` images, each drawn by itself and clipped to ``C``: the mixture of
      :mod:`fed_diffmic.privacy.mixtures`, or :meth:`Mechanism.dominating` where that is less.
    - *patient to image*: an image less moves its patient's clipped gradient by at most ``2 C`` in the steps where the
      patient was drawn. Whether it was is given away here (no amplification), since a replaced contribution is not the
      added one that subsampling's bound is for: ``(1, sigma/2)``.
    - *patient to patient* who was counted as ``k``: as an image's patient, for each was drawn and clipped by itself.

    Args:
        recorded, wanted: ``image`` or ``patient``.
        images: most images of a patient, as patients were counted then.
        patients: as how many of them the wanted patient was counted.

    Raises:
        ValueError: not a unit.
    """
    if {recorded, wanted} - {"image", "patient"}:
        raise ValueError("a unit is image or patient")
    apart = patients if recorded == "patient" else max(1, images) * patients  # parts of a patient, drawn one by one
    if recorded == wanted and (wanted == "image" or apart == 1):
        return mechanism
    q, sigma = mechanism.sample_rate, mechanism.noise_multiplier
    if wanted == "patient":
        return Mechanism(q, sigma, mechanism.steps, apart, mechanism.discrete)
    return Mechanism(1.0, sigma / 2, mechanism.steps, discrete=mechanism.discrete)
