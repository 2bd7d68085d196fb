"""What a local update is given beside a module and images, and what it gives."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.training.features import FeatureStore
from fed_diffmic.training.parts import Team


@dataclass(frozen=True)
class LocalRound:
    """Whose local update it is, of which round, and how it is computed.

    Attributes:
        site: name, part of every seed.
        round_index: from 1.
        device: where to compute.
        pace: share of the round's steps that the site manages (simulated stragglers); at least one step is done.
        store, store_key: where features that nothing trains are kept from round to round; none: nowhere.
        choices: folder where it is kept which precision was found to be faster; none: in this process alone.
        team: devices among which each step is divided, of which ``device`` leads; none: that one alone.
    """

    site: str
    round_index: int
    device: torch.device | str = "cpu"
    pace: float = 1.0
    store: FeatureStore | None = None
    store_key: Hashable = None
    choices: Path | None = None
    team: Team | None = None


@dataclass(frozen=True)
class SiteMemory:
    """What a local update builds on beside the round's weights.

    Attributes:
        optimizer: moments kept from the site's previous round; empty: started fresh.
        algorithm: what the algorithm's site half kept after the site's previous round; empty: nothing.
        received: the algorithm's own tensors of this round, as the server sent them.
    """

    optimizer: Tensors = field(default_factory=dict)
    algorithm: Tensors = field(default_factory=dict)
    received: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class LocalResult:
    """What a local update produced.

    Attributes:
        tensors: the exchanged tensors afterwards, less those that the algorithm keeps at the site.
        num_examples: training images of the site.
        metrics: ``loss`` (mean over steps; none in a centring round), ``steps``, ``seconds``; ``initial_loss`` where
            the algorithm needs it.
        optimizer_state: the optimizer's moments by parameter, where the algorithm keeps them.
        algorithm_tensors: the algorithm's own tensors for the server.
        algorithm_state: what the algorithm's site half keeps until the next round.
    """

    tensors: Tensors
    num_examples: int
    metrics: dict[str, float]
    optimizer_state: Tensors | None = None
    algorithm_tensors: Tensors = field(default_factory=dict)
    algorithm_state: Tensors = field(default_factory=dict)
