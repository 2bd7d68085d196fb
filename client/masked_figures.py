"""A site's answer to a request for metrics under masks: words of sums over its images, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from client.masked_turn import Turn, WordForm, turn_of
from client.requests import answer_header
from client.site import Site
from client.summed import check_figures, judge_figures
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.masking.figures import BITS, FRACTION, FigureForm, figure_form
from fed_diffmic.exchange.masking.fixed_point import FixedPointError
from fed_diffmic.exchange.masking.requests import MASKED
from fed_diffmic.exchange.payload import Payload


def may_say(site: Site, spec: RunSpec, request: Payload) -> None:
    """Whether figures of this site may go into the sum that a request names, before anything is computed.

    Raises:
        SiteError: they may not, or the sum is not one of this model, or it is not the time for it.
    """
    _turn(site, request, _form(spec, request)).sites()
    check_figures(site, spec, request, _purpose(request))


def masked_figures(site: Site, spec: RunSpec, request: Payload, metrics: Mapping[str, float] | None) -> Payload:
    """The answer, its figures as words under masks.

    Args:
        metrics: as computed; none: the weights give no finite scores here. Nobody reads the sum then.

    Raises:
        SiteError: the site's rules do not let them leave, or it does not go on with the sum.
    """
    purpose, form = _purpose(request), _form(spec, request)
    turn = _turn(site, request, form)
    told = judge_figures(site, spec, request, purpose, metrics)
    words: np.ndarray | None = None
    with suppress(FixedPointError):  # a refusal would tell of this site alone, and words that one knows of the others
        words = form.encode({} if metrics is None else told)
    return Payload(f"{request.kind}.reply", answer_header(request.header), {MASKED: turn.masked(words)})


def _form(spec: RunSpec, request: Payload) -> FigureForm:
    header, purpose = request.header, _purpose(request)
    return figure_form(spec, header["stage"], purpose, tuple(header.get("prior", ())), header.get("calibration"))


def _turn(site: Site, request: Payload, form: FigureForm) -> Turn:
    words = WordForm(form.digest, BITS, FRACTION, form.length)
    return turn_of(site, request.header, words, _purpose(request))


def _purpose(request: Payload) -> str:
    if request.kind == "evaluate":
        return "calibrate" if request.header["sums"] else "evaluate"
    return "test" if request.kind == "assess" else request.kind
