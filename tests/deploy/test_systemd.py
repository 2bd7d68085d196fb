"""The units for systemd, by systemd's own tools where there are any, and by their text everywhere."""

import ipaddress
import shutil
import subprocess
from pathlib import Path

import pytest

from fed_diffmic.provision.credentials import passphrase_of

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
CLIENT, SERVER = "fed-diffmic-client.service", "fed-diffmic-server@.service"
PROGRAMS = ("bin/fed-diffmic", "libexec/start-run")
WITH_SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's tools")


def settings(unit: str) -> dict[str, list[str]]:
    """Values of each key, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def verify(unit: str, folder: Path, text: str) -> str:
    """What systemd-analyze complains of, with the programs where an installation would have them."""
    for name in PROGRAMS:
        program = folder / "opt" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shutil.which("true"), program)
    path = folder / unit.replace("@", "@pilot")
    path.write_text(text.replace("/opt/fed-diffmic", str(folder / "opt")))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


@WITH_SYSTEMD
@pytest.mark.parametrize("unit", [CLIENT, SERVER])
def test_systemd_accepts_the_unit(unit, tmp_path):
    text = (UNITS / unit).read_text()
    assert verify(unit, tmp_path, text) == ""
    assert "ProtektHome" in verify(unit, tmp_path, text.replace("ProtectHome", "ProtektHome"))
    assert "not executable" in verify(unit, tmp_path, text.replace("/opt/fed-diffmic/", "/opt/other/"))


@WITH_SYSTEMD
@pytest.mark.parametrize("unit", [CLIENT, SERVER])
def test_the_unit_is_shut_by_systemds_own_measure(unit):
    """Exposure from 0 to 10; a unit without any of these settings has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", UNITS / unit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@WITH_SYSTEMD
def test_an_open_unit_would_be_refused(tmp_path):
    opened = tmp_path / CLIENT
    opened.write_text("[Service]\nExecStart=/bin/true\n")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", opened]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="needs systemd's tools")
def test_the_user_is_made_with_the_state_as_home(tmp_path):
    [line] = [line for line in (UNITS / "fed-diffmic.sysusers.conf").read_text().splitlines() if line[:1] != "#"]
    command = ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", "--inline", line]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fed-diffmic" in done.stderr + done.stdout
    assert line.split()[-2] == "/var/lib/fed-diffmic"


@pytest.mark.parametrize("unit", [CLIENT, SERVER])
def test_what_a_unit_promises(unit):
    found = settings(unit)
    assert found["User"] == ["fed-diffmic"]
    assert found["StateDirectory"] == ["fed-diffmic"]
    assert found["StateDirectoryMode"] == ["0700"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["LimitCORE"] == ["0"]  # a core file would hold images
    assert found["MemorySwapMax"] == ["0"]
    assert (found["MemoryHigh"], found["MemoryMax"], found["TasksMax"]) == (["80%"], ["90%"], ["4096"])
    assert "ReadWritePaths" not in found
    assert found["CapabilityBoundingSet"] == [""]
    # 2 3 4: configuration, data, files of a model; 1 5 6 may pass by themselves; 130 and 143 were asked for.
    assert found["RestartPreventExitStatus"] == ["2 3 4"]
    assert found["SuccessExitStatus"] == ["130 143"]
    assert found["KillMode"] == ["mixed"]


def test_the_example_of_egress_lets_nothing_out_but_what_it_names():
    found = settings("egress.conf.example")
    assert found["IPAddressDeny"] == ["any"]
    allowed = [ipaddress.ip_address(value) for value in found["IPAddressAllow"] if value != "localhost"]
    assert "localhost" in found["IPAddressAllow"]
    assert all(address in ipaddress.ip_network("192.0.2.0/24") for address in allowed)  # of examples, nobody's


def test_the_example_of_a_passphrase_has_the_name_by_which_it_is_found(tmp_path, monkeypatch):
    [line] = settings("passphrase.conf.example")["LoadCredential"]
    name = line.split(":")[0]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / name).write_text("handed over by systemd")
    (tmp_path / name).chmod(0o400)
    assert passphrase_of(Path("/etc/fed-diffmic/site.key"), None) == b"handed over by systemd"


@WITH_SYSTEMD
@pytest.mark.parametrize("example", ["egress.conf.example", "passphrase.conf.example"])
def test_systemd_accepts_the_unit_with_an_example(example, tmp_path):
    assert verify(CLIENT, tmp_path, (UNITS / CLIENT).read_text() + (UNITS / example).read_text()) == ""
