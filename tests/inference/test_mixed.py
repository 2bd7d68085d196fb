"""Two models as one: the mean by hand, the same for a table, for pixels and for a reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fed_diffmic.inference.mixed import MixedPredictor, mixture_at
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.training.calibration import Calibration, probabilities
from fed_diffmic.training.stages import initial_state
from tests import toy

SHARE = 0.4


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Predictor, Predictor]:
    toy.install_toy_networks(monkeypatch.setattr)
    made = []
    for seed, prior in ((1, (0.6, 0.3, 0.1)), (2, (0.2, 0.2, 0.6))):
        spec = replace(toy.toy_spec(), seed=seed)
        fitted = Calibration("multiclass", 2.0, 0.5, prior)
        made.append(Predictor(spec, "guidance", initial_state(spec, "guidance"), fitted))
    return made[0], made[1]


def test_the_mean_is_of_the_sites_own_mix_of_classes(pair: tuple[Predictor, Predictor]) -> None:
    own, shared = pair
    mixed = MixedPredictor(own, shared, SHARE)
    examples = toy.toy_site("a", 5).test
    ours, theirs = (one.predict(examples).probabilities for one in pair)
    moved = theirs * np.array([0.6, 0.3, 0.1]) / np.array([0.2, 0.2, 0.6])  # the rule of Bayes
    moved /= moved.sum(axis=1, keepdims=True)
    expected = SHARE * ours + (1 - SHARE) * moved
    found = mixed.predict(examples)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.decided, expected.argmax(axis=1))
    opinion = mixed.opinion(examples)
    entropy = -(expected * np.log(expected)).sum(axis=1) / np.log(3)
    np.testing.assert_allclose(opinion.doubts["entropy"], entropy, rtol=1e-9)
    pixels = examples.images(np.arange(len(examples))).numpy()
    np.testing.assert_allclose(mixed.predict_pixels(pixels, examples.keys).probabilities, expected, rtol=1e-5)
    scores, others = mixed.scores(examples)  # what a site's own prediction sets are counted from
    np.testing.assert_allclose(probabilities(scores, mixed.fitted), expected, rtol=1e-12)
    assert others == {} and mixed.sureness is None
    assert len({mixed.digest, own.digest, shared.digest, MixedPredictor(own, shared, 0.5).digest}) == 4


def test_a_site_without_validation_images_keeps_the_global_model(pair: tuple[Predictor, Predictor]) -> None:
    data = toy.toy_site("a", 5)
    first = {name: getattr(data.val, name)[:0] for name in ("rows", "labels", "groups", "keys")}
    none = replace(data, val=replace(data.val, **first))
    assert mixture_at(*pair, none).share == 0.0
