"""A training step and a prediction against plain twins, interleaved in one process: ratios of one run.

    python -m benchmarks.step [--small] [--repeats 3] [--only train|predict] [--profile] [--device cpu]

``train``: forward, loss, backward, clipping and optimizer of a stage on random images as the package does it, against a
twin with torch's clipping and torch's own optimizer as it comes. ``predict``: the sampler's mean for 4 images, on the
distinct cells and encoded once, against a twin that runs the head on all cells and encodes the images at
every step. Both in float32 and, where the device computes in bfloat16 itself, in that. Seconds are of the processor
(on a card: of the wall, after it has finished), the least of the repeats, one thread. ``--profile`` prints what a step
spends its time on instead; ``--small`` is the preset ``tiny``, to see that the program works.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fed_diffmic.config.compose import compose
from fed_diffmic.config.precision import BFLOAT16, FLOAT32
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.models.diffmic import DiffMIC
from fed_diffmic.models.diffusion import ddim_schedule, ddim_step
from fed_diffmic.models.guidance import guidance_map
from fed_diffmic.training.optimizer import build_optimizer, clip_gradients
from fed_diffmic.training.precision import casts, has_bfloat16
from fed_diffmic.training.stage import Batch, StageModule
from fed_diffmic.training.stages import build_module

Step = Callable[[], None]
IMAGES, PREDICTED, CLASSES = 8, 4, 7
TOLERANCE = 1e-3


def spec_of(model: str) -> RunSpec:
    """A preset with its own stages, random weights."""
    config = compose(None, [f"model={model}", f"stages={model}", "model.pretrained=false"])
    names = [f"c{number}" for number in range(CLASSES)]
    return make_spec(config, classes=names, task="multiclass", run_id="bench", arm="federated", device="cpu")


def module_of(spec: RunSpec, stage: str, device: str) -> StageModule:
    """A stage with seeded weights."""
    torch.manual_seed(0)
    return build_module(spec, stage).to(device)


def inputs_of(spec: RunSpec, count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and labels."""
    drawn = torch.Generator().manual_seed(1)
    side = spec.model.image_side
    images = torch.randn(count, 3, side, side, generator=drawn)
    return images.to(device), torch.randint(CLASSES, (count,), generator=drawn).to(device)


