"""What a site's rules do about an update that will leave under masks: it is judged before, as it would leave without.

Under masks nobody can judge it, so :class:`Clearance` remembers for one task that it was done, and nothing masked
leaves without. A reply that was kept from before (the very same request again) was judged when it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

from client.site import Site
from client.studies import kept_study
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.floors import Basis
from fed_diffmic.exchange.masking.company import participants
from fed_diffmic.exchange.masking.requests import MASKED, NOISED
from fed_diffmic.exchange.masking.session import MaskingError, Session
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import Denial, SitePolicy
from fed_diffmic.exchange.policy_masking import FIGURE_REPLIES, noised_beyond


def hold_to_study(site: Site, request: Payload) -> None:
    """Let masked sums be of no other sites than the study of the run names; where it names none: of accepted ones.

    How many have to sign a set is counted over them (:func:`fed_diffmic.exchange.masking.company.signers`). All sites
    of a session hold the same study, whose digest is part of it.

    Raises:
        MachineError: what the site agreed to cannot be read.
    """
    header = request.header
    if site.masking is None or "stage" not in header:
        return
    study = kept_study(site.folder, header["run"])
    if study is None or study.document["sites"] is None:
        return
    everyone, drawn = set(study.document["sites"]), None
    if purpose_of(request) == "train":  # all are asked for figures
        drawn = participants(study.spec(), everyone, header["stage"], header["round"])
    site.masking.among = frozenset(everyone if drawn is None else drawn)


def purpose_of(request: Payload) -> str:
    """What the sum is of that a request belongs to; that of training where it does not say so in a known way."""
    try:
        return Session.parse(request.header["session"]).purpose if request.kind == "mask" else request.kind
    except MaskingError:
        return "train"


@dataclass
class Clearance:
    """Of one task.

    Attributes:
        policy: of the site.
        given: whether the update may leave under masks.
    """

    policy: SitePolicy
    given: bool = False

    def judge(self, plain: Payload, request: Payload, basis: Basis | None) -> Payload:
        """Judge an update by every rule on what leaves; of words with a share of noise, whether noise covers the stage.

        Figures are judged as they would leave by themselves: named, and over enough images and patients.

        Args:
            plain: the update, or the reply with figures, as it would leave without masks.
            request: with the whole weights.
            basis: images and patients behind it.

        Returns:
            What may be masked: the same, or figures in which counts of few images were moved.

        Raises:
            SiteError: it may not leave.
        """
        if plain.kind in FIGURE_REPLIES:
            summed = self.policy.summed(plain, basis)
            if isinstance(summed, Denial):
                raise SiteError(summed.code, summed.detail)
            plain = summed
        elif NOISED in plain.tensors:
            if uncovered := noised_beyond(plain, self.policy.protected):
                raise SiteError(failures.POLICY_PRIVACY, uncovered)
        elif isinstance(said := self.policy.release(plain, request.tensors, basis), Denial):
            raise SiteError(said.code, said.detail)
        self.given = True
        return plain

    def check(self, reply: Payload, request: Payload) -> None:
        """What leaves is masked where that was asked for, and was judged; or neither.

        Raises:
            SiteError: an update or a figure would leave as it is in a masked run, or unjudged.
        """
        if reply.kind not in ("train.reply", *FIGURE_REPLIES):
            return
        masked = MASKED in request.header
        if masked != (MASKED in reply.tensors) or (masked and not self.given):
            said = "what is asked for under masks would leave as it is, or without being judged"
            raise SiteError(failures.MASKING, said)
