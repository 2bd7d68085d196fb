"""What FedPer shares and keeps: by the names of a real network's tensors."""

from dataclasses import replace

from fed_diffmic.algorithms import LocalContext, build_algorithm
from fed_diffmic.config.simulation import ModelConfig, StrategyConfig
from fed_diffmic.models.diffmic import encoder_parameters
from fed_diffmic.training.stages import build_module, exchanged
from tests.toy import toy_spec

TINY = ModelConfig(
    name="tiny", image_side=32, regions=2, crop=16, latent=16, attention=8, feature_stride=16,
    guidance_backbone="test_resnet", local_backbone="test_resnet", prior_backbone="test_resnet",
    region_backbone="test_resnet",
)  # fmt: skip


def network_of(stage, encoders):
    spec = replace(toy_spec(encoders=encoders), model=TINY)
    module = build_module(spec, stage)
    return module.network, exchanged(module)


def test_heads_stay_and_encoders_cross():
    for stage in ("guidance", "plain"):
        network, names = network_of(stage, "train")
        algorithm = build_algorithm(StrategyConfig(name="fedper"))
        kept, encoders = algorithm.kept(network, names), encoder_parameters(network)
        shared = set(names) - kept
        assert kept and shared and not kept & encoders
        assert {name for name in shared if names[name] == "parameter"} <= encoders
        extras, state = algorithm.site_half(LocalContext(network, {}, names)).finish()
        assert extras == {} and set(algorithm.overlay(state, training=True)) == kept


def test_where_no_encoder_is_trained_everything_crosses():
    network, names = network_of("plain", "frozen")
    algorithm = build_algorithm(StrategyConfig(name="fedper"))
    assert names and algorithm.kept(network, names) == frozenset()
    assert not algorithm.global_is_trained and algorithm.personal
