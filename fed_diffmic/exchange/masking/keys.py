"""A site's fresh secrets of one attempt, their signed public halves, and what two sites derive from each other's.

Every attempt has secrets of its own: two X25519 keys (one for what is sealed, one for masks) and a seed of the site's
own mask. The public halves, and a digest that commits the site to its seed, are signed together with the session by the
key that the site is enrolled with: a coordinator can neither make up a site nor use what belonged to another round.
Keys of pairs are derived by HKDF-SHA256 from the X25519 secret over the group's digest (and through it the session:
run, stage, round, attempt), the purpose and both names.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.masking.session import (
    FORGED,
    MALFORMED,
    OTHER,
    STRANGER,
    VERSION,
    MaskingError,
    Session,
    parse_text,
)
from fed_diffmic.exchange.payload import text_digest
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.provision.keys import PrivateKey, PublicKey, decode_signature, sign, verifies

MASK, SEAL, SELF, NOBODY = "mask", "seal", "self", "nobody"
_ADVERTISEMENT, _SET = b"fed_diffmic masking keys\0", b"fed_diffmic masking set\0"
_SEED = b"fed_diffmic masking seed\0"


@dataclass(frozen=True)
class Secrets:
    """What a site keeps to itself in one attempt; raw bytes, 32 each.

    Attributes:
        channel: private half of the key that shares are sealed with.
        mask: private half of the key that pairs' masks come from; shared among the sites, in case it drops out.
        seed: of the site's own mask; shared likewise, in case it does not.
    """

    channel: bytes
    mask: bytes
    seed: bytes

    @classmethod
    def fresh(cls) -> Secrets:
        """From the operating system."""
        return cls(*(os.urandom(32) for _ in range(3)))

    def to_json(self) -> dict[str, str]:
        """For the site's own store."""
        return {name: value.hex() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, str]) -> Secrets:
        """Inverse of :meth:`to_json`."""
        return cls(*(bytes.fromhex(value[name]) for name in ("channel", "mask", "seed")))


@dataclass(frozen=True)
class Advertisement:
    """What a site signed of its secrets.

    Attributes:
        session: digest of the session.
        site: name.
        channel: public half of the key for sealed shares, raw.
        mask: public half of the key for masks, raw.
        seed: digest of the seed (hexadecimal): it cannot be another afterwards.
        signed: text and signature.
    """

    session: str
    site: str
    channel: bytes
    mask: bytes
    seed: str
    signed: Signed


def advertise(session: Session, site: str, secrets: Secrets, signer: PrivateKey) -> Signed:
    """The public halves of a site's secrets, signed with its enrolled key for this one attempt."""
    value = {
        "v": VERSION,
        "session": session.digest,
        "from": site,
        "channel": _public_text(secrets.channel),
        "mask": _public_text(secrets.mask),
        "seed": seed_digest(secrets.seed, session, site),
    }
    text = canonical(value)
    return Signed(text, _signature(signer, _ADVERTISEMENT, text))


def read_advertisement(signed: Signed, session: Session, site: str, key: PublicKey | None) -> Advertisement:
    """A site's advertisement, if the key that the roster names signed it for this attempt.

    Args:
        signed: as it came.
        session: of the sum.
        site: whose it is said to be.
        key: of that site in the roster; none: the roster has no such site.

    Raises:
        MaskingError: it is not.
    """
    if key is None:
        raise MaskingError(STRANGER, f"the site {site} is not in the roster")
    if not _holds(key, _ADVERTISEMENT, signed.text, signed.signature):
        raise MaskingError(FORGED, f"the keys said to be those of {site} are not signed by its enrolled key")
    return parse_advertisement(signed, session, site)


def parse_advertisement(signed: Signed, session: Session, site: str) -> Advertisement:
    """An advertisement whose signature was verified before.

    Raises:
        MaskingError: it is another site's, or one of another session.
    """
    value = parse_text(signed.text, {"v", "session", "from", "channel", "mask", "seed"})
    if value["from"] != site or value["session"] != session.digest:
        raise MaskingError(OTHER, f"the keys of {site} are another site's, or those of another round, attempt or model")
    channel, mask = (_public_raw(value[name]) for name in ("channel", "mask"))
    if not isinstance(value["seed"], str):
        raise MaskingError(MALFORMED, "an advertisement is not one")
    return Advertisement(value["session"], site, channel, mask, value["seed"], signed)


def seed_digest(seed: bytes, session: Session, site: str) -> str:
    """What commits a site to its seed; 32 random bytes are not guessed from it."""
    return hashlib.sha256(_SEED + canonical({"session": session.digest, "site": site}).encode() + seed).hexdigest()


def public_of(private: bytes) -> bytes:
    """Raw public half of a raw private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def group_digest(session: Session, texts: Mapping[str, str]) -> str:
    """Names a group by its session and the advertised text of every site in it.

    Signatures are left out: anybody can write an ECDSA signature in a second way.
    """
    return text_digest(canonical({"session": session.digest, "texts": dict(texts)}))


def mask_key(private: bytes, other: bytes, group: str, one: str, two: str) -> bytes:
    """Key of the mask that two sites have in common; the same at both.

    Args:
        private: one's own key for masks, raw.
        other: the other's public key for masks, raw.
        group: digest of the group.
        one: a site's name.
        two: the other's, in either order.
    """
    return _derived(private, other, [MASK, group, *sorted((one, two))])


def seal_key(private: bytes, other: bytes, group: str, sender: str, recipient: str) -> bytes:
    """Key of the one message of shares that ``sender`` seals for ``recipient``; the same at both."""
    return _derived(private, other, [SEAL, group, sender, recipient])


def self_key(seed: bytes, group: str, site: str) -> bytes:
    """Key of a site's own mask."""
    return _expanded(seed, [SELF, group, site])


def nobody_key(channel: bytes, group: str, site: str) -> bytes:
    """Key of a mask that nobody can lift: the private half that it comes from is never shared."""
    return _expanded(channel, [NOBODY, group, site])


def sign_set(text: str, signer: PrivateKey) -> str:
    """A site's signature over a set of survivors, base64."""
    return _signature(signer, _SET, text)


def signed_set(text: str, signature: str, key: PublicKey) -> bool:
    """Whether a site's key signed that set."""
    return _holds(key, _SET, text, signature)


def _derived(private: bytes, other: bytes, names: list[str]) -> bytes:
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # a point of small order gives no secret
        raise MaskingError(FORGED, "a site's key is one that gives no secret") from error
    return _expanded(secret, names)


def _expanded(secret: bytes, names: list[str]) -> bytes:
    info = canonical({"fed_diffmic masking": VERSION, "names": names}).encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _signature(signer: PrivateKey, domain: bytes, text: str) -> str:
    return base64.b64encode(sign(signer, domain + text.encode())).decode()


def _holds(key: PublicKey, domain: bytes, text: object, signature: object) -> bool:
    if not isinstance(text, str) or not isinstance(signature, str):
        return False
    try:
        return verifies(key, decode_signature(signature), domain + text.encode())
    except ValueError:
        return False


def _public_text(private: bytes) -> str:
    return base64.b64encode(public_of(private)).decode()


def _public_raw(text: object) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise MaskingError(MALFORMED, "an advertised key is not one")
    return raw
