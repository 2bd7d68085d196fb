"""Depthwise convolutions as matrix products against torch's own, values and gradients."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn

from fed_diffmic.models import depthwise
from fed_diffmic.models.depthwise import speed_up_depthwise


def pair(kind, channels, kernel, stride, padding, bias):
    """The same convolution twice, the second one sped up."""
    torch.manual_seed(0)
    plain = kind(channels, channels, kernel, stride, padding, groups=channels, bias=bias).double()
    fast = kind(channels, channels, kernel, stride, padding, groups=channels, bias=bias).double()
    fast.load_state_dict(plain.state_dict())
    assert speed_up_depthwise(fast) == 1
    return plain, fast


@pytest.fixture
def counted(monkeypatch):
    calls = []
    original = depthwise.small_depthwise
    monkeypatch.setattr(depthwise, "small_depthwise", lambda *a: calls.append(1) or original(*a))
    return calls


@settings(deadline=None, max_examples=120)
@given(
    kind=st.sampled_from([nn.Conv2d, Conv2dSame]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.sampled_from([(3, 3), (5, 5), (5, 3)]),
    stride=st.integers(1, 2),
    bias=st.booleans(),
)
def test_values_and_gradients_are_torchs(kind, size, kernel, stride, bias):
    plain, fast = pair(kind, 6, kernel, stride, (kernel[0] // 2, kernel[1] // 2), bias)
    first = torch.randn(3, 6, *size, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    second = first.detach().clone().requires_grad_()
    expected, got = plain(first), fast(second)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    away = torch.randn_like(expected)
    expected.backward(away)
    got.backward(away)
    torch.testing.assert_close(second.grad, first.grad, rtol=1e-12, atol=1e-12)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name).grad, parameter.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "used"),
    [(1, 5, 1, True), (2, 3, 1, True), (4, 5, 1, True), (2, 5, 2, True), (4, 3, 1, False), (8, 5, 1, False)],
)
def test_it_is_used_where_it_was_measured_to_be_faster(counted, size, kernel, stride, used):
    plain, fast = pair(nn.Conv2d, 4, kernel, stride, kernel // 2, False)
    x = torch.randn(2, 4, size, size, dtype=torch.float64)
    torch.testing.assert_close(fast(x), plain(x))
    assert bool(counted) is used


def test_what_is_not_a_plain_depthwise_convolution_is_left_alone():
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, 3, groups=4, dilation=2), nn.Conv2d(4, 4, 3, groups=4, padding_mode="reflect", padding=1),
    )  # fmt: skip
    assert speed_up_depthwise(net) == 0


def test_a_backbone_keeps_its_state_and_its_features(counted):
    torch.manual_seed(0)
    net = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    names = list(net.state_dict())
    with torch.no_grad():
        before = net(images)
        assert speed_up_depthwise(net) == 16
        after = net(images)
    assert counted
    assert list(net.state_dict()) == names
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_each_images_gradient_can_be_taken_at_once():
    plain, fast = pair(nn.Conv2d, 6, 5, 1, 2, False)
    x = torch.randn(4, 6, 2, 2, dtype=torch.float64)

    def loss(weight, image, conv):
        return torch.func.functional_call(conv, {"weight": weight}, (image[None],)).square().sum()

    weight = plain.weight.detach()
    together = torch.func.vmap(torch.func.grad(lambda w, i: loss(w, i, fast)), in_dims=(None, 0))(weight, x)
    alone = torch.stack([torch.func.grad(lambda w, i: loss(w, i, plain))(weight, image) for image in x])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_what_was_first_used_without_gradients_can_train():
    _, fast = pair(nn.Conv2d, 6, 5, 1, 2, False)
    x = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    depthwise._entries.cache_clear()
    with torch.inference_mode():
        fast(x)
    fast(x).sum().backward()
    assert fast.weight.grad.abs().sum() > 0


def test_what_is_multiplied_lies_in_one_block_forward_and_backward(monkeypatch):
    """In channels-last order torch would copy and multiply one channel at a time."""
    blocks, product = [], torch.bmm

    def watched(rows, matrices):
        blocks.append(rows.is_contiguous())
        made = product(rows, matrices)
        made.register_hook(lambda gradient: blocks.append(gradient.is_contiguous()))
        return made

    monkeypatch.setattr(torch, "bmm", watched)
    x = torch.randn(8, 64, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    conv = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    assert speed_up_depthwise(conv) == 1
    conv(x).backward(torch.randn(8, 64, 2, 2).to(memory_format=torch.channels_last))
    assert blocks == [True, True]
