"""What leaves the checkout: the wheel, Flower's bundle, the papers beside them."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import fed_diffmic
from fed_diffmic.config.compose import FOLDER

ROOT = Path(__file__).parents[1]
PACKAGES = {"fed_diffmic", "server", "client", "simulations", "configs"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what the repository holds, with a stray data set, run and notes lying about.

    Flower takes the folder's name for the app's, and refuses an underscore in it.
    """
    copy = tmp_path_factory.mktemp("checkout") / "fed-diffmic"
    copy.mkdir()
    for name in (*PACKAGES, "tests", "docs", "benchmarks"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "reference_vectors")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("runs/r1/config.yaml", "data/patients.json", "benchmarks/x.py", "docs/x.md", "tests/data/x.json"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("{}")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(checkout)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_holds_our_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"fed_diffmic-{fed_diffmic.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    assert f"{info}/licenses/LICENSE" in names
    shipped = {name for name in names if name.startswith("configs/") and name.endswith(".yaml")}
    assert shipped == {f"configs/{path.relative_to(FOLDER).as_posix()}" for path in FOLDER.rglob("*.yaml")}
    assert {Path(name).suffix for name in names if not name.startswith(info)} <= (
        {".py", ".pyi", ".yaml", ".typed", ".html", ".css", ".js"}
    )
    assert "fed_diffmic/__init__.pyi" in names  # what the interface for Python offers, for type checkers


def test_the_wheel_works_in_an_environment_of_its_own_away_from_the_checkout(wheel, tmp_path):
    """Our packages come from the wheel alone; only the libraries are lent, so that nothing is downloaded."""
    home = tmp_path / "env"
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    lent = tmp_path / "lent"
    lent.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"(_?_editable|fed_diffmic|_fed_diffmic)", entry.name):
            (lent / entry.name).symlink_to(entry)
    (site / "lent.pth").write_text(f"{lent}\n")
    uv = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--offline",
        "--no-deps",
        "--python",
        str(home / "bin" / "python"),
    ]
    subprocess.run([*uv, str(wheel)], check=True, capture_output=True, timeout=100)
    away = tmp_path / "away"
    away.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        program = [str(home / "bin" / command[0]), *command[1:]]
        return subprocess.run(program, capture_output=True, text=True, cwd=away, env=environment, timeout=100)

    where = run("python", "-c", "import configs, fed_diffmic; print(fed_diffmic.__file__, configs.__file__)")
    assert where.stdout.count(str(site)) == 2, where.stderr
    shown = run("fed-diffmic", "simulate", "--show-config", "partition=dirichlet", "run.dir=r")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["partition"]["name"] == "dirichlet"
    assert yaml.safe_load(shown.stdout)["run"]["dir"] == str(away / "r")
    wrong = run("fed-diffmic", "simulate", "partition.alfa=1")
    assert (wrong.returncode, "partition.alpha" in wrong.stderr) == (2, True)
    assert run("fed-diffmic", "--version").stdout == f"fed-diffmic {fed_diffmic.__version__}\n"
    assert run("flower-server", "--config", "x").returncode == 2
    assert list(away.iterdir()) == []


def test_flowers_bundle_holds_no_tests_docs_or_data(checkout, tmp_path):
    flwr = Path(sys.executable).with_name("flwr")
    environment = dict(os.environ, FLWR_HOME=str(tmp_path / "home"), PYTHONPATH=str(checkout))
    command = [str(flwr), "build", "--app", str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    [bundle] = tmp_path.glob("*.fab")
    held = zipfile.ZipFile(bundle).infolist()
    names = [entry.filename for entry in held]
    assert {name.split("/")[0] for name in names} - {"pyproject.toml", "LICENSE", ".info"} == PACKAGES
    assert "configs/simulate.yaml" in names
    assert "server/app.py" in names
    assert max(entry.file_size for entry in held) < 100_000, "the largest file is source, not data"
    assert bundle.stat().st_size < 4_000_000


def test_stock_flower_finds_the_same_apps():
    app = PROJECT["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": "server.app:app", "clientapp": "simulations.flower_app:client_app"}
    assert all(isinstance(value, (str, int, float, bool)) for value in app["config"].values())


def test_the_version_is_said_once_or_agrees():
    assert PROJECT["project"]["version"] == fed_diffmic.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fed_diffmic.__version__


def test_console_scripts_exist():
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_requirements_are_hashed_and_name_no_registry():
    text = (ROOT / "requirements.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text
    assert "--extra-index" not in text
    names = {re.match(r"[\w.-]+", entry).group().lower() for entry in entries}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    assert {re.match(r"[\w-]+", name).group().lower() for name in wanted} <= names


def test_the_licence_is_the_one_that_is_named():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_the_two_commands_need_nothing_before_them():
    command = ["make", "-n", "-B", "demo", "PYTHON=python3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "fed-diffmic simulate" in done.stdout
    assert "--require-hashes" in done.stdout


def test_a_python_that_is_too_old_is_named(tmp_path):
    """`make setup` in an empty checkout, with nothing but an old Python on the path."""
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "make", "rm", "awk", "touch"):
        (tools / tool).symlink_to(shutil.which(tool))
    old = tools / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = [str(tools / "make"), "setup"]
    environment = {"PATH": str(tools)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode != 0
    assert "needs Python 3.11 or later; python3 here is Python 3.9.2" in done.stderr
    assert not (tmp_path / ".venv").exists()
