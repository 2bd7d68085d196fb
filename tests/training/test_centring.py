"""The centring round: what it finds, what it leaves alone, and that every algorithm averages it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_diffmic.algorithms import algorithm_names, build_algorithm
from fed_diffmic.algorithms.base import SiteUpdate
from fed_diffmic.errors import ConfigError
from fed_diffmic.training import local
from fed_diffmic.training.centring import seeks_centre
from fed_diffmic.training.features import FeatureStore, normalised_images
from fed_diffmic.training.stages import build_module, centres, exchanged, full_state, initial_state, load_state
from fed_diffmic.training.update import LocalRound, SiteMemory
from tests.toy import toy_site
from tests.training.test_local import TINY, tiny_spec

NAMES = {"guidance": ["global_centre.mean", "local_centre.mean"], "plain": ["centre.mean"]}


def centred_spec(**strategy):
    spec = tiny_spec()
    frozen = {name: replace(getattr(spec.stages, name), encoders="frozen") for name in ("guidance", "plain")}
    return replace(
        spec,
        model=replace(TINY, features="centred"),
        stages=replace(spec.stages, **frozen),
        strategy=replace(spec.strategy, **strategy),
    )


def begin(spec, stage, state=None):
    module = build_module(spec, stage)
    load_state(module.network, initial_state(spec, stage) if state is None else state)
    return module


def update(module, site, round_index=1, **arguments):
    algorithm = build_algorithm(module.spec.strategy)
    control = algorithm.broadcast(full_state(module), algorithm.initial_state(full_state(module), kinds_of(module)))
    return local.local_update(
        module, site.train, algorithm, LocalRound(site.name, round_index, **arguments), SiteMemory(received=control)
    )


def kinds_of(module):
    return dict(exchanged(module))


@pytest.mark.parametrize("stage", ["guidance", "plain"])
def test_the_first_round_sends_the_mean_of_the_features_and_trains_nothing(stage):
    spec, site = centred_spec(), toy_site("a", 1, count=24, side=32)
    module = begin(spec, stage)
    before = full_state(module)
    result = update(module, site)
    assert "loss" not in result.metrics and result.metrics["steps"] == 3 and result.num_examples == 12
    for name, value in result.tensors.items():
        assert np.array_equal(value, before[name]) == (name not in NAMES[stage])
    twin = begin(spec, stage, before).eval()
    rows = []
    with torch.no_grad():
        for i in range(len(site.train)):  # one at a time
            image = normalised_images(twin, site.train, np.array([i]), "cpu")
            if stage == "plain":
                h = twin.network.encoder(image)[0]
                rows.append([h / h.square().mean().sqrt()])
            else:
                grid = twin.network.global_encoder(image)[0].mean(dim=(1, 2))
                crops = twin.network(image).crops[0]
                regions = [twin.network.local_encoder(crop.unsqueeze(0))[0].mean(dim=(1, 2)) for crop in crops]
                scaled = torch.stack([h / h.square().mean().sqrt() for h in regions])
                rows.append([grid / grid.square().mean().sqrt(), scaled.mean(dim=0)])
    for name, column in zip(NAMES[stage], zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(result.tensors[name], torch.stack(column).mean(dim=0).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["guidance", "plain"])
def test_later_rounds_train_and_leave_the_mean_bit_for_bit(stage):
    spec, site = centred_spec(), toy_site("a", 1, count=24, side=32)
    found = update(begin(spec, stage), site).tensors
    module = begin(spec, stage, {**initial_state(spec, stage), **found})
    later = update(module, site, round_index=2)
    assert later.metrics["loss"] > 0
    assert all(later.tensors[name].tobytes() == found[name].tobytes() for name in NAMES[stage])
    assert any(later.tensors[name].tobytes() != found[name].tobytes() for name in found)


def test_a_mean_that_is_there_already_is_kept_and_the_first_round_trains():
    spec, site = centred_spec(), toy_site("a", 1, count=24, side=32)
    state = initial_state(spec, "guidance")
    state["global_centre.mean"] = np.full_like(state["global_centre.mean"], 0.25)
    module = begin(spec, "guidance", state)
    assert not seeks_centre(module, 1)
    result = update(module, site)
    assert result.metrics["loss"] > 0 and (result.tensors["global_centre.mean"] == 0.25).all()


def test_features_that_were_kept_from_round_to_round_do_not_hold_the_mean():
    """The plain classifier's are computed once, before there is a mean."""
    spec, site, store = centred_spec(), toy_site("a", 1, count=24, side=32), FeatureStore()
    found = update(begin(spec, "plain"), site, store=store, store_key="k").tensors
    after = [
        update(begin(spec, "plain", {**initial_state(spec, "plain"), **found}), site, 2, **kept).tensors
        for kept in ({"store": store, "store_key": "k"}, {})
    ]
    assert all(after[0][name].tobytes() == after[1][name].tobytes() for name in after[0])


