"""A site's half of the seals: which requests are the coordinator's own, for this site, and not old ones sent again.

A request that is not is refused before it is decoded, and before anything of it reaches a file. What is remembered of
the coordinator is the highest head of its audit log, run by run: its log only grows, so a request that was sealed
before one seen already is a replay, or comes of a coordinator whose log was set back; neither is answered. The very
message that was taken last may come again (a worker that was killed is given it again), a few times.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fed_diffmic.errors import MachineError, ModelFileError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.payload import Wire
from fed_diffmic.exchange.seal import FOREIGN, UNSEALED, RequestSeal, SealError, check_request, seal_reply
from fed_diffmic.files import private_folder, read_json, write_json
from fed_diffmic.provision.keys import PrivateKey, PublicKey

FOLDER = "seals"
REPEATS = 20  # more than the SuperNode gives a request to workers that end over it
SAY_AGAIN_S = 3600.0
CODES = {UNSEALED: failures.UNSEALED, FOREIGN: failures.FOREIGN}
REFUSED = frozenset({failures.UNSEALED, failures.FORGED, failures.FOREIGN, failures.STALE})


@dataclass(frozen=True)
class SiteSeals:
    """What a site needs to check requests and to seal replies.

    Attributes:
        site: its name in the coordinator's roster.
        coordinator: the coordinator's signing key, from the kit.
        signer: the site's key.
        folder: the site's own; what was seen is kept below it, and never purged.
    """

    site: str
    coordinator: PublicKey
    signer: PrivateKey
    folder: Path

    def check(self, wire: Wire) -> RequestSeal:
        """The seal of a request that is the coordinator's, for this site.

        Raises:
            SiteError: it is not.
        """
        try:
            return check_request(wire, self.coordinator, self.site)
        except SealError as error:
            raise SiteError(CODES.get(error.reason, failures.FORGED), error.cause) from error

    def follow(self, seal: RequestSeal, run: str, whole: str = "") -> None:
        """Write down where the coordinator's log stands, before the request is served.

        Args:
            whole: name, made of their seals, of the message that brought this request with others; they are sealed at
                different lines of one log, and the message may come again as one that came alone may.

        Raises:
            SiteError: it stood there, or beyond, before: an old request, or an old log.
            MachineError: what was seen cannot be read or written.
        """
        path, own = self._file(run), hashlib.sha256(seal.signed.text.encode()).hexdigest()
        name = whole or own
        before, last, times, parts = self._seen(path)
        if seal.head.length > before.length:
            times, parts = 0, [*(parts if name == last else []), own]
        # A part that was old when it came must not pass as one that comes again because the other part was new.
        elif name != last or own not in parts or times >= REPEATS:
            raise SiteError(failures.STALE, f"line {seal.head.length} of its log after line {before.length}")
        reached = max(before, seal.head, key=lambda head: head.length)
        head = {"length": reached.length, "digest": reached.digest}
        write_json(path, {"run": run, **head, "seal": name, "parts": parts, "times": times + 1}, mode=0o600)

    def seal(self, wire: Wire, asked: RequestSeal, request: str, head: Head) -> Wire:
        """The reply, sealed and encrypted to the coordinator that asked; the arrays of ``wire`` are gone afterwards.

        Args:
            wire: the encoded reply.
            asked: the request's seal.
            request: its name.
            head: of this site's audit log, with the line of the reply in it.
        """
        return seal_reply(wire, self.signer, request=request, site=self.site, head=head, reply_key=asked.reply_key)

    def _seen(self, path: Path) -> tuple[Head, str, int, list[str]]:
        """The highest head, the message that was taken last, how often, and the seals of it that were taken."""
        try:
            if not path.exists():
                return Head(), "", 0, []
            value = read_json(path)
            last = str(value["seal"])
            # A file from before messages could hold several requests names one seal, which is the message.
            parts = [str(part) for part in value.get("parts", [last])]
            return Head(int(value["length"]), str(value["digest"])), last, int(value["times"]), parts
        except (ModelFileError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise MachineError(
                f"what this site saw of the coordinator's log cannot be read: {path}",
                "Restore the file from the backup.",
            ) from error

    def _file(self, run: str) -> Path:
        """Whatever characters the run's name holds: no path in it can matter."""
        return private_folder(self.folder / FOLDER) / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}.json"


class Refusals:
    """Counts refusals over seals, which anybody may cause at will: one line for each code and hour, with the count."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._said: dict[int, float] = {}

    def facts(self, code: int) -> dict[str, Any] | None:
        """What the line of this refusal says besides its code; none: no line is due, it is counted in the next."""
        if code not in REFUSED:
            return {}
        self._counts[code] = self._counts.get(code, 0) + 1
        now = time.monotonic()
        if code in self._said and now - self._said[code] < SAY_AGAIN_S:
            return None
        self._said[code] = now
        return {"count": self._counts[code]}
