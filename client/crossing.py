"""What crosses, at the site's end: the weights that a request names, and the update on its way back.

A request's header names its weights by digest. What travels is as little as the coordinator thinks is needed: whole
tensors, tensors coded as differences to a set that the site keeps (``reference``), the rest of the weights being
another set that it keeps (``held``). A site that does not keep what is named says so, and gets everything whole. An
update goes back coded as differences to the weights that came; what coding leaves out is declared state of the site.
"""

from __future__ import annotations

from dataclasses import replace

from client.module import BASE
from client.state import SiteStore
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.codecs import DELTA, build_codec, code, restore
from fed_diffmic.exchange.failures import BAD_REQUEST, DIVERGED, SiteError
from fed_diffmic.exchange.payload import HELD, REFERENCE, Payload, Tensors
from fed_diffmic.training.size import BYTES, whole_parameters

COPIES, SLACK = 4, 16 * 2**20
"""A set of weights has at most as many bytes as so many copies of the whole network (what algorithms send beside it
among them), and so many more."""

RESIDUAL = "residual/"
"""What the names of a site's state begin with that coding left out of its updates so far."""


class WeightsMissingError(Exception):
    """The site does not keep a set of weights that the request builds on; the coordinator sends it whole then."""


def whole_request(store: SiteStore, spec: RunSpec, request: Payload) -> Payload:
    """The request with all the tensors of the weights that its header names; they are kept.

    A base that came along stays where it is.

    Raises:
        WeightsMissingError: it builds on weights that are not here.
        SiteError: what came does not become the weights that it names, or is more than the run's network can have.
        PayloadError: what came coded is not.
    """
    named = request.header["weights"]
    base = {name: value for name, value in request.tensors.items() if name.startswith(BASE)}
    weights = store.weights(named)
    if weights is None:
        came = {name: value for name, value in request.tensors.items() if name not in base}
        _check_size(spec, came)
        weights = {**_kept(store, request, HELD), **_decoded(store, spec, request, came)}
        _check_size(spec, weights)
        if not store.are(weights, named):
            raise SiteError(BAD_REQUEST, "the weights are not those that the request names")
        store.keep_weights(named, weights)
    return replace(request, tensors={**base, **weights})


def split_state(state: Tensors) -> tuple[Tensors, Tensors]:
    """A site's declared state: what the update builds on, and what coding left out."""
    left_out = {name.removeprefix(RESIDUAL): value for name, value in state.items() if name.startswith(RESIDUAL)}
    return {name: value for name, value in state.items() if not name.startswith(RESIDUAL)}, left_out


def coded_update(spec: RunSpec, tensors: Tensors, request: Payload, left_out: Tensors) -> tuple[Tensors, Tensors]:
    """An update as it travels, and the state that coding leaves (:data:`RESIDUAL`).

    It comes after everything that protects the update: what noise was added to may be coded as one likes.

    Args:
        tensors: what the update is, the algorithm's own tensors included.
        request: with the whole weights.
        left_out: what coding left out before.

    Raises:
        SiteError: the update is not one that can be coded.
    """
    try:
        made = code(build_codec(spec.strategy), tensors, request.tensors, left_out)
    except ValueError as error:
        raise SiteError(DIVERGED) from error
    return made.travels, {RESIDUAL + name: value for name, value in made.residual.items()}


def _check_size(spec: RunSpec, weights: Tensors) -> None:
    """A digest says which set it is and not that it is of this network; what is kept on disk must be bounded.

    Raises:
        SiteError: it is larger than :data:`COPIES` and :data:`SLACK` allow.
    """
    size = sum(value.nbytes for value in weights.values())
    if size <= SLACK:  # the network is then not looked at: its size is remembered by specification, but costs once
        return
    most = COPIES * BYTES * whole_parameters(spec) + SLACK
    if size > most:
        raise SiteError(BAD_REQUEST, f"weights of {size >> 20} MiB; the run's network has at most {most >> 20} MiB")


def _decoded(store: SiteStore, spec: RunSpec, request: Payload, came: Tensors) -> Tensors:
    if not any(name.startswith(DELTA) for name in came):
        return came
    return restore(build_codec(spec.strategy), came, _kept(store, request, REFERENCE))


def _kept(store: SiteStore, request: Payload, which: str) -> Tensors:
    """The set that a field of the header names; nothing where it names none."""
    digest = request.header.get(which, "")
    if not digest:
        return {}
    found = store.weights(digest)
    if found is None:
        raise WeightsMissingError
    return found