@pytest.mark.parametrize("name", sorted(set(algorithm_names()) - {"krum"}))
def test_every_algorithm_averages_the_mean_and_moves_nothing_else(name):
    """Krum takes whole updates; the rest average, or take the middle of, buffers as they come."""
    spec = centred_spec(name=name, **({"trim": 0.0} if name == "trimmed_mean" else {}))
    sites = [toy_site(site, seed, count=24, side=32) for site, seed in (("a", 1), ("b", 2))]
    module = begin(spec, "plain")
    weights = {n: v for n, v in full_state(module).items() if n in exchanged(module)}
    algorithm, kinds = build_algorithm(spec.strategy, spec.stages.plain), kinds_of(module)
    updates = []
    for site in sites:
        result = update(begin(spec, "plain"), site)
        updates.append(
            SiteUpdate(
                site.name,
                result.tensors,
                result.num_examples,
                result.algorithm_tensors,
                steps=result.metrics["steps"],
                initial_loss=result.metrics.get("initial_loss"),
            )
        )
    after, _ = algorithm.aggregate(weights, kinds, updates, algorithm.initial_state(weights, kinds), 1)
    middle = (updates[0].tensors["centre.mean"] + updates[1].tensors["centre.mean"]) / 2
    np.testing.assert_allclose(after["centre.mean"], middle, rtol=0, atol=1e-6)
    assert np.abs(updates[0].tensors["centre.mean"] - updates[1].tensors["centre.mean"]).max() > 1e-3
    for tensor in set(weights) - {"centre.mean"}:
        np.testing.assert_allclose(after[tensor], weights[tensor], rtol=0, atol=1e-6)


def test_a_personal_model_starts_from_its_sites_own_mean():
    spec, site = centred_spec(name="ditto"), toy_site("a", 1, count=24, side=32)
    result = update(begin(spec, "plain"), site)
    own = {name: value for name, value in result.algorithm_state.items() if name.endswith("centre.mean")}
    assert len(own) == 1 and next(iter(own.values())).tobytes() == result.tensors["centre.mean"].tobytes()


def test_the_diffusion_stage_takes_the_mean_with_its_guidance_network():
    spec, site = centred_spec(), toy_site("a", 1, count=24, side=32)
    guidance = {**initial_state(spec, "guidance"), **update(begin(spec, "guidance"), site).tensors}
    module = build_module(spec, "diffusion")
    load_state(module.network, initial_state(spec, "diffusion", guidance))
    assert centres(module) == [] and not any("centre" in name for name in exchanged(module))
    assert not seeks_centre(module, 1)
    assert np.array_equal(full_state(module)["guidance.global_centre.mean"], guidance["global_centre.mean"])


@pytest.mark.parametrize("stage", ["guidance", "plain"])
def test_encoders_that_train_are_refused_whoever_asks(stage):
    spec = centred_spec()
    free = replace(spec.stages, **{stage: replace(getattr(spec.stages, stage), encoders="train")})
    with pytest.raises(ConfigError, match=rf"stages.{stage}.encoders=train .*frozen"):
        build_module(replace(spec, stages=free), stage)
