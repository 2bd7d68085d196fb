"""The commands of ``fed-diffmic`` beyond the simulation's, one file for each room that offers some.

A file holds ``register(add)``, which adds its commands to the parser, and one function for each command, which
imports the room that does the work when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fed_diffmic.console import Parser

__all__ = ["ROOMS", "Add", "Command"]

Command = Callable[[argparse.Namespace, list[str]], int]
"""Runs a command: its parsed arguments, a list for a hint on how to go on after an interruption; the exit code."""

Add = Callable[[str, Command | None, str], Parser]
"""Adds a command: name, what runs it (none: it only holds others), what it is about."""

ROOMS: tuple[str, ...] = (
    "provision",
    "site",
    "preflight",
    "policy",
    "audit",
    "ledger",
    "experiment",
    "report",
    "serve",
    "export",
)
