"""What a site counts of its validation images for prediction sets and for the test of uncertainty."""

from __future__ import annotations

import torch

from client.masked_figures import masked_figures, may_say
from client.module import load_module, read_site_state, site_algorithm
from client.privacy import is_private
from client.requests import answer_header
from client.site import Site
from client.tasks import drop_non_finite
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.failures import BAD_REQUEST, DIVERGED, SiteError
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.training.calibration import Calibration
from fed_diffmic.training.evaluation import predict_doubts
from fed_diffmic.training.features import SHARED, feature_key
from fed_diffmic.training.sureness import site_counts


def conform(site: Site, spec: RunSpec, request: Payload) -> Payload:
    """Counts of the site's validation images by the cell of their scores, under a finished stage's model.

    A site whose validation images are protected tells none: noise that hid one patient in some thousand counts would
    make every set hold every class. Under masks: counts that go into a sum with those of other sites, and nothing else.

    Raises:
        BaseMissingError: the stage's base must be sent.
        SiteError: the request's calibration is not one of this task and these classes, scores are not finite, or the
            site gives no words for the sum.
    """
    header, store = request.header, site.store
    try:
        fitted = Calibration.from_json(header["calibration"])
    except ModelFileError as error:
        raise SiteError(BAD_REQUEST) from error
    if header["site"] != site.name or (fitted.task, len(fitted.prior)) != (spec.task, spec.num_classes):
        raise SiteError(BAD_REQUEST)
    if MASKED in header:
        may_say(site, spec, request)
    own = read_site_state(store, (spec.run_id, spec.arm, header["stage"]), header["state"])
    algorithm = site_algorithm(spec, header["stage"])
    module, _ = load_module(spec, header["stage"], store, request, algorithm, own, training=False)
    examples = site.data.val
    if not len(examples) or (is_private(site) and site.privacy.validation == "suppressed"):
        return Payload("conform.reply", answer_header(header))
    try:
        key = feature_key(spec, header["stage"], header["base"], examples, own=header["guidance"])
        scores, others = predict_doubts(module, examples, torch.device(site.device), SHARED, key)
        metrics = site_counts(scores, others, examples.labels, examples.groups, fitted, spec)
    except (ValueError, FloatingPointError) as error:
        if MASKED in header:
            return masked_figures(site, spec, request, None)
        raise SiteError(DIVERGED) from error
    if MASKED in header:
        return masked_figures(site, spec, request, metrics)
    return Payload("conform.reply", answer_header(header), metrics=drop_non_finite(metrics))
