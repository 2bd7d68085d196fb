"""A site's answer to a request for metrics under masks: words of sums over its validation images, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from client.masked_turn import WordForm, turn_of
from client.requests import answer_header
from client.site import Site
from client.summed import check_figures, figure_form, said
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.masking.figures import BITS, FRACTION, IMAGES
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import Payload


def may_say(site: Site, spec: RunSpec, request: Payload) -> None:
    """Whether figures of this site may go into the sum that a request names, before anything is computed.

    Raises:
        SiteError: they may not, or the sum is not one of this model, or it is not the time for it.
    """
    header = request.header
    purpose = _purpose(request)
    form = figure_form(spec, header["stage"], purpose, tuple(header["prior"]))
    turn_of(site, header, WordForm(form.digest, BITS, FRACTION, form.length), purpose).sites()
    check_figures(site, spec, request, purpose)


def masked_figures(site: Site, spec: RunSpec, request: Payload, metrics: Mapping[str, float] | None) -> Payload:
    """The answer, its figures as words under masks.

    Args:
        metrics: as computed; none: the weights give no finite scores here, which the sum tells of no single site.

    Raises:
        SiteError: the site's rules do not let them leave, or it does not go on with the sum.
    """
    header, purpose = request.header, _purpose(request)
    form = figure_form(spec, header["stage"], purpose, tuple(header["prior"]))
    images, turn = (
        len(site.data.val),
        turn_of(site, header, WordForm(form.digest, BITS, FRACTION, form.length), purpose),
    )
    plain = {name: value for name, value in (metrics or {}).items() if name in form.names}
    try:
        words = form.encode(plain)
    except FixedPointError:
        words = form.diverged(images)
    if site.judge is not None:
        site.judge(said(request, dict.fromkeys(form.names, 0.0) | {IMAGES: float(images)}), request)
    words = turn.masked(words)
    return Payload("evaluate.reply", answer_header(header), {MASKED: words})


def _purpose(request: Payload) -> str:
    return "calibrate" if request.header["sums"] else "evaluate"
