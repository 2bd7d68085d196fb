"""Everything that was to be measured on a card, in one run of at most eight minutes.

    python -m benchmarks.card [--device cuda] [--limit 480]
    python -m benchmarks.card --device cpu --small      (a minute on a processor: does the program work?)

Prints the device; training steps of ``paper`` and ``compact`` in both stages, in float32 and bfloat16, with steps a
second and the most memory that tensors held; the same steps against plain twins and predictions against theirs
(:mod:`benchmarks.step`); private steps against plain ones in both stages (:mod:`benchmarks.private_step`); processor
seconds of a start (:mod:`benchmarks.start`) and of rounds of virtual sites (:mod:`benchmarks.peers`), which a card has
no part in. A part that fails says why and the others go on; parts that there is no time for are named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import step as steps
from benchmarks.private_step import most_memory, plain_step, private_steps
from benchmarks.private_step import spec_of as private_spec
from benchmarks.turns import seconds_by_turns
from fed_diffmic.training.stages import build_module

BATCHES = {"paper": 32, "compact": 32, "tiny": 8}
PHYSICAL = {"paper": 4, "compact": 16, "tiny": 4}
REPEATS = 5


def peak_gib(device: str) -> float:
    """The most that tensors held on the card since the last reset; 0 on a processor."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.startswith("cuda") else 0.0


def fresh(device: str) -> None:
    """Forget what was allocated before."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def speeds(model: str, device: str, repeats: int) -> None:
    """Steps a second, and memory, of both stages in each precision."""
    for stage in ("guidance", "diffusion"):
        for kind in steps.precisions(device):
            fresh(device)
            module = steps.module_of(steps.spec_of(model), stage, device)
            step = steps.training_step(module, device, kind, plain=False, images=BATCHES[model])
            taken = steps.interleaved({kind: step}, repeats, device)[kind]
            print(
                f"| {model}, {stage}, {BATCHES[model]} images | {kind} | {1 / min(taken):.2f} steps/s "
                f"| {BATCHES[model] / min(taken):.0f} images/s | {peak_gib(device):.2f} GiB |",
                flush=True,
            )


def private(model: str, device: str, repeats: int) -> None:
    """Private steps, both ways, against a plain one of as many images, in both stages: time and memory."""
    torch.manual_seed(0)
    where, count = torch.device(device), 2 * PHYSICAL[model]
    for stage in ("guidance", "diffusion"):
        spec = private_spec(model, "train", [])
        module = build_module(spec, stage).train().to(where)
        side = spec.model.image_side
        images = torch.randn(count, 3, side, side).to(where)
        labels = (torch.arange(count) % spec.num_classes).to(where)
        ways = {
            "plain": plain_step(module, images, labels),
            **private_steps(module, images, labels, PHYSICAL[model], False),
        }
        seconds = seconds_by_turns(ways, repeats, where)
        memory = {name: most_memory(step, where) for name, step in ways.items()}
        said = " | ".join(
            f"{name} {taken:.3f} s ({taken / seconds['plain']:.1f} times), {memory[name] / 2**30:.2f} GiB"
            for name, taken in seconds.items()
        )
        print(f"| {model}, {stage}, {count} images | {said} |", flush=True)


def program(*arguments: str, seconds: float) -> None:
    """Another benchmark, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    print(done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip()[-400:]}", flush=True)


def parts(device: str, small: bool, left: Callable[[], float]) -> dict[str, Callable[[], None]]:
    """What is measured, what is worth most first."""
    repeats = 1 if small else REPEATS
    models = ["tiny"] if small else ["paper", "compact"]
    found: dict[str, Callable[[], None]] = {}
    for model in models:
        found[f"steps a second, {model}"] = lambda m=model: speeds(m, device, repeats)
        found[f"private against plain, {model}"] = lambda m=model: private(m, device, 1)
    for stage in ("diffusion", "guidance"):
        found[f"step against its twin, {models[0]}, {stage}"] = lambda s=stage: steps.train_rows(
            models[0], s, repeats, device
        )
    found[f"prediction against its twin, {models[0]}"] = lambda: steps.predict_rows(models[0], repeats, device)
    if not small:
        found["a start"] = lambda: program("benchmarks.start", "--repeats", "1", seconds=left())
        found["rounds of virtual sites"] = lambda: program(
            "benchmarks.peers", "--rounds", "3", "--settings", "10/10,100/10", seconds=left()
        )
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--limit", type=float, default=480.0, metavar="SECONDS")
    given = parser.parse_args()
    began = time.monotonic()

    def left() -> float:
        return max(given.limit - (time.monotonic() - began), 1.0)

    torch.set_num_threads(1)
    cuda = given.device.startswith("cuda")
    name = torch.cuda.get_device_name(given.device) if cuda else torch.backends.cpu.get_cpu_capability()
    print(f"device {name}, torch {torch.__version__}, bfloat16 {'yes' if steps.has_bfloat16(given.device) else 'no'}")
    for title, measure in parts(given.device, given.small, left).items():
        if left() <= 1.0:
            print(f"not measured, {given.limit:.0f} s are over: {title}")
            continue
        print(f"\n{title} (after {time.monotonic() - began:.0f} s)", flush=True)
        try:
            measure()
        except (RuntimeError, SystemExit, subprocess.TimeoutExpired, ValueError, TypeError) as error:
            print(f"failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
        fresh(given.device)


if __name__ == "__main__":
    main()
