"""What our SuperLink answers a SuperNode whose message it does not take: codes of our own beside Flower's.

The status is 403 wherever the message will never be taken: Flower's SuperNode (of any version) gives such a message up
and goes on, where any other status makes it end. Only the code is read at the site; the sentence is looked up here.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP, ApiErrorSpec
from grpc import StatusCode


@dataclass(frozen=True)
class Refusal:
    """One kind.

    Attributes:
        code: outside the ranges that Flower uses.
        status: of HTTP.
        sentence: for the site's log; says what it means to the site.
    """

    code: int
    status: int
    sentence: str


MALFORMED = Refusal(9001, 400, "the coordinator cannot read a message of this site")
NOT_YOURS = Refusal(9002, 403, "the coordinator takes only this site's own messages and gives out no others")
NOT_ASKED = Refusal(9003, 403, "the coordinator does not wait for this reply, or not any more")
RUN_UNKNOWN = Refusal(9004, 403, "the coordinator does not know this run (any more)")
TOO_LARGE = Refusal(9005, 403, "the reply is larger than the coordinator takes (its listen.reply_mib, listen.site_mib)")
REFUSALS = {r.code: r for r in (MALFORMED, NOT_YOURS, NOT_ASKED, RUN_UNKNOWN, TOO_LARGE)}


def install_refusals() -> None:
    """Let this process' Flower answer with our codes."""
    for refusal in REFUSALS.values():
        status = StatusCode.INVALID_ARGUMENT if refusal.status == 400 else StatusCode.PERMISSION_DENIED
        API_ERROR_MAP[refusal.code] = ApiErrorSpec(status, refusal.status, refusal.sentence)


def refused(refusal: Refusal, node: int, detail: str) -> FlowerError:
    """The exception that a handler raises.

    Args:
        refusal: the kind.
        node: whose message it was.
        detail: for the SuperLink's own log.
    """
    return FlowerError(refusal.code, f"node {node}: {detail}")


def refusal_of(body: str) -> Refusal | None:
    """Which of ours an answer's body names, or none."""
    error = FlowerError.from_json(body)
    return None if error is None else REFUSALS.get(error.code)
