"""The steps of the Dockerfile, carried out in clean folders; needs no engine, but a package index or uv's cache."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER = 10001


def _images():
    """The sibling module that reads the Dockerfile."""
    spec = importlib.util.spec_from_file_location("images", Path(__file__).with_name("test_images.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def carry_out(stage: list[tuple[str, str]], folder: Path, built: Path) -> None:
    """Do what a stage's COPY and RUN say, with /src and /opt of the image below ``folder`` and ``built``."""
    source = folder / "src"
    source.mkdir(parents=True)
    environment = {**os.environ, "PYTHON": sys.executable, "UV_LINK_MODE": "hardlink"}

    def here(path: str) -> Path:
        path = path.replace("/opt/fed-diffmic", str(built / "fed-diffmic"))
        return Path(path.replace("/src", str(source)) if path.startswith("/src") else path)

    for word, rest in stage:
        if word == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            for name in names:
                into = source / target.removeprefix("/src").strip("/")
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, into, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    into.mkdir(exist_ok=True)
                    shutil.copy(ROOT / name, into)
        elif word == "COPY" and "/src/dist/" in rest:
            shutil.copytree(built / "dist", source, dirs_exist_ok=True)
        elif word == "RUN" and "install.sh" in rest:
            command = [str(here(part)) if part.startswith("/") else part for part in rest.split()]
            subprocess.run(command, check=True, cwd=source, env=environment, timeout=900)
            if (source / "dist").is_dir():
                shutil.copytree(source / "dist", built / "dist")


@pytest.fixture(scope="module")
def target() -> Iterator[Path]:
    """``/opt/fed-diffmic`` as the image has it, in a folder that another user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="fed-diffmic-install-"))
    folder.chmod(0o755)
    try:
        steps = {
            name: stage for name, stage in _images().stages().items() if name in ("libraries", "program", "installed")
        }
        done = 0
        for name, stage in steps.items():
            own = stage[len(steps["libraries"]) :] if name == "program" else stage
            carry_out([*([] if name != "program" else copies(steps["libraries"])), *own], folder / name, folder / "opt")
            done += 1
        assert done == 3
        yield folder / "opt" / "fed-diffmic"
    finally:
        shutil.rmtree(folder)


def copies(stage: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a stage inherits from its parent here: the files; what it installed is shared."""
    return [(word, rest) for word, rest in stage if word == "COPY"]


def run(target: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run an installed program as the image's user, in an environment as bare as a container's."""
    with tempfile.TemporaryDirectory() as home:
        os.chmod(home, 0o777)  # for the image's user
        environment = {"PATH": f"{target}/bin:/usr/bin:/bin", "HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
        reachable = all(folder.stat().st_mode & 1 for folder in Path(sys.executable).resolve().parents)
        other = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        as_user = other if os.geteuid() == 0 and reachable else []
        return subprocess.run(
            [*as_user, str(target / "bin" / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            cwd=home,
            env=environment,
            timeout=200,
        )


@pytest.mark.slow
def test_the_image_can_be_built_and_its_commands_run(target):
    assert run(target, "fed-diffmic", "--version").stdout.startswith("fed-diffmic ")
    assert run(target, "flower-server", "--version").stdout.startswith("flower-server ")
    shown = run(target, "fed-diffmic", "simulate", "--show-config", "run.dir=r")
    assert shown.returncode == 0, shown.stderr
    wrong = run(target, "python", "-c", "import fed_diffmic.transport.superlink, client, server, torch, timm")
    assert wrong.returncode == 0, wrong.stderr
    assert os.access(target / "libexec" / "start-run", os.X_OK)


@pytest.mark.slow
def test_the_image_holds_no_tools_of_development(target):
    tools = ("pytest", "ray", "mypy", "hatchling", "pip")
    asked = f"import importlib.util as u; print([m for m in {tools} if u.find_spec(m)])"
    assert run(target, "python", "-c", asked).stdout.strip() == "[]"


@pytest.mark.slow
def test_nobody_but_root_can_change_what_is_installed(target):
    loose = [p for p in target.rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o022]
    assert loose == []