def training_step(module: StageModule, device: str, precision: str, *, plain: bool, images: int = IMAGES) -> Step:
    """One step of the stage on random images; ``plain``: with torch's optimizer and clipping as they come."""
    cfg = module.spec.stage(module.stage)
    pixels, labels = inputs_of(module.spec, images, device)
    noise = torch.Generator(device).manual_seed(2)
    trained = [p for p in module.network.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = build_optimizer(module, cfg)
    if plain:
        groups = [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups)

    def step() -> None:
        module.train()
        with casts(device, precision):
            loss = module.loss(Batch(module.inputs(pixels), labels), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if plain:
            torch.nn.utils.clip_grad_norm_(trained, cfg.clip_norm)
        else:
            clip_gradients(trained, cfg.clip_norm)
        optimizer.step()

    return step


@dataclass
class Sampled:
    """What a prediction gave last, ``(B, C)``: the ways must agree."""

    mean: torch.Tensor | None = None


def prediction(module: StageModule, device: str, precision: str, *, plain: bool) -> tuple[Step, Sampled]:
    """The sampler's mean for :data:`PREDICTED` images; ``plain``: all cells, both encoders at every step."""
    model = module.network
    assert isinstance(model, DiffMIC)
    images, _ = inputs_of(module.spec, PREDICTED, device)
    drawn = torch.Generator().manual_seed(3)
    first, second = (torch.rand(PREDICTED, CLASSES, generator=drawn).to(device) for _ in range(2))
    found = Sampled()

    @torch.no_grad()
    def every_step() -> None:
        y = guidance_map(first, second, model.regions)
        for step, now, before in ddim_schedule(model.timesteps, model.sampling_steps):
            prior, guidance = model.condition(model.features(images))
            t = torch.full((PREDICTED, model.regions, model.regions), step, device=device)
            y = ddim_step(y, model.noise(guidance, y, t, prior).float(), now, before)
        found.mean = y.mean(dim=(2, 3))

    @torch.no_grad()
    def ours() -> None:
        found.mean = model.sample(model.features(images), first, second).mean

    def step() -> None:
        module.eval()
        with casts(device, precision):
            (every_step if plain else ours)()

    return step, found


def clock(device: str) -> float:
    """Seconds of the processor, or of the wall when a card has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(ways: Mapping[str, Step], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way, by turns, after one of each that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, step in ways.items():
            began = clock(device)
            step()
            if turn:
                taken[name].append(clock(device) - began)
    return taken


def show(title: str, taken: Mapping[str, list[float]]) -> None:
    """A line for each way: least and median seconds, ratio to the first."""
    base = min(next(iter(taken.values())))
    for name, values in taken.items():
        middle = statistics.median(values)
        print(f"| {title} | {name} | {min(values):.3f} | {middle:.3f} | {min(values) / base:.2f} |", flush=True)


def precisions(device: str) -> list[str]:
    """What is measured: bfloat16 only where the device has it."""
    return [FLOAT32, BFLOAT16] if has_bfloat16(device) else [FLOAT32]


def train_rows(model: str, stage: str, repeats: int, device: str) -> None:
    """Training steps of a stage: the twin, and ours in each precision, all on one set of weights."""
    module = module_of(spec_of(model), stage, device)
    ways = {"plain float32": training_step(module, device, FLOAT32, plain=True)}
    ways |= {kind: training_step(module, device, kind, plain=False) for kind in precisions(device)}
    show(f"{model}, {stage}, step of {IMAGES}", interleaved(ways, repeats, device))


def predict_rows(model: str, repeats: int, device: str) -> None:
    """Predictions: the twin, and ours in each precision.

    Raises:
        SystemExit: ours in float32 and the twin do not agree.
    """
    module = module_of(spec_of(model), "diffusion", device)
    twin, said = prediction(module, device, FLOAT32, plain=True)
    ways, mine = {"plain float32": twin}, {}
    for kind in precisions(device):
        ways[kind], mine[kind] = prediction(module, device, kind, plain=False)
    taken = interleaved(ways, repeats, device)
    ours = mine[FLOAT32].mean
    assert said.mean is not None and ours is not None
    difference = (said.mean - ours).abs().max().item()
    if not difference < TOLERANCE:
        raise SystemExit(f"the prediction and its twin differ by {difference:.1e}")
    show(f"{model}, prediction of {PREDICTED}", taken)
    print(f"largest difference from the twin in float32: {difference:.1e}")


def profile(model: str, device: str) -> None:
    """What each stage's step, and a prediction, spend their time on."""
    from torch.profiler import ProfilerActivity, profile

    sampler = spec_of(model).model.denoiser != "classifier"
    for what in ("diffusion", "guidance", *(["prediction"] if sampler else [])):
        module = module_of(spec_of(model), "diffusion" if what == "prediction" else what, device)
        if what == "prediction":
            step, _ = prediction(module, device, FLOAT32, plain=False)
        else:
            step = training_step(module, device, FLOAT32, plain=False)
        step()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.startswith("cuda") else [])]
        with profile(activities=kinds) as seen:
            step()
        print(f"{model}, {what}")
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--models", default="paper", help="presets, divided by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("train", "predict"))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for model in ["tiny"] if given.small else given.models.split(","):
        if given.profile:
            profile(model, given.device)
            continue
        print("| what | how | least, s | median, s | ratio |\n|---|---|---|---|---|")
        if given.only != "predict":
            for stage in ("diffusion", "guidance"):
                train_rows(model, stage, given.repeats, given.device)
        if given.only != "train" and spec_of(model).model.denoiser != "classifier":  # which has nothing to sample
            predict_rows(model, given.repeats, given.device)


if __name__ == "__main__":
    main()
