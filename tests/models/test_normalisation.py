from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from fed_diffmic.models.normalisation import (
    batch_norms,
    group_count,
    live_batch_norms,
    replace_batch_norms,
    row_norm,
)


@pytest.mark.parametrize(
    ("channels", "groups"), [(6144, 8), (24, 8), (40, 8), (12, 6), (10, 5), (7, 7), (11, 1), (1, 1)]
)
def test_group_count_is_the_largest_divisor_up_to_eight(channels: int, groups: int) -> None:
    assert group_count(channels) == groups
    assert channels % groups == 0


def test_row_norm_by_group_sees_one_row_alone() -> None:
    norm = row_norm("group", 16)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x)[2:3], norm(x[2:3]))
    assert not live_batch_norms(norm)


def test_row_norm_by_batch_is_a_batch_norm() -> None:
    assert live_batch_norms(nn.Sequential(row_norm("batch", 16))) == ["0"]
    with pytest.raises(ValueError, match="batch or group"):
        row_norm("layer", 16)


def test_live_batch_norms_finds_timms_fused_layers_and_those_without_statistics() -> None:
    net = timm.create_model("tf_efficientnet_lite0")
    assert len(batch_norms(net)) == 49  # none of them is exactly nn.BatchNorm2d
    assert all(type(m) is not nn.BatchNorm2d for _, m in batch_norms(net))
    assert len(live_batch_norms(net.train())) == 49
    assert live_batch_norms(net.eval()) == []
    assert live_batch_norms(nn.BatchNorm2d(3, track_running_stats=False).eval()) == [""]


def test_replacing_keeps_affine_activation_and_names() -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet", num_classes=3)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    activations = {name: type(m.act) for name, m in batch_norms(net)}
    count = replace_batch_norms(net)
    assert count == len(activations) > 10
    assert batch_norms(net) == []
    after = dict(net.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: type(m.act) for name, m in net.named_modules() if name in activations} == activations
    # A fused layer is group norm followed by its activation.
    layer, x = net.bn1, torch.randn(2, net.bn1.num_channels, 4, 4)
    expected = layer.act(
        nn.functional.group_norm(x, group_count(layer.num_channels), layer.weight, layer.bias, layer.eps)
    )
    torch.testing.assert_close(layer(x.clone()), expected)


def test_after_replacing_an_image_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=0)
    replace_batch_norms(net)
    net.train()
    x = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)
