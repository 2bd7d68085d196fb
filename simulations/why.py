"""Why virtual sites failed: only their code crosses, as with real ones, but here the researcher owns every log."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.start import SITE_LOG
from fed_diffmic.errors import FedDiffmicError, MachineError, RoundError
from fed_diffmic.exchange.failures import MACHINE

LEAST_BYTES = 2**20
"""A disk with less room than this is full, whatever was tried last."""
_ROOM = "Free space there, or name another folder, and continue with --resume."


@contextmanager
def reasons(run_dir: Path) -> Iterator[None]:
    """Let a round that failed say what the virtual sites' own logs say of it (:func:`explained`)."""
    since = time.time()
    try:
        yield
    except RoundError as error:
        raise explained(error, run_dir, since) from error


def explained(error: RoundError, run_dir: Path, since: float) -> FedDiffmicError:
    """The same failure with what the virtual sites' own logs say of it; a machine's where all failed for that.

    Args:
        error: of the round.
        run_dir: the run's folder.
        since: Unix time at which the arm began: what is older is of an earlier process.
    """
    said, codes = {}, set()
    for folder in sorted((run_dir / "sites").glob("*")):
        facts = _last_line(folder / SITE_LOG)
        if facts.get("time", 0.0) >= since and facts.get("cause"):
            said[folder.name] = str(facts["cause"])
            codes.add(facts.get("code"))
    full = shutil.disk_usage(run_dir).free < LEAST_BYTES
    if full:
        said.setdefault(str(run_dir), "no space left there")
    if not said:
        return error
    alike: dict[str, list[str]] = {}
    for name, cause in said.items():
        alike.setdefault(cause, []).append(name)
    cause = f"{error.cause}. What they say: " + "; ".join(
        f"{', '.join(names)}: {what}" for what, names in alike.items()
    )
    if full or codes == {MACHINE}:
        return MachineError(cause, _ROOM)
    return RoundError(cause, f"The whole story is in sites/NAME/{SITE_LOG} in the run's folder. {error.remedy}")


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log, or nothing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        value = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return value if isinstance(value, dict) else {}
