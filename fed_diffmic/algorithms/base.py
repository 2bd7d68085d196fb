"""The contract of a federated algorithm, and the averaging that most of them share.

An algorithm has two halves in one class. The **site half** (:meth:`Algorithm.penalty`) runs inside
the local update and may add a term to the loss. The **server half** (:meth:`Algorithm.aggregate`)
turns the sites' screened updates into the next global weights. What crosses between them each
round is the set of tensors that the stage exchanges, nothing else. Both halves are deterministic:
updates arrive ordered by site name and sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fed_diffmic.config import StrategyConfig
from fed_diffmic.errors import ConfigError

Tensors = dict[str, np.ndarray]
"""Named arrays: weights, buffers, or an algorithm's state."""

Penalty = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class SiteUpdate:
    """What one site returned for a round, after screening.

    Attributes:
        site: name.
        tensors: the exchanged tensors after the local update.
        num_examples: training images the update was computed on (positive).
    """

    site: str
    tensors: Tensors
    num_examples: int


class Algorithm:
    """Base class: subclass and override one half or both; registered by name.

    Args:
        config: the run's ``strategy`` group.
    """

    def __init__(self, config: StrategyConfig) -> None:
        self.config = config

    # ---- site half -------------------------------------------------------------------------
    def penalty(self, module: nn.Module, reference: Mapping[str, torch.Tensor]) -> Penalty | None:
        """A term added to every step's loss at the site.

        Args:
            module: the network being trained.
            reference: the round's global values of its trainable parameters, by name.
        """
        return None

    # ---- server half -----------------------------------------------------------------------
    def initial_state(self, weights: Tensors) -> Tensors:
        """State the server keeps from round to round (saved in each checkpoint)."""
        return {}

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        state: Tensors,
        round_index: int,
    ) -> tuple[Tensors, Tensors]:
        """The next global tensors and the next state.

        Args:
            current: the round's global tensors.
            kinds: ``parameter``, ``buffer`` or ``counter`` for each name.
            updates: screened, in any order; at least one.
            state: what the previous round returned.
            round_index: from 1.
        """
        return weighted_average(updates, kinds, self.site_weights(updates)), state

    def site_weights(self, updates: Sequence[SiteUpdate]) -> dict[str, float]:
        """Normalised weight of each site: its images, or equal (``strategy.weighting``)."""
        raw = {u.site: float(u.num_examples) if self.config.weighting == "examples" else 1.0 for u in updates}
        total = sum(raw[site] for site in sorted(raw))
        return {site: value / total for site, value in raw.items()}


def weighted_average(updates: Sequence[SiteUpdate], kinds: Mapping[str, str], weights: Mapping[str, float]) -> Tensors:
    """Average floats in float64 in the order of site names; counters take the largest value.

    Parameters and floating buffers keep their dtype; counters (``num_batches_tracked``) are not
    quantities to average.
    """
    ordered = sorted(updates, key=lambda u: u.site)
    result: Tensors = {}
    for name, kind in kinds.items():
        values = [u.tensors[name] for u in ordered]
        if kind == "counter":
            result[name] = np.maximum.reduce(values)
            continue
        total = np.zeros(values[0].shape, dtype=np.float64)
        for update, value in zip(ordered, values, strict=True):
            total += weights[update.site] * value.astype(np.float64)
        result[name] = np.asarray(total.astype(values[0].dtype))
    return result


_REGISTRY: dict[str, type[Algorithm]] = {}


def register_algorithm(name: str) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Class decorator; a name used twice is a defect and raises at import."""

    def decorate(cls: type[Algorithm]) -> type[Algorithm]:
        if name in _REGISTRY:
            raise ValueError(f"algorithm {name!r} is registered twice")
        _REGISTRY[name] = cls
        return cls

    return decorate


def algorithm_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_REGISTRY)


def build_algorithm(config: StrategyConfig) -> Algorithm:
    """The algorithm that ``strategy.name`` names.

    Raises:
        ConfigError: no such algorithm here (``flower`` is built by the coordinator's room).
    """
    if config.name not in _REGISTRY:
        raise ConfigError("strategy.name", config.name, ", ".join(algorithm_names()))
    return _REGISTRY[config.name](config)
