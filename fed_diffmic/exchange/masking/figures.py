"""What sites say of weights on their images, as words: sums over all images of all sites, none of one site.

Each word is a sum over a site's images: their number ``n``; of a figure that is a mean, ``n`` times it; of the
calibration's table, each cell as it is; for prediction sets and of test images, counts
(:mod:`fed_diffmic.training.sureness`, :mod:`fed_diffmic.training.together`). All are written in quanta of ``2^-20``, in
which numbers of images and the calibration's sums (:mod:`fed_diffmic.training.calibration`) are whole, so their sums
over the sites are exact; a mean figure is off by half a quantum times the number of sites, over all images.

Every site of a sum has a part in each of its words: a figure that only some of them could say would be that of these
alone. So a site at which weights give no finite scores, or a number beyond what the words hold, gives random words
(:meth:`fed_diffmic.exchange.masking.site.MaskingSite.mask`), and nobody reads the sum. A refusal in their place would
tell of this one site, and words that one knows (zeros, or the bound) would be taken away from the sum: what is left is
that of fewer sites, of a single one with weights that are made for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.masking.fixed_point import FixedPoint, FixedPointError
from fed_diffmic.exchange.masking.session import MOST_SITES
from fed_diffmic.exchange.payload import text_digest
from fed_diffmic.training import calibration, sureness, together

IMAGES, LOSS = "num_examples", "loss"
MOST_LABELS = 4096
"""A count may be over an image's labels, more of which no run has, or over pairs of images."""
FRACTION, BITS = 20, 64
BOUND = 2.0 ** (BITS - 1 - FRACTION - MOST_SITES.bit_length())
"""The largest number of a site: images, or nats over all its images (3.4e10)."""
NO_SUM = "the weights give no finite scores at a site of the sum, or a site said what cannot be"
"""Which of the two it is, and at which site, nobody knows: words of either look random."""


@dataclass(frozen=True)
class FigureForm:
    """How a sum of figures is written; the same at every site of it.

    Attributes:
        prior: of the classes, under which the sites calibrate.
        means: names of figures that are means over a site's images.
        sums: names of figures that are sums over them.
        counts: names of figures that count them, or sum up what is no larger than one of each.
        about: digest of what else all sites must have been given alike.
    """

    prior: tuple[float, ...]
    means: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    about: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that a site must be able to say."""
        return IMAGES, *self.means, *self.sums, *self.counts

    @property
    def length(self) -> int:
        """Number of words."""
        return len(self.names)

    @property
    def digest(self) -> str:
        """Names the form."""
        rules = {"means": list(self.means), "sums": list(self.sums), "fraction": FRACTION, "bits": BITS}
        rules |= {"counts": list(self.counts), "about": self.about} if self.counts else {}
        return text_digest(canonical({"v": 1, "figures": rules, "prior": [float(p).hex() for p in self.prior]}))

    def encode(self, metrics: Mapping[str, float]) -> np.ndarray:
        """A site's figures as words.

        Args:
            metrics: by name; :attr:`names` are taken. A count that is not there is 0.

        Raises:
            FixedPointError: one is missing, not finite or beyond :data:`BOUND`, or there is no image.
        """
        metrics = {**dict.fromkeys(self.counts, 0.0), **metrics}
        images = float(metrics.get(IMAGES, 0.0))
        if not set(self.names) <= set(metrics) or not images >= 1.0:
            raise FixedPointError("a site cannot say every figure of the sum")
        summed = (metrics[name] for name in (*self.sums, *self.counts))
        values = np.array([images, *(images * metrics[n] for n in self.means), *summed])
        if not np.isfinite(values).all():
            raise FixedPointError("a figure is not a finite number")
        return self._words.encode(values)

    def decode(self, total: np.ndarray, sites: int) -> dict[str, float]:
        """What a sum says: the number of images, means over all of them, and sums.

        Args:
            total: sum of the words.
            sites: how many there are in it.

        Raises:
            FixedPointError: no so many sites can have said that.
        """
        if total.shape != (self.length,) or not 1 <= sites <= MOST_SITES:
            raise FixedPointError("the sum is none of figures of this form")
        values = self._words.decode(total)
        images = float(values[0])
        if images < sites or images != int(images):
            raise FixedPointError(NO_SUM)
        slack = sites * self._words.quantum
        middle = 1 + len(self.means)
        most_count = images * max(MOST_LABELS, images)
        for name, value in zip(self.names[1:], values[1:], strict=True):
            nats = name == LOSS or name in self.sums
            most = BOUND * sites if nats else most_count if name in self.counts else images
            if not -slack <= value <= most + slack:
                raise FixedPointError(NO_SUM)
        held = np.maximum(values, 0.0)
        found = {name: float(value / images) for name, value in zip(self.means, held[1:middle], strict=True)}
        shares = {name: value if name == LOSS else min(1.0, value) for name, value in found.items()}
        summed = dict(zip((*self.sums, *self.counts), map(float, held[middle:]), strict=True))
        return {IMAGES: images, **shares, **summed}

    @property
    def _words(self) -> FixedPoint:
        return FixedPoint(MOST_SITES, BOUND, FRACTION, BITS)


def figure_form(
    spec: RunSpec, stage: str, purpose: str, prior: Sequence[float], fitted: Mapping[str, Any] | None = None
) -> FigureForm:
    """How a stage's figures are written, by the run's settings alone.

    Args:
        purpose: one of :data:`fed_diffmic.exchange.masking.session.FIGURES`.
        prior: of the classes, under which the sites calibrate; of counts: none.
        fitted: of counts: the stage's calibration, as JSON values.
    """
    cfg = spec.stage(stage)
    if purpose == "conform":
        return count_form(sureness.count_names(spec.task, spec.num_classes), fitted or {})
    if purpose == "test":
        return count_form((*together.count_names(spec.num_classes), *together.sum_names()), fitted or {})
    if purpose == "calibrate":
        return table_form(prior, calibration.grid(spec.task, blended=cfg.blend).shape)
    return round_form(prior, cfg.select)


def round_form(prior: Sequence[float], select: str) -> FigureForm:
    """Of a round: the loss, and the figure that chooses (``stages.*.select``)."""
    return FigureForm(tuple(map(float, prior)), tuple(dict.fromkeys((LOSS, select))))


def count_form(counts: Sequence[str], fitted: Mapping[str, Any]) -> FigureForm:
    """Of a finished stage: counts of images, under its calibration ``fitted``."""
    return FigureForm((), counts=tuple(counts), about=text_digest(canonical(dict(fitted))))


def table_form(prior: Sequence[float], shape: tuple[int, int]) -> FigureForm:
    """Of a stage's calibration: the sum of negative log-likelihoods at each point of its grid ``(I, J)``."""
    cells = tuple(f"nll/{i}/{j}" for i in range(shape[0]) for j in range(shape[1]))
    return FigureForm(tuple(map(float, prior)), sums=cells)
