"""What a masked sum costs beside plain updates: seconds of a site and of the coordinator, and bytes, for one round.

``python -m benchmarks.secure_aggregation [--models compact paper] [--sites 3 10 50] [--bits 32] [--repeats 3]``: one
process, one thread; numbers of noise, as many as stage guidance exchanges of the model. A site's part is that of the
one in the middle of the names. The coordinator's is that of one update times the number of sites, and the lifting of
all masks; each site that is lost behind its shares costs as many masks again as there are sites in the sum. Keys,
shares and signatures are timed in a whole run of the protocol over a few words. Plain is what an unmasked round does
with the same numbers: encode at the site; decode and a weighted sum in float64 at the coordinator. Training, sealing
and transport, which both have, are left out. Seconds are the processor's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fed_diffmic.config.compose import compose_text
from fed_diffmic.config.spec import make_spec
from fed_diffmic.exchange.masking.coordinator import MaskedSum
from fed_diffmic.exchange.masking.fixed_point import FixedPoint, add_words
from fed_diffmic.exchange.masking.session import Session
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import MemoryStore
from fed_diffmic.exchange.masking.stream import apply_masks
from fed_diffmic.exchange.payload import Limits, Payload, Wire, decode, encode
from fed_diffmic.training.size import stage_size

BOUND, LIMITS = 1.0, Limits(2**36)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """Seconds of one site and of the coordinator, and bytes that cross for one site."""

    site: float
    coordinator: float
    nbytes: int


def values_of(model: str) -> int:
    """How many numbers a round of stage guidance exchanges."""
    config = compose_text("", [f"model={model}"])
    spec = make_spec(config, classes=list("abcdefg"), task="multiclass", run_id="b", arm="b", device="cpu")
    return stage_size(spec, "guidance").trained


def timed(call: Callable[[], Result], repeats: int) -> tuple[float, Result]:
    """Median seconds of the processor, and what the last call gave."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        taken.append(time.process_time() - start)
    return statistics.median(taken), result


def wire_bytes(wire: Wire) -> int:
    """Bytes of a payload: its header and its tensors."""
    return len(wire.body) + sum(len(array.data) for array in wire.arrays.values())


def plain(values: np.ndarray, sites: int, repeats: int) -> Cost:
    """A round of plain updates."""
    site, wire = timed(lambda: encode(Payload("train.reply", {}, {"w": values})), repeats)
    total = np.zeros(values.shape)

    def take() -> None:
        total.__iadd__(0.1 * decode(wire, LIMITS).tensors["w"].astype(np.float64))

    one, _ = timed(take, repeats)
    return Cost(site, sites * one, wire_bytes(wire))


def parties(sites: int, session: Session) -> tuple[dict[str, MaskingSite], MaskedSum]:
    """Sites with keys as they make them, and a coordinator."""
    names = [f"site-{index:02d}" for index in range(sites)]
    signers = {name: ec.generate_private_key(ec.SECP384R1()) for name in names}
    roster = {name: key.public_key() for name, key in signers.items()}
    found = {name: MaskingSite(name, signers[name], roster, MemoryStore()) for name in names}
    return found, MaskedSum(session, roster, names)


