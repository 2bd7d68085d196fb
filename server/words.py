"""How a masked round's updates are written as words, and what the algorithm gets of their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fed_diffmic.algorithms.base import SiteUpdate, Sums, Tensors, parameters_of
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.masking.update import UpdateForm
from server.exchange import TrainRequest

COARSEST = 1e-6
"""The largest quantum of 32-bit words that is taken: about what float32 keeps of a weight of 10."""
MOST = ("most_weight", "most_moves")


@dataclass(frozen=True)
class Words:
    """How what a site gives is written as words, the same at every site of a sum.

    Attributes:
        digest: names the form.
        bits, fraction, length: as a session says them.
        read: makes of a sum, and the training images that each site of it said it has, what the algorithm gets:
            updates, or sums.
        rules: what a request says of the form beside its session.
        kept: what a coordinator that comes back must know of it.
    """

    digest: str
    bits: int
    fraction: int
    length: int
    read: Callable[[np.ndarray, Mapping[str, int]], tuple[Sequence[SiteUpdate], Sums | None]]
    rules: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)


def update_words(spec: RunSpec, request: TrainRequest, sites: int, most: Mapping[str, Any]) -> Words:
    """How a round's updates are written: in words of 32 bits where their quanta are fine enough.

    Args:
        sites: how many there are in the sum at most.
        most: as :func:`most_of` gives it; more may stand beside.
    """
    bounds = {name: most[name] for name in MOST if name in most}
    divided = frozenset(parameters_of(request.kinds)) if request.algorithm.divides else frozenset()

    def form(bits: int) -> UpdateForm:
        return UpdateForm(request.sent, sites, spec.strategy.masked_norm, bits=bits, divided=divided, **bounds)

    narrow = form(32)
    coarse = max(narrow.numbers.quantum, narrow.shares.quantum * narrow.most_moves)
    chosen = narrow if coarse <= COARSEST else form(64)

    def read(total: np.ndarray, images: Mapping[str, int]) -> tuple[Sequence[SiteUpdate], Sums | None]:
        return [], masked_sums(images, request.sent, chosen, total)

    rules = {"norm": float(chosen.norm), "summands": sites, **bounds}
    return Words(chosen.digest, chosen.bits, chosen.numbers.fraction, chosen.length, read, rules, bounds)


def most_of(spec: RunSpec, request: TrainRequest, images: Sequence[int]) -> dict[str, Any]:
    """The largest weight of a site, and how far the most steps of one move, by the images that sites said they have."""
    found: dict[str, Any] = {"most_weight": max(images) if spec.strategy.weighting == "examples" else 1}
    if request.algorithm.divides:
        steps = max(map(spec.stage(request.task.stage).local_steps, images))
        found["most_moves"] = float(request.algorithm.moves(steps))
    return found


def masked_sums(images: Mapping[str, int], sent: Tensors, form: UpdateForm, total: np.ndarray) -> Sums:
    """A sum as an algorithm takes it.

    Args:
        images: training images that each site of the sum said it has; what it did with them nobody knows.
        sent: the round's global tensors, and the algorithm's own.
        form: of the words.
        total: their sum.

    Raises:
        FixedPointError: it is none of so many updates.
    """
    mean, _ = form.mean(total, len(images))
    rates: Tensors = {}
    moves: float | None = None
    if form.divided:
        rates, moves = form.rates(total, len(images))

    def change(name: str) -> np.ndarray:
        if name in rates:
            return rates[name]
        return np.asarray(mean[name].astype(np.float64) - sent[name].astype(np.float64))

    sites = [SiteUpdate(name, {}, images[name]) for name in sorted(images)]
    return Sums(sites, mean.__getitem__, change, moves=moves)
