"""What a site says of weights on its validation or test images where that leaves in masked sums alone.

Whether it says anything is decided before it gives keys: who gives keys and no words is as one that was lost, and the
others' sum would be over fewer. What decides is the site's policy, how many images and patients there are, and their
labels; never the weights that came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from client.privacy import is_private
from client.requests import answer_header
from client.site import Site
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.failures import POLICY_METRICS, SiteError
from fed_diffmic.exchange.masking.figures import IMAGES, LOSS, FigureForm, round_form, table_form, test_form
from fed_diffmic.exchange.payload import Payload, text_digest
from fed_diffmic.training import calibration
from fed_diffmic.training.metrics import quick
from fed_diffmic.training.together import count_names, policy_names, sum_names


def figure_form(
    spec: RunSpec, stage: str, purpose: str, prior: tuple[float, ...], fitted: Mapping[str, Any] | None = None
) -> FigureForm:
    """How a stage's figures are written, by the run's settings alone.

    Args:
        purpose: one of :data:`fed_diffmic.exchange.masking.session.FIGURES`.
        prior: of the classes, under which the sites calibrate; of test images: none.
        fitted: of test images: the stage's calibration, as it came.
    """
    cfg = spec.stage(stage)
    if purpose == "test":
        return test_form((*count_names(spec.num_classes), *sum_names()), text_digest(canonical(dict(fitted or {}))))
    if purpose == "calibrate":
        return table_form(prior, calibration.grid(spec.task, blended=cfg.blend).shape)
    return round_form(prior, cfg.select)


def check_figures(site: Site, spec: RunSpec, request: Payload, purpose: str) -> None:
    """Whether this site can say what the sum is of, and may.

    Raises:
        SiteError: its policy does not let it leave, or it has too few images, or none that the figure is defined on.
    """
    stage, part = request.header["stage"], examples_of(site, purpose)
    labels = np.asarray(part.labels)
    if is_private(site) and site.privacy.validation == "suppressed":  # whichever stage it protects
        raise SiteError(POLICY_METRICS, "privacy.validation is suppressed")
    form = figure_form(spec, stage, purpose, (1.0,))
    if not len(labels):
        raise SiteError(POLICY_METRICS, f"there are no {'test' if purpose == 'test' else 'validation'} images")
    even = np.full((len(labels), spec.num_classes), 1.0 / spec.num_classes)
    known = {name for name, value in quick(even, labels, spec.task).items() if value is not None}
    undefined = [name for name in form.means if name not in known and name != LOSS]
    if undefined:
        raise SiteError(POLICY_METRICS, f"{undefined[0]} is not defined on the validation images")
    judge_figures(site, spec, request, purpose)


def judge_figures(site: Site, spec: RunSpec, request: Payload, purpose: str) -> None:
    """Let the site's rules judge figures as they would leave without masks; it does not depend on what they say.

    Raises:
        SiteError: they may not leave.
    """
    if site.judge is None:
        return
    form, images = figure_form(spec, request.header["stage"], purpose, (1.0,)), float(len(examples_of(site, purpose)))
    names = (IMAGES, *policy_names(spec.num_classes)) if purpose == "test" else form.names
    metrics = dict.fromkeys(names, 0.0) | {IMAGES: images}
    kind = "assess.reply" if purpose == "test" else "evaluate.reply"
    site.judge(said(kind, request, metrics), request)


def said(kind: str, request: Payload, metrics: Mapping[str, float]) -> Payload:
    """Figures as they would leave without masks, to be judged."""
    return Payload(kind, answer_header(request.header), metrics=dict(metrics))


def examples_of(site: Site, purpose: str) -> Examples:
    """The images that a sum is of."""
    return site.data.test if purpose == "test" else site.data.val


def says_figures(site: Site, spec: RunSpec, request: Payload, purpose: str) -> bool:
    """Whether this site gives what the sum is of (:func:`check_figures`)."""
    try:
        check_figures(site, spec, request, purpose)
    except SiteError as error:
        if error.code != POLICY_METRICS:
            raise
        return False
    return True
