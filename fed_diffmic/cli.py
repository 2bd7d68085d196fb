"""``fed-diffmic``: the composition root. It parses, checks, and starts the room that does the work.

Rooms are imported only when their command runs. Exit codes: docs/errors.md.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic import __version__
from fed_diffmic.commands import ROOMS, Command, dicom, use
from fed_diffmic.console import Parser, check_command, run_command, split_settings, while_loading
from fed_diffmic.errors import ConfigError, UsageError
from fed_diffmic.inputs import check_file

if TYPE_CHECKING:
    from fed_diffmic.config.simulation import SimulateConfig

_ABOUT = """Federated training of the DiffMIC-v2 medical image classifier. For research; not a medical device.

  fed-diffmic simulate                                   drawn images, four virtual sites, minutes
  fed-diffmic simulate model=compact dataset=ham10000 dataset.root=DIR partition=institution
  fed-diffmic options model                              every setting, its range and what it means
"""
_SETTINGS = "settings: seed=1, model=compact, partition.alpha=0.3, ...; `fed-diffmic options` lists them"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    hint: list[str] = []
    return run_command(lambda: _dispatch(arguments, hint), lambda: hint[0] if hint else "")


def _dispatch(arguments: list[str], hint: list[str]) -> int:
    parser = _parser()
    _check_commands(parser, parser, arguments)
    known, left = parser.parse_known_args(arguments)
    chosen: Parser = known.parser
    if hasattr(known, "settings"):
        known.settings = split_settings(chosen, known.settings, left)
    elif left:
        chosen.error(f"cannot use {' '.join(left)}")
    if known.run is None:
        chosen.print_help()
        return 0
    run: Command = known.run
    return run(known, hint)


def _check_commands(root: Parser, parser: argparse.ArgumentParser, arguments: Sequence[str], above: str = "") -> None:
    """Refuse a command that does not exist, at whatever depth, naming the nearest."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            check_command(root, arguments, list(action.choices), after=above)
            if arguments and arguments[0] in action.choices:
                _check_commands(root, action.choices[arguments[0]], arguments[1:], f"{above}{arguments[0]} ")


def _parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="fed-diffmic", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"fed-diffmic {__version__}")
    parser.set_defaults(run=None, parser=parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Command | None, about: str) -> Parser:
        command: Parser = subparsers.add_parser(name, help=about, description=about)
        command.set_defaults(run=run, parser=command)
        return command

    simulate = add("simulate", _simulate, "train across virtual sites on this machine")
    _add_settings(simulate)
    simulate.add_argument("--resume", action="store_true", help="continue the run in run.dir")
    simulate.add_argument("--show-config", action="store_true", help="print the resolved configuration and stop")

    simulate.add_argument("--plan", action="store_true", help="say sites, images, rounds, bytes and time, and stop")

    use.register(add)

    data = add("data", None, "look at data before training, and clean up after")
    _add_data_commands(data)

    options = add("options", _options, "every setting: range, default, meaning")
    options.add_argument("group", nargs="?", help="a group, such as model; or simulate, flower-server, client for all")

    for room in ROOMS:
        importlib.import_module(f"fed_diffmic.commands.{room}").register(add)
    return parser


