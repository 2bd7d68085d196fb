"""Every impossible model is refused before work starts, with the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ConfigError
from fed_diffmic.models.checks import check_architecture
from fed_diffmic.models.diffmic import build_diffmic, build_guidance, check_model_config

Build = Callable[..., ModelConfig]

PAPER = ModelConfig(
    name="paper",
    image_side=224,
    regions=6,
    latent=6144,
    crop_channels="first",
    prior_backbone="vit_small_patch16_224",
    encoder_norm="train",
)


def millions(parameters: list[torch.nn.Parameter]) -> float:
    return sum(p.numel() for p in parameters) / 1e6


def test_the_papers_model_has_the_papers_size() -> None:
    check_model_config(PAPER)
    with torch.device("meta"):
        model = build_diffmic(PAPER, 7)
    assert millions([p for p in model.parameters() if p.requires_grad]) == pytest.approx(132.5, abs=0.1)
    assert millions(list(model.guidance.parameters())) == pytest.approx(22.5, abs=0.05)
    assert not any(p.requires_grad for p in model.guidance.parameters())
    assert millions(list(model.prior.parameters())) == pytest.approx(38.4, abs=0.05)
    assert millions(list(model.denoiser.parameters())) == pytest.approx(94.1, abs=0.05)
    tables = [p for name, p in model.denoiser.named_parameters() if "timestep_table" in name]
    assert millions(tables) == pytest.approx(18.5, abs=0.05)
    assert model.guidance.regions.grid == 7
    assert model.guidance.regions.window == 1


def test_fewer_than_k_windows_names_k_h_and_stride(tiny: Build) -> None:
    with pytest.raises(ConfigError) as caught:
        check_model_config(tiny(image_side=64, feature_stride=32, crop=32, regions=6))
    assert caught.value.key == "model.regions"
    text = str(caught.value)
    assert "model.regions=6" in text
    assert "at most 4" in text
    assert "K=6" in text
    assert "H=64" in text
    assert "stride 32" in text
    assert "2 x 2 grid" in text
    check_model_config(tiny(image_side=64, feature_stride=32, crop=32, regions=4))


@pytest.mark.parametrize(
    ("changes", "key", "allowed"),
    [
        ({"crop": 65}, "model.crop", "at most model.image_side=64"),
        ({"guidance_backbone": "resnet81"}, "model.guidance_backbone", "resnet18"),
        ({"region_backbone": "nothing_like_it_at_all"}, "model.region_backbone", "the name of a timm model"),
        ({"prior_backbone": "hf-hub:timm/resnet18.a1_in1k"}, "model.prior_backbone", "the name of a timm model"),
        ({"feature_stride": 64}, "model.feature_stride", "one of 4, 8, 16, 32 for test_resnet"),
        ({"frozen_blocks": 9}, "model.frozen_blocks", "0 to 3 for test_resnet"),
        ({"sampling_steps": 50, "timesteps": 20}, "model.sampling_steps", "at most model.timesteps=20"),
        (
            {"prior_init": "guidance", "prior_backbone": "resnet18"},
            "model.prior_init",
            "own, because model.prior_backbone",
        ),
        (
            {"prior_init": "guidance", "region_backbone": "resnet18"},
            "model.prior_init",
            "model.region_backbone=resnet18",
        ),
        ({"prior_init": "guidance", "prior_weights": __file__}, "model.prior_init", "model.prior_weights"),
        ({"weights": "no/such/file"}, "model.weights", "an existing weights file"),
        ({"prior_weights": "no/such/file"}, "model.prior_weights", "an existing weights file"),
        ({"prior_backbone": "maxvit_rmlp_nano_rw_256", "image_side": 112}, "model.prior_backbone", "image_side=112"),
        ({"local_backbone": "test_convnext"}, "model.local_backbone", "model.crop=16"),
    ],
)
def test_what_cannot_be(tiny: Build, changes: dict[str, object], key: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_model_config(tiny(**changes))
    assert caught.value.key == key
    assert allowed in str(caught.value)


def test_a_site_needs_no_weights_file(tiny: Build, tmp_path: Path) -> None:
    check_architecture(tiny(weights=str(tmp_path / "at the coordinator only")))
    build_guidance(tiny(weights=str(tmp_path / "at the coordinator only")), 3)


def test_mixed_encoders(tiny: Build) -> None:
    torch.manual_seed(0)
    cfg = tiny(image_side=96, crop=32, prior_backbone="vit_tiny_patch16_224", local_backbone="test_efficientnet")
    check_model_config(cfg)
    model = build_diffmic(cfg, 3).eval()
    features = model.features(torch.randn(2, 3, 96, 96))
    assert features.global_pooled.shape == (2, 192)


def test_checking_twice_costs_nothing(tiny: Build) -> None:
    """The shape of a backbone's features is found once: a second check builds no module."""
    check_model_config(tiny())
    from fed_diffmic.models import checks

    before = checks._feature_shape.cache_info().misses
    check_model_config(tiny())
    assert checks._feature_shape.cache_info().misses == before


@settings(max_examples=15)
@given(
    side=st.integers(32, 160), regions=st.integers(2, 30), crop=st.integers(8, 64), stride=st.sampled_from([8, 16, 32])
)
def test_what_is_accepted_can_be_built_and_run(side: int, regions: int, crop: int, stride: int) -> None:
    """Any side that gives K windows works; anything else is a configuration error."""
    cfg = ModelConfig(
        name="tiny",
        image_side=side,
        regions=regions,
        crop=crop,
        latent=8,
        feature_stride=stride,
        encoder_norm="train",
        **dict.fromkeys(("guidance_backbone", "local_backbone", "prior_backbone", "region_backbone"), "test_resnet"),
    )
    try:
        check_model_config(cfg)
    except ConfigError as error:
        assert error.key in ("model.regions", "model.crop")  # noqa: PT017
        return
    with torch.device("meta"):
        network = build_guidance(cfg, 2).eval()
        out = network(torch.empty(1, 3, side, side))
    assert out.crops.shape == (1, regions, 3, crop, crop)
