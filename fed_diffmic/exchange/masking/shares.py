"""Shares of a site's two secrets, sealed to each other site of its group; the coordinator only carries them.

AES-256-GCM under a key that seals this one message (:func:`fed_diffmic.exchange.masking.keys.seal_key`), so the nonce
may be zero. The group, the sender and the recipient are associated data as well as part of the key: what was sealed for
one does not open at another, nor among sites that were told of different groups.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.masking.session import BAD_SHARE, MaskingError
from fed_diffmic.exchange.masking.shamir import PRIME, SECRET_BYTES, share_threshold, split

WIDTH = (PRIME.bit_length() + 7) // 8
_NONCE = bytes(12)
_SEALED = 2 * WIDTH + 16


@dataclass(frozen=True)
class SharePair:
    """What one site holds of another's secrets: it gives one of the two at most.

    Attributes:
        seed: share of the seed of its own mask, given if its words are in the sum.
        mask: share of its key for masks, given if they are not.
    """

    seed: int
    mask: int

    def to_json(self) -> list[str]:
        """Both in hexadecimal, for the site's own store."""
        return [f"{self.seed:x}", f"{self.mask:x}"]


def share_secrets(seed: bytes, mask: bytes, places: dict[str, int]) -> dict[str, SharePair]:
    """Both secrets shared among a group; each site's pair.

    Args:
        seed: 32 bytes.
        mask: 32 bytes.
        places: of the sites of the group, the sharing one included.
    """
    if len(seed) != SECRET_BYTES or len(mask) != SECRET_BYTES:
        raise ValueError("secrets have 32 bytes")
    threshold = share_threshold(len(places))
    seeds, masks = (split(secret, threshold, places.values()) for secret in (seed, mask))
    return {name: SharePair(seeds[place], masks[place]) for name, place in places.items()}


def seal_shares(pair: SharePair, key: bytes, *, group: str, sender: str, recipient: str) -> str:
    """A pair of shares as it travels, base64."""
    plain = pair.seed.to_bytes(WIDTH, "big") + pair.mask.to_bytes(WIDTH, "big")
    sealed = AESGCM(key).encrypt(_NONCE, plain, _associated(group, sender, recipient))
    return base64.b64encode(sealed).decode()


def open_shares(sealed: object, key: bytes, *, group: str, sender: str, recipient: str) -> SharePair:
    """Inverse of :func:`seal_shares`.

    Raises:
        MaskingError: it was sealed for somebody else, in another group, or was changed; or it holds no shares: whoever
            gave it on as one would be taken for the one that made it up.
    """
    try:
        data = base64.b64decode(sealed, validate=True) if isinstance(sealed, str) else b""
        if len(data) != _SEALED:
            raise ValueError("of another length")
        plain = AESGCM(key).decrypt(_NONCE, data, _associated(group, sender, recipient))
    except (ValueError, InvalidTag) as error:
        raise MaskingError(BAD_SHARE, f"what {sender} shared was not sealed for this site in this group") from error
    pair = SharePair(int.from_bytes(plain[:WIDTH], "big"), int.from_bytes(plain[WIDTH:], "big"))
    if max(pair.seed, pair.mask) >= PRIME:
        raise MaskingError(BAD_SHARE, f"what {sender} shared is no share")
    return pair


def _associated(group: str, sender: str, recipient: str) -> bytes:
    return canonical({"group": group, "from": sender, "to": recipient}).encode()
