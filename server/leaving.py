"""Good replies that a round does not use as they came: what is said of them, and whether the others are enough."""

from __future__ import annotations

from collections.abc import Mapping

from fed_diffmic.exchange.screening import REFUSALS
from server.replies import Outcome
from server.sites import Sites


def tell_clipped(members: Sites, excess: Mapping[str, float], stage: str, round_index: int) -> None:
    """Say whose update was made smaller, and how many times its bound it was."""
    for site, times in sorted(excess.items()):
        facts = {"site": site, "times": round(times, 6), "stage": stage, "round": round_index}
        members.events.emit("site_clipped", **facts)
        members.hooks.log("clipped", run=members.spec.run_id, **facts)


def leave_out(members: Sites, codes: Mapping[str, str], outcome: Outcome, stage: str, round_index: int) -> None:
    """Sites whose good replies are not in the round's aggregate count as missing from here on.

    Their replies stay in the outcome: such a site has trained, and what it says of its privacy ledger holds.

    Args:
        codes: why, by site (:data:`fed_diffmic.exchange.screening.REFUSALS`).
        outcome: of the exchange; written into.

    Raises:
        RoundError: without them the quorum is missed.
    """
    for site, code in sorted(codes.items()):
        outcome.missing[site], outcome.codes[site] = REFUSALS[code], code
        outcome.digests.pop(site, None)
        members.refused(site, code, stage, round_index)
    if codes:
        good, asked = set(outcome.replies) - set(codes), members.participants(stage, round_index)
        members.check_quorum(f"stage {stage}, round {round_index}", good, outcome.missing, asked)
