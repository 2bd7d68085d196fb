"""Normal deviates a second for the noise of a private step: the stream alone, inversion, and as it was done before.

``python -m benchmarks.noise [--count 4000000] [--repeats 5]``: one process, one thread, processor seconds. The
way of before is kept here: a new array for each block of the stream, and torch's ``ndtri`` on the lower half of the
uniforms. ``--device cuda`` measures wall seconds of that device, against the processor's stream sent there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.turns import seconds_by_turns
from fed_diffmic.privacy.dp_sgd import NOISE_AT_A_TIME
from fed_diffmic.privacy.randomness import Randomness

PIECE = NOISE_AT_A_TIME
BLOCK = 1 << 16
TOP = 2**53 - 1


def before(random: Randomness, count: int, device: torch.device) -> torch.Tensor:
    """Deviates as they were made before, ``(count,)`` float64."""
    made = torch.empty(count, dtype=torch.float64, device=device)
    block = BLOCK if device.type == "cpu" else 64 * BLOCK
    for start in range(0, count, block):
        part = made[start : start + block]
        words = torch.from_numpy(random._words(len(part)).astype(np.int64)).to(device)
        words.bitwise_right_shift_(11).bitwise_and_(TOP)
        sign = words.bitwise_right_shift(52).neg_()
        part.copy_(words.bitwise_xor_(sign.bitwise_and(TOP)))
        torch.special.ndtri(part.add_(0.5).mul_(2.0**-53), out=part)
        part.mul_(sign.mul_(2).add_(1))
    return made


def stream(random: Randomness, count: int, device: torch.device) -> None:
    """The stream alone."""
    if device.type != "cpu":
        random._words_on(count, device)
        return
    words, zeros = np.empty(BLOCK, dtype="<i8"), np.zeros(8 * BLOCK, dtype=np.uint8)
    for _ in range(0, count, BLOCK):
        random._fill(words, zeros)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1 << 22)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args()
    device, random = torch.device(options.device), Randomness()
    torch.set_num_threads(1)
    ways: dict[str, Callable[[], object]] = {
        "stream alone": lambda: stream(random, options.count, device),
        "before": lambda: before(random, options.count, device),
        "now": lambda: [random.normal(min(PIECE, options.count - at), device) for at in range(0, options.count, PIECE)],
    }
    median = seconds_by_turns(ways, options.repeats, device)
    for name, seconds in median.items():
        print(f"{name:13s} {options.count / seconds / 1e6:7.1f} million a second")
    print(f"now over before: {median['before'] / median['now']:.2f} times as many")
    print(f"now over the stream alone: {median['now'] / median['stream alone']:.2f} times as long")


if __name__ == "__main__":
    main()
