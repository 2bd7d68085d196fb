"""What a round with shared noise costs: bytes on the way, and seconds at a site and at the coordinator.

``python -m benchmarks.distributed_noise [--numbers N ...] [--units N] [--rounds N]``: for so many trained numbers the
words of a sum (32 bits), what goes to a site and comes from it in a round and in all rounds of a run, and how long one
thread takes to draw a share of noise exactly, to flatten and round the gradients of so many drawn units, and to read
the sum. Bytes are those of the tensors. Then the same words under masks, for so many sites (``--sites``): what a site's
masks cost beside them, what adding them up, lifting the masks and reading the sum costs the coordinator, and bytes with
keys, shares and signatures. Seconds are of processor time: other processes do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.secure_aggregation import key_steps, words_cost
from fed_diffmic.exchange.masking.session import Session
from fed_diffmic.exchange.payload import Payload, encode
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


def under_masks(numbers: int, sites: int, repeats: int, share: float = 1.0) -> dict[str, float]:
    """Seconds and bytes of a round of so many sites, beside gradients and noise."""
    form = NoisyForm({"w": (numbers,)}, 1.0, share, 0)
    session = Session("b", "b", "guidance", "train", 1, 1, form.digest, form.bits, 0, 8)
    own = form.words(form.noise(Randomness()))
    cost = words_cost(replace(session, length=form.width), sites, lambda: own, key_steps(sites, session), repeats)
    plain = Payload("train.reply", {}, {"w": own.view("<i4")})
    in_clear = seconds(lambda: encode(plain), repeats)
    read = seconds(lambda: form.sums(own), 1)
    return {"site_s": cost.site, "clear_s": in_clear, "coordinator_s": cost.coordinator + read, "bytes": cost.nbytes,
            "ratio": cost.nbytes / own.nbytes}  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=[85_000, 476_000])
    parser.add_argument("--units", type=int, default=16, help="drawn units that are rounded at a time")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 10], help="of the rounds under masks")
    parser.add_argument("--repeats", type=int, default=3)
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
    heads = ["trained numbers", "sites", "keys and masks of a site", "encoding alone", "coordinator", "from a site",
             "over the words alone"]  # fmt: skip
    print(f"\n| {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for numbers in arguments.numbers:
        for sites in arguments.sites:
            m = under_masks(numbers, sites, arguments.repeats)
            print(
                f"| {numbers:,} | {sites} | {m['site_s']:.3f} s | {m['clear_s']:.4f} s | {m['coordinator_s']:.3f} s | "
                f"{m['bytes'] / 1e6:.2f} MB | {m['ratio']:.3f} |"
            )


if __name__ == "__main__":
    main()
