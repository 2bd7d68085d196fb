"""What a round with shared noise costs: bytes on the way, and seconds at a site and at the coordinator.

``python -m benchmarks.distributed_noise [--numbers N ...] [--units N] [--rounds N]``: for so many trained numbers the
words of a sum (32 bits), what goes to a site and comes from it in a round and in all rounds of a run, and how long one
thread takes to draw a share of noise exactly, to flatten and round the gradients of so many drawn units, and to read
the sum. Bytes are those of the tensors; under masks a site sends as many words, and some kilobytes of keys and shares
(``python -m benchmarks.secure_aggregation``). Seconds are of processor time: other processes do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from fed_diffmic.privacy.distributed.form import NoisyForm
from fed_diffmic.privacy.per_sample import MARGIN
from fed_diffmic.privacy.randomness import Randomness


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Least processor time of some tries."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def measured(numbers: int, units: int, share: float = 1.0) -> dict[str, float]:
    """Bytes of a round and a site, each way, and seconds."""
    form, random = NoisyForm({"w": (numbers,)}, 1.0, share, 0), Randomness()
    gradients = torch.nn.functional.normalize(torch.randn(units, numbers)) * (1 - MARGIN)
    total = np.zeros(form.width, dtype=np.int64)
    words = form.words(total)
    return {
        "width": float(form.width),
        "to_site": 4.0 * numbers,
        "from_site": float(words.nbytes),
        "noise_s": seconds(lambda: form.noise(random)),
        "rows_s": seconds(lambda: form.rows({"w": gradients}, random)),
        "read_s": seconds(lambda: form.sums(words)),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=[85_000, 476_000])
    parser.add_argument("--units", type=int, default=16, help="drawn units that are rounded at a time")
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| trained numbers | words | to a site, a round | from a site, a round | both, all rounds | share of noise | "
          "one unit flattened and rounded | sum read |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for numbers in arguments.numbers:
        m = measured(numbers, arguments.units)
        both = (m["to_site"] + m["from_site"]) * arguments.rounds
        print(
            f"| {numbers:,} | {m['width']:,.0f} | {m['to_site'] / 1e6:.2f} MB | {m['from_site'] / 1e6:.2f} MB | "
            f"{both / 1e6:,.0f} MB ({arguments.rounds} rounds) | {m['noise_s']:.2f} s | "
            f"{1000 * m['rows_s'] / arguments.units:.1f} ms | {m['read_s']:.2f} s |"
        )


if __name__ == "__main__":
    main()
