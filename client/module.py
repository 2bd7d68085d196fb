"""A stage's module at a site: of the base, the round's weights that a request brings, and what is the site's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.state import SiteStore
from fed_diffmic.algorithms import EXTRA, Algorithm, Tensors, algorithm_class
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.failures import BAD_MODEL, BAD_REQUEST, NO_STATE, SiteError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import GUIDANCE_PREFIX, exchanged, loaded_module

BASE = "base/"


class BaseMissingError(Exception):
    """The site does not hold the base that the request names; the coordinator sends it then."""


def read_site_state(store: SiteStore, key: tuple[str, str, str], digest: str) -> Tensors:
    """The declared state of that digest; empty where the request names none.

    Raises:
        SiteError: it is not here.
    """
    if not digest:
        return {}
    site_state = store.site_state(key, digest)
    if site_state is None:
        raise SiteError(NO_STATE)
    return site_state


def load_module(
    spec: RunSpec,
    stage: str,
    store: SiteStore,
    request: Payload,
    algorithm: Algorithm,
    own: Tensors,
    *,
    training: bool,
) -> tuple[StageModule, Tensors]:
    """The stage's module with the base, the round's global weights and what is the site's own in it.

    Args:
        request: with the whole weights (:func:`client.crossing.whole_request`).
        own: the site's state of this stage.
        training: whether it will be trained, else evaluated.

    Returns:
        the module, and the algorithm's own tensors that came with the weights.

    Raises:
        BaseMissingError: the base is neither kept nor sent.
        SiteError: base and weights together are not exactly the model's tensors, or state is not here.
    """
    sent = {name.removeprefix(BASE): value for name, value in request.tensors.items() if name.startswith(BASE)}
    rest = {name: value for name, value in request.tensors.items() if not name.startswith(BASE)}
    received = {name: value for name, value in rest.items() if name.startswith(EXTRA)}
    weights = {name: value for name, value in rest.items() if name not in received}
    base = store.base(request.header["base"])
    if base is None:
        if not sent:
            raise BaseMissingError
        if tensors_digest(sent) != request.header["base"]:
            raise SiteError(BAD_REQUEST)
        store.keep_base(sent)
        base = sent
    whole = {**base, **weights}
    if request.header["guidance"]:
        guidance = read_site_state(store, (spec.run_id, spec.arm, "guidance"), request.header["guidance"])
        found = site_algorithm(spec, "guidance").overlay(guidance, training=False)
        whole |= overlaid(whole, {GUIDANCE_PREFIX + name: value for name, value in found.items()})
    whole |= overlaid(whole, algorithm.overlay(own, training=training))
    module = loaded_module(spec, stage, whole)
    names = exchanged(module)
    if set(names) - algorithm.kept(module.network, names) != set(weights):
        raise SiteError(BAD_MODEL)
    return module, received


def overlaid(whole: Mapping[str, Any], own: Tensors) -> Tensors:
    """``own`` if it can replace tensors of ``whole``.

    Raises:
        SiteError: the site's state is of another model.
    """
    if not own.keys() <= whole.keys():
        raise SiteError(BAD_MODEL)
    return own


def site_algorithm(spec: RunSpec, stage: str) -> Algorithm:
    """The algorithm of a stage, for its site half; under a Flower strategy, which has none, sites train freely."""
    cfg = spec.stage(stage)
    return algorithm_class(spec.strategy.name)(spec.strategy, cfg)