def key_steps(sites: int, session: Session) -> Cost:
    """Everything but the words: a whole run of the protocol over a few."""
    everyone, coordinator = parties(sites, session)
    middle, spent, sent = sorted(everyone)[sites // 2], {"site": 0.0, "coordinator": 0.0}, 0

    def clocked(who: str, call: Callable[..., Result], *given: Any) -> Result:
        """One step; its seconds count if it is the coordinator's or that of the site in the middle."""
        start = time.process_time()
        result = call(*given)
        if who in (middle, "coordinator"):
            spent["site" if who == middle else who] += time.process_time() - start
        return result

    words = np.zeros(session.length, f"<u{session.bits // 8}")
    for name, site in everyone.items():
        signed = clocked(name, site.advertise, session, everyone)
        clocked("coordinator", coordinator.advertised, name, signed)
        sent += (len(signed.text) + len(signed.signature)) * 2  # it sends its own, and is sent everybody's
    group = clocked("coordinator", coordinator.group)
    for name, site in everyone.items():
        clocked("coordinator", coordinator.shared, name, clocked(name, site.share, session, group))
    sealed = clocked("coordinator", coordinator.deliveries)
    sent += 2 * sum(map(len, sealed[middle].values()))
    for name, site in everyone.items():
        clocked("coordinator", coordinator.add, name, clocked(name, site.mask, session, sealed[name], words))
    text = clocked("coordinator", coordinator.freeze)
    for name, site in everyone.items():
        clocked("coordinator", coordinator.signed, name, clocked(name, site.commit, session, text))
    signatures = clocked("coordinator", coordinator.signatures)
    sent += len(text) + sum(map(len, signatures.values()))
    for name, site in everyone.items():
        given = clocked(name, site.unmask, session, signatures)
        clocked("coordinator", coordinator.shares, name, given)
    sent += len(json.dumps(given))
    if clocked("coordinator", coordinator.unmask).any():
        raise RuntimeError("the sum of zeros is not zero")
    return Cost(spent["site"], spent["coordinator"], sent)


def masked(values: np.ndarray, sites: int, bits: int, repeats: int) -> Cost:
    """A round by the protocol, nobody lost."""
    form = FixedPoint.finest(sites, BOUND, bits)
    session = Session("b", "b", "guidance", "train", 1, 1, "0" * 64, bits, form.fraction, 8)
    keys = key_steps(sites, session)
    return words_cost(replace(session, length=values.size), sites, lambda: form.encode(values), keys, repeats)


def words_cost(session: Session, sites: int, words: Callable[[], np.ndarray], keys: Cost, repeats: int) -> Cost:
    """A round of words: made, masked, encoded; decoded and added so many times, and the masks of all lifted.

    Args:
        session: of the words.
        words: makes those of one site.
        keys: what everything else costs (:func:`key_steps`).
    """
    everyone, _ = parties(sites, session)
    middle, dtype = sorted(everyone)[sites // 2], np.dtype(f"<u{session.bits // 8}")
    group = {name: site.advertise(session, everyone) for name, site in everyone.items()}
    sealed = {name: site.share(session, group)[middle] for name, site in everyone.items() if name != middle}
    everyone[middle].share(session, group)

    def update() -> Wire:
        masked_words = everyone[middle].mask(session, sealed, words())
        return encode(Payload("train.reply", {}, {"w": masked_words.view(f"<i{session.bits // 8}")}))

    site, wire = timed(update, repeats)
    total = np.zeros(session.length, dtype)

    def take() -> None:
        add_words(total, decode(wire, LIMITS).tensors["w"].view(dtype))

    one, _ = timed(take, repeats)
    lifted, _ = timed(lambda: apply_masks(total, [], [bytes([n]) * 32 for n in range(sites)]), 1)
    coordinator = keys.coordinator + sites * one + lifted
    return Cost(keys.site + site, coordinator, wire_bytes(wire) + keys.nbytes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["compact", "paper"])
    parser.add_argument("--sites", nargs="+", type=int, default=[3, 10, 50])
    parser.add_argument("--bits", type=int, default=32, choices=(32, 64))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(
        "| model | numbers | sites | site, s (ratio) | coordinator, s (ratio) | whole round (ratio) | bytes (ratio) |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in options.models:
        values = np.random.default_rng(0).uniform(-BOUND, BOUND, values_of(model)).astype(np.float32)
        for sites in options.sites:
            before, after = plain(values, sites, options.repeats), masked(values, sites, options.bits, options.repeats)
            whole = [sites * cost.site + cost.coordinator for cost in (before, after)]
            cells = [
                f"{after.site:.2f} ({after.site / before.site:.1f})",
                f"{after.coordinator:.2f} ({after.coordinator / before.coordinator:.2f})",
                f"{whole[1]:.1f} ({whole[1] / whole[0]:.2f})",
                f"{after.nbytes / 1e6:.1f} MB ({after.nbytes / before.nbytes:.3f})",
            ]
            print(f"| `{model}` | {values.size:,} | {sites} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
