"""The folders of a run: whether they can be used, whose run they hold, and the name a run has from its folder."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from fed_diffmic.config.groups import layout_options
from fed_diffmic.config.run_names import RUN_NAMES, is_run_name
from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.errors import ConfigError, UsageError

RUN_MARKS = ("config.yaml", "events.jsonl", "summary.json", "checkpoints")


def holds_run(folder: Path) -> bool:
    """Whether a run has written into ``folder``."""
    return any((folder / name).exists() for name in RUN_MARKS)


def has_final(run_dir: str | os.PathLike[str]) -> bool:
    """Whether a run ended here."""
    return (Path(run_dir) / "final" / "model.json").exists()


def renamed(before: str, now: str) -> tuple[str, str]:
    """Cause and remedy of a run whose folder has another name than it had; it may well have moved."""
    return (
        f"this run was started in a folder named {before}, which is named {now} now; a run has its name from its "
        "folder, and what its sites keep goes by that name",
        f"Name the folder {before} again (it may lie elsewhere), and resume with run.dir as it is then.",
    )


def check_folders(config: SimulateConfig, resume: bool) -> None:
    """Refuse folders that are missing, in use or in the way.

    Raises:
        ConfigError: names the key, its value and what is allowed.
        UsageError: ``--resume`` with nothing to resume.
    """
    for key, path in (
        ("run.dir", config.run.dir),
        ("dataset.root", config.dataset.root),
        ("dataset.cache_dir", config.dataset.cache_dir),
    ):
        check_path(key, path)
    root, data = config.dataset.root, layout_options(config.dataset.name)
    if not data.needs_root:
        if root is not None and Path(root).exists() and not Path(root).is_dir():
            raise ConfigError("dataset.root", root, "a folder")
    elif root is None:
        raise ConfigError("dataset.root", "null", f"the folder that holds the images of dataset={config.dataset.name}")
    elif not Path(root).is_dir() and not (data.root_file and Path(root).is_file()):
        what = "an existing folder or table" if data.root_file else "an existing folder"
        raise ConfigError("dataset.root", root, what, "Check the path; a relative one starts at the current folder.")
    if config.run.dir is None:
        if resume:
            raise UsageError(
                "--resume needs to know which run", "Say run.dir=DIR, the folder of the run that was interrupted."
            )
        return
    folder = Path(config.run.dir)
    check_run_folder(folder.resolve())
    if folder.exists() and not folder.is_dir():
        raise ConfigError("run.dir", folder, "a folder, existing or not")
    if holds_run(folder) and not resume:
        raise ConfigError(
            "run.dir", folder, "a folder without a run", "Choose another folder, or continue that run with --resume."
        )
    if resume and not holds_run(folder):
        raise UsageError(f"--resume: there is no run in {folder}", "Check run.dir, or leave --resume out to start one.")


def check_run_folder(folder: Path) -> None:
    """Refuse the folder of a run whose name no site would take as the run's.

    Raises:
        ConfigError: says what is allowed.
    """
    if not is_run_name(folder.name):
        raise ConfigError("run.dir", repr(str(folder)), f"a folder whose name has {RUN_NAMES}")


def check_path(key: str, path: str | None) -> None:
    """Refuse a path that no file system takes, whatever lies there.

    Raises:
        ConfigError: a name in it is too long.
    """
    try:
        if path is not None:
            os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            shown = path if path is None or len(path) < 60 else f"{path[:28]}...{path[-28:]}"
            raise ConfigError(
                key, shown, "a path whose names have at most 255 bytes each, 4096 in all", "Choose a shorter name."
            ) from error


def with_run_dir(config: SimulateConfig, now: datetime | None = None) -> SimulateConfig:
    """The configuration with ``run.dir`` decided: ``runs/<UTC time>-<dataset>-<digest>`` if it was none."""
    if config.run.dir is not None:
        return config
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
    digest = sha256(repr(config).encode()).hexdigest()[:8]
    folder = Path("runs").absolute() / f"{stamp}-{config.dataset.name}-{digest}"
    return replace(config, run=replace(config.run, dir=str(folder)))
