"""A training step of the compact guidance network with and without the matrix products of small depthwise convolutions.

``python -m benchmarks.depthwise [--side 64] [--images 32]``: one process, one run, the processor, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from fed_diffmic.config.compose import compose_text
from fed_diffmic.models import backbones
from fed_diffmic.models.diffmic import build_guidance


def seconds(network: nn.Module, images: torch.Tensor, repeats: int) -> float:
    """Median seconds of a forward and backward pass."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        network(images).fused.square().mean().backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = compose_text("", ["model=compact", f"model.image_side={options.side}", "model.feature_stride=16"]).model
    images = torch.randn(options.images, 3, options.side, options.side)
    fast = build_guidance(model, 7).train()
    speed_up, backbones.speed_up_depthwise = backbones.speed_up_depthwise, lambda net: 0
    try:
        plain = build_guidance(model, 7).train()
    finally:
        backbones.speed_up_depthwise = speed_up
    plain.load_state_dict(fast.state_dict())
    slow_s, fast_s = (seconds(network, images, options.repeats) for network in (plain, fast))
    print(f"{options.images} images of {options.side} px, median of {options.repeats} steps, 1 thread")
    print(f"torch's convolutions   {slow_s:7.3f} s")
    print(f"matrix products        {fast_s:7.3f} s   ratio {slow_s / fast_s:.2f}")


if __name__ == "__main__":
    main()
