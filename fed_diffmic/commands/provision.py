"""``fed-diffmic provision``: who may take part. What the commands do is in :mod:`fed_diffmic.provision`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands import provision_passphrase, provision_renew
from fed_diffmic.commands.provision_parts import (
    DIGITS,
    add_config,
    add_issue,
    asked,
    below,
    confirm_key,
    coordinator_config,
    count_sites,
    roster_path,
    until,
    warn_of,
)
from fed_diffmic.commands.provision_passphrase import add_passphrase
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.provision.kit import Kit

_ABOUT = """Who may take part. In this order, docs/provisioning.md shows each step:

  coordinator   fed-diffmic provision ca CA_FOLDER
  coordinator   fed-diffmic provision server FOLDER --ca CA_FOLDER --name fl.example.org
  site          fed-diffmic provision site-key FOLDER/site.key
  coordinator   fed-diffmic provision enrol SITE --key site.key.pub --institution NAME --config FOLDER/server.yaml
  coordinator   fed-diffmic provision kit SITE --out SITE.kit --config FOLDER/server.yaml
  site          fed-diffmic provision open-kit SITE.kit --key FOLDER/site.key --folder FOLDER
"""


def register(add: Add) -> None:
    """Add ``provision`` and the commands below it."""
    provision = add("provision", None, "who may take part: CA, certificates, keys, roster, kits")
    provision.description = _ABOUT
    add_below = below(provision)
    _register_coordinator(add_below)
    _register_site(add_below)
    provision_passphrase.register(add_below)
    renew = add_below("renew", None, "replace what expires, or a key that may have leaked")
    provision_renew.register(below(renew))


def _register_coordinator(add: Add) -> None:
    ca = add("ca", _ca, "make the consortium's certificate authority (coordinator, once)")
    ca.add_argument("folder", type=Path, metavar="FOLDER", help="new; keep it off the coordinator if you can")
    ca.add_argument("--name", default="fed_diffmic consortium", metavar="TEXT", help="of the consortium")
    ca.add_argument("--days", type=float, default=3650, metavar="N", help="valid for (3650)")
    add_passphrase(ca, "locks ca.key")

    server = add("server", _server, "make what a coordinator starts from (coordinator, once)")
    server.add_argument("folder", type=Path, metavar="FOLDER", help="new")
    add_issue(server)
    server.add_argument("--port", type=int, default=9443, metavar="N", help="public port (9443)")
    server.add_argument(
        "--bind", default="127.0.0.1", metavar="IP", help="what it listens on: 0.0.0.0 for every network (127.0.0.1)"
    )
    add_passphrase(server, "locks server.key and signing.key; server.yaml names it")

    enrol = add("enrol", _enrol, "admit a site by its public key (coordinator)")
    enrol.add_argument("name", metavar="SITE", help="its name in every log and table")
    enrol.add_argument("--key", type=Path, required=True, metavar="FILE.pub", help="the site's public key")
    enrol.add_argument("--institution", required=True, metavar="TEXT", help="who runs the site")
    enrol.add_argument(
        "--role", default="train", metavar="ROLE", help="train: trains and evaluates; the only one so far"
    )
    enrol.add_argument(
        "--max-images", type=int, metavar="N", help="refuse it if it says that it has more images (train, val and test)"
    )
    enrol.add_argument("--fingerprint", metavar="DIGITS", help=DIGITS)
    add_config(enrol)

    kit = add("kit", _kit, "what a site starts from, sealed (coordinator)")
    kit.add_argument("name", metavar="SITE", help="a site of the roster")
    kit.add_argument("--out", type=Path, required=True, metavar="FILE", help="new")
    kit.add_argument("--address", metavar="HOST:PORT", help="by which it reaches you (the certificate's first name)")
    add_config(kit)

    roster = add("roster", _roster, "who is admitted, who no longer, what expires (coordinator)")
    roster.add_argument("--json", action="store_true", help="for programs")
    add_config(roster)

    revoke = add("revoke", _revoke, "refuse a site from now on, mid-run too (coordinator)")
    revoke.add_argument("name", metavar="SITE")
    revoke.add_argument("--reason", required=True, metavar="TEXT", help="kept in the roster")
    add_config(revoke)


def _register_site(add: Add) -> None:
    key = add("site-key", _site_key, "make a site's key, at the site; only FILE.pub travels")
    key.add_argument("file", type=Path, metavar="FILE", help="new; FILE.pub is written beside it")
    add_passphrase(key, "locks the key")

    opened = add("open-kit", _open_kit, "open the coordinator's kit, at the site")
    opened.add_argument("kit", type=Path, metavar="FILE")
    opened.add_argument("--key", type=Path, required=True, metavar="FILE", help="the site's private key")
    opened.add_argument("--folder", type=Path, required=True, metavar="DIR", help="for site.yaml and what it names")
    opened.add_argument("--data", type=Path, metavar="PATH", help="the site's table or its folder, for site.yaml")
    opened.add_argument("--fingerprint", metavar="DIGITS", help=DIGITS)
    opened.add_argument("--update", action="store_true", help="over an opened kit; site.yaml stays as it is")
    add_passphrase(opened, "opens the site's key, if it is locked; site.yaml names it")

    show = add("fingerprint", _fingerprint, "the digits of a key or a kit, to be read by phone")
    show.add_argument("file", type=Path, metavar="FILE", help="a public or private key, or a kit")
    add_passphrase(show, "opens a private key that is locked")


def _ca(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.authority import make_authority

    authority = make_authority(arguments.folder, arguments.name, arguments.days, arguments.passphrase_file)
    print(f"{authority.folder}: ca.crt (goes to everyone), ca.key (0600, goes to no one)")
    print(f"valid until {authority.certificate.not_valid_after_utc:%Y-%m-%d}")
    print("Back up the folder to a medium that is locked away: who has ca.key can pose as the coordinator.")
    return 0


def _server(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.authority import Authority
    from fed_diffmic.provision.certificates import load_certificate, server_names
    from fed_diffmic.provision.coordinator import set_up_coordinator

    if not 1 <= arguments.port <= 65535:
        raise UsageError(f"--port {arguments.port} is not a port", "Use 1 to 65535; ports below 1024 need privileges.")
    config = set_up_coordinator(
        arguments.folder,
        Authority.load(arguments.ca, arguments.ca_passphrase_file),
        arguments.name,
        arguments.address,
        port=arguments.port,
        host=arguments.bind,
        days=arguments.days,
        passphrase=arguments.passphrase_file,
    )
    certificate = load_certificate(config.with_name("server.crt"))
    names, addresses = server_names(certificate)
    print(f"{config.parent}: server.yaml, server.crt, server.key, signing.key, signing.key.pub, ca.crt, roster.json")
    print(f"the certificate names {', '.join([*names, *addresses])}; valid until {until(certificate)}")
    if not arguments.name and not arguments.address:
        print("It names this machine's loopback only: sites on other machines need `--name HOST`.")
    print(f"Next: say the classes and the task in {config}, then enrol sites.")
    return 0


def _site_key(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.credentials import read_passphrase
    from fed_diffmic.provision.keys import fingerprint, make_site_key, parse_public

    file = arguments.passphrase_file
    text = make_site_key(arguments.file, None if file is None else read_passphrase(file, new=True))
    print(f"{arguments.file} (0600): the private key. It stays here: nobody else needs it, the coordinator neither.")
    print(f"{arguments.file}.pub: the public key. Send this file to the coordinator.")
    print(f"Read these digits to the coordinator by phone: {fingerprint(parse_public(text))}")
    return 0


def _enrol(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.keys import load_public, public_text
    from fed_diffmic.provision.roster import Roster, changing

    path = roster_path(coordinator_config(arguments))
    key = load_public(arguments.key)
    said = (arguments.name, public_text(key), arguments.institution, arguments.role, arguments.max_images)
    Roster.load(path).enrol(*said)  # before the call
    confirm_key(key, arguments.fingerprint, arguments.name)
    with changing(path):
        roster = Roster.load(path).enrol(*said)
        roster.save(path)
    print(f"{arguments.name} ({arguments.institution}) is enrolled; the roster has {count_sites(len(roster.sites))}.")
    words = ["kit", arguments.name, "--out", f"{arguments.name}.kit", "--config", str(arguments.config)]
    print(f"Next: fed-diffmic provision {shlex.join(words)}")
    return 0


def _kit(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.coordinator import expiries, make_kit, signing_key
    from fed_diffmic.provision.keys import place_new

    config = coordinator_config(arguments)
    kit = make_kit(config, arguments.name, arguments.address)
    place_new({arguments.out: (kit.sealed(signing_key(config)), 0o644)})
    if kit.classes is None or kit.task is None:
        print(
            f"WARNING: the kit says no {'classes' if kit.classes is None else 'task'}: no site can compare its own "
            f"with them. Set consortium.classes and consortium.task in {arguments.config}, and make the kit anew "
            "under another name (at a site that opened this one: open-kit --update)",
            file=sys.stderr,
        )
    print(f"{arguments.out}: for {kit.site}, coordinator {kit.address}, classes {_classes(kit.classes)}")
    warn_of(expiries(config))
    print(f"Send the file, and read these digits to the site by phone: {kit.fingerprint}")
    return 0


def _open_kit(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.site import open_kit, update_kit

    def digits(kit: Kit) -> str:
        return asked(arguments.fingerprint, f"The coordinator reads the digits of the kit for {kit.site}")

    if not arguments.update:
        config = open_kit(
            arguments.kit,
            arguments.key,
            arguments.folder,
            digits,
            data=arguments.data,
            passphrase=arguments.passphrase_file,
        )
        print(f"The kit is the coordinator's. {config.parent}: site.yaml, ca.crt, coordinator.pub, opened.kit")
        if "classes: null" in config.read_text(encoding="utf-8"):
            print(
                "The kit names no classes: set dataset.classes to the consortium's, or ask for a kit that names them."
            )
        print(f"Next: look through {config}, then fed-diffmic preflight --config {config}")
        return 0
    if arguments.data is not None:
        raise UsageError("--data has no use with --update: site.yaml stays as it is", "Change dataset.root there.")
    differences = update_kit(
        arguments.kit,
        arguments.key,
        arguments.folder,
        digits if arguments.fingerprint is not None else None,
        passphrase=arguments.passphrase_file,
    )
    print(f"{arguments.folder}: ca.crt, coordinator.pub and opened.kit are those of the new kit.")
    for sentence in differences:
        print(f"site.yaml: {sentence}; change it if the kit is right")
    print("Restart the client to use them.")
    return 0


def _fingerprint(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.credentials import read_credential
    from fed_diffmic.provision.keys import fingerprint, load_private, load_public
    from fed_diffmic.provision.kit import load_kit

    start = read_credential(arguments.file, "file").lstrip()
    if start.startswith(b"{"):
        kit = load_kit(arguments.file)
        print(f"kit for {kit.site}, of {kit.made}: {kit.fingerprint}")
    elif start.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----"):
        key = load_private(arguments.file, arguments.passphrase_file)
        print(f"public half of this private key: {fingerprint(key.public_key())}")
    else:
        print(f"public key: {fingerprint(load_public(arguments.file))}")
    return 0


def _roster(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.coordinator import expiries
    from fed_diffmic.provision.keys import fingerprint
    from fed_diffmic.provision.roster import Roster

    config = coordinator_config(arguments)
    roster = Roster.load(roster_path(config))
    dates = expiries(config)
    if arguments.json:
        value = json.loads(roster.to_json())
        for entry, site in zip(value["sites"], sorted(roster.sites, key=lambda site: site.name), strict=True):
            entry["fingerprint"] = fingerprint(site.key)
        value["expires_in_days"] = {what: round(days, 2) for what, days in dates}
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return 0
    print(f"{count_sites(len(roster.sites))} admitted")
    for site in sorted(roster.sites, key=lambda site: site.name):
        print(f"  {site.name}  {site.role}  {site.institution}  since {site.enrolled}  {fingerprint(site.key)}")
    for gone in roster.revoked:
        print(f"  revoked: {gone.name}  {gone.revoked}  {gone.reason}")
    for what, days in dates:
        print(f"{what}: {days:.0f} days left")
    warn_of(dates)
    return 0


def _revoke(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.roster import Roster, changing

    path = roster_path(coordinator_config(arguments))
    with changing(path):
        roster = Roster.load(path).revoke(arguments.name, arguments.reason)
        roster.save(path)
    print(f"{arguments.name} is refused from now on, and its key for good; {count_sites(len(roster.sites))} left.")
    print("A coordinator that is running reads the roster again by itself.")
    return 0


def _classes(classes: list[str] | None) -> str:
    return "not said: whatever all sites have" if classes is None else ", ".join(classes)
