"""The coordinator: a SuperLink that is supervised, the ServerApp in this process, an exit code that tells the truth."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fed_diffmic.config.folders import has_final
from fed_diffmic.config.server import ServerConfig
from fed_diffmic.config.stages import trained_stages
from fed_diffmic.config.text import to_yaml
from fed_diffmic.console import Terminated
from fed_diffmic.errors import FedDiffmicError, MachineError
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.files import atomic_write, write_json
from fed_diffmic.privacy.statement import last_claims, last_client_level, statement
from fed_diffmic.release.pinned import pin
from fed_diffmic.reporting.curves import write_metrics_csv
from fed_diffmic.reporting.events import EventLog, Observer, earlier_seconds, read_events
from fed_diffmic.reporting.logs import set_up_logs
from fed_diffmic.reporting.progress import PlainProgress, RichProgress, make_progress
from fed_diffmic.reporting.rotation import set_aside
from fed_diffmic.transport.processes import free_port, lock_file
from fed_diffmic.transport.superlink import LinkLostError, LinkSettings, RunningLink, counts, start_superlink
from server.delivered import delivered, delivery_lines, lacking
from server.hooks import Hooks
from server.monitor import Monitor
from server.seals import Seals, forget_reply_key, run_reply_key
from server.start import as_simulation, expected_sites, ledger_memory, run_config, signing_key
from server.status import LOCK, RunStatus, StatusWriter

if TYPE_CHECKING:
    from server.admission import Admission

AUDIT = "audit.jsonl"
RESTART_PAUSE_S = 1.0
_LINK = "link"
logger = logging.getLogger("fed_diffmic.server")


def coordinate(config: ServerConfig, *, resume: bool = False) -> int:
    """Run, or continue, the federation that ``config`` describes (``run.dir`` decided, checked by :mod:`server.start`).

    Returns:
        0: every round met its quorum and the final model was written.

    Raises:
        RoundError: a quorum was missed, a deadline passed.
        MachineError: another coordinator works here; the SuperLink could not be kept alive; disk full.
        ModelFileError, ConfigError, CredentialError: see there.
        KeyboardInterrupt: a signal ended it; what was reached is kept. A second signal ends the process at once.
    """
    if not resume:  # before anything marks the folder as a run, and before sites are waited for
        check_weights(config)
    run_dir = Path(str(config.run.dir))
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"run.dir cannot be made: {error.strerror}", "Choose a folder you may write to.") from error
    with lock_file(run_dir / LOCK, f"the run in {run_dir}"), second_signal_ends():
        say(banner(config))
        atomic_write(run_dir / "config.yaml", to_yaml(config).encode())
        _Coordinator(config, run_dir).run(resume=resume)
    return 0


def check_weights(config: ServerConfig) -> None:
    """Refuse weights that the encoders cannot start from.

    Raises:
        ConfigError, ModelFileError: see :func:`fed_diffmic.training.starting_weights.check_starting_weights`.
    """
    model = config.model
    if model.pretrained or model.weights is not None or model.prior_weights is not None:
        # It loads torch, for which a coordinator without weights need not wait before it listens.
        from fed_diffmic.training.starting_weights import check_starting_weights

        check_starting_weights(as_simulation(config), trained_stages(config.stages))


def banner(config: ServerConfig) -> list[str]:
    """What is said at the start; each line says so if nobody is kept out."""
    listen = config.listen
    lines = [
        f"flower-server: run {Path(str(config.run.dir)).name} in {config.run.dir}",
        f"to listen on {listen.host}:{listen.port} (fleet endpoints and health only); everything else on loopback",
    ]
    lines.append(influence(config))
    if config.security.insecure:
        lines += ["no TLS: whoever is on the way reads and changes everything", "nobody is authenticated"]
        return [f"INSECURE {line}" for line in lines]
    sites = expected_sites(config) or []
    return [*lines, f"TLS and node authentication; expected sites: {', '.join(sites)}"]


def listening(config: ServerConfig) -> list[str]:
    """What is said once it is true."""
    mark = "INSECURE " if config.security.insecure else ""
    return [f"{mark}listening on {config.listen.host}:{config.listen.port}"]


def influence(config: ServerConfig) -> str:
    """How far one site may move the run, in a line, at every start: a file without these keys has their defaults."""
    run = config.run
    rule = {
        "off": "no bound of a round's own",
        "clip": "larger updates are made smaller",
        "refuse": "larger are refused",
    }
    norm = "" if run.norm_rule == "off" else f" beyond {run.norm_multiple:g} times a round's median norm"
    return f"one site of three or more: at most {run.max_share:g} of all weight; {rule[run.norm_rule]}{norm}"


def say(lines: Sequence[str]) -> None:
    """Lines on a terminal, JSON objects elsewhere."""
    if sys.stderr.isatty():
        print("\n".join(lines), file=sys.stderr, flush=True)
        return
    set_up_logs()
    for line in lines:
        logger.info(line)


class _LogStream(io.StringIO):
    """Lets the plain progress display write to the log."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.log(logging.WARNING if text.startswith("warning") else logging.INFO, text.strip())
        return len(text)


