"""What every command shares: quiet libraries, one place for errors and exit codes, our words for usage.

Nothing heavy is imported here: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import gc
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fed_diffmic.errors import FedDiffmicError, MachineError, UsageError

INTERRUPTED = 130
TERMINATED = 143
DEFECT = 1

_NO_REPORTS_HOME = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
}
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE)
_OF_A_PATH = (errno.ENAMETOOLONG, errno.ELOOP)


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends as Ctrl-C does, with its own exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are :class:`UsageError`, with no abbreviations."""

    def __init__(self, **options: object) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and leaving."""
        raise UsageError(f"{self.prog}: {message}", f"`{self.prog} --help` shows how it is used.")


def check_command(parser: Parser, given: Sequence[str], commands: Sequence[str], after: str = "") -> None:
    """Refuse a command that does not exist, naming the nearest."""
    if not given or given[0].startswith("-") or given[0] in commands:
        return
    near = difflib.get_close_matches(given[0], commands, n=1)
    program = f"{parser.prog} {after}".strip()
    raise UsageError(
        f"{program} has no command {given[0]!r}; there is {', '.join(commands)}",
        f"Did you mean `{parser.prog} {after}{near[0]}`?"
        if near
        else f"`{parser.prog} {after}--help` says what each one does.",
    )


def split_settings(parser: Parser, settings: Sequence[str], left: Sequence[str]) -> list[str]:
    """``key=value`` arguments, wherever they stand among the options; any other left-over is refused."""
    for argument in left:
        if argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0]
            options = [option for action in parser._actions for option in action.option_strings]
            near = difflib.get_close_matches(f"--{name}", options, n=1, cutoff=0.75)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"{parser.prog}: there is no option {argument!r}",
                f"{meant}Settings have no dashes: `{name}=value`. `{parser.prog} --help` lists the options.",
            )
    return [*settings, *left]


def quiet_libraries() -> None:
    """Nothing is reported home, whatever the environment says; set before Flower or Ray is imported."""
    os.environ.update(_NO_REPORTS_HOME)


def show_any_name() -> None:
    """Let a terminal or a file of another encoding show names that it has no letters for, as their numbers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def while_loading() -> Iterator[None]:
    """Libraries are loaded inside it, in a program of our own.

    What a module defines stays until the end. Python's search for cycles would walk through all of it again and again,
    while it is loaded and ever after: it rests meanwhile (a tenth of a start), and leaves what was loaded alone.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once a process, when it has done nothing else yet
            gc.freeze()
        gc.enable()


def check_working_folder() -> None:
    """Refuse to work in a folder that is not there any more: no relative path means anything in it.

    Raises:
        MachineError: it was removed, or may not be entered.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise MachineError(
            f"the current folder cannot be used: {error.strerror}", "Change to a folder that exists, and try again."
        ) from error


def run_command(body: Callable[[], int], resume_hint: Callable[[], str] | None = None) -> int:
    """Run a command and turn what goes wrong into words on stderr and an exit code.

    Args:
        body: the command; returns its exit code.
        resume_hint: what to say after an interruption.

    Returns:
        The exit code of docs/errors.md.
    """
    quiet_libraries()
    show_any_name()
    before = _on_sigterm(_raise_terminated)
    try:
        check_working_folder()
        return body()
    except FedDiffmicError as error:
        return _say(error)
    except KeyboardInterrupt as error:
        hint = resume_hint() if resume_hint else ""
        print(f"\ninterrupted{'; ' + hint if hint else ''}", file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        machine = _machine_error(error)
        if machine is not None:
            return _say(machine)
        traceback.print_exc()
        print(
            "\nThis is a defect of fed_diffmic: please report it with the lines above"
            " (take out names of files and patients first).",
            file=sys.stderr,
        )
        return DEFECT
    finally:
        if before is not None:
            _on_sigterm(before)


def _say(error: FedDiffmicError) -> int:
    print(f"error {harmless(str(error))}", file=sys.stderr)
    return error.exit_code


def harmless(text: str) -> str:
    """A text that no terminal takes for a command: what is not printable is escaped, but ends of lines."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _machine_error(error: Exception) -> MachineError | None:
    """Failures of the machine that no room turned into our words."""
    if isinstance(error, OSError) and error.errno in _OF_A_PATH:
        return MachineError(f"a path cannot be used: {error.strerror}", "Give a shorter path, with no loop of links.")
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return MachineError(
            f"the machine refused: {error.strerror}",
            "Check space and permission of the folders in the configuration.",
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MachineError("out of memory", "Make stages.*.batch_size, model.image_side or model.latent smaller.")
    return None


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _on_sigterm(handler: Any) -> Any:
    """Set the handler of SIGTERM where that is possible (the main thread); the one before, or None."""
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:
        return None
