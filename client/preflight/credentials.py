"""What the kit brought and what was made here: CA, key, the coordinator's public key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from client.preflight.check import Check, failed, guarded, passed, warning
from fed_diffmic.config.site import CoordinatorConfig, SiteConfig
from fed_diffmic.errors import CredentialError, FedDiffmicError
from fed_diffmic.provision.certificates import days_left, load_certificates
from fed_diffmic.provision.credentials import is_locked
from fed_diffmic.provision.keys import PrivateKey, fingerprint, load_private, load_public, public_text
from fed_diffmic.provision.kit import Kit, load_kit
from fed_diffmic.provision.site import OPENED

SOON_DAYS = 60


def read_key(way: CoordinatorConfig) -> PrivateKey | None:
    """The site's private key, or none where it cannot be used (:func:`check_credentials` says why)."""
    if way.key is None:
        return None
    try:
        return load_private(way.key, way.key_passphrase)
    except FedDiffmicError:
        return None


def read_kit(way: CoordinatorConfig) -> Kit | None:
    """The kit that was opened beside ``coordinator.ca``, or none."""
    if way.ca is None:
        return None
    try:
        return load_kit(Path(way.ca).parent / OPENED)
    except CredentialError:
        return None


def check_credentials(config: SiteConfig) -> Iterator[Check]:
    """CA, key and signing key: there, of the right form, not expired, those of the opened kit."""
    way = config.coordinator
    if way.insecure:
        yield warning("credentials.key", "coordinator.insecure=true: no key is used", "For trials on one machine only.")
        return
    yield from guarded("credentials.ca", lambda: [_ca(way)])
    yield from guarded("credentials.key", lambda: [_key(way)])
    yield from guarded("credentials.coordinator", lambda: [_coordinator(way)])
    yield _kit(config)


def _ca(way: CoordinatorConfig) -> Check:
    if way.ca is None:
        return failed(
            "credentials.ca",
            "coordinator.ca is not set",
            "Open the kit: `fed-diffmic provision open-kit`.",
            exit_code=2,
        )
    found = load_certificates(_bytes(way.ca), "coordinator.ca")
    if not any(_is_ca(certificate) for certificate in found):
        return failed(
            "credentials.ca", "coordinator.ca holds no certificate of a CA", "Use ca.crt of the kit.", exit_code=2
        )
    days = max(days_left(certificate) for certificate in found)
    if days <= 0:
        return failed("credentials.ca", "the CA in coordinator.ca has expired", "Ask for a new kit.", exit_code=2)
    if days < SOON_DAYS:
        return warning("credentials.ca", f"the CA expires in {days:.0f} days", "Ask for a new kit.", days=round(days))
    return passed("credentials.ca", f"the CA is good for {days:.0f} days", days=round(days))


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CredentialError(f"coordinator.ca {path} cannot be read: {error.strerror}", "Check the path.") from error


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False


def _key(way: CoordinatorConfig) -> Check:
    if way.key is None:
        return failed(
            "credentials.key",
            "coordinator.key is not set",
            "Make one here: `fed-diffmic provision site-key`.",
            exit_code=2,
        )
    key = load_private(way.key, way.key_passphrase)
    said = fingerprint(key.public_key())
    if way.key_passphrase is not None and not is_locked(Path(way.key)):
        return warning(
            "credentials.key",
            f"coordinator.key_passphrase is set, but the key lies open (its digits: {said})",
            f"Lock it: `fed-diffmic provision passphrase {way.key} --new {way.key_passphrase}`.",
        )
    return passed("credentials.key", f"the key can be used and is its owner's alone; it reads {said}", fingerprint=said)


def _coordinator(way: CoordinatorConfig) -> Check:
    if way.public_key is None:
        return failed(
            "credentials.coordinator",
            "coordinator.public_key is not set: whether a request is the coordinator's cannot be verified",
            "Name coordinator.pub, which lies beside ca.crt where the kit was opened; "
            "`fed-diffmic provision open-kit --update` writes it again.",
            exit_code=2,
        )
    return passed(
        "credentials.coordinator", f"the coordinator's signing key reads {fingerprint(load_public(way.public_key))}"
    )


def _kit(config: SiteConfig) -> Check:
    """Whether configuration and key are those of the opened kit."""
    way = config.coordinator
    kit, key = read_kit(way), read_key(way)
    if kit is None:
        return warning("credentials.kit", "there is no opened kit beside coordinator.ca to compare with")
    wrong = []
    if key is not None and public_text(key.public_key()) != kit.site_key:
        wrong.append("the key is another than the one that was enrolled")
    pairs = (("site.name", config.site.name, kit.site), ("coordinator.address", way.address, kit.address))
    wrong += [f"{name} is {here}, the kit says {said}" for name, here, said in pairs if here != said]
    if wrong:
        return failed("credentials.kit", "; ".join(wrong), "Use what the kit says, or ask for a new one.", exit_code=2)
    return passed("credentials.kit", "name, address and key are those of the kit")
