"""A private step against a plain one: unit gradients, clipping and noise, by physical batch; time and peak memory.

``python -m benchmarks.private_step [--model compact] [--stage guidance] [--images 32] [--device cuda]``: one process,
one run, one thread, random images. The noise's numbers are drawn too. Memory on the processor is what the process grew
by at most; on a CUDA device it is the most that tensors held, model and all, with a line for what did not fit.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fed_diffmic.config.compose import compose_text
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.privacy.per_sample import Units, summed, trained
from fed_diffmic.privacy.randomness import Randomness
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import build_module


def spec_of(model: str, encoders: str) -> RunSpec:
    """A run of ``model`` without live batch norm; ``encoders``: of the guidance network, ``train`` or ``frozen``."""
    config = compose_text("", [f"model={model}", "model.norm=group", f"stages.guidance.encoders={encoders}"])
    if config.model.encoder_norm == "train":
        config = replace(config, model=replace(config.model, encoder_norm="group"))
    return make_spec(config, classes=list("abcdefg"), task="multiclass", run_id="b", arm="b", device="cpu")


def median_seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median seconds of a step, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the process, or of a CUDA device's tensors since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plain_step(module: StageModule, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
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


def private_step(
    module: StageModule, images: torch.Tensor, labels: torch.Tensor, physical: int, inside: bool
) -> Callable[[], None]:
    """The same images' clipped and noised sum, ``physical`` at a time."""
    random, generator = Randomness(0), torch.Generator(images.device).manual_seed(0)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        draws = module.draws(len(images), generator, images.device)
        chunks = (
            Units(
                inputs_of(module, images[i : i + physical], inside),
                labels[i : i + physical, None],
                tuple(d[i : i + physical, None] for d in draws),
                torch.ones(len(images[i : i + physical]), 1, device=images.device),
                None,
            )
            for i in range(0, len(images), physical)
        )
        total = summed(module, chunks, 1.0)
        for name, value in trained(module).items():
            noise = torch.as_tensor(random.normal(value.numel())).view(value.shape).to(value.device)
            total[name] += noise

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="compact", choices=("tiny", "compact", "paper"))
    parser.add_argument("--stage", default="guidance", choices=("guidance", "diffusion", "plain"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--physical", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--encoders", default="train", choices=("train", "frozen"), help="of the guidance network")
    parser.add_argument("--inside", action="store_true", help="frozen encoders run unit by unit all the same")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = spec_of(options.model, options.encoders)
    module = build_module(spec, options.stage).train().to(device)
    side = spec.model.image_side
    images = torch.randn(options.images, 3, side, side).to(device)
    labels = torch.from_numpy(np.arange(options.images) % spec.num_classes).to(device)
    count = sum(p.numel() for p in trained(module).values())
    print(
        f"{options.model}, {options.stage}: {options.images} images of {side} px, {count / 1e6:.1f} M trained numbers"
    )
    plain = median_seconds(plain_step(module, images, labels), options.repeats, device)
    before = peak_bytes(device)
    cuda = device.type == "cuda"
    print(f"plain step                      {plain:7.3f} s" + (f"   peak {before / 2**30:6.2f} GB" if cuda else ""))
    for physical in options.physical:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            taken = median_seconds(
                private_step(module, images, labels, physical, options.inside), options.repeats, device
            )
        except torch.cuda.OutOfMemoryError:
            print(f"private, {physical:3d} units at a time   does not fit the device's memory")
            continue
        peak = peak_bytes(device) - (0 if cuda else before)
        print(
            f"private, {physical:3d} units at a time   {taken:7.3f} s   ratio {taken / plain:5.2f}"
            f"   peak {max(0, peak) / 2**30:6.2f} GB" + ("" if cuda else " above the plain step's")
        )


if __name__ == "__main__":
    main()
