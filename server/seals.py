"""The coordinator's half of the seals: every request is signed, every reply is opened with the run's own key.

The reply key belongs to one run. Its private half lies in the run's folder, so that a resumed run can open what was
sealed before, and is removed when the final model is there: replies that somebody kept on their way cannot be read
any more then, not even with every other key of the coordinator.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fed_diffmic.errors import CredentialError
from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.envelope import new_reply_key, reply_key_text
from fed_diffmic.exchange.payload import Limits, Wire
from fed_diffmic.exchange.seal import FORGED, ReplySeal, SealError, open_reply, seal_request
from fed_diffmic.files import write_new
from fed_diffmic.provision.credentials import read_credential
from fed_diffmic.provision.keys import PrivateKey, PublicKey

REPLY_KEY = "reply.key"


@dataclass(frozen=True)
class Seals:
    """What seals requests and opens replies.

    Attributes:
        signer: the coordinator's signing key.
        reply_key: of the run.
        key_of: the key of an admitted site by its name in the roster; none: it is not (any more) admitted.
    """

    signer: PrivateKey
    reply_key: X25519PrivateKey
    key_of: Callable[[str], PublicKey | None]

    def seal(self, wire: Wire, *, to: str, head: Head) -> Wire:
        """The request under the coordinator's seal.

        Args:
            to: the site's name in the roster.
            head: of the coordinator's own log, the line of the request in it.
        """
        return seal_request(wire, self.signer, to=to, head=head, reply_key=reply_key_text(self.reply_key))

    def open(self, wire: Wire, *, request: str, site: str, limits: Limits) -> tuple[Wire, ReplySeal]:
        """A reply as the site encoded it, and its seal; the arrays of ``wire`` are gone afterwards.

        Args:
            request: name of the request that was sent.
            site: whom it was sent to, by its name in the roster.
            limits: what is expected at most.

        Raises:
            SealError: it is not that site's answer to that request.
            PayloadError: anything else is wrong with it.
        """
        key = self.key_of(site)
        if key is None:
            raise SealError(FORGED, "the roster names no key of the site")
        return open_reply(wire, self.reply_key, key, request=request, site=site, limits=limits)


def run_reply_key(folder: Path) -> X25519PrivateKey:
    """The run's reply key; made (0600) where there is none yet.

    Raises:
        CredentialError: it is damaged, or others may read it.
        MachineError: it cannot be written.
    """
    path = folder / REPLY_KEY
    if not path.exists():
        write_new(path, base64.b64encode(new_reply_key().private_bytes_raw()) + b"\n", mode=0o600)
    data = read_credential(path, "reply key of the run", private=True)
    try:
        return X25519PrivateKey.from_private_bytes(base64.b64decode(data.strip(), validate=True))
    except ValueError as error:
        raise CredentialError(
            f"the reply key of the run {path} is damaged",
            "Remove it and resume: another one is made, and sites seal what they kept again.",
        ) from error


def forget_reply_key(folder: Path) -> None:
    """The run is over: what was sealed to it cannot be opened any more."""
    (folder / REPLY_KEY).unlink(missing_ok=True)
