"""The signs of the phantoms can be learnt at 64 pixels by a linear model on coarse statistics; shuffled ones cannot.

The proof on networks is the demonstration's own (``model=tiny``); this is its cheap twin, run on every change.
"""

from functools import cache

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from fed_diffmic.data.phantoms.canvas import resized, site_style
from fed_diffmic.data.phantoms.layouts import Phantom
from fed_diffmic.data.phantoms.writer import draw, plan, shuffle
from fed_diffmic.seeding import numpy_generator

SIDE = 64
CLASSES = {"dermoscopy": 7, "fundus": 5, "ultrasound": 4}


def features(picture: np.ndarray) -> np.ndarray:
    """Coarse colours, and how rough each of them is: (F,)."""
    image = picture.astype(np.float32) / 255
    parts = [resized(image[..., c], (6, 6)).ravel() for c in range(3)]
    for c in range(3):
        fine = image[..., c] - resized(resized(image[..., c], (16, 16)), (SIDE, SIDE))
        parts += [np.sort(fine.ravel())[:: SIDE * SIDE // 24], resized(np.abs(fine), (4, 4)).ravel()]
    return np.concatenate(parts)


@cache
def drawn(modality: str, n: int = 360) -> tuple[list[Phantom], np.ndarray]:
    """Who is in the data set, and the features (n, F) of their pictures."""
    people, rows = plan(modality, n, 0, sites=4), []
    for p in people:
        generators = (numpy_generator(0, kind, p.group, p.visit) for kind in ("subject", "view"))
        rows.append(features(draw(modality, p.labels, site_style(p.site), *generators, side=SIDE)))
    return people, np.array(rows)


def macro_auroc(modality: str, shuffled: bool) -> float:
    people, x = drawn(modality)
    table = shuffle(people, 0) if shuffled else people
    y = np.eye(CLASSES[modality])[[p.labels for p in table]]
    test = np.array([p.group % 3 == 0 for p in people])  # whole groups
    scaler = StandardScaler().fit(x[~test])
    train_x, test_x = scaler.transform(x[~test]), scaler.transform(x[test])
    scores = [RidgeClassifier(alpha=100).fit(train_x, y[~test, c]).decision_function(test_x) for c in range(y.shape[1])]
    return float(np.mean([roc_auc_score(y[test, c], scores[c]) for c in range(y.shape[1])]))


@pytest.mark.parametrize("modality", sorted(CLASSES))
def test_signs_can_be_learnt_and_shuffled_labels_cannot(modality):
    assert macro_auroc(modality, shuffled=False) > 0.85
    assert 0.40 < macro_auroc(modality, shuffled=True) < 0.60
