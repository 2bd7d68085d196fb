"""What the people of a site do while it runs, as they do it: by its commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from client.housekeeping import KEPT
from fed_diffmic.transport.supernode import INBOX
from tests.consortium.harness import BIN, SITES, START_S, Consortium, alive, environment, wait

LEAVES = SITES[-1]
SOON_S = 60.0  # of a deadline of 150 s: nobody waited for it
TASKS = ("task", "payload", "refusal")  # lines of the audit log that come of a request


def say(made: Consortium, *words: str) -> int:
    """What a person at the site types; the command's exit code."""
    command = [str(BIN / "fed-diffmic"), "client", *words, "--config", str(made.site_yaml[LEAVES])]
    return subprocess.run(command, env=environment(), capture_output=True, timeout=START_S, check=False).returncode


def withdraw_while_training(made: Consortium) -> None:
    """Withdraw in the middle of a local update."""
    worker = int(made.wait_state(LEAVES, ("working",))["worker"]["pid"])
    os.kill(worker, signal.SIGSTOP)  # so that it still trains when the command has loaded
    assert say(made, "withdraw") == 0
    wait("the end of the worker that trained", lambda: not alive(worker), SOON_S)
    wait("the line of the decision", lambda: decision(made) is not None, SOON_S)


def audit(made: Consortium) -> list[dict[str, Any]]:
    """The lines of the site's audit log."""
    return [json.loads(x) for x in (made.site_folder(LEAVES) / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def decision(made: Consortium) -> int | None:
    """Where in the site's audit log the withdrawal stands, if it does."""
    lines = audit(made)
    return next((i for i, x in enumerate(lines) if x["kind"] == "control" and x["facts"]["state"] == "withdrawn"), None)


def kept(made: Consortium) -> list[Path]:
    """Files of what a site keeps between tasks."""
    return [path for part in (*KEPT, INBOX) for path in (made.site_folder(LEAVES) / part).rglob("*") if path.is_file()]
