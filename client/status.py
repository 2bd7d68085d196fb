"""How a site does, from the files in its folder: nothing is asked of anybody."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from client.control import RUNNING, Control, control_text, read_control
from client.journal import Entry, Journal
from client.start import RUN, STATE
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import MachineError
from fed_diffmic.exchange.policy_text import names_nothing
from fed_diffmic.transport.contact import read_contact
from fed_diffmic.transport.processes import lock_file


def site_status(config: SiteConfig, folder: Path) -> dict[str, Any]:
    """Facts for people and for programs.

    Args:
        config: of the site.
        folder: its own.

    Returns:
        ``site``, ``coordinator``, ``control``, ``running``, ``connected``, ``seconds_since_contact`` (none: never),
        ``busy``, ``worker`` (``ready``, ``working``, ``replying``, ``lost`` or none), ``problem``, ``control_since``
        (seconds since the epoch, 0: never decided), ``policy`` (what keeps every run out, or empty), ``last`` (what was
        answered last) and ``refused`` (what was refused since; none: nothing), each with ``at`` and ``text``.
    """
    run = folder / RUN
    running = run.is_dir() and _locked(run / "site.lock")
    contact = read_contact(run) if running else None
    control, entries = read_control(folder), Journal(run).entries()
    alive = contact is not None and _lives(contact.pid)
    return {
        "site": config.site.name,
        "coordinator": config.coordinator.address,
        "control": control.state,
        "control_since": control.since,
        "policy": names_nothing(config.policy),
        "last": _said(next((e for e in reversed(entries) if not e.code and e.sentence()), None)),
        "refused": _said(entries[-1] if entries and entries[-1].code else None),
        "running": running,
        "connected": bool(alive and contact and contact.connected and not contact.problem),
        "seconds_since_contact": round(time.time() - contact.contact, 1) if contact and contact.contact else None,
        "busy": bool(alive and contact and contact.busy),
        "worker": worker_state(run) if running else None,
        "problem": contact.problem if contact else "",
    }


def status_text(status: dict[str, Any]) -> str:
    """The same as sentences."""
    lines = [f"site {status['site']}, coordinator {status['coordinator']}"]
    if not status["running"]:
        lines.append("not running on this machine")
    elif status["connected"]:
        lines.append(f"connected; last contact {status['seconds_since_contact']:.0f} s ago")
    else:
        lines.append("not connected" + (f": {status['problem']}" if status["problem"] else ""))
    if status["running"]:
        doing = {"working": "computing", "replying": "handing in a reply", "ready": "waiting for work"}
        lines.append(f"worker: {doing.get(status['worker'], 'not ready')}")
    for name in ("last", "refused"):
        if status[name] is not None:
            stamp = datetime.fromtimestamp(status[name]["at"]).strftime("%Y-%m-%d %H:%M:%S")
            lines.append(f"{stamp}  {status[name]['text']}")
    if status["policy"]:
        lines.append(status["policy"])
    if status["control"] != RUNNING:
        lines.append(control_text(Control(status["control"], status["control_since"])))
    return "\n".join(lines)


def _said(entry: Entry | None) -> dict[str, Any] | None:
    return None if entry is None else {"at": entry.at, "text": entry.sentence()}


def _locked(path: Path) -> bool:
    try:
        with lock_file(path):
            return False
    except MachineError:
        return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def worker_state(run: Path) -> str | None:
    """What the worker last said that it does (:func:`fed_diffmic.transport.worker.serve`), or none."""
    try:
        return str(json.loads((run / STATE).read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
