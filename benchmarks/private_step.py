"""A private step against a plain one: norms, clipping and noise; processor seconds and peak memory.

``python -m benchmarks.private_step [--model paper] [--stage guidance] [--images 4] [--device cuda]``: one process, one
thread, random images, three ways by turns, each step of the same images:

- *plain*: a mini-batch's gradient;
- *units*: each unit's gradient by itself (``vmap`` of ``grad``), clipped and added, with noise as it was drawn before;
- *ghost*: norms without gradients, and noise as it is drawn now.

Ratios of this run count, for the machine may be shared. Memory on the processor is what a process of its own grew by at
most during one step, gradients and sums with it; on a CUDA device it is the most that tensors held, model and all.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.noise import before
from benchmarks.turns import seconds_by_turns
from fed_diffmic.config.compose import compose_text
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.privacy import per_sample
from fed_diffmic.privacy.dp_sgd import NOISE_AT_A_TIME
from fed_diffmic.privacy.ghost import sum as ghost
from fed_diffmic.privacy.ghost.proof import why_not
from fed_diffmic.privacy.per_sample import Units, trained
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import build_module

Step = Callable[[], None]


def spec_of(model: str, encoders: str, more: list[str]) -> RunSpec:
    """A run of ``model`` without live batch norm; ``encoders``: of the guidance network, ``train`` or ``frozen``."""
    config = compose_text("", [f"model={model}", "model.norm=group", f"stages.guidance.encoders={encoders}", *more])
    if config.model.encoder_norm == "train":
        config = replace(config, model=replace(config.model, encoder_norm="group"))
    return make_spec(config, classes=list("abcdefg"), task="multiclass", run_id="b", arm="b", device="cpu")


def plain_step(module: StageModule, images: torch.Tensor, labels: torch.Tensor) -> Step:
    """A mini-batch's gradient."""
    generator = torch.Generator(images.device).manual_seed(0)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        module.loss(Batch(module.inputs(images), labels), generator).backward()

    return step


def inputs_of(module: StageModule, images: torch.Tensor, inside: bool) -> Any:
    """A chunk's inputs, one image a unit, made outside of what is differentiated where the stage allows that."""
    if inside or not module.inputs_apart:
        return images[:, None]
    made = module.inputs(images)
    return type(made)(*(column[:, None] for column in made))


def chunks_of(
    module: StageModule, images: torch.Tensor, labels: torch.Tensor, physical: int, inside: bool
) -> Iterator[Units]:
    """The images, one a unit, ``physical`` at a time."""
    draws = module.draws(len(images), torch.Generator(images.device).manual_seed(0), images.device)
    for i in range(0, len(images), physical):
        part = slice(i, i + physical)
        filled = torch.ones(len(images[part]), 1, device=images.device)
        inputs = inputs_of(module, images[part], inside)
        yield Units(inputs, labels[part, None], tuple(d[part, None] for d in draws), filled, None)


def private_steps(
    module: StageModule, images: torch.Tensor, labels: torch.Tensor, physical: int, inside: bool
) -> dict[str, Step]:
    """The same images' clipped and noised sum, both ways."""
    random = Randomness(0)

    def units() -> None:
        module.zero_grad(set_to_none=True)
        total = per_sample.summed(module, chunks_of(module, images, labels, physical, inside), 1.0)
        for name in sorted(total):
            value = total[name]
            total[name] = value + before(random, value.numel(), images.device).view(value.shape)

    def ghosts() -> None:
        module.zero_grad(set_to_none=True)
        total = ghost.summed(module, chunks_of(module, images, labels, physical, inside), 1.0)
        for name, parameter in sorted(trained(module).items()):
            flat = total.pop(name).double().reshape(-1)
            for start in range(0, len(flat), NOISE_AT_A_TIME):
                part = flat[start : start + NOISE_AT_A_TIME]
                part.add_(random.normal(len(part), images.device))
            parameter.grad = flat.view(parameter.shape).to(parameter.dtype)

    return {"units": units, "ghost": ghosts}


def most_memory(step: Step, device: torch.device) -> int:
    """Bytes: what one step takes of a process of its own, or the most that a CUDA device's tensors held."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not serve the step unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what it holds now
        base = resident("VmRSS")
        step()
        os.write(write, str(resident("VmHWM") - base).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return int(said)


def resident(what: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``), or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="compact", choices=("tiny", "compact", "paper"))
    parser.add_argument("--stage", default="guidance", choices=("guidance", "diffusion", "plain"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--physical", type=int, default=16, help="units at a time")
    parser.add_argument("--repeats", type=int, default=3, help="0: memory alone")
    parser.add_argument("--encoders", default="train", choices=("train", "frozen"), help="of the guidance network")
    parser.add_argument("--inside", action="store_true", help="frozen encoders run inside of what is differentiated")
    parser.add_argument("--ways", nargs="+", default=["plain", "units", "ghost"], choices=("plain", "units", "ghost"))
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--set", nargs="*", default=[], help="further settings, such as model.latent=1024")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = spec_of(options.model, options.encoders, options.set)
    module = build_module(spec, options.stage).train().to(device)
    side = spec.model.image_side
    images = torch.randn(options.images, 3, side, side).to(device)
    labels = torch.from_numpy(np.arange(options.images) % spec.num_classes).to(device)
    count = sum(p.numel() for p in trained(module).values())
    print(
        f"{options.model}, {options.stage}: {options.images} images of {side} px, {count / 1e6:.1f} M trained numbers, "
        f"{options.physical} units at a time"
    )
    steps = {
        "plain": plain_step(module, images, labels),
        **private_steps(module, images, labels, options.physical, options.inside),
    }
    steps = {name: steps[name] for name in options.ways}
    with mock.patch.object(ghost, "why_not", return_value=""):  # tried below; its memory is not a step's
        memory = {name: most_memory(step, device) for name, step in steps.items()}
    if options.repeats:
        first = next(chunks_of(module, images[:1], labels[:1], 1, options.inside))
        print(f"taken together: {why_not(module, first) or 'yes'}")
    seconds = seconds_by_turns(steps, options.repeats, device) if options.repeats else {}
    for name in steps:
        if seconds:
            print(f"{name:6s} {seconds[name]:8.3f} s   over plain {seconds[name] / seconds['plain']:6.2f}", end="   ")
        print(f"memory {memory[name] / 2**30:6.2f} GB   over plain {memory[name] / memory['plain']:5.2f}   ({name})")


if __name__ == "__main__":
    main()
