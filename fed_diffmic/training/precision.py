"""What a local update's forward and backward pass are computed in: float32, or bfloat16 where that is said or faster.

With bfloat16 torch's autocast computes matrix products and convolutions in it; weights, gradients of weights, clipping,
the optimizer's moments, losses and everything that leaves a site stay float32. Equal bits are promised for a stated
precision on a stated kind of machine, so a choice by measurement (``auto``) is kept in a file, and what continues a run
goes on with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fed_diffmic.config.precision import BFLOAT16, DEVICE, FLOAT32
from fed_diffmic.errors import ConfigError, FedDiffmicError
from fed_diffmic.files import private_folder, read_json, write_json
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.update import LocalRound

FASTER = 0.9
"""Share of float32's seconds that bfloat16 may take at most where it is chosen by measurement."""

FILE = "precision.json"
TIMED = 2
_CHOSEN: dict[str, str] = {}


def casts(device: torch.device | str, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16, or nothing (``float32``)."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == BFLOAT16)


@contextlib.contextmanager
def exactly_float32(device: torch.device | str) -> Iterator[None]:
    """Float32 products whatever surrounds them: no autocast, no TF32.

    Torch lets cards convolve in TF32 (ten bits of fraction) unless told otherwise. A norm that is taken one way and the
    gradient that it is the norm of, made another way, would then differ by a thousandth of what cancels in them.
    """
    kept, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)
        torch.backends.cudnn.allow_tf32 = convolutions


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether the device computes in bfloat16 itself: on a processor without such units torch imitates it, slowly."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return kind == "cpu" and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def precision_of(
    module: StageModule, at: LocalRound, trial: Callable[[str], None], clock: Callable[[], float] | None = None
) -> str:
    """``float32`` or ``bfloat16``, as the specification's ``precision`` says of this stage on this device.

    Args:
        module: on the device, in training mode.
        at: where it is computed, and where measured choices are kept.
        trial: forward and backward pass of one step in a precision; called only where the choice is measured. What it
            changes of the module (gradients, statistics) is undone.
        clock: seconds; none: of the processor, or of the wall for a card.

    Raises:
        ConfigError: the specification says bfloat16, and the device cannot.
    """
    asked = module.spec.precision
    kind = torch.device(at.device).type
    if not module.spec.stage(module.stage).amp or asked == FLOAT32:
        return FLOAT32
    if asked == DEVICE:
        return BFLOAT16 if kind == "cuda" and has_bfloat16(at.device) else FLOAT32
    if asked == BFLOAT16:
        if kind != "cpu" and not has_bfloat16(at.device):
            raise ConfigError(
                "run.precision", asked, f"device, float32 or auto where a site computes on {kind} without bfloat16"
            )
        return BFLOAT16
    return _measured(module, at, trial, clock) if has_bfloat16(at.device) else FLOAT32


def _measured(
    module: StageModule, at: LocalRound, trial: Callable[[str], None], clock: Callable[[], float] | None
) -> str:
    facts = _facts(module, at.device)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    kept = _kept(at.choices)
    if at.choices is not None and key in kept:
        return str(kept[key]["chosen"])
    if at.choices is None and key in _CHOSEN:
        return _CHOSEN[key]
    seconds = _seconds(module, at.device, trial, clock or _clock(at.device))
    chosen = BFLOAT16 if seconds[BFLOAT16] <= FASTER * seconds[FLOAT32] else FLOAT32
    _CHOSEN[key] = chosen
    if at.choices is not None:
        what = {name: facts[name] for name in ("stage", "device", "torch")}
        write_json(private_folder(at.choices) / FILE, {**kept, key: {**what, **seconds, "chosen": chosen}}, 0o600)
    return chosen


def _facts(module: StageModule, device: torch.device | str) -> dict[str, Any]:
    """What decides which precision is faster: the model, the stage, the machine, the build of torch."""
    spec, cfg = module.spec, module.spec.stage(module.stage)
    cuda = torch.device(device).type == "cuda"
    return {
        "model": asdict(spec.model),
        "classes": spec.num_classes,
        "stage": module.stage,
        "step": [cfg.batch_size, cfg.draws, cfg.encoders],
        "threads": spec.threads,
        "device": torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def _kept(folder: Path | None) -> dict[str, Any]:
    """Choices of the folder's file; one that is not there, or torn, holds none."""
    if folder is None or not (folder / FILE).is_file():
        return {}
    try:
        found = read_json(folder / FILE)
    except FedDiffmicError:
        return {}
    good = isinstance(found, dict) and all(
        isinstance(value, dict) and value.get("chosen") in (FLOAT32, BFLOAT16) for value in found.values()
    )
    return dict(found) if good else {}


def _seconds(
    module: StageModule, device: torch.device | str, trial: Callable[[str], None], clock: Callable[[], float]
) -> dict[str, float]:
    """The least of :data:`TIMED` steps in each precision, by turns, after one that is not counted."""
    buffers = {name: value.clone() for name, value in module.network.named_buffers()}
    least = {FLOAT32: float("inf"), BFLOAT16: float("inf")}
    cards = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        for turn in range(TIMED + 1):
            for precision in least:
                began = clock()
                trial(precision)
                module.zero_grad(set_to_none=True)
                if turn:
                    least[precision] = min(least[precision], clock() - began)
    with torch.no_grad():
        for name, value in module.network.named_buffers():
            value.copy_(buffers[name])
    return least


def _clock(device: torch.device | str) -> Callable[[], float]:
    if torch.device(device).type != "cuda":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
