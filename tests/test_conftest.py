"""The rule about tests on real data, seen to bite."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CASES = """
import pytest
def test_used(shared): assert (shared / 'data').is_dir()
def test_skips(shared): pytest.skip('not today')
@pytest.mark.skip(reason='not today')
def test_marked(shared): pass
def test_other(): pytest.skip('no real data asked for')
@pytest.mark.xfail(strict=True)
def test_expected(shared): assert False
"""


def outcomes(folder: Path, variable: str | None) -> dict[str, str]:
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("conftest.py"), folder / "conftest.py")
    (folder / "test_it.py").write_text(CASES)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("FED_DIFFMIC_SHARED", "PYTEST_ADDOPTS")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if variable is not None:
        environment["FED_DIFFMIC_SHARED"] = variable
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=200)
    return dict(re.findall(r"::test_(\w+) (\w+)", done.stdout.split("= FAILURES =")[0].split("= ERRORS =")[0]))


def test_a_real_data_test_may_not_vanish_where_the_data_are(tmp_path):
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert outcomes(tmp_path / "t", str(tmp_path / "shared")) == {
        "used": "PASSED",
        "skips": "FAILED",
        "marked": "ERROR",
        "other": "SKIPPED",
        "expected": "XFAIL",
    }


def test_without_the_data_it_is_skipped(tmp_path):
    assert set(outcomes(tmp_path / "t", None).values()) == {"SKIPPED"}


def test_a_wrong_folder_is_a_failure_not_a_skip(tmp_path):
    assert outcomes(tmp_path / "t", str(tmp_path / "nowhere"))["used"] == "ERROR"
