"""What a site says of weights on its validation or test images where that leaves in masked sums alone.

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
from fed_diffmic.data.site import Examples
from fed_diffmic.exchange.failures import POLICY_METRICS, SiteError
from fed_diffmic.exchange.masking.figures import IMAGES, LOSS, figure_form
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.training import sureness, together
from fed_diffmic.training.metrics import quick

KINDS = {"evaluate": "evaluate", "calibrate": "evaluate", "conform": "conform", "test": "assess"}
"""By what request a sum's words are asked for."""


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


def judge_figures(
    site: Site, spec: RunSpec, request: Payload, purpose: str, figures: Mapping[str, float] | None = None
) -> Mapping[str, float]:
    """Let the site's rules judge figures as they would leave without masks; it does not depend on what they say.

    Args:
        figures: what would go into the sum; none: it is not known yet.

    Returns:
        What of the figures may go into the sum: of those for prediction sets the rules move counts of few images.

    Raises:
        SiteError: they may not leave.
    """
    figures = figures or {}
    if site.judge is None:
        return figures
    form, images = figure_form(spec, request.header["stage"], purpose, (1.0,)), float(len(examples_of(site, purpose)))
    names, moved = form.names, purpose == "conform"
    if purpose == "test":
        names = (IMAGES, *together.policy_names(spec.num_classes))
    elif moved:
        names = (IMAGES, *sureness.count_names(spec.task, spec.num_classes))
    metrics = dict.fromkeys(names, 0.0) | (dict(figures) if moved else {}) | {IMAGES: images}
    plain = Payload(f"{KINDS[purpose]}.reply", answer_header(request.header), metrics=metrics)
    judged = site.judge(plain, request)
    return judged.metrics if moved else figures


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
