"""Where a site computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fed_diffmic.errors import MachineError


def chosen_devices(names: Sequence[str]) -> tuple[str, ...]:
    """The devices that share a local update; the first one leads, and does everything else alone.

    Args:
        names: ``site.device``, checked (:func:`fed_diffmic.config.network_checks.check_devices`).

    Raises:
        MachineError: this machine has not all of them.
    """
    return tuple(chosen_device(name) for name in names)


def chosen_device(name: str) -> str:
    """``cuda`` or ``cpu`` for ``auto``; else the name, if this machine has such a device.

    Raises:
        MachineError: it has not.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise MachineError(
            f"site.device={name}, but this machine has no such device",
            "Choose site.device=auto or cpu, or mend the driver: `fed-diffmic preflight` says more.",
        )
    return name
