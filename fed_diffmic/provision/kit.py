"""The kit that a site starts from: who the coordinator is, where it is, what the consortium predicts.

Nothing in it is secret, everything in it is trusted: whoever exchanges a kit on its way makes the site train for a
stranger. So two people read thirty digits to each other by phone, which name the kit's content
(:meth:`Kit.fingerprint`), and a kit that follows later is signed by the key that the first one brought.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from fed_diffmic.config.checks import check_dataset
from fed_diffmic.config.network_checks import ADDRESS
from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.errors import ConfigError, CredentialError
from fed_diffmic.provision.certificates import load_certificates
from fed_diffmic.provision.credentials import read_credential
from fed_diffmic.provision.keys import (
    PrivateKey,
    PublicKey,
    decode_signature,
    digits,
    parse_public,
    public_text,
    sign,
    verifies,
)
from fed_diffmic.provision.roster import RosterEntry

_FORM = "fed_diffmic kit, version 1"
_TASKS = ("multiclass", "ordinal", "multilabel")
_AGAIN = "Ask the coordinator to send the kit again."


@dataclass(frozen=True)
class Kit:
    """What one site must know of its coordinator.

    Args:
        site: the site's name in the roster.
        institution: who runs it, as the roster says.
        role: as the roster says.
        site_key: the public key that is enrolled for it (OpenSSH text).
        address: ``host:port`` of the coordinator's public listener.
        ca: certificates of the consortium's CA, PEM; several while one follows another.
        coordinator_key: the coordinator's public signing key (OpenSSH text).
        classes: class names in the order of the outputs; none: what all sites say.
        task: what is predicted; none: what all sites say.
        seed: the run's seed, by custom also the sites' ``site.split_seed``.
        made: UTC time, ISO 8601; a later kit replaces an earlier one, never the other way round.
    """

    site: str
    institution: str
    role: str
    site_key: str
    address: str
    ca: str
    coordinator_key: str
    classes: list[str] | None
    task: str | None
    seed: int
    made: str

    def content(self) -> bytes:
        """The kit as canonical JSON: what is signed and what the fingerprint names."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def fingerprint(self) -> str:
        """The digits that two people read to each other; a kit that differs in anything has others."""
        return digits("kit", self.content())

    @property
    def certificates(self) -> list[x509.Certificate]:
        """The CA's certificates."""
        return load_certificates(self.ca.encode(), "the kit's CA")

    @property
    def signer(self) -> PublicKey:
        """The coordinator's public signing key."""
        return parse_public(self.coordinator_key, "the kit's coordinator key")

    def sealed(self, signing_key: PrivateKey) -> bytes:
        """The kit as a file: its content and the coordinator's signature.

        Raises:
            CredentialError: another key than the one that the kit names.
        """
        if public_text(signing_key.public_key()) != self.coordinator_key:
            raise CredentialError("the kit names another signing key than the one at hand", "Make the kit again.")
        signature = base64.b64encode(sign(signing_key, self.content())).decode()
        value = {"form": _FORM, "kit": asdict(self), "signature": signature}
        return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def load_kit(path: str | os.PathLike[str]) -> Kit:
    """Read a kit and check its form and its signature by the key that it names itself.

    That proves a whole file, not where it comes from: compare :attr:`Kit.fingerprint`, or the key
    with one that is already trusted (:func:`check_follows`).

    Raises:
        CredentialError: missing, not a kit, of another version, damaged.
    """
    path = Path(path)
    data = read_credential(path, "kit")
    try:
        value = json.loads(data, object_pairs_hook=_once)
        if not isinstance(value, dict) or set(value) != {"form", "kit", "signature"}:
            raise ValueError("it must hold form, kit, signature and nothing else")
        if value["form"] != _FORM:
            raise ValueError(f"its form is {value['form']!r}; this version reads {_FORM!r}")
        kit = _parse(value["kit"])
        signature = decode_signature(value["signature"])
    except (ValueError, TypeError, binascii.Error) as error:
        raise CredentialError(f"{path} is not a kit that can be used: {error}", _AGAIN) from error
    except CredentialError as error:
        raise CredentialError(f"{path} is not a kit that can be used: {error.cause}", _AGAIN) from error
    if not verifies(kit.signer, signature, kit.content()):
        raise CredentialError(f"{path} was changed after it was sealed", f"Do not use it. {_AGAIN}")
    return kit


