"""How a site does, from the files in its folder: nothing is asked of anybody."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from client.control import read_control
from client.start import RUN, STATE
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import MachineError
from fed_diffmic.transport.contact import read_contact
from fed_diffmic.transport.processes import lock_file


def site_status(config: SiteConfig, folder: Path) -> dict[str, Any]:
    """Facts for people and for programs.

    Args:
        config: of the site.
        folder: its own.

    Returns:
        ``site``, ``coordinator``, ``control``, ``running``, ``connected``, ``seconds_since_contact`` (none: never),
        ``busy``, ``worker`` (``ready``, ``working``, ``replying``, ``lost`` or none), ``problem``.
    """
    run = folder / RUN
    running = run.is_dir() and _locked(run / "site.lock")
    contact = read_contact(run) if running else None
    alive = contact is not None and _lives(contact.pid)
    return {
        "site": config.site.name,
        "coordinator": config.coordinator.address,
        "control": read_control(folder).state,
        "running": running,
        "connected": bool(alive and contact and contact.connected and not contact.problem),
        "seconds_since_contact": round(time.time() - contact.contact, 1) if contact and contact.contact else None,
        "busy": bool(alive and contact and contact.busy),
        "worker": _worker(run) if running else None,
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
    if status["control"] != "running":
        lines.append(f"{status['control']}: every request is answered with that")
    return "\n".join(lines)


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


def _worker(run: Path) -> str | None:
    try:
        return str(json.loads((run / STATE).read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
