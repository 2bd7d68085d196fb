from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fed_diffmic.errors import ConfigError
from fed_diffmic.models.backbones import (
    Encoder,
    backbone_info,
    block_names,
    channels_last_is_safe,
    check_backbone_name,
)
from fed_diffmic.models.normalisation import batch_norms, live_batch_norms


@pytest.mark.parametrize(
    ("name", "stride", "shape"),
    [
        ("resnet18", 32, (512, 4, 4)),
        ("resnet18", 16, (256, 7, 7)),
        ("tf_efficientnet_lite0", 32, (320, 4, 4)),
        ("tf_efficientnet_lite0", 16, (112, 7, 7)),
        ("tf_efficientnet_lite0", None, (320, 4, 4)),
        ("convnext_atto", 16, (160, 7, 7)),
        ("vit_tiny_patch16_224", 32, (192, 7, 7)),
        ("swin_tiny_patch4_window7_224", 16, (384, 7, 7)),
    ],
)
def test_features_of_any_backbone(name: str, stride: int | None, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder = Encoder(name, side=112, stride=stride)
        features = encoder(torch.empty(2, 3, 112, 112))
    assert features.shape == (2, *shape)
    assert encoder.width == shape[0]


def test_features_are_timms_own() -> None:
    """The cut backbone equals timm's feature extractor with the same weights."""
    import timm

    encoder = Encoder("test_resnet", side=64, stride=16).eval()
    timms = timm.create_model("test_resnet", features_only=True, out_indices=(3,)).eval()
    timms.load_state_dict(encoder.net.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), timms(x)[0])


def test_a_plain_vit_has_neither_class_token_nor_final_norm() -> None:
    encoder = Encoder("vit_tiny_patch16_224", side=64)
    assert encoder.net.cls_token is None
    assert isinstance(encoder.net.norm, nn.Identity)
    assert encoder.net.pos_embed.shape == (1, 16, 192)
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_whole_keeps_the_class_token_and_the_head_layers() -> None:
    assert Encoder("vit_tiny_patch16_224", side=64, whole=True).net.cls_token is not None
    encoder = Encoder("tf_efficientnet_lite0", side=64, whole=True)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, encoder.width) == (1, 1280)


def test_every_trained_parameter_gets_a_gradient() -> None:
    """What lies behind the features is cut off, not carried along untrained."""
    generator = torch.Generator().manual_seed(0)
    for name in ("test_resnet", "test_efficientnet", "test_vit"):
        encoder = Encoder(name, side=160 if name == "test_vit" else 64)
        with torch.no_grad():  # the last norm of a residual block starts at zero, and nothing flows through its block
            for parameter in encoder.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        encoder(torch.randn(2, 3, encoder.side, encoder.side, generator=generator)).square().sum().backward()
        untouched = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert untouched == [], name


def test_frozen_norm_stays_frozen_under_train() -> None:
    encoder = Encoder("test_efficientnet", side=64, norm="frozen").train()
    assert live_batch_norms(encoder) == []
    norms = [m for _, m in batch_norms(encoder)]
    assert norms
    assert not any(p.requires_grad for m in norms for p in m.parameters())
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder(torch.randn(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert any(p.grad is not None for p in encoder.parameters())
    again = copy.deepcopy(encoder).eval().train()
    assert live_batch_norms(again) == []
    assert again.net.conv_stem.training


def test_group_norm_leaves_no_batch_norm() -> None:
    encoder = Encoder("test_efficientnet", side=64, norm="group").train()
    assert batch_norms(encoder) == []


@pytest.mark.parametrize(
    ("name", "count", "frozen", "first_trained"),
    [
        ("tf_efficientnet_lite0", 3, ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"), "blocks.3"),
        ("resnet18", 1, ("conv1", "bn1", "layer1"), "layer2"),
        ("convnext_atto", 2, ("stem", "stages.0", "stages.1"), "stages.2"),
    ],
)
def test_leading_blocks_are_not_trained(name: str, count: int, frozen: tuple[str, ...], first_trained: str) -> None:
    encoder = Encoder(name, side=64, frozen_blocks=count).train()
    for module in frozen:
        part = encoder.net.get_submodule(module)
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
    rest = encoder.net.get_submodule(first_trained)
    assert rest.training
    assert all(p.requires_grad for p in rest.parameters())


def test_no_blocks_frozen_freezes_nothing() -> None:
    encoder = Encoder("test_resnet", side=64)
    assert all(p.requires_grad for p in encoder.parameters())


def test_a_patch_backbone_ignores_frozen_blocks() -> None:
    encoder = Encoder("vit_tiny_patch16_224", side=32, frozen_blocks=3)
    assert all(p.requires_grad for p in encoder.parameters())


def test_too_many_frozen_blocks() -> None:
    with pytest.raises(ConfigError, match="model.frozen_blocks=8 is not .* 0 to 7 for tf_efficientnet_lite0"):
        Encoder("tf_efficientnet_lite0", side=64, frozen_blocks=8)
    with pytest.raises(ConfigError, match="allowed: 0 for densenet121"), torch.device("meta"):
        Encoder("densenet121", side=64, frozen_blocks=1)


def test_freeze_holds_the_whole_encoder_in_evaluation_mode() -> None:
    encoder = Encoder("test_resnet", side=64).freeze().train()
    assert not any(m.training for m in encoder.net.modules())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_blocks_of_a_cut_backbone() -> None:
    with torch.device("meta"):
        assert block_names(Encoder("resnet18", side=64, stride=16).net)[1] == ["layer1", "layer2", "layer3"]
        assert len(block_names(Encoder("tf_efficientnet_lite0", side=64, stride=16).net)[1]) == 5


def test_weights_are_in_channels_last_order_where_that_is_safe() -> None:
    weight = Encoder("test_resnet", side=64).net.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    risky = nn.Sequential(nn.Conv2d(3, 48, 1, stride=2))
    assert not channels_last_is_safe(risky)
    assert channels_last_is_safe(nn.Sequential(nn.Conv2d(16, 48, 1, stride=2), nn.Conv2d(3, 48, 3, stride=2)))
    with torch.device("meta"):
        assert not Encoder("fastvit_t8", side=64).channels_last


def test_names() -> None:
    check_backbone_name("resnet18", "model.guidance_backbone")
    check_backbone_name("resnet18.a1_in1k", "model.guidance_backbone")
    with pytest.raises(ConfigError, match=r"model.guidance_backbone=resnet81 .* near: .*resnet18"):
        check_backbone_name("resnet81", "model.guidance_backbone")
    with pytest.raises(ConfigError, match=r"model.local_backbone=resnet18.nosuch .*resnet18.a1_in1k"):
        check_backbone_name("resnet18.nosuch", "model.local_backbone")
    for hub in ("hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/tmp", "a/b", ""):
        with pytest.raises(ConfigError, match="the name of a timm model"):
            check_backbone_name(hub, "model.guidance_backbone")


def test_strides() -> None:
    info = backbone_info("resnet18", 64)
    assert info.reductions == (2, 4, 8, 16, 32)
    assert info.index(16) == 3
    assert info.index(None) == 4
    with pytest.raises(ValueError, match="not 64"):
        info.index(64)
    assert backbone_info("vit_tiny_patch16_224", 64).patch
