"""The machine: folders and who may read them, disk, shared memory, device and driver, what is installed."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed_version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from client.device import chosen_device
from client.preflight.check import Check, failed, guarded, of_error, passed, warning
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.data.open import cache_folder
from fed_diffmic.errors import FedDiffmicError
from fed_diffmic.files import private_folder

LEAST_GB, WANTED_GB = 1.0, 10.0
SHM_MB = 64.0
_PACKAGE = "fed-diffmic"


def check_machine(config: SiteConfig) -> Iterator[Check]:
    """Every check of the machine; the site's folder is made if it is missing."""
    yield from guarded("machine.folder", lambda: _folder(config))
    yield from guarded("machine.disk", lambda: _disk(config))
    yield from guarded("machine.memory", _shared_memory)
    for number, name in enumerate(config.site.device, start=1):
        check = "machine.device" if number == 1 else f"machine.device.{number}"
        yield from guarded(check, functools.partial(_device, name, check))
    if len(config.site.device) > 1:
        yield passed(
            "machine.devices",
            f"{len(config.site.device)} devices share each step of a local update; {config.site.device[0]} leads and "
            "does everything else, and the times that are foretold are its own alone",
        )
    yield from guarded("machine.packages", _packages)


def _folder(config: SiteConfig) -> Iterator[Check]:
    folder = private_folder(str(config.site.folder))
    mode = folder.stat().st_mode & 0o777
    if folder.stat().st_uid != os.getuid():
        yield failed(
            "machine.folder",
            "site.folder belongs to another account",
            f"Give it to the account that runs the client: `chown {os.getuid()} {folder}`.",
        )
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield failed("machine.folder", "site.folder cannot be written", f"`chmod 700 {folder}`")
    elif mode & 0o077:
        yield warning(
            "machine.folder",
            f"others may look into site.folder (mode {mode:03o}), which derives from patients' data",
            f"`chmod 700 {folder}`",
        )
    else:
        yield passed("machine.folder", "site.folder is writable, and its owner's alone")
    if os.getuid() == 0:
        yield warning("machine.account", "this runs as root", "Run the client as an account of its own.")


def _disk(config: SiteConfig) -> Iterator[Check]:
    places = {"site.folder": Path(str(config.site.folder))}
    if config.dataset.cache_dir:
        places["dataset.cache_dir"] = cache_folder(config.dataset)
    for name, place in places.items():
        existing = next(p for p in (place, *place.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free / 1e9
        facts = {"place": name, "free_gb": round(free, 1)}
        words = f"{free:,.1f} GB are free for {name}"
        if free < LEAST_GB:
            yield failed("machine.disk", words, f"Free at least {WANTED_GB:.0f} GB.", exit_code=6, **facts)
        elif free < WANTED_GB:
            yield warning("machine.disk", words, f"{WANTED_GB:.0f} GB are advised.", **facts)
        else:
            yield passed("machine.disk", words, **facts)


def _shared_memory() -> Iterator[Check]:
    place = Path("/dev/shm")  # noqa: S108 - looked at, not written
    if not place.is_dir():
        yield passed("machine.memory", "this system has no /dev/shm, and none is needed")
        return
    free = shutil.disk_usage(place).free / 1e6
    if free < SHM_MB:
        yield warning(
            "machine.memory",
            f"{free:.0f} MB of shared memory are free",
            "In a container: start it with --shm-size=1g.",
            free_mb=round(free),
        )
    else:
        yield passed("machine.memory", f"{free:,.0f} MB of shared memory are free", free_mb=round(free))


def _device(name: str, check: str) -> Iterator[Check]:
    try:
        device = chosen_device(name)
    except FedDiffmicError as error:
        yield of_error(check, error)
        return
    if not device.startswith("cuda"):
        driver = _driver()
        if name == "auto" and driver is not None:
            yield warning(
                check,
                f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} cannot use it",
                "Install the build of torch for CUDA that this driver supports.",
            )
        else:
            yield passed(check, f"computes on {device} ({os.cpu_count()} processors)", device=device)
        return
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    facts = {
        "device": device,
        "gpu": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "capability": capability,
    }
    free = torch.cuda.mem_get_info(device)[0] / 1e9
    value = float(torch.ones(64, 64, device=device).matmul(torch.ones(64, 64, device=device)).sum().cpu())
    words = f"{properties.name}, {free:.1f} of {facts['memory_gb']} GB free, driver {facts['driver'] or 'unknown'}"
    if value != 64**3:
        yield failed(check, f"{words}: it computes wrongly", "Have the hardware and driver checked.")
    elif free < 0.5 * float(properties.total_memory) / 1e9:
        yield warning(check, f"{words}: another process uses it", "See nvidia-smi.", **facts)
    else:
        yield passed(check, words, **facts)


def _driver() -> str | None:
    """Version of the NVIDIA driver as its own tool says it, or none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.split()), None)


def _packages() -> Iterator[Check]:
    """What this package asks for, against what is installed."""
    wrong, seen = [], {}
    for text in requires(_PACKAGE) or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = installed_version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        seen[wanted.name] = there
        if not wanted.specifier.contains(there, prereleases=True):
            wrong.append(f"{wanted.name} {there} is not {wanted.specifier}")
    if wrong:
        yield failed("machine.packages", "; ".join(wrong), "Install from the requirements file of this release.")
    else:
        yield passed(
            "machine.packages",
            f"Python {platform.python_version()}, torch {torch.__version__}, and {len(seen)} packages as asked for",
            python=platform.python_version(),
            **seen,
        )
