import argparse
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fed_diffmic import errors
from fed_diffmic.console import Parser, check_command, quiet_libraries, run_command, split_settings
from fed_diffmic.errors import FedDiffmicError, UsageError


def raising(error):
    def body():
        raise error

    return body


FAILURES = [
    (errors.ConfigError("a.b", 1, "2"), 2),
    (errors.UsageError("x"), 2),
    (errors.DataError("x"), 3),
    (errors.PartitionError("x"), 3),
    (errors.ModelFileError("x"), 4),
    (errors.RoundError("x"), 5),
    (errors.MachineError("x", "do y"), 6),
    (OSError(errno.ENOSPC, "No space left on device"), 6),
    (PermissionError(errno.EACCES, "Permission denied"), 6),
    (MemoryError(), 6),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 6),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_what_a_user_can_mend_is_words_and_a_code(error, code, capsys):
    assert run_command(raising(error)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error FD00")
    assert "Traceback" not in err


def test_what_is_our_defect_shows_where(capsys):
    assert run_command(raising(ZeroDivisionError("ours"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "please report" in err
    assert run_command(raising(FileNotFoundError(errno.ENOENT, "No such file"))) == 1


def test_interruption_and_success(capsys):
    assert run_command(lambda: 0) == 0
    assert run_command(raising(KeyboardInterrupt()), lambda: "resume with: X") == 130
    assert "resume with: X" in capsys.readouterr().err


def test_sigterm_ends_as_ctrl_c_does_and_the_handler_is_given_back(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def body():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([signal.SIGUSR1], 5)
        return 0

    assert run_command(body, lambda: "resume with: X") == 143
    assert "resume with: X" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_goes_away_is_no_failure():
    program = "import sys; from fed_diffmic.cli import main; sys.exit(main(['options']))"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{program}" | head -1'],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=120,
    )
    assert done.stdout == "top level\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_nothing_is_reported_home_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    quiet_libraries()
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_the_parser_raises_instead_of_leaving():
    parser = Parser(prog="p")
    parser.add_argument("--number", type=int)
    with pytest.raises(UsageError, match="p: argument --number"):
        parser.parse_args(["--number", "x"])
    with pytest.raises(UsageError):
        parser.parse_args(["--num", "1"])
    assert parser.formatter_class is argparse.RawDescriptionHelpFormatter


def test_left_overs():
    parser = Parser(prog="p")
    assert split_settings(parser, ["a=1"], ["b=2"]) == ["a=1", "b=2"]
    with pytest.raises(UsageError, match="no option '-x'"):
        split_settings(parser, [], ["-x"])
    check_command(parser, [], ["run"])
    check_command(parser, ["--help"], ["run"])
    with pytest.raises(UsageError, match="p data has no command 'rum'"):
        check_command(parser, ["rum"], ["run"], after="data ")


def test_every_class_of_error_is_documented_with_its_codes():
    text = (Path(__file__).parents[1] / "docs" / "errors.md").read_text()
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, FedDiffmicError)]
    classes.remove(FedDiffmicError)
    classes = [c for c in classes if "code" in vars(c)]  # a class without one of its own is a kind of the one above it
    assert len(classes) > 8
    assert len({c.code for c in classes}) == len(classes)
    for c in classes:
        assert f"| {c.code} | `{c.__name__}` | {c.exit_code} |" in text


def test_a_working_folder_that_is_gone_is_said(tmp_path):
    (tmp_path / "gone").mkdir()
    program = "import os, sys; os.rmdir(os.getcwd()); from fed_diffmic.cli import main; sys.exit(main(['options']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path / "gone",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=60,
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error FD007: the current folder cannot be used")
    assert "Change to a folder that exists" in done.stderr


def test_names_that_the_output_has_no_letters_for_are_shown_as_numbers(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    assert run_command(lambda: print("run.dir: \u4e2d\u6587, caf\xe9", flush=True) or 0) == 0
    assert raw.getvalue() == b"run.dir: \\u4e2d\\u6587, caf\xe9\n"


def test_a_path_that_is_too_long_is_said(capsys):
    assert run_command(raising(OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300))) == 6
    assert "a path cannot be used: File name too long" in capsys.readouterr().err
