"""``fed-diffmic client``: a site takes part, pauses, goes on, withdraws, says how it does, uses models that came."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands import Add
from fed_diffmic.console import Parser
from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.config.site import SiteConfig

logger = logging.getLogger(__name__)

SAFE_PARTS = ("floors", "limits", "study", "budget")
ACTIONS = ("run", "status", "pause", "continue", "withdraw", "model")
KINDS = ("alone", "finetune", "head", "mixture")  # as in release/made_at, which need not be loaded here
MOVED = "fed-diffmic client model compare DIR --config FILE"  # and `model use DIR`, which was --take-over
_ABOUT = """A site of a consortium. Only outbound connections are made, to coordinator.address.

  fed-diffmic client --config site.yaml             take part until Ctrl-C or SIGTERM
  fed-diffmic client status --config site.yaml      how it does
  fed-diffmic client pause --config site.yaml       stay connected, do nothing
  fed-diffmic client continue --config site.yaml    go on after a pause (after withdrawing: --rejoin)
  fed-diffmic client withdraw --config site.yaml    stop what runs, remove what is kept, be asked for nothing more
  fed-diffmic client model list --config site.yaml  the models that were sent to this site (policy.take_model)
  fed-diffmic client model compare RUN_OR_DIR --config site.yaml
                                                    one and the model in use, on this site's own images
  fed-diffmic client model use RUN_OR_DIR --config site.yaml
                                                    the same, then keep it as the one in use, unless that is better
  fed-diffmic client model own RUN_OR_DIR [alone finetune head mixture] --config site.yaml
                                                    make models of this site's own of it, on its own images; they stay
                                                    here, and `compare` and `use` judge them too"""


def register(add: Add) -> None:
    """Add ``client``."""
    client: Parser = add("client", _client, "a site of a consortium: take part, pause, withdraw, use models that came")
    client.description = _ABOUT
    client.add_argument("action", nargs="?", default="run", metavar="ACTION", help=", ".join(ACTIONS))
    client.add_argument("--config", type=Path, metavar="FILE", help="the site's YAML")
    client.add_argument("--json", action="store_true", help="status, model: as JSON")
    client.add_argument("--rejoin", action="store_true", help="continue: take part again after withdrawing")
    client.add_argument("--with", type=Path, dest="other", metavar="DIR", help="model: another than the one in use")
    client.add_argument("--even-if-worse", action="store_true", help="model use: the one that came, in any case")
    client.add_argument(
        "--take", choices=("global", *KINDS), help="model use: this one in any case (default: what `compare` says)"
    )
    client.add_argument("--weights", metavar="FILE", help="model own alone: what the encoders start from")
    client.add_argument("--prior-weights", metavar="FILE", help="model own alone: what the prior's encoder starts from")
    client.add_argument(
        "--split", default="test", choices=("val", "test"), help="model: which of the site's images (test)"
    )
    client.add_argument("settings", nargs="*", metavar="key=value")


def _client(arguments: argparse.Namespace, hint: list[str]) -> int:
    if "=" in arguments.action:  # a setting stands first
        arguments.settings.insert(0, arguments.action)
        arguments.action = "run"
    words = [word for word in arguments.settings if "=" not in word] if arguments.action == "model" else []
    arguments.settings = [word for word in arguments.settings if word not in words]
    if arguments.action == "compare":
        raise UsageError("fed-diffmic client compare is no action any more", f"Type `{MOVED}`.")
    if arguments.action not in ACTIONS:
        raise UsageError(
            f"fed-diffmic client has no action {arguments.action!r}", f"There is {', '.join(ACTIONS)}; `run` is meant."
        )
    if arguments.config is None:
        raise UsageError(
            "fed-diffmic client needs the site's configuration",
            "fed-diffmic client --config site.yaml; `fed-diffmic provision open-kit` writes one to start from.",
        )
    from fed_diffmic.config.compose import compose_site, unsaid

    config = compose_site(arguments.config, arguments.settings)
    if arguments.action == "run":
        return _run(config, unsaid("policy", SAFE_PARTS, arguments.config, arguments.settings))
    if config.site.folder is None:
        raise UsageError("site.folder is not set", "Name the site's own folder in its configuration.")
    folder = Path(config.site.folder)
    if arguments.action == "status":
        return _status(config, folder, as_json=arguments.json)
    if arguments.action == "model":
        from fed_diffmic.commands.site_models import model

        return model(config, arguments, words)
    return _decide(arguments.action, config, folder, rejoin=arguments.rejoin)


def _run(config: SiteConfig, defaults: list[str]) -> int:
    """Take part; a file of an earlier version is told which rules it has now without having said them."""
    from client.start import LOGS
    from client.supervisor import run_site
    from fed_diffmic.config.network_checks import check_site_start
    from fed_diffmic.reporting.logs import set_up_logs

    check_site_start(config)
    logs = Path(str(config.site.folder)) / LOGS
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    set_up_logs(file=logs / "client.jsonl")
    if defaults:
        named = ", ".join(f"policy.{part}" for part in defaults)
        logger.info("not said in the configuration, so the safe values of %r hold: %s (fed-diffmic policy explain)",
                    config.policy.name, named)  # fmt: skip
    return run_site(config)


def _decide(action: str, config: SiteConfig, folder: Path, *, rejoin: bool) -> int:
    from client.control import PAUSE, RUNNING, WITHDRAW, decide

    state = {"pause": PAUSE, "continue": RUNNING, "withdraw": WITHDRAW}[action]
    decide(folder, state, rejoin=rejoin)
    print(
        {
            PAUSE: "Paused: what is being computed is finished; then every request is answered with that.",
            RUNNING: "The site takes part.",
            WITHDRAW: "Withdrawn: what was being computed is stopped, and every request is answered with that.",
        }[state]
    )
    return _leave(config, folder) if state == WITHDRAW else 0


def _leave(config: SiteConfig, folder: Path) -> int:
    """Remove what a withdrawn site does not keep, unless a running client does it; says which, and what went."""
    from client.leaving import forget
    from client.start import RUN
    from fed_diffmic.errors import MachineError
    from fed_diffmic.transport.processes import lock_file

    (folder / RUN).mkdir(mode=0o700, exist_ok=True)
    lock = lock_file(folder / RUN / "site.lock")
    try:
        lock.__enter__()
    except MachineError:
        print("The running client removes what was kept, decoded images too; its log says what. (`client status`)")
        return 0
    try:
        removed = forget(config, folder)
    finally:
        lock.__exit__(None, None, None)
    print(removed)
    return 0 if removed.complete else MachineError.exit_code


def _status(config: SiteConfig, folder: Path, *, as_json: bool) -> int:
    from client.status import site_status, status_text

    status = site_status(config, folder)
    print(json.dumps(status, indent=2) if as_json else status_text(status))
    return 0
