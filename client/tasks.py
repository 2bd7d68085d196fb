"""What a site does when asked: describe itself, train, evaluate. No Flower in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from client.crossing import coded_update, split_state
from client.distributed import check_mechanism, noised_reply
from client.masked_figures import masked_figures, may_say
from client.masking import divided_by, masked_reply
from client.module import load_module, read_site_state, site_algorithm
from client.privacy import check_stage, is_private, private_facts, private_round, public_weight, unprotected_round
from client.requests import answer_header
from client.site import Site
from client.team import team_of
from fed_diffmic.algorithms import EXTRA, Algorithm, Tensors
from fed_diffmic.algorithms.fedsgd import FedSgd
from fed_diffmic.config.precision import check_private
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.failures import BAD_REQUEST, DIVERGED, SiteError
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import Payload, request_name
from fed_diffmic.training import calibration
from fed_diffmic.training.evaluation import evaluate_scores, judged, predict_scores
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.local import local_update
from fed_diffmic.training.matrix import cell_metrics, matrix_cell
from fed_diffmic.training.pooled import site_points
from fed_diffmic.training.stage import StageModule
from fed_diffmic.training.subgroups import flat as flat_subgroups
from fed_diffmic.training.subgroups import subgroup_metrics
from fed_diffmic.training.sureness import Sureness
from fed_diffmic.training.together import site_sums
from fed_diffmic.training.update import LocalResult, LocalRound, SiteMemory

RESAMPLES = 1000  # of the groups of test images, for intervals


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
    header, store = request.header, site.store
    if header["site"] != site.name:
        raise SiteError(BAD_REQUEST)
    name, key = request_name(header), (spec.run_id, spec.arm, header["stage"])
    kept = store.update(key, name)
    if kept is not None and (not kept.header["state"] or store.site_state(key, kept.header["state"]) is not None):
        return kept
    kept_state, left_out = split_state(read_site_state(store, key, header["state"]))
    check_stage(site, header["stage"])
    algorithm = site_algorithm(spec, header["stage"])
    module, received = load_module(spec, header["stage"], store, request, algorithm, kept_state, training=True)
    if site.examine is not None:
        site.examine(module)
    check_mechanism(site, algorithm, header)
    if isinstance(algorithm, FedSgd):
        check_private(spec.precision)
        reply = noised_reply(site, request, module, algorithm, local_round(site, spec, header))
        if site.keep_updates:
            store.keep_update(key, name, reply)
        return reply
    result, ledger, claim = update(site, spec, header, module, algorithm, kept_state, received)
    tensors: Tensors = {**result.tensors, **result.algorithm_tensors}
    residual: Tensors = {}
    if MASKED not in header:
        # After the update and all that protects it: what noise was added to may be coded as one likes.
        tensors, residual = coded_update(spec, tensors, request, left_out)
    state_digest, site_state = "", {**(result.optimizer_state or {}), **result.algorithm_state, **residual}
    if site_state:  # before the reply leaves: the next round may ask for it
        needed = {header["state"], header["keep"]}
        state_digest = store.keep_site_state(key, header["round"], site_state, needed)
    facts = {"num_examples": result.num_examples, "state": state_digest, "ledger": ledger, "claim": claim}
    reply = Payload("train.reply", {**answer_header(header), **facts}, tensors, drop_non_finite(result.metrics))
    if MASKED in header:
        divided = divided_by(algorithm, module, result.metrics.get("steps"))
        reply = masked_reply(site, spec, request, reply, divided)
    if site.keep_updates:
        store.keep_update(key, name, reply)
    return reply


def update(
    site: Site,
    spec: RunSpec,
    header: Mapping[str, Any],
    module: StageModule,
    algorithm: Algorithm,
    kept_state: Tensors,
    received: Tensors,
) -> tuple[LocalResult, str, str]:
    """The update itself, private or not, with the ledger's head and the claim that go with it (empty: none).

    Args:
        module: with the round's weights in it.
        kept_state: of the site's previous round: the optimizer's moments, and the algorithm's.
        received: the algorithm's own tensors of this round.

    Raises:
        SiteError: it diverged.
        ConfigError: the run computes in bfloat16, and the site protects the stage.
        BudgetError, LedgerError: the site's privacy does not allow it.
    """
    stage, echoed = header["stage"], header["ledger"]
    at, memory = local_round(site, spec, header), site_memory(kept_state, received)
    try:
        if is_private(site, stage):
            check_private(spec.precision)
            return private_round(site, spec, echoed, module, algorithm, at, memory)
        # Before the update, as a reservation would be: a site that dies meanwhile has the round in its ledger.
        head = unprotected_round(site, spec, stage, at.round_index, echoed)
        result = local_update(module, site.data.train, algorithm, at, memory)
        if is_private(site):  # the weight is public in every stage of a site that protects one
            result = replace(result, num_examples=public_weight(site, spec, echoed))
        return result, head, ""
    except (ValueError, FloatingPointError) as error:
        raise SiteError(DIVERGED) from error


def local_round(site: Site, spec: RunSpec, header: Mapping[str, Any]) -> LocalRound:
    """Whose update it is and of which round, as the request says; how it is computed, as the site says."""
    stage, base, guidance = header["stage"], header["base"], header["guidance"]
    return LocalRound(
        site.drawn_by,
        header["round"],
        torch.device(site.device),
        site.pace,
        SHARED,
        feature_key(spec, stage, base, site.data.train, own=guidance),
        site.folder if site.real else site.folder.parent,  # virtual sites share a machine, so they share a choice
        team_of((site.device, *site.further), site.folder),
    )


def site_memory(kept_state: Tensors, received: Tensors) -> SiteMemory:
    """What the site kept of its previous round, told apart by the names, and what the algorithm sent for this one."""
    return SiteMemory(
        optimizer={name: value for name, value in kept_state.items() if not name.startswith(EXTRA)},
        algorithm={name: value for name, value in kept_state.items() if name.startswith(EXTRA)},
        received=received,
    )


def evaluate(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """Metrics of the sent weights on the site's validation images that may leave the site; or their sums, under masks.

    Raises:
        BaseMissingError: the stage's base must be sent.
        SiteError: the request asks for another split, scores are not finite, or the site gives no words for the sum.
    """
    header, store = request.header, site.store
    prior = np.array(header["prior"], dtype=np.float64) if all(type(p) is float for p in header["prior"]) else None
    if header["site"] != site.name or header["split"] != "val" or prior is None or prior.shape != (spec.num_classes,):
        raise SiteError(BAD_REQUEST)
    if MASKED in header:
        may_say(site, spec, request)
    own = read_site_state(store, (spec.run_id, spec.arm, header["stage"]), header["state"])
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
        metrics = evaluate_scores(scores, examples.labels, prior, spec.task, sums=header["sums"])
    except (ValueError, FloatingPointError) as error:
        if MASKED in header:
            return masked_figures(site, spec, request, None)
        raise SiteError(DIVERGED) from error
    if MASKED in header:
        return masked_figures(site, spec, request, metrics)
    return Payload("evaluate.reply", answer_header(header), metrics=drop_non_finite(metrics))


def assess(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """Metrics of a finished stage's model on the site's test images that may leave the site: a cell of the matrix.

    Under masks: counts that go into a sum with those of other sites, and nothing else.

    Raises:
        BaseMissingError: the stage's base must be sent.
        SiteError: the request's calibration is not one of this task and these classes, scores are not finite, or the
            site gives no words for the sum.
    """
    header, store = request.header, site.store
    try:
        fitted = calibration.Calibration.from_json(header["calibration"])
        sure = Sureness.from_json(header["sureness"]) if "sureness" in header else None
    except ModelFileError as error:
        raise SiteError(BAD_REQUEST) from error
    if header["site"] != site.name or (fitted.task, len(fitted.prior)) != (spec.task, spec.num_classes):
        raise SiteError(BAD_REQUEST)
    if sure is not None and (sure.task, sure.classes) != (spec.task, spec.num_classes):
        raise SiteError(BAD_REQUEST)
    if MASKED in header:
        may_say(site, spec, request)
    own = read_site_state(store, (spec.run_id, spec.arm, header["stage"]), header["state"])
    algorithm = site_algorithm(spec, header["stage"])
    module, _ = load_module(spec, header["stage"], store, request, algorithm, own, training=False)
    examples = site.data.test
    if not len(examples) or (is_private(site) and site.privacy.validation == "suppressed"):
        return Payload("assess.reply", answer_header(header))
    try:
        scores = predict_scores(module, examples, torch.device(site.device))
        scored = judged(scores, examples, fitted, spec)
    except (ValueError, FloatingPointError) as error:
        if MASKED in header:
            return masked_figures(site, spec, request, None)
        raise SiteError(DIVERGED) from error
    if MASKED in header:
        return masked_figures(site, spec, request, site_sums(scored))
    cell = matrix_cell(scored, spec.classes, bootstrap=RESAMPLES, seed=spec.seed, name=site.name, sureness=sure)
    metrics = cell_metrics(cell, spec.classes) | site_points(scored, spec.num_classes)
    if examples.subgroups is not None:
        texts = examples.subgroups
        found = subgroup_metrics(
            scored, texts, spec.classes, bootstrap=RESAMPLES, seed=spec.seed, sureness=sure, least=1
        )
        metrics |= flat_subgroups(found)
    return Payload("assess.reply", answer_header(header), metrics=drop_non_finite(metrics))


def drop_non_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that are numbers: what is not one is left out rather than sent."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
