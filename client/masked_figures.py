"""A site's answer to a request for metrics under masks: words of sums over its validation images, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from client.masking import WordForm, turn_of
from client.requests import answer_header
from client.site import Site
from client.summed import check_figures, figure_form, said
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.failures import DIVERGED, SiteError
from fed_diffmic.exchange.masking.figures import BITS, FRACTION
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


def masked_figures(site: Site, spec: RunSpec, request: Payload, metrics: Mapping[str, float]) -> Payload:
    """The answer, its figures as words under masks.

    Args:
        metrics: as computed.

    Raises:
        SiteError: a figure is not a number, the site's rules do not let them leave, or it does not go on with the sum.
    """
    header, purpose = request.header, _purpose(request)
    form = figure_form(spec, header["stage"], purpose, tuple(header["prior"]))
    plain = {name: value for name, value in metrics.items() if name in form.names}
    if site.judge is not None:
        site.judge(said(request, plain), request)
    turn = turn_of(site, header, WordForm(form.digest, BITS, FRACTION, form.length), purpose)
    try:
        words = turn.masked(form.encode(plain))
    except FixedPointError as error:
        raise SiteError(DIVERGED, error.cause) from error
    return Payload("evaluate.reply", answer_header(header), {MASKED: words})


def _purpose(request: Payload) -> str:
    return "calibrate" if request.header["sums"] else "evaluate"
