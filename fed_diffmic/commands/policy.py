"""``fed-diffmic policy``: what a site allows, in words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import below

if TYPE_CHECKING:
    from fed_diffmic.commands import Add


def register(add: Add) -> None:
    """Add ``policy`` and the command below it."""
    add_below = below(add("policy", None, "what this site allows the coordinator to ask, and what may leave"))
    explain = add_below("explain", _explain, "print the policy in sentences, for an ethics board")
    explain.add_argument("--config", required=True, type=Path, metavar="FILE", help="site.yaml")
    explain.add_argument("settings", nargs="*", metavar="key=value", help="settings of the site, as for `client`")


def _explain(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose_site
    from fed_diffmic.exchange.policy_text import explain

    config = compose_site(arguments.config, arguments.settings)
    print(explain(config.policy, config.site.name), end="")
    return 0
