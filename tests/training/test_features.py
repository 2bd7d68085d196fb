"""Features that are computed once: what their name holds, how many are kept, in which order they come."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from fed_diffmic.training import features
from fed_diffmic.training.features import FeatureStore, all_features, chunks, feature_key, normalised_images, select
from fed_diffmic.training.stage import StageModule
from tests.toy import ToyNet, toy_site, toy_spec


class Pair(NamedTuple):
    """Two columns, as a stage's features are."""

    mean: torch.Tensor
    corner: torch.Tensor


class Once(StageModule):
    features_once = True

    def inputs(self, images):
        return Pair(images.mean(dim=(1, 2, 3)), images[:, 0, 0, 0])


def key(examples=None, *, spec=None, stage="diffusion", base="b", own=""):
    return feature_key(spec or toy_spec(), stage, base, examples or toy_site("a", 1).train, own=own)


def test_features_are_named_by_images_their_order_and_what_made_them():
    spec = toy_spec()
    here, there = toy_site("a", 1).train, toy_site("b", 2).train
    assert len(here) == len(there)
    names = [
        key(),
        key(there),
        key(here.subset(np.arange(len(here))[::-1])),
        key(here.subset(np.arange(3))),
        key(stage="plain"),
        key(base="c"),
        key(own="mine"),
        key(spec=replace(spec, mean=(0.1, 0.5, 0.5))),
        key(spec=replace(spec, std=(0.1, 0.5, 0.5))),
        key(spec=replace(spec, threads=spec.threads + 1)),
        key(spec=replace(spec, model=replace(spec.model, regions=spec.model.regions + 1))),
    ]
    assert len(set(names)) == len(names)
    assert key() == key()


def test_who_asks_is_no_part_of_the_name():
    spec = toy_spec()
    for other in (replace(spec, arm="pooled"), replace(spec, run_id="another"), replace(spec, seed=9)):
        assert key(spec=other) == key(spec=spec)
    moved = replace(spec, model=replace(spec.model, weights="/elsewhere/w.safetensors"))
    assert key(spec=moved) == key(spec=replace(spec, model=replace(spec.model, weights="/here/w.safetensors")))


def test_a_store_drops_what_was_used_longest_ago_and_never_keeps_what_is_too_large():
    store = FeatureStore(max_bytes=80)
    columns = {name: (torch.zeros(10),) for name in "abc"}  # 40 bytes each
    store.put("a", columns["a"])
    store.put("b", columns["b"])
    assert store.get("a") is columns["a"]
    store.put("c", columns["c"])
    assert store.get("b") is None and store.get("a") is columns["a"] and store.get("c") is columns["c"]
    store.put("large", (torch.zeros(21),))
    assert store.get("large") is None and store.get("a") is not None


def test_features_are_those_of_the_examples_in_order_and_kept_under_their_name(monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 5)
    spec = replace(toy_spec(), mean=(0.1, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    module, train = Once(spec, "plain", ToyNet()), toy_site("a", 1).train
    store = FeatureStore()
    found = all_features(module, train, "cpu", store, "k")
    raw = train.images(np.arange(len(train))).float() / 255
    wanted = (raw - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    torch.testing.assert_close(normalised_images(module, train, np.arange(len(train)), "cpu"), wanted)
    torch.testing.assert_close(found.mean, wanted.mean(dim=(1, 2, 3)))
    torch.testing.assert_close(found.corner, wanted[:, 0, 0, 0])
    assert all_features(module, train, "cpu", store, "k") is found
    assert all_features(module, train, "cpu", store, "other") is not found
    some = select(found, np.array([7, 2]))
    assert torch.equal(some.corner, found.corner[[7, 2]]) and torch.equal(some.mean, found.mean[[7, 2]])


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (4, [4]), (5, [5]), (11, [5, 5, 1])])
def test_chunks_cover_everything_once_in_order(count, sizes):
    parts = chunks(count, 5)
    assert [len(part) for part in parts] == sizes
    assert np.concatenate([*parts, np.zeros(0, int)]).tolist() == list(range(count))
