"""What a run has come to: everything that a resumed run continues from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fed_diffmic.algorithms.base import Tensors


@dataclass
class StageProgress:
    """Where a stage stands after its last completed round.

    Attributes:
        name: the stage.
        round: rounds completed.
        frozen: the part of the base that never changes (sent once, kept by sites).
        current: exchanged tensors, the round's global weights.
        residual: what coding left out of them so far, to be added to the next (:mod:`server.broadcast`).
        average: their exponential moving average (empty: none is kept, or no round yet).
        best: exchanged tensors of the best round so far (empty: no round yet).
        algorithm: the algorithm's state.
        best_round: from 1; 0 before the first.
        best_score: what the selection compares; larger is better.
        site_states: digest of the state that each site's next round builds on.
        best_states: digest of the state that each site had in the best round.
        waiting: row of the last round, whose metrics come with the next one's training (:mod:`server.judging`); empty:
            it is judged, and its row is in the history.
        candidate: what is judged of a round that waits, where it is not ``current``.
    """

    name: str
    frozen: Tensors
    current: Tensors
    round: int = 0
    residual: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    best: Tensors = field(default_factory=dict)
    algorithm: Tensors = field(default_factory=dict)
    best_round: int = 0
    best_score: list[float] = field(default_factory=list)
    site_states: dict[str, str] = field(default_factory=dict)
    best_states: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, Any] = field(default_factory=dict)
    candidate: Tensors = field(default_factory=dict)


@dataclass
class RunState:
    """Everything that a resumed run continues from.

    Attributes:
        settings: what must be the same for the run to be the same (spec, stages, quorum).
        counts: each site's images a class in training, as it said at the start.
        claims: what each site said of its images when it was first found in this run, those that came late included.
        results: full state of each finished stage.
        progress: the stage under way, or none.
        history: one mapping of metrics a round.
        bytes_sent: tensor bytes both ways, all completed rounds.
        ledgers: head of each site's privacy ledger (``length:digest``) as it last said.
        personal: for each finished stage, digest of each site's state that belongs to its result, where the
            algorithm keeps a part of the model at the sites.
    """

    settings: dict[str, Any]
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, Tensors] = field(default_factory=dict)
    progress: StageProgress | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    bytes_sent: int = 0
    ledgers: dict[str, str] = field(default_factory=dict)
    personal: dict[str, dict[str, str]] = field(default_factory=dict)
