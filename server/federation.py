"""One run under way: what each of its steps needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fed_diffmic.config.spec import RunSpec
from server.checkpoints import CheckpointStore
from server.exchange import Exchange
from server.hooks import Hooks
from server.observers import RoundObserver
from server.replies import Events
from server.run_state import RunState
from server.terms import RunTerms


@dataclass(frozen=True)
class Federation:
    """A run, its sites found.

    Attributes:
        exchange: asks the sites.
        spec: what all sites have in common.
        run_state: what a resumed run continues from; changed as the run goes on.
        store: where it is kept.
        events: where facts go.
        terms: what the run is held to.
        prior: the consortium's class prior ``(C,)``.
        observers: told of every round, in this order.
    """

    exchange: Exchange
    spec: RunSpec
    run_state: RunState
    store: CheckpointStore
    events: Events
    terms: RunTerms
    prior: np.ndarray
    observers: Sequence[RoundObserver] = ()

    @property
    def hooks(self) -> Hooks:
        """What a real coordinator adds."""
        return self.exchange.hooks
