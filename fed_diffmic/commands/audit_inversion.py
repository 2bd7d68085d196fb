"""``fed-diffmic audit inversion``: how much of an image a coordinator could read out of an update without privacy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.console import Parser

_ABOUT = """Attack what an update tells of single images, on drawn phantoms: no image of the site is read.

For each number of images in a step a coordinator that asks for the worst settings solves for the images (positions and
patches of a vision transformer), matches gradients (Geiping et al. 2020), and sends weights that are made to let one
image through (Wen et al. 2022; Fowl et al. 2022). The best picture of each is held against chance: as many guesses
among other phantoms. The floors are those of the settings (policy.floors); what they refuse is computed all the same
and said. Exit code 0: at chance; 4: an attack that the floors allow saw more.
"""
_EXIT = {"at chance": 0, "inverted": 4}
_MOST_BATCH, _MOST_STEPS = 256, 100_000


def add_inversion(command: Parser) -> None:
    """Arguments of ``audit inversion``."""
    command.description = _ABOUT
    command.add_argument("--config", type=Path, metavar="FILE", help="site.yaml, for its policy.floors")
    command.add_argument("--model", default="compact", metavar="NAME", help="model of the expected run (compact)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the model: model.KEY=...")
    command.add_argument("--stage", default="guidance", choices=("guidance", "plain"))
    command.add_argument("--batch", default="1,8,32", metavar="N,...", help="images in a step (1,8,32)")
    command.add_argument("--steps", type=int, default=200, help="of gradient matching for one image (200)")
    command.add_argument("--seed", type=int, default=0, help="of phantoms and guesses (0)")
    command.add_argument("--out", type=Path, metavar="JSON", help="write metrics and verdict into this file")
    command.add_argument("settings", nargs="*", metavar="key=value", help="settings of the site, as for `client`")


def inversion(arguments: argparse.Namespace, hint: list[str]) -> int:
    """Attack, print a table and the verdict."""
    from fed_diffmic.commands.outputs import check_output, check_spares
    from fed_diffmic.config.compose import compose, compose_site
    from fed_diffmic.files import write_json

    batches = _batches(str(arguments.batch))
    if not 1 <= arguments.steps <= _MOST_STEPS:
        raise UsageError(f"--steps {arguments.steps} is not allowed", f"Give a number from 1 to {_MOST_STEPS}.")
    if arguments.out is not None:
        check_output("--out", arguments.out)
        check_spares("--out", arguments.out, [("--config", arguments.config)])
    floors = compose_site(arguments.config, arguments.settings).policy.floors
    asked = [pair if pair.startswith("model.") else f"model.{pair}" for pair in arguments.set]
    config = compose(None, [f"model={arguments.model}", f"stages={arguments.model}", *asked])

    from fed_diffmic.models.checks import check_model_config
    from fed_diffmic.privacy.inversion.report import ABOUT, audit_inversion

    check_model_config(config.model)

    def tell(attack: str, batch: int) -> None:
        print(f"{batch} images in a step: {ABOUT[attack]}", file=sys.stderr, flush=True)

    report = audit_inversion(
        config, floors, stage=arguments.stage, batches=batches, steps=arguments.steps, seed=arguments.seed, tell=tell
    )
    print("\n".join(report.lines()))
    if arguments.out is not None:
        write_json(arguments.out, report.to_json())
        print(f"written: {arguments.out}")
    return _EXIT[report.verdict]


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    found = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(found) != len(parts) or not all(1 <= n <= _MOST_BATCH for n in found):
        raise UsageError(
            f"--batch {text} is not allowed", f"Give numbers from 1 to {_MOST_BATCH} separated by commas, as 1,8,32."
        )
    return found
