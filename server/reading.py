"""One reply of one site, read and judged: whatever is in it, that site is refused and nobody else's run ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.audit_facts import anchor_of, payload_facts
from fed_diffmic.exchange.payload import Payload, PayloadError, Wire, decode
from fed_diffmic.exchange.screening import Expected, Refusal, decoded, screen
from fed_diffmic.exchange.seal import SealError
from fed_diffmic.transport.messages import failure_of

Opened = Callable[[], tuple[Wire, Mapping[str, str]]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """What a reply was found to be.

    Attributes:
        payload: with its tensors decoded; none: it could not be read.
        nbytes: of tensors as they travelled.
        refusal: why it is not taken; none: it is good.
        digest: of the header as it travelled.
        head: of the site's chain.
        facts: what the audit log says of it.
        proof: what its seal adds to that.
    """

    payload: Payload | None = None
    refusal: Refusal | None = None
    nbytes: int = 0
    digest: str = ""
    head: Head | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, str] = field(default_factory=dict)


def read_reply(reply: Message, expected: Expected, site: str, opened: Opened) -> Read | tuple[int, str]:
    """A reply, judged; or the code and the sentence of a failure.

    All that looks at what a site sent happens in here, and nothing that can fail for another reason (the log's disk,
    the connection). So an exception in here is the site's doing: it is refused, with a line, and the run goes on.

    Args:
        expected: what a good reply looks like.
        site: whom the request was for.
        opened: the reply as its site encoded it, and what its seal says; raises SealError where it is another's.
    """
    try:
        failure = failure_of(reply)
        if failure is not None:
            return failure
        wire, proof = opened()
        travelled = decode(wire, expected.limits)
        head, facts = anchor_of(travelled.header), payload_facts(travelled, wire.digest)
        payload, refusal = decoded(travelled, expected)
        refusal = refusal or screen(payload, expected)
        return Read(payload, refusal, travelled.tensor_bytes, wire.digest, head, facts, proof)
    except SealError:
        return Read(refusal=Refusal("seal"))
    except PayloadError:
        return Read(refusal=Refusal("malformed"))
    except Exception as error:
        logger.warning("the reply of %s is refused: reading it failed with %s", site, type(error).__name__)
        return Read(refusal=Refusal("malformed"))
