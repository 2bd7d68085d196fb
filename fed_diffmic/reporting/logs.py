"""Logs of long-running commands: sentences on a terminal, one JSON object a line otherwise.

No name of an image or a patient is ever logged; what is said here may be copied into a ticket.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from fed_diffmic.files import append_line
from fed_diffmic.reporting.rotation import set_aside

_HANDLER = "fed_diffmic"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, and whatever ``extra`` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            facts["detail"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


class HumanFormatter(logging.Formatter):
    """Local time, level where it is not plain information, and the sentence."""

    def format(self, record: logging.LogRecord) -> str:
        """One or more lines for a reader."""
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{clock}  {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _File(logging.Handler):
    """JSON lines into a file (0600), of which a few old parts are kept (:mod:`fed_diffmic.reporting.rotation`)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line; a full disk must not stop what is being logged."""
        try:
            set_aside(self._path)
            append_line(self._path, self.format(record), mode=0o600)
        except OSError:
            self.handleError(record)


def set_up_logs(*, file: Path | None = None, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (standard error), and to a file of JSON lines as well if one is named.

    Called again, it replaces what it set up before. Flower's own messages below warnings are left out.
    """
    out = stream or sys.stderr
    root = logging.getLogger()
    for handler in list(root.handlers):
        if handler.get_name() == _HANDLER:
            root.removeHandler(handler)
    handlers: list[logging.Handler] = [logging.StreamHandler(out)]
    handlers[0].setFormatter(HumanFormatter() if out.isatty() else JsonFormatter())
    if file is not None:
        handlers.append(_File(file))
    for handler in handlers:
        handler.set_name(_HANDLER)
        root.addHandler(handler)
    root.setLevel(level)
    for name in ("flwr", "httpx", "httpcore", "uvicorn", "filelock"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
