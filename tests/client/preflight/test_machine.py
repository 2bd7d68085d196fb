"""Folders, space, devices and packages, each wrong in turn."""

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.preflight import machine
from client.preflight.machine import check_machine

Usage = namedtuple("Usage", "total used free")


def look(config):
    return {check.name: check for check in check_machine(config)}


def in_site(config, **changed):
    return replace(config, site=replace(config.site, **changed))


def test_a_machine_that_is_ready(site):
    checks = look(site)
    assert {c.name for c in checks.values() if c.level == "failed"} == set()
    assert checks["machine.folder"].level == checks["machine.packages"].level == "passed"
    assert Path(site.site.folder).stat().st_mode & 0o777 == 0o700
    assert checks["machine.packages"].facts["flwr"]


@pytest.mark.parametrize(("mode", "level"), [(0o755, "warning"), (0o777, "failed")])
def test_a_folder_that_others_may_enter(site, mode, level):
    Path(site.site.folder).mkdir()
    Path(site.site.folder).chmod(mode)
    check = look(site)["machine.folder"]
    assert check.level == level
    assert "chmod 700" in check.remedy


def test_a_folder_that_cannot_be_made(site, tmp_path):
    (tmp_path / "file").write_text("")
    assert look(in_site(site, folder=str(tmp_path / "file" / "state")))["machine.folder"].level == "failed"


@pytest.mark.parametrize(("free", "level"), [(0.5e9, "failed"), (5e9, "warning"), (50e9, "passed")])
def test_space(site, monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 0, int(free)))
    checks = look(site)
    assert checks["machine.disk"].level == level
    assert checks["machine.disk"].facts["free_gb"] == free / 1e9


def test_little_shared_memory(site, monkeypatch):
    real = shutil.disk_usage
    small = lambda place: Usage(1, 0, 10**6) if str(place) == "/dev/shm" else real(place)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", small)
    check = look(site)["machine.memory"]
    assert check.level == "warning" and "--shm-size" in check.remedy


def test_a_device_that_is_not_there(site):
    check = look(in_site(site, device=["cuda:97"]))["machine.device"]
    assert (check.level, check.exit_code) == ("failed", 6)


def test_each_of_several_devices_is_looked_at(site):
    checks = look(in_site(site, device=["cpu", "cpu"]))
    assert {checks[name].level for name in ("machine.device", "machine.device.2", "machine.devices")} == {"passed"}
    assert "2 devices share each step" in checks["machine.devices"].cause
    assert look(in_site(site, device=["cuda:97", "cuda:98"]))["machine.device.2"].level == "failed"
    assert "machine.devices" not in look(site)


def test_a_driver_that_torch_cannot_use(site, monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 470.1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = look(in_site(site, device=["auto"]))["machine.device"]
    assert check.level == "warning" and "470.1" in check.cause


def test_packages_that_are_missing_or_too_old(site, monkeypatch):
    wanted = ["flwr>=99", "no-such-package-anywhere>=1", "ray>=1; extra == 'simulation'", "numpy>=2"]
    monkeypatch.setattr(machine, "requires", lambda _: wanted)
    check = look(site)["machine.packages"]
    assert check.level == "failed"
    assert "flwr" in check.cause and "no-such-package-anywhere is missing" in check.cause
    assert "ray" not in check.cause and "numpy" not in check.cause
