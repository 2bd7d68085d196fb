"""``fed-diffmic preflight``: is this site ready? What it checks is in ``client.preflight``; docs/preflight.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from client.preflight.check import Check
    from fed_diffmic.commands import Add
    from fed_diffmic.config.server import ServerConfig
    from fed_diffmic.config.simulation import SimulateConfig

_MARKS = {"passed": ("passed ", "green"), "warning": ("warning", "yellow"), "failed": ("failed ", "bold red")}
_PARTS = ("machine", "credentials", "network", "data", "privacy", "trial")


def register(add: Add) -> None:
    """Add ``preflight``."""
    command = add("preflight", _preflight, "is this site ready? Network, keys, machine, data, one real training step")
    command.add_argument("--config", required=True, type=Path, metavar="FILE", help="site.yaml")
    command.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    command.add_argument("--model", default="compact", metavar="NAME", help="model of the expected run (compact)")
    command.add_argument("--stages", metavar="NAME", help="stages of the expected run (as the model)")
    command.add_argument(
        "--only", metavar="PART,...", default=",".join(_PARTS), help=f"some of {', '.join(_PARTS)} (all)"
    )
    command.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the coordinator's that was announced, as strategy=fedsgd; repeat",
    )
    command.add_argument("settings", nargs="*", metavar="key=value", help="settings of the site, as for `client`")


def _preflight(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose, compose_server, compose_site

    parts = tuple(part.strip() for part in str(arguments.only).split(","))
    unknown = [part for part in parts if part not in _PARTS]
    if unknown:
        raise UsageError(f"--only {arguments.only}: there is no part {unknown[0]!r}", f"Use {', '.join(_PARTS)}.")
    config = compose_site(arguments.config, arguments.settings)
    stages = arguments.stages or arguments.model
    wanted = [f"model={arguments.model}", f"stages={stages}", *arguments.expect]
    expected: ServerConfig | SimulateConfig = (
        compose_server(None, wanted) if arguments.expect else compose(None, wanted)
    )
    from client.preflight.check import as_json, exit_code, worst
    from client.preflight.run import Expected, preflight

    say = _silent if arguments.json else _Printer()
    checks = preflight(config, Expected(expected.model, expected.stages, expected.strategy), say, parts)
    if arguments.json:
        print(json.dumps(as_json(checks, config.site.name), indent=2, allow_nan=False))
    else:
        counts = {level: sum(check.level == level for check in checks) for level in _MARKS}
        print(f"\n{worst(checks)}: {', '.join(f'{count} {level}' for level, count in counts.items())}")
    return exit_code(checks)


def _silent(check: Check) -> None:
    """Nothing until all is known."""


class _Printer:
    """Prints a check as it is made."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)

    def __call__(self, check: Check) -> None:
        from rich.text import Text

        mark, style = _MARKS[check.level]
        line = Text.assemble((mark, style), f"  {check.name}: {check.cause}")
        if check.remedy:
            line.append(f"\n         What to do: {check.remedy}")
        self._console.print(line)
