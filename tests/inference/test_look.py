"""What the guidance network looked at: its own output, scaled; the same from the whole model as from it alone."""

import numpy as np
import pytest
import torch

from fed_diffmic.data.transforms import normalise
from fed_diffmic.inference.look import has_look, look
from tests.inference.tiny import SIDE, tiny_predictor


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (3, SIDE, SIDE)).astype(np.uint8)


@pytest.mark.parametrize("index", [0, 2])
def test_it_is_what_the_network_puts_out(pixels, index):
    predictor = tiny_predictor(stage="guidance")
    spec = predictor.spec
    with torch.no_grad():
        output = predictor.module.eval().network(normalise(torch.from_numpy(pixels)[None], spec.mean, spec.std))
    heat = output.saliency[0, index].numpy()
    found = look(predictor, pixels, index)
    np.testing.assert_allclose(found.saliency, (heat - heat.min()) / np.ptp(heat), atol=1e-6)
    assert found.saliency.min() == 0 and found.saliency.max() == 1
    np.testing.assert_allclose(found.boxes[:, :2] * SIDE, output.pixels[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.boxes[:, 2] * SIDE, spec.model.crop)
    assert found.attention.sum() == pytest.approx(1, abs=1e-6)


def test_the_whole_model_looks_with_its_guidance_network(pixels):
    whole, alone = tiny_predictor(), tiny_predictor(stage="guidance")
    whole.module.train()
    first, second = look(whole, pixels, 1), look(alone, pixels, 1)
    np.testing.assert_array_equal(first.saliency, second.saliency)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert has_look(whole) and has_look(alone)


def test_a_map_that_is_the_same_everywhere_is_dark(pixels):
    predictor = tiny_predictor(stage="guidance")
    with torch.no_grad():
        predictor.module.network.saliency.weight.zero_()
    assert not look(predictor, pixels, 0).saliency.any()
