"""Bytes a round and seconds of coding for each codec, at the shapes of a preset: ``python -m benchmarks.codecs``.

One process, one thread. Shapes are the model's, numbers are drawn: weights of standard deviation 0.05, changes of
0.001. What zstandard gains depends on how changes are distributed, so real rounds differ; ``events.jsonl`` holds their
bytes.

**A round** is what a site receives and sends: the weights down once (they are evaluated and trained from without a
second download), the update up. **Before** counts what crossed when weights went down twice, whole: three sets of
float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from fed_diffmic.config.compose import compose
from fed_diffmic.config.simulation import StrategyConfig
from fed_diffmic.config.spec import make_spec
from fed_diffmic.exchange.codecs import DELTA, build_codec, code, restore
from fed_diffmic.exchange.codecs.sets import Coded
from fed_diffmic.exchange.payload import Tensors
from fed_diffmic.training.stages import build_module, exchanged

ORDER = ("float32", "bfloat16", "int8", "int4", "topk")
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def drawn(model: str, stage: str) -> tuple[Tensors, Tensors]:
    """What a stage of a preset exchanges, in drawn numbers: before a round and after."""
    chosen = ["dataset=ham10000", f"model={model}", f"stages={model}", "model.pretrained=false"]
    spec = make_spec(
        compose(None, chosen), classes=CLASSES, task="multiclass", run_id="bench", arm="federated", device="cpu"
    )
    module = build_module(spec, stage)
    state, rng, before, after = module.network.state_dict(), np.random.default_rng(0), {}, {}
    for name in exchanged(module):
        shape = tuple(state[name].shape)
        if not state[name].is_floating_point():
            before[name], after[name] = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=np.int64)
            continue
        before[name] = np.float32(0.05) * rng.standard_normal(shape, dtype=np.float32)
        after[name] = before[name] + np.float32(0.001) * rng.standard_normal(shape, dtype=np.float32)
    return before, after


def measured(name: str, before: Tensors, after: Tensors, repeats: int) -> tuple[Coded, float, float]:
    """A set coded, and the least seconds of coding and of decoding."""
    codec, coding, decoding = build_codec(StrategyConfig(codec=name)), [], []
    for _ in range(repeats):
        start = time.perf_counter()
        made = code(codec, after, before)
        middle = time.perf_counter()
        restore(codec, made.travels, before)
        coding.append(middle - start)
        decoding.append(time.perf_counter() - middle)
    return made, min(coding), min(decoding)


def table(model: str, stage: str, repeats: int) -> str:
    """One stage of a preset as rows of Markdown."""
    before, after = drawn(model, stage)
    numbers = sum(value.size for value in after.values())
    whole = 3 * sum(value.nbytes for value in after.values())
    rows = []
    for name in ORDER:
        made, coding, decoding = measured(name, before, after, repeats)
        crossed = sum(value.nbytes for value in made.travels.values())
        unpacked = sum(_raw(name, key, value, before) for key, value in made.travels.items())
        rows.append(
            f"| {model}, {stage} ({numbers / 1e6:.2f} M) | `{name}` | {crossed / numbers:.3f} "
            f"| {unpacked / numbers:.3f} | {2 * crossed / 1e6:.2f} | {whole / (2 * crossed):.1f} "
            f"| {coding:.2f} | {decoding:.2f} |"
        )
    return "\n".join(rows)


def _raw(codec: str, key: str, value: np.ndarray, before: Tensors) -> int:
    """Bytes of one tensor that crosses before zstandard packs it (of what ``topk`` could be, the middle one)."""
    if not key.startswith(DELTA):
        return value.nbytes
    sizes = list(build_codec(StrategyConfig(codec=codec)).sizes(before[key.removeprefix(DELTA)].size))
    return 1 + sizes[len(sizes) // 2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="compact,paper")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args(arguments)
    print(
        "| preset, stage (numbers) | codec | bytes a number | before packing | MB a site and round | times less "
        "| s to code | s to decode |\n|---|---|---|---|---|---|---|---|"
    )
    for model in options.models.split(","):
        for stage in ("guidance", "diffusion"):
            print(table(model, stage, options.repeats), flush=True)


if __name__ == "__main__":
    main()
