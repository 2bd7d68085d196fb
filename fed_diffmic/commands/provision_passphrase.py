"""``fed-diffmic provision passphrase``, and the options by which other commands take a passphrase."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.console import Parser

if TYPE_CHECKING:
    from fed_diffmic.commands import Add


def add_passphrase(parser: Parser, what: str) -> None:
    """``--passphrase-file``.

    Args:
        parser: of the command.
        what: the file's part in it, such as ``opens the site's key, if it is locked``.
    """
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help=f"one line, 0600: {what}")


def register(add: Add) -> None:
    """Add ``provision passphrase``."""
    change = add("passphrase", _passphrase, "lock a private key with a passphrase, change it, or take it away")
    change.add_argument("key", type=Path, metavar="KEY", help="site.key, signing.key, server.key or ca.key")
    change.add_argument("--old", type=Path, metavar="FILE", help="holds the passphrase that opens it now")
    which = change.add_mutually_exclusive_group(required=True)
    which.add_argument("--new", type=Path, metavar="FILE", help="holds the passphrase that shall open it")
    which.add_argument("--remove", action="store_true", help="it shall lie open to whoever may read the file")


def _passphrase(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.provision.locking import change_passphrase

    before = change_passphrase(arguments.key, old=arguments.old, new=arguments.new)
    if arguments.new is None:
        print(f"{arguments.key} lies open now: whoever may read the file has the key.")
        print("Take key_passphrase out of the configuration that names this key.")
        return 0
    print(f"{arguments.key} is locked: it opens with what {arguments.new} holds, and with nothing else.")
    print(f"Keep {arguments.new} elsewhere than the key, and in no backup that holds the key.")
    print("Name it: coordinator.key_passphrase in site.yaml, security.key_passphrase in server.yaml; restart.")
    if not before:
        print("It lay open before: copies of the file in backups, and what the disk still holds of it, do so still.")
    return 0
