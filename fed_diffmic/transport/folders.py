"""Where a run started by stock ``flwr run`` keeps its files, the same answer for every process."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context


def run_dir_of(context: Context) -> Path:
    """``run-dir`` of the run's configuration, else a folder by Flower's run number under ``FLWR_HOME``."""
    named = str(context.run_config.get("run-dir") or "")
    if named:
        return Path(named)
    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    return home / "fed_diffmic" / f"run-{context.run_id}"
