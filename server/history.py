"""A finished round as one row of the run's history, and what a later round reads of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fed_diffmic.exchange.claims import parse_claim
from server.client_level import ClientLevel
from server.exchange import MetricsAnswer, Outcome, TrainAnswer
from server.hooks import Hooks
from server.run_state import RunState
from server.selection import weighted_mean
from server.stage import StageWork
from server.trail import round_facts

Row = dict[str, Any]
METRICS = ("loss", "auroc_macro", "balanced_accuracy", "accuracy")


@dataclass(frozen=True)
class RoundDone:
    """What a round came to.

    Attributes:
        trained: the answers of the sites that were asked to train.
        examples: training images by site, of those whose updates are in the aggregate.
        evaluated: the answers of the sites that judged it.
        made: digests of the weights, where a log is kept (:func:`server.trail.log_aggregate`).
        seconds: that it took.
    """

    trained: TrainAnswer
    examples: Mapping[str, int]
    evaluated: MetricsAnswer
    made: Mapping[str, str]
    seconds: float

    @property
    def bytes_sent(self) -> int:
        """Tensor bytes both ways."""
        return self.trained.outcome.bytes_sent + self.evaluated.outcome.bytes_sent


def round_row(work: StageWork, done: RoundDone, noise: ClientLevel, hooks: Hooks) -> Row:
    """The row of the round that the stage's progress counts as its last.

    What client-level noise has cost so far stands in the row itself, not with an observer: it must be in the
    checkpoint that holds the weights which it paid for.
    """
    progress, share, trained = work.progress, work.share, done.trained.outcome
    sites = {name: {**trained.replies[name].metrics, "num_examples": n} for name, n in done.examples.items()}
    row: Row = {
        "stage": progress.name,
        "round": progress.round,
        "loss": weighted_mean(sites, "loss", share),
        "mean": {},
        "sites": sites,
        "val": {},
        "missing": dict(trained.missing),
        "best_round": 0,
        "bytes_sent": trained.bytes_sent,
        "seconds": done.seconds,
    }
    claims = privacy_claims(trained)
    if claims:
        row["privacy"] = claims
    if noise.on:
        row["client_level"] = noise.facts()
    return judged_row(work, row | dict(done.made) | round_facts(hooks, {"train": trained}), done.evaluated, hooks)


def judged_row(work: StageWork, row: Row, evaluated: MetricsAnswer, hooks: Hooks) -> Row:
    """A round's row with what the sites said of it, and which round is the best one now.

    Args:
        row: of a round of which nobody had said anything yet.
    """
    outcome, metrics, share = evaluated.outcome, evaluated.metrics, work.share
    means = {name: weighted_mean(metrics, name, share) for name in METRICS}
    if evaluated.summed is not None:
        means = {name: evaluated.summed.get(name) for name in METRICS}
    added = round_facts(hooks, {"evaluate": outcome})
    if added:
        added = {"payloads": row["payloads"] | added["payloads"], "heads": row["heads"] | added["heads"]}
    if evaluated.summed:
        images = int(evaluated.summed["num_examples"])
        added = {**added, "summed": {"sites": list(evaluated.among), "num_examples": images}}
    return {
        **row,
        "mean": {name: value for name, value in means.items() if value is not None},
        "val": metrics,
        "missing": {**row["missing"], **outcome.missing},
        "best_round": work.progress.best_round,
        "bytes_sent": row["bytes_sent"] + outcome.bytes_sent,
        **added,
    }


def metrics_of_round(run_state: RunState, stage: str, index: int) -> dict[str, dict[str, float]]:
    """The sites' validation metrics in a finished round of a stage; none of round 0."""
    rows = [row["val"] for row in run_state.history if row["stage"] == stage and row["round"] == index]
    return rows[-1] if rows else {}


def ledger_heads(outcome: Outcome) -> dict[str, str]:
    """Heads of the sites' privacy ledgers, to be echoed with the next request."""
    heads = {name: reply.header["ledger"] for name, reply in sorted(outcome.replies.items())}
    return {name: head for name, head in heads.items() if head}


def privacy_claims(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """What the sites say of their privacy, those that say something that can be read."""
    claims = {name: parse_claim(reply.header["claim"]) for name, reply in sorted(outcome.replies.items())}
    return {name: claim for name, claim in claims.items() if claim}
