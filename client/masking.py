"""A site's part in masked sums, as the coordinator's requests bring it.

Four of the five steps are requests of their own kind (``mask``), which need no image; the fourth in order, ``mask``
itself, is the request to train: what is answered then is not the update but its words under masks, and neither weight
nor loss nor steps. Before words are masked, the site's rules judge the update as if it left as it is (``Site.judge``):
under masks nobody can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from client.masked_turn import TURN, WordForm, asked_fields, part_of, refused, session_of, turn_in
from client.requests import answer_header
from client.site import Site
from client.summed import says_figures
from fed_diffmic.algorithms.base import Algorithm, parameters_of
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.exchange.failures import BAD_REQUEST, MASKING, SiteError
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.masking.requests import MASKED, NONE
from fed_diffmic.exchange.masking.session import FIGURES, PURPOSES, MaskingError
from fed_diffmic.exchange.masking.site import MaskingSite
from fed_diffmic.exchange.masking.store import FileStore
from fed_diffmic.exchange.masking.update import UpdateForm
from fed_diffmic.exchange.payload import Payload, Tensors
from fed_diffmic.exchange.seal import Signed
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.provision.peers import peer_keys
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import exchanged

BASE = "base/"
FOLDER = "masking"
"""Of the site's folder: what must be known of the last sum of each run, stage and arm. Never purged."""
FIELDS: dict[str, type] = {**TURN, "norm": float, "most_weight": int, "summands": int}
MOVES: dict[str, type] = {"most_moves": float}
"""What it says besides where changes are divided."""


def site_masking(config: SiteConfig, signer: PrivateKey, audit: AuditLog) -> Callable[[Context, str], MaskingSite]:
    """A real site's part in masked sums: who counts is read anew for each request, as people may accept or remove one.

    Args:
        signer: the key that the site is enrolled with.
        audit: takes a line of each set before it is agreed to, and before a share is given.
    """
    folder = Path(str(config.site.folder))
    store = FileStore(folder / FOLDER, lambda kind, facts: audit.append(kind, **facts))

    def part(context: Context, name: str) -> MaskingSite:
        roster = peer_keys(folder, name, signer.public_key())
        return MaskingSite(name, signer, roster, store, config.policy.min_sites)

    return part


def masking_step(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """One of the steps ``advertise``, ``share``, ``commit`` and ``unmask``; or that the site has nothing to be summed.

    Raises:
        SiteError: the request is not one, or the site does not go on with the sum.
    """
    header, given = request.header, request.header["given"]
    part, session = part_of(site), session_of(header, header["session"], PURPOSES)
    try:
        if header["step"] == "advertise":
            if session.purpose in FIGURES and not says_figures(site, spec, request, session.purpose):
                # Now, for later it would be as one that was lost.
                return Payload("mask.reply", {**answer_header(header), "answer": {NONE: True}})
            signed = part.advertise(session, _texts(given, "invited"))
            answer: dict[str, Any] = {"signed": [signed.text, signed.signature]}
        elif header["step"] == "share":
            answer = {"sealed": part.share(session, _signed(given))}
        elif header["step"] == "commit":
            answer = {"signature": part.commit(session, str(given.get("set", "")))}
        elif header["step"] == "unmask":
            answer = {"shares": part.unmask(session, {str(k): str(v) for k, v in given.items()})}
        else:
            raise SiteError(BAD_REQUEST)
    except MaskingError as error:
        raise refused(error) from error
    return Payload("mask.reply", {**answer_header(header), "answer": answer})


@dataclass(frozen=True)
class Divided:
    """What a site's change is divided by under masks, where it counts over how far the site's steps moved it.

    Attributes:
        names: of the tensors.
        moves: ``a_k``, from 1; none: the site does not say its steps.
    """

    names: frozenset[str]
    moves: float | None


def divided_by(algorithm: Algorithm, module: StageModule, steps: float | None) -> Divided | None:
    """What the change of an update of so many steps is divided by; none: nothing is."""
    if not algorithm.divides:
        return None
    return Divided(frozenset(parameters_of(exchanged(module))), None if steps is None else algorithm.moves(steps))


def masked_reply(
    site: Site, spec: RunSpec, request: Payload, plain: Payload, divided: Divided | None = None
) -> Payload:
    """The answer to a request to train, its update as words under masks: the one tensor that leaves.

    Args:
        request: with the whole weights.
        plain: what would be answered without masks.
        divided: what the change is divided by.

    Raises:
        SiteError: the update may not leave by the site's rules, the session is not that of the model and settings that
            came to this site, the update does not fit the form, or the site does not go on with the sum.
    """
    if site.judge is not None:
        site.judge(plain, request)
    facts = dict(plain.header)
    examples = facts.pop("num_examples")  # beside the words it leaves in no case
    weight = examples if spec.strategy.weighting == "examples" else 1
    return Payload(plain.kind, facts, {MASKED: _masked_update(site, spec, request, plain.tensors, weight, divided)})


def _masked_update(
    site: Site, spec: RunSpec, request: Payload, tensors: Tensors, weight: int, divided: Divided | None
) -> np.ndarray:
    header, asked = request.header, asked_fields(request.header, FIELDS if divided is None else {**FIELDS, **MOVES})
    if divided is not None and divided.moves is None:
        raise SiteError(MASKING, "this site's update says no number of steps, by which its change has to be divided")
    if asked["norm"] != spec.strategy.masked_norm:
        raise SiteError(BAD_REQUEST, "the bound of an update's norm is not that of the run's settings")
    session = session_of(header, asked["session"])
    reference = {name: value for name, value in request.tensors.items() if not name.startswith(BASE)}
    try:
        form = UpdateForm(
            reference, asked["summands"], asked["norm"], asked["most_weight"], bits=session.bits,
            divided=frozenset() if divided is None else divided.names, most_moves=asked.get("most_moves", 1.0),
        )  # fmt: skip
        turn = turn_in(site, header, session, WordForm(form.digest, form.bits, form.numbers.fraction, form.length))
        # Numbers that the coordinator chose must decide by no refusal: whether words leave room, or a bound on steps
        # holds, would tell of this one update, asked again and again as exactly as one likes.
        if turn.sites() > form.summands:
            raise SiteError(BAD_REQUEST, "words of so many sites have no room in the form that the request describes")
        moves = 1.0 if divided is None or divided.moves is None else min(divided.moves, form.most_moves)
        return turn.masked(form.encode(tensors, min(weight, form.most_weight), moves=moves))
    except FixedPointError as error:
        raise SiteError(MASKING, error.cause) from error


def _texts(given: Mapping[str, Any], name: str) -> list[str]:
    value = given.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise SiteError(BAD_REQUEST)
    return value


def _signed(given: Mapping[str, Any]) -> dict[str, Signed]:
    found = {}
    for name, pair in given.items():
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
            raise SiteError(BAD_REQUEST)
        found[name] = Signed(*pair)
    return found
