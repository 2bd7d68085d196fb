"""What a site does when asked: describe itself, train, evaluate. No Flower in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from client.privacy import check_stage, is_private, private_facts, private_round, public_weight, unprotected_round
from client.site import Site
from client.state import SiteStore
from fed_diffmic.algorithms import EXTRA, Algorithm, Tensors, algorithm_names, build_algorithm
from fed_diffmic.config.spec import STAGES, RunSpec
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.failures import BAD_MODEL, BAD_REQUEST, DIVERGED, NO_STATE, SiteError
from fed_diffmic.exchange.payload import Payload, request_name
from fed_diffmic.files import tensors_digest
from fed_diffmic.training import calibration
from fed_diffmic.training.evaluation import evaluate_scores, judged, predict_scores
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.local import LocalResult, local_update
from fed_diffmic.training.matrix import cell_figures, matrix_cell
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.stages import GUIDANCE_PREFIX, exchanged, loaded_module

NEED_BASE = "need_base"
BASE = "base/"
RESAMPLES = 1000  # of the groups of test images, for intervals
COMMON: dict[str, type] = {"spec": str, "run": str, "arm": str}
TASK: dict[str, type] = {**COMMON, "stage": str, "round": int, "site": str, "base": str, "weights": str}
FIELDS: dict[str, dict[str, type]] = {
    "labels": {"run": str},
    "query": {**COMMON, "ledger": str},
    "train": {**TASK, "state": str, "keep": str, "guidance": str, "ledger": str},
    "evaluate": {**TASK, "state": str, "guidance": str, "prior": list, "sums": bool, "split": str},
    "assess": {**TASK, "state": str, "guidance": str, "calibration": dict},
}
# What real sites need and virtual ones, which have no rules, do not (client.studies).
OPTIONAL: dict[str, dict[str, type]] = {
    "labels": {},
    "query": {"study": str, "document": str, "signature": str},
    "train": {"study": str},
    "evaluate": {"study": str},
    "assess": {"study": str},
}


class BaseMissingError(Exception):
    """The site does not hold the base that the request names; the coordinator sends it then."""


def check_request(request: Payload, kind: str) -> RunSpec | None:
    """Header fields and types of a request, and the spec inside it (a question for labels has none).

    Raises:
        SiteError: the request is not one.
        ConfigError: its spec holds what the configuration does not allow.
    """
    wanted, allowed = FIELDS[kind], FIELDS[kind] | OPTIONAL[kind]
    header = request.header
    if request.kind != kind or not set(wanted) <= set(header) <= set(allowed):
        raise SiteError(BAD_REQUEST)
    if any(type(value) is not allowed[name] for name, value in header.items()):
        raise SiteError(BAD_REQUEST)
    if "spec" not in wanted:
        return None
    spec = RunSpec.from_json(header["spec"])
    if (spec.run_id, spec.arm) != (header["run"], header["arm"]) or header.get("stage", STAGES[0]) not in STAGES:
        raise SiteError(BAD_REQUEST)
    return spec


def describe(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """Who the site is: name, number of images, training images of each class."""
    data = site.data
    labels = data.train.labels
    images = [len(data.train), len(data.val), len(data.test)]
    if is_private(site):
        images, noised = private_facts(site, spec, request.header["ledger"])
        counts = np.array(noised)
    elif spec.task == "multilabel":
        counts = np.asarray(labels).reshape(-1, spec.num_classes).sum(axis=0)
    else:
        counts = np.bincount(labels.astype(np.int64), minlength=spec.num_classes)
    header = {
        "run": spec.run_id,
        "arm": spec.arm,
        "request": request_name(request.header),
        "site": site.name,
        "images": images,
        "class_counts": [int(n) for n in counts],
    }
    return Payload("query.reply", header)


def labels(data: SiteData, request: Payload) -> Payload:
    """Classes, in order, and task of the site's data."""
    header = {"run": request.header["run"], "request": request_name(request.header)}
    return Payload("labels.reply", {**header, "classes": list(data.classes), "task": data.task})


