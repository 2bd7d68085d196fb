"""``fed-diffmic audit rekey`` and ``stamp``: what whoever keeps a log does to it now and then."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_passphrase import add_passphrase
from fed_diffmic.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from fed_diffmic.console import Parser


def add_rekey(parser: Parser) -> None:
    """Options of ``audit rekey``."""
    parser.add_argument("log", type=Path, metavar="LOG", help="audit log that the old key kept")
    parser.add_argument("--key", required=True, type=Path, metavar="KEY", help="the new private key")
    parser.add_argument("--old", type=Path, metavar="KEY", help="the old private key, which signs that it hands over")
    add_passphrase(parser, "opens either key that is locked")
    parser.add_argument("--accept", action="store_true", help="the old key is gone: it is your word that stands there")


def add_stamp(parser: Parser) -> None:
    """Options of ``audit stamp``."""
    parser.add_argument("log", type=Path, metavar="LOG", help="audit log")
    parser.add_argument("--out", required=True, type=Path, metavar="TSQ", help="the request to write")


def rekey(arguments: argparse.Namespace, hint: list[str]) -> int:
    """Let a new key go on with a log."""
    from fed_diffmic.commands.audit_logs import owner_of
    from fed_diffmic.exchange.audit import AuditLog, read_lines
    from fed_diffmic.provision.keys import fingerprint
    from fed_diffmic.provision.locking import load_either

    if (arguments.old is None) != arguments.accept:
        raise UsageError(
            "audit rekey needs either --old or --accept",
            "Give the old private key; `--accept` only where it is gone: then nothing but your word joins the two.",
        )
    owner = owner_of(read_lines(arguments.log))
    if not owner:
        raise ModelFileError(f"{arguments.log} does not say whose log it is", "Check the path.")
    key = load_either(arguments.key, arguments.passphrase_file)
    old = None if arguments.old is None else load_either(arguments.old, arguments.passphrase_file)
    AuditLog(arguments.log, key, owner=owner, old=old, accept=arguments.accept)
    print(f"The log of {owner} goes on with the key {fingerprint(key.public_key())}. Keep both public keys:")
    print("`fed-diffmic audit verify` is given each with --key.")
    return 0


def stamp(arguments: argparse.Namespace, hint: list[str]) -> int:
    """Write a request for a timestamp of the log's head."""
    from fed_diffmic.commands.outputs import check_output, check_spares
    from fed_diffmic.exchange.audit import Head, read_lines
    from fed_diffmic.exchange.timestamp import write_request

    check_output("--out", arguments.out)
    check_spares("--out", arguments.out, [("LOG", arguments.log)])
    lines = read_lines(arguments.log)
    if not lines:
        raise ModelFileError(f"{arguments.log} holds no line", "Check the path.")
    write_request(arguments.out, Head(lines[-1].n, lines[-1].digest))
    print(
        f"Request for line {lines[-1].n} in {arguments.out}. Send it to an authority, keep its response and verify it:"
    )
    print(f"fed-diffmic audit verify {arguments.log} --key PUB --token RESPONSE.tsr --token-ca AUTHORITY.pem")
    return 0
