from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.models.diffmic import encoder_parameters
from fed_diffmic.models.normalisation import live_batch_norms
from fed_diffmic.models.plain import build_plain

Build = Callable[..., ModelConfig]


def test_it_is_timms_whole_network_with_a_new_classifier(tiny: Build) -> None:
    torch.manual_seed(0)
    model = build_plain(tiny(guidance_backbone="test_efficientnet"), 5).eval()
    timms = timm.create_model("test_efficientnet", num_classes=5).eval()
    state = model.encoder.net.state_dict()
    timms.load_state_dict(state | {f"classifier.{k}": v for k, v in model.classifier.state_dict().items()})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), timms(x))


def test_freezing_follows_the_model_it_is_compared_with(tiny: Build) -> None:
    model = build_plain(tiny(encoder_norm="frozen", frozen_blocks=1), 5).train()
    assert live_batch_norms(model) == []
    assert not any(p.requires_grad for p in model.encoder.net.layer1.parameters())
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert model.classifier.weight.grad is not None
    assert encoder_parameters(model) == {n for n, _ in model.named_parameters() if n.startswith("encoder.")}


def test_a_backbone_that_cannot_take_the_side(tiny: Build) -> None:
    with pytest.raises(ConfigError, match=r"model.guidance_backbone=dla34 .*model.image_side=112"):
        build_plain(tiny(guidance_backbone="dla34", image_side=112), 5)
