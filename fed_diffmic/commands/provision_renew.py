"""``fed-diffmic provision renew``: what expires is replaced, and a key that may have leaked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import (
    DIGITS,
    add_config,
    add_issue,
    confirm_key,
    coordinator_config,
    roster_path,
    until,
)
from fed_diffmic.commands.provision_passphrase import add_passphrase

if TYPE_CHECKING:
    from fed_diffmic.commands import Add


def register(add: Add) -> None:
    """Add the commands below ``provision renew``."""
    server = add("server", _renew_server, "the coordinator's certificate: same key, same names (or more)")
    server.add_argument("folder", type=Path, metavar="FOLDER", help="of the coordinator")
    add_issue(server)
    add_passphrase(server, "opens server.key, if it is locked")

    ca = add("ca", _renew_ca, "a longer life for the CA: same key; new kits follow")
    ca.add_argument("folder", type=Path, metavar="CA_FOLDER")
    ca.add_argument("--days", type=float, default=3650, metavar="N", help="valid for, from now (3650)")
    add_passphrase(ca, "opens ca.key, if it is locked")

    trust = add("trust", _renew_trust, "which CAs the coordinator's next kits tell sites to trust")
    trust.add_argument("folder", type=Path, metavar="FOLDER", help="of the coordinator")
    which = trust.add_mutually_exclusive_group(required=True)
    which.add_argument("--ca", type=Path, metavar="CA_FOLDER", help="trust it too, or its renewed certificate")
    which.add_argument("--drop", type=Path, metavar="CA_FOLDER", help="no longer")

    site = add("site", _renew_site, "a new key for a site; the old one is revoked")
    site.add_argument("name", metavar="SITE")
    site.add_argument("--key", type=Path, required=True, metavar="FILE.pub", help="the site's new public key")
    site.add_argument("--reason", default="replaced by a new key", metavar="TEXT", help="kept in the roster")
    site.add_argument("--fingerprint", metavar="DIGITS", help=DIGITS)
    add_config(site)


def _renew_server(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.authority import Authority
    from fed_diffmic.provision.certificates import server_names
    from fed_diffmic.provision.coordinator import renew_server

    authority = Authority.load(arguments.ca, arguments.ca_passphrase_file)
    certificate = renew_server(
        arguments.folder,
        authority,
        arguments.name,
        arguments.address,
        arguments.days,
        arguments.passphrase_file,
    )
    names, addresses = server_names(certificate)
    print(f"server.crt names {', '.join([*names, *addresses])}; valid until {until(certificate)}")
    print("Restart the coordinator to use it. Sites need nothing new.")
    return 0


def _renew_ca(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.authority import Authority

    authority = Authority.load(arguments.folder, arguments.passphrase_file).renew(arguments.days)
    print(f"ca.crt is valid until {until(authority.certificate)}; what it issued before stays valid.")
    print("Next: fed-diffmic provision renew trust FOLDER --ca CA_FOLDER, then a new kit for each site.")
    return 0


def _renew_trust(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.certificates import load_certificate
    from fed_diffmic.provision.coordinator import distrust, trust

    change, source = (trust, arguments.ca) if arguments.ca is not None else (distrust, arguments.drop)
    for ca in change(arguments.folder, load_certificate(source / "ca.crt")):
        print(f"trusted: {ca.subject.rfc4514_string().removeprefix('CN=')}, until {until(ca)}")
    print("Next: a new kit for each site (fed-diffmic provision kit; at the site: open-kit --update).")
    return 0


def _renew_site(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.keys import load_public, public_text
    from fed_diffmic.provision.roster import Roster, changing

    path = roster_path(coordinator_config(arguments))
    key = load_public(arguments.key)
    Roster.load(path).rekey(arguments.name, public_text(key), arguments.reason)  # before the call
    confirm_key(key, arguments.fingerprint, arguments.name)
    with changing(path):
        Roster.load(path).rekey(arguments.name, public_text(key), arguments.reason).save(path)
    print(f"{arguments.name} is known by its new key; the old one is refused from now on.")
    print("Next: a new kit for the site; it opens it with the new key: open-kit --update.")
    return 0
