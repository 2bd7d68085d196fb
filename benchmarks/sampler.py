"""How much faster the sampler is than its plain twin, at the paper's size, in one run.

The sampler encodes an image once and runs the head on the ``K`` distinct cells of the grid; the twin
runs the head on all ``K * K`` cells, with both encoders at every step (as the authors' code does) or once.
All three give the same numbers, which is checked before anything is printed.

    python benchmarks/sampler.py [--images 2] [--threads 1] [--repeats 2] [--device cpu]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.models.diffmic import DiffMIC, build_diffmic
from fed_diffmic.models.diffusion import ddim_schedule, ddim_step
from fed_diffmic.models.guidance import guidance_map

PAPER = ModelConfig(
    name="paper",
    image_side=224,
    regions=6,
    latent=6144,
    crop_channels="first",
    prior_backbone="vit_small_patch16_224",
    encoder_norm="train",
)
CLASSES = 7
TOLERANCE = 1e-4


def plain_twin(model: DiffMIC, images: Tensor, start: tuple[Tensor, Tensor], *, reencode: bool) -> Tensor:
    """All cells at every step; with ``reencode`` the guidance network and both encoders at every step too."""
    features = model.features(images)
    prior, guidance = model.condition(features)
    y = guidance_map(*start, model.regions)
    grid = (images.shape[0], model.regions, model.regions)
    for number, (step, alpha_t, alpha_previous) in enumerate(ddim_schedule(model.timesteps, model.sampling_steps)):
        if reencode and number > 0:
            prior, guidance = model.condition(model.features(images))
        t = torch.full(grid, step, device=images.device)
        y = ddim_step(y, model.noise(guidance, y, t, prior), alpha_t, alpha_previous)
    return y.mean(dim=(2, 3))


def seconds(run: Callable[[], Tensor], repeats: int, device: str) -> tuple[float, Tensor]:
    """Shortest wall time of ``repeats`` runs after one that is not counted, and the result."""
    result, best = run(), float("inf")
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        begin = time.perf_counter()
        result = run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best, result


def main() -> None:
    """Print seconds for each way of sampling and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build_diffmic(PAPER, CLASSES).eval().to(options.device)
    images = torch.randn(options.images, 3, PAPER.image_side, PAPER.image_side, device=options.device)
    start = tuple(torch.rand(2, options.images, CLASSES, device=options.device))

    with torch.no_grad():
        fast, mean = seconds(lambda: model.sample(model.features(images), *start).mean, options.repeats, options.device)
        once, mean_once = seconds(
            lambda: plain_twin(model, images, start, reencode=False), options.repeats, options.device
        )
        plain, mean_plain = seconds(
            lambda: plain_twin(model, images, start, reencode=True), options.repeats, options.device
        )
    difference = max((mean - other).abs().max().item() for other in (mean_once, mean_plain))
    if not difference < TOLERANCE:
        raise SystemExit(f"the sampler and its twin differ by {difference:.1e}")

    size = f"D={PAPER.latent}, K={PAPER.regions}, S={PAPER.sampling_steps}"
    print(f"{size}, {options.images} images, {options.device}, {options.threads} threads")
    print(f"distinct cells, encoded once    {fast:8.3f} s")
    print(f"all cells, encoded once         {once:8.3f} s   fast/plain {fast / once:.3f}")
    print(f"all cells, encoded every step   {plain:8.3f} s   fast/plain {fast / plain:.3f}")
    print(f"largest difference of a prediction {difference:.1e}")


if __name__ == "__main__":
    main()
