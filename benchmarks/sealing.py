"""What sealing costs beside plain encoding: seconds and memory at both ends, for an update of a given size.

``python -m benchmarks.sealing [--mib 530] [--repeats 3]``: one process, one thread, tensors of noise; one large tensor,
the others of 9 MiB. Seconds are medians; memory is the most that was allocated at once beyond what was there before.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.exchange.audit import Head
from fed_diffmic.exchange.envelope import new_reply_key, reply_key_text
from fed_diffmic.exchange.payload import Limits, Payload, Wire, decode, encode
from fed_diffmic.exchange.seal import check_request, open_reply, seal_reply, seal_request
from fed_diffmic.transport.messages import to_record, wire_of

Call = Callable[[list[Any]], Any]
LARGEST_MIB, OTHERS_MIB = 100, 9
HEAD, LIMITS = Head(1, "0" * 64), Limits(2**36)
NAMED = {"request": "0" * 64, "site": "site"}


def update_of(mib: int) -> Payload:
    """A reply of about so many MiB."""
    rng, left, tensors = np.random.default_rng(0), mib, {}
    while left > 0:
        size = min(left, OTHERS_MIB if tensors else min(LARGEST_MIB, mib // 2 or 1))
        tensors[f"tensor.{len(tensors)}"] = rng.standard_normal(size * 2**18, dtype=np.float32)
        left -= size
    return Payload("train.reply", {"num_examples": 1}, tensors)


def measured(call: Call, repeats: int, make: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds, and MiB at most beyond what was there.

    Args:
        call: takes what it uses out of the list that it gets, so that it alone holds it.
        make: makes that; not measured.
    """
    taken = []
    for _ in range(repeats):
        given = [make()]
        start = time.perf_counter()
        call(given)
        taken.append(time.perf_counter() - start)
    tracemalloc.start()
    given = [make()]
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    call(given)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return statistics.median(taken), peak / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=530, help="of the update (530: the paper's guidance network)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    site_key, coordinator = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    reply_key = new_reply_key()
    update = update_of(options.mib)
    text = reply_key_text(reply_key)

    def encoded(_: list[Any]) -> Any:
        return to_record(encode(update))

    def sealed(_: list[Any]) -> Any:
        return to_record(seal_reply(encode(update), site_key, head=HEAD, reply_key=text, **NAMED))

    def decoded(given: list[Any]) -> Payload:
        return decode(given.pop(), LIMITS)

    def opened(given: list[Any]) -> Payload:
        wire, _ = open_reply(given.pop(), reply_key, site_key.public_key(), limits=LIMITS, **NAMED)
        return decode(wire, LIMITS)

    def request(given: list[Any]) -> Wire:
        return seal_request(given.pop(), coordinator, to="site", head=HEAD, reply_key=text)

    def checked(given: list[Any]) -> Any:
        return check_request(given.pop(), coordinator.public_key(), "site")

    rows: tuple[tuple[str, Call, Call, Callable[[], Any], Callable[[], Any]], ...] = (
        ("the site's end: encode, for Flower", encoded, sealed, lambda: None, lambda: None),
        ("the coordinator's end: decode", decoded, opened, lambda: wire_of(encoded([])), lambda: wire_of(sealed([]))),
    )
    print(f"{options.mib} MiB in {len(update.tensors)} tensors, the largest {LARGEST_MIB} MiB")
    for name, plain, with_seal, given, given_sealed in rows:
        a, before = measured(plain, options.repeats, given)
        b, after = measured(with_seal, options.repeats, given_sealed)
        print(f"{name:36} plain {a:6.2f} s {before:6.0f} MiB   sealed {b:6.2f} s {after:6.0f} MiB   ratio {b / a:4.2f}")
    wire = encode(update)
    print(f"{'a request, at the coordinator':36} {measured(request, 20, lambda: wire)[0] * 1000:6.2f} ms")
    print(f"{'a request, at the site':36} {measured(checked, 20, lambda: request([wire]))[0] * 1000:6.2f} ms")


if __name__ == "__main__":
    main()
