"""What a site's rules do about an update that will leave under masks: it is judged before, as it would leave without.

Under masks nobody can judge it, so :class:`Clearance` remembers for one task that it was done, and nothing masked
leaves without. A reply that was kept from before (the very same request again) was judged when it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.floors import Basis
from fed_diffmic.exchange.masking.requests import MASKED, NOISED
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.exchange.policy import Denial, SitePolicy
from fed_diffmic.exchange.policy_masking import noised_beyond


@dataclass
class Clearance:
    """Of one task.

    Attributes:
        policy: of the site.
        given: whether the update may leave under masks.
    """

    policy: SitePolicy
    given: bool = False

    def judge(self, plain: Payload, request: Payload, basis: Basis | None) -> None:
        """Judge an update by every rule on what leaves; of words with a share of noise, whether noise covers the stage.

        Args:
            plain: the update as it would leave without masks.
            request: with the whole weights.
            basis: images and patients behind it.

        Raises:
            SiteError: it may not leave.
        """
        if NOISED in plain.tensors:
            if beyond := noised_beyond(plain, self.policy.protected):
                raise SiteError(failures.POLICY_PRIVACY, beyond)
        elif isinstance(said := self.policy.release(plain, request.tensors, basis), Denial):
            raise SiteError(said.code, said.detail)
        self.given = True

    def check(self, reply: Payload, request: Payload) -> None:
        """What leaves is masked where that was asked for, and was judged; or neither.

        Raises:
            SiteError: an update would leave as it is in a masked run, or unjudged.
        """
        if reply.kind != "train.reply":
            return
        masked = MASKED in request.header
        if masked != (MASKED in reply.tensors) or (masked and not self.given):
            raise SiteError(failures.MASKING, "an update would leave as it is, or under masks without being judged")