def train(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """One local update, or the kept reply if this very request was answered before.

    Raises:
        BaseMissingError: the stage's base must be sent.
        SiteError: what the request names is not here, or the update diverged.
    """
    header, store = request.header, SiteStore(site.folder)
    if header["site"] != site.name:
        raise SiteError(BAD_REQUEST)
    name, key = request_name(header), (spec.run_id, spec.arm, header["stage"])
    kept = store.update(key, name)
    if kept is not None and (not kept.header["state"] or store.state(key, kept.header["state"]) is not None):
        return kept
    before = kept_state(store, key, header["state"])
    check_stage(site, header["stage"])
    algorithm = site_algorithm(spec, header["stage"])
    module, received = load_module(spec, header["stage"], store, request, algorithm, before, training=True)
    if site.examine is not None:
        site.examine(module)
    result, ledger, claim = update(site, spec, header, module, algorithm, before, received)
    state, after = "", {**(result.optimizer_state or {}), **result.algorithm_state}
    if after:
        state = store.keep_state(key, header["round"], after, {header["state"], header["keep"]})
    facts = {"num_examples": result.num_examples, "state": state, "ledger": ledger, "claim": claim}
    reply = {**answer_header(header), **facts}
    payload = Payload("train.reply", reply, {**result.tensors, **result.algorithm_tensors}, finite(result.metrics))
    if site.keep_updates:
        store.keep_update(key, name, payload)
    return payload


def kept_state(store: SiteStore, key: tuple[str, str, str], digest: str) -> Tensors:
    """The declared state of that digest; empty where the request names none.

    Raises:
        SiteError: it is not here.
    """
    if not digest:
        return {}
    state = store.state(key, digest)
    if state is None:
        raise SiteError(NO_STATE)
    return state


def update(
    site: Site,
    spec: RunSpec,
    header: Mapping[str, Any],
    module: StageModule,
    algorithm: Algorithm,
    before: Tensors,
    received: Tensors,
) -> tuple[LocalResult, str, str]:
    """The update itself, private or not, with the ledger's head and the claim that go with it (empty: none).

    Args:
        module: with the round's weights in it.
        before: state kept after the site's previous round: the optimizer's moments, and the algorithm's.
        received: the algorithm's own tensors of this round.

    Raises:
        SiteError: it diverged.
        BudgetError, LedgerError: the site's privacy does not allow it.
    """
    stage, index, data = header["stage"], header["round"], site.data.train
    key = feature_key(spec, stage, header["base"], data, own=header["guidance"])
    moments = {name: value for name, value in before.items() if not name.startswith(EXTRA)}
    own = {name: value for name, value in before.items() if name.startswith(EXTRA)}
    try:
        if is_private(site, stage):
            return private_round(
                site,
                spec,
                module,
                algorithm,
                index,
                echoed=header["ledger"],
                optimizer_state=moments,
                received=received,
                algorithm_state=own,
                store=SHARED,
                store_key=key,
            )
        head = unprotected_round(site, spec, stage, index, header["ledger"])
        result = local_update(
            module,
            data,
            algorithm,
            site=site.drawn_by,
            round_index=index,
            device=torch.device(site.device),
            optimizer_state=moments,
            received=received,
            algorithm_state=own,
            pace=site.pace,
            store=SHARED,
            store_key=key,
        )
        if is_private(site):  # the weight is public in every stage of a site that protects one
            result = replace(result, num_examples=public_weight(site, spec, header["ledger"]))
        return result, head, ""
    except (ValueError, FloatingPointError) as error:
        raise SiteError(DIVERGED) from error


def evaluate(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """Figures of the sent weights on the site's validation images that may leave the site.

    Raises:
        BaseMissingError: the stage's base must be sent.
        SiteError: the request asks for another split, or the scores are not finite.
    """
    header, store = request.header, SiteStore(site.folder)
    prior = np.array(header["prior"], dtype=np.float64) if all(type(p) is float for p in header["prior"]) else None
    if header["site"] != site.name or header["split"] != "val" or prior is None or prior.shape != (spec.num_classes,):
        raise SiteError(BAD_REQUEST)
    own = kept_state(store, (spec.run_id, spec.arm, header["stage"]), header["state"])
    algorithm = site_algorithm(spec, header["stage"])
    module, _ = load_module(spec, header["stage"], store, request, algorithm, own, training=False)
    if is_private(site) and site.privacy.validation == "suppressed":
        return Payload("evaluate.reply", answer_header(header))
    examples = site.data.val
    try:
        scores = predict_scores(
            module,
            examples,
            torch.device(site.device),
            SHARED,
            feature_key(spec, header["stage"], header["base"], examples, own=header["guidance"]),
        )
        figures = evaluate_scores(scores, examples.labels, prior, spec.task, sums=header["sums"])
    except (ValueError, FloatingPointError) as error:
        raise SiteError(DIVERGED) from error
    return Payload("evaluate.reply", answer_header(header), metrics=finite(figures))


def assess(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """Figures of a finished stage's model on the site's test images that may leave the site: a cell of the matrix.

    Raises:
        BaseMissingError: the stage's base must be sent.
        SiteError: the request's calibration is not one of this task and these classes, or scores are not finite.
    """
    header, store = request.header, SiteStore(site.folder)
    try:
        fitted = calibration.Calibration.from_json(header["calibration"])
    except ModelFileError as error:
        raise SiteError(BAD_REQUEST) from error
    if header["site"] != site.name or (fitted.task, len(fitted.prior)) != (spec.task, spec.num_classes):
        raise SiteError(BAD_REQUEST)
    own = kept_state(store, (spec.run_id, spec.arm, header["stage"]), header["state"])
    algorithm = site_algorithm(spec, header["stage"])
    module, _ = load_module(spec, header["stage"], store, request, algorithm, own, training=False)
    examples = site.data.test
    if not len(examples) or (is_private(site) and site.privacy.validation == "suppressed"):
        return Payload("assess.reply", answer_header(header))
    try:
        scores = predict_scores(module, examples, torch.device(site.device))
        scored = judged(scores, examples, fitted, spec)
    except (ValueError, FloatingPointError) as error:
        raise SiteError(DIVERGED) from error
    cell = matrix_cell(scored, spec.classes, bootstrap=RESAMPLES, seed=spec.seed, name=site.name)
    return Payload("assess.reply", answer_header(header), metrics=finite(cell_figures(cell, spec.classes)))


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
    if tensors_digest(rest) != request.header["weights"]:
        raise SiteError(BAD_REQUEST)
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
    state = {**base, **weights}
    if request.header["guidance"]:
        guidance = kept_state(store, (spec.run_id, spec.arm, "guidance"), request.header["guidance"])
        found = site_algorithm(spec, "guidance").overlay(guidance, training=False)
        state |= overlaid(state, {GUIDANCE_PREFIX + name: value for name, value in found.items()})
    state |= overlaid(state, algorithm.overlay(own, training=training))
    module = loaded_module(spec, stage, state)
    names = exchanged(module)
    if set(names) - algorithm.kept(module.network, names) != set(weights):
        raise SiteError(BAD_MODEL)
    return module, received


def overlaid(state: Mapping[str, Any], own: Tensors) -> Tensors:
    """``own`` if it can replace tensors of ``state``.

    Raises:
        SiteError: the site's state is of another model.
    """
    if not own.keys() <= state.keys():
        raise SiteError(BAD_MODEL)
    return own


def site_algorithm(spec: RunSpec, stage: str) -> Algorithm:
    """The algorithm of a stage, for its site half; under a Flower strategy, which has none, sites train freely."""
    cfg = spec.stage(stage)
    if spec.strategy.name in algorithm_names():
        return build_algorithm(spec.strategy, cfg)
    return Algorithm(spec.strategy, cfg)


def answer_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """What every reply quotes of its request."""
    quoted = {name: header[name] for name in ("run", "arm", "stage", "round", "site")}
    return {**quoted, "request": request_name(header)}


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures that are numbers: what is not one is left out rather than sent."""
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
