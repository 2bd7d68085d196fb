"""A consortium of real processes over TLS on this machine, measured.

python -m benchmarks.consortium rounds                 seconds from start to first round, and where a round's go
python -m benchmarks.consortium memory --sites 10      peak memory of every process with the `paper` model
python -m benchmarks.consortium sizes                  bytes, memory and seconds of each size, before and now
python -m benchmarks.consortium shared --sites 4 10    a round plain, under masks, and with noise that sites share
python -m benchmarks.consortium soak --minutes 30      random kills; weights, memory, descriptors, processes
python -m benchmarks.consortium table --folder FOLDER  the soak's table, from its files

A coordinator and its sites, each as its command; credentials are made by `fed-diffmic provision`'s own functions.
Everything is written below ``--folder``, which must be new; without it, a temporary folder is used and removed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

SIZES = ("tiny", "compact", "paper")


def main() -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rounds", "memory", "sizes", "shared", "soak", "table"))
    parser.add_argument("--folder", type=Path, help="new folder of all that is written")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--seed", type=int, default=0, help="of the soak's kills")
    parser.add_argument("--heartbeat", type=float, default=30.0, help="Flower's interval, seconds")
    parser.add_argument("--sites", type=int, nargs="+", default=[3], help="of `sizes` and `shared` each in turn")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="of `sizes`: which models")
    parser.add_argument("--latent", type=int, default=6144, help="width of the `paper` model; 6144 is the preset's")
    parser.add_argument("--codec", default="float32", help="of `sizes`: in which weights and updates cross now")
    parser.add_argument("--model", default="tiny", choices=("tiny", "compact"), help="of `shared`: which heads train")
    parser.add_argument("--rounds", type=int, default=8, help="of each run of `shared`, four or more")
    parser.add_argument("--page", type=Path, help="of `shared`: a page whose table gets the rows")
    parser.add_argument("--exchanges", default="auto", choices=("auto", "one", "two"), help="messages of a round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return measure(given, given.folder or Path(scratch) / "consortium")


def measure(given: argparse.Namespace, folder: Path) -> int:
    """One of the measurements."""
    if given.what == "table":
        from benchmarks.consortium_soak import table

        print(table(folder))
        return 0
    if given.what == "soak":
        from benchmarks.consortium_soak import Soak, table

        good = Soak(folder, given.minutes, given.seed, given.heartbeat).run()
        print(table(folder))
        print("as it should be" if good else "NOT as it should be: see the story above")
        return 0 if good else 1
    if given.what == "rounds":
        from benchmarks.consortium_rounds import measure_rounds

        print(measure_rounds(folder, given.heartbeat, given.exchanges))
    if given.what == "memory":
        from benchmarks.consortium_memory import measure_memory

        print(measure_memory(folder, given.heartbeat, given.sites[0], given.latent))
    if given.what == "sizes":
        from benchmarks.consortium_sizes import measure_sizes

        print(measure_sizes(folder, given.sizes, given.sites, given.latent, given.codec))
    if given.what == "shared":
        from benchmarks.consortium_shared import measure_shared

        print(measure_shared(folder, given.model, given.sites, max(4, given.rounds), given.page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
