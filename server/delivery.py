"""The finished model goes to the sites that take it: each its own signed edition, within a bound; who has it is said.

It comes after everything else: the run is complete without it. Who was away, or paused, is asked again while the time
lasts (``run.deliver_s``), and once more whenever the finished run is resumed; ``delivery.json`` names who has the model
and why each of the others has not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed_diffmic.exchange.failures import LATER, LOST, WITHDRAWN, failure_sentence
from fed_diffmic.exchange.payload import MAX_BODY, NEED_WEIGHTS, Packed, Payload, pack, request_name
from fed_diffmic.exchange.screening import Expected
from fed_diffmic.files import write_json
from fed_diffmic.release.edition import Edition, site_edition
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.provenance import PROVENANCE, verify_statement
from server.delivered import FILE, delivered
from server.exchange import Exchange, Site
from server.hooks import Hooks
from server.replies import Request

DELIVER = "query.deliver"
AGAIN_S, PAUSE_S = 15.0, 0.5
AWAY = frozenset({*LATER, *LOST, "unreachable", "deadline"})
"""Why a site has not got it that passes by itself: it is asked again."""
SPEC = 2**20
NOT_WANTED = "its policy takes no model"
NOT_THERE = "it is not connected"
TOO_LARGE = "the model's texts are larger than a request may be; it is copied by hand"


def delivers(hooks: Hooks, seconds: float) -> bool:
    """Whether a coordinator sends models: it signs them, and knows its sites by their keys."""
    return seconds > 0 and hooks.signer is not None and hooks.seals is not None


def deliver(exchange: Exchange, folder: Path, final: FinalModel, seconds: float) -> dict[str, str]:
    """Offer the model to every site that has not got it; send it to those that take it.

    Args:
        exchange: of the run.
        folder: of the run; ``delivery.json`` is written there.
        final: the run's model, verified.
        seconds: the longest wait for sites.

    Returns:
        Why each site that has not got it has not; empty: everybody has.

    Raises:
        ModelFileError: the model's statement, or ``delivery.json``, cannot be read.
        MachineError: a log or ``delivery.json`` cannot be written.
    """
    deadline = time.monotonic() + seconds
    has = {name for name, said in delivered(folder).items() if said["has"]}
    waiting = dict.fromkeys(sorted(exchange.everyone() - has), NOT_THERE)
    offers, why, again = _Offers(folder, final, exchange.hooks), dict[str, str](), dict[str, float]()
    while waiting and time.monotonic() < deadline:
        why |= {name: failure_sentence(WITHDRAWN) for name in exchange.withdrawn if waiting.pop(name, None)}
        why |= {name: TOO_LARGE for name in list(waiting) if not offers.fits(name) and waiting.pop(name)}
        now = time.monotonic()
        due = {name for name in waiting if again.get(name, 0.0) <= now}
        outcome = exchange.hand_over(offers.request, DELIVER, deadline, due)
        for name, reply in outcome.replies.items():
            waiting.pop(name, None)
            if reply.header["model"]:
                has.add(name)
            else:
                why[name] = NOT_WANTED
        for name, code in outcome.codes.items():
            if code in AWAY and name in waiting:
                waiting[name], again[name] = outcome.missing[name], time.monotonic() + AGAIN_S
            elif waiting.pop(name, None) is not None:
                why[name] = outcome.missing[name]
        waiting |= dict.fromkeys(exchange.everyone() - has - set(waiting) - set(why), NOT_THERE)
        if waiting:
            time.sleep(max(0.0, min(PAUSE_S, deadline - time.monotonic())))
    why |= waiting
    said = {name: {"has": True, "why": ""} for name in has} | {n: {"has": False, "why": w} for n, w in why.items()}
    exchange.hooks.log("delivery", run=final.spec.run_id, digests=final.digests, sites=sorted(has), without=why)
    write_json(folder / FILE, {"digests": final.digests, "sites": dict(sorted(said.items()))})
    return dict(sorted(why.items()))


class _Offers:
    """Requests that hold a run's model; the weights are packed once for all sites, and only if one wants them."""

    def __init__(self, folder: Path, final: FinalModel, hooks: Hooks) -> None:
        self._final, self._hooks = final, hooks
        self._statement, _ = verify_statement(folder / "final" / PROVENANCE, hooks.public_key)
        self._size = sum(value.nbytes for state in final.states.values() for value in state.values())
        self._whole = functools.cache(self._packed)
        self._edition = functools.cache(self._made)  # asked again, a site gets the same: signatures differ each time

    def fits(self, site: str) -> bool:
        """Whether the texts of a site's edition can travel, beside the run's specification."""
        return len(json.dumps(vars(self._edition(site)))) <= MAX_BODY - SPEC

    def request(self, site: Site, about: Mapping[str, Any]) -> Request:
        """What one site is sent.

        Args:
            about: header fields of every request of the run.
        """
        edition = self._edition(site.name)
        named = {"site": site.name, "model": hashlib.sha256(edition.model_json.encode()).hexdigest()}
        facts = {**about, **named, "size": self._size, **vars(edition)}
        quoted = {"run": about["run"], "arm": about["arm"], "request": request_name(facts), "site": site.name}
        expected = Expected(kind="deliver.reply", header=quoted, fields={"model": str})
        return Request(site, Payload("deliver", facts), expected, pack({}), lacking={NEED_WEIGHTS: self._whole})

    def _made(self, site: str) -> Edition:
        if self._hooks.signer is None:
            raise ValueError("models are sent by a coordinator that signs them")
        return site_edition(self._final, self._statement, site, self._hooks.signer)

    def _packed(self) -> Packed:
        states = self._final.states
        return pack({f"{stage}.{name}": value for stage, state in states.items() for name, value in state.items()})
