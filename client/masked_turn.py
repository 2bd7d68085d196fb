"""A site's turn in a masked sum: whether a session is of the very task that came, and words under masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.site import Site
from fed_diffmic.exchange.failures import BAD_REQUEST, FEW_PEERS, MASKING, PEERS, SiteError
from fed_diffmic.exchange.masking.requests import MASKED, task_digest
from fed_diffmic.exchange.masking.session import FEW, FINISHED, STRANGER, MaskingError, Session
from fed_diffmic.exchange.masking.site import MaskingSite

TURN: dict[str, type] = {"session": str, "sealed": dict}
"""What a request says of a masked sum whose form the site knows by itself."""
_CODES = {STRANGER: PEERS, FEW: FEW_PEERS}


@dataclass(frozen=True)
class WordForm:
    """How a site's words are written, as far as a session says it.

    Attributes:
        digest: names the form.
        bits, fraction, length: of the words.
    """

    digest: str
    bits: int
    fraction: int
    length: int


@dataclass(frozen=True)
class Turn:
    """A site's turn in a masked sum: a session that is of this very task, in which it may mask.

    Attributes:
        part: of the site.
        session: of the sum.
        sealed: what the other sites sealed for this one.
    """

    part: MaskingSite
    session: Session
    sealed: Mapping[str, str]

    def sites(self, *, anew: bool = False) -> int:
        """How many sites share the sum's secrets, if words may be masked now.

        Args:
            anew: none may have been masked in this attempt before.

        Raises:
            SiteError: they may not.
        """
        try:
            return self.part.may_mask(self.session, self.sealed, anew=anew)
        except MaskingError as error:
            raise refused(error) from error

    def masked(self, words: np.ndarray | None) -> np.ndarray:
        """Words under masks, as the signed type that a payload carries.

        Args:
            words: none: the site has none, and nobody is to read the sum
                (:meth:`fed_diffmic.exchange.masking.site.MaskingSite.mask`).

        Raises:
            SiteError: the site does not go on with the sum.
        """
        try:
            found = self.part.mask(self.session, self.sealed, words)
        except MaskingError as error:
            raise refused(error) from error
        bits = self.session.bits
        return found.view(f"<i{bits // 8}").astype(f"int{bits}", copy=False)


def turn_of(site: Site, header: Mapping[str, Any], form: WordForm, purpose: str = "train") -> Turn:
    """A site's turn in a sum whose form it knows by itself; nothing is changed or computed.

    Args:
        purpose: of the sum.

    Raises:
        SiteError: the session is not that of the model, settings and form that are known here, or it is not the time.
    """
    return turn_in(site, header, session_of(header, asked_fields(header, TURN)["session"], (purpose,)), form)


def turn_in(site: Site, header: Mapping[str, Any], session: Session, form: WordForm) -> Turn:
    """As :func:`turn_of`, of a session that was read already."""
    said = (session.task, session.bits, session.fraction, session.length)
    if said != (task_digest(header, form.digest), form.bits, form.fraction, form.length):
        raise SiteError(MASKING, "the session is that of another model, other settings or another form of words")
    return Turn(part_of(site), session, header[MASKED]["sealed"])


def asked_fields(header: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    """What a request says of its masked sum.

    Raises:
        SiteError: other fields, or of other types.
    """
    asked: dict[str, Any] = header[MASKED]
    if set(asked) != set(fields) or any(type(asked[name]) is not kind for name, kind in fields.items()):
        raise SiteError(BAD_REQUEST)
    return asked


def refused(error: MaskingError) -> SiteError:
    """What the coordinator is told of a step that the site does not do; the whole sentence stays in the site's log."""
    return SiteError(_CODES.get(error.reason, MASKING), f"{error.reason}: {error.cause}")


def session_of(header: Mapping[str, Any], text: str, purposes: Collection[str] = ("train",)) -> Session:
    """The session that a request names, if it is of the request's own round.

    Args:
        purposes: of which it may be.

    Raises:
        SiteError: it is none, or of another.
    """
    try:
        session = Session.parse(text)
    except MaskingError as error:
        raise SiteError(BAD_REQUEST) from error
    place = (*(header[n] for n in ("run", "arm", "stage")), session.purpose)
    known = session.purpose in purposes and (session.purpose in FINISHED) == (session.round == 0)
    if not known or session.place != place or session.round != header["round"]:
        raise SiteError(BAD_REQUEST)
    return session


def part_of(site: Site) -> MaskingSite:
    """The site's part.

    Raises:
        SiteError: it has none: it holds no roster of the other sites' keys.
    """
    if site.masking is None:
        raise SiteError(PEERS, "this site's people accepted no other site's key: `fed-diffmic provision peers`")
    return site.masking