def _add_settings(parser: Parser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the same names as the settings")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=_SETTINGS)


def _add_data_commands(data: Parser) -> None:
    subparsers = data.add_subparsers(metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Command | None, about: str) -> Parser:
        command: Parser = subparsers.add_parser(name, help=about, description=about)
        command.set_defaults(run=run, parser=command)
        return command

    inspect = add(
        "inspect", _inspect, "findings, counts by class and institution (or site, with partition=...), pictures"
    )
    _add_settings(inspect)
    inspect.add_argument("--out", type=Path, default=Path("inspect"), metavar="DIR", help="folder for the pictures")

    purge = add("purge", _purge, "say which decoded copies of images are kept in dataset.cache_dir, and remove them")
    _add_settings(purge)
    purge.add_argument("--yes", action="store_true", help="remove them without asking (so does dataset.cache_dir=DIR)")

    phantoms = add("phantoms", _phantoms, "draw images with known signs, in a published layout")
    phantoms.add_argument("out", type=Path, metavar="DIR", help="folder to write, new or empty")
    phantoms.add_argument("--modality", default="dermoscopy", choices=("dermoscopy", "fundus", "chest", "ultrasound"))
    phantoms.add_argument("--images", type=int, default=480, metavar="N", help="16 to 1000000 (480)")
    phantoms.add_argument("--seed", type=int, default=0, metavar="N")
    phantoms.add_argument("--sites", type=int, default=4, metavar="N", help="styles of acquisition (4)")
    phantoms.add_argument("--shuffle-labels", action="store_true", help="labels that say nothing, as a control")

    dicom.register(add)

    medmnist = add(
        "medmnist", _medmnist, "MedMNIST+ as a table of images: fetched by the package medmnist, or from its .npz"
    )
    medmnist.add_argument("name", choices=("dermamnist", "chestmnist", "retinamnist", "breastmnist"), metavar="NAME")
    medmnist.add_argument("out", type=Path, metavar="DIR", help="folder to write, new or empty")
    medmnist.add_argument("--size", type=int, default=64, choices=(28, 64, 128, 224), help="side in pixels (64)")
    medmnist.add_argument("--file", type=Path, metavar="NPZ", help="the published file, if it is here already")
    medmnist.add_argument(
        "--published-split", action="store_true", help="keep its train, validation and test as the table's own"
    )


def _simulate(arguments: argparse.Namespace, hint: list[str]) -> int:
    with while_loading():
        from fed_diffmic.config.checks import check_same_run, check_start
        from fed_diffmic.config.compose import compose, to_yaml
        from fed_diffmic.config.folders import with_run_dir
        from fed_diffmic.config.stock import check_weights_files, is_stock

    config = compose(arguments.config, arguments.settings)
    saved = Path(config.run.dir or "") / "config.yaml"
    if arguments.resume and config.run.dir and saved.is_file():
        if arguments.config is None:
            config = compose(saved, arguments.settings)
        check_same_run(compose(saved, []), config)
    if arguments.show_config:
        print(to_yaml(config), end="")
        _warn_if_unstartable(config, arguments.resume)
        return 0
    check_start(config, resume=arguments.resume)
    if is_stock(config.model):
        check_weights_files(config.model)
    else:
        with while_loading():
            from fed_diffmic.models.checks import check_model_config

        check_model_config(config.model)
    if arguments.plan:
        print("reading images and measuring a few steps", file=sys.stderr, flush=True)
        from simulations.plan import make_plan, plan_text

        print(plan_text(make_plan(config), config.run.dir))
        return 0
    config = with_run_dir(config)
    print(f"run {config.run.dir}: loading libraries, then reading images", file=sys.stderr, flush=True)
    try:
        with while_loading():
            from simulations.run import simulate

        simulate(config, resume=arguments.resume)
    except KeyboardInterrupt:
        hint.append(_how_to_go_on(Path(str(config.run.dir))))
        raise
    return 0


def _how_to_go_on(folder: Path) -> str:
    """What continues a run that was interrupted; before it has its configuration there is nothing to continue."""
    if not (folder / "config.yaml").is_file():
        return "nothing was begun yet: the same command starts it"
    return f"resume with: fed-diffmic simulate --resume {shlex.quote(f'run.dir={folder}')}"


def _warn_if_unstartable(config: SimulateConfig, resume: bool) -> None:
    """``--show-config`` answers for any machine, and says on stderr why this one could not start."""
    from fed_diffmic.config.checks import check_start

    try:
        check_start(config, resume=resume)
    except (ConfigError, UsageError) as error:
        print(f"note: this would not start here: {error}", file=sys.stderr)


def _inspect(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.checks import check_start
    from fed_diffmic.config.compose import compose, mentions

    config = compose(arguments.config, arguments.settings)
    check_start(config, resume=False)
    from fed_diffmic.data.inspect import inspect
    from simulations.partitioners import partition
    from simulations.sites import with_phantoms

    out: Path = arguments.out
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    by_site = mentions("partition", arguments.config, arguments.settings)
    return inspect(
        with_phantoms(config, out),
        out,
        partition=(lambda manifest: partition(manifest, config.partition, config.seed)) if by_site else None,
    )


def _purge(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose

    config = compose(arguments.config, arguments.settings)
    from fed_diffmic.data.cache_files import purge, survey
    from fed_diffmic.data.open import cache_folder

    folder = cache_folder(config.dataset)
    free, used = survey(folder)
    print(f"{folder}: {len(free)} set(s) of decoded images, {sum(copy.bytes for copy in free) / 1e6:,.1f} MB")
    if used:
        size = sum(copy.bytes for copy in used) / 1e6
        print(f"left as they are: {len(used)} set(s), {size:,.1f} MB, which a process is using")
    if config.dataset.cache_dir is None and not arguments.yes and free and not _agreed("Remove them? [y/N] "):
        raise UsageError(
            "nothing was removed: this is the cache of every run and site of this account",
            "Say `--yes`, or name the folder that is meant: dataset.cache_dir=DIR.",
        )
    print(f"removed {purge(folder) / 1e6:,.1f} MB of decoded images from {folder}")
    return 0


def _agreed(question: str) -> bool:
    """What somebody at the terminal answers; no, where nobody is there."""
    try:
        return sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _phantoms(arguments: argparse.Namespace, hint: list[str]) -> int:
    out: Path = arguments.out
    for name, value, least, most in (
        ("--images", arguments.images, 16, 1_000_000),
        ("--seed", arguments.seed, 0, 2**31 - 1),
        ("--sites", arguments.sites, 1, 10_000),
    ):
        if not least <= value <= most:
            raise UsageError(f"{name} {value} is not allowed; allowed: {least} to {most}")
    _need_new(out)
    from fed_diffmic.data.phantoms import write_phantoms

    write_phantoms(
        out,
        arguments.modality,
        arguments.images,
        arguments.seed,
        sites=arguments.sites,
        shuffle_labels=arguments.shuffle_labels,
    )
    print(f"{arguments.images} {arguments.modality} phantoms in {out}")
    return 0


def _medmnist(arguments: argparse.Namespace, hint: list[str]) -> int:
    _need_new(arguments.out)
    if arguments.file is not None:
        check_file("--file", arguments.file)
    from fed_diffmic.data.medmnist import KINDS, write_medmnist

    settings = write_medmnist(
        arguments.name,
        arguments.out,
        size=arguments.size,
        file=arguments.file,
        split=arguments.published_split,
    )
    print(f"{arguments.name}: {KINDS[arguments.name].about}")
    print(f"train on it with: fed-diffmic simulate {shlex.join(settings)}")
    return 0


def _options(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.reference import options_text

    print(options_text(arguments.group))
    return 0


def _need_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder", "Name a new folder.")


if __name__ == "__main__":
    sys.exit(main())
