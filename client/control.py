"""What a site's people decide while it runs: pause, go on, withdraw. A file in the site's folder, nothing remote.

Paused and withdrawn sites stay connected and answer every request with a code, so that the coordinator knows at once
and asks for nothing more. Withdrawing stops what is being computed and removes what was kept; it cannot be undone by
``continue``, only by ``continue --rejoin``.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.exchange.failures import PAUSED, WITHDRAWN, SiteError
from fed_diffmic.exchange.remedies import at_site
from fed_diffmic.files import read_json, write_json

FILE = "control.json"
RUNNING, PAUSE, WITHDRAW = "running", "paused", "withdrawn"


@dataclass(frozen=True)
class Control:
    """What was decided.

    Attributes:
        state: ``running``, ``paused`` or ``withdrawn``.
        since: seconds since the epoch; 0: never decided.
    """

    state: str = RUNNING
    since: float = 0.0


def read_control(folder: Path) -> Control:
    """The decision; a file that cannot be read counts as a pause, for it may have said withdraw."""
    path = folder / FILE
    if not path.exists():
        return Control()
    try:
        value = Control(**read_json(path))
    except (ModelFileError, TypeError):
        return Control(PAUSE, 0.0)
    return value if value.state in (RUNNING, PAUSE, WITHDRAW) else Control(PAUSE, 0.0)


def control_text(control: Control) -> str:
    """State, since when, and how to leave it, in words."""
    if control.state == RUNNING:
        return RUNNING
    since = (
        datetime.fromtimestamp(control.since).astimezone().strftime(" since %Y-%m-%d %H:%M") if control.since else ""
    )
    unread = "" if control.since else f" ({FILE} in its folder cannot be read)"
    code = PAUSED if control.state == PAUSE else WITHDRAWN
    return f"{control.state}{since}{unread}: every request is answered with that. {at_site(code)}"


def decide(folder: Path, state: str, *, rejoin: bool = False) -> Control:
    """Write a decision down.

    Args:
        folder: the site's own.
        state: ``running``, ``paused`` or ``withdrawn``.
        rejoin: needed to leave ``withdrawn``.

    Raises:
        UsageError: there is no such site, or it has withdrawn.
        MachineError: it cannot be written.
    """
    if not folder.is_dir():
        raise UsageError("this site has never run: its folder does not exist", "Check site.folder.")
    before = read_control(folder)
    if before.state == WITHDRAW and state != WITHDRAW and not rejoin:
        raise UsageError(
            "this site has withdrawn", "To take part again: `fed-diffmic client continue --config FILE --rejoin`."
        )
    if before.state == state:
        return before
    decision = Control(state, time.time())
    write_json(folder / FILE, asdict(decision), mode=0o600)
    return decision


def gate(folder: Path) -> None:
    """Let a task through, or not.

    Raises:
        SiteError: paused or withdrawn.
    """
    state = read_control(folder).state
    if state == PAUSE:
        raise SiteError(PAUSED)
    if state == WITHDRAW:
        raise SiteError(WITHDRAWN)