def progress_display() -> Observer:
    """Bars on a terminal; elsewhere a JSON line for each round and each trouble."""
    return make_progress() if sys.stderr.isatty() else PlainProgress(_LogStream())


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """The first SIGINT or SIGTERM is raised here; a second one ends the process, and its children, at once."""
    seen: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def link_settings(config: ServerConfig, folder: Path, private_port: int) -> LinkSettings:
    """The SuperLink's settings, with a new secret and nonce."""
    listen, security = config.listen, config.security
    secure = not security.insecure
    return LinkSettings(
        folder=str(folder),
        host=listen.host,
        port=listen.port,
        certificate=security.certificate if secure else None,
        key=security.key if secure else None,
        key_passphrase=security.key_passphrase if secure else None,
        ca=security.ca if secure else None,
        roster=security.roster if secure else None,
        heartbeat_s=listen.heartbeat_s,
        header_s=listen.header_timeout_s,
        body_s=listen.body_timeout_s,
        body_bytes=int(listen.body_mib * 2**20),
        per_address=listen.connections_per_address,
        total=listen.connections,
        reserved=int(listen.connections * listen.reserved_share),
        new_per_s=listen.connection_rate,
        handshakes=listen.handshakes,
        reply_bytes=int(listen.reply_mib * 2**20),
        site_bytes=int(listen.site_mib * 2**20),
        private_port=private_port,
    )


