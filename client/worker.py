"""A site's worker: the process that holds the data and the model, and does the tasks.

Started by the supervisor as ``python -m client.worker`` with the site's configuration on standard input. It lives
from task to task, so that the model's kernels and the decoded images stay warm, and makes no connection but the one
to its own SuperNode on loopback. What takes long to load is loaded once its life hangs on the supervisor's.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fed_diffmic.transport.processes import die_with_parent

if TYPE_CHECKING:
    from client.start import WorkerSettings

logger = logging.getLogger(__name__)


def main() -> NoReturn:
    """The child: read settings, work until a signal comes, end."""
    die_with_parent()
    from client.start import WorkerSettings
    from fed_diffmic.reporting.logs import set_up_logs

    settings = WorkerSettings(**json.loads(sys.stdin.buffer.read()))
    set_up_logs()
    stop = threading.Event()

    def end(number: int, frame: object) -> None:
        # A local update is not waited for: the request is kept and done again, equal bit for bit.
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        work(settings, stop)
    except Exception:
        logger.exception("the worker ends")
        logging.shutdown()
        os._exit(1)
    os._exit(0)


def work(settings: WorkerSettings, stop: threading.Event) -> None:
    """Register what this site has and enforces, and serve its SuperNode."""
    from client.app import app
    from client.control import gate
    from client.delivery import Delivery
    from client.device import chosen_devices
    from client.journal import Journal
    from client.masking import site_masking
    from client.seals import SiteSeals
    from client.site import Protection, Rules, register_source
    from client.source import SiteSource
    from client.start import STATE, site_audit, site_key, site_signer, site_studies
    from client.watch import Watch
    from fed_diffmic.config.site import SiteConfig
    from fed_diffmic.config.spec import parse_dataclass
    from fed_diffmic.exchange.policy import SitePolicy
    from fed_diffmic.privacy.continuity import witness_of
    from fed_diffmic.provision.keys import load_public
    from fed_diffmic.transport.contact import read_contact
    from fed_diffmic.transport.turn import trim
    from fed_diffmic.transport.worker import serve

    config: SiteConfig = parse_dataclass(SiteConfig, settings.config, "config")
    folder, run = Path(str(config.site.folder)), Path(settings.run)
    private = config.privacy.name == "dp_sgd"
    policy = SitePolicy(config.policy, config.privacy.stages if private else ())
    key, way, audit = site_key(config), config.coordinator, site_audit(config)
    signer = site_signer(config)
    seals = None if way.insecure else SiteSeals(config.site.name, load_public(str(way.public_key)), signer, folder)
    rules = Rules(
        policy,
        config.dataset.name,
        audit,
        gate=lambda _: gate(folder),
        seals=seals,
        watch=Watch(run, folder),
        journal=Journal(run),
        models=Delivery(config, audit, signer, None if way.insecure else load_public(str(way.public_key))),
        studies=site_studies(config, audit),
    )
    protection = Protection(config.privacy, signer, witness_of(key))
    masking = None if way.insecure else site_masking(config, signer, audit)
    register_source(SiteSource(config), lambda _: folder, rules, lambda _: protection, masking)

    def port() -> int:
        contact = read_contact(run)
        return 0 if contact is None else contact.port

    serve(
        app,
        port=port,
        secret=bytes.fromhex(settings.secret),
        node_config={"site-dir": str(folder), "device": ",".join(chosen_devices(config.site.device))},
        stop=stop,
        beat_s=settings.beat_s,
        state=state_writer(run / STATE),
        after=trim if config.site.turn else lambda: None,
    )


def state_writer(path: Path) -> Callable[[str], None]:
    """Writes ``{"pid", "state", "since"}`` when the state changes (not flushed: it says nothing after a power cut)."""
    last = [""]

    def write(state: str) -> None:
        if state == last[0]:
            return
        last[0] = state
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps({"pid": os.getpid(), "state": state, "since": time.time()}), encoding="utf-8")
            part.replace(path)
        except OSError:  # a full disk must not stop the task that it speaks of
            logger.warning("the worker's state cannot be written")

    return write


if __name__ == "__main__":
    main()