def check_for_site(kit: Kit, entry_key: PublicKey) -> None:
    """Refuse a kit that was made for another site's key.

    Raises:
        CredentialError: it was.
    """
    if parse_public(kit.site_key, "the kit's site key") != entry_key:
        raise CredentialError(
            f"this kit is for site {kit.site!r} with another key than the one given",
            "Either it is another site's kit, or the coordinator enrolled another key than this one: compare what "
            "`fed-diffmic provision fingerprint` says of the key on both sides, by phone.",
        )


def check_follows(kit: Kit, opened: Kit) -> None:
    """Refuse a kit that does not continue the one a site has opened.

    Raises:
        CredentialError: for another site, signed by another key, or older.
    """
    if kit.site != opened.site:
        raise CredentialError(f"this kit is for site {kit.site!r}; here is site {opened.site!r}", _AGAIN)
    if kit.signer != opened.signer:
        raise CredentialError(
            "this kit is signed by another key than the coordinator's that is known here",
            "Ask the coordinator by phone whether the signing key was replaced; if so, open the kit with its digits: "
            "`--fingerprint`.",
        )
    if kit != opened and datetime.fromisoformat(kit.made) <= datetime.fromisoformat(opened.made):
        raise CredentialError(
            f"this kit is of {kit.made}, not later than the one that was opened, of {opened.made}",
            "Use the latest kit. If this is the latest (the coordinator's clock was wrong), open it with its digits, "
            "read by phone: `--fingerprint`.",
        )


def kit_for(
    entry: RosterEntry,
    *,
    address: str,
    ca: bytes,
    signing_key: PrivateKey,
    classes: list[str] | None,
    task: str | None,
    seed: int,
    made: str,
) -> Kit:
    """The kit of one site of the roster; see :class:`Kit`."""
    return Kit(
        site=entry.name,
        institution=entry.institution,
        role=entry.role,
        site_key=entry.public_key,
        address=check_address(address),
        ca=ca.decode("ascii"),
        coordinator_key=public_text(signing_key.public_key()),
        classes=classes,
        task=task,
        seed=seed,
        made=made,
    )


def check_address(address: str) -> str:
    """``address`` if it is ``host:port``.

    Raises:
        CredentialError: otherwise.
    """
    found = ADDRESS.fullmatch(address)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise CredentialError(
            f"{address!r} is not an address", "Write host:port, for example fl.example.org:9443; no https://."
        )
    return address


def _parse(value: Any) -> Kit:
    """A kit from JSON, every field of its type and meaning."""
    names = [f.name for f in fields(Kit)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"the kit must hold {', '.join(names)} and nothing else")
    for name in set(names) - {"classes", "task", "seed"}:
        text = value[name]
        if not isinstance(text, str) or not text.strip() or not (text.isprintable() or name == "ca"):
            raise ValueError(f"{name} must be a line of text")
    if type(value["seed"]) is not int or not 0 <= value["seed"] < 2**31:
        raise ValueError("seed must be a whole number from 0 to 2147483647")
    if value["task"] is not None and value["task"] not in _TASKS:
        raise ValueError(f"task must be one of {', '.join(_TASKS)} or null")
    if datetime.fromisoformat(value["made"]).tzinfo is None:
        raise ValueError("made must be a time with its zone")
    kit = Kit(**value)
    RosterEntry(kit.site, kit.site_key, kit.institution, kit.role, kit.made)
    check_address(kit.address)
    _check_classes(kit)
    if not kit.certificates or not kit.signer:
        raise ValueError("ca holds no certificate")
    return kit


def _check_classes(kit: Kit) -> None:
    names = kit.classes
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("classes must be a list of names or null")
    try:
        check_dataset(DatasetConfig(name="table", task=kit.task or "multiclass", classes=names), "consortium")
    except ConfigError as error:
        raise ValueError(error.cause) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a field is given twice")
    return value
