"""``flower-server``: the coordinator's command.

The networked coordinator is not part of this release; the command exists so that whoever tries it is
told so at once, with exit code 2, instead of starting something that is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fed_diffmic import __version__
from fed_diffmic.console import Parser, run_command
from fed_diffmic.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and say what this release does; returns the exit code."""
    return run_command(lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(arguments: list[str]) -> int:
    parser = Parser(prog="flower-server", description="The coordinator of a federation (not part of this release).")
    parser.add_argument("--version", action="version", version=f"flower-server {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration of the coordinator")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.parse_args(arguments)
    raise UsageError(
        "the networked coordinator (`flower-server`) is not part of this release",
        "Run the same ServerApp over virtual sites with `fed-diffmic simulate`, or with stock Flower: `flwr run .`.",
    )


if __name__ == "__main__":
    sys.exit(main())
