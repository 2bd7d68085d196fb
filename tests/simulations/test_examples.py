"""Which images a report shows, and that what is shown of them is what the guidance network did."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.config.compose import compose
from fed_diffmic.errors import ConfigError
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.training.calibration import uncalibrated
from fed_diffmic.training.features import normalised_images
from fed_diffmic.training.stages import initial_state
from simulations.examples import LARGEST, _small, example_tensors, pick, wanted
from simulations.metrics import method_result
from tests.toy import toy_site
from tests.training.test_local import tiny_spec


@pytest.fixture(scope="module")
def sites():
    return {name: toy_site(name, seed, count=24, side=32) for name, seed in (("a", 1), ("b", 2))}


def test_the_first_of_each_class_by_digest_whatever_the_order_of_sites(sites):
    found = pick(sites, 2, 3)
    assert sorted(found) == sorted(pick(dict(reversed(sites.items())), 2, 3))
    assert [index for _, _, index in found] == [0, 0, 1, 1, 2, 2]
    for site, i, index in found:
        assert sites[site].test.labels[i] == index
    for index in (0, 1, 2):
        every = [k for s in sites.values() for k, y in zip(s.test.keys, s.test.labels, strict=True) if y == index]
        assert {sites[s].test.keys[i] for s, i, c in found if c == index} == set(sorted(every)[:2])


def test_an_image_of_two_classes_is_shown_once(sites):
    test = sites["a"].test
    both = replace(sites["a"], test=replace(test, labels=np.ones((len(test), 2), np.float32)))
    found = pick({"a": both}, 1, 2)
    assert len({(site, i) for site, i, _ in found}) == len(found) == 2


def test_what_is_kept_is_what_the_network_looked_at(sites):
    spec = tiny_spec()
    predictor = Predictor(spec, "guidance", initial_state(spec, "guidance"), uncalibrated(np.full(3, 1 / 3), spec.task))
    models = dict.fromkeys(sites, predictor)
    result = method_result(models, sites, 0)
    found = example_tensors(models, result, sites, 1)
    assert found["classes"].tolist() == [0, 1, 2]
    for row, (site, i, _) in enumerate(pick(sites, 1, 3)):
        test, index = sites[site].test, np.array([i])
        with torch.no_grad():
            output = predictor.module.network(normalised_images(predictor.module, test, index, "cpu"))
        stated = result.test[site].probabilities[i]
        heat = output.saliency[0, int(stated.argmax())].numpy()
        np.testing.assert_allclose(found["saliency"][row], (heat - heat.min()) / (heat.max() - heat.min()))
        np.testing.assert_allclose(found["boxes"][row][:, :2] * 32, output.pixels[0].numpy())
        assert (found["boxes"][row][:, 2] == spec.model.crop / 32).all()
        np.testing.assert_array_equal(found["images"][row], test.images(index)[0].numpy())
        np.testing.assert_allclose(found["probabilities"][row], stated, rtol=1e-6)
    assert example_tensors(models, result, sites, 0) == {}


def test_large_images_are_kept_smaller():
    assert _small(torch.zeros(1, 3, 400, 400, dtype=torch.uint8)).shape == (1, 3, LARGEST, LARGEST)


def test_only_drawn_data_are_shown_unasked_and_a_hospitals_own_table_never():
    assert wanted(compose(None, [])) == 2
    assert wanted(compose(None, ["run.examples=0"])) == 0
    real = ["dataset=ham10000", "dataset.root=/x"]
    assert (wanted(compose(None, real)), wanted(compose(None, [*real, "run.examples=3"]))) == (0, 3)
    with pytest.raises(ConfigError, match="run.examples"):
        compose(None, ["dataset=table", "dataset.root=/x", "run.examples=1"])
