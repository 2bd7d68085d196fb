"""A site's own model and the global one as one: the mean of their probabilities, with a share fitted at the site.

APFL in its simplest form (:func:`fed_diffmic.training.personal.fit_mixture`). Both speak of the site's own mix of
classes before they are weighed against each other.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.special import logit

from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.inference.predictor import Opinion, Predictor
from fed_diffmic.training.calibration import Calibration, decide
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.personal import LEAST, Mixture, at_prior, fit_mixture
from fed_diffmic.training.uncertainty import entropy


class MixedPredictor(Predictor):
    """Two models that predict together. Regions, saliency and features are those of the global one.

    Args:
        own: the site's own model.
        shared: the global one.
        share: of the probabilities, how much is the first's.
        signed_by: fingerprint of the key whose signature was verified; empty: nobody's was.
    """

    def __init__(self, own: Predictor, shared: Predictor, share: float, signed_by: str = "") -> None:
        self.own, self.shared, self.share, self.signed_by = own, shared, share, signed_by
        self.spec, self.device, self.module, self.base = shared.spec, shared.device, shared.module, shared.base
        # What comes out are probabilities already; decisions are made against the site's own mix of classes.
        self.fitted = Calibration(shared.spec.task, 1.0, 0.0, own.fitted.prior, n=own.fitted.n)
        self.sureness = None  # prediction sets of one of the two promise nothing of their mean

    @property
    def digest(self) -> str:
        """Of both states and the share."""
        return hashlib.sha256(f"{self.own.digest} {self.shared.digest} {self.share!r}".encode()).hexdigest()

    def predict(self, examples: Examples) -> Scored:
        """Mixed probabilities; decisions by the run's rule, against the site's own prior."""
        mixed = self._mean(self.own.predict(examples).probabilities, self.shared.predict(examples).probabilities)
        return Scored(mixed, self._decided(mixed), examples.labels, examples.groups, self.spec.task)

    def opinion(self, examples: Examples) -> Opinion:
        """As :meth:`Predictor.opinion`; the doubt is the entropy of the mean."""
        return self._mixed(self.own.opinion(examples), self.shared.opinion(examples))

    def predict_pixels(self, pixels: np.ndarray, keys: np.ndarray, *, features: bool = False) -> Opinion:
        """As :meth:`Predictor.predict_pixels`; the features are the global model's."""
        own = self.own.predict_pixels(pixels, keys)
        return self._mixed(own, self.shared.predict_pixels(pixels, keys, features=features))

    def scores(self, examples: Examples) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What calibration makes the mixed probabilities of: their logarithms, of several labels their log-odds."""
        found = np.clip(self.predict(examples).probabilities, LEAST**2, 1 - LEAST**2)
        return (logit(found) if self.spec.task == "multilabel" else np.log(found)), {}

    def _mixed(self, own: Opinion, shared: Opinion) -> Opinion:
        found = self._mean(own.probabilities, shared.probabilities)
        return Opinion(found, self._decided(found), {"entropy": entropy(found, self.spec.task)}, shared.features)

    def _mean(self, own: np.ndarray, shared: np.ndarray) -> np.ndarray:
        moved = at_own_prior(self.own, self.shared, shared)
        return np.asarray(self.share * own + (1 - self.share) * moved)

    def _decided(self, probabilities: np.ndarray) -> np.ndarray:
        return decide(probabilities, self.fitted, self.spec.stages.decision)


def at_own_prior(own: Predictor, shared: Predictor, probabilities: np.ndarray) -> np.ndarray:
    """The global model's probabilities ``(N, C)`` for the site's mix of classes."""
    before, after = np.array(shared.fitted.prior), np.array(own.fitted.prior)
    return at_prior(probabilities, before, after, several=shared.spec.task == "multilabel")


def mixture_at(own: Predictor, shared: Predictor, data: SiteData) -> Mixture:
    """The mixture of two models fitted on a site's validation images; the global model where it has none."""
    if not len(data.val):
        return Mixture(0.0, (), (0.0, 0.0, 0.0))
    first = own.predict(data.val).probabilities
    second = at_own_prior(own, shared, shared.predict(data.val).probabilities)
    return fit_mixture(first, second, data.val.labels, data.val.groups, shared.spec.seed)
