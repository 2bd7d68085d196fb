"""What the commands of ``fed-diffmic provision`` share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.console import Parser
from fed_diffmic.errors import CredentialError, UsageError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from fed_diffmic.commands import Add, Command
    from fed_diffmic.config.server import ServerConfig
    from fed_diffmic.provision.keys import PublicKey

DIGITS = "the thirty digits that the other side read by phone; without it they are asked for"


def add_config(parser: Parser) -> None:
    """``--config``, for what works on the coordinator's files."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the coordinator's server.yaml")


def add_issue(parser: Parser) -> None:
    """What a certificate of the coordinator is issued for."""
    parser.add_argument("--ca", type=Path, required=True, metavar="CA_FOLDER", help="the CA's folder")
    parser.add_argument("--name", action="append", default=[], metavar="HOST", help="DNS name that sites use; repeat")
    parser.add_argument(
        "--address", action="append", default=[], metavar="IP", help="IP address that sites use; repeat"
    )
    parser.add_argument(
        "--ca-passphrase-file", type=Path, metavar="FILE", help="one line, 0600: opens ca.key, if it is locked"
    )
    parser.add_argument("--days", type=float, default=365, metavar="N", help="valid for, at most as the CA (365)")


def below(parser: Parser) -> Add:
    """The function that adds commands below a command."""
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Command | None, about: str) -> Parser:
        command: Parser = subparsers.add_parser(name, help=about, description=about)
        command.set_defaults(run=run, parser=command)
        return command

    return add


def coordinator_config(arguments: argparse.Namespace) -> ServerConfig:
    """The coordinator's configuration that ``--config`` names."""
    from fed_diffmic.config.compose import compose_server

    return compose_server(arguments.config, [])


def roster_path(config: ServerConfig) -> Path:
    """The roster that the configuration names."""
    from fed_diffmic.provision.coordinator import needed

    return needed(config, "roster")


def confirm_key(key: PublicKey, given: str | None, name: str) -> None:
    """Refuse a public key whose digits are not those that the site read by phone."""
    from fed_diffmic.provision.keys import fingerprint, same_digits

    if not same_digits(asked(given, f"The people of {name} read the digits of their key"), fingerprint(key)):
        raise CredentialError(
            "these are not the digits of this key: it may not be the one that the site made",
            "Have them read again (`fed-diffmic provision fingerprint FILE.pub`, at the site). If they differ still, "
            "someone exchanged the key on its way: have it sent by another way.",
        )


def asked(given: str | None, who: str) -> str:
    """The digits from the command line or, from a person at a terminal, typed in; never shown beforehand."""
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError(
            "the digits that the other side reads by phone are missing",
            "Give them with `--fingerprint DIGITS`, or run this at a terminal.",
        )
    print(f"{who} by phone. Type them (thirty digits, separated as you like):")
    try:
        return input("> ")
    except EOFError as error:
        raise UsageError("no digits were typed", "Run it again when the other side is on the phone.") from error


def warn_of(dates: list[tuple[str, float]]) -> None:
    """Say on stderr what expired or soon does."""
    from fed_diffmic.provision.coordinator import WARN_DAYS

    for what, days in dates:
        if days < WARN_DAYS:
            state = "expired" if days <= 0 else f"expires in {days:.0f} days"
            print(f"WARNING: {what} {state}: docs/provisioning.md, renewal", file=sys.stderr)


def until(certificate: Certificate) -> str:
    """The last day of a certificate."""
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


def count_sites(number: int) -> str:
    """``1 site``, ``2 sites``."""
    return "1 site" if number == 1 else f"{number} sites"
