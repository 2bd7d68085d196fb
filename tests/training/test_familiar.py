"""Images unlike a site's own: false alarms as promised, and what is different is found."""

import numpy as np
import pytest

from fed_diffmic.errors import DataError
from fed_diffmic.training.familiar import familiar, nearest


def test_distances_by_hand():
    means, precision = np.array([[0.0, 0.0], [10.0, 0.0]]), np.diag([1.0, 4.0])
    np.testing.assert_allclose(nearest(np.array([[0.0, 1.0], [9.0, 0.0]]), means, precision), [2.0, 1.0])


def test_false_alarms_are_as_few_as_promised_and_what_lies_elsewhere_is_found():
    rng, shares = np.random.default_rng(0), []
    for _ in range(40):
        labels = rng.integers(0, 3, 240)
        x = rng.normal(0, 1, (240, 6)) + 4 * np.eye(6)[labels]
        found = familiar(x, labels, np.arange(240), "multiclass", seed=int(rng.integers(99)))
        new = rng.normal(0, 1, (200, 6)) + 4 * np.eye(6)[rng.integers(0, 3, 200)]
        shares.append(found.unfamiliar(new).mean())
        assert found.level == 0.99 and found.means.shape == (3, 6)
        assert found.unfamiliar(new + 8).mean() > 0.9
    assert np.mean(shares) == pytest.approx(0.01, abs=0.008)


def test_patients_stay_whole_and_too_few_images_are_refused():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 3))
    with pytest.raises(DataError, match="80 images are too few"):
        familiar(x, np.zeros(80, int), np.zeros(80), "multiclass")  # one patient: nothing is left for a threshold
    several = familiar(x, (rng.random((80, 2)) < 0.5).astype(np.float32), np.arange(80), "multilabel")
    assert several.means.shape == (2, 3) and several.level == 0.95