class _Coordinator:
    """One run of the process."""

    def __init__(self, config: ServerConfig, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self.link: RunningLink | None = None
        self.sites = expected_sites(config)
        status = RunStatus(run_dir.name, f"{config.listen.host}:{config.listen.port}", config.security.insecure)
        self.status = StatusWriter(run_dir, status, self._counts, self._quorum)
        for name in self.sites or ():
            self.status.site(name)

    def run(self, *, resume: bool) -> None:
        """Follow the run to its end, whatever that is, and say it in the status and the events."""
        started, progress = time.monotonic(), progress_display()
        monitor = Monitor(self.status.status, self.config.listen.status_port)
        events = EventLog(self.run_dir / "events.jsonl", observers=[progress, self.status, monitor])
        try:
            self.status.start()
            write_json(self.run_dir / "monitor.json", {"pid": os.getpid(), "port": monitor.port})
            events.emit("resumed" if resume else "run_started", run=self.run_dir.name, seed=self.config.seed)
            self._train_until_done(events, resume=resume)
            self._finish(events, started)
            self.status.finish("done")
        except KeyboardInterrupt:
            self._ended(events, "interrupted", "stopped by a signal; continue with --resume")
            raise
        except FedDiffmicError as error:
            self._ended(events, "failed", error.cause)
            raise
        except BaseException as error:
            self._ended(events, "failed", f"a defect: {type(error).__name__}")
            raise
        finally:
            if isinstance(progress, RichProgress):
                progress.close()
            events.close()
            monitor.close()

    # ---- the SuperLink -----------------------------------------------------------------------
    def _train_until_done(self, events: EventLog, *, resume: bool) -> None:
        """Start the SuperLink, train, and hand the model out; if it is lost, again, from the last checkpoint."""
        key = signing_key(self.config)
        audit = None if key is None else AuditLog(self.run_dir / AUDIT, key, owner="coordinator")
        if key is not None and not has_final(self.run_dir):
            pin(self.run_dir, key.public_key())
        private_port = free_port()  # stays the same over restarts
        restarts = 0
        again = resume and has_final(self.run_dir) and self._may_deliver() and bool(lacking(self.run_dir))
        while again or not has_final(self.run_dir) or (self._may_deliver() and lacking(self.run_dir) is None):
            try:
                self._train_once(events, audit, private_port, restarts)
                again = False
            except LinkLostError as error:
                restarts += 1
                events.emit("link_lost", restarts=restarts, message=str(error))
                if restarts > self.config.run.restarts:
                    raise MachineError(
                        f"the SuperLink was lost {restarts} times; run.restarts is {self.config.run.restarts}",
                        "Look at link/superlink.log in the run's folder; the run can be continued with --resume.",
                    ) from error
                time.sleep(RESTART_PAUSE_S)

    def _may_deliver(self) -> bool:
        return self.config.run.deliver_s > 0 and not self.config.security.insecure

    def _train_once(self, events: EventLog, audit: AuditLog | None, private_port: int, restarts: int) -> None:
        admission = None
        self.link = link = self._start(link_settings(self.config, self.run_dir / _LINK, private_port), restarts)
        if restarts == 0:
            say(listening(self.config))
        events.emit("listening", address=self.status.status.address, pid=link.child.pid)
        try:
            # Flower, torch and the library of backbones take seconds to load: sites connect meanwhile.
            from fed_diffmic.transport.control import Control
            from fed_diffmic.transport.serverapp import run_server_app
            from server.admission import Admission
            from server.app import app as server_app
            from server.app import shared_events

            self.status.status.state = "waiting"
            if link.settings.roster is not None:
                admission = Admission(link, Path(link.settings.roster), events)
                admission.start()
            control = Control(link)
            try:
                control.stop_runs()
                number = control.submit()
            finally:
                control.close()
            hooks = self._hooks(audit, admission)
            with shared_events(events, hooks):
                run_server_app(server_app, link, number, run_config(self.config, self.sites))
        finally:
            if admission is not None:
                admission.stop()
            self.link = None
            link.child.terminate(5.0)

    def _hooks(self, audit: AuditLog | None, admission: Admission | None) -> Hooks:
        """What this coordinator adds to the round loop; seals wherever sites are known by their keys."""
        signer = signing_key(self.config)
        limit = self.config.run.max_update_norm
        if admission is None or signer is None:
            return Hooks(audit=audit, signer=signer, max_update_norm=limit)
        seals = Seals(signer, run_reply_key(self.run_dir), admission.key_of)
        most = admission.most_images
        return Hooks(
            admission.names_of_nodes, audit, signer, limit, most, seals=seals, ledgers=ledger_memory(self.config)
        )

    def _start(self, settings: LinkSettings, restarts: int) -> RunningLink:
        """The SuperLink on its database; one that it cannot start on is set aside once."""
        try:
            return start_superlink(settings)
        except MachineError as error:
            database = Path(settings.folder) / "state.db"
            if restarts == 0 and not database.exists():
                raise
            forget_database(Path(settings.folder))
            if restarts == 0:
                return start_superlink(settings)
            raise LinkLostError(error.cause) from error

    def _counts(self) -> Mapping[str, Any] | None:
        link = self.link
        if link is None:
            return None
        with suppress(OSError):  # a full disk ends the run where results are written, not here
            set_aside(link.child.log, held=True)
        return counts(link)

    def _quorum(self, sites: int) -> int:
        return max(1, math.ceil(self.config.run.quorum * sites - 1e-9))

    # ---- the end -----------------------------------------------------------------------------
    def _finish(self, events: EventLog, started: float) -> None:
        """The final model is there: sum up, and forget what sites' updates are left in the SuperLink's database."""
        # Drawing is loaded when there is something to draw: a coordinator waits for weeks without it.
        from fed_diffmic.release.final import load_final
        from fed_diffmic.reporting.deployment import KIND, write_deployment_report

        final = load_final(self.run_dir)
        sites = {name for row in final.history for name in (*row["sites"], *row["missing"])}
        recorded = read_events(self.run_dir / "events.jsonl")
        seconds = round(earlier_seconds(recorded) + time.monotonic() - started, 1)
        privacy = statement(last_claims(final.history), sites, last_client_level(final.history))
        summary = {
            "kind": KIND,
            "status": "done",
            "run": self.run_dir.name,
            "seed": self.config.seed,
            "task": final.spec.task,
            "classes": list(final.spec.classes),
            "class_names": final.spec.plain_names,
            "modality": final.spec.modality,
            "rounds": final.history,
            "bytes_sent": final.bytes_sent,
            "digests": final.digests,
            "matrix": final.matrix,
            "together": next(iter(final.together.values()), None),
            "sureness": next((sure.to_json() for sure in final.sureness.values()), None),
            "sites": site_facts(recorded, sites),
            "signed_by": final.signed_by,
            "delivery": delivered(self.run_dir),
            "privacy": privacy,
            "seconds": seconds,
        }
        write_json(self.run_dir / "summary.json", summary)
        forget_database(self.run_dir / _LINK)
        forget_reply_key(self.run_dir)
        events.emit("run_done", seconds=seconds, bytes_sent=final.bytes_sent)
        for line in [*privacy, *delivery_lines(delivered(self.run_dir))]:
            logger.info("%s", line)
        write_metrics_csv(self.run_dir / "metrics.csv", recorded)
        text = (self.run_dir / "config.yaml").read_text(encoding="utf-8")
        report = write_deployment_report(self.run_dir, summary, events=recorded, config_yaml=text)
        logger.info("The report is %s", report)

    def _ended(self, events: EventLog, state: str, message: str) -> None:
        """Say how it ended; a disk that is full says it by the exit code alone."""
        with suppress(MachineError):
            self.status.finish(state, message)
            events.emit(f"run_{state}", message=message)


def site_facts(events: Sequence[Mapping[str, Any]], sites: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Images and class counts of each site, as it said when it was last found."""
    found = {str(event["site"]): event for event in events if event["kind"] == "site_found"}
    said = {site: found.get(site, {}) for site in sorted(sites)}
    return {
        site: {**(event.get("images") or {}), "class_counts": event.get("class_counts") or []}
        for site, event in said.items()
    }


def forget_database(folder: Path) -> None:
    """Remove a SuperLink's database: messages in transit, and with them sites' updates."""
    for path in folder.glob("state.db*"):
        path.unlink(missing_ok=True)
