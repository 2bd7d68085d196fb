"""``flower-server``: the coordinator's command. Exit codes: docs/errors.md."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic import __version__
from fed_diffmic.console import Parser, run_command, split_settings
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.config.simulation import ModelConfig

logger = logging.getLogger(__name__)

_ABOUT = """The coordinator of a federation. For research; not a medical device.

  flower-server --config server.yaml run.dir=RUN         start a run
  flower-server --resume RUN                             continue it after whatever ended it
  flower-server status RUN                               sites, round, time left
  flower-server study --config server.yaml run.dir=RUN   what a run will ask of its sites, for review before it starts
"""
_SETTINGS = "settings: seed=1, listen.port=9443, ...; `fed-diffmic options flower-server` lists them"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, check, and coordinate; returns the exit code."""
    hint: list[str] = []
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments, hint), lambda: hint[0] if hint else "")


def _run(arguments: list[str], hint: list[str]) -> int:
    if arguments and arguments[0] == "status":
        return _status(arguments[1:])
    if arguments and arguments[0] == "study":
        return _study(arguments[1:])
    parser = Parser(prog="flower-server", description=_ABOUT)
    parser.add_argument("--version", action="version", version=f"flower-server {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the same names as the settings")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="folder of a run to continue")
    parser.add_argument("--show-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=_SETTINGS)
    known, left = parser.parse_known_args(arguments)
    known.settings = split_settings(parser, known.settings, left)
    return _coordinate(known, hint)


def _coordinate(given: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.config.compose import compose_server, to_yaml
    from server.start import check_same_run, check_start, with_run_dir

    settings = [*given.settings, *([f"run.dir={given.resume.absolute()}"] if given.resume else [])]
    file = given.config
    saved = given.resume / "config.yaml" if given.resume else None
    if saved is not None and saved.is_file():
        file = file or saved
    config = with_run_dir(compose_server(file, settings))
    if given.show_config:
        print(to_yaml(config), end="")
        return 0
    check_start(config, resume=given.resume is not None)
    if saved is not None and saved.is_file():
        check_same_run(compose_server(saved, []), config)
    from fed_diffmic.reporting.logs import set_up_logs

    check_model(config.model)
    set_up_logs()
    logger.info("run %s: loading libraries", config.run.dir)
    try:
        from server.supervisor import coordinate

        return coordinate(config, resume=given.resume is not None)
    except KeyboardInterrupt:
        hint.append(_how_to_go_on(Path(str(config.run.dir))))
        raise


def _how_to_go_on(folder: Path) -> str:
    """What continues a run that was interrupted; before it has its configuration there is nothing to continue."""
    if not (folder / "config.yaml").is_file():
        return "nothing was begun yet: the same command starts it"
    return f"continue with: flower-server --resume {shlex.quote(str(folder))}"


def check_model(model: ModelConfig) -> None:
    """Refuse a network that cannot exist, or weights that are not there; torch is loaded for one that is no preset."""
    from fed_diffmic.config.stock import check_weights_files, is_stock

    if is_stock(model):
        check_weights_files(model)
        return
    from fed_diffmic.models.checks import check_model_config

    check_model_config(model)


def _status(arguments: list[str]) -> int:
    parser = Parser(prog="flower-server status", description="How a run stands: sites, round, time left.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    from server.status import show_status

    print(show_status(parser.parse_args(arguments).run))
    return 0


def _study(arguments: list[str]) -> int:
    parser = Parser(prog="flower-server study", description="What a run will ask of its sites, in sentences.")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML of the coordinator")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the signed document into a file, for the sites")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as for the run: run.dir=RUN, ...")
    known, left = parser.parse_known_args(arguments)
    settings = split_settings(parser, known.settings, left)
    from fed_diffmic.config.compose import compose_server

    config = compose_server(known.config, settings)
    if config.run.dir is None:
        raise UsageError("a study is of a run, and run.dir is not set", "Add run.dir=RUN, which names it.")
    from fed_diffmic.exchange.study_text import explain_study
    from fed_diffmic.files import write_json
    from server.start import with_run_dir
    from server.study import study_of_config

    study = study_of_config(with_run_dir(config))
    if known.out is not None:
        write_json(known.out, {"study": study.text, "signature": study.signature})
    print(explain_study(study), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
