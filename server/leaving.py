"""Good replies that a round does not use as they came: what is said of them, and whether the others are enough."""

from __future__ import annotations

from collections.abc import Mapping

from fed_diffmic.exchange.screening import REFUSALS
from server.exchange import TrainAnswer
from server.federation import Federation


def tell_clipped(run: Federation, excess: Mapping[str, float], stage: str, round_index: int) -> None:
    """Say whose update was made smaller, and how many times its bound it was."""
    for site, times in sorted(excess.items()):
        facts = {"site": site, "times": round(times, 6), "stage": stage, "round": round_index}
        run.events.emit("site_clipped", **facts)
        run.hooks.log("clipped", run=run.spec.run_id, **facts)


def leave_out(run: Federation, codes: Mapping[str, str], answer: TrainAnswer, stage: str, round_index: int) -> None:
    """Sites whose good replies are not in the round's aggregate count as missing from here on.

    Their replies stay in the outcome: such a site has trained, and what it says of its privacy ledger holds.

    Args:
        codes: why, by site (:data:`fed_diffmic.exchange.screening.REFUSALS`).
        answer: whose outcome is written into.

    Raises:
        RoundError: without them the quorum is missed.
    """
    outcome = answer.outcome
    for site, code in sorted(codes.items()):
        outcome.missing[site], outcome.codes[site] = REFUSALS[code], code
        outcome.digests.pop(site, None)
        run.exchange.refused(site, code, stage, round_index)
    if codes:
        good = set(outcome.replies) - set(codes)
        run.exchange.check_quorum(f"stage {stage}, round {round_index}", good, outcome.missing, answer.asked)
