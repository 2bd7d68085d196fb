"""What a site says of weights on its validation images where that leaves in masked sums alone.

Whether it says anything is decided before it gives keys: who gives keys and no words is as one that was lost, and the
others' sum would be over fewer. What decides is the site's policy, how many images and patients there are, and their
labels; never the weights that came.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from client.privacy import is_private
from client.requests import answer_header
from client.site import Site
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.failures import POLICY_METRICS, SiteError
from fed_diffmic.exchange.masking.figures import IMAGES, LOSS, FigureForm, round_form, table_form
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.training import calibration
from fed_diffmic.training.metrics import quick


def figure_form(spec: RunSpec, stage: str, purpose: str, prior: tuple[float, ...]) -> FigureForm:
    """How a stage's figures are written, by the run's settings alone.

    Args:
        purpose: ``evaluate`` or ``calibrate``.
    """
    cfg = spec.stage(stage)
    if purpose == "calibrate":
        return table_form(prior, calibration.grid(spec.task, blended=cfg.blend).shape)
    return round_form(prior, cfg.select)


def check_figures(site: Site, spec: RunSpec, request: Payload, purpose: str) -> None:
    """Whether this site can say what the sum is of, and may.

    Raises:
        SiteError: its policy does not let it leave, or it has too few images, or none that the figure is defined on.
    """
    stage, labels = request.header["stage"], np.asarray(site.data.val.labels)
    if is_private(site, stage) and site.privacy.validation == "suppressed":
        raise SiteError(POLICY_METRICS, "privacy.validation is suppressed")
    form = figure_form(spec, stage, purpose, (1.0,))
    if not len(labels):
        raise SiteError(POLICY_METRICS, "there are no validation images")
    even = np.full((len(labels), spec.num_classes), 1.0 / spec.num_classes)
    known = {name for name, value in quick(even, labels, spec.task).items() if value is not None}
    undefined = [name for name in form.means if name not in known and name != LOSS]
    if undefined:
        raise SiteError(POLICY_METRICS, f"{undefined[0]} is not defined on the validation images")
    if site.judge is not None:
        site.judge(said(request, dict.fromkeys(form.names, 0.0) | {IMAGES: float(len(labels))}), request)


def says_figures(site: Site, spec: RunSpec, request: Payload, purpose: str) -> bool:
    """Whether this site gives what the sum is of (:func:`check_figures`)."""
    try:
        check_figures(site, spec, request, purpose)
    except SiteError as error:
        if error.code != POLICY_METRICS:
            raise
        return False
    return True


def said(request: Payload, metrics: Mapping[str, float]) -> Payload:
    """Figures as they would leave without masks, to be judged."""
    return Payload("evaluate.reply", answer_header(request.header), metrics=dict(metrics))
