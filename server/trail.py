"""What the coordinator writes down of its rounds: in its audit log, and for the provenance of the final model.

Each line is written before what follows from it is sent, so that a site's own line always finds the one that it comes
of: ``begun`` before a stage's first request, ``aggregate`` before the round's weights are evaluated anywhere,
``chosen`` before a stage's result is asked about (:mod:`fed_diffmic.exchange.audit_rounds` compares them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fed_diffmic.algorithms.base import Algorithm, Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.files import tensors_digest
from server.exchange import Outcome
from server.hooks import Hooks

if TYPE_CHECKING:
    from server.run_state import StageProgress


def sent_in_next(progress: StageProgress, algorithm: Algorithm) -> Tensors:
    """What the requests of the next round hold: the global weights, and what the algorithm sends beside them."""
    return {**progress.current, **algorithm.broadcast(progress.current, progress.algorithm)}


def log_resumed(hooks: Hooks, spec: RunSpec, progress: StageProgress | None) -> None:
    """A run goes on from a checkpoint, which may lack its own line: the crash may have come in between."""
    place = {} if progress is None else {"stage": progress.name, "round": progress.round}
    hooks.log("resumed", run=spec.run_id, arm=spec.arm, **place)


def log_begun(hooks: Hooks, spec: RunSpec, progress: StageProgress, base: str, algorithm: Algorithm) -> None:
    """A stage begins: its base, and what its first round sends."""
    if hooks.audit is not None:
        sent = tensors_digest(sent_in_next(progress, algorithm))
        hooks.log("begun", run=spec.run_id, arm=spec.arm, stage=progress.name, base=base, sent=sent)


def log_aggregate(
    hooks: Hooks, spec: RunSpec, progress: StageProgress, asked: Outcome, candidate: Tensors, algorithm: Algorithm
) -> dict[str, str]:
    """A round was aggregated: which payloads went in, and what came out.

    Args:
        progress: with the round's new weights; its ``round`` still counts the rounds before.
        asked: the exchange whose good replies went in.
        candidate: what is evaluated next.

    Returns:
        digests of the weights and of the candidate, for the round's row of the history; nothing without a log.
    """
    if hooks.audit is None:
        return {}
    made = {"weights": tensors_digest(progress.current), "candidate": tensors_digest(candidate)}
    hooks.log(
        "aggregate",
        run=spec.run_id,
        arm=spec.arm,
        stage=progress.name,
        round=progress.round + 1,
        payloads=dict(sorted(asked.digests.items())),
        sent=tensors_digest(sent_in_next(progress, algorithm)),
        **made,
    )
    return made


def log_chosen(hooks: Hooks, spec: RunSpec, progress: StageProgress, base: str) -> None:
    """A stage is over: whose round's candidate is its result."""
    if hooks.audit is not None:
        candidate = tensors_digest(progress.best or progress.current)
        place = {"stage": progress.name, "round": progress.best_round or progress.round}
        hooks.log("chosen", run=spec.run_id, arm=spec.arm, **place, candidate=candidate, base=base)


def round_facts(hooks: Hooks, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Digests of the payloads that a round took, and heads of the sites' chains; nothing without a log."""
    if hooks.audit is None:
        return {}
    payloads = {task: dict(sorted(outcome.digests.items())) for task, outcome in outcomes.items()}
    return {"payloads": payloads, "heads": heads_of(*outcomes.values())}


def heads_of(*outcomes: Outcome) -> dict[str, Any]:
    """The heads of the sites' chains that came with good replies, the last one of each."""
    return {site: asdict(head) for outcome in outcomes for site, head in sorted(outcome.heads.items())}
